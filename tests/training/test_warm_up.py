"""A warm-up longer than training: planned aloud, a caution on pages, and nothing learnt is not exported.

.venv/bin/python -m pytest tests/training/test_warm_up.py
"""

import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from helpers.small_training import a_job, session, small_model
from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter, start
from lib.pages import cautions
from lib.training import plan

SCHEDULES = ("linear", "cosine", "constant")


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.sampled_from(SCHEDULES))
def test_the_plan_counts_every_step_once_by_its_rate(total, warmup, done, schedule):
    job = a_job(warmup_steps=warmup, lr_scheduler_type=schedule)
    done = min(done, total)
    told = plan.describe_rates(done, total, job)
    rates = [plan.learning_rate(step, total, job) for step in range(total)]
    at_zero, rising, at_peak, falling = (
        told[key]
        for key in (
            "steps at a learning rate of 0",
            "steps in which it rises",
            "steps at its peak of 0.01",
            "steps in which it falls",
        )
    )
    assert at_zero + rising + at_peak + falling == total - done
    assert at_zero == rates[done:].count(0.0)
    assert at_peak == rates[done:].count(job.learning_rate)
    assert told["highest learning rate"] == max(rates[done:], default=0)
    assert told.get("steps that are done already", 0) == done
    assert ("caution" in told) == (max(rates) < job.learning_rate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 1}, "the only step has a learning rate of 0"),
        ({"max_steps": 2}, "the warm-up of 2 steps is not over after all 2 steps"),
        ({"warmup_steps": 6}, "the warm-up of 6 steps is not over after all 6 steps"),
        ({"max_steps": 3}, ""),
        ({"max_steps": 1, "warmup_steps": 0}, ""),
    ],
)
def test_the_plan_of_a_job_says_what_its_warm_up_does(changes, words):
    lengths = plan.np.full(23, 9)
    told = plan.describe_plan(plan.Sizes(lengths, lengths // 2), 0, a_job(**changes), None)
    assert words in told["caution"] if words else "caution" not in told


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"steps": 1}, "the weights equal their start"),
        (
            {"steps": 2},
            "never reached its peak of 0.01: 2 steps, in a warm-up of 4. .* 0.0025 (25%",
        ),
        ({"steps": 4}, "4 steps, in a warm-up of 4. .* 0.0075"),
        ({"steps": 9, "best_step": 3}, "the weights kept are of step 3, .* 0.005"),
        ({"steps": 9, "best_step": 5}, ""),
        ({"steps": 5}, ""),
        ({}, ""),
    ],
)
def test_weights_from_within_the_warm_up_are_a_caution(train, words):
    said = cautions.list_warnings(
        {"stages": FINISHED}, {"train": train}, "x", a_job(warmup_steps=4)
    )
    if not words:
        assert said == []
        return
    [text] = said
    assert all(part in text for part in words.split(" .* "))


FINISHED = {s: {"status": "finished", "attempts": [{}]} for s in ("prepare", "train", "export")}


# --------------------------------------------------------------------------------------------------
# what equals its start


def trained(folder, **changes):
    """Train as the notebook does, and return what merge reads of the run."""
    job = a_job(lora_dropout=0.0, **changes)
    masters = session(folder, job)
    adapter.save(small_model(job), masters.weights, folder / "adapter", job.base_model, "")
    files.write_json(folder / "results.json", {"train": {"steps": job.max_steps}})
    data = {}
    if job.start_from:
        data["start"] = start.check_start(job)
    return types.SimpleNamespace(folder=folder, data=data)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("first") / "run", max_steps=2)


def test_an_adapter_of_zeros_is_not_exported(first, tmp_path):
    start.refuse_untrained(first)
    run = trained(tmp_path / "job", max_steps=1)
    with pytest.raises(
        UserError, match=r"(?s)run `job` equals its start.*steps: 1.*max_steps="
    ) as e:
        start.refuse_untrained(run)
    assert len(str(e.value)) < 800


def test_an_adapter_that_equals_the_one_it_began_from_is_not_exported(first, tmp_path):
    """Whatever the type of that file, and whether it is still there."""
    began = str(first.folder / "adapter")
    run = trained(tmp_path / "job", max_steps=1, start_from=began)
    with pytest.raises(UserError, match="equals that of an adapter of no run .* began"):
        start.refuse_untrained(run)
    older = types.SimpleNamespace(folder=run.folder, data={"start": {**run.data["start"]}})
    del older.data["start"]["weights"]
    with pytest.raises(UserError, match="equals that of"):
        start.refuse_untrained(older)
    start.refuse_untrained(trained(tmp_path / "moved", max_steps=2, start_from=began))


def test_the_hash_of_weights_is_of_numbers_alone(first, tmp_path):
    weights = load_file(first.folder / "adapter" / start.WEIGHTS)
    known = start.hash_weights(first.folder / "adapter" / start.WEIGHTS)
    coarse = {name: weight.bfloat16() for name, weight in weights.items()}
    renamed = {
        n.replace("model.layers", "model.language_model.layers"): w for n, w in weights.items()
    }
    changed = {
        name: weight + (index == 0) * 1e-6 for index, (name, weight) in enumerate(weights.items())
    }
    hashes = []
    for content in (coarse, {n: w.float() for n, w in coarse.items()}, renamed, changed):
        save_file(content, tmp_path / "x.safetensors")
        hashes.append(start.hash_weights(tmp_path / "x.safetensors"))
    assert hashes[0] == hashes[1]
    assert hashes[2] == known
    assert hashes[3] != known
