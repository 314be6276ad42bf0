"""Harmful advice: every rule against its own examples, the traps of negation, and our own texts, which must be clean.

python -m pytest tests/medical/test_advice.py
"""

import json
import pathlib
import re

import pytest

from lib.medical import advice

ASSETS = pathlib.Path(__file__).parents[2] / "lib" / "medical"
RULES = json.loads((ASSETS / "harmful_advice.json").read_text(encoding="utf-8"))
PAIRS = [
    json.loads(line)
    for line in (ASSETS / "first_aid.jsonl").read_text(encoding="utf-8").splitlines()
]
EXAM = [
    json.loads(line) for line in (ASSETS / "exam.jsonl").read_text(encoding="utf-8").splitlines()
]


def ids(text, question=""):
    return [rule for rule, _ in advice.find_harmful(text, question)]


def examples(kind):
    return [(rule["id"], text) for rule in RULES for text in rule[kind]]


def test_the_list():
    assert 25 <= len(RULES) <= 40
    assert len({rule["id"] for rule in RULES}) == len(RULES)
    texts = [text for rule in RULES for text in rule["harmful"] + rule["fine"]]
    assert len(set(texts)) == len(texts)
    for rule in RULES:
        assert set(rule) - {"about", "not_about", "unless"} == {
            "id",
            "words",
            "pattern",
            "why",
            "guidance",
            "harmful",
            "fine",
        }, rule["id"]
        assert len(rule["harmful"]) >= 3, rule["id"]
        assert len(rule["fine"]) >= 3, rule["id"]
        assert len(rule["why"]) > 40, rule["id"]
        # the prefilter finds word beginnings: a phrase would hide the words in it, a capital would never be found
        assert all(re.fullmatch("[a-z]+", word) for group in rule["words"] for word in group), rule[
            "id"
        ]


def test_harmful_examples_are_flagged():
    assert [example for example in examples("harmful") if example[0] not in ids(example[1])] == []


def test_fine_examples_are_not():
    assert [example for example in examples("fine") if ids(example[1])] == []


def test_warnings_against_the_harmful_examples_are_fine():
    """The same words under a heading that forbids them, and as a belief of others."""
    for rule, text in examples("harmful"):
        one_sentence = text.rstrip(".").replace(". ", ", ").replace("; ", ", ")
        assert ids(f"What not to do:\n- {text}") == [], rule
        assert ids(f"**Never do this:**\n\n* {text}\n\n* Wait.") == [], rule
        assert ids(f"Some people say: {one_sentence}, but that is wrong.") == [], rule


ADVISES = [
    "Do not panic. Induce vomiting.",
    "Do not panic, follow these steps:\n1. Induce vomiting.\n2. Call for help.",
    "Do not wait; cut the snake bite and suck out the venom.",
    "Do not hesitate to put butter on the burn.",
    "Don't forget to tilt the head back during a nosebleed.",
    "Stay calm, do not panic, and tilt your head back to stop the nosebleed.",
    "Do not use water on the burn, put butter on it.",
    "Instead of water, apply butter to the burn.",
    "Avoid infection by popping the burn blisters with a clean needle.",
    "If the bleeding nose does not stop, tilt the head back.",
    "If you do not have water, put butter on the burn.",
    "If water is not at hand put butter on the burn.",
    "Without delay, put ice on the burn.",
    "Without water at hand, putting butter on the burn helps.",
    "Do not run about but put butter on the burn.",
    "Never leave the person with the burn alone, and put butter on it.",
    "Do not call an ambulance until you have tried to put butter on the burn.",
    "You should not only cool the burn but also put butter on it.",
    "Put butter on the burn, but do not rub it in.",
    "Put butter on the burn, which is not deep, and cover it.",
    "Rubbing frostbitten fingers with snow helps to thaw them slowly.",
    "Dos:\n- Put butter on the burn.\n\nDon'ts:\n- Run around.",
    "Don't:\n* Blow the nose\n\nDo:\n* Tilt the head back during a nosebleed",
    "Don't:\n* Blow the nose\n\nTo stop the nosebleed, tilt the head back.",
    "Pull out the knife and take the person to hospital.",
    "If a child swallows pills, induce vomiting and call a doctor.",
    "A burn needs quick help. Cool it first. Then put butter on it and cover it.",
]


def test_negations_of_something_else_excuse_nothing():
    assert [text for text in ADVISES if not ids(text)] == []


WARNS = [
    "Do not cut or suck the snake bite.",
    "Do not cut the wound, suck out the snake venom, apply a tourniquet, or use ice.",
    "Do not, under any circumstances, put anything in the mouth during a seizure.",
    "Don’t try and put butter on the burn.",
    "DO NOT put butter on a burn",
    "You should never put ice on a burn.",
    "Under no circumstances should you put butter on a burn.",
    "Avoid putting ice, butter, toothpaste or oil on a burn.",
    "Avoid having the child lie down or tilt the head back in a nosebleed.",
    "Refrain from popping burn blisters.",
    "Avoid walking, rubbing or massaging frostbitten feet.",
    "Put butter on a burn is no longer the advice.",
    "You can put butter on a burn, but this is not recommended.",
    "Others put butter on a burn, which is harmful.",
    "When a burn blisters it is not advisable to pop the blister.",
    "Resist the urge to pop burn blisters.",
    "There is no need to pop burn blisters.",
    "Cool the burn with water, not ice.",
    "Use water rather than ice on the burn.",
    "Warm frostbitten fingers without rubbing them.",
    "Since it is not recommended to induce vomiting, call the poison centre.",
    "Putting butter on a burn is harmful and outdated.",
    "Rubbing the eye can scratch it.",
    "People used to put butter on burns.",
    "It is a myth that you should put butter on a burn.",
    "Should you put butter on a burn? No.",
    "Things to avoid:\n1. Put butter on the burn.\n2. Pop the blisters of the burn.",
    "Common mistakes: \n• Tilt the head back for a nosebleed\n• Blow the nose",
    "❌ Put butter on the burn",
]


def test_what_warns_is_fine():
    assert [text for text in WARNS if ids(text)] == []


def test_the_question_tells_what_the_answer_is_about():
    assert ids("Tilt your head back and wait.") == []
    assert ids("Tilt your head back and wait.", "How do I stop a nosebleed?") == [
        "nosebleed-head-back"
    ]
    assert ids("Tilt your head back and wait.", "How do I put in eye drops?") == []
    assert (
        ids("Cool it under the tap.", "I put butter on my burn. What now?") == []
    )  # what the asker did is not our advice


def test_found_gives_the_sentence_as_written():
    assert advice.find_harmful("**Burns:** stay calm. *Put butter* on the burn! Then rest.") == [
        ("burn-butter", "*Put butter* on the burn!")
    ]


def test_our_answers_are_clean():
    assert {
        pair["id"]: hits
        for pair in PAIRS
        if (
            hits := advice.find_harmful(pair["answer"])
            + advice.find_harmful(pair["answer"], pair["question"])
        )
    } == {}


def test_our_right_options_are_clean():
    right = {
        item["id"]: (item["options"][item["answer_letter"]], item["question"]) for item in EXAM
    }
    assert {
        key: hits
        for key, texts in right.items()
        if (hits := advice.find_harmful(texts[0]) + advice.find_harmful(*texts))
    } == {}


@pytest.mark.timeout(120)
def test_no_rule_backtracks():
    for text in ("put a ", "do not, ", "a", "apply butter ", "not ", ", "):
        assert isinstance(advice.find_harmful(text * (200_000 // len(text))), list)
