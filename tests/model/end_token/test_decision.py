"""Whether the end token's row is trained: the measurement on the base, and what else decides.

python -m pytest tests/model/end_token/test_decision.py
"""

import json
import math
import types

import datasets
import pytest
import torch

from helpers.small_training import small_model
from helpers.tiny_models import a_job, shaken
from lib.common import files
from lib.model import adapter, load
from lib.model.end_token import decision, end_row
from lib.record import opening
from lib.training import evaluate
from lib.training.masters import Masters

TOKEN = 7
IDS = torch.tensor([[2, 5, TOKEN, 9, TOKEN], [2, 8, 30, TOKEN, 11]])
LABELS = torch.tensor([[-100, 5, TOKEN, 9, TOKEN], [-100, -100, 30, TOKEN, 11]])

NEVER, OFTEN = -32.1, -0.4  # measured in the pretrained Gemma 3 270M; as in a tuned base


def write_tokenizer(folder, token=TOKEN):
    tokens = [{"id": token, "content": "<end_of_turn>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens}))
    return folder


@pytest.fixture
def decide(tmp_path):
    """Return decide(log-probability, ...), which settles a job in a run folder."""
    write_tokenizer(tmp_path)
    run = opening.open_run(tmp_path / "run", a_job(), "train")

    def call(log_probability=None, **changes):
        net = small_model(a_job())
        measured = (
            {} if log_probability is None else {"ends": 64, "log_probability": log_probability}
        )
        job = a_job(**{"train_end_token": "auto", **changes})
        job, end = decision.settle(net, job, run, tmp_path, measured)
        assert (end_row.find(net) is not None) == job.train_end_token == end["trained"]
        assert run.data["end_token"] == end
        return end

    yield call, run
    files.unlock_folder(run.folder)


@pytest.mark.parametrize(
    ("measured", "changes", "trained", "because"),
    [
        (NEVER, {}, True, "the base cannot end an answer"),
        (OFTEN, {}, False, "the base can end an answer"),
        (-math.log(96), {}, False, "can end"),  # a blind draw, as in a model with random weights
        (-math.log(96) - 3.1, {}, True, "cannot end"),
        (None, {}, False, "no answer ends"),
        (NEVER, {"train_end_token": False}, False, "as set"),
        (OFTEN, {"train_end_token": True}, True, "as set"),
    ],
)
def test_the_measurement_decides_unless_the_job_does(decide, measured, changes, trained, because):
    end = decide[0](measured, **changes)
    assert end["trained"] is trained
    assert because in decision.describe(end)
    assert (measured is None) or f"{measured:.1f}" in decision.describe(end)


def test_a_training_with_a_checkpoint_keeps_its_decision(decide):
    call, run = decide
    first = call(NEVER)
    (run.folder / "checkpoints" / "step-000002").mkdir(parents=True)
    assert call(OFTEN) == first
    del run.data["end_token"]  # a checkpoint of an earlier version, which trained no row
    assert call(NEVER)["trained"] is False


def test_auto_follows_the_adapter_it_begins_from(decide, tmp_path):
    for row in (False, True):
        net = small_model(a_job(train_end_token=row))
        folder = tmp_path / f"adapter-{row}"
        adapter.save(net, Masters(net, a_job()).weights, folder, "some/base", "")
        end = decide[0](OFTEN, start_from=str(folder))
        assert end["trained"] is row
        assert end["because"] == "as in the adapter it begins from"


def test_the_measurement_is_the_mean_log_probability_where_answers_end(tmp_path):
    net = shaken(small_model(a_job()))
    labels = LABELS.tolist()
    rows = datasets.Dataset.from_dict({"input_ids": IDS.tolist(), "labels": labels})
    measured = evaluate.measure_ends(net, rows, write_tokenizer(tmp_path))
    with torch.no_grad():
        known = torch.log_softmax(net(input_ids=IDS).logits.float(), -1)[..., TOKEN]
    ends = [known[0, 1], known[0, 3], known[1, 2]]  # before each trained end
    assert measured == {"ends": 3, "log_probability": pytest.approx(float(sum(ends)) / 3, abs=1e-3)}
    assert evaluate.measure_ends(net, rows, write_tokenizer(tmp_path, 90)) == {}


@pytest.mark.parametrize(
    ("changes", "is_open"),
    [
        ({}, True),
        ({"train_end_token": True}, False),
        ({"train_end_token": False}, False),
        ({"start_from": "runs/first/adapter"}, False),
        ({"full_finetuning": True}, False),
    ],
)
def test_nothing_is_measured_where_something_else_decides(tmp_path, changes, is_open):
    job = a_job(**{"train_end_token": "auto", **changes})
    run = types.SimpleNamespace(folder=tmp_path)
    assert decision.is_open(job, run) == is_open
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    assert not decision.is_open(job, run)


@pytest.mark.slow
def test_the_pretrained_270m_cannot_end_an_answer(bundled_base):
    """One made-up row tells, so far is the measure from the limit."""
    tokenizer = load.load_tokenizer(bundled_base)
    net = load.load_base(bundled_base, a_job())
    token = end_row.find_token(bundled_base)
    ids = tokenizer("Call for help.<end_of_turn>").input_ids
    rows = datasets.Dataset.from_dict({"input_ids": [ids], "labels": [ids]})
    assert token == ids[-1] == 106
    end = decision._decide(
        a_job(train_end_token="auto"), evaluate.measure_ends(net, rows, bundled_base), 262144
    )
    assert end["trained"]
    assert end["log_probability"] < end["limit"] - 5


def test_full_fine_tuning_has_no_row_of_its_own_and_says_so():
    model = small_model(a_job())
    run = types.SimpleNamespace(data={})
    job = a_job(full_finetuning=True)
    measured = {"log_probability": -30.0, "ends": 12}
    settled, end = decision.settle(model, job, run, None, measured)
    assert settled == job
    assert not end["trained"]
    assert run.data["end_token"] == end
    told = decision.describe(end)
    assert told.startswith("All rows are trained, the end token's too. Where 12 training answers")
    assert "is not trained" not in told
