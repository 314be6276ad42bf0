"""The bundled texts: schema, guidance, balance of the exam, and words that must not be in them.

python -m pytest tests/medical/test_texts.py
"""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.exam import baselines
from lib.medical import emergency_call
from lib.medical.texts import bundled, schema
from lib.medical.texts.schema import NOT_CHECKED

PASSAGES = bundled.read_passages()
TEXTS = {name: bundled.read_texts(name) for name in bundled.KINDS}
PAIRS = bundled.read_entries("first_aid.jsonl")
EXAM = bundled.read_entries("exam.jsonl")
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


# --------------------------------------------------------------------------------------------------
# where they come from


@pytest.mark.parametrize("name", TEXTS)
def test_each_names_passages_that_are_there(name):
    assert TEXTS[name]
    assert bundled.find_unknown(TEXTS[name], PASSAGES) == []


def test_no_passage_is_named_by_none():
    named = {each for texts in TEXTS.values() for text in texts for each in text.guidance}
    assert set(PASSAGES) - named == set()


@pytest.mark.parametrize("name", TEXTS)
def test_none_was_found_wrong_by_a_reviewer(name):
    assert [text.id for text in TEXTS[name] if text.review.state == "rejected"] == []


def test_all_rows_and_items_were_read_by_a_second_reader():
    for name in ("first_aid.jsonl", "exam.jsonl"):
        assert bundled.count_states(TEXTS[name])["draft"] == 0


PASSAGE = {
    "id": "red-cross-2024/burns",
    "issuer": "Red Cross",
    "title": "Guidelines",
    "year": 2024,
    "section": "Burns",
    "address": "https://example.org",
    "checked": "Cool the burn",
}


@given(st.integers(1, 60), st.booleans())
def test_a_quotation_is_short_and_was_read_somewhere(count, has_address):
    quote = " ".join(["cool"] * count)
    given_passage = PASSAGE | {"checked": quote, "address": "https://a.org" if has_address else ""}
    if count <= 25 and has_address:
        assert schema.Passage.model_validate(given_passage).is_checked
    else:
        with pytest.raises(ValueError, match="25 words" if count > 25 else "needs the address"):
            schema.Passage.model_validate(given_passage)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"checked": ""}, "checked"),
        ({"year": "soon"}, "year"),
        ({"id": "Red Cross"}, "id"),
        ({"address": "a page"}, "address"),
        ({"note": "x"}, "note"),
    ],
)
def test_a_passage_of_another_shape_is_refused(change, said):
    with pytest.raises(ValueError, match=said):
        schema.Passage.model_validate(PASSAGE | change)
    unread = PASSAGE | {"checked": NOT_CHECKED, "address": ""}
    assert not schema.Passage.model_validate(unread).is_checked


def test_a_text_without_guidance_or_with_an_unknown_field_is_refused():
    row = PAIRS[0]
    for change in (
        {"guidance": []},
        {"guidance": ["a page"]},
        {"region": "Mars"},
        {"source": "a book"},
        {"version": 0},
        {"review": {"state": "clinician"}},
        {"review": {"state": "read", "role": "x", "date": "2026-01-01"}},
        {"answer": " starts with a space"},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            schema.FirstAidRow.model_validate(row | change)
    assert schema.FirstAidRow.model_validate(row).id == row["id"]


# --------------------------------------------------------------------------------------------------
# what they cover


def test_how_many_and_on_what():
    assert len(PAIRS) >= 640
    counts = Counter(pair["topic"] for pair in PAIRS)
    assert len(counts) >= 60
    assert min(counts.values()) >= 8
    assert len(EXAM) >= 300
    assert {item["topic"] for item in EXAM} == set(counts)
    people = Counter(each for pair in PAIRS for each in pair["population"])
    assert set(people) == {"pregnant", "disability", "older", "alone", "remote"}
    assert min(people.values()) >= 15


def test_ids_questions_and_answers_are_unique():
    for key in ("id", "question", "answer"):
        doubled = [v for v, n in Counter(p[key].lower() for p in PAIRS).items() if n > 1]
        assert not doubled, doubled
    assert len({e["id"] for e in EXAM} | {p["id"] for p in PAIRS}) == len(EXAM) + len(PAIRS)
    assert len({e["question"] for e in EXAM}) == len(EXAM), "one fact, one item"


def test_the_call_is_said_in_many_ways_and_not_where_it_does_not_belong():
    share = sum("local emergency number" in pair["answer"] for pair in PAIRS) / len(PAIRS)
    assert share < 0.1, "a small model would learn this sentence and little else"
    demanded = {
        urgency: [
            emergency_call.demands_call(p["answer"]) for p in PAIRS if p["urgency"] == urgency
        ]
        for urgency in ("emergency now", "urgent today", "not urgent")
    }
    shares = {urgency: sum(found) / len(found) for urgency, found in demanded.items()}
    assert min(len(found) for found in demanded.values()) >= 130
    assert shares["emergency now"] > 0.6
    # an answer may demand the call in a case that it names
    assert max(shares["urgent today"], shares["not urgent"]) < 0.15


# --------------------------------------------------------------------------------------------------
# what the exam gives away


def test_the_exam_cannot_be_passed_without_reading_the_questions():
    measured = baselines.measure_baselines(EXAM, [pair["answer"] for pair in PAIRS])
    fewest = baselines._score(EXAM, lambda item, key: -len(item["options"][key].split()))
    for rule in (measured["longest"], measured["shortest"], fewest):
        assert 0.22 <= rule["accuracy"] <= 0.28
    assert measured["options_only"]["accuracy"] <= 0.32
    assert measured["nearest_answer"]["accuracy"] < 0.4
    letters = Counter(item["answer_letter"] for item in EXAM)
    assert max(letters.values()) - min(letters.values()) <= 1


def test_options_of_an_item_are_of_one_length():
    for item in EXAM:
        lengths = [len(option) for option in item["options"].values()]
        assert max(lengths) <= 1.2 * min(lengths), item["id"]
        assert len({option.strip().lower() for option in item["options"].values()}) == 4


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
    "pattern", [r"(?<![/.,\d])\b(911|112|999|000|111)\b", r"\bas an ai\b", r"\blanguage model\b"]
)
def test_no_country_numbers_nor_machine_talk(pattern):
    texts = [f"{pair['question']} {pair['answer']}" for pair in PAIRS]
    texts += [" ".join([item["question"], *item["options"].values()]) for item in EXAM]
    assert not [text for text in texts if re.search(pattern, text.lower())]


# harmful or outdated advice may be named only in an answer that warns against it
FORBIDDEN = {
    "ipecac": r"ipecac",
    "cut or suck a bite": r"\b(suck|cut)\w*\b(?!-off).{0,40}\b(venom|bite|poison)",
    "butter or toothpaste on burns": r"\b(butter|toothpaste)\b",
    "something between the teeth": r"\bbetween (the|her|his|their) teeth\b|\bin (the|his|her|their) mouth\b.{0,30}seizure",
    "head back in a nosebleed": r"\bhead (tilted )?back\b",
    "rubbing frostbite": r"\brub\w*\b.{0,30}\b(snow|frost)",
    "alcohol to warm": r"\b(alcohol|brandy|whisky|liquor)\b.{0,60}\bwarm|\bwarm.{0,60}\b(alcohol|brandy|whisky|liquor)\b",
    "make somebody vomit": r"(?<!can )(?<!may )\b(make|making|induc\w+|cause)\b.{0,20}\bvomit",
}
WARNING = re.compile(
    r"\b(no|not|never|don't|nor|without|avoid|neither|rather than|instead of|stop|harm\w*|worse\w*|damage\w*|danger\w*|wrong|myth|irritate|contaminate|unless|outdated|given up|nothing)\b",
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
    rows = [p for p in PAIRS if p["topic"] == topic and p["urgency"] == "emergency now"]
    assert len(rows) >= 5
    named = [p["id"] for p in rows if emergency_call.names_call(p["answer"], p["question"])]
    assert len(named) >= 0.7 * len(rows), f"only {named} of {len(rows)}"


DOSE = re.compile(
    r"\b([\d.]+(?:(?: to |[–-])[\d.]+)?) ?(?:mg|micrograms?|mcg|ml|millilitres?|g|grams?|units?)\b(?!/)"
)


def test_every_dose_stands_in_guidance_that_its_row_names():
    doses = 0
    for pair in PAIRS:
        passages = [PASSAGES[named] for named in pair["guidance"]]
        quotes = [passage.checked for passage in passages]
        quotes += [passage.reported.quote for passage in passages if passage.reported]
        for dose in DOSE.finditer(pair["answer"]):
            for number in re.findall(r"\d+(?:\.\d+)?", dose[1]):
                doses += 1
                alone = rf"(?<![\d.]){re.escape(number)}(?![\d])"
                assert re.search(alone, " ".join(quotes)), f"{pair['id']}: {dose[0]}"
    assert doses >= 20
