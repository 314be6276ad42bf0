"""The runs on this disk: listed, compared, repeated, freed of what can be made again.

    python -m lib.runs list
    python -m lib.runs prune   [--runs "a b"] [--yes]       # checkpoints and merged weights of finished runs
    python -m lib.runs compare [--runs "a b"] [--metric eval_loss_after]
    python -m lib.runs rerun    --runs a                    # the job of run a again, as a-rerun

Exit codes: 0, 1 a rerun failed, 2 wrong usage, 130 interrupted.
"""

import argparse
import sys

from lib.common import files
from lib.common.errors import UserError
from lib.common.text import aligned_table
from lib.record import run_folder
from lib.runs import compare, listing, prune, rerun

COMMANDS = ("list", "prune", "compare", "rerun")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument(
        "--runs",
        default="",
        metavar='"A B"',
        help="names under the runs folder, or paths; all of them without",
    )
    parser.add_argument("--yes", action="store_true", help="prune without asking")
    parser.add_argument(
        "--metric", default="eval_loss_after", help="what compare calls the best run by"
    )
    options = parser.parse_args(argv)
    try:
        if options.command == "rerun":
            return rerun.repeat(options.runs)
        folders = listing.find(options.runs)
        if options.command == "compare":
            text, path = compare.write(folders, options.metric)
            print(f"{text}\n\n{files.shown(path)}")
        elif options.command == "prune":
            prune.prune(folders, options.yes)
        else:
            print(
                aligned_table(listing.listed(folders))
                or f"no runs in {files.shown(run_folder.runs_folder())}"
            )
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
