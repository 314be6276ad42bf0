"""Duplicates and sides: against brute force, in order, stable when rows are appended.

python -m pytest tests/data/test_duplicates.py
"""

import random

import numpy as np
import pytest

from helpers.sentences import VOCABULARY, sentence
from helpers.templated import TERMS, templated
from lib import params
from lib.data import duplicates, subjects
from lib.data.duplicates import REASONS


def job(**values):
    return params.check_values({"validation_size": 0.1, "test_size": 0.1, **values}, "test")


def rows_of(*pairs):
    return [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in pairs]


class TermsInMemory:
    """Stands in for the file of terms."""

    def __init__(self, packed):
        self.packed = packed

    def read(self, row):
        return subjects.unpack_terms(self.packed[row])


def columns_of(rows):
    """Return (columns, later questions, what is kept on disk) of rows."""
    keys = [duplicates.comparison_keys(r) for r in rows]
    signatures = duplicates.minhash_signatures([duplicates.shingles(k.pop("words")) for k in keys])
    later = {n: k["later_questions"] for n, k in enumerate(keys) if k["later_questions"]}
    columns = {
        name: np.array([k[name] for k in keys], np.int64 if name == "answer_length" else np.uint64)
        for name in ("exact", "question", "subject", "answer", "vital", "answer_length")
    }
    columns["bands"] = duplicates.hash_bands(signatures)
    columns["given_side"] = np.zeros(len(rows), np.int8)
    terms = TermsInMemory([k["terms"] for k in keys])
    return columns, later, duplicates.RowFiles(signatures, terms)


def decide(rows, **values):
    """Return (reasons, sides) of rows for a job, as decided by the data stage."""
    columns, later, row_files = columns_of(rows)
    made = duplicates.Decisions(len(rows))
    own = job(**values)
    duplicates.drop_same(columns, made, own.skip_rules, own.same_question, own.answer_cap)
    duplicates.assign_sides(columns, row_files, later, own, made)
    return [REASONS[r] for r in made.reason], made.side.tolist()


def jaccard(a, b):
    x, y = set(duplicates.shingles(a)), set(duplicates.shingles(b))
    return len(x & y) / len(x | y)


def corpus(seed, count=300):
    """Make rows of which many are edits of earlier ones, from one word to a third of their words."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        if rows and rng.random() < 0.6:
            words = list(rng.choice(rows))
            for _ in range(rng.choice([0, 0, 1, 1, 2, 4, 20])):
                words[rng.randrange(len(words))] = rng.choice(VOCABULARY)
        else:
            words = sentence(rng)
        rows.append(words)
    return rows


def test_near_duplicates_are_those_of_brute_force_up_to_the_error_of_the_estimate():
    words = corpus(1)
    rows = [
        [
            {"role": "user", "content": " ".join(w[:5])},
            {"role": "assistant", "content": " ".join(w[5:])},
        ]
        for w in words
    ]
    columns, later, row_files = columns_of(rows)
    made = duplicates.Decisions(len(rows))
    everything_trained = job(validation_size=0.0, test_size=0.0)
    duplicates.assign_sides(columns, row_files, later, everything_trained, made)
    gone = {n for n in range(len(rows)) if REASONS[made.reason[n]] == "near_duplicate"}
    kept = [n for n in range(len(rows)) if n not in gone]
    assert len(gone) > 60
    assert all(
        made.by[n] in kept and made.by[n] < n and jaccard(words[n], words[made.by[n]]) > 0.75
        for n in gone
    ), "128 hashes: a standard error of 0.03"
    left = [(i, j) for j in kept for i in kept if i < j and jaccard(words[i], words[j]) > 0.93]
    asked_the_same = [(i, j) for i, j in left if words[i][:5] == words[j][:5]]
    assert len(asked_the_same) <= 1, "16 bands of 8 miss less than one in a thousand at 0.93"


def test_estimate_is_unbiased():
    rng, differences = random.Random(2), []
    for _ in range(60):
        a = sentence(rng, 120)
        b = [rng.choice(VOCABULARY) if rng.random() < 0.05 else w for w in a]
        s = duplicates.minhash_signatures([duplicates.shingles(a), duplicates.shingles(b)])
        differences.append((s[0] == s[1]).mean() - jaccard(a, b))
    assert abs(np.mean(differences)) < 0.02
    assert np.std(differences) < 0.07


def test_of_two_that_are_alike_the_later_goes():
    rng = random.Random(3)
    a = sentence(rng)
    b = [*a[:30], "other", *a[31:]]
    reasons, _ = decide(
        rows_of(
            ("one", " ".join(a)), ("something else", " ".join(sentence(rng))), ("one", " ".join(b))
        )
    )
    assert reasons == ["", "", "near_duplicate"]
    reasons, sides = decide(
        rows_of(("one", " ".join(a)), ("one more", " ".join(b))), near_duplicates="keep"
    )
    assert reasons == ["", ""]
    assert sides[0] == sides[1]


@pytest.mark.parametrize(
    ("word", "other"),
    [
        ("30", "15"),
        ("not", "now"),
        ("never", "ever"),
        ("2.5", "25"),
        ("without", "with"),
        ("shouldn't", "should"),
        ("can't", "can"),
        ("avoid", "use"),
    ],
)
def test_rows_that_differ_in_a_number_or_a_negation_are_no_duplicates_but_stay_together(
    word, other
):
    words = [VOCABULARY[n % 300] for n in range(240)]
    first, second = ([*words[:100], w, *words[101:]] for w in (word, other))
    for seed in range(20):
        reasons, sides = decide(
            rows_of(("how", " ".join(first)), ("how then", " ".join(second))), seed=seed
        )
        assert reasons == ["", ""]
        assert sides[0] == sides[1]


@pytest.mark.parametrize("kind", list(TERMS))
def test_rows_of_a_template_are_no_duplicates_and_stay_together(kind):
    for seed in range(5):
        reasons, sides = decide(
            rows_of(*templated(kind)), seed=seed, validation_size=0.3, test_size=0.3
        )
        assert set(reasons) == {""}
        assert kind in ("drug", "place") or len(set(sides)) == 1, "these two are less alike"


def test_rows_of_a_template_on_two_sides_are_kept():
    """Around the threshold some of them are alike and some are not, so they begin on two sides."""
    rng = random.Random(21)
    names = [f"{rng.choice(VOCABULARY)}{rng.choice(VOCABULARY)}" for _ in range(60)]
    text = templated("drug")[0][1].replace("ramipril", "{x}")
    answers = []
    for name in names:
        words = text.format(x=name).split()
        for place in rng.sample(range(len(words)), 3):
            words[place] = rng.choice(VOCABULARY)
        answers.append(" ".join(words))
    rows = rows_of(*((f"What about {x}?", a) for x, a in zip(names, answers, strict=True)))
    both = 0
    for seed in range(6):
        reasons, sides = decide(rows, seed=seed, validation_size=0.4, test_size=0.4)
        assert set(reasons) == {""}
        both += len(set(sides)) > 1
    assert both, "else this tests nothing"


def test_the_same_in_other_words_is_a_near_duplicate():
    answer = templated("place")[0][1]
    rows = rows_of(
        ("How do I look after my left knee once the plaster is off?", answer),
        ("How should I look after my left knee once the plaster is off?", answer),
        ("How do I care for a bruise?", "Cool it."),
        (
            "How do I look after my left knee once the plaster is off?",
            answer.replace("skin", "hide"),
        ),
    )
    assert decide(rows)[0] == ["", "near_duplicate", "", "near_duplicate"]


def test_a_duplicate_is_found_among_a_thousand_rows_of_its_template():
    text = templated("silent")[0][1]
    rng = random.Random(22)
    names = list(
        dict.fromkeys(rng.choice(VOCABULARY) + rng.choice(VOCABULARY) for _ in range(1200))
    )
    rows = rows_of(*((f"Can {name} be inherited?", text) for name in names))
    rows += rows_of((f"Can {names[3]} be inherited?", text.replace("usually", "mostly")))
    reasons, _ = decide(rows, answer_cap=0)
    assert set(reasons[:-1]) == {""}
    assert reasons[-1] == "near_duplicate"


def test_exact_duplicates_ignore_case_width_and_blanks():
    rows = rows_of(
        ("Q?", "An answer."),
        (" q? ", "an  ANSWER."),
        ("Ｑ?", "An\nanswer."),
        ("Q?", "Another answer."),
        ("R?", "An answer."),
    )
    assert decide(rows)[0] == ["", "exact_duplicate", "exact_duplicate", "", ""]
    assert decide(rows, skip_rules=["exact_duplicate"], near_duplicates="keep")[0] == [""] * 5


@pytest.mark.parametrize(
    ("policy", "kept"), [("all", [0, 1, 2, 3, 4]), ("first", [0, 3, 4]), ("longest", [2, 3, 4])]
)
def test_several_answers_to_a_question(policy, kept):
    conversation = rows_of(("How?", "x"))[0] + rows_of(("And?", "y"))[0]
    rows = [
        *rows_of(
            ("How?", "So."),
            ("how", "Thus it is."),
            ("HOW ?", "Thus it is done, always."),
            ("Why?", "So be it."),
        ),
        conversation,
    ]
    reasons, _ = decide(rows, same_question=policy)
    assert [n for n, r in enumerate(reasons) if not r] == kept
    assert set(reasons) <= {"", "same_question"}


def test_one_answer_under_many_questions_is_capped_and_the_first_stay():
    rows = rows_of(
        *((f"question {n} {'abcdefgh'[n]}", "See a doctor about it soon.") for n in range(8)),
        ("other", "Call."),
    )
    assert decide(rows, answer_cap=3)[0] == [""] * 3 + ["answer_repeated"] * 5 + [""]
    assert decide(rows, answer_cap=0)[0] == [""] * 9
    assert (
        decide(rows_of(*((f"is it {n} {'abcdefgh'[n]}", "yes") for n in range(8))), answer_cap=3)[0]
        == [""] * 8
    ), "a yes may answer many questions"


def test_equal_questions_stay_together_and_shares_are_right():
    rng = random.Random(4)
    rows = rows_of(*((f"Question {n % 2000} ?", " ".join(sentence(rng, 20))) for n in range(3000)))
    reasons, sides = decide(rows, near_duplicates="keep")
    assert set(reasons) == {""}
    assert all(sides[n] == sides[n + 2000] for n in range(1000))
    for side in (1, 2):
        assert sides[:2000].count(side) / 2000 == pytest.approx(0.1, abs=0.02)
    assert sides != decide(rows, seed=1, near_duplicates="keep")[1], "the seed does nothing"
    assert set(decide(rows[:50], validation_size=0.0, test_size=0.0)[1]) == {0}


@pytest.mark.parametrize("policy", ["drop", "keep"])
@pytest.mark.parametrize("seed", range(6))
def test_no_question_and_no_near_duplicate_is_on_two_sides(seed, policy):
    words = corpus(seed, 250)
    rng = random.Random(seed)
    rows = rows_of(*((f"question {rng.randrange(120)}", " ".join(w)) for w in words))
    reasons, sides = decide(rows, near_duplicates=policy, validation_size=0.2, test_size=0.2)
    kept = [n for n, r in enumerate(reasons) if not r]
    assert len({sides[n] for n in kept}) == 3
    for j in kept:
        for i in (i for i in kept if i < j):
            if rows[i][0]["content"] == rows[j][0]["content"] or jaccard(words[i], words[j]) > 0.95:
                assert sides[i] == sides[j], (i, j)


@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_appended_rows_change_no_earlier_decision(policy):
    words = corpus(9, 300)
    rng = random.Random(9)
    rows = rows_of(*((f"question {rng.randrange(150)}", " ".join(w)) for w in words))
    whole = decide(rows, near_duplicates=policy, same_question="first", answer_cap=2)
    for count in (1, 50, 173, 299):
        part = decide(rows[:count], near_duplicates=policy, same_question="first", answer_cap=2)
        assert part == (whole[0][:count], whole[1][:count])


def test_a_row_tied_to_both_sides_is_dropped():
    rng = random.Random(5)
    base = sentence(rng)
    names = {}
    for n in range(200):
        names.setdefault(decide(rows_of((f"question {n}", "x y z")))[1][0], f"question {n}")
    train, test = names[0], names[2]
    alike = [*base[:30], "7", *base[31:]]  # a number more: alike, and no duplicate
    reasons, sides = decide(
        rows_of((train, " ".join(base)), (test, " ".join(sentence(rng))), (test, " ".join(alike)))
    )
    assert reasons == ["", "", "ties_both_sides"]
    assert sides == [0, 2, -1]


def test_a_question_whose_first_row_was_dropped_still_ties_the_rows_after_it():
    names = {}
    for n in range(300):
        names.setdefault(decide(rows_of((f"question {n}", "x y z")))[1][0], []).append(
            f"question {n}"
        )
    rng = random.Random(11)
    for case in range(30):
        p, t, x = sentence(rng), sentence(rng), names[0][case + 1]
        both = [*p[:60], *t[:60]]
        rows = rows_of(
            (names[0][0], " ".join([*both[:100], "7", *both[100:]])),
            (names[2][0], " ".join([*both[:90], "8", *both[90:]])),
            (x, " ".join(both)),
            (x, " ".join(sentence(rng))),
            (x, " ".join([*sentence(rng)])),
        )
        reasons, sides = decide(rows)
        if reasons[2] == "ties_both_sides":
            assert (
                len(
                    {
                        side
                        for side, reason in zip(sides[3:], reasons[3:], strict=True)
                        if not reason
                    }
                )
                == 1
            )
            break
    else:
        raise AssertionError("no case tied both sides")


def test_every_question_of_a_conversation_ties_it():
    names = {}
    for n in range(200):
        names.setdefault(decide(rows_of((f"question {n}", "x y z")))[1][0], f"question {n}")
    rng = random.Random(12)
    test, train = (
        rows_of((names[2], " ".join(sentence(rng)))),
        rows_of((names[0], " ".join(sentence(rng)))),
    )
    conversation = train[0] + [
        {"role": "user", "content": names[2].upper()},
        {"role": "assistant", "content": "As before."},
    ]
    assert decide([*test, conversation]) == (["", ""], [2, 2])
    assert decide([*test, *train, conversation]) == (["", "", "ties_both_sides"], [2, 0, -1])


@pytest.mark.slow
def test_memory_of_the_placing_is_bounded_where_all_rows_are_alike():
    import tracemalloc

    rng, rows = random.Random(13), []
    base = sentence(rng, 80)
    for n in range(1500):
        rows.append(
            [
                {"role": "user", "content": "how"},
                {"role": "assistant", "content": " ".join([*base[:40], str(n), *base[41:]])},
            ]
        )
    columns, later, row_files = columns_of(rows)
    made = duplicates.Decisions(len(rows))
    tracemalloc.start()
    duplicates.assign_sides(columns, row_files, later, job(), made)
    peak = tracemalloc.get_traced_memory()[1] / len(rows)
    tracemalloc.stop()
    assert len(set(made.side.tolist())) == 1
    assert peak < 1500, f"{peak:.0f} bytes a row"


def test_rows_that_train_other_answers_of_one_conversation_are_not_duplicates():
    """One conversation unfolded: each row masks all answers but one."""
    words = "press firmly on the wound with both hands and do not let go until help is there"
    turns = [
        {"role": role, "content": f"{words} {n}"}
        for n, role in enumerate(("user", "assistant") * 3)
    ]

    def masking(*places):
        return [{**t, "masked": "yes"} if n in places else t for n, t in enumerate(turns)]

    keys = [duplicates.comparison_keys(row) for row in (turns, masking(1, 3), masking(1, 5))]
    assert len({own["exact"] for own in keys}) == len({own["vital"] for own in keys}) == 3
    assert len({own["question"] for own in keys}) == 1
    again = duplicates.comparison_keys(masking(1, 3))
    assert (again["exact"], again["vital"]) == (keys[1]["exact"], keys[1]["vital"])
