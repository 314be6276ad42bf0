"""An executed notebook as a page: text, tables and figures as they were, code folded away, nothing that runs or is fetched.

notebook_page.write(run.folder, "train")      # train.html beside train.ipynb
"""

import pathlib
import re
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.pages import page

TAGS = set(
    "a b blockquote br caption code details div em h1 h2 h3 h4 hr i img li ol p pre small span strong sub summary sup table tbody td tfoot th "
    "thead tr ul".split()
)
STYLES = set(
    "background border-radius color font-family font-size line-height margin overflow-wrap text-align vertical-align white-space".split()
)
ATTRIBUTES = {
    "*": {"class", "style", "title"},
    "a": {"href"},
    "div": {"tabindex"},
    "img": {"src", "alt"},
    "td": {"colspan"},
    "th": {"colspan"},
}
BADGE = re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\) ?")  # a picture from the network


def write(folder: pathlib.Path, stage: str) -> pathlib.Path:
    """Write folder/<stage>.html from folder/<stage>.ipynb; returns its path."""
    import jinja2
    import markupsafe
    import nbformat
    import nh3
    from nbconvert import HTMLExporter

    path = folder / f"{stage}.ipynb"
    try:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = BADGE.sub("", cell.source)
            # glued values are data for scrapbook, not something to see
            cell.outputs = [
                o
                for o in cell.get("outputs", [])
                if not any("scrapbook" in kind for kind in o.get("data", {}))
            ]
        exporter = HTMLExporter(
            template_name="classic",
            template_file="notebook_cells.html.jinja",
            exclude_anchor_links=True,
            exclude_output_prompt=True,
            extra_loaders=[jinja2.FileSystemLoader(page.TEMPLATES)],
        )
        body, _ = exporter.from_notebook_node(notebook)
    except Exception as error:  # nbformat, nbconvert and its template have kinds of their own
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"executed notebook `{files.shown(path)}` is not readable ({said})."
        ) from None
    clean = nh3.clean(
        body,
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_kept,
        url_schemes={"http", "https", "data"},
        filter_style_properties=STYLES,
    )
    return page.write(
        folder / f"{stage}.html",
        "notebook.html.jinja",
        run=folder.name,
        stage=stage,
        body=markupsafe.Markup(clean),
    )


def _kept(tag: str, attribute: str, value: str) -> Any:
    """A picture only from the page itself, a link only as one a reader may follow, and no style that loads."""
    loads = {
        "src": not value.startswith("data:image/"),
        "href": value.startswith("data:"),
        "style": "url(" in value.lower(),
    }
    return None if loads.get(attribute) else value
