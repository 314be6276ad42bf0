"""Read a filled-in sheet back: who found which text right, and which must be changed.

    text = sign_off.read_sheet(Path("review.csv"))

A text that was found right is signed off. One that was found wrong is marked as rejected: until it
is mended or removed, the tests fail and runs refuse to train on it. Every verdict is kept in
lib/medical/reviews.jsonl.
"""

import csv
import io
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from lib.common import files
from lib.common.errors import UserError
from lib.medical.texts import bundled, sealed
from lib.runs.review.sheet import COLUMNS, READ_BACK, VERDICTS

LOG = "reviews.jsonl"
STATES = {"right": "clinician", "wrong": "rejected", "change": "draft"}
DAY = re.compile(r"\d{4}-\d\d-\d\d")
MOST_SHOWN = 10  # faults of a sheet that are listed


class Verdict(NamedTuple):
    """What a reviewer says of one text."""

    file: str
    id: str
    seal: str
    verdict: str
    comment: str
    role: str
    date: str


def read_sheet(path: Path) -> str:
    """Enter a sheet's verdicts in the bundled files; return in words what was done.

    Raise UserError, and change nothing, if any line cannot be used.
    """
    verdicts = _read_verdicts(path)
    faults = [fault for verdict in verdicts if (fault := _find_fault(verdict))]
    faults += _find_stale(verdicts)
    if faults:
        more = f"\n... and {len(faults) - MOST_SHOWN} more" if len(faults) > MOST_SHOWN else ""
        raise UserError(
            f"{files.format_path(path)}: nothing was entered, because of\n"
            + "\n".join(faults[:MOST_SHOWN])
            + more
        )
    for name in bundled.KINDS:
        reviews = {each.id: _review_of(each) for each in verdicts if each.file == name}
        if reviews:
            _enter(bundled.FOLDER / name, reviews)
    _log(verdicts)
    return _summarise(verdicts)


def _review_of(given: Verdict) -> dict[str, str]:
    """Return what stands as a text's review; one that is to be changed is a draft again."""
    review = {"state": STATES[given.verdict], "role": given.role, "date": given.date}
    return review | ({"seal": given.seal} if given.verdict == "right" else {})


def _read_verdicts(path: Path) -> list[Verdict]:
    """Return the lines that have a verdict."""
    if not path.is_file():
        raise UserError(
            f"SHEET: {files.format_path(path)} is not a file. Expected the CSV file that the page "
            f"saved, or runs/review.csv filled in; `make review` writes both."
        )
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(
            f"{files.format_path(path)} is not UTF-8. Save the sheet as CSV in UTF-8."
        ) from None
    head = content.split("\n", 1)[0]
    # spreadsheets of many countries write semicolons
    separator = ";" if head.count(";") > head.count(",") else ","
    lines = csv.DictReader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    names = lines.fieldnames or []
    if twice := sorted({name for name in names if name and names.count(name) > 1}):
        raise UserError(f"{files.format_path(path)} has two columns {', '.join(twice)}.")
    if missing := [name for name in READ_BACK if name not in names]:
        raise UserError(
            f"{files.format_path(path)} has no column {', '.join(missing)}. Expected the columns "
            f"of runs/review.csv: {', '.join(COLUMNS)}."
        )
    try:
        verdicts = [_read_line(line) for line in lines]
    except csv.Error as error:
        raise UserError(
            f"{files.format_path(path)}, line {lines.line_num}: {error}. "
            f"Save the sheet as CSV again."
        ) from None
    filled = [each for each in verdicts if each.verdict or each.comment]
    if not filled:
        raise UserError(
            f"{files.format_path(path)} has no verdict. Write {', '.join(VERDICTS)} in the column "
            f"`verdict` of each text that was read."
        )
    return filled


def _read_line(line: dict[str, str | None]) -> Verdict:
    given = {name: (line[name] or "").strip() for name in READ_BACK}
    given["verdict"] = given["verdict"].lower()
    given["role"] = " ".join(given["role"].split())
    given["comment"] = "\n".join(given["comment"].splitlines())  # U+2028 and its like are line ends
    return Verdict(**given)


def _find_fault(given: Verdict) -> str:
    """Return what keeps a line from being used, or ""."""
    where = f"{given.file} {given.id}"
    if not given.verdict:
        return f"{where}: a comment without a verdict; expected {', '.join(VERDICTS)}"
    if given.verdict not in VERDICTS:
        return f"{where}: the verdict {given.verdict!r}; expected {', '.join(VERDICTS)}"
    if given.verdict != "right" and not given.comment:
        return f"{where}: {given.verdict!r} without a comment; say what should stand there"
    if sum(map(str.isalpha, given.role)) < 2 or "language model" in given.role.lower():
        return f"{where}: the role {given.role!r}; say who read it, for example emergency physician"
    try:
        if not DAY.fullmatch(given.date):
            raise ValueError
        is_past = date.fromisoformat(given.date) <= date.today()
    except ValueError:
        return f"{where}: the date {given.date!r}; expected year-month-day, as 2026-11-29"
    return "" if is_past else f"{where}: the date {given.date} has not come yet"


def _find_stale(verdicts: list[Verdict]) -> list[str]:
    """Return the lines whose text is not there, is there twice, or has changed since the sheet."""
    entries = {
        (name, entry["id"]): entry for name in bundled.KINDS for entry in bundled.read_entries(name)
    }
    faults = []
    seen = set()
    for given in verdicts:
        place = (given.file, given.id)
        where = " ".join(place)
        if place not in entries:
            faults.append(f"{where}: there is no such text")
        elif sealed.seal(entries[place]) != given.seal:
            faults.append(f"{where}: the text has changed since this sheet; read the new one")
        elif given.verdict == "right" and _is_rejected(entries[place]):
            faults.append(f"{where}: another reviewer rejected it; it must be mended first")
        elif place in seen:
            faults.append(f"{where}: two verdicts")
        seen.add(place)
    return faults


def _is_rejected(entry: dict[str, Any]) -> bool:
    return entry.get("review", {}).get("state") == "rejected"


def _enter(path: Path, reviews: dict[str, dict[str, str]]) -> None:
    """Write reviews {id: review} into a bundled file, and leave everything else as it is."""
    enter = {".jsonl": _enter_lines, ".json": _enter_json, ".yaml": _enter_yaml}[path.suffix]
    files.atomic_write(path, enter(path.read_text(encoding="utf-8"), reviews))


def _enter_lines(content: str, reviews: dict[str, dict[str, str]]) -> str:
    lines = []
    for line in filter(None, content.split("\n")):
        entry = json.loads(line)
        if entry["id"] in reviews:
            line = json.dumps(entry | {"review": reviews[entry["id"]]}, ensure_ascii=False)
        lines.append(f"{line}\n")
    return "".join(lines)


def _enter_json(content: str, reviews: dict[str, dict[str, str]]) -> str:
    entries: list[dict[str, Any]] = json.loads(content)
    for entry in entries:
        if entry["id"] in reviews:
            entry["review"] = reviews[entry["id"]]
    return json.dumps(entries, ensure_ascii=False, indent=1) + "\n"


def _enter_yaml(content: str, reviews: dict[str, dict[str, str]]) -> str:
    """Put a line `review: {...}` below the id, or in the place of the one that is there.

    The file is not written by a YAML library, which would lose its comments and its layout.
    """
    lines = []
    own = None
    for line in content.removesuffix("\n").split("\n"):
        if found := re.match(r"(\s*)- id: (\S+)$", line):
            own = found[2]
            lines.append(line)
            if own in reviews:
                review = json.dumps(reviews[own], ensure_ascii=False)
                lines.append(f"{found[1]}  review: {review}")
        elif not (own in reviews and re.match(r"\s+review: ", line)):
            lines.append(line)
    return "\n".join(lines) + "\n"


def _log(verdicts: list[Verdict]) -> None:
    path = bundled.FOLDER / LOG
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = [json.dumps(verdict._asdict(), ensure_ascii=False) + "\n" for verdict in verdicts]
    files.atomic_write(path, before + "".join(lines))


def _summarise(verdicts: list[Verdict]) -> str:
    count: Callable[[str], int] = [verdict.verdict for verdict in verdicts].count
    lines = [
        f"{count('right')} signed off, {count('change')} to change, {count('wrong')} rejected; all "
        f"of them are in lib/medical/{LOG}"
    ]
    lines += [
        f"  {verdict.file} {verdict.id} ({verdict.verdict}): {verdict.comment}"
        for verdict in verdicts
        if verdict.verdict != "right"
    ]
    if count("wrong"):
        lines.append("`make test` fails until a rejected text is mended or removed.")
    return "\n".join(lines)
