"""The runs on this disk: listed, compared, repeated, freed of what can be made again.

    python -m lib.runs.listing runs
    python -m lib.runs.listing prune   [--runs "a b"] [--yes]       # checkpoints and merged weights of finished runs
    python -m lib.runs.listing compare [--runs "a b"] [--metric eval_loss_after]
    python -m lib.runs.listing rerun    --runs a                    # the job of run a again, as a-rerun

Exit codes: 0, 1 a rerun failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import contextlib
import datetime
import pathlib
import shutil
import socket
import sys
from typing import Any

from lib.common import files
from lib.pages import report, show
from lib.record import run_record
from lib.pages.headline import examined, headline
from lib.common.machine import alive
from lib.params import ROOT, UserError
from lib.record.run_record import FREED, STAGES, Run
from lib.common.redact import terminal


def find(names: str = "") -> list[pathlib.Path]:
    """Run folders by name under the runs folder, or by path; all there are, oldest first, without names. UserError names what is no run."""
    top, found = run_record.runs_folder(), []
    if not names.split():
        return sorted((p.parent for p in top.glob("*/run.json")), key=lambda folder: (_read(folder) or {}).get("created", ""))
    for name in dict.fromkeys(names.split()):
        folder = next((f for f in (top / name, ROOT / name) if (f / "run.json").is_file()), None)
        if folder is None:
            raise UserError(f"`{name}` is not a run: neither `{files.shown(top / name)}` nor `{name}` has a run.json. "
                            f"Runs there: {run_record.names()}.")
        found.append(folder)
    return found


def _read(folder: pathlib.Path) -> dict[str, Any] | None:
    with contextlib.suppress(UserError):
        return run_record.read_record(folder / "run.json")
    return None


# ---------------------------------------------------------------------------------------------------------------------
# the list


def listed(folders: list[pathlib.Path]) -> list[dict[str, Any]]:
    """A row a run: state, age of its last sign, headline, size on disk; the latest first."""
    rows = []
    for folder in folders:
        run, size = _read(folder), show.size(files.size_of(folder))
        if run is None:
            rows.append(("", {"run": folder.name, "state": "record not readable", "age": "?", "held-out loss": "", "exam": "", "size": size}))
            continue
        attempts = [a for stage in STAGES for a in run["stages"][stage]["attempts"]]
        last = max([a.get("end") or a.get("start") or "" for a in attempts] + [run.get("created") or ""])
        rows.append((last, {"run": folder.name, "state": state(run), "age": age(last), **_headline(folder), "size": size}))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)]


def state(run: dict[str, Any]) -> str:
    """The first stage that is not finished and how it stands, or `finished`."""
    before = "nothing yet"
    for stage in STAGES:
        entry = run["stages"][stage]
        if entry["status"] == "running":
            last = entry["attempts"][-1]
            gone = last.get("host") == socket.gethostname() and not any(alive(last[key]) for key in ("pid", "kernel") if key in last)
            return f"{stage} cut off: its process is gone" if gone else f"{stage} running"
        if entry["status"] == "pending" and not entry["attempts"]:
            return before
        if entry["status"] != "finished":
            return f"{stage} {entry['status']}"
        before = f"{stage} finished"
    freed = [part for part in FREED if run_record.pruned(run, part)]
    return "finished" + f", {' and '.join(freed)} pruned" * bool(freed)


def age(since: str) -> str:
    """How long ago a time of a record was, in its largest unit."""
    try:
        seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(since)).total_seconds()
    except (ValueError, TypeError):
        return "?"
    if seconds < 0:
        return "later than now"  # a clock was set back
    unit, name = next((pair for pair in ((86400, "days"), (3600, "h"), (60, "min")) if seconds >= 2 * pair[0]), (1, "s"))
    return f"{seconds / unit:.0f} {name}"


def _headline(folder: pathlib.Path) -> dict[str, str]:
    results, exams = {}, {}
    with contextlib.suppress(UserError):  # of a run that has none yet, or whose are torn
        results = files.read_json(folder / "results.json", "results file")
        exams = examined(folder, results)
    train = results.get("train", {})
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    said = [one["value"] for one in headline({}, exams) if one["name"].startswith("exam ") and one["value"]]
    return {"held-out loss": "not measured" if before is None or after is None else f"{before:.3f} -> {after:.3f}",
            "exam": said[0] if said else "not measured"}


# ---------------------------------------------------------------------------------------------------------------------
# what can go


def freeable(folder: pathlib.Path, run: dict[str, Any]) -> dict[str, int]:
    """Bytes of each part of a finished run that can be made again from what stays."""
    if any(run["stages"][stage]["status"] != "finished" for stage in STAGES):
        return {}
    return {part: files.size_of(folder / part) for part in FREED if (folder / part).is_dir()}


def prune(folders: list[pathlib.Path], yes: bool) -> None:
    """Free checkpoints and merged weights of finished runs, after showing them and being told to; the record says so first."""
    plan = [(folder, part, count) for folder in folders if (run := _read(folder)) for part, count in freeable(folder, run).items()]
    kept = [f"{folder.name} ({state(run) if run else 'record not readable'})" for folder in folders
            if (run := _read(folder)) is None or any(run["stages"][s]["status"] != "finished" for s in STAGES)]
    if kept:
        print(f"not finished, so nothing of them goes: {', '.join(kept)}")
    if not plan:
        print("nothing to free")
        return
    print(show.aligned([{"run": folder.name, "goes": f"{part}/", "size": show.size(count), "again with": f"make {FREED[part]} FORCE=1"}
                        for folder, part, count in plan]))
    print(f"\n{show.size(sum(count for _, _, count in plan))} in all. Adapter, GGUF files, notebooks, ledger and records stay.")
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
    run_record.lock(folder)
    try:
        run = Run(folder, run_record.read_record(folder / "run.json"))
        parts = freeable(folder, run.data)
        stay = [a for stage in STAGES[1:] for a in run.stage(stage)["artifacts"] if a["path"].split("/")[0] not in parts]
        if trouble := files.damaged(folder, stay):
            raise UserError(f"{trouble}, and what was to go may be needed to make it again. Run its last stage again first.")
        now = run_record.now()
        # the record first: a folder half removed is then one that was pruned, never a result that went bad
        for part, count in parts.items():
            for item in [a for stage in STAGES for a in run.stage(stage)["artifacts"] if a["path"].startswith(f"{part}/")]:
                item["pruned"] = now
            run.data.setdefault("pruned", []).append({"path": part, "bytes": count, "at": now})
        run.save()
        for part, count in parts.items():
            shutil.rmtree(folder / part)
            print(f"{folder.name}: {part}/ removed, {show.size(count)}")
        report.write(folder)
    finally:
        files.unlock(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.listing", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["runs", "prune", "compare", "rerun"])
    parser.add_argument("--runs", default="", metavar='"A B"', help="names under the runs folder, or paths; all of them without")
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument("--metric", default="eval_loss_after", help="what compare calls the best run by")
    options = parser.parse_args(argv)
    try:
        if options.command == "rerun":
            from lib.runs import rerun

            return rerun.repeat(options.runs)
        folders = find(options.runs)
        if options.command == "compare":
            from lib.runs import compare

            text, path = compare.write(folders, options.metric)
            print(f"{text}\n\n{files.shown(path)}")
        elif options.command == "prune":
            prune(folders, options.yes)
        else:
            print(show.aligned(listed(folders)) or f"no runs in {files.shown(run_record.runs_folder())}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    with terminal():
        sys.exit(main())
