"""Figures of notebooks and pages; on a page as inline SVG in its own colours, drawn once for wide screens and once for narrow ones.

figures.both(lambda width: figures.curves(entries, width), "Training loss of each step")
show.figure(figures.curves(entries, figures.CELL))
"""

import re
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from lib.pages import show
from lib.pages.show import ACCENT, INK, SECOND
from lib.record import ledger

WIDE, NARROW, CELL = (
    10.6,
    3.7,
    7,
)  # inches: 10 points are 13 pixels on the page, and on a telephone; of a notebook's cell
POINTS = 600  # a line has no more: of a longer one, each point is the mean of several steps
LINES = (
    "#1b6fb3",
    "#b9581f",
    "#24745a",
    "#8a4fa3",
    "#a8325a",
    "#6b6a12",
    "#0f7c86",
    "#646f78",
)  # of runs; in a page --c1 ... for its theme
DASHES = ("-", "--", "-.", ":")


def both(draw: Callable[[float], Any], label: str) -> Any:
    """What `draw(width in inches)` makes, wide and narrow, as markup with a name for screen readers."""
    import markupsafe

    parts = []
    for kind, width in (("wide", WIDE), ("narrow", NARROW)):
        markup = show.svg(draw(width))
        mark = f"f{zlib.crc32(f'{label} {kind}'.encode())}-"  # matplotlib numbers the parts of each figure from 1, and a page has several
        markup = re.sub(r'\bid="', f'id="{mark}', markup)
        markup = re.sub(r'href="#', f'href="#{mark}', markup).replace("url(#", f"url(#{mark}")
        for number, colour in enumerate(LINES, 1):
            markup = markup.replace(colour, f"var(--c{number}, {colour})")
        parts.append(
            f'<div class="figure {kind}" role="img" aria-label="{markupsafe.escape(label)}">{markup}</div>'
        )
    return markupsafe.Markup("".join(parts))


def _panels(width: float, heights: list[float]) -> tuple[Any, list[Any]]:
    """A transparent figure of panels one above the other that share their x axis."""
    from matplotlib.figure import Figure

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
    """A line of at most so many points, each the mean of `step` neighbours; and that step."""
    step = -(-len(x) // points)
    if step <= 1:
        return np.array(x, float), np.array(y, float), 1
    whole = len(x) // step * step
    means = [np.array(values[:whole], float).reshape(-1, step).mean(1) for values in (x, y)]
    return means[0], means[1], step


def smooth(y: np.ndarray, window: int) -> np.ndarray:
    """Mean of the last `window` values at each place; fewer at the beginning."""
    sums = np.cumsum(np.insert(y, 0, 0.0))
    ends = np.arange(1, len(y) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def curves(entries: list[dict[str, Any]], width: float = WIDE) -> Any:
    """Loss (each logged step, their running mean, held-out), learning rate and memory over steps; a dotted line where a session resumed."""
    steps, evals = ledger.valid_steps(entries), ledger.keep_valid(entries, "eval")
    panels = [
        ("loss", "nats a token", 3.0),
        *(
            (key, label, 1.15)
            for key, label in (("lr", "learning rate"), ("memory_gib", "memory, GiB"))
            if any(e.get(key) is not None for e in steps)
        ),
    ]
    figure, axes = _panels(width, [height for _, _, height in panels])
    for axis, (key, label, _) in zip(axes, panels, strict=True):
        known = [e for e in steps if e.get(key) is not None]
        x, y, each = thin([e["step"] for e in known], [e[key] for e in known])
        window = max(1, len(y) // 20)
        if key == "loss":
            axis.plot(
                x,
                y,
                color=ACCENT,
                linewidth=0.8,
                alpha=0.45 if window > 1 else 0.9,
                label=f"training, mean of {each} steps" if each > 1 else "training, each step",
            )
            if window > 1:
                axis.plot(
                    x,
                    smooth(y, window),
                    color=ACCENT,
                    linewidth=1.8,
                    label=f"training, running mean of {window * each}",
                )
            axis.plot(
                [e["step"] for e in evals],
                [e["eval_loss"] for e in evals],
                "o--",
                color=SECOND,
                markersize=5,
                linewidth=1,
                label="held-out",
            )
            axis.legend(frameon=False, labelcolor=INK)
        else:
            axis.plot(x, y, color=ACCENT, linewidth=1.4)
            axis.set_ylim(bottom=0)
        axis.set_ylabel(label, color=INK)
        for entry in [e for e in entries if e["event"] == "session"][1:]:
            axis.axvline(entry["start_step"], color=INK, linestyle=":", linewidth=1.2)
    axes[0].figure.align_ylabels()
    axes[-1].set_xlabel("optimizer step", color=INK)
    return figure


def lengths(values: list[int], cut: int, width: float = WIDE) -> Any:
    """Histogram of row lengths in tokens, with the cut."""
    figure, [axes] = _panels(width, [2.4])
    axes.hist(
        values,
        bins=min(40 if width == WIDE else 20, max(1, max(values) - min(values) + 1)),
        color=ACCENT,
    )
    axes.axvline(cut, color=SECOND, linestyle="--")
    axes.set_xlabel("tokens a row", color=INK)
    axes.set_ylabel("rows", color=INK)
    return figure


def length_words(values: list[int], cut: int) -> str:
    """What stands beside the histogram."""
    return f"Median {sorted(values)[len(values) // 2]:,}, longest {max(values):,} tokens; the dashed line is max_seq_length, {cut:,}."


def edge(rows: list[dict[str, Any]]) -> Any:
    """Decoded tokens a second of each GGUF, a bar a number of threads, with the memory it took; rows are `edge.measure`'s."""
    figure, [axes] = _panels(CELL, [0.6 + 0.3 * len(rows)])
    axes.grid(False)
    counts = sorted({row["threads"] for row in rows})
    bars = axes.barh(
        [f"{row['format']}, {row['threads']} thread{'s' * (row['threads'] > 1)}" for row in rows],
        [row["decode_tokens_per_second"] for row in rows],
        color=[(SECOND, ACCENT)[row["threads"] == counts[-1]] for row in rows],
    )
    axes.bar_label(
        bars,
        [
            f"{row['decode_tokens_per_second']:.3g} ({row['memory_bytes'] / 2**20:,.0f} MiB)"
            for row in rows
        ],
        color=INK,
        padding=3,
    )
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("decoded tokens a second (and memory)", color=INK)
    return figure


def overlay(runs: list[tuple[str, list[dict[str, Any]]]], width: float = WIDE) -> Any:
    """The training loss of several runs as running means, and their held-out losses as dots, over training rows seen."""
    figure, [axes] = _panels(width, [3.8 if width == WIDE else 3.2])
    for number, (name, entries) in enumerate(runs):
        steps, style = (
            ledger.valid_steps(entries),
            {"color": LINES[number % len(LINES)], "linestyle": DASHES[number // 2 % len(DASHES)]},
        )
        seen = dict(
            zip(
                [e["step"] for e in steps],
                np.cumsum([e.get("rows", e["steps"]) for e in steps]).tolist(),
                strict=True,
            )
        )
        x, y, _ = thin([seen[e["step"]] for e in steps], [e["loss"] for e in steps])
        axes.plot(
            x,
            smooth(y, max(1, len(y) // 20)),
            linewidth=1.6,
            label=name if len(name) < 28 else name[:26] + "…",
            **style,
        )
        held = [
            (seen.get(e["step"], 0 if not e["step"] else None), e["eval_loss"])
            for e in ledger.keep_valid(entries, "eval")
        ]
        axes.plot(
            [x for x, _ in held if x is not None],
            [y for x, y in held if x is not None],
            "o",
            color=style["color"],
            markersize=5,
        )
    axes.set_xlabel("training rows seen", color=INK)
    axes.set_ylabel("nats a trained token", color=INK)
    axes.legend(
        frameon=False,
        labelcolor=INK,
        fontsize=9,
        **({"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)} if width == NARROW else {}),
    )
    return figure
