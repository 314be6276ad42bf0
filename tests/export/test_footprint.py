"""A GGUF's memory and speed on this machine: measured in a process of its own, and reported.

python -m pytest tests/export/test_footprint.py
"""

import collections
import os
import subprocess
import sys
import time

import pytest

from lib.common.errors import UserError
from lib.export import footprint
from lib.pages import figures, show

GIB = 2**30
ROW = {
    "format": "q8_0",
    "bytes": 300 << 20,
    "threads": 1,
    "load_seconds": 0.5,
    "memory_bytes": 500 << 20,
    "private_bytes": 100 << 20,
    "repeats": 3,
    "other_cores": 0.0,
    "prompt_tokens_per_second": 200.0,
    "decode_tokens_per_second": 30.0,
    "fits_gb": 2,
}


def test_a_file_is_measured_alone(bundled_base, monkeypatch):
    """Memory is that of the file and not of this process, whose peak is higher; the times reported are those measured."""
    path, ballast = bundled_base.with_suffix(".gguf"), bytearray(os.urandom(1 << 20) * 600)
    [row] = footprint.measure_files({"q4_k_m": path}, threads=(1,), repeats=1)
    assert len(ballast) > row["memory_bytes"]
    assert row["bytes"] == path.stat().st_size
    assert (
        row["bytes"] < row["memory_bytes"] < row["bytes"] + (400 << 20)
    )  # all pages are touched; vocabulary, context, buffers beside
    assert 0 < row["private_bytes"] < row["memory_bytes"]
    assert (row["format"], row["threads"], row["repeats"], row["fits_gb"]) == ("q4_k_m", 1, 1, 2)
    assert 0 < row["load_seconds"] < 60
    assert row["prompt_tokens_per_second"] > row["decode_tokens_per_second"] > 0
    assert row["other_cores"] >= 0


def test_a_file_that_cannot_be_measured_is_a_user_error(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"hello")
    with pytest.raises(
        UserError, match=r"bad\.gguf could not be measured with 1 threads .*invalid magic"
    ):
        footprint.measure_files({"q8_0": tmp_path / "bad.gguf"}, threads=(1,))


@pytest.mark.parametrize(
    ("memory", "size"),
    [
        (GIB // 2, 2),
        (GIB, 2),
        (GIB + 1, 4),
        (3 * GIB, 4),
        (7 * GIB, 8),
        (15 * GIB, 16),
        (15 * GIB + 1, None),
    ],
)
def test_fits_leaves_the_system_its_share(memory, size):
    assert footprint.smallest_device(memory) == size


def test_work_of_others_is_told_and_own_work_is_not():
    def watched(seconds):
        end, others = time.monotonic() + seconds, footprint.read_other_work()
        while time.monotonic() < end:
            pass
        return (footprint.read_other_work() - others) / seconds

    with pytest.MonkeyPatch.context() as patch:
        times = collections.namedtuple("times", "user system idle iowait guest")(
            10.0, 2.0, 50.0, 4.0, 1.0
        )  # guest is in user
        patch.setattr(footprint.psutil, "cpu_times", lambda: times)
        patch.setattr(footprint.time, "process_time", lambda: 3.0)
        assert footprint.read_other_work() == 10 + 2 - 3
    alone = watched(0.7)
    code = "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"
    children = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    time.sleep(0.3)
    beside = watched(0.7)
    for child in children:
        child.kill()
        child.wait()
    assert beside > min(alone, 0.5) + 0.3, (alone, beside)


def test_table_and_figure_say_what_was_measured():
    rows = [
        ROW,
        ROW
        | {
            "threads": 2,
            "decode_tokens_per_second": 50.0,
            "memory_bytes": 15 * GIB + 1,
            "fits_gb": None,
            "private_bytes": None,
        },
    ]
    first, second = show.edge_table(rows)
    assert (first["fits in"], second["fits in"]) == ("2 GB", "more than 16 GB")
    assert (first["memory, MiB"], first["of it private, MiB"], second["of it private, MiB"]) == (
        500,
        100,
        None,
    )
    assert "not measured" in show.table_html([second])
    markup = show.svg(figures.edge(rows))
    assert len(markup) > 1000
    axes = figures.edge(rows).axes[0]
    assert [bar.get_width() for bar in axes.patches] == [30.0, 50.0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "q8_0, 1 thread",
        "q8_0, 2 threads",
    ]
    assert [text.get_text() for text in axes.texts] == ["30 (500 MiB)", "50 (15,360 MiB)"]
