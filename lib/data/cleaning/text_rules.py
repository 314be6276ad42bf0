r"""Rules that clean a text, one function each: text in, text out.

    rules = select_rules(job)
    text, changed = apply_rules(text, rules)

No rule adds words of its own, except the four placeholders for masked personal data.

A row can be one character a million times, so no rule may take more than linear time. Therefore
each repetition in a regular expression here is possessive (`*+`), can begin at one place only, or
stops at the next opening of its kind.
"""

import html
import re
from collections.abc import Callable

from lib.data.chat import CONTROL
from lib.data.cleaning.personal import mask_personal_data
from lib.params import Params

TextRule = Callable[[str], str]
MOST_PASSES = 10  # real texts settle in two; only deeply nested markup needs more


def fix_mojibake(text: str) -> str:
    """Repair UTF-8 that was read as another encoding; keep quotes, widths and ligatures."""
    import ftfy  # only the prepare stage needs it

    return text if text.isascii() else ftfy.fix_encoding(text)


# -------------------------------------------------------------------------------------------------
# HTML

# an attribute needs "=", so that "a <b and c> d" does not count as a tag
TAG = re.compile(
    r"</?(?:(p|br|div|ul|ol|li|dl|dt|dd|table|caption|tr|h[1-6]|hr|blockquote|pre|section|"
    r"article|figure)|(td|th)|span|b|i|u|em|strong|"
    r"small|sup|sub|a|thead|tbody|tfoot|img|font|center|code|iframe|del|ins|tt|script|style)"
    r"(?:\s+[a-z][\w:-]*\s*=[^<>]*|\s*)/?>",
    re.I,
)
UNSEEN = re.compile(
    r"<!--(?:[^<-]|<(?!!--)|-(?!->))*+-->|"
    r"<(script|style)\b[^<>]*>[^<]*+(?:<(?!/?\1\b)[^<]*+)*+</\1\s*>",
    re.I,
)
# without "^", 10<sup>9</sup> would become 109
POWER = re.compile(r"(?<=\d)<sup>\s*(?=[-+−–]?\d)", re.I)
ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.I)


def strip_html(text: str) -> str:
    """Replace HTML entities by their characters and remove tags; a block tag becomes a line end.

    10<sup>9</sup> becomes 10^9, and "p < 0.05 and q > 1" stays.
    """
    if "&" in text:
        text = ENTITY.sub(_replace_entity, text)
    if "<" in text:
        text = POWER.sub("^", UNSEEN.sub(" ", text))
        text = TAG.sub(_replace_tag, text)
    return text


def _replace_entity(match: re.Match[str]) -> str:
    name = match[1]
    if name.startswith("#"):
        return html.unescape(f"&{name};")
    # html.unescape would turn "&notit;" into "¬it;"
    return html.entities.html5.get(name + ";", f"&{name};")


def _replace_tag(match: re.Match[str]) -> str:
    block, cell = match[1], match[2]
    if block:
        return "\n"
    return " " if cell else ""


# -------------------------------------------------------------------------------------------------
# characters and white space

# C0 and C1 controls, zero-width and bidirectional marks; not the joiners of emoji and Persian
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
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
    return INVISIBLE.sub("", LINE_ENDS.sub("\n", text))


def collapse_blanks(text: str) -> str:
    """Collapse white space: single spaces, none at a line's ends, at most one empty line."""
    if "\n" not in text:
        return " ".join(text.split())
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
# lists

# the lookbehind lets a match begin only at the first space of a run
BULLET = re.compile(r" (?<=\S )[ \t]+([-*•·])[ \t]+(?=\S)")
LOOSE_BULLET = re.compile(r"(?<=\S)[ \t]+([•●▪])[ \t]*(?=\S)")
AFTER_LIST = re.compile(r" (?<=[^\s*•·-] )[ \t]{2,}(?=[\"“(]?[A-Z])")
TABLE_HEAD = "Signs and Symptoms Approximate number of patients (when available)"
TABLE_TAIL = " The Human Phenotype Ontology"
CELL = re.compile(r" (-|<?(?:\d+(?:\.\d+)?)?%|\d+/\d+|\d+ of \d+)(?: |$)")


def break_lists(text: str) -> str:
    """Put each item of a list that was flattened into one line on a line of its own.

    Such lists are bullets after two spaces, and the symptom tables of MedQuAD.
    """
    if TABLE_HEAD in text:
        text = _break_symptom_table(text)
    if "  " in text:
        text = _break_bullets(text)
    has_bullet = "•" in text or "●" in text or "▪" in text
    # a single bullet may be a multiplication
    if has_bullet and len(LOOSE_BULLET.findall(text)) > 1:
        text = LOOSE_BULLET.sub(r"\n\1 ", text)
    return text


def _break_symptom_table(text: str) -> str:
    before, head, rest = text.partition(TABLE_HEAD + " ")
    table, tail, after = rest.partition(TABLE_TAIL)
    if not tail:
        return text
    lines = CELL.sub(r" \1\n", table).rstrip()
    return f"{before}{head[:-1]}\n{lines}\n{tail[1:]}{after}"


def _break_bullets(text: str) -> str:
    count = len(BULLET.findall(text))
    if not count:
        return text

    def put_on_own_line(match: re.Match[str]) -> str:
        around = match.string[match.start() - 1] + match.string[match.end()]
        # "10  - 20 mg" is a range unless there are several bullets
        if count < 3 and around.isdigit():
            return match[0]
        return f"\n{match[1]} "

    text = BULLET.sub(put_on_own_line, text)
    # three spaces before a capital letter end the list, or its last item would run on
    return AFTER_LIST.sub("\n", text)


# -------------------------------------------------------------------------------------------------
# what a chat leaves behind

NAMES = (
    r"patient|human|user|customer|question|q|doctor|(?-i:[Dd]r)|"
    r"assistant|gpt|chatbot|bot|model|answer"
)
HEADING = r"### ?(?:instruction|input|question|response|answer|output)s?"


def _compile_label(more: str) -> re.Pattern[str]:
    return re.compile(
        rf"\A(?:\s*+(?:(?:{NAMES}|{more})[ \t]*+:|{HEADING}[ \t]*+\n))+",
        re.I,
    )


LABEL = _compile_label(f"{HEADING}|a")
NOT_LETTERED = _compile_label(HEADING)
REASONING = re.compile(
    r"<(reasoning|think|thinking)>[^<]*+(?:<(?!/?(?:reasoning|think|thinking)>)[^<]*+)*+</\1>\s*",
    re.I,
)


def strip_labels(text: str) -> str:
    """Remove "Patient:", "Doctor:", "### Response:" and the like from the start of a text.

    "A: airway, B: breathing" stays.
    """
    label = LABEL.match(text)
    if label and re.search(r"\bB[ \t]*+:", text):
        label = NOT_LETTERED.match(text)
    return text[label.end() :].lstrip() if label else text


def strip_reasoning(text: str) -> str:
    """Remove closed <reasoning>, <think> and <thinking> blocks."""
    return REASONING.sub("", text) if "</" in text else text


# -------------------------------------------------------------------------------------------------
# all rules

# in the order in which they are applied
TEXT_RULES: tuple[tuple[str, TextRule], ...] = (
    ("mojibake", fix_mojibake),
    ("html", strip_html),
    ("control_characters", strip_invisible),
    ("leaked_turns", strip_labels),
    ("reasoning", strip_reasoning),
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
    that does not end within MOST_PASSES, `nested_markup` is among the changes.
    """
    changed: dict[str, tuple[str, str]] = {}
    original = text
    idle = 0  # consecutive rules that changed nothing
    for name, rule in rules * MOST_PASSES:
        after = rule(text)
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
