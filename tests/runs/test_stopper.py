"""Signals to the runner: passed on to the kernel, waited for, recorded.

.venv/bin/python -m pytest tests/runs/test_stopper.py
"""

import os
import signal
import subprocess
import sys

import pytest

from helpers import standin
from lib.runs.stopper import Stopper


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
)
def test_a_signal_reaches_the_kernel_and_is_recorded(tree, number, code):
    (tree.root / "prepare.py").write_text(
        f"try:\n    exec({standin.WAIT!r})\nfinally:\n    pathlib.Path('saved').touch()\n"
    )
    process = tree.start("prepare")
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert (tree.root / "saved").exists()
    standin.assert_ended(
        tree, "prepare", "interrupted", f"stopped by {number.name}: KeyboardInterrupt"
    )
    assert "Traceback" not in out + err
    assert "The same command reads the data again" in err
    (tree.root / "prepare.py").write_text("result, fingerprints = 'rows', {}")
    assert tree.make_run("prepare")[0] == 0
    assert standin.cell_states(tree.executed("prepare.attempt1.ipynb"))[-2:] == [
        "failed",
        "pending",
    ]


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_a_kernel_that_holds_on(tree):
    (tree.root / "prepare.py").write_text(
        f"signal.signal(signal.SIGINT, lambda *_: pathlib.Path('asked').touch())\n{standin.WAIT}"
    )
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(), "the cell"
        )
    )
    process.send_signal(signal.SIGINT)
    standin.wait_for((tree.root / "asked").exists, "the kernel to be asked")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert standin.gone(kernel)
    standin.assert_ended(
        tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGINT"
    )


@pytest.mark.slow
def test_grace_ends(tree):
    (tree.root / "prepare.py").write_text(
        f"signal.signal(signal.SIGINT, lambda *_: None)\n{standin.WAIT}"
    )
    process = tree.start(
        "prepare", before="from lib.runs import stopper\nstopper.GRACE_SECONDS = 1"
    )
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    standin.assert_ended(
        tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGTERM"
    )


def test_a_cell_that_lives_through_the_signal_is_the_last_one(tree):
    (tree.root / "prepare.py").write_text(
        "asked = []\nsignal.signal(signal.SIGINT, lambda *_: asked.append(1))\npathlib.Path('there').touch()\n"
        "while not asked: time.sleep(0.02)\nresult, fingerprints = 'rows', {}\n"
    )
    process = tree.start("prepare")
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    standin.assert_ended(
        tree,
        "prepare",
        "interrupted",
        "Interrupted: the run was stopped by SIGINT",
        cell=standin.WORK + 2,
    )


@pytest.mark.slow
def test_a_signal_while_the_kernel_starts(tree):
    (tree.root / "ipykernel_launcher.py").write_text(f"import os, pathlib, time\n{standin.WAIT}")
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(),
            "the start",
        )
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert standin.gone(kernel)
    standin.assert_ended(
        tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGTERM", cell=2
    )


def test_a_signal_that_meets_a_weak_references_callback_ends_the_run():
    """Python prints what is raised there, with a traceback, and goes on."""
    code = (
        "import os, signal, time, weakref\nfrom lib.runs.stopper import Stopper\nStopper().install()\nclass Thing: pass\nthing = Thing()\n"
        "def callback(_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('not at once')\n"
        "reference = weakref.ref(thing, callback)\ndel thing\ntime.sleep(60)\nprint('lived on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=standin.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert "lived on" not in done.stdout


@pytest.mark.slow
def test_a_signal_that_meets_the_kernels_own_code_ends_the_run(tree):
    """A KeyboardInterrupt there loses the cell's reply: the kernel waits for the next cell, ignoring signals, and we for the reply."""
    (tree.root / "prepare.py").write_text(
        "kernel, fingerprints, result = get_ipython().kernel, {}, 'rows'\nreal = kernel.session.send\n"
        "def send(stream, kind, *args, **kwargs):\n    if kind == 'execute_reply':\n        kernel.session.send = real\n"
        "        pathlib.Path('there').touch()\n        time.sleep(60)\n    return real(stream, kind, *args, **kwargs)\nkernel.session.send = send\n"
    )
    process = tree.start("prepare", before=standin.PATIENT)
    standin.wait_for((tree.root / "there").exists, "the reply")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    standin.assert_ended(
        tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGINT"
    )


@pytest.mark.slow
def test_a_signal_that_the_kernel_ignores_reaches_the_next_cell(tree):
    """Between two cells ipykernel ignores it.

    The runner looks again after 1 s and 2 s; the pause ends between, since an interrupt just after it
    would hit ipykernel's own code (the test above).
    """
    (tree.root / "prepare.py").write_text(
        "kernel, result = get_ipython().kernel, 'rows'\nreal = kernel.pre_handler_hook\n"
        "def hook():\n    kernel.pre_handler_hook = real\n    pathlib.Path('there').touch()\n    time.sleep(1.5)\n    real()\nkernel.pre_handler_hook = hook\n"
        "class Slow:\n    def keys(self):\n        time.sleep(60)\nfingerprints = Slow()\n"
    )
    process = tree.start("prepare", before=standin.PATIENT)
    standin.wait_for((tree.root / "there").exists, "the pause between two cells")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    standin.assert_ended(
        tree,
        "prepare",
        "interrupted",
        "stopped by SIGTERM: KeyboardInterrupt",
        cell=standin.WORK + 2,
    )


def test_an_interrupt_of_the_kernel_alone_is_an_interruption(tree):
    (tree.root / "prepare.py").write_text("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    code, out, err = tree.make_run("prepare")
    assert code == 130
    standin.assert_ended(tree, "prepare", "interrupted", "KeyboardInterrupt")


def test_a_session_that_is_over_is_not_a_failure_of_the_stage(tree):
    (tree.root / "prepare.py").write_text(
        "class SessionOver(Exception): pass\nraise SessionOver('time is up')"
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    standin.assert_ended(tree, "prepare", "interrupted", "SessionOver: time is up")


def test_a_signal_in_the_middle_of_a_print_is_passed_on(capfd, monkeypatch):
    """Python refuses to enter a stream's buffer twice: a handler that prints may raise RuntimeError."""
    sent = []
    busy = type(
        "Busy",
        (),
        {
            "write": lambda *_: (_ for _ in ()).throw(RuntimeError("reentrant call")),
            "flush": lambda *_: None,
        },
    )()
    stopper = Stopper()
    stopper.kernel = type("Kernel", (), {"send_signal": sent.append, "pid": os.getpid()})
    monkeypatch.setattr(os.sys, "stdout", busy)
    monkeypatch.setattr(os.sys, "stderr", busy)
    try:
        stopper.handle(signal.SIGTERM, None)
    finally:
        signal.alarm(0)
    assert sent == [signal.SIGINT]
    assert "SIGTERM: stopping at the next safe point" in capfd.readouterr().err
