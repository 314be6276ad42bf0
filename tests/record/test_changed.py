"""Which changed parameters a run continues with, and which it refuses.

.venv/bin/python -m pytest tests/record/test_changed.py
"""

import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.runs_by_hand import by_hand, finish, finished, statuses
from lib.common import files
from lib.common.errors import UserError
from lib.params import Params, continuing
from lib.record import opening


def interrupted(folder, job):
    """A run of a job that is prepared, and stopped in training with a checkpoint."""
    for stage in ("prepare", "train"):
        run = opening.open_run(folder, job)
        run.begin_attempt(stage, "make")
        if stage == "prepare":
            run.stage(stage)["output"] = "rows"
            run.end_attempt(stage, "finished", "ok")
        else:
            run.end_attempt(stage, "interrupted", "stopped")
        files.unlock_folder(folder)
    checkpoint = folder / "checkpoints" / "step-000004"
    checkpoint.mkdir(parents=True)
    files.write_json(checkpoint / "checkpoint.json", {"step": 4, "base": "b"}, sealed=True)


def reopened(folder, job):
    """Open the run with another job, begin training, and return whether its checkpoint is there."""
    run = opening.open_run(folder, job)
    run.begin_attempt("train", "make")
    files.unlock_folder(folder)
    return (folder / "checkpoints" / "step-000004").exists()


# --------------------------------------------------------------------------------------------------
# half the micro-batch


def batch(rows, accumulation, **more):
    return Params(
        per_device_train_batch_size=rows, gradient_accumulation_steps=accumulation, **more
    )


@pytest.mark.parametrize(
    "other", [batch(2, 8), batch(1, 16), batch(16, 1), batch("auto", 4)], ids=str
)
def test_another_micro_batch_with_the_same_rows_a_step_continues(folder, other):
    interrupted(folder, batch(4, 4))
    assert reopened(folder, other)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (batch(2, 4), "stay the same"),
        (batch(2, 9), "stay the same"),
        (batch(2, 8, lora_r=4), "lora_r: recorded 8, now 4"),
        (batch(2, 8, packing=True), "packing: recorded False, now True"),
    ],
)
def test_one_that_changes_a_step_is_refused(folder, other, why):
    interrupted(folder, batch(4, 4))
    with pytest.raises(UserError, match=why):
        opening.open_run(folder, other)
    assert (folder / "checkpoints" / "step-000004").exists()


@pytest.mark.parametrize(
    "more", [{"packing": True}, {"lora_dropout": 0.1}, {"neftune_noise_alpha": 5.0}]
)
def test_where_something_else_depends_on_it_it_is_refused_and_says_why(folder, more):
    interrupted(folder, batch(4, 4, **more))
    with pytest.raises(UserError, match="random numbers depend on the micro-batch"):
        opening.open_run(folder, batch(2, 8, **more))


def test_a_finished_training_does_not_run_again_for_it(folder):
    finished(folder)
    opening.open_run(folder, batch(2, 8))
    assert statuses(folder) == ["finished"] * 3


# --------------------------------------------------------------------------------------------------
# more epochs


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"num_train_epochs": 2.0}),
        ({"num_train_epochs": 0.5}, {}),
        ({"max_steps": 50}, {"max_steps": 51}),
        ({"max_steps": 50}, {"max_steps": 60, "num_train_epochs": 3.0}),
    ],
)
def test_a_longer_training_continues_before_and_after_its_end(folder, first, then):
    interrupted(folder, Params(**first))
    assert reopened(folder, Params(**then))
    run = opening.open_run(folder, Params(**then))
    run.end_attempt("train", "finished", "ok")
    files.unlock_folder(folder)
    opening.open_run(folder, Params(**then))
    assert statuses(folder)[1] == "finished"


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"num_train_epochs": 2.0}, {"num_train_epochs": 1.0}),
        ({"max_steps": 50}, {"max_steps": 49}),
        ({"max_steps": 50}, {}),
        ({}, {"max_steps": 50}),
        ({}, {"num_train_epochs": 2.0, "learning_rate": 1e-4}),
        ({}, {"num_train_epochs": 2.0, "max_rows": 5}),
    ],
)
def test_a_shorter_or_another_one_is_refused(folder, first, then):
    interrupted(folder, Params(**first))
    with pytest.raises(UserError, match=r"made with other parameters"):
        opening.open_run(folder, Params(**then))


def test_more_epochs_after_the_end_run_training_again_from_its_checkpoint(folder, capsys):
    finished(folder)
    (folder / "checkpoints" / "step-000004").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("one epoch\n")
    assert reopened(folder, Params(num_train_epochs=2.0))
    assert "train: num_train_epochs=2 makes it longer" in capsys.readouterr().out
    assert (folder / "metrics.jsonl").read_text() == "one epoch\n"
    assert statuses(folder)[:2] == ["finished", "running"]


def test_without_checkpoints_more_epochs_name_the_other_way(folder):
    finished(folder)
    before = (folder / "run.json").read_bytes()
    with pytest.raises(
        UserError, match=r"(?s)num_train_epochs=2: its checkpoints are gone.*start_from="
    ):
        opening.open_run(folder, Params(num_train_epochs=2.0))
    assert (folder / "run.json").read_bytes() == before


@given(
    st.tuples(st.floats(0.1, 9), st.integers(-1, 9)),
    st.tuples(st.floats(0.1, 9), st.integers(-1, 9)),
)
def test_no_training_is_longer_than_another_in_both_directions(one, other):
    assert not (continuing.is_longer(*one, *other) and continuing.is_longer(*other, *one))
    assert not continuing.is_longer(*one, *one)


# --------------------------------------------------------------------------------------------------
# a base that was moved


def base_at(folder, weights=b"w" * 100):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


@pytest.fixture
def trained(folder, tmp_path):
    """A finished run of a local base, which was then moved; return (the run, the base)."""
    old = base_at(tmp_path / "old" / "base")
    job, run = by_hand("prepare", base_model=str(old))
    finish(run, "prepare")
    for stage in ("train", "export"):
        _, run = by_hand(stage)
        run.data["fingerprints"]["base"] = files.fingerprint_weights(old)
        finish(run, stage)
    new = tmp_path / "new"
    new.mkdir()
    old.rename(new / "base")
    return folder, new / "base"


def test_a_moved_base_can_be_named_again(trained, capsys):
    folder, base = trained
    opening.open_run(folder, Params(base_model=str(base)))
    assert "holds the same base" in capsys.readouterr().out
    assert statuses(folder) == ["finished"] * 3
    assert str(base) in (folder / "params.yaml").read_text()


@pytest.mark.parametrize("what", ["weights", "config", "nothing"])
def test_another_base_under_that_name_is_refused(trained, tmp_path, what):
    folder, base = trained
    if what == "weights":
        (base / "model.safetensors").write_bytes(b"v" * 100)
    elif what == "config":
        (base / "config.json").write_text('{"a": 1}')
    else:
        base = tmp_path / "nothing here"
    with pytest.raises(UserError, match="base_model: recorded"):
        opening.open_run(folder, Params(base_model=str(base)))


def test_a_base_with_the_same_ends_but_another_middle_is_refused(trained):
    """As another fine-tune of the same base has them."""
    folder, base = trained
    large = bytearray(3 * 2**20)
    (base / "model.safetensors").write_bytes(large)
    data = files.read_json(folder / "run.json", "record")
    data["fingerprints"].update(
        base=files.fingerprint_weights(base),
        base_files={"model.safetensors": files.sha256(base / "model.safetensors")},
    )
    files.write_json(folder / "run.json", data, sealed=True)
    large[len(large) // 2] = 1
    (base / "model.safetensors").write_bytes(large)
    assert files.fingerprint_weights(base) == data["fingerprints"]["base"]
    with pytest.raises(UserError, match="base_model: recorded"):
        opening.open_run(folder, Params(base_model=str(base)))


def test_a_base_that_moved_in_the_middle_of_training_is_known_by_the_checkpoint(folder, tmp_path):
    base = base_at(tmp_path / "base")
    interrupted(folder, Params(base_model=str(base)))
    state = {"step": 4, "base": files.fingerprint_weights(base)}
    files.write_json(folder / "checkpoints/step-000004/checkpoint.json", state, sealed=True)
    moved = pathlib.Path(base.rename(tmp_path / "elsewhere"))
    assert reopened(folder, Params(base_model=str(moved)))
    assert json.loads((folder / "run.json").read_text())["run"] == "job"
