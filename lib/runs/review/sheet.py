"""Write all bundled medical texts as a sheet for a clinician: a page to tick, and a CSV file.

    html, csv = sheet.write_sheet()

Both are filled in without a network. The page saves its ticks as a CSV file of the same columns,
and sign_off.py reads either.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

from lib.common import files
from lib.common.errors import UserError
from lib.medical.texts import bundled, sealed
from lib.medical.texts.schema import Passage, Sourced
from lib.pages import page
from lib.record import run_folder

VERDICTS = ("right", "change", "wrong")
READ_BACK = ("file", "id", "seal", "verdict", "comment", "role", "date")
COLUMNS = (*READ_BACK, "text", "for whom", "guidance", "state")
TITLES = {
    "first_aid.jsonl": "Questions and answers to train on",
    "exam.jsonl": "Exam",
    "safety.jsonl": "Safety set",
    "acts.yaml": "Acts, right and harmful",
    "harmful_advice.json": "Rules on harmful advice",
    "first_aid_es.jsonl": "Questions and answers, Spanish",
    "exam_es.jsonl": "Exam, Spanish",
    "first_aid_fr.jsonl": "Questions and answers, French",
    "exam_fr.jsonl": "Exam, French",
}
# the parts of an entry that are read, and how they are called on the sheet
PARTS = {
    "question": "question",
    "prompt": "prompt",
    "answer": "answer",
    "good": "a right answer",
    "is": "what it is",
    "why": "why",
    "said": "said as",
    "harmful": "must match",
    "must": "must match",
    "fine": "must not match",
    "must_not": "must not match",
}


class Entry(NamedTuple):
    """A text on the sheet."""

    file: str
    id: str
    seal: str
    parts: list[tuple[str, str]]  # what it is called, and its text
    meant_for: str
    passages: list[Passage]
    state: str


def write_sheet() -> tuple[Path, Path]:
    """Write review.html and review.csv into the runs folder; return their paths.

    Raise UserError if a filled-in review.csv is there: its verdicts would be lost.
    """
    entries = list_entries()
    folder = run_folder.runs_folder()
    _keep_verdicts(folder / "review.csv")
    by_file = {
        title: [entry for entry in entries if entry.file == name] for name, title in TITLES.items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    html = page.write_page(
        folder / "review.html",
        "review.html.jinja",
        by_file=by_file,
        verdicts=VERDICTS,
        columns=READ_BACK,
        counts=count_by_state(),
    )
    files.atomic_write(folder / "review.csv", _as_csv(entries))
    return html, folder / "review.csv"


def _keep_verdicts(path: Path) -> None:
    if not path.is_file():
        return
    lines = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig", errors="replace")))
    if any((line.get("verdict") or line.get("comment") or "").strip() for line in lines):
        raise UserError(
            f"{files.format_path(path)} is filled in. Enter it with `make review "
            f"SHEET={files.format_path(path)}`, or move it away, before a new one is written."
        )


def count_by_state() -> list[dict[str, Any]]:
    """Return how many texts of each file are at which state of review."""
    return [
        {"texts": title, **bundled.count_states(bundled.read_texts(name))}
        for name, title in TITLES.items()
    ]


def list_entries() -> list[Entry]:
    """Return every bundled text, in the order of the files."""
    passages = bundled.read_passages()
    entries = []
    for name in TITLES:
        texts = bundled.read_texts(name)
        if unknown := bundled.find_unknown(texts, passages):
            raise UserError(f"{name} names passages that guidance.jsonl lacks: {unknown[0]}.")
        entries += [
            _describe(name, text, entry, passages)
            for text, entry in zip(texts, bundled.read_entries(name), strict=True)
        ]
    return entries


def _describe(
    name: str, text: Sourced, entry: dict[str, Any], passages: dict[str, Passage]
) -> Entry:
    parts = [(label, _as_text(entry[key])) for key, label in PARTS.items() if entry.get(key)]
    if "options" in entry:
        right = entry["answer_letter"]
        options = [
            f"{letter}: {option}{'   <- right' if letter == right else ''}"
            for letter, option in entry["options"].items()
        ]
        parts.append(("options", "\n".join(options)))
    if "criteria" in entry:
        acts = [f"{c['kind']}: {c['act']} ({c['points']:+d})" for c in entry["criteria"]]
        parts.append(("judged by", "\n".join(acts)))
    meant = [text.audience, text.age, text.region, entry.get("urgency", "")]
    return Entry(
        name,
        text.id,
        sealed.seal(entry),
        parts,
        ", ".join([*filter(None, meant), *entry.get("population", [])]),
        [passages[named] for named in text.guidance],
        text.review.state,
    )


def _as_text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "\n".join(value)


def _as_csv(entries: list[Entry]) -> str:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for entry in entries:
        text = "\n".join(f"{label}: {said}" for label, said in entry.parts)
        sources = "\n".join(map(cite, entry.passages))
        writer.writerow(
            [entry.file, entry.id, entry.seal, "", "", "", "", text, entry.meant_for, sources]
            + [entry.state]
        )
    return "\ufeff" + out.getvalue()  # without the mark, Excel reads another encoding


def cite(passage: Passage) -> str:
    """Return a passage of guidance in one line, with its quotation or "not checked"."""
    year = f" ({passage.year})" if passage.year else ""
    section = f", {passage.section}" if passage.section else ""
    quote = f'"{passage.checked}"' if passage.is_checked else passage.checked
    reported = f'; reported: "{passage.reported.quote}"' if passage.reported else ""
    return f"{passage.issuer}: {passage.title}{year}{section}. {quote}{reported} {passage.address}"
