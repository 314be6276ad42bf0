"""Bring sentences and the phrases of acts.yaml to the same word stems.

    stem_sentence("Keep pressing for twenty minutes.").stems   # " keep press for 20 minut . "

snowballstemmer takes endings off; what it cannot know (irregular verbs, numbers in words, a few
spellings of messages typed in haste) is listed here. Every token stands between single spaces, so
that a pattern can begin and end at a space.
"""

import bisect
import functools
import re

import snowballstemmer

from lib.medical.wording import plain_text

_TOKEN = re.compile(r"\ba ?& ?e\b|[^\W_]+(?:'[a-z]+)?|[.,;:!?()–—…]|\s-\s|°")
_STEM = re.compile(r"[^ ]+")
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve".split()
    )
    if word not in ("zero", "one")  # "one" is mostly a pronoun
} | {"fifteen": "15", "twenty": "20", "thirty": "30", "forty": "40", "sixty": "60"}
_SPELLINGS = {
    "mins": "minutes",
    "min": "minutes",
    "hrs": "hours",
    "secs": "seconds",
    "gave": "give",
    "given": "give",
    "took": "take",
    "taken": "take",
    "laid": "lay",
    "lain": "lie",
    "held": "hold",
    "kept": "keep",
    "sat": "sit",
    "stuck": "stick",
    "driven": "drive",
    "drove": "drive",
    "drank": "drink",
    "ate": "eat",
    "eaten": "eat",
    "found": "find",
    "n": "and",
    "u": "you",
    "dont": "don't",
    "wont": "won't",
    "cant": "can't",
    "shouldnt": "shouldn't",
    "doesnt": "doesn't",
    "isnt": "isn't",
    "whats": "what's",
    "thats": "that's",
    "hes": "he's",
    "shes": "she's",
    "theyre": "they're",
    "paediatric": "pediatric",
    "tumour": "tumor",
    "centre": "center",
    "colour": "color",
    "anaesthetic": "anesthetic",
    "oesophagus": "esophagus",
    "cosy": "cozy",
    "grey": "gray",
}
SHORT = 3  # letters; such words have no ending
_PRONOUNS = "i you he she it we they that this there".split()
_stemmer = snowballstemmer.stemmer("english")


class Stemmed:
    """A sentence as plain text and as stems; where each stem stands in both is found on demand."""

    def __init__(self, plain: str, stems: str) -> None:
        self.plain = plain
        self.stems = stems

    @functools.cached_property
    def at_stems(self) -> list[int]:
        """Where each token begins in `stems`, rising."""
        return [match.start() for match in _STEM.finditer(self.stems)]

    @functools.cached_property
    def at_plain(self) -> list[int]:
        """Where each token begins in `plain`."""
        return [match.start() for match in _TOKEN.finditer(self.plain)]

    @functools.cached_property
    def ends_plain(self) -> list[int]:
        """Where each token ends in `plain`."""
        return [match.end() for match in _TOKEN.finditer(self.plain)]

    def start(self, position: int) -> int:
        """Return where the token at or after a position of `stems` begins in `plain`."""
        number = bisect.bisect_left(self.at_stems, position)
        return self.at_plain[number] if number < len(self.at_plain) else len(self.plain)

    def end(self, position: int) -> int:
        """Return where the last token before a position of `stems` ends in `plain`."""
        number = bisect.bisect_left(self.at_stems, position) - 1
        return self.ends_plain[number] if number >= 0 else 0


@functools.lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """Return a word's stem; the word is in lower case."""
    word = _NUMBERS.get(word, word)
    word = _SPELLINGS.get(word, word)
    if word.endswith("'ll") and word[:-3] not in _PRONOUNS:  # "rum'll warm him"
        word = word[:-3]
    if word.endswith("'s") and len(word) <= SHORT + 2:  # "the AED's here"
        word = word[:-2]
    # "AED" is no past tense of "a"
    return word if len(word) <= SHORT else str(_stemmer.stemWord(word))


@functools.lru_cache(maxsize=200_000)
def _stem_token(token: str) -> str:
    token = token.strip()
    if "&" in token:
        return "a&e"
    return stem(token) if token[0].isalnum() else token


def stem_sentence(sentence: str) -> Stemmed:
    """Return a sentence with its stems."""
    plain = plain_text(sentence)
    return Stemmed(plain, " ".join(["", *map(_stem_token, _TOKEN.findall(plain)), ""]))
