"""Compare runs: compare.html in the runs folder, and tables for the terminal.

    make compare RUNS="a b c" METRIC=eval_loss_after

Without RUNS, all runs are compared. Statistical tests compare each run with the first one named.
"""

import pathlib
from typing import Any

from lib.common.errors import UserError
from lib.common.text import aligned_table
from lib.pages import figures, page, report
from lib.pages.cautions import list_warnings
from lib.record import ledger, run_folder, run_record
from lib.runs.comparisons import (
    compare_with_first,
    differing_parameters,
    find_mismatches,
    group_by_rows,
)
from lib.runs.metrics import HELD_OUT, METRICS, Records, find_best, tabulate_metrics

# columns of the page for which the terminal has no room
SECONDARY = ("tokens/s", "seconds in steps", "training loss at the end")
MOST_CURVES = 8  # that can be told apart in one figure
LONGEST = 40  # characters of a parameter's value in the terminal
RANDOM_BASE = "the base's weights are random"  # how the warning about such a run begins


def compare_runs(
    folders: list[pathlib.Path], metric: str = "eval_loss_after"
) -> tuple[str, pathlib.Path]:
    """Compare runs; return the text for a terminal, and the path of the page.

    Raise UserError without two readable runs.
    """
    if metric not in METRICS:
        raise UserError(f"METRIC={metric} is not known; expected one of {', '.join(METRICS)}.")
    runs, left_out = _gather(folders)
    warnings = {run["name"]: _list_warnings(run) for run in runs}
    groups = group_by_rows(runs)
    notes = [*_note_groups(groups), *left_out, *_note_faults(runs, warnings)]
    best = find_best(runs, group_by_rows(runs, METRICS[metric].rows or HELD_OUT), metric)
    rows, missing = tabulate_metrics(runs)
    parameters, tests = differing_parameters(runs), compare_with_first(runs)
    winners = {name for name, _ in best}
    verdict = _describe_best(
        best, metric, any(METRICS[metric].find(run) is not None for run in runs)
    )
    path = _write_page(
        runs,
        winners,
        notes=notes,
        best=verdict,
        rows=rows,
        parameters=parameters,
        tests=tests,
        cautions=warnings,
        missing=missing,
    )
    if missing:
        notes.append(f"not measured in any of them: {', '.join(missing)}")
    tables = [aligned_table(_shorten_rows(rows))]
    if parameters:
        tables.append(aligned_table(_shorten_values(parameters)))
    if tests:
        tables.append(aligned_table(tests))
    return "\n\n".join([*tables, "\n".join([*notes, *verdict])]), path


def _gather(folders: list[pathlib.Path]) -> tuple[list[Records], list[str]]:
    """Return the records of the readable runs, with unique names, and notes on the others."""
    runs, left_out = [], []
    for folder in folders:
        try:
            records = report.gather_records(folder)
            run_record.read_record(folder / "run.json")
            runs.append({**records, "name": folder.name})
        except UserError as error:
            left_out.append(f"{folder.name} is left out: {error}")
    if len(runs) < 2:
        readable = "1 readable run" if len(runs) == 1 else "0 readable runs"
        reason = (
            f"There is nothing to compare: {readable}, expected two or more. "
            f'Name them with RUNS="a b"; `make runs` lists the runs.'
        )
        raise UserError("\n".join([reason, *left_out]))
    if len({run["name"] for run in runs}) < len(runs):  # the same name in different folders
        for run in runs:
            run["name"] = "/".join(run["folder"].parts[-2:])
    return runs, left_out


def _list_warnings(run: Records) -> list[str]:
    return list_warnings(
        run["run"], run["results"], run["job"].base_model, run["job"], run["entries"], run["exams"]
    )


def _note_groups(groups: list[list[str]]) -> list[str]:
    if len(groups) == 1:
        return []
    names = " | ".join(", ".join(group) for group in groups)
    return [f"these runs hold out different rows, so their held-out losses do not compare: {names}"]


def _note_faults(runs: list[Records], warnings: dict[str, list[str]]) -> list[str]:
    """List what makes a run's numbers doubtful, or not comparable with those of the others."""
    mismatches = [text for run in runs for text in find_mismatches(run)]
    damage = [f"{run['name']}: {text}" for run in runs for text in run["damage"]]
    random = [
        f"{name}: {text}"
        for name, texts in warnings.items()
        for text in texts
        if text.startswith(RANDOM_BASE)
    ]
    return [*mismatches, *damage, *random]


def _describe_best(best: list[tuple[str, str]], metric: str, measured: bool) -> list[str]:
    label = METRICS[metric].label
    if not best:
        reason = "the runs do not compare" if measured else "not measured in any run"
        return [f"best by {label}: {reason}"]
    return [f"best by {label}: {name}{among}" for name, among in best]


def _write_page(runs: list[Records], winners: set[str], **values: Any) -> pathlib.Path:
    """Write compare.html with the curves of the runs that trained, the winners first."""
    top = run_folder.runs_folder()
    top.mkdir(parents=True, exist_ok=True)
    trained = [run for run in runs if ledger.valid_steps(run["entries"])]
    trained.sort(key=lambda run: run["name"] not in winners)
    drawn = [(run["name"], run["entries"]) for run in trained[:MOST_CURVES]]
    curves = ""
    if drawn:
        curves = figures.both_widths(
            lambda width: figures.overlay(drawn, width),
            "Training and held-out loss of the runs over rows seen",
        )
    return page.write_page(
        top / "compare.html",
        "compare.html.jinja",
        names=[run["name"] for run in runs],
        links={run["name"]: _link_report(run["folder"], top) for run in runs},
        winners=winners,
        curves=curves,
        drawn=len(drawn),
        of=len(trained),
        reference=runs[0]["name"],
        **values,
    )


def _link_report(folder: pathlib.Path, top: pathlib.Path) -> str:
    """Return the link from the page to a run's report, or "" if it has none."""
    path = folder / "report.html"
    if not path.is_file():
        return ""
    return path.relative_to(top).as_posix() if path.is_relative_to(top) else path.as_uri()


def _shorten_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows for the terminal: without secondary columns, and `-` for missing values."""
    return [
        {key: "-" if value is None else value for key, value in row.items() if key not in SECONDARY}
        for row in rows
    ]


def _shorten_values(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        {
            key: value if len(value) < LONGEST else value[: LONGEST - 2] + "…"
            for key, value in row.items()
        }
        for row in rows
    ]
