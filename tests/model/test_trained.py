"""What a job trains: combinations that are refused, what full fine-tuning counts, saves and begins from.

python -m pytest tests/model/test_trained.py
"""

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import tiny_gemma3
from helpers.tiny_models import a_job, make_multimodal
from lib import params
from lib.common import limits
from lib.common.errors import UserError
from lib.model import adapter, device, load, options, start, trained
from lib.params import full_conflicts, number_bytes
from lib.record import run_record


def full(**changes):
    return a_job(full_finetuning=True, **changes)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_gemma3.build(tmp_path_factory.mktemp("full") / "base")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load_in_4bit": True}, "which 4 bits cannot hold. Set load_in_4bit: false"),
        ({"lora_r": 16}, "trains no adapter, so lora_r=16 would have no effect. Leave it out"),
        (
            {"lora_alpha": 32, "finetune_mlp_modules": False},
            "so lora_alpha=32, finetune_mlp_modules=False would have no effect. Leave them out",
        ),
        ({"torch_compile": True, "packing": True}, "torch_compile records steps in which the base"),
        ({"fsdp": "full_shard"}, "fsdp: full_shard shards frozen weights only"),
        ({"backend": "unsloth"}, "unsloth"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_line(changes, words):
    with pytest.raises(UserError) as error:
        options.check_options(full(**changes))
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert words in "".join(options.list_refusals(full(**changes))), "make doctor tells it too"


def test_the_defaults_of_an_adapter_are_no_contradiction():
    options.check_options(full())
    assert options.choose_backend(full())[0] == "transformers"
    assert full_conflicts.list_conflicts(a_job(lora_r=16)) == []


def test_memory_is_counted_before_the_base_is_read(base, monkeypatch):
    numbers = sum(t.numel() for t in load_file(base / "model.safetensors").values())
    assert number_bytes.full_training(numbers, "adamw_torch") == numbers * 20
    assert number_bytes.full_training(numbers, "adamw_8bit") == numbers * 14
    monkeypatch.setattr(limits, "free_memory", lambda: numbers * 19)
    monkeypatch.setattr(load, "_read_language_model", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match="Not enough memory for full_finetuning of"):
        load.load_for_training(base, full(precision="bf16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "card_has_bfloat16", lambda: True)
    monkeypatch.setattr(device, "card", lambda: device.Card("a card", numbers * 19 / 1e9))
    with pytest.raises(UserError, match="(?s)Not enough memory on the card .* adamw_8bit"):
        trained.require_room(base, full(precision="bf16"))
    trained.require_room(base, a_job(precision="bf16"))  # an adapter is small


@pytest.mark.slow
def test_the_whole_language_model_is_trained_and_nothing_else(tiny_gemma3n, tmp_path):
    folder = make_multimodal(tiny_gemma3n, tmp_path / "base", shards=2)
    net = load.load_for_training(folder, full(precision="bf16"))
    count, total = adapter.count_parameters(net)
    tensors = load_file(tiny_gemma3n / "model.safetensors")
    assert count == total == sum(tensor.numel() for tensor in tensors.values())
    assert trained.describe(net, full()) == {
        "trained tensors, of the whole language model": len(tensors)
    }
    assert not hasattr(net, "peft_config")
    net.get_input_embeddings().weight.requires_grad_(False)
    with pytest.raises(UserError, match="would train .* of .* parameters"):
        trained.describe(net, full())


def test_weights_that_transformers_leaves_out_are_told(base, tmp_path):
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.self_attn.sinks.weight"] = torch.ones(4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights that transformers did not load, for .*sinks"):
        load.load_for_training(tmp_path, full())


# --------------------------------------------------------------------------------------------------
# saved, and begun from


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    return tmp_path


def make_run(runs, name, part, status="finished"):
    folder = runs / name
    folder.mkdir()
    entry = {"status": "finished", "attempts": [{}], "artifacts": [], "inputs": {}}
    stages = {stage: dict(entry) for stage in run_record.STAGES}
    stages["train"]["status"] = status
    run = run_record.Run(folder, {"run": name, "fingerprints": {}, "stages": stages})
    if part == "weights":
        (folder / "weights").mkdir()
        save_file({"norm.weight": torch.ones(2)}, folder / "weights" / "model.safetensors")
    elif part:
        (folder / part).mkdir()
        for file in (start.CONFIG, start.WEIGHTS):
            (folder / part / file).write_text("{}")
    run.save()
    return folder


def test_what_is_saved_has_the_masters_numbers_and_replaces_the_other_kind(base, tmp_path):
    net = load.load_for_training(base, full(precision="fp32"))
    masters = {name: p.detach() + 1e-3 for name, p in adapter.trainable(net).items()}
    (tmp_path / "adapter").mkdir()
    assert trained.save(net, masters, tmp_path, full(), "") == "weights"
    saved = load_file(tmp_path / "weights" / "model.safetensors")
    assert {f"model.{name}" for name in saved} == masters.keys()
    assert all(torch.equal(saved[n.removeprefix("model.")], w) for n, w in masters.items())
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_full_training_begins_from_another_ones_weights(base, runs):
    net = load.load_for_training(base, full(precision="bf16"))
    masters = {name: p.detach().float() + 1e-3 for name, p in adapter.trainable(net).items()}
    folder = make_run(runs, "first", "")
    trained.save(net, masters, folder, full(), "")
    begun = dict(trained.read_start(net, full(start_from="first")))
    assert begun.keys() == masters.keys()
    assert all(torch.equal(begun[name], weight) for name, weight in masters.items())


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("adapter", {}, "has trained an adapter, but this job has full_finetuning: true"),
        ("weights", {"full_finetuning": False}, "has trained all weights .* an adapter on it"),
        ("", {}, "run `first` has no weights yet"),
    ],
)
def test_a_start_of_the_other_kind_is_refused_with_what_to_set(runs, part, changes, words):
    make_run(runs, "first", part)
    job = params.check_values({**full(start_from="first").model_dump(), **changes}, "test")
    with pytest.raises(UserError, match=words):
        start.check_start(job)


def test_no_run_of_that_name(runs):
    with pytest.raises(UserError, match="there is no such run"):
        start.check_start(full(start_from="nobody"))


def test_an_unfinished_training_is_no_start(runs):
    make_run(runs, "first", "weights", status="failed")
    with pytest.raises(UserError, match="training of run `first` is failed"):
        start.check_start(full(start_from="first"))
