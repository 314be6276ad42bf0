"""What a reviewer looks at: examples with trained tokens marked, tables, curves. Shared by notebooks and report.

Everything that comes from data or from a model is escaped: text stays text.
"""

import html
import io
from typing import Any

import numpy as np

from lib.common.text import format_value
from lib.data.label_mask import IGNORED

TRAINED = "background:#1f6f50;color:#fff;border-radius:2px"
INK, ACCENT, SECOND = "#5b6770", "#1f6f50", "#b3541e"  # readable on white and on near-black
VARIABLES = {
    INK: "--dim",
    ACCENT: "--green",
    SECOND: "--rust",
}  # what a page calls them: there they follow its theme


def _display(markup: str) -> Any:
    from IPython.display import HTML

    return HTML(markup)


def table_html(rows: list[dict[str, Any]], caption: str = "") -> str:
    """A list of like-keyed dicts as an HTML table; numbers to the right."""
    if not rows:
        return f"<p>{html.escape(caption)}: none</p>"
    head = "".join(f"<th>{html.escape(str(k))}</th>" for k in rows[0])
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="text-align:{"right" if isinstance(v, int | float) else "left"};vertical-align:top;white-space:pre-wrap">'
            f"{html.escape(format_value(v))}</td>"
            for v in row.values()
        )
        + "</tr>"
        for row in rows
    )
    title = f'<caption style="text-align:left">{html.escape(caption)}</caption>' if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table(rows: list[dict[str, Any]], caption: str = "") -> Any:
    return _display(table_html(rows, caption))


def tables(found: list[tuple[str, list[dict[str, Any]]]]) -> Any:
    """Captions and their rows, one table below the other."""
    return _display("<br>".join(table_html(rows, caption) for caption, rows in found))


def parity_table(checks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """{format: what `parity.check` found} for people; what a run of an earlier version did not measure is None."""
    return [
        {
            "format": kind,
            "predicts": one.get("verdict"),
            "mean KL, nats": one.get("kl_mean"),
            "perplexity": one.get("perplexity"),
            "16-bit model's": one.get("perplexity_16bit"),
            "positions": one.get("positions"),
            "same likeliest token": f"{one['greedy_agreement']:.1%}"
            if one.get("greedy_agreement") is not None
            else None,
            "texts tokenised alike": one.get("texts"),
            "tensors alike": one.get("tensors"),
            "seconds": one.get("seconds"),
        }
        for kind, one in checks.items()
    ]


def edge_table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`edge.measure`'s rows for people; a run of an earlier version lacks some."""

    def mib(row: dict[str, Any], key: str) -> float | None:
        return None if row.get(key) is None else row[key] / 2**20

    return [
        {
            "format": row["format"],
            "file, MiB": mib(row, "bytes"),
            "threads": row.get("threads"),
            "load, s": row.get("load_seconds"),
            "memory, MiB": mib(row, "memory_bytes"),
            "of it private, MiB": mib(row, "private_bytes"),
            "prompt tokens/s": row.get("prompt_tokens_per_second"),
            "decoded tokens/s": row.get("decode_tokens_per_second"),
            "repeats": row.get("repeats"),
            "cores busy with other work": row.get("other_cores"),
            "fits in": "more than 16 GB"
            if row.get("fits_gb", 0) is None
            else f"{row['fits_gb']} GB"
            if "fits_gb" in row
            else None,
        }
        for row in rows
    ]


def pairs(values: dict[str, Any], caption: str = "") -> Any:
    return table([{"name": k, "value": v} for k, v in values.items()], caption)


def job(params_: Any, run: Any) -> Any:
    """The run's folder and its parameters: those that differ from the defaults, the rest folded away."""
    from lib import params
    from lib.common import files

    print(f"run: {files.shown(run.folder)}")
    changed, values = params.find_changed(params_), params_.model_dump()
    rows = [
        {"parameter": k, "value": str(v), "default": str(params.FIELDS[k].default)}
        for k, v in changed.items()
    ]
    rest = [{"parameter": k, "value": str(v)} for k, v in values.items() if k not in changed]
    return _display(
        f"{table_html(rows, 'parameters that differ from the defaults')}<details><summary>{len(rest)} parameters at their defaults"
        f"</summary>{table_html(rest)}</details>"
    )


def _counted(what: str, counts: dict[str, int], examples: dict[str, list[dict[str, str]]]) -> Any:
    """A table of counts, then the examples of each: texts of the data, shown to be judged."""
    parts = [
        table_html(
            [{what: key, "rows": count} for key, count in counts.items()], "" if counts else what
        )
    ]
    parts += [
        table_html(examples[key], f"{what} {key}: {count:,} rows, for example")
        for key, count in counts.items()
        if examples.get(key)
    ]
    return _display("<br>".join(parts))


def dropped(rows: Any, names: tuple[str, ...]) -> Any:
    """Rows dropped for the named reasons, none too, with examples."""
    counts = {name: rows.dropped[name] for name in names}
    print(
        f"{sum(counts.values()):,} of {rows.read:,} rows dropped here, {rows.read - sum(rows.dropped.values()):,} left"
    )
    return _counted("dropped because", counts, rows.examples)


def changes(rows: Any, names: tuple[str, ...]) -> Any:
    """Rows changed by the named rules, none too, with before and after."""
    return _counted("changed by", {name: rows.changed[name] for name in names}, rows.examples)


def funnel(results: dict[str, Any]) -> Any:
    """Rows read, dropped by each reason, kept, and the splits they went to."""
    steps = [{"step": "read", "rows": results["rows_read"], "left": results["rows_read"]}]
    for reason, count in results["dropped"].items():
        steps.append(
            {"step": f"dropped: {reason}", "rows": -count, "left": steps[-1]["left"] - count}
        )
    kept = ", ".join(f"{results[side]:,} {side}" for side in ("train", "validation", "test"))
    return table(
        [
            *steps,
            {"step": f"kept: {kept}", "rows": results["rows_kept"], "left": results["rows_kept"]},
        ]
    )


def tokens_html(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    """A row decoded token by token; trained tokens on green, line ends shown."""
    parts = []
    for token, label in zip(ids, labels, strict=True):
        text = html.escape(tokenizer.decode([token])).replace("\n", "⏎<br>")
        parts.append(f'<span style="{TRAINED}">{text}</span>' if label != IGNORED else text)
    return f'<div style="font-family:monospace;font-size:13px;line-height:1.6;margin:0 0 1em;overflow-wrap:anywhere">{"".join(parts)}</div>'


def examples(tokenizer: Any, data: Any, count: int) -> Any:
    picked = np.linspace(0, len(data) - 1, min(count, len(data))).astype(int).tolist()
    note = f'<p>{len(picked)} rows as the model reads them; <span style="{TRAINED}">these tokens</span> are trained.</p>'
    return _display(
        note
        + "".join(tokens_html(tokenizer, data[n]["input_ids"], data[n]["labels"]) for n in picked)
    )


def answers_html(prompts: Any, columns: dict[str, list[str]]) -> str:
    return table_html(
        [
            {"prompt": p, **{k: v[n] or "(nothing)" for k, v in columns.items()}}
            for n, p in enumerate(prompts)
        ]
    )


def answers(prompts: Any, columns: dict[str, list[str]]) -> Any:
    return _display(answers_html(prompts, columns))


# ---------------------------------------------------------------------------------------------------------------------
# figures


def figure(drawn: Any) -> Any:
    """A figure as a PNG image, to end a notebook cell with: small whatever the number of points."""
    from IPython.display import Image

    data = io.BytesIO()
    drawn.savefig(data, format="png", dpi=110)
    return Image(data=data.getvalue(), format="png")


def svg(figure: Any) -> str:
    """A figure as inline SVG in the page's own colours: no date, no XML heading, text as text."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "ids", "font.family": "sans-serif"}
    ):
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    markup = text.getvalue()
    for colour, variable in VARIABLES.items():
        markup = markup.replace(colour, f"var({variable}, {colour})")
    return markup[markup.index("<svg") :]
