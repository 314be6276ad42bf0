"""For which machine packages are chosen.

python -m pytest tests/runs/offline/test_target.py
"""

import pytest

from lib.common.errors import UserError
from lib.runs.offline import target


@pytest.mark.parametrize(
    ("python", "machine", "named"),
    [
        ("3.10", "", "FOR_PYTHON=`3.10`"),
        ("3", "", "FOR_PYTHON=`3`"),
        ("312", "", "FOR_PYTHON=`312`"),
        ("python3.12", "", "FOR_PYTHON"),
        ("3.12", "arm64", "FOR_PLATFORM=`arm64`: expected x86_64 or aarch64"),
        ("3.12", "win_amd64", "FOR_PLATFORM"),
    ],
)
def test_a_target_that_cannot_be_is_refused(python, machine, named):
    with pytest.raises(UserError, match=named):
        target.make_target(python, machine)


def test_older_systems_wheels_run_on_the_target():
    options = target.pip_options(target.make_target("3.12", "aarch64"))
    for tag in ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "linux"):
        assert f"--platform={tag}_aarch64" in options
    assert "--platform=manylinux_2_29_aarch64" not in options
    assert "--python-version=3.12" in options
