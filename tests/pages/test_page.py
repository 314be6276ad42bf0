"""The pages in headless Chromium: no request, nothing on the console, no overflow at 400 and 1,400 px, reached by Tab, in both themes.

python -m pytest tests/pages/test_page.py
"""

import pytest

from helpers import browser, evil_run
from lib.pages import report
from lib.runs import compare
from lib.runs.diff import page as diff_page

pytestmark = pytest.mark.skipif(not browser.CHROMIUM, reason=browser.SKIP)
PAGES = (
    "runs/evil-run/report.html",
    "runs/evil-run/train.html",
    "runs/compare.html",
    "runs/diff.html",
)


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """A folder with a report, a notebook page, a comparison and a diff of two hostile runs."""
    top = tmp_path_factory.mktemp("pages")
    folders = [
        evil_run.make(top / "runs", name, after=after, right=right, values=values)
        for name, after, right, values in (
            ("evil-run", 3.5, "0110", {}),
            (
                "other-run" + "x" * 80,
                2.5,
                "1111",
                {"learning_rate": 1e-3, "dataset": evil_run.EVIL * 3},
            ),
        )
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDRESCUE_RUNS", str(top / "runs"))
        report.write_report(folders[0])
        compare.compare_runs(folders)
        mark_as_another(folders[1] / "train.ipynb")
        diff_page.diff_runs(" ".join(folder.name for folder in folders))
    return top


def mark_as_another(path):
    """Let every output of an executed notebook differ a little."""
    path.write_text(path.read_text().replace("alert(", "alert(1+").replace("kept", "gone"))


@pytest.fixture(scope="module")
def chromium():
    with browser.start() as started:
        yield started


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fetches_nothing_logs_nothing_and_fits(top, chromium, page):
    colours = {}
    for width in (400, 1400):
        for dark in (False, True):
            chromium.open(top / page, width, dark)
            assert (chromium.fetched, chromium.logged) == ([], [])
            wide = chromium.js(
                "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert wide <= 0, f"{wide} px too wide at {width}"
            colours[dark] = chromium.js(
                "getComputedStyle(document.body).backgroundColor + ' ' + getComputedStyle(document.body).color"
            )
            if "report" in page or "compare" in page:
                shown = chromium.js(
                    "[...document.querySelectorAll('.figure')].filter(f => f.offsetWidth).map(f => f.className)"
                )
                assert shown == ["figure narrow" if width == 400 else "figure wide"]
                ink = chromium.js(
                    "(t => t.length && getComputedStyle(t[0]).fill)([...document.querySelectorAll('.figure text')].filter(t => t.getBoundingClientRect().width))"
                )
                small = chromium.js(
                    "Math.min(...[...document.querySelectorAll('.figure text')].map(t => t.getBoundingClientRect().height).filter(h => h))"
                )
                assert small >= 9, f"text of a figure is {small} px high at {width}"
                assert (ink == "rgb(157, 171, 180)") == dark, f"a figure's text is {ink}"
    assert colours[True] != colours[False]
    assert chromium.js("window.evil") is None


@pytest.mark.parametrize("page", PAGES)
def test_tab_reaches_every_link_fold_and_scrolling_table(top, chromium, page):
    chromium.open(top / page, 1400)
    wanted = chromium.js(
        "[...document.querySelectorAll('a[href], summary, [tabindex=\"0\"]')].filter(e => e.checkVisibility()).length"
    )
    reached = [chromium.tab() for _ in range(wanted)]
    assert reached[0] == "A #main", "the first is the way past the heading"
    assert len(set(reached)) > 2
    assert not [r for r in reached if r.startswith("BODY")], reached
    assert chromium.js("getComputedStyle(document.activeElement).outlineStyle") == "solid", (
        "and one sees where one is"
    )
    assert chromium.js("document.querySelectorAll('[data-seen]').length") == wanted, "each once"


def test_what_runs_and_what_is_fetched_is_noticed(top, chromium, tmp_path):
    """The checks above would notice it."""
    page = tmp_path / "bad.html"
    page.write_text(
        '<script>console.error("x")</script><img src="http://127.0.0.1:9/x.png"><div style="width:3000px">wide</div>'
    )
    chromium.open(page, 400)
    assert chromium.fetched == ["http://127.0.0.1:9/x.png"]
    assert [text for text in chromium.logged if '"x"' in text]
    assert chromium.js("document.documentElement.scrollWidth") >= 3000
    chromium.fetched.clear()
    chromium.logged.clear()


def test_a_page_prints(top, chromium, tmp_path):
    chromium.open(top / PAGES[0], 1400, dark=True)
    chromium.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    chromium.open(top / PAGES[0], 800, dark=True, media="print")
    assert chromium.js("getComputedStyle(document.body).color") == "rgb(27, 34, 38)", (
        "dark ink on paper, in a dark theme too"
    )
    chromium.call("Emulation.setEmulatedMedia", media="screen")
