"""Run a job: execute its stages' notebooks into a run folder, and record how each ended.

    python -m lib.runs run|prepare|train|export --params FILE [--run NAME] [--set "k=v"] [--force]
    python -m lib.runs report --params FILE [--run NAME]
    python -m lib.runs ask --params FILE [--run NAME] --question TEXT

Exit codes: 0, 1 if a stage failed, 2 for wrong usage, 130 / 143 / 129 when interrupted by Ctrl-C /
SIGTERM / a closed terminal.
"""

import argparse
import contextlib
import pathlib
import signal
import sys

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.common.redact import redacted_terminal
from lib.data.reading import sources
from lib.params import Params
from lib.record import opening, run_folder
from lib.record.run_record import STAGES
from lib.runs.engine import StageFailed
from lib.runs.needs import check_machine, require_same_data
from lib.runs.stages import run_stage
from lib.runs.stopper import Stopper


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", *STAGES, "report", "ask"])
    parser.add_argument("--params", default="params/cpu.yaml", metavar="FILE")
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
    stopper.install()
    folder = None
    try:
        job = params.load_job(options.params, options.overrides)
        folder = run_folder.choose_folder(job, options.params, options.run)
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


def _run_stages(
    folder: pathlib.Path, job: Params, options: argparse.Namespace, stopper: Stopper
) -> int:
    """Run the stages of a command, then write the report; return the exit code."""
    for key, value in params.parse_overrides(options.overrides).items():
        print(f"override: {key} = {value!r}")
    if options.command == "run":
        wanted, asked_for = STAGES, STAGES
    else:  # a stage needs the earlier ones, but FORCE=1 applies only to the one asked for
        wanted = STAGES[: STAGES.index(options.command) + 1]
        asked_for = (options.command,)
    forced = asked_for if options.force else ()
    sources.check_sources(job)
    if not folder.exists():  # before anything is made or downloaded
        check_machine(wanted, job, _existing_parent(folder))
    run = opening.open_run(folder, job, forced[0] if forced else "")
    if "prepare" not in forced:
        require_same_data(run, job)
    print(f"run: {files.format_path(folder)}")
    for stage in wanted:
        if stopper.signal is not None:  # it came too late to stop the previous stage
            raise KeyboardInterrupt
        try:
            run_stage(run, stage, job, stage in forced, stopper)
        except StageFailed as error:
            _tell_failure(error, folder / f"{stage}.ipynb", options.force)
            with contextlib.suppress(UserError):  # an error here must not hide the failure
                _write_report(folder)
            return 128 + stopper.signal if stopper.signal else 1
    _write_report(folder)
    return 0


def _existing_parent(folder: pathlib.Path) -> pathlib.Path:
    """Return the folder, or its nearest parent that exists."""
    return folder if folder.exists() else _existing_parent(folder.parent)


def _tell_failure(error: StageFailed, notebook: pathlib.Path, force: bool) -> None:
    cell = f"cell {error.cell} of " if error.cell else ""
    ended = "stopped" if error.interrupted else "failed"
    print(f"\n{ended} in {cell}{files.format_path(notebook)}: {error}", file=sys.stderr)
    if error.interrupted:
        without = ", without FORCE=1," if force else ""
        print(
            f"The same command{without} continues; training from its last good checkpoint.",
            file=sys.stderr,
        )


def _write_report(folder: pathlib.Path) -> None:
    from lib.pages import report  # slow to import, and a refused command does not need it

    print(f"report: {files.format_path(report.write_report(folder))}")
