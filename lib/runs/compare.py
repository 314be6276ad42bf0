"""Runs beside each other: compare.html in the runs folder, and a table for the terminal.

make compare RUNS="a b c" METRIC=eval_loss_after      # all runs without RUNS; the first named is what the others are tested against
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.common import stats
from lib.common.errors import UserError
from lib.common.text import aligned_table, format_value
from lib.data import splits
from lib.medical import safety
from lib.pages import figures, page, report
from lib.pages.cautions import list_warnings
from lib.pages.headline import count_right, smallest_gguf, tuned_model
from lib.record import ledger, run_folder, run_record
from lib.record.run_record import STAGES
from lib.runs import listing

SECONDARY = (
    "tokens/s",
    "seconds in steps",
    "training loss at the end",
)  # on the page, not in the terminal
LINES = 8  # curves in one figure that an eye can tell apart


def _exam(told: dict[str, Any], safe: bool) -> float | None:
    """Share of right (or passed) answers of the tuned model in the first exam."""
    for name, entry in told["exams"].items():
        if (name == safety.NAME) == safe and (model := tuned_model(entry)):
            count, of = count_right(entry, model)
            return count / of
    return None


def _train(key: str) -> Callable[[dict[str, Any]], float | None]:
    return lambda told: told["results"].get("train", {}).get(key)


def _gguf(told: dict[str, Any]) -> float | None:
    file = smallest_gguf(told["results"])
    return file[0] / 2**20 if file else None


def _decoded(told: dict[str, Any]) -> float | None:
    return max(
        (
            row["decode_tokens_per_second"]
            for row in told["results"].get("export", {}).get("edge", [])
        ),
        default=None,
    )


# name: what it is called, how a run's is found, whether less is better, whether it depends on which rows were held out
METRICS: dict[str, tuple[str, Callable[[dict[str, Any]], float | None], bool, bool]] = {
    "eval_loss_after": ("held-out loss", _train("eval_loss_after"), True, True),
    "loss_last": ("training loss at the end", _train("loss_last"), True, False),
    "exam": ("exam", lambda told: _exam(told, False), False, False),
    "safety": ("safety", lambda told: _exam(told, True), False, False),
    "samples_per_second": ("samples/s", _train("samples_per_second"), False, False),
    "tokens_per_second": ("tokens/s", _train("tokens_per_second"), False, False),
    "peak_memory_gib": ("peak GiB", _train("peak_memory_gib"), True, False),
    "seconds": ("seconds in steps", _train("seconds"), True, False),
    "gguf_mib": ("smallest GGUF, MiB", _gguf, True, False),
    "decode": ("decoded tokens/s", _decoded, False, False),
}


def write(folders: list[pathlib.Path], metric: str = "eval_loss_after") -> tuple[str, pathlib.Path]:
    """Compare runs: the text for a terminal, and the path of the page, compare.html in the runs folder. UserError without two runs."""
    if metric not in METRICS:
        raise UserError(f"METRIC={metric} is not known; expected one of {', '.join(METRICS)}.")
    runs, notes = [], []
    for folder in folders:
        try:
            told = report.gather_records(folder)
            run_record.read_record(folder / "run.json")
            runs.append(told | {"name": folder.name})
        except UserError as error:
            notes.append(f"{folder.name} is left out: {error}")
    if len(runs) < 2:
        raise UserError(
            "\n".join(
                [
                    f"There is nothing to compare: {len(runs)} readable run{'s' * (len(runs) != 1)}, expected two or more. "
                    f'Name them with RUNS="a b"; `make runs` lists what there is.',
                    *notes,
                ]
            )
        )
    if len({told["name"] for told in runs}) < len(runs):  # of different folders
        for told in runs:
            told["name"] = "/".join(told["folder"].parts[-2:])
    notes += [text for told in runs for text in mismatches(told)]
    cautions = {
        told["name"]: list_warnings(
            told["run"],
            told["results"],
            told["job"].base_model,
            told["job"],
            told["entries"],
            told["exams"],
        )
        for told in runs
    }
    notes += [f"{told['name']}: {text}" for told in runs for text in told["damage"]]
    notes += [
        f"{name}: {text}"
        for name, texts in cautions.items()
        for text in texts
        if text.startswith("the base's weights are random")
    ]
    groups, (rows, missing) = held_out_groups(runs), table(runs)
    best, tests, changed = best_by(runs, groups, metric), paired(runs), differing(runs)
    words = [f"best by {METRICS[metric][0]}: {name}{among}" for name, among in best]
    if not best:
        words = [f"best by {METRICS[metric][0]}: not measured in any run"]
    if len(groups) > 1:
        notes.insert(
            0,
            f"these runs hold out different rows, so their held-out losses do not compare: {' | '.join(map(', '.join, groups))}",
        )
    top = run_folder.runs_folder()
    top.mkdir(parents=True, exist_ok=True)
    drawn = [
        (told["name"], told["entries"]) for told in runs if ledger.valid_steps(told["entries"])
    ]
    drawn.sort(key=lambda pair: pair[0] not in {name for name, _ in best})
    shown = drawn[:LINES]
    path = page.write_page(
        top / "compare.html",
        "compare.html.jinja",
        names=[told["name"] for told in runs],
        links=_links(runs, top),
        notes=notes,
        best=words,
        winners={name for name, _ in best},
        rows=rows,
        parameters=changed,
        tests=tests,
        curves=figures.both_widths(
            lambda width: figures.overlay(shown, width),
            "Training and held-out loss of the runs over rows seen",
        )
        if shown
        else "",
        drawn=len(shown),
        of=len(drawn),
        reference=runs[0]["name"],
        cautions=cautions,
        missing=missing,
    )
    text = [
        aligned_table(
            [
                {
                    key: "-" if value is None else value
                    for key, value in row.items()
                    if key not in SECONDARY
                }
                for row in rows
            ]
        )
    ]
    if changed:
        text.append(
            aligned_table(
                [
                    {
                        key: value if len(value) < 40 else value[:38] + "…"
                        for key, value in row.items()
                    }
                    for row in changed
                ]
            )
        )
    if tests:
        text.append(aligned_table(tests))
    if missing:
        notes.append(f"not measured in any of them: {', '.join(missing)}")
    text.append("\n".join([*notes, *words]))
    return "\n\n".join(text), path


def table(runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[str]]:
    """A row a run: state and every metric that one of them has; and what none of them has."""
    rows = []
    for told in runs:
        before = told["results"].get("train", {}).get("eval_loss_before")
        values = {label: value(told) for label, value, _, _ in METRICS.values()}
        after = values["held-out loss"]
        for label in ("exam", "safety"):
            values[label] = None if values[label] is None else f"{values[label]:.1%}"
        change = None if before is None or after is None else f"{(after - before) / before:+.1%}"
        rows.append(
            {
                "run": told["name"],
                "state": listing.state(told["run"]),
                "held-out before": before,
                **values,
                "change": change,
            }
        )
    order = ["run", "state", "held-out before", "held-out loss", "change"]
    missing = [key for key in rows[0] if all(row[key] is None for row in rows)]
    return [
        {
            key: row[key]
            for key in [*order, *(k for k in row if k not in order)]
            if key not in missing
        }
        for row in rows
    ], missing


def differing(runs: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row a parameter that is not the same in all runs."""
    values = {told["name"]: told["job"].model_dump() for told in runs}
    keys = [
        key
        for key in next(iter(values.values()))
        if len({page.format_parameter(v[key]) for v in values.values()}) > 1
    ]
    return [
        {"parameter": key, **{name: page.format_parameter(v[key]) for name, v in values.items()}}
        for key in keys
    ]


def mismatches(told: dict[str, Any]) -> list[str]:
    """Where the values glued into an executed notebook are not those of results.json: one of the two was changed by hand."""
    import scrapbook

    found = []
    for stage in STAGES:
        path = told["folder"] / f"{stage}.ipynb"
        if not path.is_file() or told["run"]["stages"][stage]["status"] != "finished":
            continue
        try:
            glued = scrapbook.read_notebook(str(path)).scraps.data_dict
        except Exception as error:  # of nbformat, papermill and scrapbook
            found.append(f"{told['name']}: {stage}.ipynb is not readable ({type(error).__name__})")
            continue
        section = told["results"].get(stage, {})
        found += [
            f"{told['name']}: {stage}.ipynb says {key} = {value!r}, results.json {section[key]!r}: one of the two was changed"
            for key, value in glued.items()
            if key in section and section[key] != value
        ]
    return found


# ---------------------------------------------------------------------------------------------------------------------
# which runs may be compared, and how


def held_out_groups(runs: list[dict[str, Any]]) -> list[list[str]]:
    """Names of runs with the same held-out rows, together."""
    groups: list[list[dict[str, Any]]] = []
    for told in runs:
        for group in groups:
            if same_held_out(group[0], told):
                group.append(told)
                break
        else:
            groups.append([told])
    return [[told["name"] for told in group] for group in groups]


def same_held_out(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two runs hold out the same tokens: by the fingerprint of all their prepared rows, else by the held-out rows themselves."""
    prints = [told["run"]["fingerprints"].get("data") for told in (one, other)]
    if prints[0] and prints[0] == prints[1]:
        return True
    contents = [_held_out(told["folder"]) for told in (one, other)]
    return None not in contents[0] and contents[0] == contents[1]


@functools.cache  # every pair of runs asks
def _held_out(folder: pathlib.Path) -> list[str | None]:
    return [splits.hash_split(folder / "data", split) for split in ("validation", "test")]


def best_by(
    runs: list[dict[str, Any]], groups: list[list[str]], metric: str
) -> list[tuple[str, str]]:
    """(name, among whom) of the best run; one of each group where the metric depends on the held-out rows."""
    _, value, less, held = METRICS[metric]
    found = []
    for group in groups if held else [[told["name"] for told in runs]]:
        known = {
            told["name"]: value(told)
            for told in runs
            if told["name"] in group and value(told) is not None
        }
        if known and (len(known) > 1 or len(groups) == 1):
            name = (min if less else max)(known, key=known.__getitem__)
            found.append(
                (
                    name,
                    f" ({format_value(known[name])})"
                    + f", among {', '.join(known)}" * (held and len(groups) > 1),
                )
            )
    return found


def paired(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each later run's tuned model beside the first's, item by item: a row an exam, one for the held-out answers; Holm's p over all rows.

    Only where both were asked the very same items, or hold out the very same rows.
    """
    found, first = [], runs[0]
    for other in runs[1:]:
        for name, entry in other["exams"].items():
            was, models = (
                first["exams"].get(name, {}),
                [tuned_model(e) for e in (first["exams"].get(name, {}), entry)],
            )
            if None in models or was.get("sha256") != entry.get("sha256"):
                continue
            before, after = (e["models"][m] for e, m in zip((was, entry), models, strict=True))
            row = {"before": first["name"], "after": other["name"], "what": name}
            each = [
                [a["passed"] for a in m["answers"]]
                if name == safety.NAME
                else [r["right"] for r in m["results"]]
                for m in (before, after)
            ]
            change = stats.changes(*each)
            low, high = stats.mean_interval([int(b) - int(a) for a, b in zip(*each, strict=True)])
            share = (sum(each[1]) - sum(each[0])) / len(each[0])
            found.append(
                {
                    **row,
                    "difference": f"{share:+.1%}",
                    "95 %": f"{low:+.1%} to {high:+.1%}",
                    **change,
                }
            )
            rows, once = (
                [m.get("held_out") for m in (before, after)],
                {f["after"] for f in found if f["what"].startswith("perplexity")},
            )
            if all(rows) and other["name"] not in once and same_held_out(first, other):
                ratio, (low, high) = stats.perplexity_ratio(*(np.array(r["losses"]) for r in rows))
                found.append(
                    {
                        **row,
                        "what": f"perplexity, {rows[0]['rows']} {rows[0]['split']} rows",
                        "difference": f"× {ratio:.3f}",
                        "95 %": f"{low:.3f} to {high:.3f}",
                        "gained": "-",
                        "lost": "-",
                        "p": None,
                    }
                )
    tested = [row for row in found if row["p"] is not None]
    for row, p in zip(tested, stats.holm([row["p"] for row in tested]), strict=True):
        row.update({"p": f"{row['p']:.2g}", "Holm's p": f"{p:.2g}"})
    return [{**row, "p": row["p"] or "-", "Holm's p": row.get("Holm's p", "-")} for row in found]


def _links(runs: list[dict[str, Any]], top: pathlib.Path) -> dict[str, str]:
    """Where the report of each run is, seen from the page; empty where it has none."""
    found = {}
    for told in runs:
        path = told["folder"] / "report.html"
        found[told["name"]] = (
            (path.relative_to(top).as_posix() if path.is_relative_to(top) else path.as_uri())
            if path.is_file()
            else ""
        )
    return found
