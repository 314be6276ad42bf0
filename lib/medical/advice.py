"""Outdated or dangerous first-aid advice: a reviewed rule list, and where a text gives such advice instead of warning against it.

A rule of harmful_advice.json hits a sentence in which `pattern` matches and that neither negates, rejects nor only reports it.
A group `bad...` marks the harmful thing itself, so that "use water, not ice" is a warning too. `about` must and `not_about` must not match
the sentence with what comes before it, `unless` must not match the sentence. `words`: word beginnings, one of each group in every hit.
"""

import functools
import itertools
import json
import pathlib
import re
from typing import Any

RULES_FILE = pathlib.Path(__file__).with_name("harmful_advice.json")
CONTEXT = 250  # characters before a sentence; a longer reach makes long articles speak of burns and sprains at once

_LINE = re.compile(r"[\n•▪❌🚫✗✘]|(?<=\s\s)[-*](?= )")
_BULLET = re.compile(r"\s*(?:[-*•▪–—+]|\d{1,2}[.)])\s*(?=\S)")
_STOP = re.compile(r"[.!?;]+(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)(?=[\s\"'”’)*_\]]|[A-Z])")
_NOISE = str.maketrans({"’": "'", "‘": "'"} | dict.fromkeys('“”"*_`#', ""))
_HEADING = re.compile(
    r"(?!if\b|when\b|do'?s (?:and|&))[^.!?]*(?:\b(?:do|should|must) ?n[o']t\b(?! (?:panic|worry|hesitate|delay|wait|forget))|\bnever\b|\bnot to\b"
    r"|\bdon'?ts\b|\bmistakes?\b|\berrors?\b|\bmyths?\b|❌|🚫|\bavoid(?:ed|ing)?(?=$| (?:the following|these|doing|this)))[^.!?]*$"
)
# cues that govern a verb in any form, and those that govern a noun or an -ing form, `far` across commas too
_NOT = re.compile(
    r"\b(?:not|never|dont|cannot|nor|neither|nobody|no (?:one|longer|need|reason|benefit)|(?:under|in|at|by|on) no \w+|nothing|rarely|seldom"
    r"|forbidden|resist (?:the |any )?(?:urge|temptation)|(?:is|are|be|was|were|it's) (?:\w+ ){0,2}?(?:unsafe|dangerous|harmful|unwise|wrong"
    r"|useless|a mistake) to)\b|n't\b|[❌🚫✗✘]"
)
_AVOID = re.compile(
    r"\b(?:(?P<far>avoid(?:ing|s|ed)?|refrain(?:ing)? from|against|discourag\w+|beware of|steer clear of)|without|instead of|than|no|stop"
    r"|(?:prevent|keep)(?:s|ing)? (?:\w+ ){1,3}from|(?:risk|danger|hazard|complication|consequence|effect|harm)s? of)\b"
)
_BREAK = re.compile(
    r"\b(?:but|instead(?! of)|then|until|before|unless|except|because|so|which|otherwise)\b|[:—–]| - |…"
    r"|, and\b(?! (?:never|not|nor)\b)|\band (?:the|you|it|they|this|a|should)\b"
)
_HELPER = re.compile(r"\b(?:try|attempt|hav|lett|mak|allow|ask|tell|help)ing\b")
# "do not hesitate to" urges, "if it does not stop, ..." is a condition
_EMPTY = re.compile(
    r" (?:only|just|too late|hesitate|forget|fail|be (?:afraid|scared|shy|alarmed)|worry|wait|panic|delay|waste|neglect|lose|stop)\b"
    r"(?! or\b)"
)
_CONDITION = re.compile(
    r"\b(?:if|when|while|in case|although|though|since|unless|until|where|once|as)\b[^,]*?"
    r"\b(?:(?:is|are|does|did|has|have|can|was|were|will) ?|(?:you|they|we|there|symptoms) (?:do|are) ?|if |can)$"
)
_JUDGED = re.compile(
    r" (?:recommended|advi[sc]\w+|safe|necessary|appropriate|a good idea|wise|correct)\b"
)
# "do not cut, suck or ice the bite" goes on after the comma, "do not panic, sit down" does not
_LISTED = re.compile(
    r"\bn?or (?:to |try to |attempt to |even )*(?:(?:use|apply|put|give|try|take|rub|massage|suck|cut|induce|tilt|hold|pop|eat)"
    r"|\w+ (?:it|them|him|her|the|an?|any\w*|some\w*|your|his|their))\b"
)
_BELIEF = re.compile(
    r"\bmyth|\bmisconception|\bold wives|\b(?:some|many|most|other) (?:people|parents|books|guides|films|sources)\b(?! (?:can|should|need|must)\b)"
    r"|\bpeople (?:often|sometimes|may|still)\b|\b(?:people|friends?|grand\w+|relatives|someone|they|websites?|movies|films|books) "
    r"(?:(?:may|might|will|often|still|also|have) )*(?:says?|said|tells?|told|claims?|suggests?|believed?|thinks?|thought)\b"
    r"|\byou (?:may|might) (?:hear|read|have (?:heard|read|seen))\b|\bi (?:\w+ ){0,2}(?:read|heard|learned)\b|\btold (?:me|us)\b|\btempt(?:ing|ed)\b"
    r"|\b(?:people|doctors|parents|we|books|guides|guidelines|first aiders|advice|it|which|that) (?:once |long )?used to\b|\bused to be\b"
    r"|\bin the past\b|\bhistorical|\b(?:once|formerly|previously|traditionally|long) (?:thought|recommended|advised|common|commonly|taught|used"
    r"|given|kept|told|said)\b|\b(?:old|older|outdated|traditional|folk|wrong) (?:advice|books?|guides?|first aid|remed|practice|method|belief"
    r"|teaching|idea)|\bcommon (?:mistake|error)|\b(?:mistake|error)s? (?:is|are|include|people)\b|\bhealers?\b"
    r"|\b(?:was|were|been|always) (?:always |often )?(?:taught|told)\b|\b(?:decades|(?:many|long|hundred) years) ago\b"
)
_VERDICT = (
    r"(?:\b(?:is|are|was|were|be|been|it's|that's|used to be)(?: \w+){0,3}? (?:not|never|no longer|myths?|dangerous|harmful|outdated|obsolete"
    r"|unsafe|unnecessary|unhelpful|useless|ineffective|discouraged|contraindicated|avoided|rejected|wrong|risky|counterproductive|mistakes?|bad)\b"
    r"|\b(?:is|are|was|were|do|does|did|should|must|can|will|would)(?: not|n't)\b|\bcannot\b|\bno longer\b|\bnever\b|\bmyth\b|\boutdated\b)"
)
_REJECTED = re.compile(
    r"[^,;]{0,40}?,? (?:but|although|though|yet) (?:it|this|that|these|those|they|doing|such|experts?|doctors?|modern|current|guid\w+)\b.{0,60}"
    + _VERDICT
    + r"|(?:[^,;]{0,40}, which|[^,]{0,25}?)\b (?:is|are|was|were)(?: \w+){0,2}? (?:not (?:recommended|advised|safe|correct|helpful)"
    r"|no longer|myths?|outdated|obsolete|harmful|dangerous|wrong|discouraged)\b"
)
# "rubbing it can tear the skin": an -ing subject is a description unless it is praised
_GERUND = re.compile(r"(?:(?!apply)\w+ly )?(?!swing|bring)\w+ing\b(?! (?:should|can|may|must)\b)")
_SUBJECT = re.compile(
    r"(?:^|[,:)] ?|\b(?:because|since|that|as|but|why|although|while|however|and|or|if|when|yes|no|trying to|attempting to|simply"
    r"|just|even) )(?:\w+ly )?$"
)
_NO_SUBJECT = re.compile(
    r"\b(?:by|includ\w+|involv\w+|consist\w*|recommend\w*|suggest\w*|such as|try|consider|start|begin|keep|worth)\b"
)
_PRAISE = re.compile(
    r"\b(?:helps?|reliev\w+|reduc\w+|restor\w+|brings?|improv\w+|works?|sooth\w+|recommended|best|effective|stops?|prevents?|lowers?|eas(?:es?|ing)"
    r"|removes?|gets?|settles?|safe|useful|good|important|essential|necessary|keeps?|saves?|cures?|heals?|cools?|warms?|should|will)\b"
)
_HARM = re.compile(
    _VERDICT
    + r"|\b(?:can|could|may|might|will|would|only)\b.{0,25}?\b(?:worsen|damage|harm|injure|trap|introduce|delay|slow|spread|burn|block|kill"
    r"|tear|drive|push)|\bmakes? .{0,25}worse|\b(?:worsens|damages|harms|injures|traps|delays|kills|wastes)\b|\bincreas\w+ .{0,25}(?:risk|chance"
    r"|damage|danger|bleed|swell|absor)|\b(?:caus\w+|lead\w*|result\w*|risk\w*)\b.{0,60}(?:damag|harm|injur|infect|death|chok|aspirat|complicat"
    r"|burn|bleed|wors|tissue|shock|poison|serious|danger)"
)


@functools.cache
def load_rules() -> list[dict[str, Any]]:
    """The rules, with their regular expressions compiled."""
    rules = json.loads(RULES_FILE.read_text(encoding="utf-8"))
    words = {word for rule in rules for group in rule["words"] for word in group}
    for rule in rules:  # the search below stops at the shortest: "epi" hides "epilep"
        rule["words"] = [
            {short for short in words for word in group if word.startswith(short)}
            for group in rule["words"]
        ]
    return [
        rule
        | {
            key: re.compile(rule[key], re.S)
            for key in ("pattern", "about", "not_about", "unless")
            if key in rule
        }
        for rule in rules
    ]


@functools.cache
def _any_word() -> re.Pattern[str]:
    # grouped by first letter: four times as fast as one flat alternation
    words = sorted({word for rule in load_rules() for group in rule["words"] for word in group})
    letters = (
        f"{letter}(?:{'|'.join(word[1:] for word in group)})"
        for letter, group in itertools.groupby(words, lambda word: word[0])
    )
    return re.compile(rf"(?<![a-z])(?:{'|'.join(letters)})")


def find_harmful(text: str, question: str = "") -> list[tuple[str, str]]:
    """(rule id, sentence) for every sentence of an answer that gives advice a rule forbids; the question only tells what it is about."""
    present = set(_any_word().findall(f"{question}\n{text}".lower()))
    rules = [rule for rule in load_rules() if not present.isdisjoint(rule["words"][0])]
    rules = [
        rule for rule in rules if not any(present.isdisjoint(group) for group in rule["words"][1:])
    ]
    sentences = _sentences(text) if rules else []
    hits: list[tuple[str, str]] = []
    for i, (sentence, forbidden) in enumerate(sentences):
        low = sentence.lower()
        near = [rule for rule in rules if any(word in low for word in rule["words"][-1])]
        if not near or forbidden or (plain := _plain(sentence)).endswith("?"):
            continue
        around = f"{_plain(question)} {_plain(' '.join(earlier for earlier, _ in sentences[max(0, i - 6) : i]))[-CONTEXT:]} {plain}"
        for rule in near:
            if (
                _advised(rule["pattern"], plain)
                and ("about" not in rule or rule["about"].search(around))
                and not ("not_about" in rule and rule["not_about"].search(around))
                and not ("unless" in rule and rule["unless"].search(plain))
            ):
                hits.append((rule["id"], sentence.strip()))
    return hits


def _plain(text: str) -> str:
    return " ".join(text.translate(_NOISE).lower().split())


def _sentences(text: str) -> list[tuple[str, bool]]:
    """Each sentence, and whether it stands in a list under a heading such as "Do not:"."""
    out: list[tuple[str, bool]] = []
    forbidden = loose = listed = blank = False
    starts = [0, *(m.start() for m in _LINE.finditer(text)), len(text)]
    for line in (text[a:b] for a, b in itertools.pairwise(starts)):
        if not line.strip("\n\r\t "):
            blank = True
            continue
        bullet = _BULLET.match(line)
        plain = _plain(line) if len(line) < 60 or line.rstrip(" *_").endswith(":") else "."
        heading = bool(plain) and (
            plain.endswith(":") or not (bullet or plain.endswith((".", "!", ";", ",")))
        )
        if heading or (not bullet and (loose or (listed and (blank or forbidden)))):
            forbidden = False
        start = bullet.end() if bullet else 0
        for stop in [*(m.end() for m in _STOP.finditer(line, start)), len(line)]:
            out.append((line[start:stop], forbidden))
            start = stop
        if heading:
            forbidden = bool(_HEADING.match(plain.rstrip(":?")))
        loose, listed, blank = (
            heading and not plain.endswith(":"),
            bool(bullet) or (listed and not heading),
            False,
        )
    return out


def _advised(pattern: re.Pattern[str], sentence: str) -> bool:
    # overlapping matches: "do not use ice, put butter on it" must not end with what "use" began
    position = 0
    while (match := pattern.search(sentence, position)) and _warned(sentence, match):
        position = match.start() + 1
    return bool(match)


def _warned(sentence: str, match: re.Match[str]) -> bool:
    """Whether the sentence negates, rejects or only reports what the rule matched in it."""
    start, end = match.span()
    bad = max([start, *(match.start(name) for name in match.re.groupindex)])
    if _BELIEF.search(sentence, 0, end):
        return True
    gerund = bool(_GERUND.match(sentence, start)) or sentence.endswith(
        ("trying to ", "attempting to "), 0, start
    )
    for cue in itertools.chain(_NOT.finditer(sentence, 0, bad), _AVOID.finditer(sentence, 0, bad)):
        ahead = cue.end() <= start
        between = sentence[cue.end() : start if ahead else bad]
        if _BREAK.search(between):
            continue
        if cue.re is _AVOID:
            governs = (
                (gerund or not ahead or _HELPER.search(between))
                and not re.search(r"\bby\b", between)
                and ("," not in between or cue["far"])
            )
        elif ((empty := _EMPTY.match(sentence, cue.end())) and empty.end() <= start) or (
            _CONDITION.search(sentence[: cue.start()]) and not _JUDGED.match(sentence, cue.end())
        ):
            governs = False
        else:
            governs = (
                "," not in between
                or between.startswith(",")
                or " or " in between
                or _LISTED.search(sentence, cue.end())
            )
        if governs:
            return True
    if gerund and _SUBJECT.search(sentence[:start]) and not _NO_SUBJECT.search(sentence[:start]):
        return bool(_HARM.search(sentence, end)) or not _PRAISE.search(sentence, end)
    return bool(_REJECTED.match(sentence, end))
