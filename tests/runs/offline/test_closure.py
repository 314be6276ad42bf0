"""What pip leaves out for another Python or processor is found.

python -m pytest tests/runs/offline/test_closure.py
"""

import pytest

from lib.runs.offline import closure, target


def item(name, *needs, requested=False, extras=()):
    return {
        "metadata": {"name": name, "version": "1", "requires_dist": list(needs)},
        "requested": requested,
        "requested_extras": list(extras),
    }


def left_out(python, machine, *items):
    chosen = target.make_target(python, machine)
    return closure.find_left_out(items, target.marker_environment(chosen))


@pytest.mark.parametrize(
    ("need", "python", "machine", "expected"),
    [
        ('b>=2; python_version < "3.13"', "3.12", "x86_64", ["b>=2"]),
        ('b>=2; python_version < "3.13"', "3.13", "x86_64", []),
        ('b; python_full_version < "3.12.1"', "3.12", "x86_64", ["b"]),
        ('b; platform_machine == "aarch64"', "3.12", "aarch64", ["b"]),
        ('b; platform_machine == "aarch64"', "3.12", "x86_64", []),
        ('b; sys_platform == "win32"', "3.12", "x86_64", []),
        ('b; platform_system == "Linux"', "3.12", "x86_64", ["b"]),
        ('b; extra == "gpu"', "3.12", "x86_64", []),
        ("b", "3.12", "x86_64", ["b"]),
    ],
)
def test_a_marker_is_judged_on_the_target(need, python, machine, expected):
    assert left_out(python, machine, item("a", need, requested=True)) == expected


def test_extras_are_followed_where_they_are_asked_for():
    asked = item("a", "B_b[fast]>=1", requested=True)
    needed = item("b-b", 'c; extra == "fast"', 'd; extra == "slow"')
    assert left_out("3.12", "x86_64", asked, needed) == ["c"]
    assert left_out(
        "3.12", "x86_64", item("a", 'c; extra == "x"', requested=True, extras=["x"])
    ) == ["c"]


def test_circles_end():
    a, b = item("a", "b", requested=True), item("b", "a[x]", "b")
    assert left_out("3.12", "x86_64", a, b) == []
