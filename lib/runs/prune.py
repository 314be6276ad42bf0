"""Remove, on request, the parts of a run that can be made again."""

import pathlib
import shutil
import sys

from lib.common import files
from lib.common.errors import UserError
from lib.common.text import aligned_table, format_size
from lib.pages import report
from lib.record import run_folder, run_record
from lib.record.run_record import FREED, STAGES, Run
from lib.record.schema import RunRecord
from lib.runs.listing import describe_state, read_if_complete


def prune_runs(folders: list[pathlib.Path], yes: bool, named: bool = False) -> None:
    """Remove checkpoints and merged weights of runs, after the user agrees to the list.

    `yes` agrees beforehand. Without names, only finished runs are meant; a run that failed or was
    interrupted is pruned if the user `named` it, since its checkpoints are what it would continue
    from. A folder's removal is recorded before it is carried out.
    """
    unfinished = []
    plan: list[tuple[pathlib.Path, str, int]] = []
    for folder in folders:
        record = read_if_complete(folder)
        if record is None:
            unfinished.append(f"{folder.name} (record not readable)")
        elif not (named or _is_finished(record)):
            unfinished.append(f"{folder.name} ({describe_state(record)})")
        else:
            parts = measure_freeable(folder)
            plan += [(folder, part, size) for part, size in parts.items()]
    if unfinished:
        print(
            f"not finished, so all their files are kept: {', '.join(unfinished)}\n"
            f'RUNS="name" prunes one of them too.'
        )
    if not plan:
        print("nothing to remove")
        return
    _show_plan(plan)
    if not (yes or _ask()):
        print("nothing was removed")
        return
    for folder in dict.fromkeys(folder for folder, _, _ in plan):
        try:
            free_run(folder)
        except UserError as error:
            print(f"{folder.name}: kept. {error}")


def _is_finished(record: RunRecord) -> bool:
    return all(record["stages"][stage]["status"] == "finished" for stage in STAGES)


def measure_freeable(folder: pathlib.Path) -> dict[str, int]:
    """Return the bytes of each part of a run that its stages can make again."""
    return {part: files.size_of(folder / part) for part in FREED if (folder / part).is_dir()}


def _show_plan(plan: list[tuple[pathlib.Path, str, int]]) -> None:
    rows = [
        {
            "run": folder.name,
            "goes": f"{part}/",
            "size": format_size(size),
            "again with": _name_cost(folder, part),
        }
        for folder, part, size in plan
    ]
    print(aligned_table(rows))
    total = format_size(sum(size for _, _, size in plan))
    print(
        f"\n{total} in total. Adapter or trained weights, GGUF files, notebooks, ledger and "
        f"records are kept."
    )


def _name_cost(folder: pathlib.Path, part: str) -> str:
    """Return the command that makes a removed part again, and what it costs."""
    record = run_record.read_record(folder / "run.json")
    status = record["stages"]["train"]["status"]
    if part == "checkpoints" and status != "finished":
        return f"make train, from its first step (training is {status})"
    return f"make {FREED[part]} FORCE=1"


def _ask() -> bool:
    try:
        if sys.stdin is None:  # closed by `<&-`
            return False
        return input("Remove them? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print("\nnobody answers (YES=1 removes without asking)")
        return False


def free_run(folder: pathlib.Path) -> None:
    """Remove the parts of one run that `measure_freeable` names.

    Raise UserError if the run is in use, or if a part that stays is not as recorded. A training
    that has not finished starts over without its checkpoints.
    """
    run_folder.lock_run(folder)
    try:
        run = Run(folder, run_record.read_record(folder / "run.json"))
        parts = measure_freeable(folder)
        kept = [
            artifact
            for stage in STAGES[1:]
            for artifact in run.stage(stage)["artifacts"]
            if artifact["path"].split("/")[0] not in parts
        ]
        if trouble := files.find_damage(folder, kept):
            raise UserError(
                f"{trouble}, and the files to remove may be needed to make it again. "
                f"Run its last stage again first."
            )
        # the record comes first, so that a half-removed folder counts as pruned, not as damaged
        _record_pruned(run, parts)
        for part, size in parts.items():
            shutil.rmtree(folder / part)
            print(f"{folder.name}: {part}/ removed, {format_size(size)}")
        report.write_report(folder)
    finally:
        files.unlock_folder(folder)


def _record_pruned(run: Run, parts: dict[str, int]) -> None:
    time = run_record.timestamp()
    for part, size in parts.items():
        for stage in STAGES:
            for artifact in run.stage(stage)["artifacts"]:
                if artifact["path"].startswith(f"{part}/"):
                    artifact["pruned"] = time
        run.data.setdefault("pruned", []).append({"path": part, "bytes": size, "at": time})
    run.save()
