"""Multiple-choice items: the bundled exam, a local file or folder of the choice shape, or a known set of the hub.

An item is {"id", "topic", "question", "options": {letter: text}, "answer_letter"}. Where there is a context, "question" begins with it, and
"stem" is the question alone, as training rows may hold it.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from lib.common.errors import UserError
from lib.data import chat, formats, shapes, sources
from lib.data.shapes import BadRow
from lib.params import Source

EXPECTED = (
    'Expected rows of question, options and answer_letter, for example {"id": "q1", "question": "...", '
    '"options": {"A": "...", "B": "..."}, "answer_letter": "B"}.'
)
MMLU = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)


# ---------------------------------------------------------------------------------------------------------------------
# sets of the hub: a row in its own columns as a row of the choice shape


def medqa(row: dict[str, Any]) -> dict[str, Any]:
    """GBaker/MedQA-USMLE-4-options: question, options {A..D}, answer_idx (a letter), meta_info (the exam's step)."""
    return {
        "question": row["question"],
        "options": row["options"],
        "answer_letter": row["answer_idx"],
        "topic": row.get("meta_info"),
    }


def medmcqa(row: dict[str, Any]) -> dict[str, Any]:
    """openlifescienceai/medmcqa: opa, opb, opc, opd; cop is the right one, from 0, and -1 in the test split."""
    return {
        "id": row["id"],
        "question": row["question"],
        "options": [row[f"op{letter}"] for letter in "abcd"],
        "answer_letter": row["cop"],
        "topic": row["subject_name"],
    }


def pubmedqa(row: dict[str, Any]) -> dict[str, Any]:
    """qiaojin/PubMedQA: the abstract without its conclusion is context["contexts"], one text a section; final_decision is yes, no or maybe."""
    return {
        "id": row["pubid"],
        "context": "\n".join(row["context"]["contexts"]),
        "question": row["question"],
        "options": ["yes", "no", "maybe"],
        "answer_letter": row["final_decision"],
    }


def mmlu(row: dict[str, Any]) -> dict[str, Any]:
    """cais/mmlu: choices, a list; answer is the right one, from 0."""
    return {
        "question": row["question"],
        "options": row["choices"],
        "answer_letter": row["answer"],
        "topic": row["subject"],
    }


# configurations, split (medmcqa keeps the answers of its test split to itself, PubMedQA has the one), and how its rows are read
HUB: dict[str, tuple[tuple[str | None, ...], str, Callable[[dict[str, Any]], dict[str, Any]]]] = {
    "GBaker/MedQA-USMLE-4-options": ((None,), "test", medqa),
    "openlifescienceai/medmcqa": ((None,), "validation", medmcqa),
    "qiaojin/PubMedQA": (("pqa_labeled",), "train", pubmedqa),
    "cais/mmlu": (MMLU, "test", mmlu),
}


def _hub(name: str) -> Iterator[tuple[str, Any]]:
    configurations, split, convert = HUB[name]
    for configuration in configurations:
        where = f"{name}{f' ({configuration})' if configuration else ''}, {split}"
        for number, (_, row) in enumerate(
            sources.hub_rows(Source(dataset=name), None, split, configuration), 1
        ):
            try:
                yield f"{where} row {number}", convert(row)
            except (KeyError, TypeError) as error:
                yield (
                    where,
                    BadRow(
                        f"row {number} is not in the columns this set is known by ({error}); it has {', '.join(row)}"
                    ),
                )


# ---------------------------------------------------------------------------------------------------------------------
# reading


def read(name: str) -> list[dict[str, Any]]:
    """The items of `bundled:exam`, a file, a folder or a hub id; UserError names file, line and what is expected."""
    if paths := sources.local_files(name, "exam"):
        rows: Iterable[tuple[str, Any]] = (
            pair for path in paths for pair in formats.rows(path, {})
        )
    else:
        rows = _hub(name) if name in HUB else sources.hub_rows(Source(dataset=name), None, "test")
    items, seen = [], {}
    for where, values in rows:
        try:
            item = _item(values, where)
            if (
                paths
            ):  # a set of the hub is asked as it was published; what is at hand can be mended
                _distinct(item, values)
            if item["id"] in seen:
                raise BadRow(
                    f"its id `{item['id']}` is that of {seen[item['id']]} too; results are paired by id, so each must be its own."
                )
        except BadRow as error:
            raise UserError(f"exam: {where}: {error}\n{EXPECTED}") from None
        seen[item["id"]] = where
        items.append(item)
    if not items:
        raise UserError(f"exam `{name}` has no items.\n{EXPECTED}")
    return items


def _item(values: Any, where: str) -> dict[str, Any]:
    values = shapes.named(values)
    for key, names in (
        ("question", ("question",)),
        ("options", shapes.CHOICES),
        ("answer_letter", shapes.RIGHT),
    ):
        if all(
            str("" if values.get(name) is None else values[name]).strip() in ("", "nan")
            for name in names
        ):
            raise BadRow(
                f"it has no `{key}`; its fields are {', '.join(map(str, values)) or '(none)'}."
            )
    item = shapes.choice(values)
    context, stem = (
        text.strip() for text in (shapes.as_text(values.get("context")), item["question"])
    )
    item |= {
        "id": shapes.as_text(values.get("id")) or where,
        "topic": shapes.as_text(values.get("topic")),
    }
    item |= {"question": f"{context}\n\n{stem}", "stem": stem} if context else {"question": stem}
    texts = [item["question"], *item["options"].values()]
    shapes.encodable(item["id"], item["topic"], *item["options"], *texts)
    if len(item["options"]) > 26:
        raise BadRow(f"it has {len(item['options'])} options; expected 2 to 26, a letter each.")
    if found := re.search(chat.CONTROL.pattern + r"\w+>", "\n".join(texts)):
        raise BadRow(
            f"its text spells the control token {found[0]}, which would end the question before its end."
        )
    return item


def _distinct(item: dict[str, Any], values: dict[str, Any]) -> None:
    """BadRow for options that are empty or the same, or an answer that names one by its letter and another by its words."""
    texts = {letter: " ".join(text.split()) for letter, text in item["options"].items()}
    for number, (letter, text) in enumerate(texts.items()):
        if not text:
            raise BadRow(f"its option {letter} is empty; expected a text each.")
        if same := [earlier for earlier in list(texts)[:number] if texts[earlier] == text]:
            raise BadRow(
                f"its options {same[0]} and {letter} are the same, {text[:80]!r}, so that only one could count as right."
            )
    right = next(name for name in shapes.RIGHT if values.get(name) is not None)
    if (
        right in ("answer", "label")
        and isinstance(named := values[right], str)
        and (
            other := [
                letter
                for letter, text in texts.items()
                if text == named.strip() and letter != item["answer_letter"]
            ]
        )
    ):
        raise BadRow(
            f"its {right} {named!r} is the letter of one option and the words of another, {other[0]}; name the letter in answer_letter."
        )
