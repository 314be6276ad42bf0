"""A container's or a scheduler's limits count, not only the machine's.

.venv/bin/python -m pytest tests/common/test_limits.py
"""

import psutil
import pytest

from lib.common import limits

GIB = 2**30


@pytest.fixture
def group(tmp_path, monkeypatch):
    """Return a function that lets this process be in a cgroup with these files."""
    memory = type("Memory", (), {"available": 100 * GIB, "total": 128 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(limits, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "OWN_GROUP", tmp_path / "own")

    def make(own, **files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "groups" / name.replace("__", "/").replace("--", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return make


def test_without_cgroups_the_machine_counts(group):
    assert limits.free_memory() == 100 * GIB
    assert (limits.group_memory(), limits.group_cores()) == (None, None)


def test_version_2_the_tightest_group_on_the_way_up_counts_and_its_file_cache_is_free(group):
    group(
        "0::/job/step\n",
        **{
            "job__memory--max": f"{8 * GIB}\n",
            "job__memory--current": f"{5 * GIB}\n",
            "job__memory--stat": f"anon {3 * GIB}\ninactive_file {2 * GIB}\n",
            "job__step__memory--max": "max\n",
            "job__step__memory--current": f"{5 * GIB}\n",
            "job__cpu--max": "150000 100000\n",
            "job__step__cpu--max": "max 100000\n",
        },
    )
    assert limits.free_memory() == 5 * GIB
    assert limits.group_memory() == 8 * GIB
    assert limits.group_cores() == 1.5


def test_version_1_with_a_path_that_only_the_machine_outside_knows(group):
    group(
        "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n",
        **{
            "memory__memory--limit_in_bytes": f"{4 * GIB}\n",
            "memory__memory--usage_in_bytes": f"{GIB}\n",
            "cpu__cpu--cfs_quota_us": "200000\n",
            "cpu__cpu--cfs_period_us": "100000\n",
        },
    )
    assert limits.free_memory() == 3 * GIB
    assert limits.group_cores() == 2


def test_no_limit_in_version_1_is_a_huge_number_or_minus_one(group):
    group(
        "4:memory:/\n3:cpu:/\n",
        **{
            "memory__memory--limit_in_bytes": "9223372036854771712\n",
            "memory__memory--usage_in_bytes": f"{GIB}\n",
            "cpu__cpu--cfs_quota_us": "-1\n",
            "cpu__cpu--cfs_period_us": "100000\n",
        },
    )
    assert limits.free_memory() == 100 * GIB
    assert (limits.group_memory(), limits.group_cores()) == (None, None)


@pytest.mark.parametrize("own", ["", "nonsense\n", "0::\n", "0::/../../x\n", "1:memory:\n"])
def test_an_odd_list_of_groups_is_no_error(group, own):
    group(own, **{"memory--max": "soon\n", "memory--current": "\n"})
    assert limits.free_memory() == 100 * GIB
