"""The held-out loss during training, and early stopping by it.

python -m pytest tests/training/test_held_out.py
"""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers.held_out_loss import measure_loss
from helpers.small_training import (
    HELD_OUT,
    a_job,
    at_call,
    checkpoints,
    crash,
    evals,
    interrupt,
    make_rows,
    same_run,
    session,
    small_model,
    whole_run,
)
from lib.record import ledger
from lib.training import checkpoint, evaluate
from lib.training.held_out import HeldOut
from lib.training.masters import Masters

pytestmark = pytest.mark.usefixtures("one_thread")


def test_evals_during_training_are_noted_and_disturb_nothing(tmp_path, uninterrupted):
    same_run(tmp_path, session(tmp_path, a_job(eval_steps=2)), uninterrupted)
    assert [(when, step) for when, step, _ in evals(tmp_path)] == [
        ("before", 0),
        ("during", 2),
        ("during", 4),
        ("after", 6),
    ]
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]


def test_an_eval_is_the_held_out_loss_of_the_model_at_its_step(tmp_path):
    session(tmp_path / "whole", a_job(eval_steps=2, lr_scheduler_type="constant"))
    during = {step: loss for when, step, loss in evals(tmp_path / "whole") if when == "during"}
    for step in (2, 4):
        session(tmp_path / str(step), a_job(max_steps=step, lr_scheduler_type="constant"))
        assert evals(tmp_path / str(step))[-1] == ("after", step, during[step])
        net = small_model(a_job()).eval()
        checkpoint.resume(tmp_path / str(step) / "checkpoints", Masters(net, a_job()), {})
        assert measure_loss(net, HELD_OUT)[0] == during[step], "measured without dropout"
    assert len({loss for *_, loss in evals(tmp_path / "whole")}) == 4


@pytest.mark.parametrize("action", [interrupt, crash])
@pytest.mark.parametrize("micro_batch", [3, 8, 9])
def test_evals_are_the_same_with_an_interruption(
    tmp_path, monkeypatch, uninterrupted, micro_batch, action
):
    job = a_job(eval_steps=2, save_steps=3)
    session(tmp_path / "whole", job)
    at_call(monkeypatch, micro_batch, action)
    with pytest.raises((KeyboardInterrupt, RuntimeError), match="stopped"):
        session(tmp_path / "stopped", job)
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert {(when, step): loss for when, step, loss in evals(tmp_path / "stopped")} == {
        (when, step): loss for when, step, loss in evals(tmp_path / "whole")
    }


def test_ctrl_c_does_not_wait_for_a_held_out_loss(tmp_path, monkeypatch, uninterrupted):
    """It may take minutes, longer than the runner's grace; the next session measures it."""
    job = a_job(eval_steps=2)
    session(tmp_path / "whole", job)
    at_call(monkeypatch, 8, interrupt)  # in the last micro-batch of step 4
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        session(tmp_path / "stopped", job)
    assert [(when, step) for when, step, _ in evals(tmp_path / "stopped")] == [
        ("before", 0),
        ("during", 2),
    ]
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert evals(tmp_path / "stopped") == evals(tmp_path / "whole")


def test_ctrl_c_in_a_held_out_loss_ends_it_there(tmp_path, monkeypatch, uninterrupted):
    job, real, groups = a_job(eval_steps=2), evaluate._try_row_losses, []
    session(tmp_path / "whole", job)

    def interrupted_at_the_second(model, data, rows, bar):
        def counted(numbers):
            for n in bar(numbers):
                groups.append(n)
                if len(groups) == 2:
                    interrupt(None)
                yield n

        return real(
            model,
            data,
            1,
            counted if (tmp_path / "stopped/checkpoints/step-000004").exists() else bar,
        )

    monkeypatch.setattr(evaluate, "_try_row_losses", interrupted_at_the_second)
    assert len(HELD_OUT) > 3, "more groups of one row would follow"
    with pytest.raises(
        KeyboardInterrupt, match="held-out loss after step 4; its checkpoint is saved"
    ):
        session(tmp_path / "stopped", job)
    assert len(groups) == 2
    monkeypatch.setattr(evaluate, "_try_row_losses", real)
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), uninterrupted)
    assert [e[:2] for e in evals(tmp_path / "stopped")] == [
        e[:2] for e in evals(tmp_path / "whole")
    ]


def test_no_held_out_rows_no_evals(tmp_path, uninterrupted):
    same_run(
        tmp_path,
        session(tmp_path, a_job(eval_steps=2), held_out=HELD_OUT.select([])),
        uninterrupted,
    )
    assert evals(tmp_path) == []


EARLY = {
    "max_steps": 30,
    "eval_steps": 2,
    "save_steps": 4,
    "lr_scheduler_type": "constant",
    "early_stopping_patience": 3,
}


@pytest.fixture(scope="session")
def stopped_early(tmp_path_factory):
    """Return (weights, folder) of a run whose held-out loss was best after step 10 and that stopped after step 16."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("early")
    weights, _ = whole_run(folder, a_job(**EARLY))
    return weights, folder


def test_early_stopping_stops_and_restores_the_best(tmp_path, stopped_early):
    weights, folder = stopped_early
    during = {step: loss for when, step, loss in evals(folder) if when == "during"}
    best = min(during, key=during.get)
    assert list(during) == list(range(2, best + 2 * 3 + 1, 2)), (
        "three evals without a better one, and no fourth"
    )
    assert max(during) < 30
    wanted = session(tmp_path, a_job(max_steps=best, lr_scheduler_type="constant"))
    assert all(torch.equal(weights[n], w) for n, w in wanted.weights.items())
    assert evals(folder)[-1] == ("after", max(during), during[best])
    assert ledger.summarise(ledger.read_ledger(folder / "metrics.jsonl"))["best_step"] == best
    assert [p.name for p in (folder / "checkpoints" / "best").iterdir()] == [f"step-{best:06d}"]
    last = load_file(folder / "checkpoints" / f"step-{max(during):06d}" / "adapter.safetensors")
    assert any(not torch.equal(weights[n], w) for n, w in last.items()), (
        "the best must not be the last"
    )


@pytest.mark.parametrize("micro_batch", [3, 20, 21, 32])
def test_a_resumed_run_stops_early_at_the_same_step(
    tmp_path, monkeypatch, stopped_early, micro_batch
):
    """Killed before or after the best eval, on the steps run again or past a checkpoint."""
    weights, folder = stopped_early
    at_call(monkeypatch, micro_batch, crash)
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path, a_job(**EARLY))
    same_run(
        tmp_path,
        session(tmp_path, a_job(**EARLY)),
        (weights, ledger.read_ledger(folder / "metrics.jsonl")),
    )
    assert {(when, step): loss for when, step, loss in evals(tmp_path)} == {
        (when, step): loss for when, step, loss in evals(folder)
    }


def test_a_run_stopped_early_and_started_again_changes_nothing(tmp_path, stopped_early):
    weights, folder = stopped_early
    shutil.copytree(folder, tmp_path / "run")
    same_run(
        tmp_path / "run",
        session(tmp_path / "run", a_job(**EARLY)),
        (weights, ledger.read_ledger(folder / "metrics.jsonl")),
    )
    assert evals(tmp_path / "run") == evals(folder)


@pytest.mark.parametrize(
    ("losses", "spent"),
    [
        ([], False),
        ([3.0], False),
        ([3.0, 4.0], False),
        ([3.0, 4.0, 5.0], True),
        ([3.0, 4.0, 2.0, 2.5], False),
        ([3.0, 4.0, 2.0, 2.5, 2.1], True),
        ([3.0, 3.0, 3.0], True),
        ([5.0, 4.0, 3.0, 2.0], False),
    ],
)
def test_patience(losses, spent):
    found = {
        ("before", 0): 1.0,
        **{("during", 2 * n): loss for n, loss in enumerate(losses, 1)},
        ("after", 99): 0.5,
    }
    for job, expected in (
        (a_job(early_stopping_patience=2, eval_steps=2), spent),
        (a_job(), False),
    ):
        assert HeldOut(None, None, job, found, None, None).is_patience_spent() is expected


def scripted(monkeypatch, *losses):
    """Return given held-out losses, one per measurement, to test a decision and not what a small model learns."""
    told = iter(losses)
    monkeypatch.setattr(
        evaluate, "measure_row_losses", lambda *_, **__: np.array([[10 * next(told), 10.0]])
    )


def test_the_last_weights_are_kept_when_they_are_the_best(tmp_path, monkeypatch, uninterrupted):
    """With early stopping, a run that improves until its end must not go back to the last eval before it."""
    scripted(monkeypatch, 4.0, 3.0, 2.0, 1.0, 1.0)
    masters = session(tmp_path, a_job(eval_steps=2, early_stopping_patience=2))
    assert all(torch.equal(masters.weights[n], w) for n, w in uninterrupted[0].items())


def test_a_best_that_was_run_past_the_point_of_resume_is_forgotten(tmp_path, monkeypatch):
    """On a GPU, repeated steps differ in the last bits, so another eval may be the best."""
    job = a_job(
        max_steps=8,
        eval_steps=2,
        save_steps=100,
        early_stopping_patience=5,
        lr_scheduler_type="constant",
    )
    with monkeypatch.context() as patch:
        scripted(patch, 5.0, 4.0, 3.0, 2.0)
        at_call(patch, 14, crash)  # in step 7; the best was step 6
        with pytest.raises(RuntimeError, match="machine stopped"):
            session(tmp_path / "run", job)
    for lost in (tmp_path / "run" / "checkpoints").glob("step-*"):
        shutil.rmtree(lost)
    scripted(monkeypatch, 3.0, *[4.0] * 9)
    masters = session(tmp_path / "run", job)
    wanted = session(tmp_path / "two", a_job(max_steps=2, lr_scheduler_type="constant"))
    assert all(torch.equal(masters.weights[n], w) for n, w in wanted.weights.items())


def test_what_is_forgotten_is_measured_before_and_after_and_once(tmp_path, monkeypatch):
    """Rows of another source: their loss is the model's own, and a second session keeps the first."""
    other = make_rows(4, seed=9)
    for name in ("whole", "stopped"):
        other.save_to_disk(tmp_path / name / "data" / "forgetting")
    job = a_job(forgetting="other.jsonl")
    session(tmp_path / "whole", job)
    entries = ledger.read_ledger(tmp_path / "whole" / "metrics.jsonl")
    measured = {e["when"]: e for e in entries if e["event"] == "forgetting"}
    assert list(measured) == ["before", "after"]
    assert measured["before"]["eval_loss"] == measure_loss(small_model(job).eval(), other)[0]
    net = small_model(job).eval()
    checkpoint.resume(tmp_path / "whole" / "checkpoints", Masters(net, job), {})
    assert measured["after"]["eval_loss"] == measure_loss(net, other)[0]
    summary = ledger.summarise(entries)
    assert summary["forgetting_loss_before"] == measured["before"]["eval_loss"]
    assert summary["forgetting_loss_after_ci95"] == measured["after"]["ci95"]
    assert summary["eval_loss_after"] == evals(tmp_path / "whole")[-1][2]
    at_call(monkeypatch, 8, interrupt)
    with pytest.raises(KeyboardInterrupt, match="after step 4"):
        session(tmp_path / "stopped", job)
    session(tmp_path / "stopped", job)
    again = ledger.read_ledger(tmp_path / "stopped" / "metrics.jsonl")
    assert [
        (e["when"], e["step"], e["eval_loss"]) for e in again if e["event"] == "forgetting"
    ] == [
        ("before", 0, measured["before"]["eval_loss"]),
        ("after", 6, measured["after"]["eval_loss"]),
    ]
    assert "forgetting_loss_after" not in ledger.summarise(
        [e for e in entries if e["event"] != "forgetting"]
    )
