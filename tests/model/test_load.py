"""Loading a base, alone or with an adapter, and a merged folder.

python -m pytest tests/model/test_load.py
"""

import copy
import json
import re
import shutil

import psutil
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3nForCausalLM, Gemma3nTextConfig

from helpers.module_names import LANGUAGE, OTHERS
from helpers.pretended_machine import L4, T4
from helpers.tiny_models import (
    IDS,
    a_job,
    assert_same,
    loss_and_gradients,
    make_multimodal,
    shaken,
    write_shards,
)
from lib.common.errors import UserError
from lib.model import adapter, device, load, options, placement
from lib.training import checks


def test_what_must_stay_in_16_bit_is_not_quantised():
    """Judged by transformers' own matching; 4-bit altup coefficients are uint8, and training dies where they are clamped."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [n for n in LANGUAGE + OTHERS if not should_convert_module(n, load.KEEP_16_BIT)]
    assert not set(kept) & set(LANGUAGE)
    assert {
        n
        for n in OTHERS
        if "altup" in n
        or "tower" in n
        or "embed_vision" in n
        or "embed_audio" in n
        or n == "lm_head"
        or n.endswith("per_layer_model_projection")
    } <= set(kept)


def test_the_base_is_frozen_and_in_the_announced_precision(adapted_tiny):
    net, _ = adapted_tiny
    dtype, why = device.choose_precision()
    assert net.dtype == dtype
    assert why
    assert not any(p.requires_grad for n, p in net.named_parameters() if "lora_" not in n)
    assert adapter.count_parameters(net) == (
        sum(p.numel() for p in adapter.trainable(net).values()),
        sum(p.numel() for p in net.parameters()),
    )


def test_4_bit_without_a_card_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"load_in_4bit needs an NVIDIA GPU.*load_in_4bit: false"):
        load.load_base(tmp_path / "nothing-here", a_job(load_in_4bit=True))


@pytest.mark.parametrize(
    ("version", "refused"),
    [("5.5.4", True), ("4.57.1", True), ("5.6.0", False), ("5.17.0", False), ("6.0", False)],
)
def test_transformers_with_wrong_kv_sharing_is_refused(tiny_gemma3n, monkeypatch, version, refused):
    monkeypatch.setattr(options.transformers, "__version__", version)  # load's check reads it
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: (torch.nn.Linear(1, 1), {"missing_keys": set()}),
    )
    monkeypatch.setattr(torch.nn.Linear, "config", transformers.PretrainedConfig(), raising=False)
    if refused:
        with pytest.raises(
            UserError,
            match=rf"transformers {re.escape(version)} trains Gemma 3n wrongly; expected 5.6 or newer",
        ):
            load.load_base(tiny_gemma3n, a_job())
    else:
        assert load.load_base(tiny_gemma3n, a_job()).weight.requires_grad is False


def test_a_tokenizer_without_a_chat_template(tiny_gemma3n, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "config.json"):
        shutil.copy(tiny_gemma3n / name, tmp_path / name)
    assert load.load_tokenizer(tmp_path).chat_template
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no chat template"):
        load.load_tokenizer(tmp_path)


def test_load_gives_a_model_ready_to_train(tiny_gemma3n):
    """On the CPU, from the folder to a checked adapter; layers are recomputed unless the job says no."""
    net = load.load_for_training(tiny_gemma3n, a_job())
    assert (type(net).__name__, type(net.get_base_model())) == (
        "PeftModelForCausalLM",
        Gemma3nForCausalLM,
    )
    assert {p.dtype for p in net.parameters()} == {device.choose_precision()[0]}
    assert (net.get_base_model().is_gradient_checkpointing, net.config.use_cache) == (True, False)
    assert (
        not load.load_for_training(tiny_gemma3n, a_job(gradient_checkpointing=False))
        .get_base_model()
        .is_gradient_checkpointing
    )


def test_load_does_not_hand_out_a_wrong_adapter(tiny_gemma3n, monkeypatch):
    real = adapter.add
    monkeypatch.setattr(
        adapter, "add", lambda net, job: real(net, job.model_copy(update={"lora_r": 2}))
    )
    with pytest.raises(UserError, match="at r=8 has 788,480 in 165"):
        load.load_for_training(tiny_gemma3n, a_job())


@pytest.mark.parametrize("older", [False, True])
def test_of_a_multimodal_folder_the_language_model_is_loaded_bit_for_bit(
    tiny_gemma3n, plain_tiny, tmp_path, older, heard, capfd
):
    """Both namings of the hub's folders; without timm or torchvision, and without a word about the towers that are not read."""
    folder = make_multimodal(tiny_gemma3n, tmp_path / "base", older, shards=3 if older else 1)
    plain, net = plain_tiny, load.load_base(folder, a_job())
    assert type(net) is type(plain) is Gemma3nForCausalLM
    assert type(net.config) is Gemma3nTextConfig
    ours, theirs = net.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    assert net.lm_head.weight is net.model.embed_tokens.weight
    with torch.no_grad():
        assert torch.equal(net(input_ids=IDS).logits, plain(input_ids=IDS).logits)
    assert net.generation_config.eos_token_id == plain.generation_config.eos_token_id
    assert (heard, *capfd.readouterr()) == ([], "", "")
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.WARNING


def test_other_warnings_of_a_plain_folder_are_heard(tiny_gemma3n, tmp_path, heard):
    """The listener of the test above hears: a tensor that the architecture has no place for is named."""
    shutil.copytree(tiny_gemma3n, tmp_path / "base")
    write_shards(
        tmp_path / "base",
        load_file(tiny_gemma3n / "model.safetensors") | {"model.stranger.weight": torch.ones(2)},
    )
    load.load_base(tmp_path / "base", a_job())
    assert "model.stranger.weight" in "".join(heard)


def test_a_merged_multimodal_folder_answers_too(multimodal_tiny, heard, monkeypatch):
    monkeypatch.setattr(device, "set_threads", lambda: 1)
    with monkeypatch.context() as little:
        little.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
        if not torch.cuda.is_available():
            with pytest.raises(
                UserError, match="Not enough memory for .*multimodal.* GiB are free"
            ):
                load.load_merged(multimodal_tiny)
    net = load.load_merged(multimodal_tiny)
    assert (type(net), net.training, heard) == (Gemma3nForCausalLM, False, [])
    assert not adapter.trainable(net)


def test_recomputed_layers_give_the_same_gradients(tiny_gemma3n, float32_tiny, monkeypatch):
    """Bit for bit, through layers that read the keys and values of a layer recomputed after them; every layer really runs twice."""
    net, runs = shaken(load.load_for_training(tiny_gemma3n, a_job(precision="fp32"))), []
    layer = type(net.get_base_model().model.layers[0])
    forward = layer.forward
    monkeypatch.setattr(
        layer,
        "forward",
        lambda self, *args, **kwargs: (runs.append(self.layer_idx), forward(self, *args, **kwargs))[
            1
        ],
    )
    assert_same(loss_and_gradients(net), float32_tiny[1])
    assert sorted(runs) == sorted(list(range(25)) * 2)


def test_recomputed_layers_draw_the_same_dropout(small_base):
    results = []
    for checkpointing in (True, False):
        job = a_job(precision="fp32", lora_dropout=0.5, gradient_checkpointing=checkpointing)
        net = shaken(load.load_for_training(small_base, job))
        torch.manual_seed(1)
        ids = torch.arange(2, 42)[None]
        loss = net.train()(input_ids=ids, labels=ids).loss
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in adapter.trainable(net).items()}))
    assert_same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("offloaded", [False, True])
def test_around_4_bit_everything_but_the_tables_is_float32(adapted_tiny, tiny_gemma3n, offloaded):
    """As on a card without bfloat16: hidden states, the adapter and its gradients are float32, near those of a model wholly in float32.

    The tables keep their 16 bits, and so do the logits; 4-bit weights (bytes) are not touched.
    """
    job = a_job(precision="fp32")
    half, whole = (
        load._read_language_model(tiny_gemma3n, dtype=d).requires_grad_(False)
        for d in (torch.float16, torch.float32)
    )
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    if offloaded:
        placement.offload_embedding(half)
    packed = half.model.layers[0].mlp.up_proj
    weight, packed.weight = (
        packed.weight,
        torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False),
    )
    half, whole = shaken(adapter.add(half, job)), shaken(adapter.add(whole, job))
    for net in (half, whole):
        net.eval()
    load._widen_around_4_bit(half)
    up = half.get_base_model().model.layers[0].mlp.up_proj.base_layer
    assert up.weight.dtype == torch.uint8
    up.weight = torch.nn.Parameter(weight.data.float(), requires_grad=False)

    body = half.get_base_model().model
    kept = {
        n.removeprefix("base_model.model.model.")
        for n, p in half.named_parameters()
        if p.dtype == torch.float16
    }
    assert kept == {"embed_tokens.weight"} | (
        set() if offloaded else {"embed_tokens_per_layer.weight"}
    )
    assert half.get_output_embeddings().weight is body.embed_tokens.weight
    assert {p.dtype for p in adapter.trainable(half).values()} == {torch.float32}
    assert {
        p.dtype
        for n, p in half.named_parameters()
        if n.removeprefix("base_model.model.model.") not in kept
    } == {torch.float32}
    assert {b.dtype for n, b in half.named_buffers() if "embed_scale" not in n} == {torch.float32}
    with torch.no_grad():
        ours, theirs = (net(input_ids=IDS, output_hidden_states=True) for net in (half, whole))
    assert {h.dtype for h in ours.hidden_states} == {torch.float32}
    assert body(input_ids=IDS, use_cache=False).last_hidden_state.dtype == torch.float32
    for h, w in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        assert (h - w).norm() < 2e-3 * w.norm()
    assert ours.logits.dtype == torch.float16
    assert (ours.logits.float() - theirs.logits).norm() < 5e-3 * theirs.logits.norm()
    assert 0 <= checks.check_cache(half, adapted_tiny[1]) < 0.01
    (total, gradients), (right, rights) = loss_and_gradients(half), loss_and_gradients(whole)
    assert float(total) == pytest.approx(float(right), rel=2e-3)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())
    difference = sum((gradients[n] - rights[n]).square().sum() for n in rights) / sum(
        g.square().sum() for g in rights.values()
    )
    assert difference.sqrt() < 0.02


def test_load_widens_where_it_computes_in_float16_and_only_there(
    tiny_gemma3n, plain_tiny, machine, monkeypatch
):
    seen = []
    monkeypatch.setattr(load, "load_base", lambda *args: copy.deepcopy(plain_tiny))
    monkeypatch.setattr(
        load, "_widen_around_4_bit", lambda net: seen.append(len(adapter.trainable(net)))
    )
    for there, changes in (
        (T4, {"load_in_4bit": True, "backend": "transformers"}),
        (L4, {"load_in_4bit": True, "backend": "transformers"}),
        (T4, {}),
    ):
        machine(**there)
        load.load_for_training(tiny_gemma3n, a_job(**changes))
    assert seen == [330], "the adapter is there already, so that it becomes float32 too"
