"""Clean a row: apply the text rules to its texts, then look for a reason to drop it.

messages, reason, changed = clean_row(messages, job)  # reason "" keeps the row
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from lib.common.words import WORDS, normalised, words_of
from lib.data.cleaning import damage, turn_order
from lib.data.cleaning.control_tokens import has_control_token
from lib.data.cleaning.language import find_language
from lib.data.cleaning.links import is_link_list
from lib.data.cleaning.personal import mask_personal_data
from lib.data.cleaning.text_rules import TEXT_RULES, apply_rules, select_rules
from lib.data.cleaning.turns import is_trained
from lib.medical import advice
from lib.params import Params

PLACEHOLDERS = set(
    "none|null|nil|nan|na|n/a|n.a|no answer|no response|not available|not applicable|not provided|"
    "no data|tbd|tba|todo|to be determined|[deleted]|[removed]|undefined|no output|nooutput|"
    "<nooutput>|<noinput>".split("|")
)
# longer rows are too long for any model that this tunes; cleaning them would only take time
MOST_CHARACTERS = 1_000_000
# what the text rules find without being able to mend it; not a change of the text
TEXT_FAULTS = {"nested_markup", "unclear_markup"}
FAULTS = {*TEXT_FAULTS, "control_token_broken_up"}


class CleanedRow(NamedTuple):
    """A row after the text rules, as the drop tests see it."""

    messages: list[dict[str, str]]
    questions: list[str]
    answers: list[str]
    # the answers before the rules: flattened lists reveal a list of links, labels a leaked turn
    raw_answers: list[str]
    faults: set[str]  # reasons to drop it that the text rules found

    def exchanges(self) -> list[tuple[str, str]]:
        """Return (question, answer) of each exchange; the turns are known to alternate."""
        return list(zip(self.questions, self.answers, strict=True))


# -------------------------------------------------------------------------------------------------
# tests for a reason to drop a row, each true for a row to drop

# an option in a question: a letter or number before it, alone on its line or between others
OPTION = re.compile(
    r"(?:^|(?<=\s))\(?(?:[A-Za-z]|\d{1,2})[).:][^\S\n]++([^\n]*?)"
    r"(?=$|[,;]?\s\(?(?:[A-Za-z]|\d{1,2})[).:]\s)",
    re.M,
)
# a heading such as "### Instructions" is no leak: prompt formats use the singular and a colon
IN_ANSWER = re.compile(
    r"^[ \t]*+(?:patient|human|user|doctor|assistant|"
    r"### ?(?:instruction|input|response))[ \t]*+:",
    re.I | re.M,
)
IN_QUESTION = re.compile(r"^[ \t]*+(?:doctor|assistant|### ?response)[ \t]*+:", re.I | re.M)
ASKED = re.compile(r"\s*(?:patient|human|user|customer)[ \t]*:", re.I)
REASONING_EDGE = re.compile(r"</?(?:reasoning|think|thinking)>", re.I)


def turns_out_of_order(row: CleanedRow, job: Params) -> bool:
    """Tell whether turns do not alternate user, assistant, ... after an optional system message."""
    roles = [m["role"] for m in row.messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    pairs = len(turns) // 2
    alternate = pairs > 0 and turns == ["user", "assistant"] * pairs
    return bool(row.messages) and not alternate


def has_empty_message(row: CleanedRow, job: Params) -> bool:
    """Tell whether a message is empty or only white space, or there is no message at all."""
    return not row.messages or any(not m["content"].strip() for m in row.messages)


def has_nothing_trained(row: CleanedRow, job: Params) -> bool:
    """Tell whether every answer is masked, so that the row would train nothing."""
    return not any(map(is_trained, row.messages))


def has_nested_markup(row: CleanedRow, job: Params) -> bool:
    """Tell whether markup is nested so deeply that the text rules did not finish."""
    return "nested_markup" in row.faults


def has_unclear_markup(row: CleanedRow, job: Params) -> bool:
    """Tell whether it is not clear which text some markup deletes, hides, raises or lowers."""
    return "unclear_markup" in row.faults


def has_inner_control_token(row: CleanedRow, job: Params) -> bool:
    """Tell whether a control token of any model family is within a text, or was until broken up."""
    return "control_token_broken_up" in row.faults or any(
        has_control_token(m["content"]) for m in row.messages
    )


def has_placeholder(row: CleanedRow, job: Params) -> bool:
    """Tell whether an answer is one like "N/A", or has no word, and its question offers it not."""
    return any(
        is_placeholder(answer) and not is_offered(answer, question)
        for question, answer in row.exchanges()
    )


def is_placeholder(answer: str) -> bool:
    """Tell whether a text stands where an answer is missing."""
    named = len(answer) < 40 and normalised(answer).rstrip(".") in PLACEHOLDERS
    return named or not WORDS.search(answer)


def is_offered(answer: str, question: str) -> bool:
    """Tell whether a question lists an answer among its options, as "D) None" or "B. Na"."""
    options = {normalised(option[1]).rstrip(".,;") for option in OPTION.finditer(question)}
    return normalised(answer).rstrip(".") in options


def answers_with_question(row: CleanedRow, job: Params) -> bool:
    """Tell whether an answer consists of the words of its question."""
    return any(_have_same_words(question, answer) for question, answer in row.exchanges())


def _have_same_words(one: str, other: str) -> bool:
    if one.isascii() and other.isascii():  # the first word tells nearly always
        first, second = WORDS.search(one), WORDS.search(other)
        if first and second and first[0].lower() != second[0].lower():
            return False
    return words_of(one) == words_of(other)


def ends_in_link_list(row: CleanedRow, job: Params) -> bool:
    """Tell whether the last answer only points elsewhere."""
    return is_link_list(row.questions[-1], row.raw_answers[-1])


def has_leaked_turn(row: CleanedRow, job: Params) -> bool:
    """Tell whether a question or an answer contains a turn of the other side."""
    return (
        any(map(ASKED.match, row.raw_answers))
        or any(map(IN_ANSWER.search, row.answers))
        or any(map(IN_QUESTION.search, row.questions))
    )


def has_open_reasoning(row: CleanedRow, job: Params) -> bool:
    """Tell whether a <think> block is not closed, so that the start of the answer is unknown."""
    return job.reasoning == "strip" and any(map(REASONING_EDGE.search, row.answers))


def has_personal_data(row: CleanedRow, job: Params) -> bool:
    """Tell whether a text has personal data, if the job drops rows for that."""
    return job.personal_data == "drop" and any(
        mask_personal_data(m["content"]) != m["content"] for m in row.messages
    )


def has_other_language(row: CleanedRow, job: Params) -> bool:
    """Tell whether an answer is in another language than the job's."""
    return bool(find_other_language(row, job))


def find_other_language(row: CleanedRow, job: Params) -> str:
    """Return the language of the first answer that is not in the job's; empty if there is none."""
    if not job.language:
        return ""
    found = (find_language(question, answer, job.language) for question, answer in row.exchanges())
    return next(filter(None, found), "")


def has_lost_characters(row: CleanedRow, job: Params) -> bool:
    """Tell whether characters of a text were lost, if the job drops rows for that."""
    return job.damaged_text == "drop" and any(
        damage.find_lost_characters(m["content"]) for m in row.messages
    )


def is_cut_off(row: CleanedRow, job: Params) -> bool:
    """Tell whether an answer stops in the middle, if the job drops rows for that."""
    return job.damaged_text == "drop" and any(
        damage.find_cut(answer, job.language) for answer in row.answers
    )


# The first test that is true gives the reason. Later tests rely on earlier ones: after the first
# two, there are as many answers as questions, and at least one. A job's skip_rules disable some.
DROP_TESTS: tuple[tuple[str, Callable[[CleanedRow, Params], bool]], ...] = (
    ("turns_out_of_order", turns_out_of_order),
    ("empty", has_empty_message),
    ("nothing_trained", has_nothing_trained),
    ("nested_markup", has_nested_markup),
    ("unclear_markup", has_unclear_markup),
    ("control_tokens", has_inner_control_token),
    ("placeholder", has_placeholder),
    ("answer_is_question", answers_with_question),
    ("link_list", ends_in_link_list),
    ("leaked_turns", has_leaked_turn),
    ("reasoning_without_end", has_open_reasoning),
    ("lost_characters", has_lost_characters),
    ("cut_off", is_cut_off),
    ("personal_data", has_personal_data),
    ("other_language", has_other_language),
)
REASONS = (*(reason for reason, _ in DROP_TESTS), "dangerous_advice", "too_long")
DETAILED = ("dangerous_advice", "other_language")  # reasons that clean_row gives details of
CHANGES = (
    *turn_order.RULES,
    *(name for name, _ in TEXT_RULES),
    "control_token_broken_up",
    "empty_system_message",
    "dangerous_advice_flagged",
    "lost_characters_flagged",
    "cut_off_flagged",
    "no_end_mark_flagged",
)


# -------------------------------------------------------------------------------------------------
# a row


def clean_row(
    messages: list[dict[str, str]], job: Params
) -> tuple[list[dict[str, str]], str, dict[str, tuple[str, str]]]:
    """Return cleaned messages, the reason to drop the row, and (before, after) by rule.

    The reason is empty for a row that is kept. What a row is flagged for is among the changes, as
    (the text, what is wrong with it), and so are the details of a drop for advice or language.
    """
    if sum(len(m["content"]) for m in messages) > MOST_CHARACTERS:
        return messages, "too_long", {}
    messages, reordered = turn_order.mend_order(messages, job.skip_rules)
    cleaned, changed = _clean_messages(messages, job)
    faults = FAULTS & set(changed)
    changed = {name: change for name, change in changed.items() if name not in TEXT_FAULTS}
    changed |= reordered
    row = CleanedRow(
        messages=cleaned,
        questions=_texts_of("user", cleaned),
        answers=_texts_of("assistant", cleaned),
        raw_answers=_texts_of("assistant", messages),
        faults=faults,
    )
    reason = _find_reason(row, job)
    if reason == "other_language":
        changed[reason] = (row.answers[0], f"language {find_other_language(row, job)}")
    if reason:
        return cleaned, reason, changed
    hits = []
    if job.dangerous_advice != "ignore" and job.language in ("", *advice.LANGUAGES):
        hits = [
            hit
            for question, answer in row.exchanges()
            for hit in advice.find_harmful(answer, question)
        ]
    if hits:
        rule, text = hits[0]
        reason = "dangerous_advice" if job.dangerous_advice == "drop" else ""
        changed[reason or "dangerous_advice_flagged"] = (text, f"rule {rule}")
    if not reason:
        changed |= _find_flags(row, job)
    return cleaned, reason, changed


def _find_flags(row: CleanedRow, job: Params) -> dict[str, tuple[str, str]]:
    """Return (text, what is wrong with it) of a kept row, by the name of the flag."""
    if job.damaged_text == "ignore":
        return {}
    found = {
        "lost_characters": (
            "characters were lost",
            (damage.find_lost_characters(m["content"]) for m in row.messages),
        ),
        "cut_off": (
            "stops in the middle",
            (damage.find_cut(answer, job.language) for answer in row.answers),
        ),
        "no_end_mark": (
            "the last sentence has no end mark",
            (damage.find_missing_end(answer) for answer in row.answers),
        ),
    }
    if job.damaged_text == "drop":  # a row that was kept has neither: their drop tests have run
        del found["lost_characters"], found["cut_off"]
    flags = {}
    for name, (wrong, texts) in found.items():
        if text := next(filter(None, texts), ""):
            flags[f"{name}_flagged"] = (text, wrong)
    return flags


def _texts_of(role: str, messages: list[dict[str, str]]) -> list[str]:
    return [m["content"] for m in messages if m["role"] == role]


def _clean_messages(
    messages: list[dict[str, str]], job: Params
) -> tuple[list[dict[str, str]], dict[str, tuple[str, str]]]:
    """Return the messages after the text rules, and the first (before, after) of each rule."""
    answer_rules = select_rules(job)
    other_rules = [(name, rule) for name, rule in answer_rules if name != "reasoning"]
    cleaned = []
    changed: dict[str, tuple[str, str]] = {}
    for message in messages:
        role = message["role"]
        rules = answer_rules if role == "assistant" else other_rules
        text, own_changes = apply_rules(message["content"], rules)
        changed = own_changes | changed
        if role == "system" and not text.strip():
            changed.setdefault("empty_system_message", (message["content"], ""))
        else:
            cleaned.append({**message, "content": text})
    return cleaned, changed


def _find_reason(row: CleanedRow, job: Params) -> str:
    for reason, is_true in DROP_TESTS:
        if reason not in job.skip_rules and is_true(row, job):
            return reason
    return ""
