"""The record of a run: its folder, its lock, and a run.json that cannot claim what did not happen.

Used by the runner and, through `begin` and `finish`, by the notebooks themselves.
"""

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import time
from collections.abc import Iterator
from typing import Any

from lib import params
from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.common.machine import alive, changes, commit, hardware, packages
from lib.common.redact import redacted
from lib.params import Params
from lib.record.executed import mark_failed

STAGES = ("prepare", "train", "export")
EXAMS = ("exam", "exams", "safety")  # sections of results.json that lib/exam.py writes
FREED = {
    "checkpoints": "train",
    "merged": "export",
}  # folders that `make prune` may free, and the stage that makes each again
PATCH_BYTES = 2**20  # a larger difference from the commit is not kept
ORPHAN_SECONDS = 10  # a kernel whose runner was killed looks for it once a second, then ends; a long C call delays that


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def runs_folder() -> pathlib.Path:
    return (ROOT / (os.environ.get("MEDRESCUE_RUNS") or "runs")).resolve()


def names() -> str:
    """The runs there are, for a message."""
    return (
        ", ".join(sorted(path.parent.name for path in runs_folder().glob("*/run.json"))) or "none"
    )


def folder_for(job: Params, params_file: str, name: str = "") -> pathlib.Path:
    """runs/<name>, or runs/<params file stem>-<hash>; a name is one plain path component."""
    stem = (
        re.sub(r"[^A-Za-z0-9._-]+", "-", pathlib.PurePath(params_file or "notebook").stem).strip(
            "-."
        )
        or "run"
    )
    name = name or f"{stem}-{params.fingerprint(job)}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(
            f"RUN=`{name}` cannot name a run; expected letters, digits, `.`, `_`, `-`, starting with a letter, "
            f"digit or `_`, at most 100, no path. The run is then runs/<name>."
        )
    return runs_folder() / name


def lock(folder: pathlib.Path) -> int:
    """Lock a run, as files.lock does; UserError says who holds it. A killed runner's kernel is given time to end."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while (fd := files.lock(folder)) is None:
        who, gone = _holder(folder)
        if not gone or time.monotonic() > deadline:
            raise UserError(
                f"run `{folder.name}` is in use {who}.\nWait for it, stop it, or choose another name with RUN=."
            )
        time.sleep(0.2)
    return fd


def _holder(folder: pathlib.Path) -> tuple[str, bool]:
    """Who holds a locked run by its record, and whether that is the kernel of a runner that is gone."""
    try:
        stage, last = next(
            (s, e["attempts"][-1])
            for s, e in read_record(folder / "run.json")["stages"].items()
            if e["status"] == "running"
        )
    except (UserError, StopIteration):
        return "by a command that has just begun, or is about to end", False
    text = f"by process {last['pid']} on {last['host']} ({stage}, since {last['start']})"
    if last["host"] != socket.gethostname() or alive(last["pid"]):
        return text, False
    kernel = f"process {last['kernel']}" if "kernel" in last else "its kernel"
    return f"{text}: that process is gone, but {kernel}, which it had started, still runs", True


@contextlib.contextmanager
def _held(folder: pathlib.Path) -> Iterator[None]:
    """The lock, kept when the block ends well, given back when it does not."""
    lock(folder)
    try:
        yield
    except BaseException:
        files.unlock(folder)
        raise


class Run:
    """An open, locked run folder. `data` is what run.json holds; `save` writes it."""

    def __init__(self, folder: pathlib.Path, data: dict[str, Any]):
        self.folder, self.data = folder, data

    def save(self) -> None:
        files.write_json(self.folder / "run.json", self.data, sealed=True)

    def stage(self, stage: str) -> dict[str, Any]:
        return self.data["stages"][stage]

    def begin(self, stage: str, by: str, force: bool = False) -> None:
        """Record that an attempt at a stage has started, in this process.

        What an earlier one left is set aside where it must not be continued: `force`, or another result of earlier stages.
        """
        entry, number = self.stage(stage), len(self.stage(stage)["attempts"])
        before = {e: self.stage(e).get("output") for e in STAGES[: STAGES.index(stage)]}
        if force or entry.get("started_from", before) != before:
            self.results(stage, None)
            for section in EXAMS if stage != "prepare" else ():
                self.results(
                    section, None
                )  # exam.json stays: it knows of each result which files it is of
            if stage == "train":
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
                if (ledger := self.folder / "metrics.jsonl").exists():
                    os.replace(ledger, self.folder / f"metrics.attempt{number}.jsonl")
        for freed in [p for p in self.data.get("pruned", []) if FREED[p["path"]] == stage]:
            freed.setdefault("again", now())
        entry.update(status="running", artifacts=[], started_from=before)
        entry.pop("notebook", None)
        entry["attempts"].append(
            {
                "by": by,
                "start": now(),
                "end": None,
                "exit": None,
                "cell": None,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                **commit(),
            }
        )
        if entry["attempts"][-1]["dirty"] and 0 < len(patch := changes().encode()) <= PATCH_BYTES:
            entry["attempts"][-1]["patch"] = name = (
                f"changes-{hashlib.sha256(patch).hexdigest()[:12]}.patch"
            )
            files.atomic_write(self.folder / name, patch)
        self.data["packages"], self.data["hardware"] = packages(), hardware()
        self.save()

    def end(self, stage: str, status: str, reason: str, cell: int | None = None) -> None:
        """Close the attempt that is open: finished, failed or interrupted, why, in which cell of the executed copy (1 is the first)."""
        self.stage(stage)["status"] = status
        self.stage(stage)["attempts"][-1].update(end=now(), exit=redacted(reason), cell=cell)
        self.save()

    def results(self, section: str, values: dict[str, Any] | None) -> None:
        """Replace one section of results.json; None removes it."""
        old = files.read_or_set_aside(path := self.folder / "results.json", "results file")
        if values is not None or section in old:
            files.write_json(
                path,
                {k: v for k, v in {**old, section: values}.items() if v is not None},
                sealed=True,
            )

    def finished(self, stage: str) -> tuple[bool, str]:
        """Whether a stage needs no work, and if it was recorded as finished but does, why."""
        if self.stage(stage)["status"] != "finished":
            return False, ""
        trouble = files.damaged(self.folder, self.stage(stage)["artifacts"])
        return not trouble, trouble


def pruned(run: dict[str, Any], part: str) -> str:
    """When `make prune` freed a part of a run, by its record; empty where it did not, or the part was made again since."""
    return max(
        (p["at"] for p in run.get("pruned", []) if p["path"] == part and "again" not in p),
        default="",
    )


def open_run(folder: pathlib.Path, job: Params, force_from: str = "") -> Run:
    """Lock, read or create, correct and check a run folder.

    A record left `running` by a process that died is corrected to `interrupted`. Parameters that differ from the
    recorded ones are refused for stages already started, unless `force_from` names a stage at or before them; changed
    export parameters only put export back to pending.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the run folder `{files.shown(folder)}`: {error.strerror}. Set MEDRESCUE_RUNS to a folder you can "
            f"write, or choose another name with RUN=."
        ) from None
    with _held(folder):
        if (path := folder / "run.json").exists():
            run = Run(folder, read_record(path))
            _correct(run)
            _compare(run, job, force_from)
        elif foreign := sorted(p.name for p in folder.iterdir() if not p.name.startswith(".")):
            raise UserError(
                f"`{files.shown(folder)}` has no run.json but holds {', '.join(foreign[:5])}: it is not a run of this "
                f"pipeline, or a half-deleted one.\nMove it away, or choose another name with RUN=."
            )
        else:
            run = Run(
                folder,
                {
                    "run": folder.name,
                    "created": now(),
                    "fingerprints": {},
                    "stages": {
                        s: {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}}
                        for s in STAGES
                    },
                },
            )
        run.save()  # before params.yaml: a folder with a file but no record is refused
        files.atomic_write(folder / "params.yaml", params.to_yaml(job))
        # of a process killed while it wrote; only we write here now. In gguf/ they would be taken for part of the result
        for torn in [
            *filter(pathlib.Path.is_file, folder.glob(".*.tmp")),
            *(folder / "gguf").glob(".*"),
        ]:
            shutil.rmtree(torn) if torn.is_dir() else torn.unlink()
    return run


def read_record(path: pathlib.Path) -> dict[str, Any]:
    kinds = {"status": str, "attempts": list, "artifacts": list, "inputs": dict}
    try:
        data = files.read_json(path, "run record")
        entries = [data["stages"][s] for s in STAGES]
        if not isinstance(data["fingerprints"], dict) or not all(
            isinstance(e[k], kind) and (e["attempts"] or e["status"] == "pending")
            for e in entries
            for k, kind in kinds.items()
        ):
            raise KeyError
    except (UserError, KeyError, TypeError) as error:
        text = (
            str(error)
            if isinstance(error, UserError)
            else f"run record `{files.shown(path)}` is not whole: it lacks stages, or parts of them."
        )
        raise UserError(
            f"{text}\nMove `{files.shown(path.parent)}` away, or choose another name with RUN=; nothing in it was changed."
        ) from None
    return data


def _correct(run: Run) -> None:
    """We hold the lock, so a stage that says `running` has lost its process."""
    for stage in (s for s in STAGES if run.stage(s)["status"] == "running"):
        path, cell, reason = (
            run.folder / f"{stage}.ipynb",
            None,
            "its process ended without closing the record (killed, or the machine stopped)",
        )
        if run.stage(stage)["attempts"][-1]["by"] == "notebook":
            reason = "its kernel ended before the last cell, or its first cells were run again"
        elif path.exists():
            with contextlib.suppress(
                UserError, KeyError, TypeError
            ):  # of a damaged copy the record alone tells
                notebook = files.read_json(path, "executed notebook")
                cell = mark_failed(notebook, "Interrupted", reason)
                files.atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        run.end(stage, "interrupted", reason, cell)
        print(f"{stage}: the last attempt was cut off; the record now says so")


def _compare(run: Run, job: Params, force_from: str) -> None:
    if not (run.folder / "params.yaml").exists():
        return
    try:
        recorded = params.load_recorded(run.folder).model_dump()
    except UserError as error:
        if force_from == "prepare":
            return
        raise UserError(
            f"The recorded parameters of run `{run.folder.name}` are not readable:\n{error}\n"
            f"Choose another name with RUN=, or start it over with `make run FORCE=1`."
        ) from None
    differ = {
        k: params.stage_of(k)
        for k, v in job.model_dump().items()
        if recorded[k] != v and not params.is_free(k)
    }
    kept = (
        STAGES[: STAGES.index(force_from)] if force_from else STAGES
    )  # stages that are not started over
    hit = {
        k: s for k, s in differ.items() if s != "export" and s in kept and run.stage(s)["attempts"]
    }
    if hit:
        lines = [f"  {k}: recorded {recorded[k]!r}, now {getattr(job, k)!r}" for k in hit]
        raise UserError(
            f"run `{run.folder.name}` was made with other parameters:\n"
            + "\n".join(lines)
            + f"\nChoose another name with RUN= (run_name in a notebook), or start it over with "
            f"`make {min(hit.values(), key=STAGES.index)} FORCE=1` and the same PARAMS and RUN."
        )
    for key, stage in differ.items():
        for later in STAGES[STAGES.index(stage) :]:
            run.stage(later)["started_from"] = (
                None  # nothing of an attempt under the old value may be continued
            )
            if run.stage(later)["status"] == "finished":
                print(
                    f"{later}: `{key}` changed from {recorded[key]!r} to {getattr(job, key)!r}; it will run again"
                )
                run.stage(later)["status"] = "pending"


def begin(stage: str, namespace: dict[str, Any]) -> tuple[Params, Run]:
    """First call of a notebook: its parameters and its open run; under `make` the runner has recorded the start.

    `params_file` wins when it is set. Without it the cell's values count, and for the keys of other stages what the
    run's record says, so that the three notebooks together are one job.
    """
    params_file, name = namespace.get("params_file") or "", namespace.get("run_name") or ""
    if params_file:
        folder = folder_for(job := params.load_job(params_file), params_file, name)
    else:
        folder = folder_for(Params(), "", name or "notebook")
        recorded = folder / "params.yaml"
        job = params.check_values(
            {
                **(params.load_recorded(folder).model_dump() if recorded.exists() else {}),
                **{k: namespace[k] for k in params.FIELDS if k in namespace},
            },
            "the notebook's parameters cell",
        )
    if os.environ.get(files.FD_VARIABLE):
        lock(folder)
        run = Run(folder, read_record(folder / "run.json"))
        run.stage(stage)["attempts"][-1]["kernel"] = os.getpid()
        run.save()
        return job, run
    run = open_run(folder, job)
    with _held(folder):
        for earlier in STAGES[: STAGES.index(stage)]:
            done, trouble = run.finished(earlier)
            if not done:
                raise UserError(
                    f"{stage} needs {earlier}, which {'has changed: ' + trouble if trouble else 'is ' + run.stage(earlier)['status']}.\n"
                    f"Run notebooks/{earlier}.ipynb with the same parameters first."
                )
        run.begin(stage, "notebook")
    return job, run


def finish(
    run: Run, stage: str, results: dict[str, Any], artifacts: list[str], output: str
) -> None:
    """Last call of a notebook: results, artefacts with their hashes, and what later stages are checked against.

    `output` is a hash that changes when this stage's result does; then later stages are pending again.
    """
    entry = run.stage(stage)
    if (
        entry["status"] != "running"
    ):  # this kernel gave the run back: by now its copy of the record may be an old one
        raise UserError(
            f"this attempt at {stage} is already recorded as {entry['status']}.\nTo run it again, start at the notebook's first cell."
        )
    run.results(stage, results)
    entry.update(
        artifacts=files.describe(run.folder, artifacts),
        output=output,
        inputs={e: run.stage(e).get("output") for e in STAGES[: STAGES.index(stage)]},
    )
    for later in STAGES[STAGES.index(stage) + 1 :]:
        if (
            run.stage(later)["status"] == "finished"
            and run.stage(later)["inputs"].get(stage) != output
        ):
            print(f"{later}: was made from another result of {stage}; it will run again")
            run.stage(later)["status"] = "pending"
    run.save()
    if entry["attempts"][-1]["by"] == "notebook":  # under make the runner has the last word
        run.end(stage, "finished", "ok")
        files.unlock(
            run.folder
        )  # the kernel may stay open for hours, and the next notebook needs the run


def seconds(run: Run, stage: str) -> float:
    """Since the open attempt at a stage began."""
    begun = datetime.datetime.fromisoformat(run.stage(stage)["attempts"][-1]["start"])
    return (datetime.datetime.now(datetime.UTC) - begun).total_seconds()


def artifact_hash(folder: pathlib.Path, name: str) -> str:
    """One sha256 over the paths and hashes of everything under folder/name."""
    return hashlib.sha256(
        json.dumps([[a["path"], a["sha256"]] for a in files.describe(folder, [name])]).encode()
    ).hexdigest()


def glue(results: dict[str, Any]) -> None:
    """Headline values into the executed notebook, for `sb.read_notebook`; it cannot take None, so those are left out."""
    import scrapbook

    for key, value in results.items():
        if isinstance(value, str | int | float):
            scrapbook.glue(key, value)
