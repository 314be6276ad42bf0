r"""Write tables as Markdown, so that an empty cell stays a cell: what is below it is not its value.

break_tables("Drug\tAdult\tChild\nX\t\t5 mg")
# "| Drug | Adult | Child |\n| --- | --- | --- |\n| X | | 5 mg |"
"""

import re
from itertools import groupby

from lib.data.cleaning.markup_tags import UnclearMarkup

MOST_COLUMNS = 60
MOST_CELLS = 50_000
Cell = tuple[str, int, int]  # text, columns, rows
Grid = list[list[str]]


def fill_grid(rows: list[list[Cell]]) -> Grid:
    """Return a table's texts by row and column; a cell over several of them is in each.

    Raise UnclearMarkup for a table that would be too large for that.
    """
    placed: dict[tuple[int, int], str] = {}
    for top, cells in enumerate(rows):
        left = 0
        for text, columns, height in cells:
            while (top, left) in placed:
                left += 1
            for row in range(top, min(top + height, len(rows))):
                for column in range(left, left + columns):
                    placed.setdefault((row, column), text)
            left += columns
            if left > MOST_COLUMNS or len(placed) > MOST_CELLS:
                raise UnclearMarkup
    width = 1 + max((column for _, column in placed), default=-1)
    return [[placed.get((row, column), "") for column in range(width)] for row in range(len(rows))]


def write_table(grid: Grid) -> str:
    """Return a grid as a Markdown table; as lines, if it has but one column or one row."""
    grid = [line for line in grid if any(line)]
    used = [
        n
        for n in range(len(grid[0]) if grid else 0)
        if any(line[n] for line in grid) or len(grid) == 1
    ]
    grid = [[_clean_cell(line[n]) for n in used] for line in grid]
    if len(used) < 2:
        return "\n".join(cell for line in grid for cell in line)
    lines = ["| " + " | ".join(line) + " |" for line in grid]
    if len(lines) > 1:
        lines.insert(1, "| " + " | ".join(["---"] * len(used)) + " |")
    return re.sub(r"  +", " ", "\n".join(lines))


def _clean_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")


# -------------------------------------------------------------------------------------------------
# tables whose columns are kept apart by tabs or blanks

GAP = re.compile(r"[^\S\n]{2,}")
BULLET = re.compile(r"(?:^|\s)[-*•·●▪](?:\s|$)")
Placed = tuple[int, int, str]  # start, end, text


def break_tables(text: str) -> str:
    """Write tables of at least three columns, made by tabs or aligned by blanks, as Markdown.

    Only lines in a row that surely form one: all with the same tabs, or each cell under or over
    exactly one cell of the longest line.
    """
    if "\n" not in text or ("\t" not in text and "   " not in text):
        return text
    pieces = []
    for kind, group in groupby(text.split("\n"), _find_kind):
        lines = list(group)
        grid = _READERS[kind](lines) if kind and len(lines) > 1 else None
        pieces += [write_table(grid)] if grid else lines
    return "\n".join(pieces)


def _find_kind(line: str) -> str:
    if line.count("\t") > 1 and line.strip():
        return "tabs"
    gaps = GAP.findall(line.strip())
    return "blanks" if gaps and "|" not in line and not BULLET.search(line) else ""


def _split_at_tabs(lines: list[str]) -> Grid | None:
    grid = [[cell.strip() for cell in line.split("\t")] for line in lines]
    if any(len(row) != len(grid[0]) for row in grid) or len(grid[0]) > MOST_COLUMNS:
        return None
    filled = [n for n in range(len(grid[0])) if any(row[n] for row in grid)]
    return grid if len(filled) > 2 else None


def _split_at_blanks(lines: list[str]) -> Grid | None:
    rows = [_place_cells(line.expandtabs(8)) for line in lines]
    columns = max(rows, key=len)
    if not 3 <= len(columns) <= MOST_COLUMNS or any(len(row) < 2 for row in rows):
        return None
    grid = []
    for row in rows:
        line = [""] * len(columns)
        for start, end, text in row:
            over = [n for n, (left, right, _) in enumerate(columns) if start < right and left < end]
            if len(over) != 1 or line[over[0]]:
                return None
            line[over[0]] = text
        grid.append(line)
    return grid


def _place_cells(line: str) -> list[Placed]:
    cells = []
    position = 0
    for gap in [*GAP.finditer(line), None]:
        end = gap.start() if gap else len(line)
        if line[position:end].strip():
            cells.append((position, end, line[position:end].strip()))
        position = gap.end() if gap else end
    return cells


_READERS = {"tabs": _split_at_tabs, "blanks": _split_at_blanks}
