"""Rows of one template that state different facts, and rows that share nothing but a closing."""

import random

TEMPLATES = {
    "drug": (
        "What should I know about {x}?",
        "{x} is a medicine for high blood pressure, and it works by widening the blood vessels. Take "
        "{x} once a day at the same hour with a glass of water, and stand up slowly in the first "
        "week, because you may feel dizzy. Tell your doctor about kidney disease before you take "
        "{x}, and come to have your blood checked after two weeks. Common complaints are a dry "
        "cough, tiredness and headache. Call for help when your lips or your face swell.",
    ),
    "finding": (
        "What does {x} mean?",
        "Your blood test shows {x}, which means that the level is out of its normal range and that "
        "somebody must look for the cause. Mild forms are found by chance and give no complaints. "
        "Severe forms disturb the rhythm of the heart and the work of the muscles, so a heart trace "
        "is recorded without delay. The treatment depends on the cause and on how fast the level "
        "changed, and the test is repeated until it is back to normal.",
    ),
    "place": (
        "How do I look after my {x} knee once the plaster is off?",
        "Wash the skin of the {x} knee with lukewarm water and soap, and dry it with care, because "
        "it is thin and flakes for some days. Bend and stretch it slowly in warm water several "
        "times a day. Walk with crutches until the {x} leg carries your weight, and put it up when "
        "it swells in the evening. Ask for the clinic when the calf hurts, or turns hot and red.",
    ),
    "silent": (
        "Can {x} be passed on to my children?",
        "This condition is passed on in an autosomal way, which means that both copies of the gene "
        "in each cell carry a change. The parents of an affected person each have one copy of the "
        "changed gene, but they usually show no signs of the condition. Their children may be "
        "affected, may carry one changed copy, or may have two sound ones, and a genetic counsellor "
        "can explain to the family what this means for them.",
    ),
}
TERMS = {
    "drug": "ramipril lisinopril enalapril perindopril captopril quinapril amlodipine".split(),
    "finding": "hyperkalaemia hypokalaemia hypernatraemia hyponatraemia hypercalcaemia".split(),
    "place": ["left", "right"],
    "silent": "galactosaemia homocystinuria cystinosis phenylketonuria tyrosinaemia".split(),
}
CLOSING = (
    "I hope that I have answered your question, and please write to us again if there is anything "
    "else that you need to know."
)
UNLIKE = (
    ("My son has swallowed a button battery, what now?", "Bring him to a hospital now"),
    ("How long is a cut contagious?", "A cut is not contagious"),
    ("Which plaster suits a heel blister?", "A hydrocolloid plaster suits it best"),
    ("May I fly with a fresh cast?", "Wait two days"),
    ("Is a nosebleed at night dangerous?", "Mostly it is harmless"),
    ("What helps against cramps in the calf?", "Stretch the muscle slowly"),
    ("Why does my ear hurt when diving?", "The pressure outside rises"),
    ("How do I take out a tick?", "Pull it out straight with tweezers"),
    ("Can I give honey to a baby?", "No, not in the first year"),
    ("When does a burn need a doctor?", "When it is larger than a palm"),
    ("Should a sprained ankle be cooled?", "Yes, for some minutes at a time"),
    ("What do I do about a wasp sting?", "Take off rings and cool it"),
)


def templated(kind):
    """Return (question, answer) for each term of a kind."""
    question, answer = TEMPLATES[kind]
    return [(question.format(x=x), answer.format(x=x)) for x in TERMS[kind]]


def with_closing(count, closing=CLOSING, seed=1):
    """Return `count` pairs with unlike questions, in which each answer ends in the closing."""
    pairs = [(question, f"{answer}. {closing}") for question, answer in UNLIKE]
    random.Random(seed).shuffle(pairs)
    return pairs[:count]
