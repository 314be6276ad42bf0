"""The drills of tests/drills, a few trials each; `make drills` runs them at their full length.

python -m pytest tests/test_drills.py
"""

import pathlib
import subprocess
import sys

import pytest

DRILLS = pathlib.Path(__file__).parent / "drills"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trials"), [("params", 300), ("secrets", 6), ("soak", 2)])
def test_nothing_is_lost(name, trials):
    done = subprocess.run(
        [sys.executable, DRILLS, name, "--trials", str(trials)],
        cwd=DRILLS.parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 lost," in done.stdout.splitlines()[-1]
    assert int(done.stdout.splitlines()[-1].split()[1]) >= min(trials, 2), (
        "trials that were not run lose nothing"
    )
