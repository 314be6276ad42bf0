"""A tokenizer.model made from tokenizer.json gives the same ids, or is not made.

python -m pytest tests/export/base_needs/test_tokenizer_model.py
"""

import json
import random
import shutil

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer

from helpers import odd_texts, tiny_gemma3n
from lib.export.base_needs import tokenizer_model
from lib.export.base_needs.tokenizer_model import SPACE, CannotMake

CONTROL = ("<pad>", "<eos>", "<bos>", "<unk>", *tiny_gemma3n.CONTROL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_gemma3n.build_tokenizer(folder)
    return folder


def edited(folder, target, change):
    """Copy a tokenizer's files, and pass its tokenizer.json through `change`."""
    shutil.copytree(folder, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    change(tokenizer)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def shuffle_merges(tokenizer):
    """Give the pieces another order, and so other ids for the same texts."""
    groups = {}
    for left, right in tokenizer["model"]["merges"]:
        groups.setdefault(left + right, []).append([left, right])
    ordered = list(groups.values())
    random.Random(4).shuffle(ordered)
    tokenizer["model"]["merges"] = [pair for group in ordered for pair in group]


@pytest.fixture(scope="module")
def pairs(folder, tmp_path_factory):
    """Return (made, fast) of the tiny tokenizer, and of one whose pieces merge in another order."""
    other = edited(folder, tmp_path_factory.mktemp("other") / "shuffled", shuffle_merges)
    return [
        (
            SentencePieceProcessor(model_proto=tokenizer_model.make(each)),
            Tokenizer.from_file(str(each / "tokenizer.json")),
        )
        for each in (folder, other)
    ]


@settings(max_examples=300, deadline=None)
@given(text=odd_texts.texts)
def test_what_is_made_gives_the_same_ids_for_any_text(pairs, text):
    """Control tokens are found in texts by llama.cpp, not by sentencepiece; U+2581 is its space."""
    assume(SPACE not in text and not any(token in text for token in CONTROL))
    for made, fast in pairs:
        assert made.encode(text) == fast.encode(text, add_special_tokens=False).ids


def test_the_pieces_and_their_kinds_are_those_of_the_original_file(folder, pairs):
    made = pairs[0][0]
    original = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    for name in ("id_to_piece", "is_control", "is_byte", "is_unknown"):
        ours, theirs = ([getattr(p, name)(n) for n in range(2048)] for p in (made, original))
        assert ours == theirs, name
    letters = random.Random(1)
    texts = ["".join(letters.choices("aeinrst", k=12)) for _ in range(200)]
    assert pairs[1][0].encode(texts) != made.encode(texts), "the other order is seen in the ids"


def _byte_level(t):
    t["pre_tokenizer"] = {"type": "ByteLevel"}


def _drop_a_split(t):
    merges = t["model"]["merges"]
    twice = {}
    for pair in merges:
        twice.setdefault("".join(pair), []).append(pair)
    merges.remove(next(group[0] for group in twice.values() if len(group) > 1))


def _tear_apart(t):
    merges = t["model"]["merges"]
    merges.append(
        next(a for a, b in zip(merges, merges[1:], strict=False) if a[0] + a[1] == "".join(b))
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_byte_level, r"it splits texts before merging \(ByteLevel\)"),
        (lambda t: t["model"].update(type="Unigram"), "its model is Unigram"),
        (lambda t: t["model"].update(byte_fallback=False), "without byte fallback"),
        (lambda t: t["model"].update(ignore_merges=True), "sets ignore_merges"),
        (lambda t: t.update(normalizer={"type": "NFKC"}), "its normaliser does more"),
        (lambda t: t["added_tokens"][4].update(lstrip=True), "'<mask>' takes the spaces around"),
        (lambda t: t["model"]["vocab"].update(new=9000), "its 2049 ids are not 0 to 2048"),
        (lambda t: t["model"]["vocab"].update({" ": 2048}), "it has the token '\u2581' twice"),
        (_drop_a_split, r"its merges into .* are 1 of 2 possible ones"),
        (_tear_apart, "do not follow each other"),
    ],
)
def test_what_sentencepiece_cannot_say_is_not_made(folder, tmp_path, change, reason):
    with pytest.raises(CannotMake, match=reason):
        tokenizer_model.make(edited(folder, tmp_path / "odd", change))


def test_a_byte_under_another_name_is_the_same_piece(folder, tmp_path):
    """As transformers names Gemma's byte 9."""

    def name_tab(t):
        t["model"]["vocab"]["\t"] = t["model"]["vocab"].pop("<0x09>")

    assert tokenizer_model.find_strangers(edited(folder, tmp_path / "tab", name_tab)) == []


def test_a_model_that_differs_in_ids_is_not_made(folder, tmp_path, monkeypatch):
    """Planted: a score that is not the merge's place."""
    score = tokenizer_model._score_pieces
    monkeypatch.setattr(
        tokenizer_model, "_score_pieces", lambda m: {k: -v for k, v in score(m).items()}
    )
    with pytest.raises(CannotMake, match="gives other ids for"):
        tokenizer_model.make(folder)


@given(st.integers(300, 2000), st.integers(300, 2000))
@settings(max_examples=5, deadline=None)
def test_the_tokenizer_model_of_another_vocabulary_is_found(folder, tmp_path_factory, one, two):
    def swap(t):
        vocabulary = t["model"]["vocab"]
        names = {number: piece for piece, number in vocabulary.items()}
        vocabulary[names[one]], vocabulary[names[two]] = two, one

    target = tmp_path_factory.mktemp("swapped") / "t"
    assert tokenizer_model.find_strangers(folder) == []
    strangers = tokenizer_model.find_strangers(edited(folder, target, swap))
    assert len(strangers) == (2 if one != two else 0)
