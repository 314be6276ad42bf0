"""A job again from its record, in a folder of its own, and whether the result is the same.

make rerun RUN=name        # runs/name-rerun; the same command continues it, and compares again when it is finished
"""

import shlex
from typing import Any

import yaml

from lib.common import files, machine
from lib.common.errors import UserError
from lib.data import sources
from lib.pages import page, report
from lib.record import ledger, run_folder
from lib.record.run_record import STAGES
from lib.runs import listing, run_job


def repeat(name: str) -> int:
    """Print what differs, run the job, print whether the result is the same; the exit code of the run."""
    if len(name.split()) != 1:
        raise UserError(
            f"`{name}` is not one run. Expected RUN=name; `make runs` lists what there is."
        )
    [folder] = listing.find(name)
    told, target = report.gather_records(folder), run_folder.runs_folder() / f"{folder.name}-rerun"
    if any(told["run"]["stages"][stage]["status"] != "finished" for stage in STAGES[:2]):
        raise UserError(
            f"run `{folder.name}` has no finished training to repeat (it is: {listing.state(told['run'])}). "
            f"`make run` with its PARAMS and RUN continues it."
        )
    check_data(told)
    commit, dirty = machine.describe_checkout()
    now = {
        "commit": commit,
        "dirty": dirty,
        "packages": machine.packages(),
        "hardware": machine.hardware(),
    }
    different = differences(told, now)
    print(f"rerun of {files.shown(folder)} in {files.shown(target)}")
    print(
        "\n".join(f"  {text}" for text in different or ["same commit, packages and machine"]),
        flush=True,
    )
    command = "run" if told["run"]["stages"]["export"]["status"] == "finished" else "train"
    code = run_job.main(
        [command, "--params", str(folder / "params.yaml"), "--run", target.name, *pins(told)]
    )
    if code:
        return code
    same, results = compared(told, report.gather_records(target))
    files.write_json(
        target / "rerun.json",
        {"of": folder.name, "same": same, "differences": different, "results": results},
    )
    report.write_report(target)
    print(
        f"\n{'the same result' if same else 'not the same result'} as {folder.name}:\n"
        + "\n".join(f"  {text}" for text in results)
    )
    return 0


def check_data(told: dict[str, Any]) -> None:
    """UserError where the data of the record are no longer what lies there: another result would say nothing."""
    recorded, job = told["run"]["fingerprints"].get("dataset"), told["job"]
    sources.check_sources(job)
    if recorded and recorded != (present := sources.hash_sources(job)):
        raise UserError(
            f"the data or the exam of run `{told['folder'].name}` ({', '.join([sources.describe(job.dataset), *job.exam])}) have changed since "
            f"(sha256 {recorded[:12]}, now {present[:12]}), so its job cannot be repeated. Put the recorded ones back."
        )


def pins(told: dict[str, Any]) -> list[str]:
    """--set with the commits that hub names resolved to then, for what the parameters left open."""
    job, values = told["job"], {}
    if (commit := told["run"]["fingerprints"].get("base_commit")) and job.base_revision != commit:
        values["base_revision"] = commit
    path = told["folder"] / "data" / "data_card.json"
    read = files.read_json(path, "data card")["sources"] if path.is_file() else []
    parts = [s.model_dump() for s in sources.list_sources(job)]
    commits = [source.get("commit") for source in read]
    if len(commits) == len(parts) and any(commits):
        if isinstance(job.dataset, str):
            values["dataset_revision"] = commits[0]
        else:
            values["dataset"] = [
                {**part, "revision": commit or part["revision"]}
                for part, commit in zip(parts, commits, strict=True)
            ]
    words = [
        f"{key}={page.format_parameter(value)}" for key, value in values.items()
    ]  # JSON is YAML too
    return ["--set", shlex.join(words)] if words else []


def differences(told: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not as it was when the run was trained: checkout, packages, machine, parameters the record lacks."""
    run, found = told["run"], []
    last = run["stages"]["train"]["attempts"][-1]
    if last.get("commit") != now["commit"]:
        found.append(
            f"commit: recorded {(last.get('commit') or 'none')[:12]}, now {(now['commit'] or 'none')[:12]}"
        )
    if last.get("dirty"):
        patch = (
            f"{files.shown(told['folder'] / last['patch'])} has them: git apply"
            if last.get("patch")
            else "they were not kept"
        )
        found.append(f"that checkout had uncommitted changes ({patch})")
    if now["dirty"]:
        found.append("this checkout has uncommitted changes")
    for key in ("packages", "hardware"):
        was, new = run.get(key) or {}, now[key]
        found += [
            f"{name}: recorded {was.get(name, 'none')}, now {new.get(name, 'none')}"
            for name in {**was, **new}
            if was.get(name) != new.get(name)
        ]
    known = yaml.safe_load((told["folder"] / "params.yaml").read_text(encoding="utf-8")) or {}
    if lacks := [
        f"{key}={page.format_parameter(value)}"
        for key, value in told["job"].model_dump().items()
        if key not in known
    ]:
        found.append(f"not in the record, so with today's default: {', '.join(lacks)}")
    return found


def compared(old: dict[str, Any], new: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether two runs of a job ended alike (the same prepared rows, the same adapter to the bit), and what is the same and what not."""
    found, same = [], True
    prints = [told["run"]["fingerprints"].get("data") for told in (old, new)]
    weights = [
        {a["path"]: a["sha256"] for a in told["run"]["stages"]["train"]["artifacts"]}.get(
            "adapter/adapter_model.safetensors"
        )
        for told in (old, new)
    ]
    for what, (was, now) in (("prepared rows", prints), ("adapter weights", weights)):
        if None in (was, now):
            found.append(f"{what}: not recorded in both")
        else:
            found.append(
                f"{what}: the same"
                if was == now
                else f"{what}: different (sha256 {was[:12]}, now {now[:12]})"
            )
        same = same and was is not None and was == now
    losses = [
        {e["step"]: e["loss"] for e in ledger.valid_steps(told["entries"])} for told in (old, new)
    ]
    if shared := sorted(losses[0].keys() & losses[1].keys()):
        apart = [
            (abs(losses[0][n] - losses[1][n]), n) for n in shared if losses[0][n] != losses[1][n]
        ]
        steps = f"{len(shared):,} steps"
        if losses[0].keys() != losses[1].keys():
            steps += f" that both have ({len(losses[0]):,} and {len(losses[1]):,})"
        found.append(
            f"training loss: different in {len(apart):,} of {steps}, first at step {min(n for _, n in apart):,}, by {max(apart)[0]:.3g} "
            f"at most (step {max(apart)[1]:,})"
            if apart
            else f"training loss: the same in all {steps}"
        )
        same = same and not apart
    for key, words in (
        ("eval_loss_before", "held-out loss before"),
        ("eval_loss_after", "held-out loss after"),
    ):
        was, now = (told["results"].get("train", {}).get(key) for told in (old, new))
        if None not in (was, now):
            found.append(
                f"{words}: the same, {was:.4f}"
                if was == now
                else f"{words}: {was:.4f}, now {now:.4f} ({now - was:+.2g})"
            )
    return same, found
