"""Show examples with trained tokens marked, tables and figures, in notebooks and the report.

Text from data or from a model is escaped.
"""

import html
import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lib import params
from lib.common import files
from lib.common.text import format_value
from lib.data.label_mask import IGNORED
from lib.data.reading import source_changes
from lib.export.few_bits import share
from lib.params import Params
from lib.record.run_record import Run

Row = dict[str, Any]

TRAINED = "background:#1f6f50;color:#fff;border-radius:2px"
INK, ACCENT, SECOND = "#5b6770", "#1f6f50", "#b3541e"  # readable on white and on near-black
# CSS variables for these colours on a page, where they follow its theme
VARIABLES = {INK: "--dim", ACCENT: "--green", SECOND: "--rust"}


def _display(markup: str) -> Any:
    from IPython.display import HTML  # only notebooks need it

    return HTML(markup)


# -------------------------------------------------------------------------------------------------
# tables


def table_html(rows: Sequence[Row], caption: str = "") -> str:
    """Format dicts with the same keys as an HTML table, with numbers aligned right."""
    if not rows:
        return f"<p>{html.escape(caption)}: none</p>"
    head = "".join(
        f'<th style="text-align:{_side(value)}">{html.escape(str(key))}</th>'
        for key, value in rows[0].items()
    )
    body = "".join(
        f"<tr>{''.join(_cell_html(value) for value in row.values())}</tr>" for row in rows
    )
    title = f'<caption style="text-align:left">{html.escape(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _side(value: Any) -> str:
    # JupyterLab puts every heading, and VS Code every cell, on the right unless told otherwise
    return "right" if isinstance(value, int | float) else "left"


def _cell_html(value: Any) -> str:
    style = f"text-align:{_side(value)};vertical-align:top;white-space:pre-wrap"
    return f'<td style="{style}">{html.escape(format_value(value))}</td>'


def table(rows: Sequence[Row], caption: str = "") -> Any:
    return _display(table_html(rows, caption))


def tables(captioned: Sequence[tuple[str, Sequence[Row]]]) -> Any:
    """Show several tables with captions, one below the other."""
    return _display("<br>".join(table_html(rows, caption) for caption, rows in captioned))


def pairs(values: dict[str, Any], caption: str = "") -> Any:
    return table([{"name": name, "value": value} for name, value in values.items()], caption)


def job(job: Params, run: Run) -> Any:
    """Show a run's folder and parameters, with those at their defaults folded away."""
    print(f"run: {files.format_path(run.folder)}")
    if os.environ.get(files.FD_VARIABLE):  # the runner has looked already
        changed_sources = run.data.get("sources_changed", "")
    else:
        changed_sources = source_changes.note_changes(run, job)
    if changed_sources:
        print(f"note: {source_changes.name_consequence(changed_sources, run.folder.name)}")
    changed, values = params.find_changed(job), job.model_dump()
    rows = [
        {"parameter": name, "value": str(value), "default": str(params.FIELDS[name].default)}
        for name, value in changed.items()
    ]
    rest = [
        {"parameter": name, "value": str(value)}
        for name, value in values.items()
        if name not in changed
    ]
    return _display(
        f"{table_html(rows, 'parameters that differ from the defaults')}"
        f"<details><summary>{len(rest)} parameters at their defaults</summary>"
        f"{table_html(rest)}</details>"
    )


# -------------------------------------------------------------------------------------------------
# rows dropped, changed and kept


def _counts_with_examples(what: str, counts: dict[str, int], examples: dict[str, list[Row]]) -> Any:
    """Show a table of counts, then examples of each from the data, for a reader to judge."""
    rows = [{what: name, "rows": count} for name, count in counts.items()]
    parts = [table_html(rows, "" if counts else what)]
    for name, count in counts.items():
        if examples.get(name):
            caption = f"{what} {name}: {count:,} rows, for example"
            parts.append(table_html(examples[name], caption))
    return _display("<br>".join(parts))


def dropped(rows: Any, reasons: Sequence[str]) -> Any:
    """Show how many rows were dropped for each of these reasons, with examples."""
    counts = {reason: rows.dropped[reason] for reason in reasons}
    left = rows.read - sum(rows.dropped.values())
    print(f"{sum(counts.values()):,} of {rows.read:,} rows dropped here, {left:,} left")
    return _counts_with_examples("dropped because", counts, rows.examples)


def changes(rows: Any, rules: Sequence[str]) -> Any:
    """Show how many rows each of these rules changed, with texts before and after."""
    counts = {rule: rows.changed[rule] for rule in rules}
    return _counts_with_examples("changed by", counts, rows.examples)


def funnel_steps(prepare: dict[str, Any]) -> list[Row]:
    """List the rows read, then the rows dropped for each reason and the rows left after it."""
    left = prepare["rows_read"]
    steps = [{"step": "read", "rows": left, "left": left}]
    for reason, count in prepare["dropped"].items():
        left -= count
        steps.append({"step": reason, "rows": -count, "left": left})
    return steps


def funnel(prepare: dict[str, Any]) -> Any:
    """Show the rows read, dropped for each reason and kept, and the size of each split."""
    read, *drops = funnel_steps(prepare)
    sides = [side for side in ("train", "validation", "test", "forgetting") if side in prepare]
    splits = ", ".join(f"{prepare[side]:,} {side}" for side in sides)
    kept = prepare["rows_kept"]
    return table(
        [
            read,
            *({**drop, "step": f"dropped: {drop['step']}"} for drop in drops),
            {"step": f"kept: {splits}", "rows": kept, "left": kept},
        ]
    )


# -------------------------------------------------------------------------------------------------
# measurements of an export


def parity_table(checks: dict[str, Row]) -> list[Row]:
    """Return each GGUF's parity figures under headings; None for what a run did not measure."""
    return [
        {
            "format": kind,
            "predicts": check.get("verdict"),
            "mean KL, nats": check.get("kl_mean"),
            "to its own numbers in torch": check.get("own_numbers_kl"),
            "perplexity": check.get("perplexity"),
            "16-bit model's": check.get("perplexity_16bit"),
            "positions": check.get("positions"),
            "same likeliest token": _percent(check.get("greedy_agreement")),
            "share of the tuning": share.format_share(check),
            "rounding / tuning": check.get("rounding_to_tuning"),
            "texts tokenised alike": check.get("texts"),
            "tensors alike": check.get("tensors"),
            "seconds": check.get("seconds"),
        }
        for kind, check in checks.items()
    ]


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def edge_table(rows: list[Row]) -> list[Row]:
    """Return the rows of `edge` under headings; None for what a run did not measure."""
    return [
        {
            "format": row["format"],
            "file, MiB": _mib(row.get("bytes")),
            "threads": row.get("threads"),
            "load, s": row.get("load_seconds"),
            "memory, MiB": _mib(row.get("memory_bytes")),
            "of it private, MiB": _mib(row.get("private_bytes")),
            "prompt tokens/s": row.get("prompt_tokens_per_second"),
            "decoded tokens/s": row.get("decode_tokens_per_second"),
            "repeats": row.get("repeats"),
            "cores busy with other work": row.get("other_cores"),
            "fits in": _machine_size(row),
        }
        for row in rows
    ]


def _mib(count: int | None) -> float | None:
    return None if count is None else count / 2**20


def _machine_size(row: Row) -> str | None:
    if "fits_gb" not in row:
        return None
    return "more than 16 GB" if row["fits_gb"] is None else f"{row['fits_gb']} GB"


# -------------------------------------------------------------------------------------------------
# rows and answers


def tokens_html(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    """Decode a row token by token, with trained tokens on green and visible line ends."""
    parts = []
    for token, label in zip(ids, labels, strict=True):
        text = html.escape(tokenizer.decode([token])).replace("\n", "⏎<br>")
        parts.append(f'<span style="{TRAINED}">{text}</span>' if label != IGNORED else text)
    style = (
        "font-family:monospace;font-size:13px;line-height:1.6;margin:0 0 1em;overflow-wrap:anywhere"
    )
    return f'<div style="{style}">{"".join(parts)}</div>'


def examples(tokenizer: Any, rows: Any, count: int) -> Any:
    """Show `count` evenly spread rows of a split as the model reads them."""
    picked = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int).tolist()
    note = (
        f"<p>{len(picked)} rows as the model reads them; "
        f'<span style="{TRAINED}">these tokens</span> are trained.</p>'
    )
    parts = [tokens_html(tokenizer, rows[n]["input_ids"], rows[n]["labels"]) for n in picked]
    return _display(note + "".join(parts))


def answers_html(prompts: Sequence[str], columns: dict[str, list[str]]) -> str:
    rows = []
    for n, prompt in enumerate(prompts):
        texts = {name: answers[n] or "(nothing)" for name, answers in columns.items()}
        rows.append({"prompt": prompt, **texts})
    return table_html(rows)


def answers(prompts: Sequence[str], columns: dict[str, list[str]]) -> Any:
    """Show the answers to prompts, with a column for each model."""
    return _display(answers_html(prompts, columns))


# -------------------------------------------------------------------------------------------------
# figures


def figure(drawn: Any) -> Any:
    """Show a figure at the end of a cell as a PNG image, which stays small with many points."""
    from IPython.display import Image  # only notebooks need it

    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=110)
    return Image(data=data.getvalue(), format="png")


def svg(figure: Any) -> str:
    """Format a figure as inline SVG in the page's own colours, with text as text."""
    import matplotlib  # takes a second, and only pages with a figure need it

    text = io.StringIO()
    # no date and fixed ids, so that the same records give the same page
    settings = {"svg.fonttype": "none", "svg.hashsalt": "ids", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    markup = text.getvalue()
    for colour, variable in VARIABLES.items():
        markup = markup.replace(colour, f"var({variable}, {colour})")
    return markup[markup.index("<svg") :]  # without the XML heading
