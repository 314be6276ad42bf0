"""Run a job: execute its stages' notebooks into a run folder, and record how each ended.

    python -m lib.runs run|prepare|train|export [--params FILE] [--run NAME] [--set "k=v"] [--force]
    python -m lib.runs report --run NAME
    python -m lib.runs ask --run NAME --question TEXT

Without --params, a run that exists keeps its own parameters, and a new one has those of
params/cpu.yaml.
Exit codes: 0, 1 if a stage failed, 2 for wrong usage, 130 / 143 / 129 when interrupted by Ctrl-C /
SIGTERM / a closed terminal. `ask` saves nothing, so there the signal itself ends it.
"""

import argparse
import contextlib
import pathlib
import signal
import sys

from lib import params
from lib.common import files, interrupts, locations
from lib.common.errors import UserError
from lib.common.redact import redacted_terminal
from lib.common.text import shorten
from lib.data.reading import sources
from lib.params import Params
from lib.record import opening, run_folder
from lib.record.run_record import STAGES, read_record
from lib.runs.engine import StageFailed
from lib.runs.needs import (
    check_machine,
    check_settings,
    check_sources,
    note_elsewhere,
    require_possible,
)
from lib.runs.stages import run_stage
from lib.runs.stopper import Stopper

DEFAULT = "params/cpu.yaml"  # the params file of a new run
CONTINUES = {
    "prepare": "reads the data again; what was cleaned and tokenised before comes from the cache.",
    "train": "continues from the last good checkpoint.",
    "export": "exports what was trained again; models already examined keep their results.",
}


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", *STAGES, "report", "ask"])
    parser.add_argument(
        "--params",
        default="",
        metavar="FILE",
        help=f"without it: the parameters of the run, or {DEFAULT} for a new one",
    )
    parser.add_argument("--run", default="", metavar="NAME")
    parser.add_argument("--set", default="", metavar='"K=V K=V"', dest="overrides")
    parser.add_argument("--force", action="store_true")
    parser.add_argument(
        "--question",
        default="",
        metavar="TEXT",
        help="what to ask the run's first GGUF (command ask)",
    )
    with redacted_terminal():
        return _do(parser.parse_args(argv))


def _do(options: argparse.Namespace) -> int:
    """Carry out one command and return its exit code; always unlock the run."""
    stopper = Stopper()
    if options.command == "ask":
        interrupts.end_at_once()  # it saves nothing
    else:
        stopper.install()
    folder = None
    try:
        job, folder = choose_job(options.params, options.overrides, options.run)
        if options.command in ("report", "ask") and not options.run:
            _require_default_run(folder, options.command)
        if options.command == "report":
            _write_report(folder)
            return 0
        if options.command == "ask":
            from lib.runs import ask  # it loads llama.cpp, 100 MB, for this command only

            ask.answer_question(
                folder, options.question, lambda text: print(text, end="", flush=True)
            )
            return 0
        return _run_stages(folder, job, options, stopper)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, SystemExit):
        return 128 + (stopper.signal or signal.SIGINT)
    finally:
        if folder:
            files.unlock_folder(folder)


def choose_job(params_file: str, overrides: str, name: str) -> tuple[Params, pathlib.Path]:
    """Return the job and the folder of its run.

    Without a params file, an existing run keeps its own parameters: whoever names the run need not
    remember how it was begun.
    """
    own = None if params_file else run_folder.find_run(name)
    if own is None or not (own / "params.yaml").is_file():
        params_file = params_file or DEFAULT
        job = params.load_job(params_file, overrides)
        return job, run_folder.choose_folder(job, params_file, name)
    path = files.format_path(own / "params.yaml")
    recorded = params.load_recorded(own).model_dump()
    changed = params.parse_overrides(overrides)
    return params.check_values({**recorded, **changed}, f'{path} + SET="{shorten(overrides)}"'), own


def _require_default_run(folder: pathlib.Path, command: str) -> None:
    """Raise UserError unless the run exists that a command means without RUN."""
    if not run_folder.is_run(folder):
        raise UserError(
            f"Which run? Without RUN=, `make {command}` means the run of the default parameters, "
            f"`{folder.name}`, which does not exist.\n"
            f"`make {command} RUN=name`; known runs: {run_folder.list_names()}."
        )


def _run_stages(
    folder: pathlib.Path, job: Params, options: argparse.Namespace, stopper: Stopper
) -> int:
    """Run the stages of a command, then write the report; return the exit code."""
    if not options.params and run_folder.is_run(folder) and options.run:
        own = files.format_path(folder / "params.yaml")
        print(f"parameters: the run's own, {own}{' and SET' if options.overrides else ''}")
    for key, value in params.parse_overrides(options.overrides).items():
        print(f"override: {key} = {value!r}")
    if options.command == "run":
        wanted, asked_for = STAGES, STAGES
    else:  # a stage needs the earlier ones, but FORCE=1 applies only to the one asked for
        wanted = STAGES[: STAGES.index(options.command) + 1]
        asked_for = (options.command,)
    forced = asked_for if options.force else ()
    require_possible(job, folder)
    if "prepare" in forced or not run_folder.is_run(folder):
        sources.check_sources(job)
    if not folder.exists():  # before anything is made or downloaded
        sources.require_hub_sets(job)
        check_machine(wanted, job, locations.existing_parent(folder))
        _name_relatives(folder, options.run)
    else:
        check_settings([s for s in wanted if s in forced or not _is_done(folder, s)], job, folder)
    later = [s for s in STAGES if s not in wanted and not _is_done(folder, s)]
    for note in note_elsewhere(later, job, folder):
        print(f"note: not on this machine: {note}")
    run = opening.open_run(folder, job, forced[0] if forced else "")
    if "prepare" not in forced:
        check_sources(run, job)
    print(f"run: {files.format_path(folder)}")
    for stage in wanted:
        if stopper.signal is not None:  # it came too late to stop the previous stage
            raise KeyboardInterrupt
        try:
            run_stage(run, stage, job, stage in forced, stopper)
        except StageFailed as error:
            _tell_failure(error, folder / f"{stage}.ipynb", stage, options.force)
            with contextlib.suppress(UserError):  # an error here must not hide the failure
                _write_report(folder)
            return 128 + stopper.signal if stopper.signal else 1
    _write_report(folder)
    return 0


def _is_done(folder: pathlib.Path, stage: str) -> bool:
    """Tell whether a run's record has a stage as finished; a damaged record is told later."""
    if not run_folder.is_run(folder):
        return False
    with contextlib.suppress(UserError):
        return read_record(folder / "run.json")["stages"][stage]["status"] == "finished"
    return True


def _name_relatives(folder: pathlib.Path, name: str) -> None:
    """Tell of runs of the same params file, since a forgotten SET would begin another run."""
    stem = folder.name.rpartition("-")[0]
    relatives = sorted(path.parent.name for path in folder.parent.glob(f"{stem}-*/run.json"))
    if not name and relatives:
        print(
            f"a new run; of other parameters, but the same file: {', '.join(relatives[:5])} "
            f"(RUN=name continues one)"
        )


def _tell_failure(error: StageFailed, notebook: pathlib.Path, stage: str, force: bool) -> None:
    cell = f"cell {error.cell} of " if error.cell else ""
    ended = "stopped" if error.interrupted else "failed"
    print(f"\n{ended} in {cell}{files.format_path(notebook)}: {error}", file=sys.stderr)
    if error.interrupted:
        without = ", without FORCE=1," if force else ""
        print(
            f"The same command{without} {CONTINUES[stage]}",
            file=sys.stderr,
        )


def _write_report(folder: pathlib.Path) -> None:
    from lib.pages import report  # slow to import, and a refused command does not need it

    print(f"report: {files.format_path(report.write_report(folder))}")
