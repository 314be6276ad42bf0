"""A whole training session: what a run does, packed or padded, killed at any moment, and the numbers in its ledger.

python -m pytest tests/training/test_loop.py
"""

import itertools
import json
import math
import signal
import time

import numpy as np
import pytest
import transformers

from helpers.killed import MANY_KILLS, run_python
from helpers.small_training import (
    HELD_OUT,
    ROWS,
    STEPS,
    a_job,
    apart,
    at_call,
    checkpoints,
    crash,
    evals,
    interrupt,
    of_rows,
    pad,
    same_run,
    session,
    small_model,
    take_step,
    whole_run,
)
from lib.common.errors import UserError
from lib.data.label_mask import IGNORED
from lib.model import adapter
from lib.model.end_token import end_row
from lib.record import ledger
from lib.training import checkpoint, loop, plan
from lib.training import step as step_module
from lib.training.masters import Masters
from lib.training.step import load_steps

pytestmark = pytest.mark.usefixtures("one_thread")


# --------------------------------------------------------------------------------------------------
# a run


def test_an_undisturbed_run(tmp_path, uninterrupted):
    handler = signal.getsignal(signal.SIGINT)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["steps"], found["sessions"], found["steps_repeated"], found["epochs"]) == (
        STEPS,
        1,
        0,
        1.0,
    )
    assert found["eval_loss_after"] != found["eval_loss_before"]
    assert checkpoints(tmp_path) == ["step-000004", "step-000006"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_training_mode_is_what_the_base_calls_it(tmp_path, uninterrupted):
    """Unsloth's generate turns gradient checkpointing off in every layer, train() leaves it off, and for_training() turns it on."""
    net, job = small_model(a_job()), a_job(gradient_checkpointing=True)
    net.gradient_checkpointing_enable({"use_reentrant": False})
    layers = [m for m in net.modules() if hasattr(m, "gradient_checkpointing")]
    assert layers

    def checkpointing(on):
        for layer in layers:
            layer.gradient_checkpointing = on
        return net.train(on)

    net.for_training = lambda: checkpointing(True)
    checkpointing(False)  # what the answers before training leave behind
    loop.train(
        net,
        ROWS,
        HELD_OUT,
        job,
        tmp_path,
        checkpoint.describe_identity(job, "data-1", "base-1", adapter.count_parameters(net)[0]),
    )
    assert all(layer.gradient_checkpointing for layer in layers)


def test_nothing_is_compiled_for_no_step(tmp_path, monkeypatch, uninterrupted):
    """A run whose steps are done, killed before its last held-out loss, would pay 100 s for nothing."""
    session(tmp_path)
    ledger_file = tmp_path / "metrics.jsonl"
    ledger_file.write_text(
        "".join(
            line
            for line in ledger_file.read_text().splitlines(keepends=True)
            if '"after"' not in line
        )
    )
    monkeypatch.setattr(loop, "build_accumulate", lambda *_: pytest.fail("built for nothing"))
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert found["eval_loss_after"] is not None


def test_max_steps_beyond_an_epoch_goes_on_with_the_next(tmp_path):
    session(tmp_path, a_job(max_steps=8))
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    assert [e["epoch"] for e in lines] == pytest.approx([n / 6 for n in range(1, 9)], abs=1e-4)
    assert sum(e["rows"] for e in lines[:6]) == 23


def test_a_finished_run_started_again_changes_nothing(tmp_path, uninterrupted):
    session(tmp_path)
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 0)
    assert len(evals(tmp_path)) == 2


# --------------------------------------------------------------------------------------------------
# killed and continued


@pytest.mark.slow
def test_kill_minus_nine(tmp_path, uninterrupted):
    """Killed in step 4: step 3 is in the ledger and not in a checkpoint, so it is run and counted again."""
    done = run_python(
        "import pytest\n"
        "with pytest.MonkeyPatch.context() as patch:\n"
        "    at_call(patch, 7, lambda losses: os.kill(os.getpid(), 9))\n"
        "    session(pathlib.Path(sys.argv[1]))",
        tmp_path,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert checkpoints(tmp_path) == ["step-000002"]
    found = same_run(tmp_path, session(tmp_path), uninterrupted)
    assert (found["sessions"], found["steps_repeated"]) == (2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [11])
def test_killed_at_ten_random_moments(tmp_path, seed):
    """Four of the ten while a checkpoint is being written. In the end nobody can tell."""
    undisturbed = whole_run(tmp_path / "whole", a_job(**MANY_KILLS))
    done = run_python(
        "killed_ten_times(pathlib.Path(sys.argv[1]), int(sys.argv[2]))", tmp_path, seed
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [0, *[-signal.SIGKILL] * 10, 0], (told, done.stderr[-3000:])
    assert any(name.startswith(".step") for names in told["left"] for name in names), (
        "one kill must leave a half-written checkpoint"
    )
    assert len({tuple(names) for names in told["left"]}) > 4, (
        "the kills must fall on different parts of the run"
    )
    found = same_run(tmp_path / "run", session(tmp_path / "run", a_job(**MANY_KILLS)), undisturbed)
    assert found["steps_repeated"] > 0
    assert {(when, step): loss for when, step, loss in evals(tmp_path / "run")} == {
        (when, step): loss for when, step, loss in evals(tmp_path / "whole")
    }
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "whole")


# --------------------------------------------------------------------------------------------------
# packed rows


def packed_like_padded(monkeypatch):
    """A packing job takes the rows of each micro-batch that a padding one would."""
    whole = plan.plan_epoch
    monkeypatch.setattr(
        plan,
        "plan_epoch",
        lambda lengths, epoch, job: whole(
            lengths, epoch, job.model_copy(update={"packing": False})
        ),
    )


def test_packed_rows_train_as_padded_ones_do(tmp_path, monkeypatch):
    job = a_job(lora_dropout=0.0, max_steps=10)
    weights, entries = whole_run(tmp_path / "padded", job)
    packed_like_padded(monkeypatch)
    packed_weights, packed_entries = whole_run(
        tmp_path / "packed", a_job(lora_dropout=0.0, max_steps=10, packing=True)
    )
    for ours, theirs in zip(
        ledger.valid_steps(packed_entries), ledger.valid_steps(entries), strict=True
    ):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)
        assert (ours["rows"], ours["tokens"], ours["trained"]) == (
            theirs["rows"],
            theirs["tokens"],
            theirs["trained"],
        )
    assert apart(weights, packed_weights, job) < 1e-3
    found = [ledger.summarise(e) for e in (packed_entries, entries)]
    assert found[0]["eval_loss_after"] == pytest.approx(found[1]["eval_loss_after"], rel=1e-5)


def test_packed_rows_do_not_see_each_other():
    """Each row has the loss and the gradient it has alone; with attention across rows they would be others."""

    def taken(current, **changes):
        job = a_job(lora_dropout=0.0, **changes)
        net = small_model(job)
        done = take_step(net, Masters(net, job), job, current)
        return done.loss, done.norm

    job, sizes = a_job(packing=True, dataloader_num_workers=0), plan.read_sizes(ROWS)
    current = next(load_steps(ROWS, sizes, 0, job, plan.find_shape(sizes, job)))
    alone = taken(of_rows(*[[r] for r in current["rows"]]))
    assert taken(current, packing=True) == pytest.approx(alone, rel=1e-5)
    together = {
        "batches": [
            (place, batch._replace(bounds=batch.bounds[[0, -1]]))
            for place, batch in current["batches"]
        ]
    }
    assert taken(together, packing=True) != pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize("micro_batch", [4, 7])
def test_a_packing_run_interrupted_and_continued(tmp_path, monkeypatch, micro_batch):
    job = a_job(packing=True, max_steps=8)
    undisturbed = whole_run(tmp_path / "whole", job)
    at_call(monkeypatch, micro_batch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "stopped", job)
    found = same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), undisturbed)
    shape = plan.find_shape(plan.read_sizes(ROWS), job)
    lines = ledger.valid_steps(undisturbed[1])
    assert [e["padded"] for e in lines] == [shape.tokens * math.ceil(e["rows"] / 2) for e in lines]
    assert found["padding_share"] == pytest.approx(
        1 - sum(e["tokens"] for e in lines) / sum(e["padded"] for e in lines)
    )


@pytest.mark.parametrize("packing", [False, True])
def test_a_trained_row_is_continued_to_the_bit(tmp_path, monkeypatch, packing):
    """With early stopping, which keeps the row of the best step too."""
    job = a_job(
        train_end_token=True,
        packing=packing,
        weight_decay=0.3,
        eval_steps=2,
        early_stopping_patience=9,
    )
    undisturbed = whole_run(tmp_path / "whole", job)
    row = next(name for name in undisturbed[0] if end_row.STORED in name)
    start = dict(small_model(job).named_parameters())[row]
    assert (undisturbed[0][row] - start).abs().max() > 0.01
    at_call(monkeypatch, 7, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path / "stopped", job)
    same_run(tmp_path / "stopped", session(tmp_path / "stopped", job), undisturbed)
    with pytest.raises(UserError, match="trainable_parameters: checkpoint"):
        session(tmp_path / "stopped", a_job(**{**job.model_dump(), "train_end_token": False}))


# --------------------------------------------------------------------------------------------------
# the ledger, also beside transformers' own numbers


def test_ledger_lines_of_several_steps_never_span_a_checkpoint(
    tmp_path, monkeypatch, uninterrupted
):
    """Else the line written after a resume would replace a longer one, and steps would be lost from loss_mean."""
    at_call(monkeypatch, 12, crash)
    job = a_job(logging_steps=5)
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path, job)
    session(tmp_path, job)
    entries = ledger.read_ledger(tmp_path / "metrics.jsonl")
    found, wanted = ledger.summarise(entries), ledger.summarise(uninterrupted[1])
    assert sum(e["steps"] for e in ledger.valid_steps(entries)) == STEPS
    assert found["steps_repeated"] == 1
    assert found["loss_mean"] == pytest.approx(wanted["loss_mean"], rel=1e-12)
    assert [e["epoch"] for e in ledger.valid_steps(entries)] == pytest.approx(
        [e["step"] / 6 for e in ledger.valid_steps(entries)], abs=1e-4
    )


def test_the_epoch_of_a_line_is_that_of_its_step_also_when_the_next_was_dropped(
    tmp_path, monkeypatch
):
    at_call(monkeypatch, 7, interrupt)
    with pytest.raises(KeyboardInterrupt):
        session(tmp_path, a_job(logging_steps=5, save_steps=100))
    (line,) = ledger.valid_steps(ledger.read_ledger(tmp_path / "metrics.jsonl"))
    assert (line["step"], line["steps"], line["epoch"]) == (3, 3, 0.5)


def test_the_ledger_is_right_where_trainoutput_is_not(tmp_path, monkeypatch):
    """Both resume two steps before the end of 40: TrainOutput gives their loss over all steps, and all rows over their seconds."""
    job = a_job(lora_dropout=0.0, max_steps=40, save_steps=38, dataloader_num_workers=0)

    class StopsAt38(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step == 38

    def trainer(*callbacks):
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "theirs"),
            per_device_train_batch_size=4,
            max_steps=40,
            save_steps=38,
            logging_steps=1,
            learning_rate=1e-2,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=True,
        )
        return transformers.Trainer(
            small_model(job),
            arguments,
            train_dataset=ROWS,
            callbacks=list(callbacks),
            data_collator=lambda rows: {
                "input_ids": pad([r["input_ids"] for r in rows], 0),
                "labels": pad([r["labels"] for r in rows], IGNORED),
            },
        )

    trainer(StopsAt38()).train()
    resumed = trainer()
    theirs = resumed.train(resume_from_checkpoint=str(tmp_path / "theirs" / "checkpoint-38"))
    logged = [e["loss"] for e in resumed.state.log_history if "loss" in e]
    assert (theirs.global_step, len(logged)) == (40, 40)
    assert theirs.training_loss < np.mean(logged) / 10
    assert theirs.training_loss == pytest.approx(sum(logged[-2:]) / 40, rel=0.05)
    assert theirs.metrics["train_samples_per_second"] * theirs.metrics[
        "train_runtime"
    ] == pytest.approx(160, rel=0.02), "8 rows were trained in it"

    losses, rows, seconds = {}, [], []

    def timed(take, masters, step, current, *rest):
        begun = time.monotonic()
        done = run_step(take, masters, step, current, *rest)
        losses[step] = done.loss
        rows.append(len(current["rows"]))
        seconds.append(time.monotonic() - begun)
        return done

    run_step = step_module.run_step
    monkeypatch.setattr(step_module, "run_step", timed)
    at_call(monkeypatch, 77, crash)  # the first of two micro-batches of step 39
    begun = time.monotonic()
    with pytest.raises(RuntimeError, match="machine stopped"):
        session(tmp_path / "ours", job)
    middle = time.monotonic()
    session(tmp_path / "ours", job)
    walls = middle - begun, time.monotonic() - middle
    found = ledger.summarise(ledger.read_ledger(tmp_path / "ours" / "metrics.jsonl"))
    assert (found["steps"], found["sessions"], found["steps_repeated"]) == (40, 2, 0)
    assert found["loss_mean"] == pytest.approx(sum(losses.values()) / 40, rel=1e-12)
    assert found["loss_mean"] == pytest.approx(np.mean(logged), rel=0.05)
    assert sum(seconds) <= found["seconds"] + 0.01
    assert found["seconds"] <= sum(walls)
    assert sum(rows) == sum(
        len(b)
        for _, step in itertools.islice(plan.iterate_steps(np.array(ROWS["length"]), 0, job), 40)
        for b in step
    )
    assert found["samples_per_second_with_warm_up"] == pytest.approx(
        sum(rows) / found["seconds"], rel=1e-3
    )
    lines = ledger.valid_steps(ledger.read_ledger(tmp_path / "ours" / "metrics.jsonl"))
    assert [e["session"] for e in lines] == [1] * 38 + [2] * 2
    assert all(e["seconds"] >= own for e, own in zip(lines, seconds, strict=True))
    warm = [
        n for n in range(40) if n not in (0, 38)
    ]  # the first step of a session loads and takes memory
    assert found["samples_per_second"] == pytest.approx(
        sum(rows[n] for n in warm) / sum(lines[n]["seconds"] for n in warm), rel=1e-9
    )
    assert 2 * found["samples_per_second"] < sum(rows) / sum(e["seconds"] for e in lines[-2:]), (
        "what theirs would be for this run"
    )
