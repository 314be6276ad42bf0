"""No interrupt gets lost, wherever it arrives.

.venv/bin/python -m pytest tests/common/test_interrupts.py
"""

import signal
import sys
import time
import weakref

import pytest

from lib.common import interrupts


class Thing:
    pass


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)  # put back afterwards
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
