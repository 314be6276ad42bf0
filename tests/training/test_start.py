"""Training that begins from another adapter: its exact weights, and what of it is recorded.

.venv/bin/python -m pytest tests/training/test_start.py
"""

import shutil

import pytest
import torch

from helpers.small_training import a_job, evals, session, small_model, whole_run
from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.model import adapter, start
from lib.pages import card_tables, cautions
from lib.record import ledger, opening


def saved(folder, job, masters):
    """Save an adapter as the train notebook does."""
    adapter.save(small_model(job), masters.weights, folder, job.base_model, "")
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """(the masters of a finished training, its adapter's folder, its held-out losses)."""
    folder = tmp_path_factory.mktemp("first") / "run"
    masters = session(folder)
    return masters, saved(folder / "alone", a_job(), masters), evals(folder)


def test_a_training_begins_with_the_very_weights(first, tmp_path):
    """In float32, so the held-out loss before is the one after of the training it begins from."""
    masters, folder, losses = first
    job = a_job(start_from=str(folder))
    read = adapter.read_weights(small_model(job), str(folder))
    assert read.keys() == masters.weights.keys()
    assert all(torch.equal(read[name], weight) for name, weight in masters.weights.items())
    session(tmp_path / "run", job)
    assert evals(tmp_path / "run")[0] == ("before", 0, losses[-1][2])
    found = ledger.summarise(ledger.read_ledger(tmp_path / "run" / "metrics.jsonl"))
    assert found["start_from"] == str(folder)


def test_it_goes_on_without_that_adapter_once_it_has_a_checkpoint(first, tmp_path):
    folder = shutil.copytree(first[1], tmp_path / "adapter")
    job = a_job(start_from=str(folder))
    weights, _ = whole_run(tmp_path / "run", job)
    shutil.rmtree(folder)
    again, _ = whole_run(tmp_path / "run", job)
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())


def test_a_trained_row_goes_on_from_its_numbers_and_needs_the_jobs_consent(tmp_path):
    job = a_job(train_end_token=True)
    masters = session(tmp_path / "run", job)
    folder = saved(tmp_path / "alone", job, masters)
    read = adapter.read_weights(small_model(job), str(folder))
    assert all(torch.equal(read[name], weight) for name, weight in masters.weights.items())
    assert start.hash_weights(folder / start.WEIGHTS)
    with pytest.raises(UserError, match="the adapter has a trained row, this job False"):
        start.check_start(a_job(start_from=str(folder)))
    config = files.read_json(folder / start.CONFIG, "configuration")
    files.write_json(folder / start.CONFIG, {**config, start.ROWS: [8]})
    with pytest.raises(UserError, match=r"has trained rows \[8\], but here they are \[7\]"):
        adapter.read_weights(small_model(job), str(folder))


def test_another_start_is_another_job(first, tmp_path):
    session(tmp_path / "run", a_job(start_from=str(first[1])))
    with pytest.raises(UserError, match="start_from: checkpoint .*, now \n"):
        session(tmp_path / "run", a_job())


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("multimodal", [False, True])
def test_what_is_saved_is_read_back(tmp_path, dora, multimodal):
    job = a_job(use_dora=dora)
    net = small_model(job)
    net.get_base_model().part_of_multimodal = multimodal
    weights = {name: torch.randn(p.shape) for name, p in adapter.trainable(net).items()}
    adapter.save(net, weights, tmp_path / "adapter", "some/base", "")
    read = adapter.read_weights(net, str(tmp_path / "adapter"))
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], weight) for name, weight in weights.items())


# --------------------------------------------------------------------------------------------------
# what does not fit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_r": 4}, "lora_r: the adapter has 2, this job 4"),
        ({"lora_alpha": 16}, "lora_alpha: the adapter has 8, this job 16"),
        ({"use_rslora": True}, "use_rslora: the adapter has False, this job True"),
        ({"use_dora": True}, "use_dora: the adapter has False, this job True"),
        (
            {"finetune_mlp_modules": False},
            "finetune_mlp_modules: the adapter is on down_proj, gate_proj, up_proj, this job on none",
        ),
        ({"base_model": "other/base"}, "names `some/base` as its base"),
    ],
)
def test_another_shape_or_base_is_refused_with_the_difference(first, changes, words):
    with pytest.raises(UserError) as error:
        start.check_start(a_job(start_from=str(first[1]), **changes))
    assert words in str(error.value)


def test_every_difference_is_named_at_once(first):
    with pytest.raises(UserError, match=r"(?s)lora_r.*use_dora.*finetune_mlp"):
        start.check_start(
            a_job(start_from=str(first[1]), lora_r=4, use_dora=True, finetune_mlp_modules=False)
        )


@pytest.mark.parametrize("name", ["nothing", "/nowhere/at/all", "lib"])
def test_no_adapter_there(name):
    with pytest.raises(UserError, match="there is no such run or folder"):
        start.find_adapter(name)


def test_a_damaged_weight_file(first, tmp_path):
    folder = shutil.copytree(first[1], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        start.check_start(a_job(start_from=str(folder)))


def test_an_adapter_of_fewer_layers_is_refused(first, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(first[1], tmp_path / "adapter")
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: w for name, w in weights.items() if "layers.3." not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match="have no counterpart of the same shape"):
        adapter.read_weights(small_model(a_job()), str(folder))


# --------------------------------------------------------------------------------------------------
# the run behind it


@pytest.fixture
def runs(first, tmp_path, monkeypatch):
    """The runs folder, with a run `a` whose adapter is the first, and a base folder."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"w" * 64)
    job = a_job()
    run = opening.open_run(tmp_path / "runs" / "a", job)
    run.begin_attempt("train", "make")
    shutil.copytree(first[1], run.folder / "adapter")
    run.stage("train")["artifacts"] = files.describe_files(run.folder, ["adapter"])
    run.data["fingerprints"].update(base=files.fingerprint_weights(base), data="rows of a")
    run.end_attempt("train", "finished", "ok")
    files.unlock_folder(run.folder)
    yield tmp_path / "runs"
    files.unlock_folder(tmp_path / "runs" / "b")


def open_b(runs, start_from="a"):
    return opening.open_run(runs / "b", a_job(start_from=start_from))


def test_a_run_is_named_as_the_start_and_recorded(runs, tmp_path, first):
    job = a_job(start_from="a")
    run = open_b(runs)
    run.data["fingerprints"]["data"] = "rows of b"
    told = start.note_start(run, job, tmp_path / "base")
    assert "the adapter of run `a`" in told
    known = files.read_json(run.folder / "run.json", "record")["start"]
    assert known == {
        "start_from": "a",
        "sha256": files.sha256(first[1] / "adapter_model.safetensors"),
        "weights": start.hash_weights(first[1] / "adapter_model.safetensors"),
        "base_by": "fingerprint",
        "run": "a",
        "data": "rows of a",
    }
    [warning] = cautions._warn_of_start(run.data)
    assert "began from the adapter of run `a`" in warning
    assert "held-out numbers may look too good" in warning
    run.data["fingerprints"]["data"] = "rows of a"
    assert "too good" not in cautions._warn_of_start(run.data)[0], "the same split"
    recipe = card_tables.describe_recipe(job, {"start_from": "a"}, run.data)
    assert "the adapter of run `a`" in recipe["began from"]
    assert "adapter it began from" in card_tables._loss_table({"start_from": "a"})[0][1]
    assert card_tables._loss_table({})[0][1] == "base"


def test_its_base_must_be_the_same_by_its_bytes(runs, tmp_path):
    (tmp_path / "base" / "model.safetensors").write_bytes(b"v" * 64)
    with pytest.raises(
        UserError, match="was trained on another base: `some/base` with fingerprint"
    ):
        start.check_start(a_job(start_from="a"), tmp_path / "base")


@pytest.mark.parametrize("given", ["a", "path", "adapter"])
def test_a_run_may_be_given_by_its_name_or_its_place(runs, given):
    named = {"a": "a", "path": str(runs / "a"), "adapter": str(runs / "a" / "adapter")}[given]
    assert start.check_start(a_job(start_from=named))["run"] == "a"


def test_a_run_that_is_not_trained_or_damaged_is_no_start(runs):
    path = runs / "a" / "adapter" / "adapter_config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(UserError, match="training of run `a` is finished, but adapter/adapter_con"):
        start.check_start(a_job(start_from="a"))


def test_the_own_adapter_is_no_start(runs, tmp_path):
    run = opening.open_run(runs / "a", a_job(start_from="a"), "train")
    with pytest.raises(UserError, match="this run's own adapter"):
        start.note_start(run, a_job(start_from="a"), tmp_path / "base")
    files.unlock_folder(run.folder)


def test_with_a_checkpoint_the_record_stays_whatever_became_of_the_adapter(runs, tmp_path):
    run = open_b(runs)
    told = start.note_start(run, a_job(start_from="a"), tmp_path / "base")
    (run.folder / "checkpoints" / "step-000002").mkdir(parents=True)
    shutil.rmtree(runs / "a")
    assert start.note_start(run, a_job(start_from="a"), tmp_path / "base") == told


def test_without_the_parameter_a_new_adapter_is_made_and_nothing_recorded(runs, tmp_path):
    run = open_b(runs, "")
    assert start.note_start(run, a_job(), tmp_path / "base") == "a new adapter"
    assert "start" not in run.data
    assert cautions._warn_of_start(run.data) == []
    assert params.FIELDS["start_from"].default == ""
