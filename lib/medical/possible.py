"""Tell quickly which harmful acts a text can be about: most training rows are about none.

possible.possible_phrases("Metformin lowers blood sugar.")   # []

Each list of words of acts.yaml is one bit, so a text is one number: the bits of the lists of which
it has a word. A phrase needs the bits of all its parts, in the text and within one sentence.
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

from lib.medical.acts import PRONOUNS, Act, Phrase, Place, load_acts, options_of, read_file
from lib.medical.stems import stem

_WORD = re.compile(r"a ?& ?e\b|[a-z0-9]+(?:'[a-z]+)?")
Part = frozenset[str]  # stems, or beginnings with `*`, of which a part of a phrase has one


class Hinted(NamedTuple):
    """A phrase of an act, and the bits that a text and a sentence with it have."""

    phrase: Phrase
    bits: int
    of_sentence: int


class Hints(NamedTuple):
    """Bits of which a text has some if a harmful act can be in it."""

    act: Act
    about: int
    phrases: tuple[Hinted, ...]  # all bits of one of these
    refused: tuple[int, ...]  # or of one of these
    named: int  # or one of the things that are enough


class Table(NamedTuple):
    """The hints of all harmful acts, and the bits of stems."""

    hints: list[Hints]
    words: dict[str, int]
    beginnings: list[tuple[str, int]]


@functools.cache
def _table() -> Table:
    lists = read_file()["lists"]
    bits: dict[Part, int] = {}

    def part(slot: str) -> int:
        return bit(_hints_of(slot, lists))

    def bit(stems: Part) -> int:
        return bits.setdefault(stems, 1 << len(bits))

    def parts(phrase: str) -> int:
        slots = [slot.strip() for slot in phrase.split("..")]
        # a thing in braces may be "it", and named elsewhere
        return functools.reduce(int.__or__, (part(s) for s in slots if not s.startswith("{")), 0)

    def hinted(phrase: Phrase, said: str) -> Hinted:
        slots = [slot.strip() for slot in said.split("..")]
        things = (
            bit(_hints_of(slot.strip("{} "), lists).union(PRONOUNS))
            for slot in slots
            if "{" in slot
        )
        bits = parts(said)
        return Hinted(phrase, bits, functools.reduce(int.__or__, things, bits))

    def things(act: Act) -> int:
        slots = [slot.strip() for phrase in act.entry["said"] for slot in phrase.split("..")]
        named = (slot.strip("{} ") for slot in slots if "{" in slot)
        return functools.reduce(int.__or__, map(part, named), 0)

    hints = [
        Hints(
            act,
            part(act.entry["about"]) if act.about else 0,
            tuple(map(hinted, act.phrases, act.entry["said"])),
            tuple(map(parts, act.entry.get("no_to", []))),
            things(act) if act.by_name else 0,
        )
        for act in load_acts().values()
        if act.harm
    ]
    words: dict[str, int] = {}
    for stems, own in bits.items():
        for word in stems:
            words[word] = words.get(word, 0) | own
    beginnings = [(word[:-1], own) for word, own in words.items() if word.endswith("*")]
    return Table(hints, words, beginnings)


def _hints_of(slot: str, lists: dict[str, str]) -> Part:
    return frozenset(_hint(option) for option in options_of(slot, lists))


def _hint(option: str) -> str:
    word = next((word for word in option.replace("-", " ").split() if word != "_"), "")
    return word if word.endswith("*") else stem(word)


@functools.lru_cache(maxsize=200_000)
def _bits_of_stem(stemmed: str) -> int:
    """Return the bits of the lists that have a stem, or a beginning of it."""
    _, words, beginnings = _table()
    bits = words.get(stemmed, 0)
    for beginning, own in beginnings:
        if stemmed.startswith(beginning):
            bits |= own
    return bits


@functools.lru_cache(maxsize=200_000)
def _bits_of_word(word: str) -> int:
    return _bits_of_stem(stem(word))


def possible_phrases(text: str) -> list[tuple[Hints, list[Hinted]]]:
    """Return the harmful acts that a text can be about, with those phrases that it can have."""
    bits = 0
    for word in set(_WORD.findall(text.lower().replace("’", "'"))):
        bits |= _bits_of_word(word)
    found = []
    for hints in _table().hints:
        if hints.about and not bits & hints.about:
            continue
        phrases = [hinted for hinted in hints.phrases if bits & hinted.bits == hinted.bits]
        if phrases or bits & hints.named or any(bits & own == own for own in hints.refused):
            found.append((hints, phrases))
    return found


def mark_stems(stems: str) -> int:
    """Return the bits of a sentence, given by its stems."""
    bits = 0
    for stemmed in set(stems.split()):
        bits |= _bits_of_stem(stemmed)
    return bits


class Marks(NamedTuple):
    """The bits of a sentence, and of all that tells what it is about.

    That is the sentence, the one before, and the question.
    """

    own: int
    around: int


def mark_places(places: Sequence[Place]) -> list[Marks]:
    """Return the bits of an answer's sentences."""
    asked = mark_stems(places[0].question) if places else 0
    known: dict[str, int] = {}
    for place in places:
        for stems in (place.before, place.sentence.stems):
            if stems not in known:
                known[stems] = mark_stems(stems)
    return [
        Marks(own := known[place.sentence.stems], own | known[place.before] | asked)
        for place in places
    ]


def phrases_by_sentence(
    about: int, phrases: Sequence[Hinted], marks: Sequence[Marks]
) -> dict[int, list[Phrase]]:
    """Return which of an act's phrases each sentence can have, if it can have any.

    `about` are the bits of which the sentence, or what is around it, has one.
    """
    found: dict[int, list[Phrase]] = {}
    near = [
        (number, own) for number, (own, around) in enumerate(marks) if around & about or not about
    ]
    for phrase, _, bits in phrases:
        for number in [number for number, own in near if own & bits == bits]:
            found.setdefault(number, []).append(phrase)
    return found
