r"""Rules that clean a text, one function each: text in, text out.

    rules = select_rules(job)
    text, changed = apply_rules(text, rules)

No rule adds words of its own, except the four placeholders for masked personal data.

A row can be one character a million times, so no rule may take more than linear time. Therefore
each repetition in a regular expression here is possessive (`*+`), can begin at one place only, or
stops at the next opening of its kind.
"""

import re
from collections.abc import Callable

from lib.data.chat import CONTROL
from lib.data.cleaning.control_tokens import strip_control_tokens
from lib.data.cleaning.escapes import undo_escapes
from lib.data.cleaning.lists import break_lists, indent_items
from lib.data.cleaning.markup import strip_html
from lib.data.cleaning.markup_tags import UnclearMarkup
from lib.data.cleaning.personal import mask_personal_data
from lib.data.cleaning.tables import break_tables
from lib.params import Params

TextRule = Callable[[str], str]
MOST_PASSES = 10  # real texts settle in two; only deeply nested markup needs more


def fix_mojibake(text: str) -> str:
    """Repair UTF-8 that was read as another encoding; keep quotes, widths and ligatures."""
    import ftfy  # only the prepare stage needs it

    return text if text.isascii() else ftfy.fix_encoding(text)


# -------------------------------------------------------------------------------------------------
# characters and white space

# C0 and C1 controls, zero-width and bidirectional marks; not the joiners of emoji and Persian
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]+"
)
# between two digits, these do not part them
JOINERS = set("\u061c\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff")
LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Characters of the fonts Symbol and Wingdings, left in text from PDF and Word. Any other private
# character stays, as nobody knows what it meant.
SYMBOLS = str.maketrans(
    "\uf0b7\uf0a7\uf0d8\uf06d\uf061\uf062\uf067\uf044\uf0b0\uf0b1\uf0a3\uf0b3\uf0b4",
    "•••µαβγΔ°±≤≥×",
)


def strip_invisible(text: str) -> str:
    """Remove control and zero-width characters, unify line ends, and make symbols readable."""
    # a cheap test that spares nearly every text the work below
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    if not text.isascii():
        text = text.translate(SYMBOLS)
    return INVISIBLE.sub(_replace_invisible, LINE_ENDS.sub("\n", text))


def _replace_invisible(match: re.Match[str]) -> str:
    """Return what stands for a run of characters that show nothing: something between digits."""
    text, start, end = match.string, match.start(), match.end()
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    if not (len(around) == 2 and around.isdigit()) or not JOINERS.isdisjoint(match[0]):
        return ""
    # PDF files have a soft hyphen, or a control, for the dash of a range
    return "-" if "\u00ad" in match[0] else " "


def collapse_blanks(text: str) -> str:
    """Collapse white space: single spaces, none at a line's ends, at most one empty line.

    The items of a list keep their nesting.
    """
    if "\n" not in text:
        return " ".join(text.split())
    if "\n " in text or "\n\t" in text:
        lines = indent_items(text.split("\n"))
    else:
        lines = [" ".join(line.split()) for line in text.split("\n")]
    text = "\n".join(lines).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text


SECOND_MARK = re.compile(r"\?(?: ++\?)+")
BLANK_BEFORE_MARK = re.compile(r"(?<![\s+*/=<>(\[-]) +\?(?!\w)")


def tidy_question_mark(text: str) -> str:
    """Turn "What is asthma ?" and "What is asthma? ?" into "What is asthma?"; "5 + ?" stays."""
    if " ?" not in text:
        return text
    return BLANK_BEFORE_MARK.sub("?", SECOND_MARK.sub("?", text))


# -------------------------------------------------------------------------------------------------
# what a chat leaves behind

NAMES = (
    r"patient|human|user|customer|question|doctor|(?-i:[Dd]r)|"
    r"assistant|gpt|chatbot|bot|model|answer"
)
HEADING = r"### ?(?:instruction|input|question|response|answer|output)s?"


def _compile_label(more: str) -> re.Pattern[str]:
    return re.compile(
        rf"\A(?:\s*+(?:(?:{NAMES}|{more})[ \t]*+:|{HEADING}[ \t]*+\n))+",
        re.I,
    )


LABEL = _compile_label(f"{HEADING}|a|q")
NOT_A = _compile_label(f"{HEADING}|q")
NO_LETTER = _compile_label(HEADING)
# AVPU, APGAR and ATMIST begin with "A:", QRST with "Q:"
OTHER_LETTER = re.compile(r"(?:^|[\s,;.(])(?![aq])[a-z][ \t]*+:", re.I)
LETTER_R = re.compile(r"(?:^|[\s,;.(])R[ \t]*+:")
# "Patient: ...\nAge: ..." is a form, and no speech
FORM = re.compile(
    r"\s*+patient[ \t]*+:[^\n]*\n[ \t]*+(?!(?:doctor|dr|assistant|answer)\b)[A-Z][\w/ ]{0,24}:",
    re.I,
)
REASONING = re.compile(
    r"<(reasoning|think|thinking)>[^<]*+(?:<(?!/?(?:reasoning|think|thinking)>)[^<]*+)*+</\1>\s*",
    re.I,
)


def strip_labels(text: str) -> str:
    """Remove "Patient:", "Doctor:", "### Response:" and the like from the start of a text.

    "A: airway, B: breathing" and "Patient: Ann\\nAge: 40" stay.
    """
    label = LABEL.match(text)
    if not label or FORM.match(text):
        return text
    if OTHER_LETTER.search(text):
        label = (NO_LETTER if LETTER_R.search(text) else NOT_A).match(text)
    return text[label.end() :].lstrip() if label else text


def strip_reasoning(text: str) -> str:
    """Remove closed <reasoning>, <think> and <thinking> blocks."""
    return REASONING.sub("", text) if "</" in text else text


# -------------------------------------------------------------------------------------------------
# all rules

# in the order in which they are applied
TEXT_RULES: tuple[tuple[str, TextRule], ...] = (
    ("escapes", undo_escapes),
    ("mojibake", fix_mojibake),
    ("control_tokens", strip_control_tokens),
    ("html", strip_html),
    ("control_characters", strip_invisible),
    ("leaked_turns", strip_labels),
    ("reasoning", strip_reasoning),
    ("tables", break_tables),
    ("flattened_lists", break_lists),
    ("question_mark", tidy_question_mark),
    ("blanks", collapse_blanks),
    ("personal_data", mask_personal_data),
)


def select_rules(job: Params) -> list[tuple[str, TextRule]]:
    """Return the rules for a job, without those that it skips or its policies do not need."""
    wanted_by_policy = {
        "reasoning": job.reasoning == "strip",
        "personal_data": job.personal_data == "mask",
        "question_mark": job.language != "fr",  # French puts a space before question marks
    }
    return [
        (name, rule)
        for name, rule in TEXT_RULES
        if name not in job.skip_rules and wanted_by_policy.get(name, True)
    ]


def apply_rules(
    text: str, rules: list[tuple[str, TextRule]]
) -> tuple[str, dict[str, tuple[str, str]]]:
    """Return a text after the rules, and (before, after) of each rule that changed it.

    The rules are repeated until none changes the text, since one may uncover work for another. If
    that does not end within MOST_PASSES, `nested_markup` is among the changes; `unclear_markup` is
    for markup that no rule understands, and that stays.
    """
    changed: dict[str, tuple[str, str]] = {}
    original = text
    idle = 0  # consecutive rules that changed nothing
    for name, rule in rules * MOST_PASSES:
        try:
            after = rule(text)
        except UnclearMarkup:
            after = text
            changed["unclear_markup"] = (original, text)
        if after != text:
            changed.setdefault(name, (text, after))
            text = after
            idle = 0
        else:
            idle += 1
            if idle == len(rules):
                break
    if idle < len(rules):
        changed["nested_markup"] = (original, text)
    # last, and never disabled: the rules before may have joined parts into a control token
    after = CONTROL.sub("< ", text)
    if after != text:
        changed["control_token_broken_up"] = (text, after)
    return after, changed
