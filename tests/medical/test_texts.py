"""The first-aid set and the exam: schema, balance, duplicates, and words that must not be in them.

python -m pytest tests/medical/test_texts.py
"""

import json
import pathlib
import re
from collections import Counter

import pytest

ASSETS = pathlib.Path(__file__).parents[2] / "lib" / "medical"
PAIRS = [
    json.loads(line)
    for line in (ASSETS / "first_aid.jsonl").read_text(encoding="utf-8").splitlines()
]
EXAM = [
    json.loads(line) for line in (ASSETS / "exam.jsonl").read_text(encoding="utf-8").splitlines()
]
STOP = set(
    "a an and are as at be by can could did do does for from had has have he her him his how i if in is it its may me my of on or our "
    "she should so that the their them then they this to was we what when which who why will with you your".split()
)


def words(text):
    return [w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in STOP]


def similarity(a, b):
    """Return the Jaccard overlap of content words: 1 means the same words in any order."""
    x, y = set(words(a)), set(words(b))
    return len(x & y) / len(x | y)


def test_schema_and_size():
    assert len(PAIRS) >= 320
    assert len({p["topic"] for p in PAIRS}) >= 40
    for pair in PAIRS:
        assert list(pair) == ["id", "topic", "question", "answer", "source"], pair["id"]
        assert all(isinstance(v, str) and v == v.strip() and v for v in pair.values()), pair["id"]
        assert 30 <= len(pair["answer"].split()) <= 95, pair["id"]
        assert re.search(r"\b(19|20)\d\d\b", pair["source"]), f"{pair['id']}: no year in the source"
    assert len(EXAM) == 120
    for item in EXAM:
        assert list(item) == ["id", "topic", "question", "options", "answer_letter", "source"], (
            item["id"]
        )
        assert list(item["options"]) == ["A", "B", "C", "D"], item["id"]
        assert len({o.strip().lower() for o in item["options"].values()}) == 4, item["id"]
        assert item["answer_letter"] in item["options"], item["id"]
    assert {e["topic"] for e in EXAM} <= {p["topic"] for p in PAIRS}


def test_every_topic_is_covered_evenly():
    counts = Counter(p["topic"] for p in PAIRS)
    assert min(counts.values()) >= 6
    assert min(Counter(e["topic"] for e in EXAM).values()) >= 2


def test_ids_questions_and_answers_are_unique():
    for key in ("id", "question", "answer"):
        doubled = [v for v, n in Counter(p[key].lower() for p in PAIRS).items() if n > 1]
        assert not doubled, doubled
    assert len({e["id"] for e in EXAM} | {p["id"] for p in PAIRS}) == len(EXAM) + len(PAIRS)


def test_letters_are_balanced_and_length_does_not_give_the_answer_away():
    letters = Counter(e["answer_letter"] for e in EXAM)
    assert set(letters.values()) == {30}, letters
    longest = sum(
        max(e["options"], key=lambda k: len(e["options"][k])) == e["answer_letter"] for e in EXAM
    )
    assert longest <= 40, f"the longest option is right in {longest} of 120; chance is 30"


def test_no_exam_item_repeats_a_training_question():
    close = [
        (round(s, 2), e["id"], p["id"])
        for e in EXAM
        for p in PAIRS
        if (s := similarity(e["question"], p["question"])) >= 0.6
    ]
    assert not close, close
    assert similarity("What should I do for a deep cut?", "For a deep cut, what should I do") == 1.0


@pytest.mark.parametrize(
    "pattern", [r"\b(911|112|999|000|111)\b", r"\bas an ai\b", r"\blanguage model\b"]
)
def test_no_country_numbers_nor_machine_talk(pattern):
    texts = [json.dumps(x) for x in PAIRS + EXAM]
    assert not [t[:120] for t in texts if re.search(pattern, t.lower())]


# harmful or outdated advice may be named only in an answer that warns against it
FORBIDDEN = {
    "ipecac": r"ipecac",
    "cut or suck a bite": r"\b(suck|cut)\w*\b.{0,40}\b(venom|bite|poison)",
    "butter or toothpaste on burns": r"\b(butter|toothpaste)\b",
    "something between the teeth": r"\bbetween (the|her|his|their) teeth\b|\bin (the|his|her|their) mouth\b.{0,30}seizure",
    "head back in a nosebleed": r"\bhead (tilted )?back\b",
    "rubbing frostbite": r"\brub\w*\b.{0,30}\b(snow|frost)",
    "alcohol to warm": r"\b(alcohol|brandy|whisky|liquor)\b",
    "make somebody vomit": r"\b(make|making|induc\w+|cause)\b.{0,20}\bvomit",
}
WARNING = re.compile(
    r"\b(no|not|never|don't|nor|without|avoid|neither|rather than|instead of|stop|harm\w*|worse\w*|damage\w*|danger\w*|wrong|myth|irritate|contaminate|unless|outdated)\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("name", FORBIDDEN)
def test_harmful_advice_appears_only_with_a_warning_in_its_sentence(name):
    bad = []
    for pair in PAIRS:
        if name == "head back in a nosebleed" and pair["topic"] != "nosebleed":
            continue  # elsewhere it opens the airway
        sentences = re.split(r"(?<=[.!?;]) ", pair["answer"])
        for n, sentence in enumerate(sentences):
            if re.search(FORBIDDEN[name], sentence, re.IGNORECASE) and not WARNING.search(
                " ".join(sentences[max(0, n - 1) : n + 1])
            ):
                bad.append((pair["id"], sentence))
    assert not bad, bad


LIFE_THREAT = (
    "cpr-adult",
    "cpr-child",
    "cpr-infant",
    "severe-bleeding",
    "tourniquet",
    "drowning",
    "opioid-overdose",
    "stroke",
    "anaphylaxis",
    "heat-stroke",
    "snake-bite",
    "chest-wound",
    "heart-attack",
)


@pytest.mark.parametrize("topic", LIFE_THREAT)
def test_life_threatening_topics_name_the_emergency_call(topic):
    answers = [p for p in PAIRS if p["topic"] == topic]
    assert answers
    named = [p["id"] for p in answers if "local emergency number" in p["answer"]]
    assert len(named) >= 0.6 * len(answers), f"only {named} of {len(answers)}"


def test_doses_are_only_those_of_first_aid_guidance():
    amounts = {
        m
        for p in PAIRS
        for m in re.findall(
            r"\b[\d–-]+ ?(?:mg|micrograms?|mcg|ml|millilitres?|g|grams?)\b", p["answer"]
        )
    }
    for amount in amounts:
        assert (
            re.match(r"(162|300|325|81|15|20|10|4|0\.\d)", amount)
            or "ml" in amount
            or "millilitre" in amount
        ), f"unexpected dose: {amount}"
