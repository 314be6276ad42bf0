"""JSON in any layout: a list or objects, one a line or over several, in .json and in .jsonl.

python -m pytest tests/data/reading/test_json_rows.py
"""

import json

from hypothesis import given, settings
from hypothesis import strategies as some

from helpers.reading import Read, refused

TEXT = some.text(
    some.one_of(
        some.sampled_from('{}[],:"\\ \n\t\u2028a0'), some.characters(exclude_categories=["Cs"])
    ),
    max_size=8,
)
ROWS = some.lists(
    some.fixed_dictionaries(
        {"question": TEXT, "answer": TEXT},
        optional={"id": some.sampled_from(["x", "y"]), "more": some.lists(TEXT, max_size=2)},
    ),
    min_size=1,
    max_size=4,
)


def as_lines(rows, indent, ascii_only):
    return "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)


def as_blocks(rows, indent, ascii_only):
    return "\n".join(json.dumps(row, indent=indent, ensure_ascii=ascii_only) for row in rows)


def as_list(rows, indent, ascii_only):
    return json.dumps(rows, indent=indent, ensure_ascii=ascii_only)


def as_list_by_line(rows, indent, ascii_only):
    return "[" + ",\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows) + "]"


@settings(derandomize=True, max_examples=300, deadline=None)
@given(
    ROWS,
    some.sampled_from([as_lines, as_blocks, as_list, as_list_by_line]),
    some.sampled_from([None, 0, 2, "\t"]),
    some.booleans(),
    some.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    some.sampled_from(["", "\n", " \r\n\n"]),
)
def test_every_layout_and_encoding_gives_the_same_rows(
    tmp_path_factory, rows, layout, indent, ascii_only, encoding, edge
):
    content = (edge + layout(rows, indent, ascii_only) + edge).encode(encoding)
    expected = [(row["question"].strip(), row["answer"]) for row in rows]
    folder = tmp_path_factory.getbasetemp()
    (folder / "d.jsonl").write_bytes(content)
    assert Read(folder / "d.jsonl").pairs == expected
    (folder / "d.json").write_bytes(content)
    if len(rows) > 1 or layout in (as_list, as_list_by_line):
        assert Read(folder / "d.json").pairs == expected
    else:  # one object may as well hold the rows in a field
        assert "it is a single object, with " in refused(folder / "d.json")


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    some.lists(some.fixed_dictionaries({"question": TEXT, "answer": TEXT}), min_size=3, max_size=5),
    some.sampled_from([as_lines, as_blocks, as_list]),
    some.integers(1, 60),
)
def test_a_file_that_is_cut_off_is_an_error_and_gives_no_row_that_was_not_there(
    tmp_path_factory, rows, layout, cut
):
    text = layout(rows, 2, True)
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    path.write_text(text[: -min(cut, len(text) - 1)])
    left = path.read_text().rstrip()
    if layout is as_list or left not in {layout(rows[:n], 2, True) for n in range(1, 6)}:
        assert "not JSON" in refused(path)
    else:
        assert len(Read(path)) < len(rows)
