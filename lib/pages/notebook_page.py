"""Turn an executed notebook into a page that folds code away, runs nothing and fetches nothing.

notebook_page.write_notebook_page(run.folder, "train")      # train.html next to train.ipynb
"""

import pathlib
import re

from lib.common import files
from lib.common.errors import UserError
from lib.pages import page

TAGS = set(
    "a b blockquote br caption code details div em h1 h2 h3 h4 hr i img li ol p pre small span "
    "strong sub summary sup table tbody td tfoot th thead tr ul".split()
)
STYLES = set(
    "background border-radius color font-family font-size line-height margin overflow-wrap "
    "text-align vertical-align white-space".split()
)
ATTRIBUTES = {
    "*": {"class", "style", "title"},
    "a": {"href"},
    "div": {"tabindex"},
    "img": {"src", "alt"},
    "td": {"colspan"},
    "th": {"colspan"},
}
BADGE = re.compile(r"\[!\[[^\]]*\]\([^)]*\)\]\([^)]*\) ?")  # an image that would be fetched


def write_notebook_page(folder: pathlib.Path, stage: str) -> pathlib.Path:
    """Write folder/<stage>.html from folder/<stage>.ipynb, and return its path.

    Raise UserError when the notebook is not readable.
    """
    # these take a second, and commands that list runs import this module without writing a page
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
            # glued values are data for scrapbook, not for readers
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
    except Exception as error:  # nbformat, nbconvert and the template raise errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"executed notebook `{files.format_path(path)}` is not readable ({reason})."
        ) from None
    cleaned = nh3.clean(
        body,
        tags=TAGS,
        attributes=ATTRIBUTES,
        attribute_filter=_filter_attribute,
        url_schemes={"http", "https", "data"},
        filter_style_properties=STYLES,
    )
    return page.write_page(
        folder / f"{stage}.html",
        "notebook.html.jinja",
        run=folder.name,
        stage=stage,
        body=markupsafe.Markup(cleaned),
    )


def _filter_attribute(tag: str, attribute: str, value: str) -> str | None:
    """Return the value if it is an embedded image, a link, or a style that loads nothing.

    nh3 calls this for each attribute; None removes the attribute.
    """
    forbidden = {
        "src": not value.startswith("data:image/"),
        "href": value.startswith("data:"),
        "style": "url(" in value.lower(),
    }
    return None if forbidden.get(attribute) else value
