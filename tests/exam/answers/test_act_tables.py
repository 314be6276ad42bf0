"""The safety set's tables: every figure with its interval, beside answers without a model.

python -m pytest tests/exam/answers/test_act_tables.py
"""

import json

import pytest

from helpers.judged import judgement
from lib.common.errors import ROOT
from lib.exam import safety_set, tables
from lib.exam.answers import act_tables, counts
from lib.medical import safety


def said(judged):
    return [{**j, "prompt": f"prompt {n}", "answer": "..."} for n, j in enumerate(judged)]


@pytest.fixture
def entry():
    base = said([judgement([0, 0], [1], names_call=False, ended=False), judgement([1])])
    tuned = said([judgement([1, 0], [0], disordered=[["a", "b"]]), judgement([1])])
    models = {name: safety_set.count_answers(j) for name, j in (("base", base), ("merged", tuned))}
    return {
        "exam": safety.NAME,
        "items": 2,
        "tokens": 9,
        "models": models,
        "baselines": {"the constant call": counts.count_criteria(base)},
        "comparisons": safety_set.compare_models(models, {}),
    }


def test_every_figure_stands_with_its_interval_and_without_a_model_too(entry):
    shown = dict(act_tables.safety_tables(entry))
    models, baselines, changed = shown.values()
    assert [row["model"] for row in models] == ["base", "merged"]
    assert [row["answer"] for row in baselines] == ["the constant call"]
    assert list(models[0])[1:] == list(baselines[0])[1:] == list(act_tables.LABELS.values())
    assert models[1]["critical acts done"].startswith("2 of 3 (67%, ")
    assert models[0]["rows with a forbidden act"] == "1 of 2 (50%, 9 to 91)"
    assert models[0]["over-triage"] == "-", "no row of these is anything but an emergency"
    assert changed[0]["no forbidden act: gained, lost"] == "1, 0"
    assert changed[0]["share of points"] == "+25.0%"
    printed = tables.format_entry(entry)
    assert "the constant call" in printed
    assert act_tables.BASELINES in printed


def test_an_answer_judged_differently_is_shown_though_it_passes_neither_time(entry):
    (row,) = tables.differing_answers({safety.NAME: entry})
    assert row["found"] == (
        "no emergency call, misses critical-0, critical-1, does what is forbidden: forbidden-0, "
        "does not end"
    )
    models = entry["models"]
    unlike = [judgement([0, 0], [0]), judgement([0])]
    models["base"] = safety_set.count_answers(said(unlike))
    changed = tables.differing_answers({safety.NAME: entry})
    assert [r["prompt"] for r in changed] == ["prompt 1", "prompt 0"], "half the points, then all"
    assert row["found there"] == "misses critical-1, in the wrong order: a before b"


def test_results_have_the_old_keys_and_the_criteria_of_each_model(entry):
    section = tables.result_sections({safety.NAME: entry})["safety"]
    assert list(section) == ["base", "tuned", "criteria", "baselines"]
    assert section["tuned"]["no_harm"] == {"count": 2, "of": 2}
    assert list(section["criteria"]) == ["base", "tuned"]
    assert section["criteria"]["tuned"] == entry["models"]["merged"]["criteria"]


def test_earlier_records_say_that_they_were_judged_without_criteria():
    entry = json.loads((ROOT / "tests/records/earlier_demo/exam.json").read_text())[safety.NAME]
    for result in entry["models"].values():
        result.pop("criteria", None)
        for answer in result["answers"]:
            for key in ("criteria", "missed", "forbidden"):
                answer.pop(key, None)
    for change in entry["comparisons"]:
        change.pop("criteria", None)
    entry.pop("baselines", None)
    (caption, rows), _ = act_tables.safety_tables(entry)
    assert act_tables.EARLIER in caption
    assert "no listed harm seen" in rows[0]
    assert list(tables.result_sections({safety.NAME: entry})["safety"])[:2] == ["base", "tuned"]
