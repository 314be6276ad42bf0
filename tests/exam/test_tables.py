"""The tables and sections of an exam, from the exam.json and results.json of an earlier demo.

python -m pytest tests/exam/test_tables.py
"""

import copy
import json

import pytest

from lib.common.errors import ROOT
from lib.data.reading import exam_items
from lib.exam import baselines, choice_tables, tables
from lib.exam.answers import act_tables

DEMO = ROOT / "tests" / "records" / "earlier_demo"


@pytest.fixture
def entries():
    entries = json.loads((DEMO / "exam.json").read_text())
    del entries["seal"]
    return entries


def test_the_demos_sections_are_those_of_its_results(entries):
    results = json.loads((DEMO / "results.json").read_text())
    sections = tables.result_sections(entries, "bundled:exam")
    assert sections == {"exam": results["exam"], "safety": results["safety"]}
    assert tables.result_sections(entries)["exams"] == {"bundled:exam": results["exam"]}


def test_todays_demo_has_both_forms_and_the_criteria():
    demo = ROOT / "runs" / "examples" / "demo"
    entries = json.loads((demo / "exam.json").read_text())
    del entries["seal"]
    results = json.loads((demo / "results.json").read_text())
    sections = tables.result_sections(entries, "bundled:exam")
    assert sections == {"exam": results["exam"], "safety": results["safety"]}
    for name, entry in entries.items():
        assert list(entry["models"]) == ["base", "merged"], name
    page = (ROOT / "lib/exam/README.md").read_text(encoding="utf-8")
    text, bits = results["exam"]["completion"], results["exam"]["bits_per_byte"]
    assert f"| {text['base_correct']} | {text['tuned_correct']} |" in page
    assert f"| {bits['base']:.3f} | {bits['tuned']:.3f} |" in page
    before, after = (results["safety"]["criteria"][name] for name in ("base", "tuned"))
    for key in ("critical_acts", "forbidden_acts", "names_call", "over_triage", "ended", "passed"):
        cells = f"of {after[key]['of']} | {before[key]['count']} | {after[key]['count']} |"
        assert cells in page, key


def test_every_model_and_every_comparison_of_the_demo_has_a_row(entries):
    shown = dict(tables.exam_tables(entries))
    for name, entry in entries.items():
        describe = (
            act_tables.describe_set if name == "bundled:safety" else choice_tables.describe_exam
        )
        rows = shown[describe(entry)]
        assert [row["model"] for row in rows] == list(entry["models"])
        changed = shown[f"{name}: what changed"]
        assert [(row["before"], row["after"]) for row in changed] == [
            (c["before"], c["after"]) for c in entry["comparisons"]
        ]
    base = shown[choice_tables.describe_exam(entries["bundled:exam"])][0]
    assert (base["right"], base["accuracy"], base["95 %"]) == ("30 of 120", "25.0%", "18.1 to 33.4")
    assert base["perplexity"] == "52.829, 40 test rows"
    rows = act_tables.model_rows(entries["bundled:safety"])
    assert rows[0]["no listed harm seen"].startswith("79 of 82 (96%")


def test_an_exam_that_was_stopped_has_no_comparison_to_show(entries):
    stopped = copy.deepcopy(entries)
    for entry in stopped.values():
        del entry["comparisons"]
        entry["models"] = {"base": entry["models"]["base"]}
    sections = tables.result_sections(stopped, "bundled:exam")
    assert sections["exam"] == {"exam": "bundled:exam", "items": 120}
    assert list(sections["safety"]) == ["base"]
    assert choice_tables.comparison_rows(stopped["bundled:exam"]) == []
    assert tables.differing_answers(stopped) == []


def test_an_answer_that_passed_only_before_is_shown_with_its_faults(entries):
    answers = entries["bundled:safety"]["models"]
    assert tables.differing_answers(entries) == []
    answers["base"]["answers"][0].update(passed=True, names_call=True, ended=True)
    fault = {"names_call": False, "harmful": ["ipecac"], "refused": True, "ended": False}
    answers["merged"]["answers"][0].update(fault, emergency="must", passed=False)
    (row,) = tables.differing_answers(entries)
    assert row["found"] == "passed"
    assert row["found there"] == "no emergency call, advises ipecac, refuses, does not end"


def test_topics_of_ten_items_and_more_are_shown(entries):
    models = entries["bundled:exam"]["models"]
    assert choice_tables.topic_rows(entries["bundled:exam"]) == [], "two or three items each"
    for name, right in (("base", 4), ("merged", 7)):
        models[name]["topics"]["burns"] = {"right": right, "of": 12}
    assert choice_tables.topic_rows(entries["bundled:exam"]) == [
        {"topic": "burns", "base": "4 of 12", "merged": "7 of 12"}
    ]


def test_baselines_and_cautions_stand_beside_the_scores(entries):
    entry = entries["bundled:exam"]
    assert choice_tables.baseline_rows(entry) == [], "an earlier record has none"
    items = exam_items.read_items("bundled:exam")
    entry["baselines"] = baselines.measure_baselines(items, ["Press hard.", "Call for help."])
    shown = dict(tables.exam_tables(entries))
    rows = shown["bundled:exam: what its items give away without a model"]
    assert [row["baseline"] for row in rows][::4] == ["always the longest option", "guessing"]
    assert (rows[0]["right"], rows[0]["95 %"]) == ("82 of 329", "20.6 to 29.9")
    texts = [row["caution"] for row in shown["bundled:exam: cautions"]]
    assert any("always the longest option (25%)" in text for text in texts)
    for text in (rows[0]["baseline"], *texts):
        assert text in tables.format_entry(entry)
    entry["baselines"]["answers"] = 30_000
    assert "(nearest of 2 of the 30,000 training answers)" in choice_tables.describe_baselines(
        entry
    )
    section = tables.result_sections(entries, "bundled:exam")["exam"]["baselines"]
    assert section["options_only"]["correct"] == 81
    assert "chosen" not in section["options_only"]
