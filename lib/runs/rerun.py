"""Run a recorded job again, in a folder of its own, and tell whether the result is the same.

    make rerun RUN=name

The job runs in runs/name-rerun. The same command continues an interrupted job, and compares a
finished one again.
"""

import shlex
from typing import Any

import yaml

from lib.common import files, machine
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.model import start
from lib.pages import page, report
from lib.pages.cautions import describe_lengthenings
from lib.record import ledger, run_folder
from lib.record.run_record import STAGES
from lib.runs import run_job
from lib.runs.listing import describe_state, find_runs

Records = dict[str, Any]  # what report.gather_records returns
# of an adapter, or of full fine-tuning
WEIGHTS = ("adapter/adapter_model.safetensors", "weights/model.safetensors")


def repeat_run(name: str) -> int:
    """Print what differs, run the job, and print whether the result is the same.

    Return the exit code of the run. Raise UserError if there is nothing to repeat.
    """
    if len(name.split()) != 1:
        raise UserError(f"`{name}` is not one run. Expected RUN=name; `make runs` lists the runs.")
    [folder] = find_runs(name)
    target = run_folder.runs_folder() / f"{folder.name}-rerun"
    old = report.gather_records(folder)
    stages = old["run"]["stages"]
    if any(stages[stage]["status"] != "finished" for stage in STAGES[:2]):
        raise UserError(
            f"run `{folder.name}` has no finished training to repeat (its state: "
            f"{describe_state(old['run'])}). `make run RUN={folder.name}` continues it."
        )
    _require_same_data(old)
    differences = find_differences(old, _describe_today())
    print(f"rerun of {files.format_path(folder)} in {files.format_path(target)}")
    _print_indented(differences or ["same commit, packages and machine"])
    command = "run" if stages["export"]["status"] == "finished" else "train"
    words = ["--params", str(folder / "params.yaml"), "--run", target.name]
    code = run_job.main([command, *words, *pin_revisions(old)])
    if code:
        return code
    same, results = compare_results(old, report.gather_records(target))
    files.write_json(
        target / "rerun.json",
        {"of": folder.name, "same": same, "differences": differences, "results": results},
    )
    report.write_report(target)
    print(f"\n{'the same result' if same else 'not the same result'} as {folder.name}:")
    _print_indented(results)
    return 0


def _print_indented(lines: list[str]) -> None:
    for line in lines:
        print(f"  {line}", flush=True)


def _require_same_data(old: Records) -> None:
    """Raise UserError if the recorded data have changed: a comparison would then mean nothing."""
    job = old["job"]
    begun = old["run"].get("start")
    if begun and start.check_start(job)["sha256"] != begun["sha256"]:
        raise UserError(
            f"run `{old['folder'].name}` began from `{job.start_from}`, whose weights have changed "
            f"since, so its job cannot be repeated. Restore them."
        )
    sources.check_sources(job)
    recorded = old["run"]["fingerprints"].get("dataset")
    if not recorded:
        return
    present = sources.hash_sources(job)
    if present != recorded:
        names = ", ".join([sources.describe(job.dataset), *map(sources.name_exam, job.exam)])
        raise UserError(
            f"the data or the exam of run `{old['folder'].name}` ({names}) have changed since it "
            f"was prepared (sha256 {recorded[:12]}, now {present[:12]}), so its job cannot be "
            f"repeated. Restore the recorded files."
        )


def pin_revisions(old: Records) -> list[str]:
    """Return --set with the recorded commits of hub names whose revision the job left open."""
    job = old["job"]
    values: dict[str, Any] = {}
    base_commit = old["run"]["fingerprints"].get("base_commit")
    if base_commit and job.base_revision != base_commit:
        values["base_revision"] = base_commit
    path = old["folder"] / "data" / "data_card.json"
    card = files.read_json(path, "data card") if path.is_file() else {}
    read = card.get("sources", [])
    commits = [source.get("commit") for source in read]
    parts = [source.model_dump() for source in sources.list_sources(job)]
    if len(commits) == len(parts) and any(commits):
        if isinstance(job.dataset, str):
            values["dataset_revision"] = commits[0]
        elif not isinstance(job.dataset, list):
            values["dataset"] = {**job.dataset.model_dump(), "revision": commits[0]}
        else:
            values["dataset"] = [
                {**part, "revision": commit or part["revision"]}
                for part, commit in zip(parts, commits, strict=True)
            ]
    if commit := card.get("forgetting", {}).get("commit"):
        (source,) = sources.list_forgetting(job)
        values["forgetting"] = {**source.model_dump(), "revision": commit}
    # JSON, which format_parameter writes, is YAML too
    words = [f"{key}={page.format_parameter(value)}" for key, value in values.items()]
    return ["--set", shlex.join(words)] if words else []


# --------------------------------------------------------------------------------------------------
# before the run: what has changed


def _describe_today() -> dict[str, Any]:
    commit, dirty = machine.describe_checkout()
    return {
        "commit": commit,
        "dirty": dirty,
        "packages": machine.packages(),
        "hardware": machine.hardware(),
    }


def find_differences(old: Records, today: dict[str, Any]) -> list[str]:
    """List what changed since training: checkout, packages, machine, and added parameters."""
    return [
        *_compare_checkouts(old, today),
        *_compare_values(old["run"].get("packages"), today["packages"]),
        *_compare_values(old["run"].get("hardware"), today["hardware"]),
        *_list_unrecorded(old),
        *(
            f"that training was made longer: {text}. A repetition has one schedule for all steps"
            for text in describe_lengthenings(old["results"].get("train", {}))
        ),
    ]


def _compare_checkouts(old: Records, today: dict[str, Any]) -> list[str]:
    differences = []
    attempt = old["run"]["stages"]["train"]["attempts"][-1]
    recorded, present = attempt.get("commit"), today["commit"]
    if recorded != present:
        shortened = [(commit or "none")[:12] for commit in (recorded, present)]
        differences.append(f"commit: recorded {shortened[0]}, now {shortened[1]}")
    if attempt.get("dirty"):
        kept = "they were not kept"
        if attempt.get("patch"):
            kept = f"{files.format_path(old['folder'] / attempt['patch'])} has them: git apply"
        differences.append(f"that checkout had uncommitted changes ({kept})")
    if today["dirty"]:
        differences.append("this checkout has uncommitted changes")
    return differences


def _compare_values(recorded: dict[str, Any] | None, present: dict[str, Any]) -> list[str]:
    recorded = recorded or {}
    return [
        f"{name}: recorded {recorded.get(name, 'none')}, now {present.get(name, 'none')}"
        for name in {**recorded, **present}
        if recorded.get(name) != present.get(name)
    ]


def _list_unrecorded(old: Records) -> list[str]:
    """List the parameters that the pipeline did not have when the run was made."""
    text = (old["folder"] / "params.yaml").read_text(encoding="utf-8")
    recorded = yaml.safe_load(text) or {}
    added = [
        f"{key}={page.format_parameter(value)}"
        for key, value in old["job"].model_dump().items()
        if key not in recorded
    ]
    return [f"not in the record, so today's defaults apply: {', '.join(added)}"] if added else []


# --------------------------------------------------------------------------------------------------
# after the run: the comparison


def compare_results(old: Records, new: Records) -> tuple[bool, list[str]]:
    """Tell whether two runs of a job gave the same result, and list what is the same or not.

    The same result means equal prepared rows, training losses and trained weights, bit for bit.
    """
    compared = [
        _compare_hashes(
            "prepared rows", *(run["run"]["fingerprints"].get("data") for run in (old, new))
        ),
        _compare_hashes("trained weights", _weights_hash(old), _weights_hash(new)),
        _compare_losses(old, new),
    ]
    same = all(alike for alike, _ in compared)
    lines = [line for _, line in compared if line]
    return same, [*lines, *_compare_held_out(old, new)]


def _weights_hash(run: Records) -> str | None:
    artifacts = run["run"]["stages"]["train"]["artifacts"]
    return next((file["sha256"] for file in artifacts if file["path"] in WEIGHTS), None)


def _compare_hashes(what: str, old: str | None, new: str | None) -> tuple[bool, str]:
    if old is None or new is None:
        return False, f"{what}: not recorded in both"
    if old == new:
        return True, f"{what}: the same"
    return False, f"{what}: different (sha256 {old[:12]}, now {new[:12]})"


def _compare_losses(old: Records, new: Records) -> tuple[bool, str]:
    """Compare the training losses of the steps that both runs have; no such steps are alike."""
    before, after = (
        {entry["step"]: entry["loss"] for entry in ledger.valid_steps(run["entries"])}
        for run in (old, new)
    )
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return True, ""
    steps = f"{len(shared):,} steps"
    if before.keys() != after.keys():
        steps += f" that both have ({len(before):,} and {len(after):,})"
    apart = [
        (abs(before[step] - after[step]), step) for step in shared if before[step] != after[step]
    ]
    if not apart:
        return True, f"training loss: the same in all {steps}"
    first = min(step for _, step in apart)
    most, at_step = max(apart)
    return False, (
        f"training loss: different in {len(apart):,} of {steps}, first at step {first:,}, "
        f"by {most:.3g} at most (step {at_step:,})"
    )


def _compare_held_out(old: Records, new: Records) -> list[str]:
    lines = []
    for when in ("before", "after"):
        before, after = (
            run["results"].get("train", {}).get(f"eval_loss_{when}") for run in (old, new)
        )
        if before is None or after is None:
            continue
        what = f"held-out loss {when}"
        change = f"{before:.4f}, now {after:.4f} ({after - before:+.2g})"
        lines.append(f"{what}: the same, {before:.4f}" if before == after else f"{what}: {change}")
    return lines
