"""Check what stages need of this machine and of their data, before hours are spent."""

import pathlib
from collections.abc import Callable, Collection
from functools import partial

from lib import params
from lib.common import files, limits, locations, machine
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.data.reading import source_changes, sources
from lib.export import push
from lib.export.base_needs import exportable
from lib.export.few_bits import imatrix
from lib.model import base, shards, start
from lib.params import Params, number_bytes, packages
from lib.record import opening, run_folder
from lib.record.run_record import Run

BUNDLED_BYTES = 575 * 2**20  # Gemma 3 270M as 16-bit safetensors, with its tokenizer
BUNDLED_NUMBERS = 268_098_176
BUNDLED_GGUF_BYTES = 260 * 2**20  # the package's own file, from which that is made
HUB_BASE_BYTES = 16 * 2**30  # assumed for a base that is not here yet: Gemma 3n E4B
# bytes that prepare writes per byte of text: cleaned chunks, tokens with their cache, and the
# splits; 5 were measured with a million rows
PREPARED_SHARE = 6


def check_machine(stages: Collection[str], job: Params, folder: pathlib.Path) -> None:
    """Raise UserError when this machine lacks the GPU or the space that the stages need."""
    for check in list_checks(stages, job, folder):
        check()
    if "export" in stages and job.push_to:
        push.require_access(job.push_to)


def list_checks(
    stages: Collection[str], job: Params, folder: pathlib.Path
) -> list[Callable[[], object]]:
    """Return the checks of `check_machine` that ask no network; each raises its own UserError."""
    checks = _list_setting_checks(stages, job, folder)
    if "prepare" in stages or is_bundled(job.base_model):
        checks.append(partial(locations.make_cache, locations.cache_folder()))
    checks.append(partial(_require_disk, stages, job, folder))
    loads_base = "train" in stages or "export" in stages
    local = locations.local_path(job.base_model)
    if (local / "config.json").is_file():  # one from the hub is asked once it is here
        checks.append(partial(exportable.require_exportable, local, weights=loads_base))
    size = measure_base(job.base_model)
    if "train" in stages and job.full_finetuning:
        checks.append(partial(_require_full_training, job))
    if loads_base and size and not machine.gpus():
        what = f"{job.base_model}, which train and export load,"
        checks.append(partial(limits.require_memory, size, what))
    return checks


def _list_setting_checks(
    stages: Collection[str], job: Params, folder: pathlib.Path
) -> list[Callable[[], object]]:
    """Return the checks of settings that this machine may not have what they need for."""
    checks: list[Callable[[], object]] = []
    if "prepare" in stages:
        checks.append(partial(_require_base, job.base_model))
    if "train" in stages:
        checks.append(partial(_refuse_gpu_needs, job))
        checks.append(partial(_refuse_missing_packages, job))
        if job.start_from and not run_folder.has_checkpoint(folder):
            checks.append(partial(start.check_start, job))
    if "export" in stages:
        checks.append(partial(imatrix.require_readable, job))
    return checks


def check_settings(stages: Collection[str], job: Params, folder: pathlib.Path) -> None:
    """Raise UserError for settings that the stages cannot work with on this machine."""
    for check in _list_setting_checks(stages, job, folder):
        check()


def require_possible(job: Params, folder: pathlib.Path) -> None:
    """Raise UserError for settings that no machine can work with, before they are recorded.

    A run that has them already is left as it is: what is made of it can still be exported.
    """
    if opening.is_recorded(folder, job):
        return
    params.require_consistent(job)
    if job.push_to:
        push.name_repositories(job.push_to)


def note_elsewhere(stages: Collection[str], job: Params, folder: pathlib.Path) -> list[str]:
    """Return what keeps this machine from later stages, which another one may be meant for."""
    notes = []
    for check in _list_setting_checks(stages, job, folder):
        try:
            check()
        except UserError as error:
            notes.append(str(error).splitlines()[0])
    return notes


def _require_base(base_model: str) -> None:
    if not is_bundled(base_model):
        base.find_folder(base_model)
    elif base_model != base.BUNDLED:
        raise UserError(base.describe_unbundled(base_model))


def _refuse_missing_packages(job: Params) -> None:
    if missing := list(packages.list_missing(job)):
        raise UserError("\n".join(missing))


def _refuse_gpu_needs(job: Params) -> None:
    present = len(machine.gpus())
    wanted = 2 if job.fsdp == "full_shard" else 1
    wanted = wanted if job.num_gpus == "auto" else max(wanted, job.num_gpus)
    if 0 < present < wanted:
        setting = "num_gpus" if job.num_gpus == wanted else "fsdp: full_shard"
        raise UserError(
            f"This job trains on {wanted} or more GPUs ({setting}), but nvidia-smi finds {present} "
            f"here.\n"
            f"Set num_gpus: auto and fsdp: auto, which take what there is."
        )
    if not present and (needs := describe_gpu_needs(job)):
        raise UserError(
            f"This job trains with {needs}, which needs an NVIDIA GPU, but nvidia-smi finds none "
            f"here.\n"
            f"Without a GPU, use PARAMS=params/cpu.yaml. `make prepare` works here with any params "
            f"file."
        )


def _require_full_training(job: Params) -> None:
    """Raise UserError unless all that full fine-tuning holds has room.

    A base from the hub is asked once it is here.
    """
    needed = estimate_full_training(job)
    what = f"full_finetuning of {job.base_model}"
    if card := machine.card_bytes():
        limits.require_card_memory(needed, card, what)
    else:
        limits.require_memory(needed + number_bytes.WORKING, what)


def estimate_full_training(job: Params) -> int:
    """Estimate the bytes of weights, gradients and optimizer; 0 for a base that is not here."""
    live_bytes = 4 if job.precision == "fp32" else 2
    return number_bytes.full_training(_count_numbers(job.base_model), job.optim, live_bytes)


def _count_numbers(base_model: str) -> int:
    """Return the numbers of a base's language model; 0 for one that is not here."""
    if is_bundled(base_model):
        return BUNDLED_NUMBERS
    local = locations.local_path(base_model)
    return shards.count_language(local) if (local / "config.json").is_file() else 0


def _require_disk(stages: Collection[str], job: Params, folder: pathlib.Path) -> None:
    disk = sum(estimate_disk(stage, job) for stage in stages)
    files.require_disk(folder, disk, f"{', '.join(stages)} of {job.base_model}")


def describe_gpu_needs(job: Params) -> str:
    """Return the settings of a job that need an NVIDIA GPU, in words; "" if none does."""
    needs = []
    if job.load_in_4bit:
        needs.append("load_in_4bit=true")
    if job.optim == "adamw_8bit":
        needs.append("optim=adamw_8bit")
    if job.torch_compile:
        needs.append("torch_compile=true")
    if job.backend == "unsloth":
        needs.append("backend=unsloth")
    if job.fsdp == "full_shard":
        needs.append("fsdp=full_shard")
    if job.num_gpus != "auto" and job.num_gpus > 1:
        needs.append(f"num_gpus={job.num_gpus}")
    return " and ".join(needs)


def estimate_disk(stage: str, job: Params) -> int:
    """Estimate how many bytes a stage writes, before anything is downloaded."""
    base = measure_base(job.base_model) or HUB_BASE_BYTES
    if stage == "prepare":
        text = PREPARED_SHARE * sources.estimate_text_bytes(job)
        base_files = base + BUNDLED_GGUF_BYTES if is_bundled(job.base_model) else 0
        return files.STAGE_BYTES + text + base_files
    if stage == "train":
        kept = job.save_total_limit + 1
        if not job.full_finetuning:
            return files.STAGE_BYTES * kept
        numbers = _count_numbers(job.base_model) or HUB_BASE_BYTES // 2
        checkpoints = number_bytes.checkpoint(numbers, job.optim) * kept
        return files.STAGE_BYTES + checkpoints + numbers * number_bytes.MASTER
    # the merged folder, the 16-bit GGUF from which the others are made, and those others
    ggufs = sum(FILE_TYPES[file_type].disk_share for file_type in job.gguf_types)
    return files.STAGE_BYTES + int(base * (2 + ggufs))


def is_bundled(base_model: str) -> bool:
    return base_model.startswith("bundled:")


def measure_base(base_model: str) -> int:
    """Return the bytes of a local base; 0 for one on the hub."""
    if is_bundled(base_model):
        return BUNDLED_BYTES
    local = locations.local_path(base_model)
    return files.size_of(local) if local.is_dir() else 0


def check_sources(run: Run, job: Params) -> None:
    """Check what the job reads, and tell of sources that changed since they were prepared.

    Once its rows are prepared, a run goes on with them, and the change is recorded. Raise UserError
    for sources that prepare needs and cannot have, or has to read again in another state although
    training began.
    """
    if run.stage("prepare")["status"] != "finished":
        sources.check_sources(job)
        return
    changed = source_changes.note_changes(run, job)
    if not changed:
        return
    name = run.folder.name
    _, trouble = run.check_finished("prepare")
    if trouble and run.stage("train")["attempts"]:
        raise UserError(
            f"the prepared rows of run `{name}` are damaged ({trouble}), and {changed}, so the "
            f"same rows cannot be made again, and training could not continue.\n"
            f"Restore the run's data/ or its sources, or start over with `make run FORCE=1 "
            f"RUN={name}`."
        )
    print(f"note: {source_changes.name_consequence(changed, name)}")
