"""The adapter's modules, its size, and the names under which it is saved.

python -m pytest tests/model/test_adapter.py
"""

import copy
import json
import re
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3nAudioConfig,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
)

from helpers.module_names import LANGUAGE, OTHERS
from helpers.tiny_models import (
    IDS,
    a_job,
    adapted,
    full_class,
    loss_and_gradients,
    make_multimodal,
    shaken,
)
from lib.common.errors import UserError
from lib.export import merge
from lib.model import adapter, load, options
from lib.training.masters import Masters

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_adapter_hits_exactly_the_seven_projections(adapted_tiny):
    """Of the 25 layers the last 5 share keys and values and own no k_proj, v_proj: 20 x 7 + 5 x 5 = 165."""
    net, _ = adapted_tiny
    names = adapted(net)
    expected = {
        f"model.layers.{n}.{'mlp' if p in adapter.MLP else 'self_attn'}.{p}"
        for n in range(25)
        for p in PROJECTIONS
        if n < 20 or p not in ("k_proj", "v_proj")
    }
    assert names == expected
    assert len(names) == 165
    assert all("lora_" in n for n in adapter.trainable(net))


def test_the_full_size_e4b_has_18_595_840_trainable_parameters():
    with torch.device("meta"):
        net = adapter.add(
            Gemma3nForCausalLM(Gemma3nTextConfig(num_kv_shared_layers=15)).requires_grad_(False),
            a_job(lora_r=8),
        )
    assert (adapter.count_parameters(net)[0], len(adapted(net))) == (18_595_840, 215)


def test_the_pattern_spares_the_vision_and_audio_towers():
    pattern = adapter.target_pattern(True, True)
    assert [n for n in LANGUAGE if not re.fullmatch(pattern, n)] == []
    assert [n for n in OTHERS if re.fullmatch(pattern, n)] == []


def test_the_real_audio_tower_is_not_hit():
    with torch.device("meta"):
        tower = transformers.AutoModel.from_config(Gemma3nAudioConfig(conf_num_hidden_layers=2))
    names = [f"model.audio_tower.{n}" for n, _ in tower.named_modules() if n]
    assert any(n.endswith("q_proj") for n in names)
    assert not [n for n in names if re.fullmatch(adapter.target_pattern(True, True), n)]


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ((True, False), set(adapter.ATTENTION)),
        ((False, True), set(adapter.MLP)),
    ],
)
def test_attention_or_mlp_alone(tiny_gemma3n, chosen, expected):
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(tiny_gemma3n)
        )
    net = inject_adapter_in_model(LoraConfig(target_modules=adapter.target_pattern(*chosen)), net)
    assert {n.rpartition(".")[2] for n in adapted(net)} == expected


E2B_LIKE = {
    "num_hidden_layers": 30,
    "num_kv_shared_layers": 10,
    "intermediate_size": [8192] * 12 + [16384] * 18,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 20,
}


@pytest.mark.parametrize(
    ("config", "changes", "modules", "parameters"),
    [
        ("tiny", {}, 165, 788_480),
        ("tiny", {"lora_r": 16}, 165, 1_576_960),
        ("tiny", {"finetune_mlp_modules": False}, 90, 327_680),
        ("tiny", {"finetune_attention_modules": False}, 75, 460_800),
        ("tiny", {"use_dora": True}, 165, 838_400),
        ("E4B", {}, 215, 18_595_840),
        ("E4B", {"finetune_mlp_modules": False}, 110, 3_112_960),
        ("E2B-like", {}, 190, 13_697_024),
        ("270M", {}, 126, 1_898_496),
        ("270M", {"use_dora": True}, 126, 2_022_912),
    ],
)
def test_the_adapter_is_what_the_configuration_implies(
    tiny_gemma3n, config, changes, modules, parameters
):
    """The count from the configuration alone, what peft really makes (on the meta device), and a number worked out by hand agree."""
    text = {
        "tiny": lambda: AutoConfig.from_pretrained(tiny_gemma3n),
        "E4B": lambda: Gemma3nTextConfig(num_kv_shared_layers=15),
        "E2B-like": lambda: Gemma3nTextConfig(**E2B_LIKE),
        "270M": lambda: AutoConfig.for_model(**GEMMA_270M),
    }[config]()
    job = a_job(**changes)
    with torch.device("meta"):
        net = adapter.add(AutoModelForCausalLM.from_config(text).requires_grad_(False), job)
    assert adapter.check_size(net, job) == modules == len(adapted(net))
    assert adapter.count_parameters(net)[0] == parameters


def test_the_bundled_base_has_the_configuration_tested_above(bundled_base):
    """The numbers above come from a copy of its entries."""
    have = json.loads((bundled_base / "config.json").read_text())
    assert {k: have[k] for k in GEMMA_270M} == GEMMA_270M


GEMMA_270M = {
    "model_type": "gemma3_text",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
}


def drop_one(net):
    next(iter(adapter.trainable(net).values())).requires_grad_(False)


def add_one(net):
    layer = net.get_base_model().model.layers[3]
    layer.laurel = inject_adapter_in_model(LoraConfig(target_modules=["linear_left"]), layer.laurel)


def exchange_one(net):
    """q_proj of a layer for another matrix of its shape: modules and parameters stay as many."""
    layer = net.get_base_model().model.layers[3]
    layer.self_attn.q_proj = layer.self_attn.q_proj.base_layer
    wrapped = inject_adapter_in_model(LoraConfig(target_modules=["per_layer_input_gate"]), layer)
    assert wrapped.per_layer_input_gate.lora_A["default"].weight.shape == (8, 256)


def train_a_norm(net):
    net.get_base_model().model.norm.weight.requires_grad_(True)


@pytest.mark.parametrize(
    ("spoil", "found"),
    [
        (drop_one, r"786,432 trainable parameters in 164 modules"),
        (add_one, r"791,040 trainable parameters in 165 modules"),
        (exchange_one, r"788,480 trainable parameters in 164 modules"),
        (train_a_norm, r"788,736 trainable parameters in 165 modules"),
    ],
)
def test_an_adapter_that_is_not_that_is_an_error(tiny_gemma3n, spoil, found):
    with torch.device("meta"):
        net = adapter.add(
            AutoModelForCausalLM.from_config(
                AutoConfig.from_pretrained(tiny_gemma3n)
            ).requires_grad_(False),
            a_job(),
        )
    spoil(net)
    with pytest.raises(
        UserError,
        match=rf"the adapter has {found}, but this architecture at r=8 has 788,480 in 165\. Nothing was trained",
    ):
        adapter.check_size(net, a_job())


def test_an_adapter_of_another_rank_is_an_error(adapted_tiny):
    with pytest.raises(UserError, match="at r=4 has 394,240 in 165"):
        adapter.check_size(adapted_tiny[0], a_job(lora_r=4))


def test_rslora_scales_by_the_root_of_the_rank(tiny_gemma3n):
    text = AutoConfig.from_pretrained(tiny_gemma3n)
    for changes, scale in (({}, 24 / 9), ({"use_rslora": True}, 24 / 3)):
        with torch.device("meta"):
            net = adapter.add(
                AutoModelForCausalLM.from_config(text).requires_grad_(False),
                a_job(lora_r=9, lora_alpha=24, **changes),
            )
        assert {m.scaling["default"] for m in net.modules() if hasattr(m, "lora_A")} == {scale}


def test_dora_trains_a_magnitude_for_every_output(tiny_gemma3n):
    """A fresh one changes nothing but roundings, its magnitudes are rows' norms, and they have gradients."""
    job = a_job(use_dora=True, precision="fp32")
    plain = load.load_base(tiny_gemma3n, job)
    with torch.no_grad():
        before = plain(input_ids=IDS).logits
        net = load.load_for_training(tiny_gemma3n, job)
        torch.testing.assert_close(net(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
    magnitudes = {n: p for n, p in adapter.trainable(net).items() if "magnitude" in n}
    assert len(magnitudes) == 165
    weight = plain.model.layers[7].mlp.down_proj.weight
    ours = next(p for n, p in magnitudes.items() if "layers.7.mlp.down_proj" in n)
    torch.testing.assert_close(ours.detach(), weight.norm(dim=1))
    _, gradients = loss_and_gradients(shaken(net))
    assert all(gradients[n].abs().max() > 0 for n in magnitudes)


def test_a_fresh_adapter_is_seeded_and_changes_nothing(plain_tiny):
    def fresh(seed):
        torch.seed()  # whatever was drawn before
        net = copy.deepcopy(plain_tiny).bfloat16()
        plain = net(input_ids=ids).logits
        tuned = adapter.add(net, a_job(seed=seed))
        return (
            plain,
            tuned(input_ids=ids).logits,
            {n: p.detach().clone() for n, p in adapter.trainable(tuned).items()},
        )

    ids = torch.tensor([[2, 50, 60, 70]])
    plain, tuned, first = fresh(1)
    _, _, again = fresh(1)
    _, _, other = fresh(2)
    assert torch.equal(plain, tuned)
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)
    assert {p.dtype for p in first.values()} == {torch.bfloat16}, "no casts in every layer"


def test_nothing_to_train_is_an_error():
    """The error also comes before the base is read."""
    job = a_job(finetune_attention_modules=False, finetune_mlp_modules=False)
    refused = pytest.raises(
        UserError, match="both false, so nothing would be trained. Set one to true"
    )
    with refused:
        adapter.target_pattern(False, False)
    with refused:
        options.check_options(job)


def test_a_4_bit_tensor_counts_as_the_numbers_it_stands_for():
    net = torch.nn.Linear(8, 4, bias=False)
    net.weight.requires_grad_(False)
    packed = torch.nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": torch.Size([4, 8])})()
    net.weight = packed
    assert adapter.count_parameters(net) == (0, 32)


@pytest.fixture(scope="module")
def two_namings(multimodal_tiny, tmp_path_factory):
    """(a multimodal base with a shaken adapter, a folder with that adapter under both namings).

    `text` has PEFT's names, of the language model alone; `own` has those of `saved_name`.
    """
    folder = tmp_path_factory.mktemp("adapters")
    net = shaken(load.load_for_training(multimodal_tiny, a_job(precision="fp32"))).eval()
    net.save_pretrained(folder / "text")
    shutil.copytree(folder / "text", folder / "own")
    tensors = {
        adapter.saved_name(net, name): tensor
        for name, tensor in load_file(folder / "text" / "adapter_model.safetensors").items()
    }
    save_file(tensors, folder / "own" / "adapter_model.safetensors", metadata={"format": "pt"})
    return net, folder


def test_the_adapter_of_a_multimodal_base_loads_into_its_own_class(
    two_namings, multimodal_tiny, recwarn
):
    """saved_name's names fit transformers' multimodal class; there PEFT's own are lost with a warning."""
    net, folder = two_namings
    base = load.load_base(multimodal_tiny, a_job(precision="fp32"))
    with torch.no_grad():
        wanted = net.get_base_model().model(input_ids=IDS, use_cache=False).last_hidden_state
    fits = {}
    for name in ("text", "own"):
        full, plain = full_class(multimodal_tiny), copy.deepcopy(base)
        full.model.language_model, full.lm_head = plain.model, plain.lm_head
        recwarn.clear()
        loaded = PeftModel.from_pretrained(full, folder / name).get_base_model().model
        with torch.no_grad():
            states = loaded.language_model(input_ids=IDS, use_cache=False).last_hidden_state
        warned = any("missing adapter keys" in str(w.message) for w in recwarn)
        fits[name] = torch.equal(states, wanted), warned
    assert fits == {"text": (False, True), "own": (True, False)}


def test_both_namings_of_an_adapter_merge_into_both_namings_of_the_base(
    two_namings, tiny_gemma3n, multimodal_tiny, tmp_path
):
    _, folder = two_namings
    older = make_multimodal(tiny_gemma3n, tmp_path / "older", older=True)
    for base in (multimodal_tiny, older, tiny_gemma3n):
        merged = []
        for name in ("text", "own"):
            report = merge.merge_adapter(base, folder / name, tmp_path / "merged")
            assert report["merged"] == 165
            tensors = {}
            for shard in (tmp_path / "merged").glob("*.safetensors"):
                tensors |= load_file(shard)
            merged.append(tensors)
        assert merged[0].keys() == merged[1].keys()
        assert all(torch.equal(merged[0][n], merged[1][n]) for n in merged[0])


def test_an_adapter_is_saved_under_the_names_of_the_bases_own_class(
    two_namings, adapted_tiny, tmp_path
):
    """Those of a plain base stay as they are."""
    net, folder = two_namings
    adapter.save(net, Masters(net, a_job()).weights, tmp_path / "saved", "owner/base", "abc")
    saved = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert saved.keys() == load_file(folder / "own" / "adapter_model.safetensors").keys()
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/base", "abc")
    assert not (tmp_path / "saved" / "README.md").exists()
    plain, _ = adapted_tiny
    assert all(adapter.saved_name(plain, n) == n for n in plain.state_dict())
