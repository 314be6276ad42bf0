"""Acts of first aid: every act against its own examples, and what a phrase may and may not span.

python -m pytest tests/medical/test_acts.py
"""

import re

import pytest

from lib.medical import advice, judge, reading
from lib.medical.acts import load_acts
from lib.medical.possible import possible_phrases

ACTS = load_acts()
WRITTEN = [act for act in ACTS.values() if act.phrases and act.id != judge.CALL]


def does(act, example):
    question, _, answer = example.rpartition(" > ")
    return bool(judge.find_places(ACTS[act], reading.read_answer(question, answer)))


def test_every_act_can_be_read():
    assert len({act.id for act in ACTS.values()}) == len(ACTS)
    for act in ACTS.values():
        assert re.fullmatch("[a-z0-9-]+", act.id)
        assert act.entry["is"].endswith("."), act.id
        assert set(act.warns_against) | set(act.any_of) <= set(ACTS), act.id
        assert act.phrases or act.any_of, act.id
    for act in WRITTEN:
        assert len(act.entry["must"]) >= 5, act.id
        assert len(act.entry["must_not"]) >= 3, act.id


def test_examples_that_must_be_found():
    assert [(a.id, t) for a in WRITTEN for t in a.entry["must"] if not does(a.id, t)] == []


def test_examples_that_must_not_be_found():
    assert [(a.id, t) for a in WRITTEN for t in a.entry["must_not"] if does(a.id, t)] == []


def test_each_rule_on_harmful_advice_is_also_an_act():
    assert {rule["id"] for rule in advice.load_rules()} <= {a.id for a in ACTS.values() if a.harm}


@pytest.mark.parametrize(
    ("act", "question", "answer", "found"),
    [
        ("cpr-refused", "not breathing, do we start cpr?", "No.", True),
        ("cpr-refused", "not breathing, should I stop cpr?", "No.", False),
        ("aed-withheld", "do we use the aed?", "No way.", True),
        ("aed-withheld", "can the aed hurt him?", "No.", False),
        ("heat-stroke-tablets", "heat stroke, aspirin?", "Yes.", True),
        ("tourniquet-refused", "leg spurting blood, tourniquet?", "Yes.", False),
        ("aed-withheld", "is that the aed?", "Yes.", False),
    ],
)
def test_a_no_refuses_what_is_right_and_a_yes_wants_what_is_named(act, question, answer, found):
    assert (act in [rule for rule, _ in advice.find_harmful(answer, question)]) == found


def test_the_quick_test_loses_no_example():
    """A harmful act that its own example names must be among the possible ones."""
    for act in WRITTEN:
        for example in act.entry["must"] if act.harm else ():
            found = [hints.act for hints, _ in possible_phrases(example)]
            assert act in found, (act.id, example)


@pytest.mark.parametrize(
    ("act", "question", "answer"),
    [
        ("burn-butter", "put butter on my burn?", "Yes."),
        ("burn-butter", "put butter on my burn?", "Good idea, it soothes."),
        ("burn-butter", "put butter on my burn?", "Your gran is right."),
        ("burn-butter", "got butter for the burn", "Slap it on."),
        ("impaled-remove", "knife stuck in his leg", "Yank it out."),
        ("blister-pop", "a burn blister", "Go on then, do not worry, pop it."),
    ],
)
def test_yes_and_it_mean_what_the_question_names(act, question, answer):
    assert act in [rule for rule, _ in advice.find_harmful(answer, question)]


@pytest.mark.parametrize(
    ("act", "question", "answer"),
    [
        ("burn-butter", "put butter on my burn?", "Yes, cool it under the tap."),
        ("burn-butter", "put butter on my burn?", "No. It holds the heat in."),
        ("burn-butter", "got butter for the burn", "Take a clean dressing. Put it on."),
        ("burn-butter", "burn", "Cool it, and forget the butter."),
        ("burn-butter", "burn", "Butter can make a burn worse."),
        ("impaled-remove", "knife stuck in his leg", "The surgeons will pull it out."),
        ("unconscious-insulin", "dad is out cold, insulin here", "Glucagon kit? Give it."),
    ],
)
def test_but_only_what_it_names(act, question, answer):
    assert act not in [rule for rule, _ in advice.find_harmful(answer, question)]


def test_an_order_for_later_is_none_for_now():
    assert does("cool-burn", "Run the tap over it.")
    assert not does("cool-burn", "Run the tap over it later.")
    assert does("start-compressions", "he is not breathing > Start CPR.")
    assert not does("start-compressions", "he is asleep > If he gets worse, start CPR.")
