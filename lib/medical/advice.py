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
from typing import Any

from lib.medical.negation import is_warning
from lib.medical.possible import mark_places, phrases_by_sentence, possible_phrases
from lib.medical.reading import find_advised, read_answer
from lib.medical.sentences import split_sentences
from lib.medical.wording import plain_text

RULES_FILE = pathlib.Path(__file__).with_name("harmful_advice.json")
# how much text before a sentence counts as its context: with more, a long article would seem to be
# about burns and sprains at once
CONTEXT_CHARACTERS = 250
CONTEXT_SENTENCES = 6

LANGUAGES = ("en",)  # that the rules and the acts can read
PATTERNS = ("pattern", "about", "not_about", "unless")

Rule = dict[str, Any]  # a rule of RULES_FILE, the regular expressions of PATTERNS compiled


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

    The question tells what the answer is about, and what a "yes" or an "it" in the answer means.
    """
    hits = _hits_of_rules(text, question)
    acts = possible_phrases(f"{question}\n{text}")
    if not acts:
        return hits
    read = read_answer(question, text)
    marks = mark_places(read.places)
    for hints, phrases in acts:
        by_sentence = phrases_by_sentence(hints.about, phrases, marks)
        advised = {read.texts[number] for number, _ in find_advised(hints.act, read, by_sentence)}
        if advised:
            known = {sentence for rule, sentence in hits if rule == hints.act.id}
            hits.extend((hints.act.id, sentence) for sentence in sorted(advised - known))
    return hits


def _hits_of_rules(text: str, question: str) -> list[tuple[str, str]]:
    rules = _possible_rules(f"{question}\n{text}")
    if not rules:
        return []
    sentences = split_sentences(text)
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
    while match and is_warning(sentence, *match.span(), _harmful_part(match)):
        match = pattern.search(sentence, match.start() + 1)
    return bool(match)


def _harmful_part(match: re.Match[str]) -> int:
    """Return where the harmful thing itself begins, which a group `bad...` marks."""
    return max([match.start(), *(match.start(name) for name in match.re.groupindex)])
