"""Compare a job with the parameters that its run was begun with: refuse, continue, or run again."""

import pathlib
from typing import Any

from lib import params
from lib.common import files, locations
from lib.common.errors import UserError
from lib.params import Params
from lib.params.continuing import LENGTH, MICRO_BATCH, depends_on_micro_batch, find_continuable
from lib.record import run_folder
from lib.record.run_record import STAGES, Run, earlier_stages, later_stages, when_pruned

Changes = dict[str, tuple[Any, Any]]  # recorded and present value of each changed parameter


def reconcile_parameters(run: Run, job: Params, force_from: str) -> None:
    """Refuse changed parameters of stages that have begun, unless they can continue with them.

    A finished export with changed parameters becomes pending again, and so does a finished training
    that is to become longer. `force_from` is the stage that starts over.
    """
    if not (run.folder / "params.yaml").exists():
        return
    try:
        recorded = params.load_recorded(run.folder)
    except UserError as error:
        if force_from == "prepare":  # every stage starts over
            return
        raise UserError(
            f"The recorded parameters of run `{run.folder.name}` are not readable:\n{error}\n"
            f"Choose another name with RUN=, or start the run over with `make run FORCE=1`, and "
            f"with its PARAMS and SET."
        ) from None
    old = recorded.model_dump()
    changed = {
        key: (old[key], value)
        for key, value in job.model_dump().items()
        if old[key] != value and not params.is_free(key)
    }
    if changed.keys() & {"base_model", "base_revision"} and _is_same_base(run, job):
        print(f"base_model: `{job.base_model}` holds the same base, by its fingerprint")
        changed = {k: v for k, v in changed.items() if k not in ("base_model", "base_revision")}
    if force_from not in ("prepare", "train"):
        _take_continuable(run, recorded, job, changed)
    _refuse_changes(run, job, changed, force_from)
    for key, (was, now) in changed.items():
        stage = params.stage_of(key)
        for affected in (stage, *later_stages(stage)):
            entry = run.stage(affected)
            entry["started_from"] = None  # work under the old value must not be continued
            if entry["status"] == "finished":
                print(f"{affected}: `{key}` changed from {was!r} to {now!r}; it will run again")
                entry["status"] = "pending"


def _take_continuable(run: Run, recorded: Params, job: Params, changed: Changes) -> None:
    """Remove from `changed` what training continues with, if nothing else of it changed."""
    of_training = {key for key in changed if params.stage_of(key) != "export"}
    continuable = find_continuable(recorded, job) & of_training
    if of_training - continuable or not run.stage("train")["attempts"]:
        return
    if continuable & set(LENGTH):
        _lengthen(run, changed, continuable & set(LENGTH))
    for key in continuable:
        del changed[key]


def _lengthen(run: Run, changed: Changes, keys: set[str]) -> None:
    """Let a finished training run again, to continue from its last checkpoint."""
    entry = run.stage("train")
    if entry["status"] != "finished":
        return
    described = ", ".join(f"{key}={changed[key][1]:g}" for key in sorted(keys))
    if not run_folder.has_checkpoint(run.folder):
        pruned = when_pruned(run.data, "checkpoints")
        gone = f"were pruned {pruned[:10]}" if pruned else "are gone"
        raise UserError(
            f"run `{run.folder.name}` cannot go on training with {described}: its checkpoints "
            f"{gone}, and with them the state of the optimizer.\n"
            f"A new run can begin from its adapter, with its own schedule: choose another name "
            f'with RUN=, and SET="start_from={files.format_path(run.folder)}". Or train this run '
            f"from the start with `make train FORCE=1`."
        )
    print(f"train: {described} makes it longer; it goes on from its last checkpoint")
    entry["status"] = "pending"


def _refuse_changes(run: Run, job: Params, changed: Changes, force_from: str) -> None:
    """Raise UserError if a parameter changed of a stage that has begun and is not started over."""
    kept = earlier_stages(force_from) if force_from else STAGES
    refused = {
        key: stage
        for key in changed
        if (stage := params.stage_of(key)) != "export"
        and stage in kept
        and run.stage(stage)["attempts"]
    }
    if not refused:
        return
    name = run.folder.name
    lines = [f"  {key}: recorded {changed[key][0]!r}, now {changed[key][1]!r}" for key in refused]
    first = next(stage for stage in STAGES if stage in refused.values())
    own = files.format_path(run.folder / "params.yaml")
    raise UserError(
        f"run `{name}` was made with other parameters:\n"
        + "\n".join(lines)
        + _explain_micro_batch(job, refused)
        + f"\n`make run RUN={name}` alone, without PARAMS and SET, continues with the run's own "
        f"parameters (in a notebook: params_file = {own!r}). For others, choose another name with "
        f"RUN= (run_name in a notebook), or start the run over with `make {first} FORCE=1` and the "
        f"same PARAMS, SET and RUN."
    )


def _explain_micro_batch(job: Params, refused: dict[str, Any]) -> str:
    if not refused.keys() & set(MICRO_BATCH):
        return ""
    if depends_on_micro_batch(job):
        return (
            "\nWith packing, lora_dropout or neftune_noise_alpha, rows or random numbers depend on "
            "the micro-batch."
        )
    return (
        "\nAnother micro-batch is taken if its rows times gradient_accumulation_steps stay the "
        "same, and nothing else of training changes."
    )


# --------------------------------------------------------------------------------------------------
# a base that was moved


def _is_same_base(run: Run, job: Params) -> bool:
    """Tell whether `base_model` is a local folder with the base that the run was trained on."""
    folder = locations.local_path(job.base_model)
    recorded = run.data["fingerprints"].get("base") or _checkpoint_base(run.folder)
    if not recorded or not (folder / "config.json").is_file():
        return False
    hashes = run.data["fingerprints"].get("base_files", {})
    return files.is_recorded_model(folder, recorded, hashes)


def _checkpoint_base(folder: pathlib.Path) -> str:
    """Return the base's fingerprint in the newest readable checkpoint; "" without one."""
    for path in sorted(folder.glob("checkpoints/step-*/checkpoint.json"), reverse=True):
        try:
            return files.read_json(path, "checkpoint").get("base", "")
        except (UserError, AttributeError):
            continue
    return ""
