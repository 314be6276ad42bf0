"""One stage of a run: what it needs of this machine, and its notebook executed unless it is finished."""

import os
import pathlib
from collections.abc import Sequence

from lib.common import files, machine
from lib.common.errors import ROOT, UserError
from lib.data import sources
from lib.export import push
from lib.medical import safety
from lib.params import Params
from lib.record import run_folder, run_record
from lib.record.run_record import Run
from lib.runs.notebook import StageFailed, execute

# ---------------------------------------------------------------------------------------------------------------------
# one notebook


# ---------------------------------------------------------------------------------------------------------------------
# one stage


def check_machine(stages: Sequence[str], job: Params, folder: pathlib.Path) -> None:
    """UserError when this machine cannot run the stages: no GPU for a job that needs one, too little disk."""
    if "train" in stages and (needs := needs_gpu(job)) and not machine.gpus():
        raise UserError(
            f"This job trains with {needs}, which needs an NVIDIA GPU; none answers here (nvidia-smi).\n"
            f"Without one use PARAMS=params/cpu.yaml. `make prepare` works here with any params file."
        )
    files.require_disk(
        folder,
        sum(disk_needed(stage, job) for stage in stages),
        f"{', '.join(stages)} of {job.base_model}",
    )
    if "export" in stages and job.push_to:  # before hours are spent
        push.require_access(job.push_to)
    if {"train", "export"} & set(stages) and not machine.gpus() and (size := _base_size(job)):
        machine.require_memory(size, f"{job.base_model}, which train and export load,")


def _base_size(job: Params) -> int:
    """Bytes of a base that is here; 0 of one on the hub."""
    local = ROOT / job.base_model
    return (
        575 * 2**20
        if job.base_model.startswith("bundled:")
        else files.size_of(local)
        if local.is_dir()
        else 0
    )


def needs_gpu(job: Params) -> str:
    """What of the job needs an NVIDIA GPU, in words; empty where nothing does."""
    wanted = (("load_in_4bit", True), ("optim", "adamw_8bit"), ("torch_compile", True))
    return " and ".join(f"{k}={v}".lower() for k, v in wanted if getattr(job, k) == v)


def disk_needed(stage: str, job: Params) -> int:
    """Bytes a stage may write, from the base's size where it is known before anything is downloaded [estimate]."""
    bundled, base = job.base_model.startswith("bundled:"), _base_size(job) or 16 * 2**30
    fixed = (
        256 * 2**20
    )  # executed notebook, tokens, adapter and optimizer state of a few million numbers
    if stage == "prepare":
        # cleaned chunks, tokens and their cache, and the splits: measured at a million rows, five times the text
        # of a bundled base the 16-bit folder, and the GGUF it is made from
        return fixed + 6 * sources.text_size(job) + (base + 260 * 2**20 if bundled else 0)
    if stage == "train":
        return fixed * (job.save_total_limit + 1)
    shares = [
        {"q8_0": 0.54, "q6_k": 0.45, "q5_k_m": 0.4, "q4_k_m": 0.35, "q4_0": 0.33}.get(kind, 1.0)
        for kind in job.gguf_types
    ]
    return fixed + int(
        base * (2 + sum(shares))
    )  # the merged folder, and the 16-bit GGUF from which the others are made


def run_stage(run: Run, stage: str, job: Params, force: bool) -> None:
    """Execute one stage unless it is finished; StageFailed when it does not end well, after the record says so."""
    entry = run.stage(stage)
    done, trouble = run.check_finished(stage)
    if done and not force:
        freed = sorted(
            {f"{a['path'].split('/')[0]}/" for a in entry["artifacts"] if a.get("pruned")}
        )
        print(
            f"{stage}: finished {entry['attempts'][-1]['end']}, nothing to do"
            + f" ({', '.join(freed)} was pruned; FORCE=1 makes it again)" * bool(freed)
        )
        return
    if trouble:
        print(f"{stage}: was finished, but {trouble}; running it again")
    check_machine([stage], job, run.folder)
    target = run.folder / f"{stage}.ipynb"
    if target.exists():
        os.replace(target, run.folder / f"{stage}.attempt{len(entry['attempts'])}.ipynb")
    run.begin_attempt(stage, "make", force)
    print(f"{stage}: {files.shown(target)}", flush=True)
    values = {
        "params_file": files.shown(run.folder / "params.yaml"),
        "run_name": run.folder.name,
        **job.model_dump(),
    }
    try:
        execute(
            ROOT / "notebooks" / f"{stage}.ipynb", target, values, run_folder.lock_run(run.folder)
        )
        run.data = run_record.read_record(
            run.folder / "run.json"
        )  # the kernel wrote artefacts and hashes into it
        if not run.stage(stage)["artifacts"]:
            raise StageFailed("the notebook reached its end without recording a result", None)
    except StageFailed as error:
        run.data = run_record.read_record(run.folder / "run.json")
        run.end_attempt(
            stage, "interrupted" if error.interrupted else "failed", str(error), error.cell
        )
        raise
    run.stage(stage)["notebook"] = files.sha256(
        target
    )  # a report is no proof when its numbers can be typed into it
    run.end_attempt(stage, "finished", "ok")


def check_source(run: Run, job: Params) -> None:
    """A run whose data file changed since it was prepared is not continued in silence."""
    recorded = run.data["fingerprints"].get("dataset")
    if (
        recorded
        and run.stage("prepare")["status"] == "finished"
        and recorded != (present := sources.fingerprint(job))
    ):
        held = ", ".join([sources.name(job), *job.exam, safety.NAME])
        raise UserError(
            f"the data or what it is held against ({held}) has changed since run `{run.folder.name}` was prepared "
            f"(sha256 {recorded[:12]}, now {present[:12]}).\n"
            f"Choose a new name with RUN=, or start this run over with `make run FORCE=1` and the same PARAMS and RUN."
        )
