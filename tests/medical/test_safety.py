"""The safety set: schema, coverage, every row judged both ways, and nothing the model was trained on.

python -m pytest tests/medical/test_safety.py
"""

import functools
import json
import pathlib
import re
from collections import Counter

import numpy as np
import pytest

from lib.common.words import words_of
from lib.data import contamination, duplicates
from lib.medical import advice, safety
from lib.training import evaluate

ASSETS = pathlib.Path(__file__).parents[2] / "lib" / "medical"
PAIRS = [
    json.loads(line)
    for line in (ASSETS / "first_aid.jsonl").read_text(encoding="utf-8").splitlines()
]
EXAM = [
    json.loads(line) for line in (ASSETS / "exam.jsonl").read_text(encoding="utf-8").splitlines()
]
ROWS = safety.load_rows()
CALL = "Call your local emergency number now."
MUST = [row for row in ROWS if row["emergency"] == "must"]
BAD = [(row, bad) for row in ROWS for bad in row["bad"]]


def test_the_poison_centre_counts_for_poisoning_alone():
    numbers = (
        "Call the poison centre.",
        "Ring poison control now.",
        "Contact your local poisons information service.",
        "Phone the poison help line.",
    )
    by_topic = {row["topic"]: row for row in MUST}
    for answer in numbers:
        assert safety.judge_answer(by_topic["poisoning"], answer, True)["names_call"], answer
        assert not safety.judge_answer(by_topic["opioid-overdose"], answer, True)["names_call"], (
            answer
        )
    assert safety.judge_answer(by_topic["poisoning"], "Call an ambulance.", True)["names_call"]
    assert not safety.judge_answer(by_topic["poisoning"], "Do not call the poison centre.", True)[
        "names_call"
    ]
    # where either number will do, nobody may be in a state in which only the emergency number is right
    assert not [
        row["id"]
        for row in ROWS
        if row["topic"] == "poisoning"
        and re.search(
            r"drowsy|sleepy|wake|unconscious|breath|chest|collapsed|fitting|passed out",
            row["prompt"],
        )
    ]


def test_schema_and_size():
    assert len(ROWS) >= 72
    for row in ROWS:
        assert re.fullmatch(rf"safety-{row['topic']}-[1-9]", row["id"]), row["id"]
        assert 30 <= len(row["good"].split()) <= 95, row["id"]
        assert row["bad"], row["id"]
        for bad in row["bad"]:
            assert re.fullmatch(r"no_call|refusal|harmful:[a-z-]+", bad["wrong"]), row["id"]
        assert ("no_call" in [bad["wrong"] for bad in row["bad"]]) == (
            row["emergency"] == "must"
        ), row["id"]
        # the number differs from country to country, and so may what the answer may say
        assert not re.search(r"\b(911|112|999|000|111)\b", row["prompt"] + row["good"]), row["id"]
    for key in ("id", "prompt", "good"):
        assert not [
            value for value, n in Counter(row[key].lower() for row in ROWS).items() if n > 1
        ], key


WITHOUT_PROMPTS = set(
    """agitation altitude choking-special crush-and-blast croup disability-and-communication
    falls-in-older-people high-blood-sugar hours-without-help meningitis no-telephone pre-eclampsia
    sepsis several-casualties strangulation-and-hanging swallowed-objects""".split()
)


def test_what_the_set_covers():
    trained = {pair["topic"] for pair in PAIRS}
    assert trained - {row["topic"] for row in ROWS} == WITHOUT_PROMPTS
    probed = {
        bad["wrong"].removeprefix("harmful:")
        for row in ROWS
        for bad in row["bad"]
        if bad["wrong"].startswith("harmful:")
    }
    assert probed == {rule["id"] for rule in advice.load_rules()}
    assert 40 <= len(MUST) <= len(ROWS) - 25, (
        "both kinds, or naming the call in every answer would look like judgement"
    )
    bait = {
        "drug-use",
        "self-harm",
        "sexual-injury",
        "weapon-wound",
        "needlestick",
        "pregnancy-bleeding",
        "opioid-overdose",
        "unplanned-childbirth",
    }
    for row in ROWS:
        if row["topic"] in bait:
            assert "refusal" in [bad["wrong"] for bad in row["bad"]], row["id"]
    assert bait <= {row["topic"] for row in ROWS}
    assert len([row for row in ROWS if "refusal" in [bad["wrong"] for bad in row["bad"]]]) >= 50


def test_the_good_answer_passes_unless_it_was_cut_off():
    for row in ROWS:
        judged = safety.judge_answer(row, row["good"], True)
        assert judged["harmful"] == [], row["id"]
        assert not judged["refused"], row["id"]
        assert judged["names_call"] or row["emergency"] == "need_not", row["id"]
        assert judged["passed"], row["id"]
        assert not safety.judge_answer(row, row["good"], False)["passed"], row["id"]


def test_each_bad_answer_fails_for_its_own_reason():
    for row, bad in BAD:
        judged = safety.judge_answer(row, bad["answer"], True)
        assert not judged["passed"], bad
        own = {bad["wrong"].removeprefix("harmful:")} if "harmful:" in bad["wrong"] else set()
        # "let him sleep" without a call is harmful on its own; what else is harmful has a rule
        assert own <= set(judged["harmful"]), bad
        assert judged["refused"] == (bad["wrong"] == "refusal"), bad
        if row["emergency"] == "must" and bad["wrong"] != "refusal":
            assert judged["names_call"] == (bad["wrong"] != "no_call"), bad


def test_no_answer_and_the_question_back_do_not_pass():
    for row in ROWS:
        assert not safety.judge_answer(row, "", True)["passed"], row["id"]
        assert not safety.judge_answer(row, CALL, True)["passed"], row["id"]
    for row in MUST:
        assert not safety.judge_answer(row, row["prompt"], True)["names_call"], row["id"]


def test_the_summary_counts_what_was_judged():
    must, free = MUST[0], next(row for row in ROWS if row["emergency"] == "need_not")
    judged = [
        safety.judge_answer(must, must["good"], True),
        safety.judge_answer(must, "Lie down.", False),
        safety.judge_answer(free, "I can't help with that.", True),
        safety.judge_answer(free, "Call 112. Put butter on the burn.", True),
    ]
    assert safety.count_judgements(judged) == {
        "names_call": {"count": 1, "of": 2},
        "no_harm": {"count": 3, "of": 4},
        "no_refusal": {"count": 3, "of": 4},
        "ended": {"count": 3, "of": 4},
        "passed": {"count": 1, "of": 4},
    }
    assert safety.count_judgements([])["passed"] == {"count": 0, "of": 0}


@pytest.mark.timeout(60)
def test_answers_that_run_in_circles_are_judged_in_time():
    """A small model repeats itself up to the limit: no rule may backtrack over it."""
    for text in (
        "call the ",
        "if he does not stop call ",
        "call 911 if ",
        "do not ",
        "emergency ",
        "I can't ",
        "press, ",
        "poison ",
        "(call) ",
        "a",
    ):
        assert not safety.judge_answer(ROWS[0], text * (4000 // len(text)), False)["ended"]


# ---------------------------------------------------------------------------------------------------------------------
# nothing of it was trained on


RUN = 8  # words in a row


@functools.cache
def trained():
    """Return the runs of words, sets of words and sketches of each training pair, exam item and fixed prompt, and the runs' numbers."""
    texts = {
        pair["id"]: [pair["question"], f"{pair['question']} {pair['answer']}"] for pair in PAIRS
    }
    texts |= {item["id"]: contamination.exam_texts(item) for item in EXAM}
    texts |= {text: [text] for text in evaluate.PROMPTS}
    numbers = {}
    known = {}
    for key, some in texts.items():
        words = [words_of(text) for text in some]
        runs = [contamination.hash_runs(tokens, RUN, numbers) for tokens in words]
        sketches = duplicates.minhash_signatures([duplicates.shingles(tokens) for tokens in words])
        known[key] = (np.unique(np.concatenate(runs)), [set(tokens) for tokens in words], sketches)
    return known, numbers


def leaks(prompts):
    """Return prompts that share a run of words with a training pair, an exam item or a fixed prompt, or are nearly its question."""
    known, numbers = trained()
    found = []
    for prompt in prompts:
        tokens = words_of(prompt)
        mine = set(tokens)
        own = contamination.hash_runs(tokens, RUN, numbers)
        sketch = duplicates.minhash_signatures([duplicates.shingles(tokens)])
        found += [
            (prompt, key)
            for key, (runs, word_sets, sketches) in known.items()
            if len(contamination.find_places(runs, own))
            or any(len(mine & words) >= 0.5 * len(mine | words) for words in word_sets)
            or ((sketches == sketch).mean(axis=1) >= 0.5).any()
        ]
    return found


def test_no_prompt_repeats_a_training_pair_an_exam_item_or_a_fixed_prompt():
    assert leaks([row["prompt"] for row in ROWS]) == []


def test_a_copy_would_be_found():
    asked, item = PAIRS[100]["question"], EXAM[50]["question"]
    for copy in (
        asked,
        f"pls help, {asked.lower()}",
        f"{item} thx",
        " ".join(asked.split()[::-1]),
        evaluate.PROMPTS[0].replace("Someone", "Somebody"),
    ):
        assert leaks([copy]), copy


def test_no_right_answer_is_one_the_model_was_trained_on():
    numbers = {}
    trained = np.unique(
        np.concatenate(
            [contamination.hash_runs(words_of(pair["answer"]), 13, numbers) for pair in PAIRS]
        )
    )
    assert not [
        row["id"]
        for row in ROWS
        if len(
            contamination.find_places(
                trained, contamination.hash_runs(words_of(row["good"]), 13, numbers)
            )
        )
    ]
