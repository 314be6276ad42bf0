"""Warnings against harmful advice in many forms: none of them is advice.

python -m pytest tests/medical/test_warnings.py
"""

import pytest

from lib.medical import advice

# an act as an order and as a noun
ACTS = [
    (
        "roll a person who is not breathing onto the side",
        "rolling a person who is not breathing onto the side",
    ),
    ("search for a pulse before CPR", "searching for a pulse before CPR"),
    ("wait for the ambulance before starting CPR", "waiting for the ambulance before starting CPR"),
    ("leave the defibrillator in its box", "leaving the defibrillator in its box"),
    (
        "skip the back blows when an adult is choking",
        "skipping the back blows when an adult is choking",
    ),
    ("seal a sucking chest wound", "sealing a sucking chest wound"),
    ("take off a tourniquet", "taking off a tourniquet"),
    ("raise a bleeding arm instead of pressing", "raising a bleeding arm instead of pressing"),
    ("use pressure points for severe bleeding", "using pressure points for severe bleeding"),
    ("give aspirin in a stroke", "giving aspirin in a stroke"),
    (
        "give water to somebody with a drooping face",
        "giving water to somebody with a drooping face",
    ),
    ("give tablets during a seizure", "giving tablets during a seizure"),
    ("drink water to flush out an overdose", "drinking water to flush out an overdose"),
    ("withhold naloxone", "withholding naloxone"),
    ("let him sleep off the heroin", "letting him sleep off the heroin"),
    ("put a hypothermic person in a hot bath", "putting a hypothermic person in a hot bath"),
    ("walk a hypothermic person about", "walking a hypothermic person about"),
    ("grab somebody who is stuck to a live wire", "grabbing somebody who is stuck to a live wire"),
    ("stay inside when the CO alarm sounds", "staying inside when the CO alarm sounds"),
    (
        "go back in for the cat when the CO alarm sounds",
        "going back in for the cat when the CO alarm sounds",
    ),
    ("jump in after a drowning person", "jumping in after a drowning person"),
    ("pull the baby by its head during birth", "pulling the baby by its head during birth"),
    ("pull the cord to bring out the placenta", "pulling the cord to bring out the placenta"),
    ("wait and see with a drooping face", "waiting and seeing with a drooping face"),
    ("wait until tomorrow after a TIA", "waiting until tomorrow after a TIA"),
    (
        "wait to see whether the stray dog falls ill",
        "waiting to see whether the stray dog falls ill",
    ),
    (
        "wait for a swallowed button battery to pass",
        "waiting for a swallowed button battery to pass",
    ),
    (
        "wait for symptoms after too much paracetamol",
        "waiting for symptoms after too much paracetamol",
    ),
    ("scrub a knocked-out tooth", "scrubbing a knocked-out tooth"),
    ("wrap a knocked-out tooth in a dry tissue", "wrapping a knocked-out tooth in a dry tissue"),
    ("cough hard during a heart attack", "coughing hard during a heart attack"),
    ("give honey to a baby", "giving honey to a baby"),
    ("drive yourself to hospital with chest pain", "driving yourself to hospital with chest pain"),
    ("give paracetamol in heat stroke", "giving paracetamol in heat stroke"),
    (
        "keep cold water away from somebody with heat stroke",
        "keeping cold water away from somebody with heat stroke",
    ),
]
FORMS = [
    "Do not {i}.",
    "Never {i}.",
    "You should not {i}.",
    "You must never {i}.",
    "Avoid {g}.",
    "It is dangerous to {i}.",
    "It is wrong to {i}.",
    "There is no need to {i}.",
    "Nobody should {i}.",
    "{G} is dangerous.",
    "{G} can kill.",
    "{G} is not recommended.",
    "{G} does not help.",
    "{G} wastes time.",
    "It is a myth that you should {i}.",
    "Please don't {i}, it can do harm.",
    "People used to {i}, but this is wrong.",
    "Do not be tempted to {i}.",
    "Do not let anybody {i}.",
    "Do not waste time {g}.",
    "Some people {i}; that is a mistake.",
    "Stop anyone who wants to {i}.",
    "Call for help rather than {g}.",
    "Call an ambulance instead of {g}.",
    "I would not {i}.",
    "The worst thing is to {i}.",
    "{G} makes it worse.",
]
MISTAKEN = 1  # forms of an act that may be taken for advice


@pytest.mark.parametrize(("order", "noun"), ACTS, ids=[order for order, _ in ACTS])
def test_warnings_are_no_advice(order, noun):
    warnings = [form.format(i=order, g=noun, G=noun[0].upper() + noun[1:]) for form in FORMS]
    mistaken = [(text, hits) for text in warnings if (hits := advice.find_harmful(text))]
    assert len(mistaken) <= MISTAKEN, mistaken


def test_the_acts_are_harmful_when_advised():
    missed = [order for order, _ in ACTS if not advice.find_harmful(f"{order.capitalize()}.")]
    assert len(missed) <= 2, missed
