"""Runs of words and near copies shared with held-out rows, exam and safety set.

python -m pytest tests/data/test_contamination.py
"""

import json
import random

import numpy as np

from helpers.preparing import WORDS, job, jsonl, made_up, prepare, stored
from helpers.sentences import sentence
from lib.common.words import words_of
from lib.data import contamination
from lib.data import prepare as data
from lib.medical import safety


def test_grams_are_equal_for_equal_runs_and_only_for_those():
    rng = random.Random(6)
    a, b = sentence(rng, 40), sentence(rng, 40)
    shared = [*b[:10], *a[5:25], *b[10:]]
    numbers = {}
    x, y, z = (set(contamination.hash_runs(t, 13, numbers).tolist()) for t in (a, shared, b))
    assert len(x & y) == 20 - 12
    assert not x & z
    assert len(contamination.hash_runs(a[:12], 13, numbers)) == 0
    assert (
        contamination.hash_runs(a, 13, {}).tolist()
        == contamination.hash_runs(a, 13, numbers).tolist()
    ), "hashes are those of the words, in every process"
    assert (
        contamination.hash_runs(a[:13], 13, {}).tolist()
        != contamination.hash_runs([*a[1:13], a[0]], 13, {}).tolist()
    ), "order counts"


def test_contaminated_rows_are_found_and_common_phrases_are_not_contamination_unless_of_the_exam():
    numbers, rng = {}, random.Random(8)
    held, phrase = sentence(rng, 40), sentence(rng, 14)
    hashes = np.unique(
        np.concatenate([contamination.hash_runs(t, 13, numbers) for t in (held, phrase)])
    )
    nothing, own = np.empty(0, np.uint64), np.unique(contamination.hash_runs(phrase, 13, numbers))
    train = {
        0: sentence(rng),
        1: [*sentence(rng, 9), *held[10:24]],
        **{n: [*sentence(rng, 5), *phrase] for n in range(2, 13)},
    }
    found = [
        (n, contamination.find_places(hashes, contamination.hash_runs(words, 13, numbers)))
        for n, words in train.items()
    ]
    leaks, common = contamination.find_leaks(found, hashes, nothing)
    assert (set(leaks), common) == ({1}, 2)
    assert contamination.find_shared_words(
        [{"role": "user", "content": " ".join(train[1])}], 13, hashes[leaks[1]]
    ) in " ".join(held)
    assert set(contamination.find_leaks(found[:12], hashes, nothing)[0]) == set(range(1, 12)), (
        "ten rows are not yet common"
    )
    leaks, common = contamination.find_leaks(found, hashes, own)
    assert (set(leaks), common) == (set(range(1, 13)), 0), "the exam's own words always count"
    assert contamination.find_leaks([], hashes, nothing) == ({}, 0)
    assert len(contamination.find_places(nothing, hashes)) == 0


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
