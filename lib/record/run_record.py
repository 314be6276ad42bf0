"""Write run.json and results.json of a run, so that they never claim what did not happen.

`Run` is an open run, whose owner holds the lock on its folder (lib/record/run_folder.py).
"""

import datetime
import hashlib
import os
import pathlib
import shutil
import socket
from typing import Any, Literal

from lib.common import files
from lib.common.errors import UserError
from lib.common.machine import describe_checkout, hardware, packages, uncommitted_changes
from lib.common.redact import redacted
from lib.record import earlier
from lib.record.schema import Attempt, RunRecord, Stage, StageEntry, Start, Status

STAGES: tuple[Stage, ...] = ("prepare", "train", "export")
EXAM_SECTIONS = ("exam", "exams", "safety")  # sections of results.json from lib/exam/take.py
# folders that `make prune` may remove, and the stage that makes each again
FREED = {"checkpoints": "train", "merged": "export"}
PATCH_BYTES = 2**20  # a larger patch of uncommitted changes is not kept


def timestamp() -> str:
    """Return the time in the form of the records: UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def earlier_stages(stage: str) -> tuple[Stage, ...]:
    return STAGES[: STAGES.index(stage)]


def later_stages(stage: str) -> tuple[Stage, ...]:
    return STAGES[STAGES.index(stage) + 1 :]


class Run:
    """An open, locked run folder. `data` is the content of run.json; `save` writes it."""

    def __init__(self, folder: pathlib.Path, data: RunRecord) -> None:
        self.folder = folder
        self.data = data

    def save(self) -> None:
        files.write_json(self.folder / "run.json", self.data, sealed=True)

    def stage(self, stage: str) -> StageEntry:
        return self.data["stages"][stage]

    def begin_attempt(
        self, stage: str, by: Literal["make", "notebook"], force: bool = False
    ) -> None:
        """Record that an attempt at a stage has started in this process.

        Files of an earlier attempt are set aside if they must not be continued: with `force`, or if
        the earlier stages have another result by now. An export continues nothing.
        """
        entry = self.stage(stage)
        before = self.outputs_before(stage)
        if force or stage == "export" or entry.get("started_from", before) != before:
            self._set_aside(stage)
        for freed in self.data.get("pruned", []):
            if FREED[freed["path"]] == stage:
                freed.setdefault("again", timestamp())
        if stage == "prepare":
            self.data.pop("sources_changed", None)
        entry["status"] = "running"
        entry["artifacts"] = []
        entry["started_from"] = before
        entry.pop("notebook", None)
        entry["attempts"].append(self._describe_attempt(by))
        self.data["packages"] = packages()
        self.data["hardware"] = hardware()
        self.save()

    def outputs_before(self, stage: str) -> dict[str, str | None]:
        """Return `output` of each earlier stage, on which a stage builds."""
        return {earlier: self.stage(earlier).get("output") for earlier in earlier_stages(stage)}

    def _set_aside(self, stage: str) -> None:
        """Remove or rename what an earlier attempt left, so that it is not continued."""
        self.write_results(stage, None)
        if stage != "prepare":
            # exam.json stays, since it has the hashes of the files behind each result
            for section in EXAM_SECTIONS:
                self.write_results(section, None)
        if stage == "train":
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
            ledger = self.folder / "metrics.jsonl"
            if ledger.exists():
                number = len(self.stage(stage)["attempts"])
                os.replace(ledger, self.folder / f"metrics.attempt{number}.jsonl")

    def _describe_attempt(self, by: Literal["make", "notebook"]) -> Attempt:
        """Return an attempt that begins now; uncommitted changes are kept as a patch file."""
        commit, dirty = describe_checkout()
        attempt: Attempt = {
            "by": by,
            "start": timestamp(),
            "end": None,
            "exit": None,
            "cell": None,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "commit": commit,
            "dirty": dirty,
        }
        if dirty:
            patch = uncommitted_changes().encode()
            if 0 < len(patch) <= PATCH_BYTES:
                name = f"changes-{hashlib.sha256(patch).hexdigest()[:12]}.patch"
                attempt["patch"] = name
                files.atomic_write(self.folder / name, patch)
        return attempt

    def end_attempt(self, stage: str, status: Status, reason: str, cell: int | None = None) -> None:
        """Close the open attempt with its status, the reason, and the notebook's last cell."""
        self.stage(stage)["status"] = status
        attempt = self.stage(stage)["attempts"][-1]
        attempt.pop("stopped", None)
        attempt["end"] = timestamp()
        attempt["exit"] = redacted(reason)
        attempt["cell"] = cell
        self.save()

    def seconds_since_start(self, stage: str) -> float:
        """Return the seconds since the last attempt at a stage began."""
        start = datetime.datetime.fromisoformat(self.stage(stage)["attempts"][-1]["start"])
        return (datetime.datetime.now(datetime.UTC) - start).total_seconds()

    def set_export_aside(self) -> None:
        """Drop the results of an export of another adapter; give its files a name that says so."""
        self._set_aside("export")
        tell_aside(earlier.set_export_aside(self.folder))

    def add_results(self, section: str, values: dict[str, Any]) -> None:
        """Add values to one section of results.json, before its stage ends."""
        path = self.folder / "results.json"
        present = files.read_or_set_aside(path, "results file").get(section) or {}
        self.write_results(section, {**present, **values})

    def write_results(self, section: str, values: dict[str, Any] | None) -> None:
        """Replace one section of results.json; None removes it."""
        path = self.folder / "results.json"
        results = files.read_or_set_aside(path, "results file")
        if values is None and section not in results:
            return
        results[section] = values
        written = {name: value for name, value in results.items() if value is not None}
        files.write_json(path, written, sealed=True)

    def check_finished(self, stage: str) -> tuple[bool, str]:
        """Tell whether a stage is finished with intact files; if files are damaged, also how."""
        if self.stage(stage)["status"] != "finished":
            return False, ""
        trouble = files.find_damage(self.folder, self.stage(stage)["artifacts"])
        return not trouble, trouble


def describe_start(known: Start) -> str:
    """Say in words from which adapter or full weights a training began."""
    what = "full weights" if known.get("full") else "adapter"
    origin = f"the {what} of run `{known['run']}`" if known["run"] else "an adapter of no run"
    name = pathlib.PurePath(known["start_from"]).name
    before = f", which itself began from `{known['began_from']}`" if "began_from" in known else ""
    return f"{origin} (`{name}`, sha256 {known['sha256'][:12]}){before}"


def tell_aside(paths: list[str]) -> None:
    """Print which model files of an earlier export were set aside."""
    if paths:
        print(f"of an earlier export, set aside: {', '.join(paths)}")


def when_pruned(record: RunRecord, part: str) -> str:
    """Return when `make prune` removed a part of a run; "" if it exists or was made again."""
    times = [
        freed["at"]
        for freed in record.get("pruned", [])
        if freed["path"] == part and "again" not in freed
    ]
    return max(times, default="")


def read_record(path: pathlib.Path) -> RunRecord:
    """Read a run.json; raise UserError unless it is complete."""
    way_out = (
        f"Move `{files.format_path(path.parent)}` away, or choose another name with RUN=; "
        f"nothing in it was changed."
    )
    try:
        record = files.read_json(path, "run record")
    except UserError as error:
        raise UserError(f"{error}\n{way_out}") from None
    if not _is_complete(record):
        raise UserError(
            f"run record `{files.format_path(path)}` is not complete: it lacks stages, or parts of "
            f"them.\n{way_out}"
        )
    return record


def _is_complete(record: Any) -> bool:
    """Tell whether a record has everything that other code takes for granted."""
    kinds = {"status": str, "attempts": list, "artifacts": list, "inputs": dict}
    try:
        entries = [record["stages"][stage] for stage in STAGES]
        complete = all(isinstance(e[key], kind) for e in entries for key, kind in kinds.items())
        begun = all(e["attempts"] or e["status"] == "pending" for e in entries)
        running = [e["attempts"][-1] for e in entries if begun and e["status"] == "running"]
        held = all({"by", "pid", "host", "start"} <= attempt.keys() for attempt in running)
        return complete and begun and held and isinstance(record["fingerprints"], dict)
    except (KeyError, TypeError, AttributeError):
        return False
