"""Clean a row: apply the text rules to its texts, then look for a reason to drop it.

messages, reason, changed = clean_row(messages, job)  # reason "" keeps the row
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from lib.common.errors import UserError
from lib.common.words import WORDS, normalised, words_of
from lib.data.cleaning import turn_order
from lib.data.cleaning.control_tokens import has_control_token
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
# Characters that the language detector reads. Of 13,950 English answers it misreads one, at 200,
# 300 and 400 characters alike, and its time grows with the length.
LANGUAGE_CHARACTERS = 200
TOO_SHORT_TO_TELL = 20  # characters: "CPR" and "Ibuprofen" do not give a language away
WITH_QUESTION = 80  # characters: a shorter answer is read together with its question
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

URL = re.compile(r"(?:https?://|www\.)\S+", re.I)
RESOURCES = re.compile(
    r"\b(?:resources (?:address|offer|about|from)|links|web ?(?:site|page)s|see also|"
    r"further reading|more information)\b",
    re.I,
)
SENTENCE = re.compile(r"\w{3}[.!?](?:\s|$)")
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
    """Tell whether an answer is one like "N/A", or has no word."""
    return any(
        len(answer) < 40
        and normalised(answer).rstrip(".") in PLACEHOLDERS
        or not WORDS.search(answer)
        for answer in row.answers
    )


def answers_with_question(row: CleanedRow, job: Params) -> bool:
    """Tell whether an answer consists of the words of its question."""
    return any(words_of(question) == words_of(answer) for question, answer in row.exchanges())


def ends_in_link_list(row: CleanedRow, job: Params) -> bool:
    """Tell whether the last answer only points elsewhere."""
    return is_link_list(row.raw_answers[-1])


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
    return bool(job.language) and any(
        is_other_language(question, answer, job.language) for question, answer in row.exchanges()
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
    ("personal_data", has_personal_data),
    ("other_language", has_other_language),
)
REASONS = (*(reason for reason, _ in DROP_TESTS), "dangerous_advice", "too_long")
CHANGES = (
    *turn_order.RULES,
    *(name for name, _ in TEXT_RULES),
    "control_token_broken_up",
    "empty_system_message",
    "dangerous_advice_flagged",
)


def is_link_list(answer: str) -> bool:
    """Tell whether an answer only points elsewhere.

    Such an answer consists of links, or of lists of resources under headings, without a sentence.
    """
    if "://" in answer or "www." in answer:
        links = len(URL.findall(answer))
        rest = URL.sub(" ", answer)
        words = [word for word in WORDS.findall(rest) if not word.isdigit()]
        mostly_links = len(words) < 4 * links and not SENTENCE.search(rest)
        if links and (len(words) < 8 or mostly_links):
            return True
    if "- " not in answer and "* " not in answer:
        return False
    pieces = [piece.strip() for piece in re.split(r"\n|[^\S\n]{2,}", answer) if piece.strip()]
    headings = [piece for piece in pieces if not piece.startswith(("- ", "* "))]
    return (
        0 < len(headings) < len(pieces)
        and all(heading.endswith(":") for heading in headings)
        and any(RESOURCES.search(heading) for heading in headings)
    )


def is_other_language(question: str, answer: str, wanted: str) -> bool:
    """Tell whether an answer is in another language than `wanted`, by py3langid."""
    import py3langid  # a second to import; only the prepare stage needs it

    text = answer if len(answer) >= WITH_QUESTION else f"{question}\n{answer}"
    if len(text) < TOO_SHORT_TO_TELL:
        return False
    language, _ = py3langid.classify(text[:LANGUAGE_CHARACTERS])
    return language != wanted


def check_language(wanted: str) -> None:
    """Raise UserError for a language that the detector does not know; "" means any language."""
    if not wanted:
        return
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # a second to import

    known = sorted(LanguageIdentifier.from_model_file(MODEL_FILE).labels)
    if wanted not in known:
        raise UserError(
            f"language `{wanted}` is not one the detector knows; expected one of "
            f"{', '.join(known)}, or empty for any."
        )


# -------------------------------------------------------------------------------------------------
# a row


def clean_row(
    messages: list[dict[str, str]], job: Params
) -> tuple[list[dict[str, str]], str, dict[str, tuple[str, str]]]:
    """Return cleaned messages, the reason to drop the row, and (before, after) by rule.

    The reason is empty for a row that is kept. Dangerous advice is among the changes, as (its text,
    the rule that matched it).
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
    if reason or job.dangerous_advice == "ignore":
        return cleaned, reason, changed
    hits = [
        hit for question, answer in row.exchanges() for hit in advice.find_harmful(answer, question)
    ]
    if hits:
        rule, text = hits[0]
        reason = "dangerous_advice" if job.dangerous_advice == "drop" else ""
        changed[reason or "dangerous_advice_flagged"] = (text, f"rule {rule}")
    return cleaned, reason, changed


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
