"""Find the runs on this disk by name, and list them with their states."""

import contextlib
import datetime
import pathlib
import socket
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.common.machine import is_alive
from lib.common.text import format_size, shorten
from lib.pages.headline import headline_numbers, load_exams
from lib.record import run_folder, run_record
from lib.record.run_record import FREED, STAGES
from lib.record.schema import Attempt, RunRecord

UNITS = ((86400, "days"), (3600, "h"), (60, "min"))  # units of an age, in seconds


def find_runs(names: str = "") -> list[pathlib.Path]:
    """Return run folders by name under the runs folder, or by path; without names, all of them.

    All runs are sorted by age, oldest first. Raise UserError for a name that is not a run.
    """
    top = run_folder.runs_folder()
    if not names.split():
        return sorted((path.parent for path in top.glob("*/run.json")), key=_created)
    folders = []
    for name in dict.fromkeys(names.split()):
        folder = run_folder.find_run(name)
        if folder is None:
            raise UserError(
                f"`{shorten(name)}` is not a run: it is neither the name of a folder in "
                f"`{files.format_path(top)}` nor the path of one that has a run.json. "
                f"Known runs: {run_folder.list_names()}."
            )
        folders.append(folder)
    return folders


def read_if_complete(folder: pathlib.Path) -> RunRecord | None:
    """Return a run's record, or None if it cannot be read."""
    with contextlib.suppress(UserError):
        return run_record.read_record(folder / "run.json")
    return None


def _created(folder: pathlib.Path) -> str:
    record = read_if_complete(folder)
    return record.get("created", "") if record else ""


# --------------------------------------------------------------------------------------------------
# the list


def list_runs(folders: list[pathlib.Path]) -> list[dict[str, Any]]:
    """Return a row for each run: state, age, headline numbers, size on disk; the latest first."""
    rows = []
    for folder in folders:
        record = read_if_complete(folder)
        last = _last_sign(record) if record else ""
        row = {
            "run": folder.name,
            "state": describe_state(record) if record else "record not readable",
            "age": format_age(last),
            **(_headline(folder) if record else {"held-out loss": "", "exam": ""}),
            "size": format_size(files.size_of(folder)),
        }
        rows.append((last, row))
    rows.sort(key=lambda pair: pair[0], reverse=True)
    return [row for _, row in rows]


def _last_sign(record: RunRecord) -> str:
    """Return the latest time in a record: an attempt's end or start, or the run's creation."""
    attempts = [attempt for stage in STAGES for attempt in record["stages"][stage]["attempts"]]
    times = [attempt.get("end") or attempt.get("start") or "" for attempt in attempts]
    return max([*times, record.get("created") or ""])


def describe_state(record: RunRecord) -> str:
    """Return the first unfinished stage with its status, or `finished`."""
    before = "nothing yet"
    for stage in STAGES:
        entry = record["stages"][stage]
        if entry["status"] == "running":
            gone = _is_gone(entry["attempts"][-1])
            if "stopped" in entry["attempts"][-1]:
                return f"{stage} stopped" if gone else f"{stage} stopped, its notebook is open"
            return f"{stage} cut off: its process is gone" if gone else f"{stage} running"
        if entry["status"] == "pending" and not entry["attempts"]:
            return before
        if entry["status"] != "finished":
            return f"{stage} {entry['status']}"
        before = f"{stage} finished"
    freed = [part for part in FREED if run_record.when_pruned(record, part)]
    return f"finished, {' and '.join(freed)} pruned" if freed else "finished"


def _is_gone(attempt: Attempt) -> bool:
    """Tell whether the processes of an open attempt have ended; False on another machine."""
    if attempt.get("host") != socket.gethostname():
        return False
    processes = [attempt.get("pid"), attempt.get("kernel")]
    return not any(is_alive(pid) for pid in processes if pid is not None)


def format_age(since: str) -> str:
    """Return how long ago a time in a record was, in the largest suitable unit."""
    try:
        start = datetime.datetime.fromisoformat(since)
        seconds = (datetime.datetime.now(datetime.UTC) - start).total_seconds()
    except (ValueError, TypeError):
        return "?"
    if seconds < 0:
        return "later than now"  # the clock was set back
    for unit, name in UNITS:
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def _headline(folder: pathlib.Path) -> dict[str, str]:
    """Return held-out loss and exam for the list; a damaged file is named, not passed over."""
    if not (folder / "results.json").exists():  # nothing has finished yet
        return {"held-out loss": "not measured", "exam": "not measured"}
    try:
        results = files.read_results(folder)
    except UserError:
        return {"held-out loss": "results.json is damaged", "exam": ""}
    train = results.get("train", {})
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    measured = before is not None and after is not None
    return {
        "held-out loss": f"{before:.3f} -> {after:.3f}" if measured else "not measured",
        "exam": _exam_score(folder, results),
    }


def _exam_score(folder: pathlib.Path, results: dict[str, Any]) -> str:
    try:
        numbers = headline_numbers({}, load_exams(folder, results))
    except UserError:
        return "exam.json is damaged"
    scores = [
        number["value"]
        for number in numbers
        if number["name"].startswith("exam ") and number["value"]
    ]
    return scores[0] if scores else "not measured"
