"""What training begins from: find other weights, hold them against the job, refuse an equal end.

begins = start.note_start(run, job, base_folder)    # in the notebook, before hours are spent
for name, weight in trained.read_start(model, job):     # in the loop, at step 0
start.refuse_untrained(run)    # in the export notebook: nothing was learnt
"""

import hashlib
import pathlib
import re
from typing import Any

from safetensors import SafetensorError, safe_open

from lib.common import files, locations
from lib.common.errors import UserError
from lib.model import base
from lib.params import Params
from lib.record import run_folder, run_record
from lib.record.run_record import Run
from lib.record.schema import RunRecord, Start

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# folders of a run with what was trained: an adapter, or all weights of the language model
ADAPTER, FULL = "adapter", "weights"
FULL_FILE = "model.safetensors"
# PEFT's name and default of each setting, by the parameter that must be the same
SETTINGS: dict[str, tuple[str, Any]] = {
    "lora_r": ("r", None),
    "lora_alpha": ("lora_alpha", None),
    "use_rslora": ("use_rslora", False),
    "use_dora": ("use_dora", False),
    "bias": ("bias", "none"),
}
ROWS = "trainable_token_indices"  # PEFT's name of the setting for trained rows of a table
# PEFT settings with which an adapter has weights that this pipeline does not train
FOREIGN = ("modules_to_save", "rank_pattern", "alpha_pattern")


def find_start(job: Params) -> pathlib.Path:
    """Return the folder of the weights to begin from: an adapter, or a run's full weights.

    Raise UserError if there is none of the kind that the job trains.
    """
    run = run_folder.find_run(job.start_from)
    other = ADAPTER if job.full_finetuning else FULL
    if run and (run / other).is_dir():
        kind = "an adapter" if job.full_finetuning else "all weights (full_finetuning)"
        cures = {
            ADAPTER: f"Set base_model={files.format_path(run / 'merged')}, which has the adapter "
            f"in it, or full_finetuning: false.",
            FULL: f"Set full_finetuning: true, or base_model={files.format_path(run / 'merged')} "
            f"for an adapter on it.",
        }
        raise UserError(
            f"start_from=`{job.start_from}`: run `{run.name}` has trained {kind}, but this job has "
            f"full_finetuning: {str(job.full_finetuning).lower()}. {cures[other]}"
        )
    if not job.full_finetuning:
        return find_adapter(job.start_from)
    if run and (run / FULL / FULL_FILE).is_file():
        return (run / FULL).resolve()
    what = f"run `{run.name}` has no weights yet" if run else "there is no such run"
    raise UserError(
        f"start_from=`{job.start_from}`: {what}. With full_finetuning, expected the name or folder "
        f"of a run that has finished training with full_finetuning. Known runs: "
        f"{run_folder.list_names()}."
    )


def weight_file(folder: pathlib.Path) -> pathlib.Path:
    """Return the file of weights in a folder that `find_start` has found."""
    return folder / (FULL_FILE if folder.name == FULL else WEIGHTS)


def find_adapter(start_from: str) -> pathlib.Path:
    """Return the adapter folder that `start_from` means: a run's, or a folder in PEFT's layout.

    Raise UserError if there is none.
    """
    run = run_folder.find_run(start_from)
    folder = run / "adapter" if run else locations.local_path(start_from)
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        return folder.resolve()
    what = f"run `{run.name}` has no adapter yet" if run else "there is no such run or folder"
    raise UserError(
        f"start_from=`{start_from}`: {what}. Expected the name or folder of a run that has "
        f"finished training, or a folder with {CONFIG} and {WEIGHTS}. Known runs: "
        f"{run_folder.list_names()}."
    )


def check_start(job: Params, base_folder: pathlib.Path | None = None) -> Start:
    """Return what is recorded of the weights to begin from.

    Raise UserError unless they are whole, an adapter with the job's rank, scale and targets, or all
    weights where the job trains those, and of the job's base. Without
    `base_folder`, the base is compared by its name only if the adapter is no run's.
    """
    folder = find_start(job)
    differences = []
    if not job.full_finetuning:
        differences = [*_compare_settings(folder, job), *_compare_targets(folder, job)]
    if differences:
        lines = [f"  {line}" for line in differences]
        raise UserError(
            f"start_from=`{job.start_from}` does not fit this job:\n"
            + "\n".join(lines)
            + "\nTraining goes on in the adapter's own shape: set these parameters as the adapter "
            "has them."
        )
    record = _run_of(folder)
    compared = _compare_base(folder, record, job, base_folder)
    known: Start = {
        "start_from": job.start_from,
        "sha256": files.sha256(weight_file(folder)),
        "base_by": compared,
        "run": None,
        "data": None,
    }
    if job.full_finetuning:
        known["full"] = True
    else:
        known["weights"] = hash_weights(folder / WEIGHTS)
    if record:
        known["run"] = folder.parent.name
        known["data"] = record["fingerprints"].get("data")
        if earlier := record.get("start"):
            known["began_from"] = earlier["start_from"]
    return known


def note_start(run: Run, job: Params, base_folder: pathlib.Path) -> str:
    """Record what training begins from, and say it in words.

    A training with a checkpoint continues from that, whatever became of the adapter since.
    """
    if not job.start_from:
        run.data.pop("start", None)
        return "the base" if job.full_finetuning else "a new adapter"
    if "start" not in run.data or not run_folder.has_checkpoint(run.folder):
        if find_start(job).parent == run.folder:
            raise UserError(
                f"start_from=`{job.start_from}` is this run's own "
                f"{'weights' if job.full_finetuning else 'adapter'}, which training will "
                f"replace. Choose another name for the new run with RUN=."
            )
        run.data["start"] = check_start(job, base_folder)
        run.save()
    return run_record.describe_start(run.data["start"])


def has_end_row(start_from: str) -> bool:
    """Tell whether the adapter to begin from has a trained end token's row."""
    return has_trained_rows(find_adapter(start_from))


def has_trained_rows(folder: pathlib.Path) -> bool:
    """Tell whether an adapter has trained rows of a table beside LoRA."""
    if not (folder / CONFIG).is_file():
        return False
    return bool(files.read_json(folder / CONFIG, "adapter configuration").get(ROWS))


# --------------------------------------------------------------------------------------------------
# weights


def plain_name(name: str) -> str:
    """Return a name from its layer on, since classes of the same base prefix it differently."""
    if "tower" in name:
        return name
    return re.sub(r"^.*?(?=\blayers\.\d|\b(?:embed_tokens|lm_head)\.token_adapter)", "", name)


def hash_weights(path: pathlib.Path) -> str:
    """Return a sha256 of an adapter's numbers as float32, whatever its file's type and prefixes."""
    total = hashlib.sha256()
    with safe_open(path, "pt") as file:
        for name in sorted(file.keys(), key=plain_name):
            total.update(plain_name(name).encode())
            total.update(file.get_tensor(name).float().contiguous().numpy().tobytes())
    return total.hexdigest()


def refuse_untrained(run: Run) -> None:
    """Raise UserError if what was trained equals what its training began from.

    Full weights that equal the base's are refused where they are merged.
    """
    full = (run.folder / FULL).is_dir()
    weights = weight_file(run.folder / (FULL if full else ADAPTER))
    begun = run.data.get("start")
    if begun and _is_start(weights, begun):
        what = f"equals that of {run_record.describe_start(begun)}, from which its training began"
    elif not full and _is_zero(weights):
        what = "equals its start: every B of it is zero, so the merged model would be the base"
    else:
        return
    steps = (files.read_results(run.folder).get("train") or {}).get("steps", "not recorded")
    name = run.folder.name
    raise UserError(
        f"The {'full weights' if full else 'adapter'} of run `{name}` {what}. Nothing was learnt "
        f"(steps: {steps}), so nothing is exported.\n"
        f"The first step of a warm-up has a learning rate of 0, and a very small rate changes "
        f'nothing either. Train on with more steps, `make run RUN={name} SET="max_steps=..."` '
        f"(or num_train_epochs, whichever the run has), or start over with fewer warm-up steps or "
        f'a higher rate, `make run FORCE=1 RUN={name} SET="warmup_steps=... '
        f'learning_rate=..."`.'
    )


def _is_start(weights: pathlib.Path, begun: Start) -> bool:
    """Tell whether an adapter's weights are those that its training began from."""
    if "weights" in begun:
        return begun["weights"] == hash_weights(weights)
    return begun["sha256"] == files.sha256(weights)


def _is_zero(weights: pathlib.Path) -> bool:
    """Tell whether every B of an adapter is zero, as in a new one."""
    with safe_open(weights, "pt") as file:
        halves = [name for name in list(file.keys()) if ".lora_B" in name]
        return not any(file.get_tensor(name).any() for name in halves)


# --------------------------------------------------------------------------------------------------
# comparisons


def _compare_settings(folder: pathlib.Path, job: Params) -> list[str]:
    config = files.read_json(folder / CONFIG, "adapter configuration")
    differences = []
    if config.get("peft_type") != "LORA":
        differences.append(f"kind: the adapter is {config.get('peft_type')}, this job trains LORA")
    for name, (key, default) in SETTINGS.items():
        value = config.get(key, default)
        if value != getattr(job, name):
            differences.append(f"{name}: the adapter has {value}, this job {getattr(job, name)}")
    has_row = bool(config.get(ROWS))
    if job.train_end_token not in ("auto", has_row):
        differences.append(
            f"train_end_token: the adapter has {'a' if has_row else 'no'} trained row, this job "
            f"{job.train_end_token}"
        )
    return differences + [
        f"{key}: the adapter has {config[key]}, which is not trained here"
        for key in FOREIGN
        if config.get(key)
    ]


def _compare_targets(folder: pathlib.Path, job: Params) -> list[str]:
    """Compare the adapted projections by their names in the weight file's header."""
    try:
        with safe_open(folder / WEIGHTS, "numpy") as file:
            names = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"start_from: `{files.format_path(folder / WEIGHTS)}` cannot be read ({error}). It is "
            f"damaged; take a copy of it, or make it again."
        ) from None
    found = {match[1] for name in names if (match := re.search(r"\.(\w+)\.lora_A\b", name))}
    differences = []
    for name, wanted in (
        ("finetune_attention_modules", ATTENTION),
        ("finetune_mlp_modules", MLP),
    ):
        expected = set(wanted) if getattr(job, name) else set()
        present = found & set(wanted)
        if present != expected:
            differences.append(
                f"{name}: the adapter is on {', '.join(sorted(present)) or 'none of them'}, this "
                f"job on {', '.join(sorted(expected)) or 'none of them'}"
            )
    if others := found - {*ATTENTION, *MLP}:
        differences.append(f"it is also on {', '.join(sorted(others))}, which are not trained here")
    return differences


def _run_of(folder: pathlib.Path) -> RunRecord | None:
    """Return the record of the run that a folder of trained weights is part of.

    Raise UserError unless its training is finished, and the weights as recorded.
    """
    if folder.name not in (ADAPTER, FULL) or not run_folder.is_run(folder.parent):
        return None
    record = run_record.read_record(folder.parent / "run.json")
    entry = record["stages"]["train"]
    recorded = [item for item in entry["artifacts"] if item["path"].startswith(f"{folder.name}/")]
    trouble = files.find_damage(folder.parent, recorded)
    if entry["status"] != "finished" or trouble:
        raise UserError(
            f"start_from: training of run `{folder.parent.name}` is "
            f"{entry['status']}{f', but {trouble}' if trouble else ''}. `make train "
            f"RUN={folder.parent.name}` finishes it."
        )
    return record


def _compare_base(
    folder: pathlib.Path, record: RunRecord | None, job: Params, base_folder: pathlib.Path | None
) -> str:
    """Return how the weights' base was found to be the job's; raise UserError if it is another."""
    config = {}
    if folder.name != FULL:
        config = files.read_json(folder / CONFIG, "adapter configuration")
    name = config.get("base_model_name_or_path") or "not recorded"
    fingerprints = record["fingerprints"] if record else {}
    if recorded := fingerprints.get("base"):
        hashes = fingerprints.get("base_files", {})
        if base_folder is None or files.is_recorded_model(base_folder, recorded, hashes):
            return "fingerprint"
        present = base.fingerprint(base_folder)
        raise UserError(
            f"start_from=`{job.start_from}` was trained on another base: `{name}` with fingerprint "
            f"{recorded}, while `{job.base_model}` has {present}. Its weights mean nothing there. "
            f"Set base_model to that base."
        )
    if name == job.base_model:
        return "name"
    raise UserError(
        f"start_from=`{job.start_from}` names `{name}` as its base, and this job's base_model is "
        f"`{job.base_model}`. No fingerprint of its base is recorded, since it is no run's, so "
        f"they cannot be compared. Set base_model to the base of the adapter."
    )
