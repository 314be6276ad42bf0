"""The translated sets and the table of numbers: each follows its English text, and no number is in a text.

python -m pytest tests/medical/test_languages.py
"""

import re

import pytest

from lib.data.cleaning import language as language_rule
from lib.medical.texts import bundled
from lib.medical.texts.schema import NOT_CHECKED

ENGLISH = {entry["id"]: entry for entry in bundled.read_entries("first_aid.jsonl")}
EXAM = {entry["id"]: entry for entry in bundled.read_entries("exam.jsonl")}
LANGUAGES = ("es", "fr")
SHARED = ("topic", "guidance", "audience", "age", "region")


def english_of(entry, language, texts):
    return texts[entry["id"].removesuffix(f"-{language}")]


def digits(text):
    return sorted(re.findall(r"\d+", text))


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_row_follows_its_english_row(language):
    rows = bundled.read_entries(f"first_aid_{language}.jsonl")
    assert len(rows) == len(ENGLISH)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        english = english_of(row, language, ENGLISH)
        assert row["english_version"] == english["version"], f"{row['id']}: translate again"
        for key in (*SHARED, "population", "urgency"):
            assert row[key] == english[key], row["id"]
        assert digits(row["answer"]) == digits(english["answer"]), row["id"]
        assert row["answer"].count("\n") == english["answer"].count("\n"), row["id"]
        assert 0.7 < len(row["answer"]) / len(english["answer"]) < 1.75, row["id"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_rows_are_in_their_language(language):
    rows = bundled.read_entries(f"first_aid_{language}.jsonl")
    found = [language_rule.find_language(r["question"], r["answer"], language) for r in rows]
    assert [row["id"] for row, other in zip(rows, found, strict=True) if other] == []
    missed = [language_rule.find_language(r["question"], r["answer"], "en") for r in rows]
    assert missed.count(language) > 0.98 * len(rows), "the rule would take them for English"


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_exam_follows_the_english_one(language):
    items = bundled.read_entries(f"exam_{language}.jsonl")
    assert len(items) == 60
    options = {}
    for item in items:
        english = english_of(item, language, EXAM)
        assert item["english_version"] == english["version"], f"{item['id']}: translate again"
        assert item["answer_letter"] == english["answer_letter"]
        for key in SHARED:
            assert item[key] == english[key], item["id"]
        for letter, option in item["options"].items():
            other = options.setdefault(english["options"][letter], option)
            assert other == option, f"{item['id']}: one option in two wordings"
        lengths = [len(option) for option in item["options"].values()]
        assert max(lengths) <= 1.35 * min(lengths), item["id"]


def test_no_text_has_a_national_number():
    for name in ("first_aid_es.jsonl", "first_aid_fr.jsonl"):
        for row in bundled.read_entries(name):
            text = f"{row['question']} {row['answer']}"
            assert not re.search(
                r"(?<![/.,\d])(?<!\d[ \u202f\xa0])\b(911|112|999|000|111|061|080\d)\b", text
            ), row["id"]


def test_each_number_has_its_quotation_or_says_that_it_has_none():
    numbers = bundled.read_numbers()
    assert len(numbers) >= 45
    assert {"ES", "MX", "AR", "FR", "BE", "SN", "US", "GB", "IN", "NG"} <= set(numbers)
    plain = str.maketrans("", "", " -./()")
    for country in numbers.values():
        for number in (*country.emergency, *country.poison):
            assert bool(number.address) == (number.checked != NOT_CHECKED), country.code
            if number.address:
                assert number.number.translate(plain) in number.checked.translate(plain)
                assert len(number.checked.split()) <= 25
    assert len({entry["code"] for entry in bundled.read_entries("numbers.jsonl")}) == len(numbers)
