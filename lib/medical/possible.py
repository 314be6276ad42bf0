"""Tell quickly which harmful acts a text can be about: most training rows are about none.

possible.possible_phrases("Metformin lowers blood sugar.")   # []
"""

import functools
import re
from typing import NamedTuple

from lib.medical.acts import Act, Phrase, load_acts, options_of, read_file
from lib.medical.stems import stem

_WORD = re.compile(r"a ?& ?e\b|[a-z0-9]+(?:'[a-z]+)?")


class Hints(NamedTuple):
    """Stems of which a text has some if a harmful act can be in it."""

    act: Act
    about: frozenset[str]
    phrases: tuple[tuple[frozenset[str], ...], ...]  # one of these, by a stem of each part
    refused: tuple[tuple[frozenset[str], ...], ...]  # or one of these
    named: frozenset[str]  # or one of the things that are enough


@functools.cache
def _hints() -> list[Hints]:
    lists = read_file()["lists"]

    def stems(slot: str) -> frozenset[str]:
        return frozenset(_hint(option) for option in options_of(slot, lists))

    def parts(phrase: str) -> tuple[frozenset[str], ...]:
        slots = [slot.strip() for slot in phrase.split("..")]
        return tuple(stems(slot) for slot in slots if not slot.startswith("{"))  # may be "it"

    def things(act: Act) -> frozenset[str]:
        slots = [slot.strip() for phrase in act.entry["said"] for slot in phrase.split("..")]
        return frozenset().union(*(stems(slot.strip("{} ")) for slot in slots if "{" in slot))

    return [
        Hints(
            act,
            stems(act.entry.get("about", "")),
            tuple(map(parts, act.entry["said"])),
            tuple(map(parts, act.entry.get("no_to", []))),
            things(act) if act.by_name else frozenset(),
        )
        for act in load_acts().values()
        if act.harm
    ]


def _hint(option: str) -> str:
    word = next((word for word in option.replace("-", " ").split() if word != "_"), "")
    return word if word.endswith("*") else stem(word)


@functools.cache
def _beginnings() -> tuple[str, ...]:
    stems = [stem for hints in _hints() for stem in hints.about]
    phrases = [parts for hints in _hints() for parts in hints.phrases + hints.refused]
    stems += [stem for parts in phrases for part in parts for stem in part]
    return tuple({stem[:-1] for stem in stems if stem.endswith("*")})


@functools.lru_cache(maxsize=200_000)
def _marks(word: str) -> frozenset[str]:
    """Return a word's stem and the beginnings with `*` that it has."""
    stemmed = stem(word)
    return frozenset(
        [stemmed, *(f"{start}*" for start in _beginnings() if stemmed.startswith(start))]
    )


def possible_phrases(text: str) -> list[tuple[Act, tuple[Phrase, ...]]]:
    """Return the harmful acts that a text can be about, with those phrases that it can have."""
    words = set(_WORD.findall(text.lower().replace("’", "'")))
    marks = set().union(*(_marks(word) for word in words))
    found = []
    for hints in _hints():
        if hints.act.about and marks.isdisjoint(hints.about):
            continue
        phrases = tuple(
            phrase
            for phrase, parts in zip(hints.act.phrases, hints.phrases, strict=True)
            if not any(marks.isdisjoint(part) for part in parts)
        )
        refused = any(not any(marks.isdisjoint(part) for part in parts) for parts in hints.refused)
        if phrases or refused or not marks.isdisjoint(hints.named):
            found.append((hints.act, phrases))
    return found
