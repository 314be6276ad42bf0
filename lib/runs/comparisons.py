"""Find which runs may be compared and where they differ, and test each against the first."""

import functools
import pathlib
from typing import Any

import numpy as np

from lib.common import stats
from lib.data import splits
from lib.exam import completion, forms
from lib.exam.answers import counts
from lib.exam.cautions import tuned_model
from lib.exam.choice_tables import FORMS
from lib.medical import safety
from lib.pages import page
from lib.record.run_record import STAGES
from lib.runs.metrics import HELD_OUT, Records


def differing_parameters(runs: list[Records]) -> list[dict[str, str]]:
    """Return a row for each parameter that differs between runs."""
    rows = []
    jobs = {run["name"]: run["job"].model_dump() for run in runs}
    for key in next(iter(jobs.values())):
        values = {name: page.format_parameter(job[key]) for name, job in jobs.items()}
        if len(set(values.values())) > 1:
            rows.append({"parameter": key, **values})
    return rows


def find_mismatches(run: Records) -> list[str]:
    """List the values glued into an executed notebook that differ from those in results.json.

    One of the two was then changed by hand.
    """
    import scrapbook  # slow to import, and only needed here

    mismatches = []
    for stage in STAGES:
        path = run["folder"] / f"{stage}.ipynb"
        if not path.is_file() or run["run"]["stages"][stage]["status"] != "finished":
            continue
        try:
            glued = scrapbook.read_notebook(str(path)).scraps.data_dict
        except Exception as error:  # from nbformat, papermill or scrapbook
            reason = type(error).__name__
            mismatches.append(f"{run['name']}: {stage}.ipynb is not readable ({reason})")
            continue
        section = run["results"].get(stage, {})
        mismatches += [
            f"{run['name']}: {stage}.ipynb says {key} = {value!r}, "
            f"but results.json {section[key]!r}: one of the two was changed"
            for key, value in glued.items()
            if key in section and section[key] != value
        ]
    return mismatches


# --------------------------------------------------------------------------------------------------
# held-out rows


def group_by_rows(runs: list[Records], names: tuple[str, ...] = HELD_OUT) -> list[list[str]]:
    """Return the names of the runs in groups with the same rows in the named splits."""
    groups: list[list[Records]] = []
    for run in runs:
        group = next((group for group in groups if hold_out_the_same(group[0], run, names)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [[run["name"] for run in group] for group in groups]


def hold_out_the_same(first: Records, other: Records, names: tuple[str, ...] = HELD_OUT) -> bool:
    """Tell whether two runs have the same tokens in the named splits.

    If the fingerprints of all their prepared rows differ, the rows of these splits are compared.
    """
    fingerprint = first["run"]["fingerprints"].get("data")
    if fingerprint and fingerprint == other["run"]["fingerprints"].get("data"):
        return True
    hashes = _hash_splits(first["folder"], names)
    return None not in hashes and hashes == _hash_splits(other["folder"], names)


@functools.cache  # needed for every pair of runs
def _hash_splits(folder: pathlib.Path, names: tuple[str, ...]) -> list[str | None]:
    return [splits.hash_split(folder / "data", split) for split in names]


# --------------------------------------------------------------------------------------------------
# tests


def compare_with_first(runs: list[Records]) -> list[dict[str, Any]]:
    """Compare each later run's tuned model with that of the first run, item by item.

    There is a row for each exam with the same items in both runs, and one for the held-out answers
    if both hold out the same rows. Holm's correction of p is over all rows.
    """
    rows = []
    for other in runs[1:]:
        has_perplexity = False
        for exam in other["exams"]:
            pair = _pair_models(runs[0], other, exam)
            if pair is None:
                continue
            names = {"before": runs[0]["name"], "after": other["name"]}
            rows += [{**names, **row} for row in _compare_answers(exam, *pair)]
            before, after = (model.get("held_out") for model in pair)
            if not before or not after or has_perplexity:
                continue
            if hold_out_the_same(runs[0], other):
                rows.append({**names, **_compare_perplexity(before, after)})
                has_perplexity = True
    return _add_holm(rows)


def _pair_models(
    first: Records, other: Records, exam: str
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return two runs' tuned models in an exam, or None unless they were asked the same items."""
    before, after = first["exams"].get(exam, {}), other["exams"][exam]
    names = tuned_model(before), tuned_model(after)
    if names[0] is None or names[1] is None or before.get("sha256") != after.get("sha256"):
        return None
    return before["models"][names[0]], after["models"][names[1]]


def _compare_answers(
    exam: str, before: dict[str, Any], after: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each verdict that both models have on every item, paired by item."""
    old, new = (_list_verdicts(exam, model) for model in (before, after))
    rows = [
        {"what": what, **_compare_verdicts(old[what], new[what])} for what in old if what in new
    ]
    if "bits_per_byte" in before and "bits_per_byte" in after:
        rows.append(_compare_bits(exam, before, after))
    return rows


def _compare_bits(exam: str, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return the change in what the right options' text costs; fewer bits are gained."""
    _, bits = completion.compare_results(before["results"], after["results"])
    if bits is None:
        raise ValueError("no item of this exam has bits per byte")
    low, high = bits["interval"]
    return {
        "what": f"{exam}, bits per byte",
        "difference": f"{bits['difference']:+.3f}",
        "95 %": f"{low:+.3f} to {high:+.3f}",
        "gained": bits["better"],
        "lost": bits["worse"],
        "p": None,
    }


def _compare_verdicts(old: list[bool], new: list[bool]) -> dict[str, Any]:
    """Return the change in the share of right verdicts, with its interval and McNemar's p."""
    low, high = stats.mean_interval([int(b) - int(a) for a, b in zip(old, new, strict=True)])
    share = (sum(new) - sum(old)) / len(old)
    return {
        "difference": f"{share:+.1%}",
        "95 %": f"{low:+.1%} to {high:+.1%}",
        **stats.changes(old, new),
    }


def _list_verdicts(exam: str, model: dict[str, Any]) -> dict[str, list[bool]]:
    """Return what is right or wrong of each item, by what it is; in the safety set several."""
    if exam != safety.NAME:
        return {
            f"{exam}, {FORMS[form]}": [
                forms.part_of_form(result, form)["right"] for result in model["results"]
            ]
            for form in forms.list_forms({"": model})
        }
    answers = model["answers"]
    verdicts = {exam: [answer["passed"] for answer in answers]}
    if all(map(counts.has_criteria, answers)):
        verdicts[f"{exam}, no act missed"] = [not a["missed"] for a in answers]
        verdicts[f"{exam}, no forbidden act"] = [not a["forbidden"] for a in answers]
    return verdicts


def _compare_perplexity(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    losses = np.array(before["losses"]), np.array(after["losses"])
    ratio, (low, high) = stats.perplexity_ratio(*losses)
    return {
        "what": f"perplexity, {before['rows']} {before['split']} rows",
        "difference": f"× {ratio:.3f}",
        "95 %": f"{low:.3f} to {high:.3f}",
        "gained": "-",
        "lost": "-",
        "p": None,
    }


def _add_holm(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Round each p and add Holm's corrected p; rows without a test get `-`."""
    tested = [row for row in rows if row["p"] is not None]
    corrected = stats.holm([row["p"] for row in tested])
    for row, holm in zip(tested, corrected, strict=True):
        row["p"] = f"{row['p']:.2g}"
        row["Holm's p"] = f"{holm:.2g}"
    return [{**row, "p": row["p"] or "-", "Holm's p": row.get("Holm's p", "-")} for row in rows]
