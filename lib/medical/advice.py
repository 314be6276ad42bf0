"""Find outdated or dangerous first-aid advice in a text, by a reviewed list of rules.

    advice.find_harmful("Put butter on the burn.")  # [("burn-butter", "Put butter on the burn.")]

A rule of harmful_advice.json hits a sentence in which `pattern` matches, unless the sentence warns
against the match (negation.py). A group `bad...` in the pattern marks the harmful thing itself.
`about` must match the sentence together with the text before it, `not_about` must not, and `unless`
must not match the sentence. `words` holds groups of word beginnings; every hit has one from each
group, which serves as a quick first test.
"""

import functools
import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.medical.negation import is_warning
from lib.medical.wording import either, plain_text

RULES_FILE = pathlib.Path(__file__).with_name("harmful_advice.json")
# how much text before a sentence counts as its context: with more, a long article would seem to be
# about burns and sprains at once
CONTEXT_CHARACTERS = 250
CONTEXT_SENTENCES = 6
HEADING_CHARACTERS = 60  # a longer line is a heading only if it ends in a colon

PATTERNS = ("pattern", "about", "not_about", "unless")

Rule = dict[str, Any]  # a rule of RULES_FILE, the regular expressions of PATTERNS compiled

_LINE_START = re.compile(r"[\n•▪❌🚫✗✘]|(?<=\s\s)[-*](?= )")
_BULLET = re.compile(r"\s*(?:[-*•▪–—+]|\d{1,2}[.)])\s*(?=\S)")
_NO_ABBREVIATION = r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)"
_STOP = re.compile(rf"[.!?;]+{_NO_ABBREVIATION}(?=[\s\"'”’)*_\]]|[A-Z])")
_FORBIDDING = either(r"""
    \b(?:do|should|must) ?n[o']t\b(?! (?:panic|worry|hesitate|delay|wait|forget))
    \bnever\b | \bnot to\b | \bdon'?ts\b
    \bmistakes?\b | \berrors?\b | \bmyths?\b | ❌ | 🚫
    \bavoid(?:ed|ing)?(?=$| (?:the following|these|doing|this))
""")
# "Never do this", but not "If you must not move him" nor "Dos and don'ts"
_FORBIDDING_HEADING = re.compile(rf"(?!if\b|when\b|do'?s (?:and|&))[^.!?]*{_FORBIDDING}[^.!?]*$")


class Sentence(NamedTuple):
    """A sentence as written, and whether it is listed under a heading such as "Do not:"."""

    text: str
    forbidden: bool


@functools.cache
def load_rules() -> list[Rule]:
    """Return the rules, with their regular expressions compiled."""
    rules = json.loads(RULES_FILE.read_text(encoding="utf-8"))
    words = {word for rule in rules for group in rule["words"] for word in group}
    for rule in rules:
        rule["words"] = [_beginnings(group, words) for group in rule["words"]]
        for key in PATTERNS:
            if key in rule:
                rule[key] = re.compile(rule[key], re.S)
    return rules


def _beginnings(group: list[str], words: set[str]) -> set[str]:
    """Return the words that begin a word of the group.

    `_any_word` stops at the shortest of all rules' words: "epi" hides "epilep".
    """
    return {short for short in words for word in group if word.startswith(short)}


@functools.cache
def _any_word() -> re.Pattern[str]:
    """Return a pattern for the words of all rules."""
    # grouped by first letter: four times as fast as one flat alternation
    words = sorted({word for rule in load_rules() for group in rule["words"] for word in group})
    by_letter = []
    for letter, group in itertools.groupby(words, lambda word: word[0]):
        endings = "|".join(word[1:] for word in group)
        by_letter.append(f"{letter}(?:{endings})")
    return re.compile(rf"(?<![a-z])(?:{'|'.join(by_letter)})")


def find_harmful(text: str, question: str = "") -> list[tuple[str, str]]:
    """Return (rule id, sentence) for every sentence of an answer with advice that a rule forbids.

    The question only tells what the answer is about; it is not searched for advice.
    """
    rules = _possible_rules(f"{question}\n{text}")
    if not rules:
        return []
    sentences = _split_sentences(text)
    hits: list[tuple[str, str]] = []
    for number, (sentence, forbidden) in enumerate(sentences):
        low = sentence.lower()
        near = [rule for rule in rules if any(word in low for word in rule["words"][-1])]
        if not near or forbidden:
            continue
        plain = plain_text(sentence)
        if plain.endswith("?"):
            continue
        earlier = [s.text for s in sentences[max(0, number - CONTEXT_SENTENCES) : number]]
        before = plain_text(" ".join(earlier))[-CONTEXT_CHARACTERS:]
        around = f"{plain_text(question)} {before} {plain}"
        broken = [rule["id"] for rule in near if _breaks_rule(rule, plain, around)]
        hits.extend((rule_id, sentence.strip()) for rule_id in broken)
    return hits


def _possible_rules(text: str) -> list[Rule]:
    """Return the rules that have a word of each of their groups in the text: mostly none."""
    present = set(_any_word().findall(text.lower()))
    # most rules fail at their first group, so that is tried for all rules first
    rules = [rule for rule in load_rules() if not present.isdisjoint(rule["words"][0])]
    return [
        rule for rule in rules if not any(present.isdisjoint(group) for group in rule["words"][1:])
    ]


def _breaks_rule(rule: Rule, sentence: str, around: str) -> bool:
    """Tell whether a sentence gives the advice; `around` has question and earlier sentences."""
    if not _advises(rule["pattern"], sentence):
        return False
    if "about" in rule and not rule["about"].search(around):
        return False
    if "not_about" in rule and rule["not_about"].search(around):
        return False
    return not ("unless" in rule and rule["unless"].search(sentence))


def _advises(pattern: re.Pattern[str], sentence: str) -> bool:
    """Tell whether the pattern has a match that is not a warning."""
    # overlapping matches too: in "do not use ice, put butter on it" the match that "use" begins
    # would hide the one that "put" begins
    match = pattern.search(sentence)
    while match and is_warning(sentence, match):
        match = pattern.search(sentence, match.start() + 1)
    return bool(match)


def _split_sentences(text: str) -> list[Sentence]:
    sentences: list[Sentence] = []
    forbidden = False  # below a heading that forbids
    loose = False  # below a heading without a colon
    listed = False  # a list item came since the last heading
    blank = False  # the line before is empty
    for line in _split_lines(text):
        if not line.strip("\n\r\t "):
            blank = True
            continue
        bullet = _BULLET.match(line)
        heading = _heading_of(line, bool(bullet))
        list_ended = not bullet and (loose or (listed and (blank or forbidden)))
        if heading or list_ended:
            forbidden = False
        start = bullet.end() if bullet else 0
        stops = [match.end() for match in _STOP.finditer(line, start)]
        for stop in [*stops, len(line)]:
            sentences.append(Sentence(line[start:stop], forbidden))
            start = stop
        if heading:
            forbidden = bool(_FORBIDDING_HEADING.match(heading.rstrip(":?")))
            listed = False
        loose = bool(heading) and not heading.endswith(":")
        listed = listed or bool(bullet)
        blank = False
    return sentences


def _split_lines(text: str) -> Iterator[str]:
    """Yield the lines of a text; a bullet or a cross inside a line begins one too."""
    starts = [0, *(match.start() for match in _LINE_START.finditer(text)), len(text)]
    for start, stop in itertools.pairwise(starts):
        yield text[start:stop]


def _heading_of(line: str, bullet: bool) -> str:
    """Return a line as plain text if it is a heading, otherwise ""."""
    if len(line) >= HEADING_CHARACTERS and not line.rstrip(" *_").endswith(":"):
        return ""
    plain = plain_text(line)
    if plain.endswith(":"):
        return plain
    if bullet or plain.endswith((".", "!", ";", ",")):
        return ""
    return plain
