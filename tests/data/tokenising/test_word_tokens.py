"""Texts encoded word by word, and decoded token by token, compared with the tokenizer itself.

python -m pytest tests/data/tokenising/test_word_tokens.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.data import chat
from lib.data.tokenising import word_tokens
from lib.data.tokenising.word_tokens import Pieces, WordTokens

TEXTS = [
    "<bos><start_of_turn>user\nWhat is asthma?<end_of_turn>\n<start_of_turn>model\nA disease.",
    "  two   blanks,\n\n\n a list:\n   - <b>one</b>\n\t- two  ",
    "naïve Sjögren 五 👩‍⚕️ 🇫🇷 \ue000 \x01 <unused12> [multimodal] 5 mg/kg",
    "",
    " ",
]


@pytest.fixture(scope="module")
def tokenizer(bundled_base):
    return chat.load_chat(bundled_base).tokenizer


@pytest.fixture(scope="module")
def words(tokenizer):
    return WordTokens.of(tokenizer)


def whole(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def test_ids_are_those_of_the_whole_text(tokenizer, words):
    for _ in range(2):  # new words, then known ones
        assert words.encode_all(TEXTS) == [whole(tokenizer, text) for text in TEXTS]


@given(st.lists(st.text(alphabet="ab é五🙂\n\t.<>/-0123>▁ ", max_size=30), max_size=4))
def test_any_text_has_its_ids_or_none(tokenizer, words, texts):
    for text, ids in zip(texts, words.encode_all(texts), strict=True):
        assert ids in (None, whole(tokenizer, text))


def test_a_text_that_is_no_sum_of_its_words_is_left(words):
    assert words.encode_all(["a \u2581 b", "x> </y"]) == [None, None]


def test_words_are_forgotten_before_they_take_much_memory(tokenizer, monkeypatch):
    monkeypatch.setattr(word_tokens, "MOST_KNOWN", 3)
    words = WordTokens.of(tokenizer)
    for text in ("one two three", "two three four", "five"):
        assert words.encode_all([text]) == [whole(tokenizer, text)]
        assert len(words.known) <= 3


def test_pieces_decode_as_the_tokenizer(tokenizer):
    pieces = Pieces.of(tokenizer)
    for text in TEXTS:
        ids = whole(tokenizer, text)
        own = [pieces[token] for token in ids]
        if None not in own:
            assert "".join(own) == tokenizer.decode(ids, skip_special_tokens=False)
    assert pieces[tokenizer.token_to_id("<0xE2>")] is None


def test_another_tokenizer_is_not_taken_apart():
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    other = Tokenizer(models.BPE())
    other.normalizer = normalizers.Replace(" ", "\u2581")
    other.pre_tokenizer = pre_tokenizers.ByteLevel()
    other.decoder = decoders.ByteLevel()
    assert WordTokens.of(other) is None
    assert Pieces.of(other) is None
    other.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    assert word_tokens._state(other.pre_tokenizer) in word_tokens.CUTS
    assert WordTokens.of(other) is None  # without a token for each byte
