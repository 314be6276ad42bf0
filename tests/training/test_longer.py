"""More steps after the planned end: the same rows and optimizer, a schedule that is told, a true ledger.

.venv/bin/python -m pytest tests/training/test_longer.py
"""

import shutil

import pytest
import torch

from helpers.small_training import (
    STEPS,
    a_job,
    at_call,
    crash,
    evals,
    interrupt,
    session,
    whole_run,
)
from lib.common.errors import UserError
from lib.pages import card_tables, cautions
from lib.record import ledger
from lib.training import checkpoint, plan

LONGER = {"num_train_epochs": 2.0}


@pytest.fixture(scope="module")
def first(tmp_path_factory, uninterrupted):
    """The folder of a finished run of one epoch."""
    folder = tmp_path_factory.mktemp("first") / "run"
    session(folder)
    return folder


@pytest.fixture(scope="module")
def longer(first, tmp_path_factory):
    """(weights, entries) of that run continued to two epochs without an interruption."""
    folder = shutil.copytree(first, tmp_path_factory.mktemp("longer") / "run")
    return whole_run(folder, a_job(**LONGER))


@pytest.fixture
def copy(first, tmp_path):
    return shutil.copytree(first, tmp_path / "run")


def test_the_rows_are_those_of_a_training_planned_so_and_the_rates_are_told(
    longer, tmp_path, first
):
    """From the seventh step on, each step has the schedule's rate of 12 steps; the first six keep theirs."""
    _, entries = longer
    steps = ledger.valid_steps(entries)
    job = a_job(**LONGER)
    rates = [plan.learning_rate(n, STEPS, job) for n in range(STEPS)]
    rates += [plan.learning_rate(n, 2 * STEPS, job) for n in range(STEPS, 2 * STEPS)]
    assert [entry["lr"] for entry in steps] == pytest.approx(rates)
    _, planned = whole_run(tmp_path / "planned", job)
    for ours, theirs in zip(steps, ledger.valid_steps(planned), strict=True):
        assert [ours[k] for k in ("step", "rows", "tokens", "trained", "epoch")] == [
            theirs[k] for k in ("step", "rows", "tokens", "trained", "epoch")
        ]


def test_what_is_told_is_what_was_done(longer):
    _, entries = longer
    found = ledger.summarise(entries)
    steps = ledger.valid_steps(entries)
    assert found["lengthened"] == [
        {
            "after_step": STEPS,
            "planned": STEPS,
            "then_planned": 2 * STEPS,
            "rate_before": steps[STEPS - 1]["lr"],
            "rate_after": steps[STEPS]["lr"],
        }
    ]
    assert (found["steps"], found["epochs"], found["sessions"]) == (2 * STEPS, 2.0, 2)
    assert found["loss_mean"] == pytest.approx(sum(e["loss"] for e in steps) / len(steps))
    [told] = cautions._warn_of_length(found)
    assert "planned for 6 steps, it went on after step 6 to 12" in told
    assert f"{steps[STEPS]['lr']:.3g}" in told
    record = {"stages": {"train": {"attempts": []}}}
    recipe = card_tables.describe_recipe(a_job(**LONGER), found, record)
    assert "went on after step 6 to 12" in recipe["made longer"]


def test_the_held_out_loss_after_is_of_the_last_weights_and_before_of_the_base(copy, first):
    session(copy, a_job(**LONGER))
    before, after, last = evals(copy)
    assert [before, after] == evals(first)
    assert last[:2] == ("after", 2 * STEPS)
    found = ledger.summarise(ledger.read_ledger(copy / "metrics.jsonl"))
    assert (found["eval_loss_before"], found["eval_loss_after"]) == (before[2], last[2])


@pytest.mark.parametrize("action", [interrupt, crash])
def test_a_longer_training_that_is_interrupted_has_the_same_bits(copy, longer, monkeypatch, action):
    with monkeypatch.context() as patch:
        at_call(patch, 6, action)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            session(copy, a_job(**LONGER))
    weights, entries = whole_run(copy, a_job(**LONGER))
    assert all(torch.equal(weights[n], w) for n, w in longer[0].items())
    assert [(e["step"], e["loss"], e["lr"]) for e in ledger.valid_steps(entries)] == [
        (e["step"], e["loss"], e["lr"]) for e in ledger.valid_steps(longer[1])
    ]
    assert ledger.summarise(entries)["lengthened"] == ledger.summarise(longer[1])["lengthened"]


def test_the_schedule_is_stated_before_the_first_step(copy, capsys):
    session(copy, a_job(**LONGER))
    told = capsys.readouterr().out
    job = a_job(**LONGER)
    assert "continuing after step 6 of 12" in told
    assert "followed a schedule of 6 steps" in told
    assert f"goes on at {plan.learning_rate(6, 12, job):.3g}" in told


def test_an_ordinary_resume_states_nothing(copy, capsys):
    session(copy)
    assert "schedule of" not in capsys.readouterr().out
    assert "lengthened" not in ledger.summarise(ledger.read_ledger(copy / "metrics.jsonl"))


@pytest.mark.parametrize(
    "changes", [{"num_train_epochs": 0.5}, {"max_steps": 12}, {**LONGER, "learning_rate": 1e-3}]
)
def test_what_is_not_only_longer_is_refused(copy, changes):
    with pytest.raises(UserError, match="does not belong to this job"):
        session(copy, a_job(**changes))


def test_a_checkpoint_from_before_a_parameter_was_known_has_its_default(copy, first):
    """An edit upstream between two sessions must not end the training."""
    identity = checkpoint.describe_identity(a_job(), "data-1", "base-1", 1)
    state = {k: v for k, v in identity.items() if k != "start_from"}
    assert checkpoint._recorded(state, "start_from") == ""
    assert checkpoint._recorded(state, "data") == "data-1"
    assert checkpoint._recorded({}, "base") is None
