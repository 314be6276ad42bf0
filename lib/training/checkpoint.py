"""Save and load checkpoints: folders of float32 masters and optimizer state, without pickle."""

import os
import pathlib
import shutil
import time
from typing import Any

from safetensors import SafetensorError

from lib.common import files, locations, machine
from lib.common.errors import UserError
from lib.model import device, options, ranks
from lib.params import FIELDS, Params
from lib.params.continuing import depends_on_micro_batch, is_longer
from lib.params.full_conflicts import ADAPTER_SETTINGS
from lib.training import plan
from lib.training.masters import Masters

# parameters that affect the weights of a run, besides its data and its base
IDENTITY = (
    "base_model",
    "base_revision",
    "load_in_4bit",
    "full_finetuning",
    "start_from",
    *ADAPTER_SETTINGS,
    "packing",
    "num_train_epochs",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "neftune_noise_alpha",
    "max_grad_norm",
    "optim",
    "seed",
)


def describe_identity(
    job: Params, data_fingerprint: str, base_fingerprint: str, trainable: int
) -> dict[str, Any]:
    """Return what must be the same in a checkpoint and in the job that resumes from it.

    The number of GPUs is not included, since it only changes the rounding. Nor is the micro-batch,
    unless packing or random numbers depend on it.
    """
    installed = machine.packages()
    versions = {
        f"{name} version": ".".join(installed[name].split(".")[:2])
        for name in ("torch", "transformers", "peft")
    }
    identity = {
        "data": data_fingerprint,
        "base": base_fingerprint,
        "trainable_parameters": trainable,
        "rows_a_step": plan.rows_per_step(job),
        "computes in": str(device.choose_precision(job.precision, job.load_in_4bit)[0]),
        "by": options.choose_backend(job)[0],
    }
    if depends_on_micro_batch(job):
        identity["micro_batch"] = job.per_device_train_batch_size
    if job.train_end_token is True:  # else absent, as in checkpoints of earlier versions
        identity["end token's row"] = "trained"
    return {**identity, **{name: getattr(job, name) for name in IDENTITY}, **versions}


def save_checkpoint(
    folder: pathlib.Path, step: int, masters: Masters, identity: dict[str, Any], keep: int
) -> None:
    """Write checkpoints/step-NNNNNN atomically, and keep only the newest `keep` checkpoints.

    A step that is already saved is not written again. Raise UserError when the disk is full.
    """
    final = folder / f"step-{step:06d}"
    if final.exists() or ranks.rank():
        return
    temporary = folder / f".{final.name}.tmp"
    for unfinished in folder.glob(".step-*.tmp"):  # left by a killed process
        shutil.rmtree(unfinished)
    try:
        temporary.mkdir(parents=True)
        masters.save(temporary)
        state = {"step": step, **identity, "files": files.describe_files(temporary, ["."])}
        files.write_json(temporary / "checkpoint.json", state, sealed=True)
        # force it to disk before an older checkpoint is removed
        for path in temporary.glob("*.safetensors"):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        temporary.replace(final)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {step} could not be saved: {error}. Earlier checkpoints are "
            f"intact. Free some disk space, or lower save_total_limit; the same command continues "
            f"from the last one."
        ) from None
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest_checkpoint(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """Return the path and checkpoint.json of the newest checkpoint that matches its hashes.

    Damaged checkpoints are renamed, and a message is printed about each.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = files.read_json(path / "checkpoint.json", "record")
            trouble = files.find_damage(path, state["files"])
        except UserError as error:
            trouble = str(error).removesuffix(".")
        except (KeyError, TypeError) as error:
            trouble = f"checkpoint.json: {error}"
        if not trouble:
            return path, state
        print(f"checkpoint {path.name} is damaged ({trouble}); trying the one before it")
        path.rename(path.with_name(f"damaged-{path.name}-{int(time.time())}"))
    return None


def resume(folder: pathlib.Path, masters: Masters, identity: dict[str, Any]) -> int:
    """Load the newest good checkpoint and return its step, or 0 without one.

    Raise UserError for a checkpoint of other data, parameters or size, with the differences.
    """
    newest = ranks.from_first(newest_checkpoint(folder) if ranks.rank() == 0 else None)
    if not newest:
        return 0
    path, state = newest
    accepted = _accepted_differences(state, identity)
    differences = [
        f"  {name}: checkpoint {_recorded(state, name)}, now {value}"
        for name, value in identity.items()
        if _recorded(state, name) != value and name not in accepted
    ]
    if differences:
        lines = [
            f"checkpoint {path.name} does not belong to this job:",
            *differences,
            "Start training over with FORCE=1, or choose another RUN=.",
            *_suggest_versions(state, identity),
        ]
        raise UserError("\n".join(lines))
    masters.load(path)
    return state["step"]


def _suggest_versions(state: dict[str, Any], identity: dict[str, Any]) -> list[str]:
    """Return how to install the libraries of a checkpoint, if that is all that differs."""
    names = [name for name in identity if _recorded(state, name) != identity[name]]
    if not names or not all(name.endswith(" version") and name in state for name in names):
        return []
    pins = [f"'{name.removesuffix(' version')}=={state[name]}.*'" for name in names]
    return [f"To go on instead: pip install {' '.join(pins)}"]


def _recorded(state: dict[str, Any], name: str) -> Any:
    """Return a value of a checkpoint; an earlier version's lacks parameters that came later."""
    if name in state or name not in FIELDS:
        return state.get(name)
    return FIELDS[name].get_default(call_default_factory=True)


def _accepted_differences(state: dict[str, Any], identity: dict[str, Any]) -> set[str]:
    """Return the names whose values may differ: of a longer training, and of a base that moved."""
    accepted: set[str] = set()
    length = ("num_train_epochs", "max_steps")
    if all(name in of for name in length for of in (state, identity)) and is_longer(
        *(of[name] for of in (state, identity) for name in length)
    ):
        accepted.update(length)
    base_model = identity.get("base_model", "")
    if state.get("base") == identity.get("base") and locations.local_path(base_model).is_dir():
        accepted |= {"base_model", "base_revision"}
    return accepted
