"""Read multiple-choice items: the bundled exam, a local file or folder, or a set on the hub.

items = read_items("bundled:exam")

An item is {"id", "topic", "question", "options": {letter: text}, "answer_letter"}. If it has a
context, "question" begins with it and "stem" is the bare question that training rows may contain.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

from lib.common.errors import UserError
from lib.data import chat
from lib.data.reading import formats, hub_rows, shapes, sources
from lib.data.reading.row import IDS, TOPICS
from lib.data.reading.row_parts import multiple_choice, verdicts
from lib.data.reading.row_parts.fields import (
    BadRow,
    Fields,
    as_text,
    require_fields,
    require_unicode,
)
from lib.data.reading.row_parts.multiple_choice import Habits
from lib.params import Source

EXPECTED = (
    'Expected rows of question, options and answer_letter, for example {"id": "q1", '
    '"question": "...", "options": {"A": "...", "B": "..."}, "answer_letter": "B"}.'
)
MMLU = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
MOST_OPTIONS = 26  # a letter each


# -------------------------------------------------------------------------------------------------
# sets on the hub: a row in its own columns becomes a row of the choice shape


def convert_medqa(row: dict[str, Any]) -> dict[str, Any]:
    """Convert GBaker/MedQA-USMLE-4-options: answer_idx is a letter, meta_info the exam's step."""
    return {
        "question": row["question"],
        "options": row["options"],
        "answer_letter": row["answer_idx"],
        "topic": row.get("meta_info"),
    }


def _letter(number: Any) -> Any:
    """Return the letter of an option that these sets count from 0."""
    is_known = isinstance(number, int) and 0 <= number < MOST_OPTIONS
    return chr(65 + number) if is_known else number


def convert_medmcqa(row: dict[str, Any]) -> dict[str, Any]:
    """Convert openlifescienceai/medmcqa: options opa to opd; cop is the right one, from 0."""
    return {
        "id": row["id"],
        "question": row["question"],
        "options": [row[f"op{letter}"] for letter in "abcd"],
        "answer_letter": _letter(row["cop"]),
        "topic": row["subject_name"],
    }


def convert_pubmedqa(row: dict[str, Any]) -> dict[str, Any]:
    """Convert qiaojin/PubMedQA: final_decision is yes, no or maybe.

    context["contexts"] is the abstract without its conclusion, one text per section.
    """
    return {
        "id": row["pubid"],
        "context": "\n".join(row["context"]["contexts"]),
        "question": row["question"],
        "options": ["yes", "no", "maybe"],
        "answer_letter": row["final_decision"],
    }


def convert_mmlu(row: dict[str, Any]) -> dict[str, Any]:
    """Convert cais/mmlu: choices is a list; answer is the right one, from 0."""
    return {
        "question": row["question"],
        "options": row["choices"],
        "answer_letter": _letter(row["answer"]),
        "topic": row["subject"],
    }


Convert = Callable[[dict[str, Any]], dict[str, Any]]
# Configurations, split, and the function that converts a row. medmcqa does not publish the answers
# of its test split, and PubMedQA has one split only.
HUB: dict[str, tuple[tuple[str | None, ...], str, Convert]] = {
    "GBaker/MedQA-USMLE-4-options": ((None,), "test", convert_medqa),
    "openlifescienceai/medmcqa": ((None,), "validation", convert_medmcqa),
    "qiaojin/PubMedQA": (("pqa_labeled",), "train", convert_pubmedqa),
    "cais/mmlu": (MMLU, "test", convert_mmlu),
}


def _read_known_set(own: Source) -> Iterator[tuple[str, Any]]:
    name = own.dataset
    configurations, split, convert = HUB[name]
    split = own.split or split
    for configuration in (own.config,) if own.config else configurations:
        label = f"{name} ({configuration})" if configuration else name
        where = f"{label}, {split}"
        source = own.model_copy(update={"config": configuration or "", "split": split})
        rows = hub_rows.read_hub_rows(source, what="exam")
        for number, (_, row) in enumerate(rows, 1):
            try:
                yield f"{where} row {number}", convert(row)
            except (KeyError, TypeError) as error:
                fault = BadRow(
                    f"row {number} does not have the columns this set is known for ({error}); it "
                    f"has {', '.join(row)}"
                )
                yield where, fault


# -------------------------------------------------------------------------------------------------
# items


def read_items(exam: str | Source) -> list[dict[str, Any]]:
    """Read the items of `bundled:exam`, a file, a folder or a hub id, or of a part of one.

    The UserError of a bad item names the file, the line and what is expected there.
    """
    source = sources.exam_source(exam)
    is_local = sources.find_local(source, "exam") is not None
    items = []
    first_places: dict[str, str] = {}
    rows = list(itertools.islice(_read_rows(source), source.max_rows or None))
    habits = multiple_choice.find_habits(rows, source.columns)
    for where, values in rows:
        try:
            item = _to_item(values, where, habits, source.columns)
            if is_local:  # a set on the hub is asked as it was published; a file can be corrected
                _require_distinct_options(item)
            if item["id"] in first_places:
                raise BadRow(
                    f"its id `{item['id']}` is also that of {first_places[item['id']]}. Results "
                    f"are paired by id: give each item an id of its own."
                )
        except BadRow as error:
            raise UserError(f"exam: {where}: {error}\n{EXPECTED}") from None
        first_places[item["id"]] = where
        items.append(item)
    if not items:
        raise UserError(f"exam `{sources.name_exam(exam)}` has no items.\n{EXPECTED}")
    return items


def _read_rows(source: Source) -> Iterator[tuple[str, Any]]:
    found = sources.find_local(source, "exam")
    if found:
        for part in found.parts:
            yield from formats.read_file(part.path, source.columns, inside=part.inside)
    elif source.dataset in HUB:
        yield from _read_known_set(source)
    else:
        tested = source.model_copy(update={"split": source.split or "test"})
        yield from hub_rows.read_hub_rows(tested, what="exam")


def _to_item(
    values: Any, where: str, habits: Habits, columns: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return a row as an item.

    Raise BadRow when something is missing, or would break the question.
    """
    row = Fields(require_fields(values), columns or {})
    verdicts.drop_with_media(row)
    _require_filled(row, "question", row.is_filled("question"))
    _require_filled(row, "options", multiple_choice.is_choice(row))
    _require_filled(row, "answer_letter", any(map(row.is_filled, multiple_choice.RIGHT)))
    item = multiple_choice.to_choice(row, habits)
    context = shapes.read_context(row).strip()
    stem = item["question"].strip()
    item["id"] = next((as_text(row.get(name)) for name in IDS if row.is_filled(name)), where)
    item["topic"] = next((as_text(row.get(name)) for name in TOPICS if row.is_filled(name)), "")
    if context:
        item["question"] = f"{context}\n\n{stem}"
        item["stem"] = stem
    else:
        item["question"] = stem
    options = item["options"]
    texts = [item["question"], *options.values()]
    require_unicode(item["id"], item["topic"], *options, *texts)
    if len(options) > MOST_OPTIONS:
        raise BadRow(
            f"it has {len(options)} options; expected 2 to {MOST_OPTIONS}, one per letter."
        )
    token = re.search(chat.CONTROL.pattern + r"\w+>", "\n".join(texts))
    if token:
        raise BadRow(
            f"its text contains the control token {token[0]}, which could end the question early. "
            f"Remove it."
        )
    return item


def _require_filled(row: Fields, field: str, is_filled: bool) -> None:
    """Raise BadRow unless the row has a value for a field."""
    if not is_filled:
        raise BadRow(f"it has no `{field}`; its fields are {row.describe() or '(none)'}.")


def _require_distinct_options(item: dict[str, Any]) -> None:
    """Raise BadRow for empty or equal options."""
    texts = {letter: " ".join(text.split()) for letter, text in item["options"].items()}
    letter_of: dict[str, str] = {}
    for letter, text in texts.items():
        if not text:
            raise BadRow(f"its option {letter} is empty; expected text for each option.")
        if text in letter_of:
            raise BadRow(
                f"its options {letter_of[text]} and {letter} are the same, {text[:80]!r}, but only "
                f"one could count as right."
            )
        letter_of[text] = letter
