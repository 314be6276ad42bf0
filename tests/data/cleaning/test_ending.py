r"""Where an over-long answer may end: what stays must advise what the whole answer advises.

python -m pytest tests/data/cleaning/test_ending.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.odd_texts import any_of
from lib.data.cleaning.ending import find_endings

ADVICE = "Sit the person down. Loosen the collar. Open a window."


def endings(answer, room=None):
    """Return the possible rests of an answer, the longest first, without the whole of it."""
    places = find_endings(answer, len(answer) if room is None else room)
    return [answer[:end] for end in places if end < len(answer.rstrip())]


def test_plain_advice_may_end_after_each_of_its_sentences():
    first, second = "Sit the person down.", "Sit the person down. Loosen the collar."
    assert endings(ADVICE) == [second, first]
    assert endings(ADVICE, room=30) == [first]


LIMITED = [
    "Give aspirin. But not if the person is allergic.",
    "Give aspirin. Wait a while. Do not give it to a child.",
    "Give aspirin. Wait a while. Children get none.",
    "Give two puffs. Shake it well. The maximum is ten puffs.",
    "Lay the person flat. Raise the legs. Unless a leg is broken.",
    "Put butter on the burn, people say. This is a myth.",
    "Some people say that butter soothes. It smells. In fact it traps heat.",
    "Rest at home. Sleep a lot. See a doctor when it gets worse.",
    "Rest at home. Sleep a lot. Call an ambulance for chest pain.",
    "Press on the wound. Hold it there. Then tie a bandage.",
    "Cool the burn. Use water. Never use ice.",
    "Take one tablet. Drink water with it. Pregnant women take half.",
    "There are three parts. One is here. One is there. One is below.",
    "On the one hand it is red. The colour fades. It is blue as well.",
    "It grows in water. However, it dies in salt.",
    "The first stage is short. Second, it spreads",
]


@pytest.mark.parametrize("answer", LIMITED)
def test_nothing_is_left_that_the_rest_limits_denies_or_goes_on_with(answer):
    assert endings(answer) == []


ABBREVIATIONS = [
    "e.g.", "i.e.", "approx.", "max.", "min.", "Max.", "cf.", "Dr.", "Prof.", "i.v.", "i.m.", "p.o.", "p.r.n.",
    "b.i.d.", "vs.", "etc.", "No.", "Fig.", "vit.", "Temp.", "incl.", "resp.", "St.", "tab.", "mins.", "3.", "ca.",
]  # fmt: skip


@pytest.mark.parametrize("word", ABBREVIATIONS)
@pytest.mark.parametrize("follower", ["Ibuprofen is one", "ibuprofen is one", "5 of them"])
def test_no_answer_ends_in_an_abbreviation(word, follower):
    answer = f"The sort is known. It comes as {word} {follower} of the sort. It is old."
    assert not any(rest.endswith(word) for rest in endings(answer))
    assert endings(answer)[-1] == "The sort is known."


def test_a_heading_a_list_and_what_leads_to_it_stay_whole():
    listed = "It is common.\n\nThe causes are many.\n- heat\n- cold\n\nIt is old. It is rare."
    assert endings(listed) == [
        "It is common.\n\nThe causes are many.\n- heat\n- cold\n\nIt is old.",
        "It is common.\n\nThe causes are many.\n- heat\n- cold",
        "It is common.",
    ]
    assert endings("It is rare.\n\n## History\nIt is old. It is long.") == [
        "It is rare.\n\n## History\nIt is old.",
        "It is rare.",
    ]
    assert endings("It is rare.\n| a | b |\n| c | d |\nIt is old.")[0].endswith("d |")
    for heading in (
        "## Never do this",
        "**Do not**",
        "Avoid:",
        "Do NOT do these.",
        "What not to do",
    ):
        answer = f"Rest at home. Sleep.\n\n{heading}\n- drink. Really.\n- drive\n\nIt is old. It is long."
        assert endings(answer) == []


@pytest.mark.parametrize(
    "answer",
    [
        "The name (see below. It is old) is long",
        'He said "it is old. It is long"',
        "**It is old. It is long**",
        "Is it old? Is it long?",
        "```\nIt is old. It is\n```",
    ],
)
def test_nothing_ends_within_brackets_quotations_or_after_a_question(answer):
    assert endings(answer) == []


@any_of
@given(
    st.lists(
        st.sampled_from(
            [
                *ADVICE.split(". "),
                "It is old",
                "Never",
                "not",
                "but",
                "e.g",
                "\n",
                "\n- ",
                "5 mg",
                "(",
                ")",
            ]
        ),
        max_size=20,
    ).map(". ".join),
    st.integers(0, 200),
)
def test_an_ending_is_a_beginning_of_the_answer_within_its_room(answer, room):
    places = list(find_endings(answer, room))
    assert places == sorted(places, reverse=True)
    for end in places:
        assert 0 < end <= room
        assert answer[:end] == answer[:end].rstrip()
        rest = answer[end:].lower()
        has_limit = any(
            word in rest.split() for word in ("not", "never", "but", "not.", "never.", "but.")
        )
        assert not (has_limit and "sit the" in answer[:end].lower())


@pytest.mark.parametrize(
    "sign",
    ["a. ", "\n", "- a\n", "## Never\n", "(", "It is old. ", "not ", "e.g. ", "a", '"', "a:\n"],
)
def test_no_answer_takes_more_than_linear_time(sign):
    answer = sign * (200_000 // len(sign))
    next(find_endings(answer, 20_000), None)
