"""Open and finish a stage from its notebook, whether `make` runs it or somebody opened it by hand.

job, run = notebook.begin_stage("prepare", globals())
...
notebook.finish_stage(run, "prepare", results, ["data"], output)
"""

import hashlib
import json
import os
import pathlib
from typing import Any

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.common.interrupts import keep_interrupts
from lib.params import Params
from lib.record import by_hand, earlier
from lib.record.opening import is_recorded, open_run
from lib.record.run_folder import choose_folder, lock_run, unlock_on_error
from lib.record.run_record import Run, earlier_stages, later_stages, read_record, tell_aside


def begin_stage(stage: str, namespace: dict[str, Any]) -> tuple[Params, Run]:
    """Return a notebook's parameters and open run; under `make` the runner has recorded the start.

    `params_file` wins if it is set. Without it, the cell's values count, and the run's recorded
    values for the parameters of other stages, so that the three notebooks together are one job.
    What an earlier pass through the cells left in the kernel is dropped.
    """
    keep_interrupts()
    job, folder = _read_job(namespace)
    if os.environ.get(files.FD_VARIABLE):
        lock_run(folder)
        run = Run(folder, read_record(folder / "run.json"))
        run.stage(stage)["attempts"][-1]["kernel"] = os.getpid()
        run.save()
        return job, run
    by_hand.forget_earlier_pass(namespace)
    if not is_recorded(folder, job):
        params.require_consistent(job)
    run = open_run(folder, job)
    with unlock_on_error(folder):
        for before in earlier_stages(stage):
            _require_finished(run, before, stage)
        run.begin_attempt(stage, "notebook")
    by_hand.note_errors(run, stage)
    return job, run


def _read_job(namespace: dict[str, Any]) -> tuple[Params, pathlib.Path]:
    """Return the job that a notebook's variables describe, and the folder of its run."""
    given = by_hand.read_given(namespace, ("params_file", "run_name"))
    params_file = namespace.get("params_file") or ""
    name = namespace.get("run_name") or ""
    if params_file:
        job = params.load_job(params_file)
        return job, choose_folder(job, params_file, name)
    folder = choose_folder(Params(), "", name or "notebook")
    recorded = {}
    if (folder / "params.yaml").exists():
        recorded = params.load_recorded(folder).model_dump()
    return params.check_values({**recorded, **given}, "the notebook's parameters cell"), folder


def _require_finished(run: Run, before: str, stage: str) -> None:
    done, trouble = run.check_finished(before)
    if not done:
        state = f"has changed: {trouble}" if trouble else f"is {run.stage(before)['status']}"
        raise UserError(
            f"{stage} needs {before}, which {state}.\n"
            f"Run notebooks/{before}.ipynb with the same parameters first."
        )


def finish_stage(
    run: Run, stage: str, results: dict[str, Any], artifacts: list[str], output: str
) -> None:
    """Record a stage's results, its files with their hashes, and `output`.

    `output` is a hash that changes when this stage's result does. Later stages that were made from
    another result become pending again, and an export of another adapter is set aside.
    """
    entry = run.stage(stage)
    if entry["status"] != "running":
        # this kernel has released the run, so its copy of the record may be out of date
        raise UserError(
            f"this attempt at {stage} is already recorded as {entry['status']}.\n"
            f"To run it again, start at the notebook's first cell."
        )
    if stage == "train" and entry.get("output") not in (None, output):
        run.set_export_aside()
    run.write_results(stage, results)
    entry["artifacts"] = files.describe_files(run.folder, artifacts)
    entry["output"] = output
    entry["inputs"] = run.outputs_before(stage)
    for later in later_stages(stage):
        later_entry = run.stage(later)
        if later_entry["status"] == "finished" and later_entry["inputs"].get(stage) != output:
            print(f"{later} was made from another result of {stage}; it will run again")
            later_entry["status"] = "pending"
    run.save()
    if stage == "export":
        tell_aside(earlier.drop_remade(run.folder))
    if entry["attempts"][-1]["by"] == "notebook":  # under make, the runner closes the attempt
        run.end_attempt(stage, "finished", "ok")
        # the kernel may stay open for hours, and the next notebook needs the run
        files.unlock_folder(run.folder)


def hash_artifact(folder: pathlib.Path, name: str) -> str:
    """Return one sha256 over the paths and hashes of everything under folder/name."""
    parts = [[file["path"], file["sha256"]] for file in files.describe_files(folder, [name])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def glue_results(results: dict[str, Any]) -> None:
    """Put headline values into the executed notebook, where `sb.read_notebook` finds them."""
    import scrapbook  # slow to import, and only needed here

    for key, value in results.items():
        if isinstance(value, str | int | float):  # scrapbook does not accept None
            scrapbook.glue(key, value)
