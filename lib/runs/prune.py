"""What of a finished run can be made again, and is freed on request."""

import pathlib
import shutil
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.common.text import aligned_table, format_size
from lib.pages import report
from lib.record import run_folder, run_record
from lib.record.run_record import FREED, STAGES, Run
from lib.runs.listing import _read, state


def freeable(folder: pathlib.Path, run: dict[str, Any]) -> dict[str, int]:
    """Bytes of each part of a finished run that can be made again from what stays."""
    if any(run["stages"][stage]["status"] != "finished" for stage in STAGES):
        return {}
    return {part: files.size_of(folder / part) for part in FREED if (folder / part).is_dir()}


def prune(folders: list[pathlib.Path], yes: bool) -> None:
    """Free checkpoints and merged weights of finished runs, after showing them and being told to; the record says so first."""
    plan = [
        (folder, part, count)
        for folder in folders
        if (run := _read(folder))
        for part, count in freeable(folder, run).items()
    ]
    kept = [
        f"{folder.name} ({state(run) if run else 'record not readable'})"
        for folder in folders
        if (run := _read(folder)) is None
        or any(run["stages"][s]["status"] != "finished" for s in STAGES)
    ]
    if kept:
        print(f"not finished, so nothing of them goes: {', '.join(kept)}")
    if not plan:
        print("nothing to free")
        return
    print(
        aligned_table(
            [
                {
                    "run": folder.name,
                    "goes": f"{part}/",
                    "size": format_size(count),
                    "again with": f"make {FREED[part]} FORCE=1",
                }
                for folder, part, count in plan
            ]
        )
    )
    print(
        f"\n{format_size(sum(count for _, _, count in plan))} in all. Adapter, GGUF files, notebooks, ledger and records stay."
    )
    if not yes:
        try:
            yes = input("Free them? [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            print("\nnobody to ask (YES=1 answers)")
        if not yes:
            print("nothing was removed")
            return
    for folder in dict.fromkeys(folder for folder, _, _ in plan):
        try:
            free(folder)
        except UserError as error:
            print(f"{folder.name}: kept. {error}")


def free(folder: pathlib.Path) -> None:
    """Remove what `freeable` names of one run, unless someone holds it or what stays is not as recorded."""
    run_folder.lock_run(folder)
    try:
        run = Run(folder, run_record.read_record(folder / "run.json"))
        parts = freeable(folder, run.data)
        stay = [
            a
            for stage in STAGES[1:]
            for a in run.stage(stage)["artifacts"]
            if a["path"].split("/")[0] not in parts
        ]
        if trouble := files.find_damage(folder, stay):
            raise UserError(
                f"{trouble}, and what was to go may be needed to make it again. Run its last stage again first."
            )
        now = run_record.timestamp()
        # the record first: a folder half removed is then one that was pruned, never a result that went bad
        for part, count in parts.items():
            for item in [
                a
                for stage in STAGES
                for a in run.stage(stage)["artifacts"]
                if a["path"].startswith(f"{part}/")
            ]:
                item["pruned"] = now
            run.data.setdefault("pruned", []).append({"path": part, "bytes": count, "at": now})
        run.save()
        for part, count in parts.items():
            shutil.rmtree(folder / part)
            print(f"{folder.name}: {part}/ removed, {format_size(count)}")
        report.write_report(folder)
    finally:
        files.unlock_folder(folder)
