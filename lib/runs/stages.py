"""Run one stage: execute its notebook unless it is finished, and record how it ended."""

import os
import pathlib

from lib.common import files
from lib.common.errors import ROOT
from lib.data import empty_splits
from lib.params import Params
from lib.record import run_folder, run_record
from lib.record.run_record import Run
from lib.record.schema import Status
from lib.runs.engine import StageFailed, execute_notebook
from lib.runs.needs import check_machine
from lib.runs.stopper import Stopper


def run_stage(run: Run, stage: str, job: Params, force: bool, stopper: Stopper) -> None:
    """Execute one stage unless it is finished.

    If it fails, record that, then raise StageFailed.
    """
    done, trouble = run.check_finished(stage)
    if done and not force:
        print(f"{stage}: {_describe_finished(run, stage)}")
        return
    if trouble:
        print(f"{stage}: was finished, but {trouble}; running it again")
    check_machine([stage], job, run.folder)
    target = _make_room(run, stage)
    run.begin_attempt(stage, "make", force)
    print(f"{stage}: {files.format_path(target)}", flush=True)
    try:
        _execute(run, stage, job, stopper)
    except StageFailed as error:
        _read_again(run)
        status: Status = "interrupted" if error.interrupted else "failed"
        run.end_attempt(stage, status, str(error), error.cell)
        raise
    # the hash shows later whether somebody changed the numbers in the notebook
    run.stage(stage)["notebook"] = files.sha256(target)
    run.end_attempt(stage, "finished", "ok")
    if stage == "prepare":
        counts = files.read_results(run.folder).get("prepare") or {}
        for caution in empty_splits.describe_empty(job, counts):
            print(caution)


def _describe_finished(run: Run, stage: str) -> str:
    entry = run.stage(stage)
    text = f"finished {entry['attempts'][-1]['end']}, nothing to do"
    pruned = [artifact["path"] for artifact in entry["artifacts"] if artifact.get("pruned")]
    if pruned:
        folders = sorted({f"{path.split('/')[0]}/" for path in pruned})
        text += f" ({', '.join(folders)} pruned; FORCE=1 makes it again)"
    return text


def _make_room(run: Run, stage: str) -> pathlib.Path:
    """Return the path for the executed notebook; that of an earlier attempt gets a number."""
    target = run.folder / f"{stage}.ipynb"
    if target.exists():
        number = len(run.stage(stage)["attempts"])
        os.replace(target, run.folder / f"{stage}.attempt{number}.ipynb")
    return target


def _execute(run: Run, stage: str, job: Params, stopper: Stopper) -> None:
    name = f"{stage}.ipynb"
    values = {
        "params_file": files.format_path(run.folder / "params.yaml"),
        "run_name": run.folder.name,
        **job.model_dump(),
    }
    lock = run_folder.lock_run(run.folder)
    execute_notebook(ROOT / "notebooks" / name, run.folder / name, values, lock, stopper)
    _read_again(run)
    if not run.stage(stage)["artifacts"]:
        reason = "the notebook reached its end without recording a result"
        raise StageFailed(reason, None, stopper)


def _read_again(run: Run) -> None:
    """Read the record again, to which the kernel has added files and hashes."""
    run.data = run_record.read_record(run.folder / "run.json")
