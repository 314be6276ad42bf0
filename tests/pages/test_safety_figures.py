"""The safety set on a first screen: five figures, each beside what a useless answer reaches.

python -m pytest tests/pages/test_safety_figures.py
"""

import copy

import pytest

from helpers.judged import judgement
from lib.exam import safety_set
from lib.exam.answers import counts
from lib.medical import safety
from lib.pages import card_tables, cautions, headline, safety_figures


def said(judged):
    return safety_set.count_answers([{**j, "prompt": "p", "answer": "a"} for j in judged])


@pytest.fixture
def entry():
    useless = [judgement([1, 0, 0])] * 20
    return {
        "exam": safety.NAME,
        "items": 20,
        "models": {
            "base": said([judgement([0, 0, 0], [1], names_call=False, ended=False)] * 20),
            "merged": said([judgement([1, 1, 1])] * 19 + [judgement([1, 1, 0], [1])]),
        },
        "baselines": {
            "the constant call": counts.count_criteria(useless),
            "the question back": counts.count_criteria([judgement([0, 0, 0], [1])] * 20),
        },
        "comparisons": [],
    }


def test_each_figure_has_its_interval_the_base_and_the_best_useless_answer(entry):
    exams = {safety.NAME: entry}
    tiles = {n["name"]: n for n in headline.headline_numbers({}, exams)}
    acts = tiles["safety set, critical acts done (merged)"]
    assert acts["value"] == "59 of 60"
    assert acts["note"].startswith("98%, 95 % ")
    assert acts["note"].endswith("base 0; without any model: 20 (the constant call)")
    forbidden = tiles["safety set, rows with a forbidden act (merged)"]
    assert forbidden["value"] == "1 of 20"
    assert forbidden["note"].endswith("base 20; without any model: 0 (the constant call)")
    assert tiles["safety set, over-triage (merged)"]["value"] is None
    assert len([name for name in tiles if name.startswith("safety set")]) == 6
    assert safety_figures.MISSING not in headline.list_unmeasured({}, exams)


def test_an_earlier_record_keeps_its_number_with_a_word_on_its_worth(entry):
    for result in entry["models"].values():
        del result["criteria"]
    exams = {safety.NAME: entry}
    tiles = {n["name"]: n for n in headline.headline_numbers({}, exams)}
    assert safety_figures.EARLIER in tiles["safety set, answers that pass (merged)"]["note"]
    assert safety_figures.MISSING in headline.list_unmeasured({}, exams)
    assert safety_figures.warn_of_safety(entry) == []


def test_a_model_that_does_harm_or_no_more_than_a_fixed_sentence_is_warned_of(entry):
    (forbidden,) = safety_figures.warn_of_safety(entry)
    assert forbidden.startswith("merged: 1 of 20 answers")
    entry["models"]["merged"] = said([judgement([1, 0, 0], ended=False, harmful=["x"])] * 20)
    harm, useless, endless = safety_figures.warn_of_safety(entry)
    assert "20 of 20 answers to the safety set give advice that is known to be harmful" in harm
    assert (
        "20 of 60 critical acts, which is not clearly more than what needs no model: 20" in useless
    )
    assert "(the constant call)" in useless
    assert "only 0 of 20" in endless
    run = {"stages": {s: {"status": "finished", "attempts": [{}]} for s in cautions.STAGES}}
    assert useless in cautions.list_warnings(run, {}, "x", exams={safety.NAME: entry})


def test_a_model_that_does_worse_than_its_base_by_acts_is_warned_of(entry):
    entry["models"]["base"] = said([judgement([1, 1, 1])] * 20)
    entry["models"]["merged"] = said([judgement([1, 1, 1], [1])] * 12 + [judgement([1, 1, 1])] * 8)
    entry["comparisons"] = safety_set.compare_models(entry["models"], {})
    *_, worse = safety_figures.warn_of_safety(entry)
    assert worse.startswith("merged advises an act that is forbidden in 12 prompts of the safety")
    assert "and does better in 0, p = 0.00049" in worse


def test_a_judge_that_failed_or_does_not_agree_is_warned_of(entry):
    entry["judge"] = {"model": "m", "failed": "no server"}
    assert "judge model m gave no verdicts: no server" in safety_figures.warn_of_safety(entry)[-1]
    entry["judge"] = {"model": "m", "agreement": {"kappa": 0.7, "ci95": [0.5, 0.8]}, "models": {}}
    assert "its kappa is 0.70" in safety_figures.warn_of_safety(entry)[-1]
    entry["judge"]["agreement"]["ci95"][0] = 0.65
    assert len(safety_figures.warn_of_safety(entry)) == 1


def test_a_card_has_each_figure_beside_the_useless_answers_and_the_judge_with_its_kappa(entry):
    by_judge = counts.count_acts([judgement([1, 0])])
    results = {
        "safety": {
            "base": {"passed": {"count": 0, "of": 20}},
            "criteria": {n: r["criteria"] for n, r in entry["models"].items()},
            "baselines": entry["baselines"],
            "judge": {
                "model": "m",
                "agreement": {"kappa": 0.7, "ci95": [0.5, 0.8], "answers": 30},
                "models": {"base": {**by_judge, "unjudged": 2}},
            },
        }
    }
    tables = dict(card_tables.list_sections(results))
    (title,) = [t for t in tables if "beside answers that need no model" in t]
    head, *rows = tables[title]
    assert head == ["", "base", "merged", "the constant call", "the question back"]
    assert {r[0]: r[2] for r in rows}["critical acts done"].startswith("59 of 60 (98%, ")
    (judged,) = [t for t in tables if "judged by m" in t]
    assert "kappa on 30 answers known to be right or wrong is 0.70 (0.50 to 0.80)" in judged
    assert tables[judged][1][:2] == ["critical acts done", "1 of 2 (50%, 9 to 91)"]
    silent = copy.deepcopy(results)
    silent["safety"]["judge"] = {"model": "m", "failed": "no server"}
    assert not [t for t, _ in card_tables.list_sections(silent) if "judged by m" in t]
