"""Which shared words are a leak: most of a held-out row, and no template or closing.

python -m pytest tests/data/test_leaks.py
"""

import random

import numpy as np

from helpers.sentences import sentence
from helpers.templated import CLOSING, TERMS, UNLIKE, templated, with_closing
from lib.common.words import words_of
from lib.data import leaks, subjects, word_runs

SIZE = 13


def find(train, held, items=()):
    """Return ({training row: held-out row or -1}, counts of harmless overlaps)."""
    pairs = [*train, *held]
    conversations = [
        [{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs
    ]
    runs = [word_runs.hash_runs(word_runs.spoken_words(m), SIZE, {}) for m in conversations]
    item_runs = [word_runs.hash_runs(words_of(text), SIZE, {}) for text in items]
    hashes = np.unique(np.concatenate([word_runs.NO_RUNS, *runs[len(train) :], *item_runs]))
    held_out = [
        leaks.HeldOut(n, np.searchsorted(hashes, runs[n]), word_runs.mark_asked(conversations[n]))
        for n in range(len(train), len(pairs))
        if len(runs[n])
    ]
    packed = [subjects.pack_terms(words_of(q), words_of(a)) for q, a in pairs]

    class Terms:
        def read(self, row):
            return subjects.unpack_terms(packed[row])

    overlaps = [(n, word_runs.find_places(hashes, runs[n])) for n in range(len(train))]
    texts = [np.searchsorted(hashes, own) for own in item_runs]
    reference = leaks.Reference(held_out, texts, len(hashes), SIZE, Terms())
    found, harmless = leaks.find_leaks(overlaps, reference)
    by = {
        row: leak.held_out - len(train) if leak.held_out >= 0 else -1 for row, leak in found.items()
    }
    return by, dict(harmless)


def words(rng, count):
    return " ".join(sentence(rng, count))


def test_a_held_out_answer_under_another_question_is_a_leak():
    rng = random.Random(1)
    held = [(words(rng, 8), words(rng, 40)), (words(rng, 8), words(rng, 40))]
    changed = held[1][1].split()
    changed[20] = "other"
    train = [
        (words(rng, 8), words(rng, 40)),
        (words(rng, 8), f"{words(rng, 20)} {held[1][1]} {words(rng, 20)}"),
        (words(rng, 8), " ".join(changed)),
        (words(rng, 8), " ".join(held[0][1].split()[:25])),
    ]
    assert find(train, held) == ({1: 1, 2: 1, 3: 0}, {})


def test_a_held_out_question_is_a_leak_whatever_the_answer():
    rng = random.Random(2)
    question = (
        "Which of the two wrists does one hold when an unconscious adult is rolled over, and why?"
    )
    held = [(question, f"Hold the left one. {words(rng, 40)}")]
    train = [(f"My aunt in Rome asks this. {question}", f"The right one. {words(rng, 40)}")]
    assert find(train, held) == ({0: 0}, {})


def test_one_text_on_one_disease_is_a_leak_whatever_is_asked_of_it():
    text = (
        "{} stings burn, swell and turn red within the hour, and the swelling may reach the next "
        "joint by the evening. Most people are well again after three days without any treatment."
    )
    held = [("What are the symptoms of a hornet sting?", "Symptoms: " + text.format("Hornet"))]
    train = [("What causes the pain of a hornet sting?", "The causes: " + text.format("Hornet"))]
    assert find(train, held) == ({0: 0}, {})
    other = [("What causes the pain of a wasp sting?", "The causes: " + text.format("Wasp"))]
    assert find(other, held) == ({}, {"another_subject": 1})


def test_a_long_name_in_both_questions_is_none():
    name = "autosomal recessive axonal neuropathy with neuromyotonia of the lower limbs and hands"
    held = [
        (
            f"What is {name}?",
            f"{name} weakens the muscles from about the age of ten. "
            "First the feet tire, then they drop; cramps follow in the cold, and grips loosen late.",
        )
    ]
    train = [(f"How many people are affected by {name}?", f"{name} is rare: no number is known.")]
    assert find(train, held) == ({}, {"shared_passage": 1})


def test_a_passage_of_a_longer_text_is_none():
    rng = random.Random(3)
    held = [(words(rng, 8), words(rng, 100))]
    train = [(words(rng, 8), f"{words(rng, 30)} {' '.join(held[0][1].split()[40:60])}")]
    assert find(train, held) == ({}, {"shared_passage": 1})


def test_rows_of_a_template_are_none_but_the_same_answer_is():
    for kind in TERMS:
        held, *train = templated(kind)
        by, harmless = find(train, [held])
        if kind == "silent":
            assert by == dict.fromkeys(range(len(train)), 0), "word for word the same answer"
        else:
            assert (by, harmless) == ({}, {"another_subject": len(train)})


def test_a_closing_is_none_even_where_it_is_most_of_the_answer():
    for count in range(2, 12):
        *train, held = with_closing(count + 1)
        by, harmless = find(train, [held])
        if count < leaks.SEVERAL:
            assert set(by) <= set(range(count)), "two rows are too few to know a closing"
        else:
            assert by == {}
            assert sum(harmless.values()) == count
            kind = "closing" if count <= leaks.COMMON else "common_phrase"
            assert kind in harmless


def test_an_answer_with_a_closing_is_a_leak_where_the_rest_is_shared_too():
    *train, held = with_closing(6)
    long = (
        f"Keep the leg still and call for help, then cover the wound with a clean cloth. {CLOSING}"
    )
    held = (UNLIKE[0][0], long)
    train = [
        *(pair for pair in train if pair[0] != held[0]),
        ("Fell from a ladder, what first?", long),
    ]
    by, harmless = find(train, [held])
    assert by == {len(train) - 1: 0}
    assert sum(harmless.values()) == len(train) - 1


def test_copies_with_a_changed_word_are_leaks_however_many_there_are():
    rng = random.Random(5)
    held = (words(rng, 8), words(rng, 30))
    train = []
    for n in range(6):
        changed = held[1].split()
        changed[22] = f"other{n}"
        train.append((words(rng, 8), " ".join(changed)))
    assert find(train, [held])[0] == dict.fromkeys(range(6), 0)


def test_words_of_an_exam_are_a_leak_unless_many_rows_share_a_small_part_of_it():
    rng = random.Random(7)
    stock = "Which of the following is the most likely cause of all the complaints of this patient"
    items = [f"{words(rng, 60)} {stock}", f"{words(rng, 60)} {stock}"]
    train = [(f"{words(rng, 60)} {stock}", words(rng, 5)) for _ in range(12)]
    train.append((f"{' '.join(items[0].split()[:14])} {words(rng, 20)}", words(rng, 9)))
    assert find(train, [], items) == ({12: -1}, {"common_phrase": 12})
    assert set(find(train[:9], [], items)[0]) == set(range(9)), "ten rows are not yet common"
    short = "Of the four people who lie here on the ground, which one do you look after first"
    asked = [(short, words(rng, 9)) for _ in range(12)]
    assert find(asked, [], [short])[0] == dict.fromkeys(range(12), -1), "this is the whole item"
    assert find([], [], items) == ({}, {})
