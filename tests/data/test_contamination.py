"""Runs of words and near copies shared with held-out rows, exam and safety set.

python -m pytest tests/data/test_contamination.py
"""

import json
import random
import re

import pytest

from helpers.preparing import WORDS, job, jsonl, made_up, prepare, stored
from helpers.sentences import sentence
from helpers.templated import CLOSING, TERMS, UNLIKE, templated
from lib.common.errors import UserError
from lib.common.words import words_of
from lib.data import contamination
from lib.data import prepare as data
from lib.medical import safety


def test_an_exam_item_is_known_in_every_form_training_rows_have_it():
    item = {
        "question": "Which is right?",
        "options": {"A": "Ice", "B": "Cool water"},
        "answer_letter": "B",
    }
    assert contamination.exam_texts(item) == [
        "Which is right?",
        "Which is right? Cool water",
        "Which is right?\n\nA) Ice\nB) Cool water",
        "Which is right?\n\nA) Ice\nB) Cool water Cool water",
    ]
    with_context = contamination.exam_texts(
        item | {"question": "It burns.\n\nWhich is right?", "stem": "Which is right?"}
    )
    assert with_context[4:] == contamination.exam_texts(item), (
        "rows hold the question without its context too"
    )
    assert with_context[:2] == [
        "It burns.\n\nWhich is right?",
        "It burns.\n\nWhich is right? Cool water",
    ]


def test_training_rows_that_repeat_exam_or_held_out_rows_go(bundled_base, cache, tmp_path):
    exam = [
        {
            "id": "e1",
            "question": "A cyclist fell and does not answer when spoken to, which of these is the first thing you should do?",
            "options": {"A": "Check the breathing", "B": "Give water"},
            "answer_letter": "A",
        }
    ]
    repeats = {
        "id": "leak",
        "question": "Tell me: a cyclist fell and does not answer when spoken to, which of these is the first thing you should do?",
        "answer": "Make sure that you are safe yourself.",
    }
    near = {
        "id": "near",
        "question": "Somebody fell here, what is first?",
        "answer": "Check the breathing",
    }
    rows = [*made_up(100), repeats, near]
    exam.append(
        {
            "id": "e2",
            "question": near["question"],
            "options": {"A": near["answer"], "B": "Give water"},
            "answer_letter": "A",
        }
    )
    settings = {
        "exam": [str(jsonl(tmp_path / "exam.jsonl", exam))],
        "validation_size": 0.0,
        "test_size": 0.0,
    }
    path = jsonl(tmp_path / "d.jsonl", rows)
    got, results = prepare(job(path, **settings), bundled_base, tmp_path / "run")
    assert results["dropped"] == {"contaminated": 2}
    listed = {
        r["id"]: r["by"]
        for r in map(json.loads, (tmp_path / "run/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed == {"leak": "exam e1", "near": "exam e2"}
    assert got.facts["exam_items"] == 2
    assert (
        prepare(job(path, **{**settings, "decontaminate": 0}), bundled_base, tmp_path / "off")[1][
            "dropped"
        ]
        == {}
    )

    sides = {r["id"]: r["split"] for r in stored(tmp_path / "off").values()}
    assert set(sides.values()) == {"train"}
    prepare(job(path, exam=[]), bundled_base, tmp_path / "split")
    held = next(r for r in stored(tmp_path / "split").values() if r["split"] == "test")
    copy = {
        "id": "copy",
        "question": "And now something else entirely, about " + " ".join(WORDS[:6]) + "?",
        "answer": "Well. " + held["answer"] + " So it is.",
    }
    for n in range(40):  # until its own question's side is train
        copy["question"] += f" {WORDS[n + 7]}"
        prepare(
            job(jsonl(tmp_path / "f.jsonl", [*rows, copy]), exam=[], decontaminate=0),
            bundled_base,
            tmp_path / "probe",
        )
        if stored(tmp_path / "probe")["copy"]["split"] == "train":
            break
    _, results = prepare(job(tmp_path / "f.jsonl", exam=[]), bundled_base, tmp_path / "last")
    listed = {
        r["id"]: r["by"]
        for r in map(json.loads, (tmp_path / "last/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed["copy"] == held["id"]


def test_training_rows_that_repeat_a_safety_prompt_go(bundled_base, cache, tmp_path):
    asked = safety.load_rows()
    long = next(row for row in asked if len(words_of(row["prompt"])) > 20)
    nearly = next(
        row for row in asked if row is not long and 14 < len(words_of(row["prompt"])) <= 25
    )
    swapped = " ".join(
        [*nearly["prompt"].split()[::-1]]
    )  # no run of words in common, but the same words
    rows = [
        *made_up(30),
        {
            "id": "run",
            "question": "Someone wrote to us.",
            "answer": "They said: " + " ".join(long["prompt"].split()[:14]) + ".",
        },
        {
            "id": "less",
            "question": "Someone else wrote.",
            "answer": "They said: " + " ".join(long["prompt"].split()[:9]) + ".",
        },
        {"id": "near", "question": swapped, "answer": "Call your local emergency number."},
    ]
    path, settings = jsonl(tmp_path / "d.jsonl", rows), {"validation_size": 0.0, "test_size": 0.0}
    got, results = prepare(job(path, **settings), bundled_base, tmp_path / "run")
    listed = {
        r["id"]: (r["reason"], r["by"])
        for r in map(json.loads, (tmp_path / "run/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed == {
        "run": ("contaminated", f"safety set {long['id']}"),
        "near": ("contaminated", f"safety set {nearly['id']}"),
    }
    assert (results["dropped"], results["rows_kept"]) == ({"contaminated": 2}, 31)
    assert (got.facts["safety_prompts"], got.facts["exam_items"]) == (len(asked), 0)
    shown = data.describe_data(got, results, "")["dropped"]["contaminated"]["examples"]
    assert shown[0]["shared"] in " ".join(words_of(long["prompt"])[:14])
    assert (
        prepare(job(path, **settings, decontaminate=0), bundled_base, tmp_path / "off")[1][
            "dropped"
        ]
        == {}
    )


def numbered(pairs):
    return [{"id": f"p{n}", "question": q, "answer": a} for n, (q, a) in enumerate(pairs)]


@pytest.mark.parametrize("threshold", [0.85, 0.95, 1.0])
def test_rows_of_a_template_are_all_kept_at_every_threshold(
    bundled_base, cache, tmp_path, threshold
):
    pairs = [pair for kind in TERMS if kind != "silent" for pair in templated(kind)]
    path = jsonl(tmp_path / "d.jsonl", numbered(pairs) + made_up(30))
    settings = {"near_duplicate_threshold": threshold, "validation_size": 0.2, "test_size": 0.2}
    template = 0
    for seed in range(3):
        rows, results = prepare(job(path, seed=seed, **settings), bundled_base, tmp_path / "run")
        assert results["dropped"] == {}
        template += rows.facts["kept_rows_that_only_share_a_template"]
    assert threshold < 1 or template, "else none was compared with a row of its template"


def test_rows_that_are_alike_and_kept_are_counted(bundled_base, cache, tmp_path):
    path = jsonl(tmp_path / "d.jsonl", numbered(templated("silent")) + made_up(30))
    rows, results = prepare(job(path), bundled_base, tmp_path / "run")
    assert results["dropped"] == {}
    assert rows.facts["alike_rows_kept_as_other_facts"] == len(TERMS["silent"]) - 1


@pytest.mark.parametrize("each", [5, 8, 10])
def test_a_closing_that_several_rows_share_drops_none(bundled_base, cache, tmp_path, each):
    rng = random.Random(each)
    pairs = []
    for _ in range(8):
        closing = f"Wishing {' '.join(rng.choices(WORDS, k=12))}. {CLOSING}"
        for _ in range(each):
            question = f"{' '.join(sentence(rng, 7))}?"
            pairs.append((question, f"{' '.join(sentence(rng, rng.randrange(3, 40)))}. {closing}"))
    path = jsonl(tmp_path / "d.jsonl", numbered(pairs))
    closings = 0
    for seed in range(3):
        rows, results = prepare(job(path, seed=seed, language=""), bundled_base, tmp_path / "run")
        assert "contaminated" not in results["dropped"]
        closings += rows.facts["kept_rows_that_only_share_a_closing"]
        assert 0.6 < results["train"] / len(pairs) < 1
    assert closings, "else no held-out row was mostly a closing"


def test_no_training_row_left_shows_the_drops_what_to_look_at_and_an_example(
    bundled_base, cache, tmp_path
):
    exam = [
        {
            "id": "e1",
            "question": UNLIKE[0][0],
            "options": {"A": "Call for help at once, and say what he swallowed", "B": "Wait"},
            "answer_letter": "A",
        }
    ]
    asked = f"{exam[0]['question']} Call for help at once, and say what he swallowed."
    path = jsonl(tmp_path / "d.jsonl", [{"id": "x", "question": "And?", "answer": asked}] * 2)
    settings = {"exam": [str(jsonl(tmp_path / "exam.jsonl", exam))]}
    with pytest.raises(UserError) as raised:
        prepare(
            job(path, validation_size=0.0, test_size=0.0, **settings),
            bundled_base,
            tmp_path / "run",
        )
    message = str(raised.value)
    assert "no row is left of the 2 read" in message
    assert re.search(r"exact_duplicate +1 .*\n +contaminated +1 .*\n", message)
    assert "skip_rules: [exact_duplicate]" in message
    assert "exam: []" in message
    assert 'the first is `x` because of `exam e1` ("' in message
    assert len(message.splitlines()) < 15
