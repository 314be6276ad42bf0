"""Find the differences of two texts, tables or sequences of outputs, in the order of a page.

What is compared and shown is the masked text; lines that only masking makes equal are collected.
"""

import difflib
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, NamedTuple

from lib.runs.diff.masks import Line
from lib.runs.diff.outputs import Item

CONTEXT = 2  # equal lines shown before and after a change
MOST_ROWS = 300  # of one output on the page
MOST_STEPS = 4_000_000  # pairs of lines that are aligned; longer texts are compared in order
MOST_WORDS = 3_000  # of a line in which changed words are marked
LIKE = 0.5  # share of equal words from which two lines stand beside each other
LEAST_EQUAL = 0.4  # share of equal words below which two texts are marked as a whole
LIKE_WORDS = 60  # of a line that are looked at for this
MOST_LIKE = 400  # pairs of changed lines that are looked at; more stand in their order
WORDS = re.compile(r"\w+(?:[.,:/-]\w+)*|\s+|[^\w\s]")
Marks = list[tuple[str, bool]]  # pieces of a text, and whether each has changed
Masked = tuple[str, str]  # two raw lines that are equal when masked


class Row(NamedTuple):
    """A row of a difference: "same", "changed", "left" or "right" (only there), or "folded".

    left, right: the pieces of each cell; a text has one cell. folded: for how many rows it stands.
    """

    kind: str
    left: list[Marks]
    right: list[Marks]
    folded: int = 0


class Difference(NamedTuple):
    """An output of either notebook, or of both: what differs, and what only masking makes equal.

    differs: "yes", "no", "markup" when words and numbers are the same, or "version" when only the
    parameters that a version of the pipeline knows differ.
    """

    kind: str
    title: str
    differs: str
    header: list[str]
    rows: list[Row]
    pictures: tuple[str, str]
    masked: list[Masked]


def compare_outputs(first: Sequence[Item], second: Sequence[Item]) -> list[Difference]:
    """Compare the outputs of two cells, paired by their types and titles."""
    found = []
    for left, right in _pair(first, second, _key_of):
        if left is not None and right is not None:
            found.append(_compare_items(left, right))
            continue
        item = left if left is not None else right
        assert item is not None
        found.append(_show_alone(item, "left" if left is not None else "right"))
    return found


def _key_of(item: Item) -> Hashable:
    """Return what an output is, without the figures of its title."""
    return item.kind, re.sub(r"\d[\d.,]*", "", item.title)


def _pair(first: Sequence[Any], second: Sequence[Any], key: Callable[[Any], Hashable]) -> Iterator:
    """Yield pairs of what has the same key, in order, with None beside what is alone.

    In a replaced range, two of one kind are paired by their places.
    """
    old, new = [key(item) for item in first], [key(item) for item in second]
    for op, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if op == "equal" or (
            op == "replace" and [i.kind for i in first[a:b]] == [i.kind for i in second[c:d]]
        ):
            yield from zip(first[a:b], second[c:d], strict=True)
        else:
            yield from ((item, None) for item in first[a:b])
            yield from ((None, item) for item in second[c:d])


def _compare_items(left: Item, right: Item) -> Difference:
    header: list[str] = []
    pictures = ("", "")
    masked: list[Masked] = []
    rows: list[Row] = []
    if left.kind == "table":
        header, rows, masked = _compare_tables(left.rows, right.rows)
    elif left.kind in ("printed", "text", "error"):
        rows, masked = compare_lines(left.lines, right.lines)
    changed = any(row.kind not in ("same", "folded") for row in rows)
    changed |= (left.kind, left.title) != (right.kind, right.title)
    if left.kind == "picture":
        pictures = (left.content, right.content)
        changed |= left.content != right.content
    changed |= left.kind == "other" and left.content != right.content
    only_markup = not changed and not masked and left.content != right.content
    title = left.title if left.title == right.title else f"{left.title} → {right.title}"
    differs = "yes" if changed else "markup" if only_markup else "no"
    return Difference(left.kind, title, differs, header, rows, pictures, masked)


def _show_alone(item: Item, side: str) -> Difference:
    """Return an output that only one of the notebooks has."""
    lines = [[line.masked] for line in item.lines]
    header = [line.masked for line in item.rows[0]] if item.rows else []
    lines += [[cell.masked for cell in row] for row in item.rows[1:]]
    shown = [[[(text, False)] for text in texts] for texts in lines]
    rows = [Row(side, *((cells, []) if side == "left" else ([], cells))) for cells in shown]
    content = item.content if item.kind == "picture" else ""
    pictures = (content, "") if side == "left" else ("", content)
    return Difference(item.kind, item.title, "yes", header, _limit(rows), pictures, [])


# --------------------------------------------------------------------------------------------------
# lines


def compare_lines(left: Sequence[Line], right: Sequence[Line]) -> tuple[list[Row], list[Masked]]:
    """Return the rows of a line difference with changed words marked, and lines equal if masked."""
    old, new = [line.masked for line in left], [line.masked for line in right]
    rows: list[Row] = []
    masked: list[Masked] = []
    for op, a, b, c, d in _align(old, new):
        if op == "equal":
            rows += [Row("same", [[(text, False)]], [[(text, False)]]) for text in old[a:b]]
            pairs = zip(left[a:b], right[c:d], strict=True)
            masked += [(one.raw, two.raw) for one, two in pairs if one.raw != two.raw]
            continue
        rows += _compare_changed(old[a:b], new[c:d])
    return _limit(_fold(rows, CONTEXT)), masked


def _compare_changed(old: list[str], new: list[str]) -> list[Row]:
    """Return the rows of lines that have changed: in order, the like ones beside each other."""
    rows: list[Row] = []
    for one in old:
        place = _find_like(one, new) if len(old) * len(new) <= MOST_LIKE else min(len(new) - 1, 0)
        if place < 0:
            rows.append(Row("left", [[(one, True)]], []))
            continue
        rows += [Row("right", [], [[(text, True)]]) for text in new[:place]]
        before, after = mark_words(one, new[place])
        rows.append(Row("changed", [before], [after]))
        new = new[place + 1 :]
    return [*rows, *(Row("right", [], [[(text, True)]]) for text in new)]


def _find_like(line: str, others: list[str]) -> int:
    """Return the place of the line that is most like this one, or -1 if none is."""
    words = WORDS.findall(line)[:LIKE_WORDS]
    matcher = difflib.SequenceMatcher(None, b=words, autojunk=False)
    best, place = LIKE, -1
    for n, other in enumerate(others):
        matcher.set_seq1(WORDS.findall(other)[:LIKE_WORDS])
        if (ratio := matcher.ratio()) > best:
            best, place = ratio, n
    return place


def _align(old: Sequence[str], new: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    """Return the steps from one sequence to the other; very long ones are compared in order."""
    if len(old) * len(new) <= MOST_STEPS:
        return difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    steps = []
    for n in range(max(len(old), len(new))):
        op = "equal" if old[n : n + 1] == new[n : n + 1] else "replace"
        steps.append(
            (op, min(n, len(old)), min(n + 1, len(old)), min(n, len(new)), min(n + 1, len(new)))
        )
    return steps


def mark_words(left: str, right: str) -> tuple[Marks, Marks]:
    """Return both texts in pieces, of which those that differ are marked; a figure is one word."""
    old, new = WORDS.findall(left), WORDS.findall(right)
    if max(len(old), len(new)) > MOST_WORDS:
        return [(left, True)], [(right, True)]
    before: Marks = []
    after: Marks = []
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    equal = sum(_count_words(old[a:b]) for op, a, b, _, _ in steps if op == "equal")
    if equal < LEAST_EQUAL * max(_count_words(old), _count_words(new)):
        return [(left, True)] if left else [], [(right, True)] if right else []
    for op, a, b, c, d in steps:
        if a < b:
            before.append(("".join(old[a:b]), op != "equal"))
        if c < d:
            after.append(("".join(new[c:d]), op != "equal"))
    return before, after


def _count_words(pieces: Sequence[str]) -> int:
    return sum(piece[0].isalnum() for piece in pieces)


def _fold(rows: list[Row], context: int) -> list[Row]:
    """Replace equal rows that are further than `context` from a change by one with their number."""
    near = {
        place + step
        for place, row in enumerate(rows)
        if row.kind != "same"
        for step in range(-context, context + 1)
    }
    folded: list[Row] = []
    for place, row in enumerate(rows):
        if place in near:
            folded.append(row)
        elif folded and folded[-1].kind == "folded":
            folded[-1] = folded[-1]._replace(folded=folded[-1].folded + 1)
        else:
            folded.append(Row("folded", [], [], 1))
    return folded


def _limit(rows: list[Row]) -> list[Row]:
    if len(rows) <= MOST_ROWS:
        return rows
    return [*rows[:MOST_ROWS], Row("further", [], [], len(rows) - MOST_ROWS)]


# --------------------------------------------------------------------------------------------------
# tables


def _compare_tables(
    left: list[list[Line]], right: list[list[Line]]
) -> tuple[list[str], list[Row], list[Masked]]:
    """Compare tables cell by cell: columns by their names, rows by their first cells.

    Return the names of all columns, the rows, and the cells that are equal only when masked.
    """
    columns = _pair_columns([cell.raw for cell in left[0]], [cell.raw for cell in right[0]])
    header = [(left[0][one] if one is not None else right[0][two or 0]).raw for one, two in columns]
    old, new = left[1:], right[1:]
    rows: list[Row] = []
    masked: list[Masked] = []
    for op, a, b, c, d in _align([_name(row) for row in old], [_name(row) for row in new]):
        if op != "equal":
            rows += [Row("left", _pick(row, [one for one, _ in columns]), []) for row in old[a:b]]
            rows += [Row("right", [], _pick(row, [two for _, two in columns])) for row in new[c:d]]
            continue
        for one, two in zip(old[a:b], new[c:d], strict=True):
            row, equal = _compare_row(one, two, columns)
            rows.append(row)
            masked += equal
    return header, _limit(_fold(rows, 0)), masked


Column = tuple[int | None, int | None]  # the places of a column in both tables


def _pair_columns(left: list[str], right: list[str]) -> list[Column]:
    if not any(left) and not any(right):  # without headers, by their places
        width = max(len(left), len(right))
        return [(n if n < len(left) else None, n if n < len(right) else None) for n in range(width)]
    columns: list[Column] = []
    for op, a, b, c, d in _align(left, right):
        if op == "equal":
            columns += zip(range(a, b), range(c, d), strict=True)
        else:
            columns += [(n, None) for n in range(a, b)]
            columns += [(None, n) for n in range(c, d)]
    return columns


def _name(row: list[Line]) -> str:
    return row[0].masked if row else ""


def _pick(row: list[Line], places: list[int | None]) -> list[Marks]:
    return [[(row[place].masked, False)] if place is not None else [] for place in places]


def _compare_row(
    left: list[Line], right: list[Line], columns: list[Column]
) -> tuple[Row, list[Masked]]:
    before: list[Marks] = []
    after: list[Marks] = []
    masked: list[Masked] = []
    nothing = Line("", "")
    for one, two in columns:
        old = left[one] if one is not None else nothing
        new = right[two] if two is not None else nothing
        marks = mark_words(old.masked, new.masked)
        before.append(marks[0])
        after.append(marks[1])
        if old.masked == new.masked and old.raw != new.raw:
            name = _name(left)
            masked.append((f"{name}: {old.raw}", f"{name}: {new.raw}"))
    return Row("same" if before == after else "changed", before, after), masked
