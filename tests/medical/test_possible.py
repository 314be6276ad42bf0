"""The quick look for acts passes over no phrase that a sentence has.

python -m pytest tests/medical/test_possible.py
"""

from lib.medical import advice, possible, reading
from lib.medical.acts import load_acts


def _examples():
    for act in load_acts().values():
        if act.harm:
            for example in [*act.entry.get("must", []), *act.entry.get("must_not", [])]:
                question, _, answer = example.rpartition(" > ")
                yield question, answer


def test_the_phrases_of_each_sentence_find_what_all_phrases_find():
    for question, answer in _examples():
        read = reading.read_answer(question, answer)
        marks = possible.mark_places(read.places)
        for hints, phrases in possible.possible_phrases(f"{question}\n{answer}"):
            by_sentence = possible.phrases_by_sentence(hints.about, phrases, marks)
            found = reading.find_advised(hints.act, read, by_sentence)
            assert found == reading.find_advised(hints.act, read), (hints.act.id, answer)


def test_acts_that_the_text_cannot_be_about_are_not_found():
    for question, answer in _examples():
        read = reading.read_answer(question, answer)
        left = {hints.act.id for hints, _ in possible.possible_phrases(f"{question}\n{answer}")}
        for act in load_acts().values():
            if act.harm and act.id not in left:
                assert not reading.find_advised(act, read), (act.id, answer)


def test_an_answer_without_harm_costs_no_reading(monkeypatch):
    monkeypatch.setattr(advice, "read_answer", None)
    assert advice.find_harmful("Metformin lowers blood sugar.") == []
