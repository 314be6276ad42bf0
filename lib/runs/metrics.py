"""The metrics by which runs are compared: how to find each in the records, and which is best."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lib.common.text import format_value
from lib.data.splits import FORGETTING
from lib.exam.cautions import tuned_model
from lib.medical import safety
from lib.pages import safety_figures
from lib.pages.headline import count_right, smallest_gguf
from lib.runs.listing import describe_state

Records = dict[str, Any]  # from report.gather_records, with the run's `name`
Value = float | None  # None: not measured
HELD_OUT = ("validation", "test")


class Metric(NamedTuple):
    label: str
    find: Callable[[Records], Value]
    less_is_better: bool = False
    rows: tuple[str, ...] = ()  # splits that runs must share, or it says nothing about them


def _train(key: str) -> Callable[[Records], Value]:
    """Return a function that finds a number in the `train` section of results.json."""
    return lambda run: run["results"].get("train", {}).get(key)


def _find_exam(run: Records) -> Value:
    return _share_right(run, lambda name: name != safety.NAME)


def _find_safety(run: Records) -> Value:
    return _share_right(run, lambda name: name == safety.NAME)


def _share_right(run: Records, is_wanted: Callable[[str], bool]) -> Value:
    """Return the tuned model's share of right (or passed) answers in the first wanted exam."""
    for name, entry in run["exams"].items():
        model = tuned_model(entry)
        if is_wanted(name) and model:
            right, asked = count_right(entry, model)
            return right / asked
    return None


def _find_bits(run: Records) -> Value:
    """Return the tuned model's bits per byte in the first exam."""
    for name, entry in run["exams"].items():
        model = tuned_model(entry)
        if name != safety.NAME and model:
            bits = entry["models"][model].get("bits_per_byte")
            return bits["mean"] if bits else None
    return None


def _find_criteria(key: str) -> Callable[[Records], Value]:
    """Return a function that finds the tuned model's share in a figure of the safety set."""

    def find(run: Records) -> Value:
        entry = run["exams"].get(safety.NAME, {})
        model = tuned_model(entry)
        if model is None or not safety_figures.has_criteria(entry):
            return None
        figure = entry["models"][model]["criteria"][key]
        return figure["count"] / figure["of"] if figure["of"] else None

    return find


def _find_gguf_size(run: Records) -> Value:
    smallest = smallest_gguf(run["results"])
    return smallest[0] / 2**20 if smallest else None


def _find_decoding(run: Records) -> Value:
    """Return the highest rate of decoding of the run's files, in tokens per second."""
    edge = run["results"].get("export", {}).get("edge", [])
    return max((row["decode_tokens_per_second"] for row in edge), default=None)


METRICS = {
    "eval_loss_after": Metric(
        "held-out loss", _train("eval_loss_after"), less_is_better=True, rows=HELD_OUT
    ),
    "forgetting_loss_after": Metric(
        "loss on other rows",
        _train("forgetting_loss_after"),
        less_is_better=True,
        rows=(FORGETTING,),
    ),
    "loss_last": Metric("training loss at the end", _train("loss_last"), less_is_better=True),
    "exam": Metric("exam", _find_exam),
    "bits_per_byte": Metric("bits per byte", _find_bits, less_is_better=True),
    "safety": Metric("safety", _find_safety),
    "critical_acts": Metric("critical acts", _find_criteria("critical_acts")),
    "forbidden_acts": Metric(
        "forbidden acts", _find_criteria("forbidden_acts"), less_is_better=True
    ),
    "answers_end": Metric("answers that end", _find_criteria("ended")),
    "samples_per_second": Metric("samples/s", _train("samples_per_second")),
    "tokens_per_second": Metric("tokens/s", _train("tokens_per_second")),
    "peak_memory_gib": Metric("peak GiB", _train("peak_memory_gib"), less_is_better=True),
    "seconds": Metric("seconds in steps", _train("seconds"), less_is_better=True),
    "gguf_mib": Metric("smallest GGUF, MiB", _find_gguf_size, less_is_better=True),
    "decode": Metric("decoded tokens/s", _find_decoding),
}
SHARES = (
    "exam",
    "safety",
    "critical acts",
    "forbidden acts",
    "answers that end",
)  # labels of metrics in per cent
FIRST_COLUMNS = ("run", "state", "held-out before", "held-out loss", "change")


def tabulate_metrics(runs: list[Records]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row for each run with state and metrics, and the metrics that no run has."""
    rows = [_describe_run(run) for run in runs]
    missing = [label for label in rows[0] if all(row[label] is None for row in rows)]
    others = [label for label in rows[0] if label not in FIRST_COLUMNS]
    columns = [label for label in (*FIRST_COLUMNS, *others) if label not in missing]
    return [{label: row[label] for label in columns} for row in rows], missing


def _describe_run(run: Records) -> dict[str, Any]:
    values: dict[str, Any] = {metric.label: metric.find(run) for metric in METRICS.values()}
    before = run["results"].get("train", {}).get("eval_loss_before")
    after = values["held-out loss"]
    for label in SHARES:
        if values[label] is not None:
            values[label] = f"{values[label]:.1%}"
    change = None if before is None or after is None else f"{(after - before) / before:+.1%}"
    return {
        "run": run["name"],
        "state": describe_state(run["run"]),
        "held-out before": before,
        **values,
        "change": change,
    }


def find_best(runs: list[Records], groups: list[list[str]], name: str) -> list[tuple[str, str]]:
    """Return (run, its value and the runs it was compared with) of the best run by a metric.

    If the metric depends on rows that are measured, there is a best run for each group of runs
    with the same rows, but none for a group with nothing to compare.
    """
    metric = METRICS[name]
    best = []
    for group in groups if metric.rows else [[run["name"] for run in runs]]:
        values = {run["name"]: metric.find(run) for run in runs if run["name"] in group}
        known = {run: value for run, value in values.items() if value is not None}
        if not known or (len(known) == 1 and len(groups) > 1):
            continue
        choose = min if metric.less_is_better else max
        winner = choose(known, key=known.__getitem__)
        text = f" ({format_value(known[winner])})"
        if metric.rows and len(groups) > 1:
            text += f", among {', '.join(known)}"
        best.append((winner, text))
    return best
