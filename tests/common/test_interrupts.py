"""No interrupt gets lost, wherever it arrives.

.venv/bin/python -m pytest tests/common/test_interrupts.py
"""

import signal
import subprocess
import sys
import time
import weakref

import pytest

from lib.common import interrupts
from lib.common.errors import ROOT


class Thing:
    pass


@pytest.fixture(autouse=True)
def hook():
    interrupts.keep_interrupts()


def test_an_interrupt_in_a_weak_references_callback_comes_again(capfd):
    thing, begun = Thing(), time.monotonic()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the second line is where it must come
        del thing
        time.sleep(30)
    assert reference() is None
    assert time.monotonic() - begun < 10
    assert capfd.readouterr().err == ""


def test_another_error_in_a_callback_is_printed_as_ever(capfd):
    thing = Thing()
    reference = weakref.ref(thing, lambda _: 1 / 0)
    del thing
    assert reference() is None
    assert "ZeroDivisionError" in capfd.readouterr().err


@pytest.mark.parametrize("number", interrupts.STOPPERS)
@pytest.mark.parametrize("says", ["", "stopped"])
def test_a_command_that_saves_nothing_ends_at_once_and_cleans_nothing_up(number, says):
    code = f"""
import os, signal, time
from lib.common import interrupts
interrupts.end_at_once({says!r})
try:
    os.kill(os.getpid(), {int(number)})
    time.sleep(30)
finally:
    print("cleaned up")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=20, capture_output=True)
    ended = (128 + number, b"\nstopped\n") if says else (-number, b"")
    assert (done.returncode, done.stderr, done.stdout) == (*ended, b"")


def test_a_delayed_signal_comes_after_the_block_and_an_ignored_one_never():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    steps = []
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.delayed():  # noqa: PT012 - all may raise
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGINT)
            steps.append("went on")
    finally:
        assert signal.signal(signal.SIGHUP, before) == signal.SIG_IGN
    assert steps == ["went on"]
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
