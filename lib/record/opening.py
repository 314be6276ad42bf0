"""Open a run: lock its folder, read or create its record, correct it, compare the parameters."""

import contextlib
import json
import pathlib
import shutil

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.params import Params
from lib.record.changed import reconcile_parameters
from lib.record.executed import mark_failed
from lib.record.run_folder import is_run, lock_run, unlock_on_error
from lib.record.run_record import STAGES, Run, read_record, timestamp

CUT_OFF = {
    "notebook": "its kernel ended before the last cell, or its first cells were run again",
    "make": "its process ended without closing the record (killed, or the machine stopped)",
}


def open_run(folder: pathlib.Path, job: Params, force_from: str = "") -> Run:
    """Lock, read or create, correct and check a run folder.

    A stage left `running` by a process that died is corrected to `interrupted`. Changed parameters
    are refused for stages that have begun, unless `force_from` names a stage at or before them, or
    training can continue with them. Changed export parameters only make export pending again.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot create the run folder `{files.format_path(folder)}`: {error.strerror}. "
            f"Set MEDRESCUE_RUNS to a folder you can write to, or choose another name with RUN=."
        ) from None
    lock_run(folder)
    with unlock_on_error(folder):
        if (folder / "run.json").exists():
            run = Run(folder, read_record(folder / "run.json"))
            run.data["run"] = folder.name  # a folder that was renamed is the same run
            _correct_cut_off(run)
            reconcile_parameters(run, job, force_from)
        else:
            run = _create_run(folder)
        run.save()  # before params.yaml, since a folder with a file but no record is refused
        files.atomic_write(folder / "params.yaml", params.to_yaml(job))
        _remove_torn_files(folder)
    return run


def _create_run(folder: pathlib.Path) -> Run:
    _refuse_folder_of_runs(folder)
    foreign = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if foreign:
        raise UserError(
            f"`{files.format_path(folder)}` has no run.json but contains {', '.join(foreign[:5])}: "
            f"it is not a run of this pipeline, or a half-deleted one.\n"
            f"Choose another name with RUN=, or move it away."
        )
    return Run(
        folder,
        {
            "run": folder.name,
            "created": timestamp(),
            "fingerprints": {},
            "stages": {
                stage: {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}}
                for stage in STAGES
            },
        },
    )


def _refuse_folder_of_runs(folder: pathlib.Path) -> None:
    """Raise UserError for a folder that holds runs, such as runs/examples."""
    runs = sorted(path.parent for path in folder.glob("*/run.json"))
    if runs:
        raise UserError(
            f"`{files.format_path(folder)}` is no run, but a folder of runs: "
            f"{', '.join(path.name for path in runs[:10])}.\n"
            f"Name one of them by its path, RUN={files.format_path(runs[0])}, or choose another "
            f"name."
        )


def is_recorded(folder: pathlib.Path, job: Params) -> bool:
    """Tell whether a run has these parameters already; False if its record is damaged."""
    with contextlib.suppress(UserError):
        return is_run(folder) and params.load_recorded(folder) == job
    return False


def _remove_torn_files(folder: pathlib.Path) -> None:
    """Remove files that a killed process left half written; the lock keeps other writers out."""
    for torn in folder.glob(".*.tmp"):
        if torn.is_file():
            torn.unlink()
    # files left in gguf/ would be recorded as part of the result
    for torn in (folder / "gguf").glob(".*"):
        if torn.is_dir():
            shutil.rmtree(torn)
        else:
            torn.unlink()


def _correct_cut_off(run: Run) -> None:
    """Close attempts whose process is gone: since we hold the lock, none can be running."""
    for stage in STAGES:
        if run.stage(stage)["status"] != "running":
            continue
        last = run.stage(stage)["attempts"][-1]
        by, stopped = last["by"], last.get("stopped", "")
        reason = stopped or CUT_OFF["notebook" if by == "notebook" else "make"]
        path = run.folder / f"{stage}.ipynb"
        cell = None
        if by != "notebook" and path.exists():
            # a damaged notebook stays as it is, and only the record tells what happened
            with contextlib.suppress(UserError, KeyError, TypeError):
                notebook = files.read_json(path, "executed notebook")
                cell = mark_failed(notebook, "Interrupted", reason)
                files.atomic_write(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
        run.end_attempt(stage, "interrupted", reason, cell)
        what = f"ended with {stopped}" if stopped else "was cut off, which is now recorded"
        print(f"{stage}: the last attempt {what}")
