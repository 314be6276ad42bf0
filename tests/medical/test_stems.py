"""Word stems: one form for all forms of a word, and places that lead back to the sentence.

python -m pytest tests/medical/test_stems.py
"""

from hypothesis import given
from hypothesis import strategies as st

from lib.medical.stems import stem, stem_sentence


def test_forms_of_a_word_are_one():
    for words in (
        "press presses pressed pressing",
        "rub rubs rubbed rubbing",
        "take takes took taken taking",
        "twenty 20",
        "mins minute minutes",
        "don't dont",
    ):
        assert len({stem(word) for word in words.split()}) == 1, words


def test_words_that_only_look_like_forms_keep_apart():
    for one, other in (("aed", "a"), ("drunk", "drink"), ("ice", "icing"), ("one", "1")):
        assert (stem(one) == stem(other)) == ((one, other) == ("ice", "icing")), one


def test_tokens_stand_between_single_spaces():
    assert stem_sentence("Go to A&E (now) - rum'll burn, 5–6 cm").stems == (
        " go to a&e ( now ) - rum burn , 5 – 6 cm "
    )


@given(st.text(alphabet="ab 'é&.,!-—(12\n", max_size=60))
def test_every_place_leads_back(text):
    sentence = stem_sentence(text)
    assert sentence.stems.startswith(" ")
    assert sentence.stems == f" {' '.join(sentence.stems.split())} ".replace("  ", " ")
    for number, place in enumerate(sentence.at_stems):
        assert sentence.start(place) == sentence.at_plain[number]
        end = sentence.stems.index(" ", place)
        assert sentence.end(end) == sentence.ends_plain[number]
