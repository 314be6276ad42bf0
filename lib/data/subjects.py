"""What a row's question is about, and whether two rows that are much alike state different facts.

Rows of one template are alike in nearly all words, and differ in the one that matters: the drug,
the side, the age, hypo- or hyper-.
"""

import functools
import hashlib
import os
import pathlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

# Words in which rows that are one fact must agree: numbers, negations and opposites
NEGATIONS = "no not nor none never avoid\\w* cannot without unless except"
OPPOSITES = r"""
    left right before after until upper lower above below inside outside hot cold
    warm(er)? cool(er)? high(er|est)? low(est)? more less most least minimum maximum
    start(s|ed|ing)? stop(s|ped|ping)?
    increas\w+ decreas\w+ rais(e|es|ed|ing) reduc\w+ elevat\w+ positive negative
    adults? child children infants? bab(y|ies) newborns? toddlers? pregnan\w+ breastfe\w+
    m[ae]n wom[ae]n males? females? boys? girls?
    hyper\w+ hypo\w+ brady\w+ tachy\w+ intra\w+ extra\w+ pre post acute(ly)? chronic(ally)?
    conscious(ness)? unconscious(ness)? systolic diastolic dominant recessive benign malignant
    anterior posterior proximal distal medial lateral superior inferior agonists? antagonists?
    oral(ly)? rectal(ly)? nasal(ly)? topical(ly)? inhal\w+ swallow\w* sublingual(ly)?
    subcutaneous(ly)? intravenous(ly)? intramuscular(ly)?
"""
VITAL = re.compile("|".join([r"\w*\d\w*", *NEGATIONS.split(), *OPPOSITES.split()]))

# a term is a hash of 28 bits; the bits below it count it and mark vital words
NUMBER = 0xFFFFFFF0
IS_VITAL = 8
MOST = 7
NO_TERM = 0
# a term that one answer repeats and the other never has is what this answer is about
REPEATED = 2
ACCENTS = re.compile("[\u0300-\u036f]")
IRREGULAR = {
    "children": "child",
    "women": "woman",
    "men": "man",
    "feet": "foot",
    "teeth": "tooth",
    "treatment": "treat",
    "treatments": "treat",
    "prevention": "prevent",
    "diagnosis": "diagnose",
    "inheritance": "inherit",
}


def fold(word: str) -> str:
    """Return a word without plural, -ed, -ing, a final e and accents, in one spelling.

    It joins "treats" and "treated", "haemorrhage" and "hemorrhage", "-ise" and "-ize", and must not
    join two facts.
    """
    if not word.isascii():
        word = ACCENTS.sub("", unicodedata.normalize("NFD", word))
    word = IRREGULAR.get(word, word)
    word = word.replace("ae", "e").replace("oe", "e").replace("z", "s")
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-2] if word.endswith(("sses", "ches", "shes", "xes")) else word[:-1]
    for ending in ("ing", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 4:
            word = word[: -len(ending)]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word


# words that ask and join, on which no fact turns
ASKING = frozenset(
    map(
        fold,
        """
    a about again all also am an and any anyone are as at be because been being both but by can
    could did do does doing done each either else every for from further get gets getting give given
    go going good had has have having he her here him his how i if in into is it its itself just let
    like ll make makes many may me might much must my need needed needs of on one or other our ours
    out over own people person please put re s say see shall she should so some somebody someone
    something such t take taken tell than that the their them then there these they thing things
    this those through to too try up us use used useful using ve very was way ways we well were what
    when where which while who whom whose why will with would you your yourself answer ask best
    better correct correctly deal describe detail details difference discuss ensure expect explain
    exactly find general happen happens help helpful important information involve know known handle
    manage managed management mean means medical occur outline overview possible proper properly
    provide question reason reasons recommend recommended respond role show situation step steps
    suggest talk understand want word words wonder
    """.split(),
    )
)


# words that say what a question wants to know of its subject
INTENTS = """
    affect call care cause change chance common contact cure develop diagnose
    factor frequent gene genetic inherit main many mutation number
    often outlook prevalence prevent prognosis related research risk seek sign sort stage
    symptom test therapy treat trial type typical urgent warning
""".split()


@functools.lru_cache(2**17)
def _number_term(word: str) -> int:
    """Return the number of a word's term, with IS_VITAL; NO_TERM for a word that only asks."""
    term = fold(word)
    if term in ASKING:
        return NO_TERM
    digest = hashlib.blake2b(term.encode(), digest_size=4).digest()
    number = int.from_bytes(digest, "little") & NUMBER
    return number | IS_VITAL if VITAL.fullmatch(word) else number


INTENT_NUMBERS = frozenset(_number_term(word) & NUMBER for word in INTENTS)


@functools.lru_cache(2**17)
def _fold_vital(word: str) -> str:
    return fold(word) if VITAL.fullmatch(word) else ""


def vital_words(words: list[str]) -> list[str]:
    """Return the numbers, negations and opposites among words, folded, in order.

    "don't" is two words here, don and t, and the same as "do not".
    """
    if "t" not in words and "cannot" not in words:
        return list(filter(None, map(_fold_vital, words)))
    found = []
    before = ""
    for word in words:
        if word == "cannot" or (word == "t" and before.endswith("n")):
            found.append("not")
        elif vital := _fold_vital(word):
            found.append(vital)
        before = word
    return found


def pack_terms(asked: Iterable[str], told: Iterable[str]) -> bytes:
    """Return the terms of a row's questions and answers as uint32, about 300 bytes.

    First how many terms the questions have, then these, then those of the answers, each with its
    count in the lowest bits.
    """
    questions = sorted({_number_term(word) & NUMBER for word in set(asked)} - {NO_TERM})
    counts: Counter[int] = Counter()
    for word, count in Counter(told).items():
        counts[_number_term(word)] += count
    del counts[NO_TERM]
    answers = sorted(term | min(count, MOST) for term, count in counts.items())
    return np.array([len(questions), *questions, *answers], np.uint32).tobytes()


class Terms(NamedTuple):
    """What a row is about: the terms of its questions, and those of its answers with counts."""

    asked: frozenset[int]
    told: frozenset[int]


def unpack_terms(packed: bytes) -> Terms:
    """Return the terms that `pack_terms` packed."""
    numbers = np.frombuffer(packed, np.uint32).tolist()
    end = 1 + numbers[0]
    return Terms(frozenset(numbers[1:end]), frozenset(numbers[end:]))


class TermsFile:
    """The packed terms of all rows in a file, read row by row.

    It is not mapped into memory: mapped pages count as this process's memory.
    """

    def __init__(self, path: pathlib.Path, ends: np.ndarray) -> None:
        self.file = os.open(path, os.O_RDONLY)
        self.ends = ends
        self.read = functools.lru_cache(4096)(self._read)

    def close(self) -> None:
        """Close the file."""
        os.close(self.file)

    def _read(self, row: int) -> Terms:
        start = int(self.ends[row - 1]) if row else 0
        return unpack_terms(os.pread(self.file, int(self.ends[row]) - start, start))


# -------------------------------------------------------------------------------------------------
# rules


def answers_turn_on_question(one: Terms, other: Terms) -> bool:
    """Tell whether each question has a term of its own that its answer uses more than the other.

    Both sides must: a copy of half an answer only lacks terms. Words like "symptoms" and "causes"
    count for nothing here: under both, one text on one disease is the same.
    """
    own = {term & NUMBER for term in one.told - other.told} - INTENT_NUMBERS
    others = {term & NUMBER for term in other.told - one.told} - INTENT_NUMBERS
    return bool(own & (one.asked - other.asked) and others & (other.asked - one.asked))


def contains_question(one: Terms, other: Terms) -> bool:
    """Tell whether `one` asks all that `other` asks, and nothing else about its subject."""
    return other.asked <= one.asked and not (one.asked - other.asked) & INTENT_NUMBERS


def differ_in_vital_terms(one: Terms, other: Terms) -> bool:
    """Tell whether two rows ask about different things, and answer with other vital terms.

    Each answer has a number, negation or opposite that the other lacks ("high", "low"), or repeats
    a term that the other never has. This says something only of answers that are otherwise alike.
    """
    if one.asked - INTENT_NUMBERS == other.asked - INTENT_NUMBERS:
        return False
    only = (one.told - other.told, other.told - one.told)
    return all(any(term & IS_VITAL for term in terms) for terms in only) or _is_swapped(one, other)


def _is_swapped(one: Terms, other: Terms) -> bool:
    """Tell whether each answer repeats a term that the other never has."""
    return bool(_list_repeated(one, other) and _list_repeated(other, one))


def _list_repeated(one: Terms, other: Terms) -> set[int]:
    """Return the terms that the answer of `one` repeats and that of `other` never has."""
    repeated = {term & NUMBER for term in one.told if term & MOST >= REPEATED}
    return repeated - {term & NUMBER for term in other.told}


def state_same_fact(one: Terms, other: Terms) -> bool:
    """Tell whether two rows that are much alike state one fact, so that one of them is enough.

    Their questions have the same terms, or other names for one thing: each has terms of its own,
    and both answers have all of these, equally often. If neither answer has one ("Is Sandhoff
    disease inherited?"), it speaks of it without its name. If only one question has terms of its
    own, its subject is narrower.
    """
    if _is_swapped(one, other):
        return False
    own, others = one.asked - other.asked, other.asked - one.asked
    if not own and not others:
        return True
    equally_used = {term & NUMBER for term in one.told & other.told} - INTENT_NUMBERS
    return bool(own and others) and own | others <= equally_used
