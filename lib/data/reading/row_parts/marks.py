"""Which names of fields judge an answer, and which values of such a field say yes or no.

find_kind("is_correct")  # "right"
read_mark("wrong", "no")  # True: the answer is right
"""

import functools
import re
from typing import Any

# "right" and "wrong" judge by their name: a value is true or false, or an error.
# "open" may judge, or hold a topic, a grade, a text: the values of all rows decide.
# "unproven" says whether someone looked: only a word such as "rejected" counts.
RIGHT, WRONG, OPEN, UNPROVEN = "right", "wrong", "open", "unproven"

_WHO = (
    r"(?:(?:was|are|marked|marked_as|answer|response|output|completion|human|expert|doctor|"
    r"physician|clinician|reviewer|annotator|judge)_)*"
)
_IS = rf"{_WHO}is_?(?:answer_|marked_(?:as_)?)?"
_WHAT = r"(?:_(?:answer|response|output|completion|row|item|sample|example|flag|mark))?"
_RIGHT = (
    r"correct|right|true|accepted|approved|valid|good|safe|desirable|accurate|factual|acceptable"
)
_WRONG = (
    r"incorrect|wrong|flagged|retracted|withdrawn|invalid|unsafe|harmful|erroneous|hallucinated|"
    r"hallucination|deprecated|obsolete|outdated|disapproved|spam|faulty|undesirable|misleading|inaccurate|"
    r"excluded|discarded|deleted|unacceptable|unapproved"
)
_WRONG_AFTER_IS = rf"{_WRONG}|rejected|bad|false|removed|toxic|error"
_UNPROVEN = r"verified|reviewed|checked|validated|confirmed"
_NAMES = (
    (RIGHT, rf"{_IS}(?P<no>not_)?(?:{_RIGHT}){_WHAT}|is_answer|kto_tag"),
    (RIGHT, rf"{_WHO}(?P<no>not_)?(?:accepted|approved|valid|desirable)(?:_flag)?"),
    (RIGHT, r"(?:answer|response|output|completion)_(?P<no>not_)?(?:correct|right|good|safe)"),
    (WRONG, rf"{_IS}(?P<no>not_)?(?:{_WRONG_AFTER_IS}){_WHAT}"),
    (WRONG, rf"{_WHO}(?P<no>not_)?(?:{_WRONG})(?:_flag)?"),
    (WRONG, r"(?:has|contains)_(?:errors?|mistakes?|hallucinations?)"),
    (WRONG, r"exclude|discard|do_not_(?:use|train)"),
    (UNPROVEN, rf"{_WHO}(?:is_?)?(?:{_UNPROVEN})"),
    (
        OPEN,
        rf"(?:{_WHO}|(?:review|moderation|approval|verification|quality|final|kto)_)"
        r"(?:label|status|verdict|judge?ment|review|review_result|rating|grade|score|quality|"
        r"feedback|correctness|vote|approval|correct|rejected)",
    ),
)
NAMES = tuple((kind, re.compile(pattern)) for kind, pattern in _NAMES)
REJECTED = "rejected"  # open, as it may hold the worse answer of a preference; true is wrong

# what any question is answered with; under an inverse name it has the opposite sense
YES = {"true", "yes", "y", "t", "1", "on"}
NO = {"false", "no", "n", "f", "0", "off"}
# what judges an answer under any name
GOOD = set(
    "right correct accepted accept approved approve valid good ok okay positive pass passed chosen "
    "preferred like liked safe published confirmed accurate".split()
) | {"thumbs up", "thumb up", "👍"}
BAD = set(
    "wrong incorrect rejected reject invalid bad negative fail failed dislike disliked unsafe "
    "harmful retracted withdrawn flagged disapproved erroneous inaccurate unacceptable".split()
) | {"thumbs down", "thumb down", "👎"}
TICKS = {"✓": True, "✔": True, "☑": True, "✅": True}
CROSSES = {"✗": False, "✘": False, "❌": False, "☒": False, "✖": False, "❎": False, "-1": False}
SIGNS = {**TICKS, **CROSSES, "+1": True}
# under an open name these may be the answer itself, a finding, a sex or the number of a class
DOUBTFUL = {"no", "n", "f", "0", "off", "-1", "negative", "yes", "y", "t", "1", "on"}


@functools.lru_cache(maxsize=4096)
def find_kind(name: str) -> str | None:
    """Return how a field of this name, written as ours, judges an answer; None if it does not.

    Of `metadata.is_correct`, as a flattened table has it, the last part counts.
    """
    name = name.rpartition(".")[2]
    for kind, pattern in NAMES:
        match = pattern.fullmatch(name)
        if match and match.groupdict().get("no"):
            return {RIGHT: WRONG, WRONG: RIGHT}[kind]
        if match:
            return kind
    return None


def normalise(value: Any) -> str:
    """Return a value as a word to look up: "Not_Correct." is "not correct", 1.0 is "1"."""
    if not isinstance(value, str | int | float):
        return ""
    said = str(value).strip().casefold().replace("\ufe0f", "").rstrip(".! ")
    number = re.fullmatch(r"([+-]?\d+)(?:\.0+)?", said)
    if number:
        return {"-0": "0"}.get(number[1], number[1])
    return re.sub(r"[\s_-]+", " ", said).strip() if len(said) > 1 else said


def is_number(value: Any) -> bool:
    """Tell whether a value is written as a number."""
    return bool(re.fullmatch(r"[+-]?\d+(?:\.\d+)?", normalise(value)))


def read_mark(kind: str, value: Any) -> bool | None:
    """Return whether a field of this kind calls the answer right; None for an unknown value."""
    said = normalise(value)
    is_inverse = kind == WRONG
    if said in SIGNS:  # a tick in `is_wrong` can mean either
        return None if is_inverse else SIGNS[said]
    if said in YES or said in NO:
        return None if kind == UNPROVEN else (said in YES) != is_inverse
    negated = re.fullmatch(r"(?:not|non) (.+)", said)
    word = negated[1] if negated else said
    if word not in GOOD and word not in BAD:
        return None
    return (word in GOOD) != bool(negated)


def is_doubtful(value: Any) -> bool:
    """Tell whether a value that says no under an open name may be something else than a mark."""
    return normalise(value) in DOUBTFUL
