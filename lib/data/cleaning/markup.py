r"""Replace HTML markup by text that says the same: lines, lists, Markdown tables, 10^9, 1 1/2.

strip_html("Give <del>5</del><ins>10</ins> mg.<br>Rest.")  # "Give 10 mg.\nRest."

Most texts hold no markup, and "p <0.05 and BP> 90" is none: `markup_tags.py` finds what is. lxml
(libxml2) makes the tree of it, without moving any text: a browser would lift what lies beside the
cells of a table out of it. So words and numbers keep their order.
"""

import html
import html.entities
import re
from typing import Any

from lib.data.cleaning.markup_tags import GONE, UnclearMarkup, number_texts
from lib.data.cleaning.raised import write_lowered, write_raised
from lib.data.cleaning.tables import Cell, fill_grid, write_table

Element = Any  # lxml's elements have no types
UNSEEN = re.compile(
    r"<!--(?:[^<-]|<(?!!--)|-(?!->))*+-->|"
    r"<(script|style)\b[^<>]*>[^<]*+(?:<(?!/?\1\b)[^<]*+)*+</\1\s*>|"
    # Word's conditions, a document type and an XML declaration
    r"<!\[(?:if|endif)\b[^<>\]]*+\]-{0,2}>|<!doctype\b[^<>]*>|<\?xml\b[^<>]*>",
    re.I,
)
CDATA = re.compile(r"<!\[CDATA\[([^<\]]*+(?:(?:<(?!!\[CDATA)|\](?!\]>))[^<\]]*+)*+)\]\]>")
ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.I)


def strip_html(text: str) -> str:
    """Replace HTML entities by their characters, and markup by text that says the same.

    Deleted and hidden text goes. Raise UnclearMarkup when what the markup means cannot be told.
    """
    if "&" in text:
        text = ENTITY.sub(_replace_entity, text)
    if "<" not in text or ">" not in text:
        return text
    text = CDATA.sub(r"\1", UNSEEN.sub(lambda match: " " if match[1] else "", text))
    plain, texts = number_texts(text)
    return _write(plain, texts) if plain or texts else text


def _replace_entity(match: re.Match[str]) -> str:
    name = match[1]
    if name.startswith("#"):
        return html.unescape(f"&{name};")
    # html.unescape would turn "&notit;" into "¬it;"
    return html.entities.html5.get(name + ";", f"&{name};")


def _write(plain: str, texts: list[str]) -> str:
    import lxml.etree  # most jobs have no markup

    root = lxml.etree.fromstring(f"<div>{plain}</div>", lxml.etree.HTMLParser(huge_tree=True))
    if "".join(root.itertext()) != "".join(f"{n};" for n in range(len(texts))):
        raise UnclearMarkup
    writer = Writer(texts)
    writer.write_children(root.find("body/div"))
    return writer.text()


def _mark(number: int, kind: str, tag: str) -> str:
    """Return the marker of a list's item: "- ", "3. ", or "c. "."""
    if tag == "ul":
        return "- "
    if kind in "aA" and 0 < number <= 26:
        return f"{chr(ord(kind) + number - 1)}. "
    return f"{number}. "


def _is_layout(element: Element) -> bool:
    """Tell whether a row or cell holds a table, so that it only places things on a page."""
    return element.find(".//table") is not None


# -------------------------------------------------------------------------------------------------
# from tree to text

LINE_ENDS_AROUND = {
    **dict.fromkeys(("p", "ul", "ol", "table", "caption"), 2),
    **dict.fromkeys(("div", "li", "tr", "td", "th"), 1),
}
LIST_MARKER = re.compile(r"\s*(?:[-*•·●▪]|\d{1,3}[.)]|[a-zA-Z][.)])\s")
# Edges of inline elements where the blank that a page's style puts there is missing, as in
# "Adults<b>500 mg</b>Children<i>250 mg</i>" and "1<small>1/2</small>"
GLUED = re.compile(r"[a-z]{3}\0\d|[a-z\d]\0[A-Z][a-z]|\d\0\d{1,2}[/⁄]\d")
CELLS = ("tr", "td", "th")
# "<b>Do not</b>give"
NEGATION = re.compile(r"\s(?:not|never)\Z", re.I)
NO_BLANK_BEFORE = ".,;:!?)]}%’'\"”»/-–⁄^°"
NO_BLANK_AFTER = "([{“«‘'\"/-–⁄$"


class Writer:
    """The text written so far, and what must come before the next piece of it."""

    def __init__(self, texts: list[str], in_line: bool = False) -> None:
        self.texts = texts
        self.in_line = in_line  # a line end of the source is a blank here, as in a cell
        self.pieces: list[str] = []
        self.tail = ""  # the last characters written
        self.line_ends = 0  # due before the next text
        self.indent = 0
        self.marker = ""  # of a list item without text as yet
        self.edge = ""  # inline tags since the last text: "start", "end", or "both", in that order

    def text(self) -> str:
        """Return all that was written."""
        return "".join(self.pieces)

    def add(self, text: str) -> None:
        """Write a piece of text."""
        if self.in_line or self.indent:
            text = re.sub(r"\s*\n\s*", " ", text) if "\n" in text else text
        if self.line_ends or self.marker:
            text = text.lstrip()
        if not text:
            return
        if self.line_ends or self.marker:
            self._begin_line(text)
        elif self.edge and self._is_glued(text):
            self._put(" ")
        self.edge = ""
        self._put(text)

    def _begin_line(self, text: str) -> None:
        outer = self.indent - len(self.marker)
        if self.tail:
            self._put("\n" * max(1, self.line_ends) + " " * outer)
        # "<li>1. Call" has its marker
        if not LIST_MARKER.match(text):
            self._put(self.marker)
        self.line_ends, self.marker = 0, ""

    def _is_glued(self, text: str) -> bool:
        before, after = self.tail[-1:], text[0]
        if not before or before.isspace() or after.isspace():
            return False
        if GLUED.match(f"{self.tail[-3:]}\0{text[:4]}") or GLUED.match(f"{before}\0{text[:4]}"):
            return True
        if NEGATION.search(self.tail) and after.isalpha():
            return True
        if self.edge != "both" or (before == "." and after.isdigit()):
            return False
        return after not in NO_BLANK_BEFORE and before not in NO_BLANK_AFTER

    def _put(self, text: str) -> None:
        if text:
            self.pieces.append(text)
            self.tail = (self.tail + text[-30:])[-30:]

    def end_line(self, count: int = 1) -> None:
        """Let the next text begin a line, after `count - 1` empty ones."""
        self.line_ends = max(self.line_ends, count)

    # ---------------------------------------------------------------------------------------------

    def read(self, numbers: str | None) -> str:
        """Return the text for which the parser's numbers stand."""
        return "".join(self.texts[int(n)] for n in (numbers or "").split(";") if n)

    def write_children(self, element: Element) -> None:
        """Write the text and the elements within an element."""
        self.add(self.read(element.text))
        cells: list[Element] = []  # those without text between them
        for child in element:
            if child.tag in CELLS and not _is_layout(child):
                cells.append(child)
            else:
                self._write_cells(cells)
                cells = []
                self.write_element(child)
            tail = self.read(child.tail)
            if tail.strip():
                self._write_cells(cells)
                cells = []
            if not cells:
                self.add(tail)
        self._write_cells(cells)

    def write_element(self, element: Element) -> None:
        """Write an element, without the text after it."""
        name = element.tag
        if name == GONE or element.get("hidden") is not None:
            return
        if name == "br":
            self.add(" ") if self.in_line else self._break_line()
        elif name in ("sup", "sub"):
            self._write_script(element)
        elif name in ("ul", "ol"):
            self._write_list(element)
        elif name == "li":
            self._write_item(element, "- ")
        elif name in LINE_ENDS_AROUND:
            self.end_line(LINE_ENDS_AROUND[name])
            self.write_children(element)
            self.end_line(LINE_ENDS_AROUND[name])
        else:
            self._write_inline(element)

    def _break_line(self) -> None:
        # an item's further lines stay within it
        self.line_ends = self.line_ends + 1 if self.tail else 0

    def _write_inline(self, element: Element) -> None:
        self.edge = {"": "start", "end": "both"}.get(self.edge, self.edge)
        self.write_children(element)
        self.edge = self.edge or "end"

    def _write_script(self, element: Element) -> None:
        """Write raised or lowered text as the text around it demands."""
        inner = Writer(self.texts, in_line=True)
        inner.write_children(element)
        follower = element.getnext()
        after = self.read(element.tail)
        if follower is not None and follower.tag == "sub" and after in ("/", "⁄"):
            after = "⁄1"  # over the lower number of a fraction, whatever that is
        write = write_raised if element.tag == "sup" else write_lowered
        written = write(" ".join(inner.text().split()), self.tail, after)
        if self.line_ends or self.marker:
            self.add(written)
        else:
            self._put(written)
        self.edge = ""

    def _write_list(self, element: Element) -> None:
        if self.indent:
            self.end_line(1)
        else:
            self.end_line(LINE_ENDS_AROUND[element.tag])
        number = int(element.get("start", 1))
        self.add(self.read(element.text).strip())
        for child in element:
            if child.tag == "li":
                number = int(child.get("value", number))
                self._write_item(child, _mark(number, element.get("type", "1"), element.tag))
                number += 1
            else:
                self.write_element(child)
            self.add(self.read(child.tail).strip())
        self.end_line(1 if self.indent else LINE_ENDS_AROUND[element.tag])

    def _write_item(self, element: Element, marker: str) -> None:
        self.end_line()
        self.marker = marker
        self.indent += len(marker)
        self.write_children(element)
        self.indent -= len(marker)
        self.marker = ""
        self.end_line()

    # ---------------------------------------------------------------------------------------------

    def _write_cells(self, elements: list[Element]) -> None:
        """Write rows, or cells outside of a row, as a table."""
        if not elements:
            return
        rows: list[list[Cell]] = []
        in_row = False
        for element in elements:
            if element.tag == "tr":
                rows.append([self._read_cell(cell) for cell in element])
            elif in_row:
                rows[-1].append(self._read_cell(element))
            else:
                rows.append([self._read_cell(element)])
            in_row = element.tag != "tr"
        self.end_line(2)
        for line in write_table(fill_grid(rows)).split("\n"):
            self.add(line)
            self.end_line()
        self.end_line(2)

    def _read_cell(self, element: Element) -> Cell:
        inner = Writer(self.texts)
        inner.write_children(element)
        if element.get("hidden") is not None:
            raise UnclearMarkup  # it may take its column with it
        columns, rows = (max(1, int(element.get(name, 1))) for name in ("colspan", "rowspan"))
        return _join_lines(inner.text()), columns, rows


def _join_lines(text: str) -> str:
    """Return the lines of a cell in one, with ";" where a number or an item begins a line."""
    return re.sub(r"\s*\n\s*", " ", re.sub(r"(?<=[^\s.,;:])\s*\n\s*(?=[\d<>≤≥-])", "; ", text))
