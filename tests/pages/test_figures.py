"""Figures of the pages: they show the ledger's numbers, in the page's colours, both wide and narrow.

python -m pytest tests/pages/test_figures.py
"""

import re

import numpy as np
import pytest

from lib.pages import figures


def entries(count, resumed=0, rate=True):
    session = {"event": "session", "session": 1, "start_step": 0}
    steps = [
        {
            "event": "step",
            "session": 1,
            "step": n,
            "steps": 1,
            "rows": 4,
            "loss": 3.0 - n / count,
            **({"lr": n / 1e4, "memory_gib": 2.0} if rate else {}),
        }
        for n in range(1, count + 1)
    ]
    again = (
        [{"event": "session", "session": 2, "start_step": resumed}, *steps[resumed:]]
        if resumed
        else []
    )
    return [
        session,
        {"event": "eval", "session": 1, "when": "before", "step": 0, "eval_loss": 3.0},
        *steps,
        *again,
    ]


def test_a_long_line_is_thinned_by_means_and_says_so():
    x, y, each = figures.thin(list(range(1300)), [float(n % 2) for n in range(1300)], 600)
    assert each == 3
    assert len(x) == len(y) == 433
    assert set(np.round(y, 6)) == {0.333333, 0.666667}
    x, y, each = figures.thin([1, 2], [5.0, 6.0])
    assert (x.tolist(), y.tolist(), each) == ([1, 2], [5, 6], 1)
    assert figures.smooth(np.array([1.0, 3.0, 5.0, 7.0]), 2).tolist() == [1, 2, 4, 6]


def test_curves_show_loss_rate_and_memory_with_a_mark_where_training_was_resumed():
    figure = figures.curves(entries(40, resumed=10))
    assert [axes.get_ylabel() for axes in figure.axes] == [
        "nats per token",
        "learning rate",
        "memory, GiB",
    ]
    for axes in figure.axes:
        marks = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert [line.get_xdata()[0] for line in marks] == [10]
    loss = figure.axes[0].lines[0]
    assert (loss.get_xdata()[0], loss.get_xdata()[-1], len(loss.get_xdata())) == (1, 40, 40), (
        "each step once"
    )
    assert loss.get_ydata()[-1] == pytest.approx(2.0)
    assert len(figures.curves(entries(3, rate=False)).axes) == 1, (
        "ledgers of earlier versions may lack the rest"
    )


def test_an_overlay_is_over_rows_seen():
    figure = figures.overlay([("a", entries(10)), ("b", entries(5))])
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert [line.get_xdata()[-1] for line in lines] == [40, 20]
    assert len({line.get_color() for line in lines}) == 2


def test_markup_follows_the_page_and_ids_are_its_own():
    one, two = (
        str(figures.both_widths(lambda width: figures.curves(entries(10), width), label))
        for label in ("one", 'two "quoted"')
    )
    ids = [set(re.findall(r'\bid="([^"]+)"', markup)) for markup in (one, two)]
    assert not ids[0] & ids[1], (
        "a second figure on the page must not be drawn with the first one's parts"
    )
    for markup, own in zip((one, two), ids, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', markup)) <= own
        assert "var(--dim" in markup
        assert "var(--green" in markup
        assert not re.findall(r"(?<!, )#(?:5b6770|1f6f50|b3541e)", markup), (
            "a colour that does not follow the theme"
        )
        assert markup.count("<svg") == 2
    assert 'aria-label="two &#34;quoted&#34;"' in two
    assert one == str(
        figures.both_widths(lambda width: figures.curves(entries(10), width), "one")
    ), "the same records, the same page"
