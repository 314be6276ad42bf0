"""Write diff.html in the runs folder: two runs' executed notebooks beside each other, by stage.

make diff RUNS="a b"
"""

import pathlib
from typing import Any, NamedTuple

from lib import params
from lib.common.errors import UserError
from lib.pages import page
from lib.record import run_folder
from lib.record.run_record import STAGES
from lib.runs.comparisons import differing_parameters
from lib.runs.diff import cells, masks, outputs
from lib.runs.diff.cells import Cell
from lib.runs.diff.differences import Difference, Row, compare_lines, compare_outputs
from lib.runs.listing import describe_state, find_runs, read_if_complete

MOST_MASKED = 200  # lines of a stage that are listed as taken as equal


class CellPair(NamedTuple):
    """A pair of cells, or a cell that only one run has.

    source: rows of what differs in its code or text. results: its outputs that differ.
    masked: the lines of its outputs that are taken as equal. place: its numbers in both notebooks.
    """

    heading: str
    kind: str
    place: str
    only: str
    source: list[Row]
    results: list[Difference]
    masked: list[tuple[str, str]]


class StageDiff(NamedTuple):
    """A stage's notebooks. note: why they are not compared. blocks: a pair, or a count of equal."""

    stage: str
    note: str
    blocks: list[Any]
    masked: list[tuple[str, str, str]]
    unlisted: int


def diff_runs(names: str) -> tuple[str, pathlib.Path]:
    """Compare the executed notebooks of two runs; return the short answer and the page's path.

    Raise UserError unless two different runs are named, and a stage of both can be compared.
    """
    folders = _find_two(names)
    labels = _label(folders)
    listed, notes = _compare_parameters(folders, labels)
    told = {row["parameter"] for row in listed}
    stages = [compare_stage(stage, folders, labels, told) for stage in STAGES]
    if not any(stage.blocks for stage in stages):
        raise UserError("\n".join(_explain_nothing(labels, stages)))
    answer = answer_in_words(None if notes else len(listed), stages)
    path = page.write_page(
        run_folder.runs_folder() / "diff.html",
        "diff.html.jinja",
        names=labels,
        states=[_state_of(folder) for folder in folders],
        notes=notes,
        answer=answer,
        parameters=listed,
        stages=stages,
        masks=[*masks.MASKS],
    )
    return "\n".join([answer, *notes, *(stage.note for stage in stages if stage.note)]), path


def _find_two(names: str) -> list[pathlib.Path]:
    given = names.split()
    if len(given) != 2:
        raise UserError(
            f"{len(given)} run{' is' if len(given) == 1 else 's are'} named, expected two: "
            f'RUNS="a b". '
            f"Known runs: {run_folder.list_names()}."
        )
    folders = find_runs(names)
    if len({folder.resolve() for folder in folders}) != 2:
        raise UserError(
            f"`{given[0]}` and `{given[1]}` are the same run, which does not differ from itself. "
            f'Name two runs: RUNS="a b". Known runs: {run_folder.list_names()}.'
        )
    return folders


def _label(folders: list[pathlib.Path]) -> list[str]:
    names = [folder.name for folder in folders]
    if names[0] != names[1]:
        return names
    return ["/".join(folder.resolve().parts[-2:]) for folder in folders]


def _state_of(folder: pathlib.Path) -> str:
    record = read_if_complete(folder)
    return describe_state(record) if record else "record not readable"


def _compare_parameters(
    folders: list[pathlib.Path], labels: list[str]
) -> tuple[list[dict[str, str]], list[str]]:
    """Return a row for each parameter that differs, and notes on those that are not readable."""
    runs = []
    notes = []
    for folder, label in zip(folders, labels, strict=True):
        try:
            runs.append({"name": label, "job": params.load_recorded(folder)})
        except UserError as error:
            notes.append(f"The parameters are not compared: those of {label} are damaged. {error}")
    return ([] if notes else differing_parameters(runs)), notes


def _explain_nothing(labels: list[str], stages: list[StageDiff]) -> list[str]:
    return [
        f"There is nothing to compare: no stage has an executed notebook in both {labels[0]} and "
        f"{labels[1]} that can be read. `make run RUN=...` executes what is missing; "
        f"`make compare` compares what is recorded.",
        *(stage.note for stage in stages),
    ]


# --------------------------------------------------------------------------------------------------
# a stage


def compare_stage(
    stage: str, folders: list[pathlib.Path], labels: list[str], told: set[str]
) -> StageDiff:
    """Compare the executed notebooks of one stage.

    `told` are the parameters that differ, as the page has said before.
    """
    paths = [folder / f"{stage}.ipynb" for folder in folders]
    missing = [label for label, path in zip(labels, paths, strict=True) if not path.is_file()]
    if missing:
        runs = "neither run has" if len(missing) == 2 else f"{missing[0]} does not have"
        return StageDiff(stage, f"{stage}: {runs} an executed notebook of this stage.", [], [], 0)
    read = []
    problems = []
    for label, path in zip(labels, paths, strict=True):
        try:
            read.append(cells.read_cells(path))
        except UserError as error:
            problems.append(f"{stage}: the {error} It is the one of {label}.")
    if problems:
        return StageDiff(stage, " ".join(problems), [], [], 0)
    names = [_names_of(folder) for folder in folders]
    pairs = [compare_pair(one, two, names, labels, told) for one, two in cells.pair_cells(*read)]
    masked = [(pair.heading, *lines) for pair in pairs for lines in pair.masked]
    unlisted = max(0, len(masked) - MOST_MASKED)
    return StageDiff(stage, "", _fold_equal(pairs), masked[:MOST_MASKED], unlisted)


def _names_of(folder: pathlib.Path) -> list[str]:
    """Return the names that a run has or had: that of its folder, and the recorded one."""
    record = read_if_complete(folder)
    names = {folder.name, str(record.get("run") or "") if record else ""} - {""}
    return sorted(names, key=len, reverse=True)


def compare_pair(
    one: Cell | None, two: Cell | None, names: list[list[str]], labels: list[str], told: set[str]
) -> CellPair:
    """Compare two cells; what only one run has differs as a whole."""
    cell = one or two
    assert cell is not None
    sources = [_mask_source(one, names[0]), _mask_source(two, names[1])]
    source, _ = compare_lines(*sources)
    items = [
        outputs.read_items(side.outputs, own) if side else []
        for side, own in zip((one, two), names, strict=True)
    ]
    compared = _settle_parameters(compare_outputs(*items), told)
    numbers = {str(side.number) for side in (one, two) if side}
    only = "" if one and two else labels[0] if one else labels[1]
    return CellPair(
        cell.heading,
        "text" if cell.kind == "markdown" else "code",
        " and ".join(sorted(numbers, key=int)),
        only,
        [] if cell.injected or all(row.kind == "folded" for row in source) else source,
        [difference for difference in compared if difference.differs != "no"],
        [lines for difference in compared for lines in difference.masked],
    )


def _mask_source(cell: Cell | None, names: list[str]) -> list[masks.Line]:
    lines = cell.source.splitlines() if cell else []
    return [masks.Line(masks.mask_text(line, names), line) for line in lines]


def _settle_parameters(found: list[Difference], told: set[str]) -> list[Difference]:
    """Return a cell's differences without those of parameters that the page's first table has.

    A parameter that one side alone lists is of another version of the pipeline: "version". One that
    is not told, though its value or its table differs, contradicts the run's record, and counts.
    """
    tables = [each for each in found if each.header[:1] == ["parameter"]]
    named: dict[str, set[str]] = {kind: set() for kind in ("changed", "left", "right", "further")}
    for row in (row for each in tables for row in each.rows if row.kind in named):
        cells_of_row = row.left or row.right or [[]]
        named[row.kind].add("".join(text for text, _ in cells_of_row[0]))
    contradicting = (named["changed"] | named["further"] | named["left"] & named["right"]) - told
    if contradicting:
        return found
    versions = (named["left"] | named["right"]) - told
    settled = "version" if versions else "no"
    return [
        each._replace(differs=settled) if each in tables and each.differs == "yes" else each
        for each in found
    ]


def _fold_equal(pairs: list[CellPair]) -> list[Any]:
    """Return pairs that differ, and the number of equal ones between them."""
    blocks: list[Any] = []
    for pair in pairs:
        if pair.only or pair.source or pair.results:
            blocks.append(pair)
        elif blocks and isinstance(blocks[-1], int):
            blocks[-1] += 1
        else:
            blocks.append(1)
    return blocks


# --------------------------------------------------------------------------------------------------
# the answer


def answer_in_words(parameters: int | None, stages: list[StageDiff]) -> str:
    """Return what differs in words; `parameters` is None if they are not readable."""
    pairs = [
        (stage.stage, pair)
        for stage in stages
        for pair in stage.blocks
        if isinstance(pair, CellPair)
    ]
    results = [
        (stage, pair.heading)
        for stage, pair in pairs
        for found in pair.results
        if found.differs == "yes"
    ]
    sources = sum(bool(pair.source) for _, pair in pairs)
    compared = ", ".join(stage.stage for stage in stages if stage.blocks)
    if parameters == 0 and not results and not sources:
        return f"Parameters, cells and results of {compared} are the same."
    told = {None: "could not be read", 0: "are the same"}.get(parameters, f"differ in {parameters}")
    places = f"the results in {len(results)} {'place' if len(results) == 1 else 'places'}"
    answer = f"The parameters {told}, {places if results else 'the results in none'}"
    if results:
        stage, heading = results[0]
        answer += f"; the first difference in outputs is in {stage}, cell '{heading}'"
    if sources:
        answer += f". Code or text of {sources} {'cell' if sources == 1 else 'cells'} differs too"
    return f"{answer}."
