"""Several processes: order, a bounded stream, errors, and no orphans.

python -m pytest tests/common/test_workers.py
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from helpers.standin import gone, wait_for
from lib.common import workers
from lib.common.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _two_cores():
    """Pretend two cores: with one, all work would be done in the testing process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.machine, "cores", lambda: 2)
        yield


@pytest.fixture(scope="module")
def pool(_two_cores):
    made = workers.start_pool(small=False)
    yield made
    workers.stop_pool(made)


def test_results_come_in_order_and_items_are_taken_as_the_work_goes_on(pool):
    taken = []

    def items():
        for n in range(40):
            taken.append(n)
            yield (0.02 if n == 0 else 0.0, n)

    ahead = []
    for n, result in enumerate(workers.map_in_order(pool, nap, items())):
        assert result == n
        ahead.append(len(taken) - n)
    assert len(taken) == 40
    assert max(ahead) <= (pool._max_workers if pool else 0) + 4, (
        "a stream of any length must not be read ahead of the work"
    )


def nap(seconds, value):
    time.sleep(seconds)
    return value


def fail(value):
    if value == 3:
        raise UserError(f"row {value} is wrong")
    return value


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_error_of_a_worker_is_raised_with_its_own_words(pool, where):
    results = workers.map_in_order(
        pool if where == "there" else None, fail, ((n,) for n in range(9))
    )
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="row 3 is wrong"):
        next(results)


def test_little_work_or_one_core_starts_no_process(monkeypatch):
    assert workers.start_pool(small=True) is None
    monkeypatch.setattr(workers.machine, "cores", lambda: 1)
    assert workers.start_pool(small=False) is None


def test_workers_of_a_killed_parent_end(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\nfrom lib.common import workers\nworkers.machine.cores = lambda: 2\nif __name__ == '__main__':\n    pool = workers.start_pool(False)\n"
        "    print(*[f.result() for f in [pool.submit(os.getpid) for _ in range(20)]], flush=True)\n    time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    children = {int(p) for p in parent.stdout.readline().split()}
    assert children
    assert not any(map(gone, children))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    wait_for(lambda: all(map(gone, children)), "the workers of a killed parent end", 20)


def die(value):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_told(tmp_path):
    own = workers.start_pool(small=False)
    with pytest.raises(UserError, match="a worker process was killed"):
        list(workers.map_in_order(own, die, [(1,)]))
    workers.stop_pool(own)
