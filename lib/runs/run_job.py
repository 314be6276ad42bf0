"""Run a job: notebooks executed through papermill into a run folder, with a record that tells the truth.

    python -m lib.runs run|prepare|train|export --params params/cpu.yaml [--run NAME] [--set "k=v k=v"] [--force]
    python -m lib.runs report --params params/cpu.yaml [--run NAME]

Exit codes: 0, 1 a stage failed, 2 wrong usage, 130 / 143 / 129 interrupted by Ctrl-C / SIGTERM / a closed terminal.
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
from lib.data import sources
from lib.record import opening, run_folder
from lib.record.run_record import STAGES
from lib.runs.notebook import StageFailed, _Stopper
from lib.runs.stages import check_machine, check_source, run_stage


def main(argv: list[str] | None = None) -> int:
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
        return _main(parser.parse_args(argv))


def _main(options: argparse.Namespace) -> int:
    _Stopper.install()
    folder = None
    try:
        job = params.load_job(options.params, options.overrides)
        folder = run_folder.choose_folder(job, options.params, options.run)
        if options.command == "report":
            return _report(folder)
        if options.command == "ask":
            from lib.runs import ask  # llama.cpp, 100 MB, which no other command needs here

            ask.answer(folder, options.question, lambda text: print(text, end="", flush=True))
            return 0
        for key, value in params.parse_overrides(options.overrides).items():
            print(f"override: {key} = {value!r}")
        wanted = STAGES if options.command == "run" else STAGES[: STAGES.index(options.command) + 1]
        forced = wanted if options.command == "run" else [options.command]
        sources.check(job)
        if not folder.exists():  # before anything is made or downloaded
            check_machine(wanted, job, _existing(folder))
        run = opening.open_run(folder, job, forced[0] if options.force else "")
        if not (options.force and "prepare" in forced):
            check_source(run, job)
        print(f"run: {files.shown(folder)}")
        for stage in wanted:
            if _Stopper.signal is not None:  # it came too late to stop the stage before
                raise KeyboardInterrupt
            run_stage(run, stage, job, options.force and stage in forced)
        return _report(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageFailed as error:
        where = (
            f"{f'cell {error.cell} of ' if error.cell else ''}{files.shown(folder / stage)}.ipynb"
        )
        print(
            f"\n{'stopped' if error.interrupted else 'failed'} in {where}: {error}", file=sys.stderr
        )
        if error.interrupted:
            print(
                f"The same command{', without FORCE=1,' * options.force} continues; training from its last good checkpoint.",
                file=sys.stderr,
            )
        with contextlib.suppress(UserError):  # the failure above is what counts
            _report(folder)
        return 128 + _Stopper.signal if _Stopper.signal else 1
    except (KeyboardInterrupt, SystemExit):
        return 128 + (_Stopper.signal or signal.SIGINT)
    finally:
        if folder:
            files.unlock_folder(folder)


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return folder if folder.exists() else _existing(folder.parent)


def _report(folder: pathlib.Path) -> int:
    from lib.pages import report

    print(f"report: {files.shown(report.write_report(folder))}")
    return 0
