"""Texts as words: variants of a text are equal, and a normalised text stays as it is.

python -m pytest tests/common/test_words.py
"""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from helpers.odd_texts import any_of, any_text
from lib.common import words
from lib.common.words import words_of


@any_of
@given(st.one_of(any_text, st.text()))
def test_normalised_texts_are_equal_for_variants_and_stay_as_they_are(text):
    plain = words.normalised(text)
    assert words.normalised(plain) == plain
    assert plain == plain.strip()
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words.normalised(unicodedata.normalize(form, text)) == plain, form
    assert words.normalised(text.casefold()) == plain
    assert words.normalised("\n " + text.replace(" ", " \t\u00a0") + " ") == plain


def test_normalised_settles_every_character():
    for n in range(0x110000):
        once = words.normalised(chr(n))
        assert words.normalised(once) == once, hex(n)
    assert words.normalised("ᾳ\u0308") == words.normalised(words.normalised("ᾳ\u0308")), (
        "what folding case takes apart, NFKC puts together again"
    )
    assert (
        words.normalised("ＡＢＣ\u00a0Straße ﬁ №")
        == words.normalised("abc  STRASSE FI no")
        == "abc strasse fi no"
    )
    assert words_of("BP: 120/80, O₂!") == ["bp", "120", "80", "o2"]
