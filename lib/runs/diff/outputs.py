"""Read the outputs of an executed cell by type: printed lines, text, tables, pictures, errors.

Nothing of an output is kept as markup: a page shows its words, its numbers and its pictures.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import lxml.etree
import lxml.html

from lib.runs.diff.masks import Line, mask_cell, mask_printed, mask_text

PICTURES = ("image/png", "image/jpeg", "image/gif", "image/svg+xml")
TEXTS = ("text/markdown", "text/latex", "application/json", "text/plain")
GLUED = "application/scrapbook"  # values for programs; the tables show them to readers
UNSEEN = {"script", "style", "head", "template", "title"}
BLOCKS = set(
    "address article blockquote br dd div dl dt figure h1 h2 h3 h4 h5 h6 hr li ol p pre section "
    "summary td th tr ul".split()
)
PARSER = lxml.html.HTMLParser(no_network=True, huge_tree=False)


class Item(NamedTuple):
    """A part of a cell's outputs that is compared with its like in the other notebook.

    kind: "printed", "text", "error", "table", "picture" or "other".
    title: a stream's name, a table's caption, a media type.
    lines: of a text. rows: of a table, the first being its header (all empty if it has none).
    content: a picture's data address, or the markup of which lines or rows are the words.
    """

    kind: str
    title: str
    lines: list[Line]
    rows: list[list[Line]]
    content: str


def read_items(outputs: Sequence[Any], names: Sequence[str]) -> list[Item]:
    """Return a code cell's outputs in order, with what one stream printed in a row as one item."""
    items: list[Item] = []
    printed = ""
    for number, output in enumerate(outputs):
        if output["output_type"] == "stream":
            printed += join_text(output.get("text", ""))
            following = outputs[number + 1] if number + 1 < len(outputs) else {}
            if following.get("name") != output.get("name"):
                title = str(output.get("name", ""))
                items.append(Item("printed", title, mask_printed(printed, names), [], ""))
                printed = ""
        elif output["output_type"] == "error":
            items.append(_read_error(output, names))
        else:
            items += _read_data(output.get("data", {}), names)
    return items


def join_text(value: Any) -> str:
    """Return a text that a notebook may keep as a list of lines."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)


def _read_error(output: Any, names: Sequence[str]) -> Item:
    title = f"{output.get('ename', '')}: {output.get('evalue', '')}"
    trace = "\n".join(map(str, output.get("traceback", [])))
    return Item("error", "error", mask_printed(f"{title}\n{trace}", names), [], "")


def _read_data(data: Any, names: Sequence[str]) -> list[Item]:
    """Return the richest form of an output that a page can show."""
    for kind in PICTURES:
        if kind in data:
            return [_read_picture(kind, join_text(data[kind]))]
    if "text/html" in data:
        return read_html(join_text(data["text/html"]), names)
    for kind in TEXTS:
        if kind in data:
            value = data[kind]
            text = json.dumps(value, indent=1) if isinstance(value, dict) else join_text(value)
            return [Item("text", kind, _mask_lines(text, names), [], "")]
    others = sorted(kind for kind in data if not kind.startswith(GLUED))
    return [Item("other", kind, [], [], join_text(data[kind])) for kind in others]


def _read_picture(kind: str, text: str) -> Item:
    """Return a picture as a data address, from which a page runs and fetches nothing."""
    try:
        content = text.encode() if kind.endswith("xml") else base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError):
        return Item("other", f"{kind}, damaged", [], [], text)
    return Item("picture", kind, [], [], f"data:{kind};base64,{base64.b64encode(content).decode()}")


def _mask_lines(text: str, names: Sequence[str]) -> list[Line]:
    lines = (line.rstrip() for line in text.splitlines())
    return [Line(mask_text(line, names), line) for line in lines if line]


# --------------------------------------------------------------------------------------------------
# HTML


def read_html(markup: str, names: Sequence[str]) -> list[Item]:
    """Return the tables of a piece of HTML, and the texts between them.

    What has a background of its own, as trained tokens have, stands in ⟦ ⟧.
    """
    try:
        root = lxml.html.document_fromstring(f"<body>{markup}", parser=PARSER)
    except (lxml.etree.LxmlError, ValueError):  # nothing in it, or characters that XML forbids
        return [Item("text", "text/html", _mask_lines(markup, names), [], markup)]
    items: list[Item] = []
    text = ""
    for part in (*_walk(root, tables=True), None):
        if isinstance(part, str):
            text += part
            continue
        if lines := _mask_lines(text.replace("⟧⟦", ""), names):
            items.append(Item("text", "text/html", lines, [], markup))
        text = ""
        if part is not None:
            items.append(_read_table(part, names))
    return items or [Item("other", "text/html", [], [], markup)]


def _walk(root: Any, tables: bool = False) -> Iterator[Any]:
    """Yield the texts below an element in order; with `tables`, each table as an element."""
    stack: list[Any] = [root]
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            yield node
            continue
        after = [node.tail or ""] if node is not root else []
        if not isinstance(node.tag, str) or node.tag in UNSEEN:  # a comment has no tag
            stack += after
        elif tables and node.tag == "table":
            stack += after
            yield node
        else:
            edge = "\n" if node.tag in BLOCKS else ""
            marked = "background" in node.get("style", "") and node.tag == "span"
            opening, closing = ("⟦", "⟧") if marked else (edge, edge)
            stack += [*after, closing, *reversed(list(node)), opening + (node.text or "")]


def _read_table(table: Any, names: Sequence[str]) -> Item:
    caption = "".join(
        text for found in table.iter("caption") for text in _walk(found) if text.strip()
    )
    found = [row for row in table.iter("tr") if next(row.iterancestors("table")) is table]
    texts = [
        ["".join(_walk(cell)).strip() for cell in row.iterchildren("td", "th")] for row in found
    ]
    has_header = bool(found) and all(cell.tag == "th" for cell in found[0])
    header = texts.pop(0) if has_header else []
    width = max([len(header), *map(len, texts)])
    header += [""] * (width - len(header))
    rows = [[Line(text, text) for text in header]]
    for row in texts:
        row += [""] * (width - len(row))
        rows.append([mask_cell(text, row[0], header[n], names) for n, text in enumerate(row)])
    markup = lxml.etree.tostring(table, encoding="unicode", with_tail=False)
    return Item("table", mask_text(" ".join(caption.split()), names), [], rows, markup)
