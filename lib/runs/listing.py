"""The runs on this disk: found by name, and listed with where each stands."""

import contextlib
import datetime
import pathlib
import socket
from typing import Any

from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.common.machine import is_alive
from lib.common.text import format_size
from lib.pages.headline import headline_numbers, load_exams
from lib.record import run_folder, run_record
from lib.record.run_record import FREED, STAGES


def find(names: str = "") -> list[pathlib.Path]:
    """Run folders by name under the runs folder, or by path; all there are, oldest first, without names. UserError names what is no run."""
    top, found = run_folder.runs_folder(), []
    if not names.split():
        return sorted(
            (p.parent for p in top.glob("*/run.json")),
            key=lambda folder: (_read(folder) or {}).get("created", ""),
        )
    for name in dict.fromkeys(names.split()):
        folder = next((f for f in (top / name, ROOT / name) if (f / "run.json").is_file()), None)
        if folder is None:
            raise UserError(
                f"`{name}` is not a run: neither `{files.shown(top / name)}` nor `{name}` has a run.json. "
                f"Runs there: {run_folder.list_names()}."
            )
        found.append(folder)
    return found


def _read(folder: pathlib.Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError):
        return run_record.read_record(folder / "run.json")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# the list


def listed(folders: list[pathlib.Path]) -> list[dict[str, Any]]:
    """A row a run: state, age of its last sign, headline, size on disk; the latest first."""
    rows = []
    for folder in folders:
        run, size = _read(folder), format_size(files.size_of(folder))
        if run is None:
            rows.append(
                (
                    "",
                    {
                        "run": folder.name,
                        "state": "record not readable",
                        "age": "?",
                        "held-out loss": "",
                        "exam": "",
                        "size": size,
                    },
                )
            )
            continue
        attempts = [a for stage in STAGES for a in run["stages"][stage]["attempts"]]
        last = max(
            [a.get("end") or a.get("start") or "" for a in attempts] + [run.get("created") or ""]
        )
        rows.append(
            (
                last,
                {
                    "run": folder.name,
                    "state": state(run),
                    "age": age(last),
                    **_headline(folder),
                    "size": size,
                },
            )
        )
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)]


def state(run: dict[str, Any]) -> str:
    """The first stage that is not finished and how it stands, or `finished`."""
    before = "nothing yet"
    for stage in STAGES:
        entry = run["stages"][stage]
        if entry["status"] == "running":
            last = entry["attempts"][-1]
            gone = last.get("host") == socket.gethostname() and not any(
                is_alive(last[key]) for key in ("pid", "kernel") if key in last
            )
            return f"{stage} cut off: its process is gone" if gone else f"{stage} running"
        if entry["status"] == "pending" and not entry["attempts"]:
            return before
        if entry["status"] != "finished":
            return f"{stage} {entry['status']}"
        before = f"{stage} finished"
    freed = [part for part in FREED if run_record.when_pruned(run, part)]
    return "finished" + f", {' and '.join(freed)} pruned" * bool(freed)


def age(since: str) -> str:
    """How long ago a time of a record was, in its largest unit."""
    try:
        seconds = (
            datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(since)
        ).total_seconds()
    except (ValueError, TypeError):
        return "?"
    if seconds < 0:
        return "later than now"  # a clock was set back
    unit, name = next(
        (pair for pair in ((86400, "days"), (3600, "h"), (60, "min")) if seconds >= 2 * pair[0]),
        (1, "s"),
    )
    return f"{seconds / unit:.0f} {name}"


def _headline(folder: pathlib.Path) -> dict[str, str]:
    results, exams = {}, {}
    with contextlib.suppress(UserError):  # of a run that has none yet, or whose are torn
        results = files.read_json(folder / "results.json", "results file")
        exams = load_exams(folder, results)
    train = results.get("train", {})
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    said = [
        one["value"]
        for one in headline_numbers({}, exams)
        if one["name"].startswith("exam ") and one["value"]
    ]
    return {
        "held-out loss": "not measured"
        if before is None or after is None
        else f"{before:.3f} -> {after:.3f}",
        "exam": said[0] if said else "not measured",
    }
