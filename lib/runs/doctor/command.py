"""`make doctor`: what this machine can do, what a job would need, and what is missing.

    python -m lib.runs doctor [--params FILE] [--set "k=v"] [--run NAME]

It asks no network. Nothing it meets ends it: a question that fails is a line that says so.
Exit codes: 0 if the job could run (without one: if nothing is missing that every job needs),
otherwise 1.
"""

import argparse
from collections.abc import Iterable

from lib.runs.doctor import packages, system
from lib.runs.doctor.asking import ask
from lib.runs.doctor.screen import Line, render


def main(argv: list[str] | None = None) -> int:
    """Print the screen; return the exit code."""
    assert __doc__
    parser = argparse.ArgumentParser(prog="make doctor", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["doctor"])
    parser.add_argument("--params", default="", metavar="FILE")
    parser.add_argument("--set", default="", metavar='"K=V K=V"', dest="overrides")
    parser.add_argument("--run", default="", metavar="NAME")
    parser.add_argument("--force", action="store_true", help="as if nothing was done yet")
    options = parser.parse_args(argv)
    lines = examine(options.params, options.overrides, options.run)
    print(render(lines))
    return int(any(line.state == "missing" for line in lines))


def examine(params_file: str, overrides: str, name: str) -> list[Line]:
    """Return all lines; with a params file, overrides or a run, also those of that job."""
    lines = [
        *ask("project", "note", system.describe_project),
        *ask("python", "note", system.describe_python),
        *ask("processor", "note", system.describe_cores),
        *ask("memory", "note", _describe_memory),
        *ask("disk", "missing", system.describe_disk),
        *ask("packages", "missing", packages.describe_packages),
        *ask("loading", "missing", packages.describe_loading),
    ]
    loads_torch = not packages.explain_failure("torch")
    has_job = bool(params_file or overrides or name)
    if loads_torch:
        lines += ask("card", "missing", _describe_cards)
        if not has_job:
            lines += ask("precision", "missing", _describe_precision)
    lines += ask("HF_TOKEN", "note", system.describe_hub)
    lines += ask("programs", "note", system.describe_programs)
    if has_job and loads_torch:
        lines += ask("job", "missing", lambda: _describe_job(params_file, overrides, name))
    elif has_job:
        lines.append(Line("missing", "job", "not looked at: it needs torch"))
    else:
        lines.append(Line("note", "job", "none named: PARAMS=params/t4.yaml says what it needs"))
    return lines


# these modules import packages, any of which may be missing or broken


def _describe_memory() -> Iterable[Line]:
    from lib.runs.doctor import memory

    return memory.describe_memory()


def _describe_cards() -> Iterable[Line]:
    from lib.runs.doctor import card

    return card.describe_cards()


def _describe_precision() -> Iterable[Line]:
    from lib.runs.doctor import card

    return card.describe_precision()


def _describe_job(params_file: str, overrides: str, name: str) -> Iterable[Line]:
    from lib.runs.doctor import job

    return job.describe_job(params_file, overrides, name)
