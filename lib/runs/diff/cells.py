"""Read executed notebooks, and pair their cells with nbdime."""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.common import files
from lib.common.errors import UserError
from lib.runs.diff.outputs import join_text

# nbdime compares every cell with every other, letter by letter: 30 unlike cells on either side, of
# about 1,000 characters or more each, took 102 s. So it gets the beginning of each, and less of it
# from many cells
ALIGNED = 300  # characters of a cell
MANY, ALIGNED_OF_MANY = 2_500, 60  # pairs of cells; characters of a cell
INJECTED = "injected-parameters"  # the tag of the cell that papermill adds


class Cell(NamedTuple):
    """A cell with its heading: the last one above it, or its own."""

    number: int  # from 1
    heading: str
    kind: str
    source: str
    outputs: list[Any]
    injected: bool


Pair = tuple[Cell | None, Cell | None]


def read_cells(path: pathlib.Path) -> list[Cell]:
    """Read the cells of an executed notebook of any format version.

    Raise UserError with the reason if it is not one.
    """
    import nbformat  # slow to import; commands that list runs do without

    try:
        notebook = nbformat.read(path, as_version=4)
        cells = []
        heading = "the first cell"
        for number, cell in enumerate(notebook.cells, start=1):
            source = join_text(cell.source)
            if cell.cell_type == "markdown":
                heading = _find_heading(source) or heading
            tags = cell.get("metadata", {}).get("tags", [])
            outputs = [output for output in cell.get("outputs", []) if output["output_type"]]
            cells.append(Cell(number, heading, cell.cell_type, source, outputs, INJECTED in tags))
    except Exception as error:  # nbformat raises errors of many kinds
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"executed notebook `{files.format_path(path)}` is not readable ({reason})."
        ) from None
    return cells


def _find_heading(source: str) -> str:
    lines = (line.strip() for line in source.splitlines())
    return next((line.lstrip("#").strip() for line in lines if line.startswith("#")), "")


def pair_cells(first: list[Cell], second: list[Cell]) -> list[Pair]:
    """Pair the cells of two notebooks in order, as nbdime aligns them by their sources.

    Their ids are left out: ours count the cells, so an inserted cell shifts them all. Within a run
    of cells that nbdime leaves unpaired, those of one type are paired if there are as many.
    """
    from nbdime import diff_notebooks  # takes a second, and only this command needs it

    size = ALIGNED if len(first) * len(second) <= MANY else ALIGNED_OF_MANY
    (changes,) = [
        change["diff"]
        for change in diff_notebooks(_as_notebook(first, size), _as_notebook(second, size))
        if change["key"] == "cells"
    ] or [[]]
    pairs: list[Pair] = []
    removed = {
        change["key"] + n
        for change in changes
        if change["op"] == "removerange"
        for n in range(change["length"])
    }
    added = {c["key"]: len(c["valuelist"]) for c in changes if c["op"] == "addrange"}
    rest = iter(second)
    gap: tuple[list[Cell], list[Cell]] = ([], [])
    for place in range(len(first) + 1):
        gap[1].extend(next(rest) for _ in range(added.get(place, 0)))
        if place in removed:
            gap[0].append(first[place])
            continue
        pairs += _pair_gap(*gap)
        gap = ([], [])
        if place < len(first):
            pairs.append((first[place], next(rest)))
    return pairs


def _as_notebook(cells: list[Cell], size: int) -> Any:
    """Return a notebook of the first `size` characters of each source.

    The injected parameters always pair with each other.
    """
    import nbformat

    found = [
        nbformat.from_dict(
            {
                "cell_type": "code",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": INJECTED if cell.injected else f"{cell.kind}\n{cell.source}"[:size],
            }
        )
        for cell in cells
    ]
    return nbformat.from_dict({"cells": found, "metadata": {}, "nbformat": 4, "nbformat_minor": 4})


def _pair_gap(removed: list[Cell], added: list[Cell]) -> Iterator[Pair]:
    """Pair rewritten cells: those with the same sequence of types; others stay alone."""
    if [cell.kind for cell in removed] == [cell.kind for cell in added]:
        yield from zip(removed, added, strict=True)
        return
    yield from ((cell, None) for cell in removed)
    yield from ((None, cell) for cell in added)
