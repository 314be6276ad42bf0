"""Draw the figures of notebooks and pages.

    figures.both_widths(lambda width: figures.curves(entries, width), "Training loss of each step")
    show.figure(figures.curves(entries, figures.CELL))

On a page, a figure is inline SVG in the page's own colours, drawn for wide and for narrow screens.
"""

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.pages import show
from lib.pages.show import ACCENT, INK, SECOND
from lib.record import ledger
from lib.record.ledger import Entry

Row = dict[str, Any]

# widths in inches, on a wide page (where 10 points are 13 pixels), on a phone, in a notebook
WIDE, NARROW, CELL = 10.6, 3.7, 7
POINTS = 600  # a longer line is thinned to this many points, each the mean of several steps
LINES = (
    "#1b6fb3",
    "#b9581f",
    "#24745a",
    "#8a4fa3",
    "#a8325a",
    "#6b6a12",
    "#0f7c86",
    "#646f78",
)  # colours of the runs; a page replaces them by --c1 ..., which follow its theme
DASHES = ("-", "--", "-.", ":")


def both_widths(draw: Callable[[float], Any], label: str) -> Any:
    """Draw a figure both wide and narrow, as markup with a name for screen readers.

    `draw` takes the width in inches.
    """
    import markupsafe  # comes with jinja2, which a notebook's figure does not need

    parts = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        markup = _unique_ids(show.svg(draw(width)), f"{label} {kind}")
        for number, colour in enumerate(LINES, 1):
            markup = markup.replace(colour, f"var(--c{number}, {colour})")
        name = markupsafe.escape(label)
        parts.append(f'<div class="figure {kind}" role="img" aria-label="{name}">{markup}</div>')
    return markupsafe.Markup("".join(parts))


def _unique_ids(markup: str, name: str) -> str:
    """Prefix a figure's ids: matplotlib numbers them from 1, and a page has several figures."""
    prefix = f"f{zlib.crc32(name.encode())}-"
    markup = re.sub(r'\bid="', f'id="{prefix}', markup)
    markup = re.sub(r'href="#', f'href="#{prefix}', markup)
    return markup.replace("url(#", f"url(#{prefix}")


def _panels(width: float, heights: list[float]) -> tuple[Any, list[Any]]:
    """Make a transparent figure of stacked panels that share their x axis."""
    from matplotlib.figure import Figure  # takes a second, and only figures need it

    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    figure.patch.set_alpha(0)
    panels = list(
        np.atleast_1d(figure.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    )
    for axes in panels:
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        axes.grid(axis="y", color=INK, alpha=0.18, linewidth=0.6)
        for side in axes.spines.values():
            side.set_color(INK)
    return figure, panels


def thin(
    x: list[float], y: list[float], points: int = POINTS
) -> tuple[np.ndarray, np.ndarray, int]:
    """Thin a line to at most `points`, each the mean of `step` neighbours; return x, y, step."""
    step = -(-len(x) // points)
    if step <= 1:
        return np.array(x, float), np.array(y, float), 1
    return _group_means(x, step), _group_means(y, step), step


def _group_means(values: list[float], step: int) -> np.ndarray:
    """Return the mean of each `step` values, without an incomplete group at the end."""
    complete = len(values) // step * step
    return np.array(values[:complete], float).reshape(-1, step).mean(1)


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Return the running mean of the last `window` values, of fewer at the beginning."""
    sums = np.cumsum(np.insert(y, 0, 0.0))
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def curves(entries: list[Entry], width: float = WIDE) -> Any:
    """Draw loss, learning rate and memory over steps, with dotted lines where training resumed."""
    steps = ledger.valid_steps(entries)
    panels = [("loss", "nats per token", 3.0)]
    for key, label in (("lr", "learning rate"), ("memory_gib", "memory, GiB")):
        if any(entry.get(key) is not None for entry in steps):
            panels.append((key, label, 1.15))
    figure, axes = _panels(width, [height for _, _, height in panels])
    resumed = [entry["start_step"] for entry in entries if entry["event"] == "session"][1:]
    for axis, (key, label, _) in zip(axes, panels, strict=True):
        known = [entry for entry in steps if entry.get(key) is not None]
        x, y, step = thin([entry["step"] for entry in known], [entry[key] for entry in known])
        if key == "loss":
            _draw_loss(axis, x, y, step, ledger.keep_valid(entries, "eval"))
        else:
            axis.plot(x, y, color=ACCENT, linewidth=1.4)
            axis.set_ylim(bottom=0)
        axis.set_ylabel(label, color=INK)
        for start in resumed:
            axis.axvline(start, color=INK, linestyle=":", linewidth=1.2)
    axes[0].figure.align_ylabels()
    axes[-1].set_xlabel("optimizer step", color=INK)
    return figure


def _draw_loss(axis: Any, x: np.ndarray, y: np.ndarray, step: int, evals: list[Entry]) -> None:
    """Draw the training loss, the running mean of many points, and the held-out losses."""
    window = max(1, len(y) // 20)
    axis.plot(
        x,
        y,
        color=ACCENT,
        linewidth=0.8,
        alpha=0.45 if window > 1 else 0.9,
        label=f"training, mean of {step} steps" if step > 1 else "training, each step",
    )
    if window > 1:
        axis.plot(
            x,
            smooth(y, window),
            color=ACCENT,
            linewidth=1.8,
            label=f"training, running mean of {window * step}",
        )
    axis.plot(
        [entry["step"] for entry in evals],
        [entry["eval_loss"] for entry in evals],
        "o--",
        color=SECOND,
        markersize=5,
        linewidth=1,
        label="held-out",
    )
    axis.legend(frameon=False, labelcolor=INK)


def lengths(values: list[int], max_seq_length: int, width: float = WIDE) -> Any:
    """Draw a histogram of row lengths in tokens, with a line at max_seq_length."""
    figure, [axes] = _panels(width, [2.4])
    bins = min(40 if width == WIDE else 20, max(1, max(values) - min(values) + 1))
    axes.hist(values, bins=bins, color=ACCENT)
    axes.axvline(max_seq_length, color=SECOND, linestyle="--")
    axes.set_xlabel("tokens per row", color=INK)
    axes.set_ylabel("rows", color=INK)
    return figure


def length_words(values: list[int], max_seq_length: int) -> str:
    """Return the text next to the histogram."""
    median = sorted(values)[len(values) // 2]
    return (
        f"Median {median:,}, longest {max(values):,} tokens; "
        f"the dashed line is max_seq_length, {max_seq_length:,}."
    )


def edge(rows: list[Row]) -> Any:
    """Draw decoded tokens per second and memory, a bar for each GGUF and number of threads."""
    figure, [axes] = _panels(CELL, [0.6 + 0.3 * len(rows)])
    axes.grid(False)
    most = max(row["threads"] for row in rows)
    names = []
    texts = []
    for row in rows:
        threads = "thread" if row["threads"] == 1 else "threads"
        names.append(f"{row['format']}, {row['threads']} {threads}")
        mib = row["memory_bytes"] / 2**20
        texts.append(f"{row['decode_tokens_per_second']:.3g} ({mib:,.0f} MiB)")
    bars = axes.barh(
        names,
        [row["decode_tokens_per_second"] for row in rows],
        color=[ACCENT if row["threads"] == most else SECOND for row in rows],
    )
    axes.bar_label(bars, texts, color=INK, padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("decoded tokens per second (and memory)", color=INK)
    return figure


def overlay(runs: list[tuple[str, list[Entry]]], width: float = WIDE) -> Any:
    """Draw the losses of several runs over the training rows seen.

    The training losses are running means, the held-out losses dots.
    """
    figure, [axes] = _panels(width, [3.8 if width == WIDE else 3.2])
    for number, (name, entries) in enumerate(runs):
        _draw_run(axes, number, name, entries)
    axes.set_xlabel("training rows seen", color=INK)
    axes.set_ylabel("nats per trained token", color=INK)
    # a narrow figure has no room next to the lines
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)} if width == NARROW else {}
    axes.legend(frameon=False, labelcolor=INK, fontsize=9, **below)
    return figure


def _draw_run(axes: Any, number: int, name: str, entries: list[Entry]) -> None:
    steps = ledger.valid_steps(entries)
    colour = LINES[number % len(LINES)]
    rows = np.cumsum([entry.get("rows", entry["steps"]) for entry in steps]).tolist()
    seen = dict(zip([entry["step"] for entry in steps], rows, strict=True))
    x, y, _ = thin([seen[entry["step"]] for entry in steps], [entry["loss"] for entry in steps])
    axes.plot(
        x,
        smooth(y, max(1, len(y) // 20)),
        linewidth=1.6,
        label=name if len(name) < 28 else name[:26] + "…",
        color=colour,
        linestyle=DASHES[number // 2 % len(DASHES)],
    )
    seen.setdefault(0, 0)  # for a measurement before the first step
    held_out = [entry for entry in ledger.keep_valid(entries, "eval") if entry["step"] in seen]
    axes.plot(
        [seen[entry["step"]] for entry in held_out],
        [entry["eval_loss"] for entry in held_out],
        "o",
        color=colour,
        markersize=5,
    )
