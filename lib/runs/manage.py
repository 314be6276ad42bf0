"""List, compare, repeat and prune the runs on this disk; have the medical texts reviewed.

    python -m lib.runs list
    python -m lib.runs prune   [--runs "a b"] [--yes]     # remove what runs can make again
    python -m lib.runs compare [--runs "a b"] [--metric eval_loss_after]
    python -m lib.runs diff    --runs "a b"               # two runs' notebooks beside each other
    python -m lib.runs rerun    --runs a                  # run the job of run a again, as a-rerun
    python -m lib.runs review  [--sheet review.csv]       # the medical texts for a clinician

Exit codes: 0, 1 if a rerun failed, 2 for wrong usage, 130 when interrupted.
"""

import argparse
import sys

from lib.common import files, locations
from lib.common.errors import UserError
from lib.common.text import aligned_table
from lib.record import run_folder
from lib.runs.compare import compare_runs
from lib.runs.diff.page import diff_runs
from lib.runs.listing import find_runs, list_runs
from lib.runs.prune import prune_runs
from lib.runs.rerun import repeat_run
from lib.runs.review import sheet, sign_off

COMMANDS = ("list", "prune", "compare", "diff", "rerun", "review")


def main(argv: list[str] | None = None) -> int:
    assert __doc__
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument(
        "--runs",
        default="",
        metavar='"A B"',
        help="names under the runs folder, or paths (default: all runs)",
    )
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument(
        "--metric", default="eval_loss_after", help="metric by which compare chooses the best run"
    )
    parser.add_argument("--sheet", default="", help="a filled-in sheet for review to read back")
    options = parser.parse_args(argv)
    try:
        if options.command == "review":
            return _review(options.sheet)
        return _do(options.command, options.runs, options.metric, options.yes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _review(filled: str) -> int:
    if filled:
        print(sign_off.read_sheet(locations.local_path(filled)))
        return 0
    try:
        paths = sheet.write_sheet()
    except ValueError as error:  # a text that is not as schema.py wants it
        raise UserError(f"{error}") from None
    for path in paths:
        print(files.format_path(path))
    return 0


def _do(command: str, names: str, metric: str, yes: bool) -> int:
    """Carry out one command; return its exit code."""
    if command == "rerun":
        return repeat_run(names)
    if command == "diff":
        text, path = diff_runs(names)
        print(f"{text}\n\n{files.format_path(path)}")
        return 0
    folders = find_runs(names)
    if command == "compare":
        text, path = compare_runs(folders, metric)
        print(f"{text}\n\n{files.format_path(path)}")
    elif command == "prune":
        prune_runs(folders, yes, named=bool(names.split()))
    else:
        table = aligned_table(list_runs(folders))
        print(table or f"no runs in {files.format_path(run_folder.runs_folder())}")
    return 0
