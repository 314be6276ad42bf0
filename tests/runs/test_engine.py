"""Every way a notebook can end leaves a true record and a true notebook.

.venv/bin/python -m pytest tests/runs/test_engine.py
"""

import json
import os

import pytest

from helpers import standin
from lib.runs import engine
from lib.runs.stopper import Stopper


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        pytest.param(
            "os._exit(3)", "KernelDied: the kernel exited with code 3", marks=pytest.mark.slow
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "KernelDied: the kernel was killed (signal 9)"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "KernelDied: the kernel crashed (SIGSEGV)",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_kernel_that_raises_or_dies_is_a_failure_in_its_cell(tree, work, words):
    (tree.root / "prepare.py").write_text(work)
    code, out, err = tree.make_run("run")
    assert code == 1
    assert words in err
    last = standin.assert_ended(tree, "prepare", "failed", words)
    assert f"failed in cell {last['cell']} of runs/job/prepare.ipynb: {words}" in err
    assert tree.stage("train")["attempts"] == []
    assert not (tree.run / "train.ipynb").exists()


def test_a_users_mistake_found_in_a_notebook_is_shown_without_a_traceback(tree):
    (tree.root / "prepare.py").write_text(
        "from lib.common.errors import UserError\nraise UserError('row 7 has no answer.\\nGive it one.')"
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    last = standin.assert_ended(
        tree, "prepare", "failed", "UserError: row 7 has no answer.\nGive it one."
    )
    assert (
        err
        == f"\nfailed in cell {last['cell']} of runs/job/prepare.ipynb: UserError: row 7 has no answer.\nGive it one.\n"
    )


def test_a_kernel_that_never_starts_is_a_failure_in_the_first_code_cell(tree):
    (tree.root / "ipykernel_launcher.py").write_text(
        "raise SystemExit('no kernel today')\n"
    )  # python -m finds it before the real one
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert "KernelNotStarted" in err
    standin.assert_ended(tree, "prepare", "failed", "KernelNotStarted", cell=2)


def test_a_cell_that_takes_too_long_is_a_failure(tmp_path):
    (tmp_path / "source.ipynb").write_text(
        standin.notebook(["# slow", "import time", "time.sleep(600)", "print('never')"])
    )
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(engine.StageFailed, match="^TimedOut: A cell timed out") as caught:
        engine.execute_notebook(
            tmp_path / "source.ipynb", tmp_path / "out.ipynb", {}, fd, Stopper(), timeout=1
        )
    os.close(fd)
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    assert standin.cell_states(notebook) == ["completed", "completed", "failed", "pending"]
    assert notebook["cells"][caught.value.cell - 1]["outputs"][-1]["ename"] == "TimedOut"
    assert notebook["metadata"]["papermill"]["exception"] is True
    assert not caught.value.interrupted


def test_what_is_no_notebook_is_a_failure_without_a_traceback(tree):
    (tree.root / "notebooks/prepare.ipynb").write_text("{")
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert tree.stage("prepare")["status"] == "failed"


def test_a_notebook_without_a_result_is_a_failure(tree):
    (tree.root / "notebooks/prepare.ipynb").write_text(
        standin.notebook(standin.cells("prepare")[:4])
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert "without recording a result" in err
    assert tree.stage("prepare")["status"] == "failed"
