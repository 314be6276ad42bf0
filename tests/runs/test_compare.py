"""Comparing runs: only what differs, tests only on the same items and rows, best by a metric, glued values checked against the records.

.venv/bin/python -m pytest tests/runs/test_compare.py
"""

import json

import pyarrow as pa
import pytest

from helpers import evil_run
from helpers.judged import judgement
from lib.common import stats
from lib.data import splits
from lib.exam import safety_set
from lib.medical import safety
from lib.pages import report
from lib.runs import compare, comparisons, manage, metrics


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Makes runs in a runs folder of their own."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    monkeypatch.setattr(
        compare.figures, "both_widths", lambda draw, label: ""
    )  # drawn in test_figures and test_pages
    return lambda name, **options: evil_run.make(tmp_path, name, **options)


def gathered(*folders):
    return [report.gather_records(folder) | {"name": folder.name} for folder in folders]


def test_page_and_text_name_what_differs_and_the_best(runs):
    text, path = compare.compare_runs(
        [runs("a"), runs("b", after=2.5, values={"learning_rate": 1e-3})]
    )
    assert path.name == "compare.html"
    rows = [line.split() for line in text.splitlines()]
    assert ["learning_rate", "2e-05", "0.001"] in rows
    assert "lora_r" not in text, "it is the same in both"
    assert "best by held-out loss: b (2.5)" in text
    assert "do not compare" not in text
    page = path.read_text()
    assert "a/report.html" not in page, "no link to a page that is not there"
    assert "<script" not in page
    assert "not measured" in page.lower()


def test_the_command_ends_with_the_path_alone(runs, capsys):
    runs("a")
    runs("b")
    assert manage.main(["compare"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("/compare.html")
    assert manage.main(["compare", "--runs", "a b", "--metric", "nonsense"]) == 2
    assert (
        "METRIC=nonsense is not known; expected one of eval_loss_after" in capsys.readouterr().err
    )
    assert manage.main(["compare", "--runs", "a"]) == 2
    assert "expected two or more" in capsys.readouterr().err
    assert manage.main(["compare", "--runs", "a c"]) == 2
    assert "`c` is not a run" in capsys.readouterr().err


def test_other_held_out_rows_are_not_compared(runs):
    text, _ = compare.compare_runs(
        [
            runs("a", data="1", after=2.9),
            runs("b", data="2", after=1.0),
            runs("c", data="1", after=2.0),
        ]
    )
    assert "hold out different rows, so their held-out losses do not compare: a, c | b" in text
    assert "best by held-out loss: c (2), among a, c" in text, (
        "b has the smallest loss, on other rows"
    )
    text, _ = compare.compare_runs([runs("f", data="1"), runs("g", data="2")])
    assert "best by held-out loss: the runs do not compare" in text
    told = gathered(runs("d", data="1"), runs("e", data="2"))
    [row] = comparisons.compare_with_first(told)
    assert row["what"] == f"{evil_run.EVIL}, by letter", (
        "the exam is the same; perplexities on other rows are not paired"
    )


def test_what_is_forgotten_is_compared_between_runs_that_measured_the_same_rows(runs):
    folders = [runs("a", data="1"), runs("b", data="2"), runs("c", data="3"), runs("d", data="4")]
    row = {"id": "1", "topic": "", "question": "q", "answer": "a", "length": 2}
    for folder, ids, loss in zip(folders, ([5], [5], [6], []), (2.6, 2.5, 1.0, 0), strict=True):
        results = json.loads((folder / "results.json").read_text())
        if ids:
            writer = splits.SplitWriter(folder / "data" / splits.FORGETTING)
            token = {**row, "input_ids": ids, "labels": ids}
            writer.write(pa.Table.from_pylist([token], splits.SCHEMA))
            writer.close()
            results["train"]["forgetting_loss_after"] = loss
        (folder / "results.json").write_text(json.dumps(results))
    text, _ = compare.compare_runs(folders, "forgetting_loss_after")
    assert "best by loss on other rows: b (2.5), among a, b" in text
    assert "loss on other rows" in text.splitlines()[0]


def test_paired_tests_are_those_of_the_items(runs):
    first, other = gathered(runs("a", right="1100110011"), runs("b", right="0011111111"))
    exam, held = comparisons.compare_with_first([first, other])
    assert (exam["gained"], exam["lost"], exam["p"]) == (4, 2, f"{stats.mcnemar(4, 2):.2g}")
    assert exam["difference"] == "+20.0%"
    assert held["what"] == "perplexity, 3 test rows"
    assert held["difference"] == "× 1.000"
    other["exams"][evil_run.EVIL]["sha256"] = "another"
    assert comparisons.compare_with_first([first, other]) == [], (
        "an exam of other items under the same name"
    )


def test_the_safety_set_is_compared_by_acts_and_not_by_one_number(runs):
    def with_safety(run, judged):
        answers = [{**j, "prompt": "p", "answer": "a"} for j in judged]
        models = {"merged": safety_set.count_answers(answers)}
        entry = {"exam": safety.NAME, "sha256": "s", "models": models}
        return {**run, "exams": {safety.NAME: entry}}

    first, other = gathered(runs("a"), runs("b"))
    first = with_safety(first, [judgement([0], [1])] * 8)
    other = with_safety(other, [judgement([1], [1])] * 6 + [judgement([0], [0])] * 2)
    passed, acts, forbidden = comparisons.compare_with_first([first, other])
    assert passed["difference"] == "+0.0%", "all miss an act or do what is forbidden"
    assert (acts["what"], acts["gained"]) == (f"{safety.NAME}, no act missed", 6)
    assert (forbidden["what"], forbidden["gained"]) == (f"{safety.NAME}, no forbidden act", 2)
    rows, _ = metrics.tabulate_metrics([first, other])
    assert [row["critical acts"] for row in rows] == ["0.0%", "75.0%"]
    assert metrics.find_best([first, other], [["a"], ["b"]], "forbidden_acts")[0][0] == "b"


def test_holm_corrects_for_the_number_of_tests():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
    assert stats.holm([]) == []


def test_a_glued_value_that_is_not_the_recorded_one_is_told(runs):
    folder = runs("a")
    assert comparisons.find_mismatches(*gathered(folder)) == []
    results = json.loads((folder / "results.json").read_text())
    results["train"]["eval_loss_after"] = 0.5
    (folder / "results.json").write_text(json.dumps(results))
    assert comparisons.find_mismatches(*gathered(folder)) == [
        "a: train.ipynb says eval_loss_after = 3.5, but results.json 0.5: one of the two was changed"
    ]
    (folder / "train.ipynb").write_text("{")
    assert "train.ipynb is not readable" in comparisons.find_mismatches(*gathered(folder))[0]


def test_a_run_that_cannot_be_read_is_left_out_and_named(runs):
    torn = runs("torn")
    (torn / "results.json").write_text("{")
    text, _ = compare.compare_runs([runs("a"), runs("b"), torn])
    assert "torn is left out: results file" in text
