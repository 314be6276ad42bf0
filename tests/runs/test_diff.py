"""Two executed notebooks beside each other: what differs, what is masked, what can't be compared.

.venv/bin/python -m pytest tests/runs/test_diff.py
"""

import base64
import json
import re
import shutil
import time

import nbformat
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers import evil_run
from helpers.page import Reader
from lib.runs import manage
from lib.runs.diff import cells, differences, masks, outputs
from lib.runs.diff import page as diff_page

PNG = base64.b64encode(b"\x89PNG one").decode()


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def shown(kind, value):
    return nbformat.v4.new_output("display_data", data={kind: value})


def code(source, *found, tags=()):
    cell = nbformat.v4.new_code_cell(source, outputs=list(found))
    cell.metadata["tags"] = list(tags)
    return cell


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def table(rows, caption="", head=("name", "value")):
    lines = [head, *rows]
    body = "".join(
        f"<tr>{''.join(f'<{tag}>{cell}</{tag}>' for cell in row)}</tr>"
        for tag, row in zip(["th", *["td"] * len(rows)], lines, strict=True)
    )
    return f"<table><caption>{caption}</caption>{body}</table>"


def notebook(*found, **changes):
    made = nbformat.v4.new_notebook(cells=list(found))
    for number, cell in enumerate(made.cells):  # ids that count the cells, as ours
        cell["id"] = f"train-{number:02}"
    return {**made, **changes}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Makes a run with the given executed notebook of train."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))

    def make(name, *found, values=None):
        folder = evil_run.make(tmp_path, name, values=values)
        if found:
            (folder / "train.ipynb").write_text(json.dumps(notebook(*found)))
        return folder

    return make


def diffed(names="a b"):
    """Return the short answer and what a reader sees of the page."""
    answer, path = diff_page.diff_runs(names)
    reader = Reader()
    reader.feed(path.read_text())
    return answer.splitlines()[0], " ".join(" ".join(reader.text).split())


# --------------------------------------------------------------------------------------------------
# the answer


def test_the_answer_counts_what_differs_and_names_the_first_place(runs):
    for name, rate, loss, picture in (("a", 1e-3, "1.25", PNG), ("b", 1e-4, "1.75", "AAAA")):
        runs(
            name,
            text("## The job"),
            code(
                "job()", printed(f"run: runs/{name}\n"), shown("text/html", table([["rows", "9"]]))
            ),
            text("## Loss"),
            code("loss()", shown("image/png", picture), printed("equal\n")),
            text("## Saved"),
            code("save()", shown("text/html", table([["steps", "150"], ["loss_last", loss]]))),
            values={"learning_rate": rate},
        )
    answer, page = diffed()
    assert answer == (
        "The parameters differ in 1, the results in 2 places; the first difference in outputs is "
        "in train, cell 'Loss'."
    )
    assert "3 cells equal" in page
    assert "1.25 → 1.75" in page
    assert "1 row equal" in page
    assert "learning_rate 0.001 0.0001" in page
    assert "prepare: neither run has an executed notebook" in page


def test_a_repeat_of_a_job_is_the_same(runs):
    """Times, bars, paths, names, addresses, dates and processes are those of an execution."""
    for name, number, place in (("mine", 7, "/home/ann/x"), ("mine-rerun", 19, "/tmp/w")):
        bar = f"training:  50%|████    | {number}/38 [00:0{number % 9}<00:03, {number}.1step/s, loss={number}]\r"
        end = "training: 100%|████████| 38/38 [00:07<00:00, 8.1step/s, loss=1.5]\n"
        runs(
            name,
            code(f'run_name = "{name}"', tags=["injected-parameters"]),
            code(
                "x",
                printed(f"run: runs/{name}\nMade {place}/cache in {number} s\n{bar}{end}"),
                printed(f"<a at 0x7f00000000{number:02}>, process {number}, 2026-01-{number:02}\n"),
                shown(
                    "text/html", table([["seconds", number], ["samples_per_second", f"{number}.5"]])
                ),
                shown("text/plain", f"runs/{name}/adapter and {name}-q8_0.gguf"),
            ),
        )
    answer, page = diffed("mine mine-rerun")
    assert answer == "Parameters, cells and results of train are the same."
    assert "lines taken as equal" in page
    assert "/home/ann/x" in page, "what was taken as equal is listed"


def test_a_parameter_is_told_once_and_not_as_a_result(runs):
    for name, rate in (("a", "0.001"), ("b", "0.0001")):
        head = ("parameter", "value")
        runs(
            name,
            code(f"learning_rate = {rate}", tags=["injected-parameters"]),
            code(
                "show",
                shown(
                    "text/html",
                    table([["learning_rate", rate]], head=head)
                    + f"<p>{'4' if rate == '0.001' else '5'} parameters at their defaults</p>",
                ),
            ),
            values={"learning_rate": float(rate)},
        )
    assert diffed()[0] == "The parameters differ in 1, the results in none."
    for name, rank in (("a", 4), ("b", 8)):  # the notebook has other values than the record
        runs_cell = code("show", shown("text/html", table([["lora_r", rank]], head=head)))
        (diff_page.run_folder.runs_folder() / name / "train.ipynb").write_text(
            json.dumps(notebook(runs_cell))
        )
    assert "results in 1 place;" in diffed()[0]


def test_a_parameter_of_another_version_is_no_result(runs):
    """It is listed by the version that knows it, and is not called a result."""
    for name, rows in (("a", [["lora_r", 4]]), ("b", [["lora_r", 4], ["new_one", 1]])):
        runs(name, code("show", shown("text/html", table(rows, head=("parameter", "value")))))
    answer, page = diffed()
    assert answer == "Parameters, cells and results of train are the same."
    assert "new_one" in page


# --------------------------------------------------------------------------------------------------
# masks

WORDS = st.sampled_from(
    "loss= eval_loss 12.19 0.5 1e-4 20 minutes min h mg/kg 5 mg 120/80 1,088 in after about process "
    "of 3 s, 100% | [ ] / // ~/ /tmp/a/b /5/ runs/5 loss 2026-01-01 10:00:00 0x7f0011223344 : - ‹run›".split()
)
ODD = st.lists(st.one_of(WORDS, st.text(max_size=5)), max_size=12).map(" ".join)


@given(ODD, st.sampled_from(["5", "loss", "a.b", "run"]), st.booleans())
@example("training: 50%|██| 3/6 [00:01<00:02, 2.0step/s]", "5", True)
def test_masking_twice_is_masking_once(line, name, is_printed):
    once = masks.mask_text(line, [name], is_printed)
    assert masks.mask_text(once, [name], is_printed) == once
    lines = [found.masked for found in masks.mask_printed(line, [name])]
    assert [found.masked for found in masks.mask_printed("\n".join(lines), [name])] == lines


FIGURE = st.one_of(
    st.floats(0, 99, allow_nan=False).map(lambda x: f"{x:.4g}"),
    st.integers(0, 10**6).map(lambda n: f"{n:,}"),
)
SENTENCES = st.sampled_from(
    [
        "loss {}", "loss={},", "eval_loss_after = {}", "{} of 429 rows dropped here", "{} mg/kg/day",
        "cool it for {} minutes", "again in {} min", "call after {} minutes", "wait {} h", "120/{} mmHg",
        "{}%", "runs/6: {}", "({})", "1/{}/2", "process {} of 8", "in {} steps", "about {} mL", "{} s.d.",
        "training: 100%|███| 8/8 [00:01<00:00, 9step/s, loss={}]",
    ]
)  # fmt: skip


@given(SENTENCES, FIGURE, st.sampled_from(["5", "loss", "0.5", "a"]))
def test_no_figure_is_masked(sentence, figure, name):
    line = sentence.format(figure)
    [found] = masks.mask_printed(line, [name])
    assert figure in found.masked
    if "|" not in line:
        assert found == (line, line)


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("x: 0row [00:00, ?row/s]", "x: ‹bar› 0row"),
        ("before: 33%|███   | 1/3 [00:01<00:02,  1.0it/s]", "before: ‹bar› of 3"),
        ("training: 14%, about 12 s left", "training: ‹bar›"),
        ("see https://a.example/b/c and ~/x/y.json", "see https://a.example/b/c and ‹path›/y.json"),
        ("started 2026-01-01T00:00:00+00:00, pid=77", "started ‹date›, pid=‹pid›"),
    ],
)
def test_masks(line, masked):
    assert [found.masked for found in masks.mask_printed(line)] == [masked]


def test_a_number_is_masked_only_where_its_name_is_a_time():
    assert masks.mask_cell("85.5", "samples_per_second", "value").masked == "‹time or rate›"
    assert masks.mask_cell("1.2", "q8_0", "load, s").masked == "‹time or rate›"
    for row in ("max_minutes", "loss", "cool the burn, minutes", "steps"):
        assert masks.mask_cell("20", row, "value").masked == "20"
    assert masks.mask_cell("20 minutes", "seconds", "value").masked == "20 minutes"


# --------------------------------------------------------------------------------------------------
# cells and outputs


def test_an_inserted_cell_shifts_no_other(runs):
    """Ids count the cells, so those of the same id are not the same cells."""
    own = [
        code("load_all_rows()", printed("1\n")),
        code("clean_the_rows()", printed("2\n")),
        code("measure_lengths()", printed("3\n")),
    ]
    runs("a", *own)
    runs("b", own[0], code("something_else_entirely = 1", printed("new\n")), *own[1:])
    answer, page = diffed()
    assert "results in 1 place;" in answer
    assert "only in b" in page
    assert page.count("1 cell equal") + page.count("2 cells equal") == 2


def test_a_rewritten_cell_stays_beside_its_like(tmp_path):
    made = []
    for name, middle in (("a", "alpha = [1, 2]"), ("b", "quite.other(words=True) # here")):
        path = tmp_path / f"{name}.ipynb"
        path.write_text(
            json.dumps(notebook(text("# T"), code(middle, printed("x\n")), code("print(1)")))
        )
        made.append(cells.read_cells(path))
    assert [(one.number, two.number) for one, two in cells.pair_cells(*made)] == [
        (1, 1),
        (2, 2),
        (3, 3),
    ]


def compare(first, second):
    return differences.compare_outputs(
        outputs.read_items(first, []), outputs.read_items(second, [])
    )


def test_outputs_are_compared_by_type():
    error = nbformat.v4.new_output(
        "error", ename="ValueError", evalue="x", traceback=["\x1b[31mline 1"]
    )
    first = [printed("one\ntwo 1.5 three\n"), shown("image/png", PNG), error]
    second = [printed("one\ntwo 1.6 three\n"), shown("image/png", PNG)]
    lines, picture, failed = compare(first, second)
    assert [(m, c) for m, c in lines.rows[1].left[0] if c] == [("1.5", True)]
    assert picture.differs == "no"
    assert (failed.kind, failed.differs, failed.rows[0].kind) == ("error", "yes", "left")
    assert "\x1b" not in str(failed.rows)


def test_tables_are_compared_by_the_names_of_rows_and_columns():
    old = table(
        [["base", "0.25", "7"], ["tuned", "0.50", "8"]], "3 rows", ("model", "accuracy", "n")
    )
    new = table(
        [["base", "0.25", "7"], ["q8", "0.4", "1"], ["tuned", "0.75", "8"]],
        "4 rows",
        ("model", "n", "accuracy")[::2] + ("n",),
    )
    [found] = compare([shown("text/html", old)], [shown("text/html", new)])
    assert found.header == ["model", "accuracy", "n"]
    assert [row.kind for row in found.rows] == ["folded", "right", "changed"]
    assert (found.rows[2].left[1], found.rows[2].right[1]) == ([("0.50", True)], [("0.75", True)])
    assert found.title == "3 rows → 4 rows"


def test_a_moved_mark_of_trained_tokens_is_a_difference():
    """The words are the same; which of them are trained is not."""
    mark = '<span style="background:#1f6f50">{}</span>'
    [found] = compare(
        [shown("text/html", f"user {mark.format('model')} turn")],
        [shown("text/html", f"{mark.format('user')} model turn")],
    )
    assert found.differs == "yes"
    [found] = compare([shown("text/html", "<b>x</b>")], [shown("text/html", "<i>x</i>")])
    assert found.differs == "markup"


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
def test_a_line_difference_has_every_line_of_both(old, new):
    rows, _ = differences.compare_lines(
        [masks.Line(t, t) for t in old], [masks.Line(t, t) for t in new]
    )
    same = sum(
        row.folded if row.kind == "folded" else row.kind in ("same", "changed") for row in rows
    )
    assert same + sum(row.kind == "left" for row in rows) == len(old)
    assert same + sum(row.kind == "right" for row in rows) == len(new)
    assert all(row.kind in ("same", "folded") for row in rows) == (old == new)


def test_long_outputs_end_in_time():
    old = [masks.Line(t, t) for t in map(str, range(30_000))]
    rows, _ = differences.compare_lines(old, old[1:])
    assert rows[-1].kind == "further"
    assert differences.mark_words("a " * 9_000, "b")[0] == [("a " * 9_000, True)]


def test_a_long_line_and_long_unlike_cells_end_in_time(tmp_path):
    """Patterns and alignment that take the square of a length took minutes here."""
    began = time.process_time()
    for line in (
        "ab/c 1 " * 60_000,
        "/a" * 200_000,
        "~" * 50_000,
        " " * 50_000 + "x: 1 [",
        "1" * 400_000,
    ):
        masks.mask_printed(line, ["1"])
    made = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.ipynb"
        path.write_text(
            json.dumps(notebook(*(code(f"{name}{n} = call({n})\n" * 200) for n in range(8))))
        )
        made.append(cells.read_cells(path))
    assert len(cells.pair_cells(*made)) >= 8
    assert time.process_time() - began < 10


# --------------------------------------------------------------------------------------------------
# what cannot be compared


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("", "0 runs are named, expected two"),
        ("a", "1 run is named, expected two"),
        ("a b c", "3 runs are named"),
        ("a nobody", "`nobody` is not a run"),
        ("a a", "the same run"),
    ],
)
def test_other_than_two_runs_are_refused(runs, capsys, names, reason):
    runs("a")
    runs("b")
    assert manage.main(["diff", "--runs", names]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert "Traceback" not in error


def test_damaged_missing_and_old_notebooks(runs, capsys):
    first, second = runs("a", code("x", printed("1\n"))), runs("b", code("x", printed("2\n")))
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [{"metadata": {}, "cells": [
        {"cell_type": "code", "language": "python", "collapsed": False, "metadata": {}, "prompt_number": 1,
         "input": "x", "outputs": [{"output_type": "stream", "stream": "stdout", "text": "2\n"}]}]}]}  # fmt: skip
    (second / "train.ipynb").write_text(json.dumps(old))
    shutil.copy(first / "train.ipynb", first / "prepare.ipynb")
    assert manage.main(["diff", "--runs", "a b"]) == 0
    out = capsys.readouterr().out
    assert "results in 1 place;" in out
    assert "prepare: b does not have an executed notebook of this stage." in out
    assert out.splitlines()[-1].endswith("/diff.html")
    for damaged in ("{", "[]", '{"cells": 5}', json.dumps({"nbformat": 4, "cells": [{}]}), "\x00"):
        (second / "train.ipynb").write_text(damaged)
        assert manage.main(["diff", "--runs", "a b"]) == 2, damaged
        error = capsys.readouterr().err
        assert re.search(
            "There is nothing to compare.*is not readable.*the one of b", error, re.DOTALL
        )
    (first / "train.ipynb").unlink()
    (second / "train.ipynb").unlink()
    assert manage.main(["diff", "--runs", "a b"]) == 2
    assert "train: neither run has an executed notebook" in capsys.readouterr().err


def test_damaged_parameters_are_told(runs):
    runs("a", code("x"))
    (runs("b", code("x")) / "params.yaml").write_text("lora_r: [")
    answer, page = diffed()
    assert "The parameters could not be read" in answer
    assert "those of b are damaged" in page
    assert "same parameters" not in page


def test_nothing_of_a_hostile_notebook_is_markup(runs):
    evil = evil_run.EVIL
    runs("a")
    runs(
        "b",
        text(f"# {evil}"),
        code(
            evil,
            shown("text/html", table([[evil, 1]], evil)),
            shown("image/svg+xml", f"<svg onload=alert(1)>{evil}</svg>"),
            shown(evil, evil),
            printed(evil),
        ),
    )
    _, path = diff_page.diff_runs("a b")
    reader = Reader()
    reader.feed(path.read_text())  # raises on an event handler
    assert not {"script", "iframe", "svg", "object", "form"} & set(reader.tags)
    assert not [link for link in reader.links if not link.startswith(("#", "data:"))]
