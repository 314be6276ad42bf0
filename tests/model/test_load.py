"""Loading a base, where the adapter sits, and the errors of both.

python -m pytest tests/test_model.py
"""

import copy
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import sys
import types

import psutil
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

from helpers.packed_rows import needs_cuda
from lib.common.errors import UserError
from lib.export import merge
from lib.model import adapter, base, device, load, options, placement
from lib.model import ranks as parallel
from lib.params import Params
from lib.training import batches, checks, compiled, loss
from lib.training.masters import Masters

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The same sums in the same order for every test, and no waiting for a busy core at each of a tiny model's operations."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_job(**changes):
    return Params(**{"load_in_4bit": False, "optim": "adamw_torch", **changes})


@pytest.fixture(scope="module")
def tiny(tiny_gemma3n):
    """(model with adapter, tokenizer) as the notebook loads them."""
    job = a_job(base_model=str(tiny_gemma3n))
    folder = base.fetch(job.base_model, job.base_revision)
    return adapter.add(load.load_base(folder, job), job), load.load_tokenizer(folder)


@pytest.fixture
def machine(monkeypatch):
    """machine(name, gb, ...): what torch and model.py see of cards and packages; without arguments a machine without a GPU."""

    def be(
        name="",
        gb=0.0,
        bf16=True,
        capability=(8, 0),
        cards=1,
        installed=("bitsandbytes", "unsloth"),
        cpu_bf16=True,
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(name))
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: bf16 or including_emulation,
        )
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(device, "card", lambda: device.Card(name, gb))
        real = FIND_SPEC
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda n, *rest: (
                (n in installed or None) if n in ("bitsandbytes", "unsloth") else real(n, *rest)
            ),
        )

    return be


FIND_SPEC = importlib.util.find_spec
T4 = {"name": "Tesla T4", "gb": 15.6, "bf16": False, "capability": (7, 5)}
L4 = {"name": "NVIDIA L4", "gb": 23.6, "capability": (8, 9)}
H100 = {"name": "NVIDIA H100 80GB HBM3", "gb": 85.0, "capability": (9, 0)}


@pytest.fixture
def heard():
    """What transformers logs as a warning or worse."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = lambda record: records.append(record.getMessage())
    logging.getLogger("transformers").addHandler(handler)
    yield records
    logging.getLogger("transformers").removeHandler(handler)


TOWERS = {
    "vision_tower.timm_model.conv_stem.conv.weight": (8, 3, 3, 3),
    "vision_tower.timm_model.blocks.3.5.attn.query.proj.weight": (16, 16, 1, 1),
    "audio_tower.conformer.0.attention.attn.q_proj.weight": (16, 16),
    "embed_vision.embedding.weight": (128, 64),
    "embed_vision.embedding_projection.weight": (256, 64),
    "embed_audio.embedding.weight": (128, 64),
}


def write_shards(folder, tensors, shards=1):
    """The tensors as one file or as several with an index."""
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    (folder / "model.safetensors").unlink(missing_ok=True)
    names, places = sorted(tensors), {}
    for n in range(shards):
        file = f"model-{n + 1:05}-of-{shards:05}.safetensors"
        save_file(
            {k: tensors[k] for k in names[n::shards]}, folder / file, metadata={"format": "pt"}
        )
        places |= dict.fromkeys(names[n::shards], file)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": places})
    )


def make_multimodal(text, folder, older=False, shards=1):
    """The text model as the language part of a Gemma 3n with towers, named and configured as the published ones are.

    Like them it has key and value weights for the layers that share another's, which transformers does not read.
    """
    shutil.copytree(text, folder)
    tensors = load_file(text / "model.safetensors")
    for layer in range(20, 35):
        tensors |= {
            f"model.layers.{layer}.self_attn.{p}.weight": torch.ones(128, 256).bfloat16()
            for p in ("k_proj", "v_proj")
        }
        tensors[f"model.layers.{layer}.self_attn.k_norm.weight"] = torch.ones(64).bfloat16()
    prefix, top = ("language_model.model.", "") if older else ("model.language_model.", "model.")
    tensors = {n.replace("model.", prefix, 1): t for n, t in tensors.items()}
    write_shards(
        folder,
        tensors | {top + n: torch.randn(size).bfloat16() for n, size in TOWERS.items()},
        shards,
    )
    vision = {
        "architecture": "mobilenetv5_300m_enc",
        "do_pooling": False,
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "label_names": ["LABEL_0", "LABEL_1"],
        "model_args": None,
        "model_type": "gemma3n_vision",
        "num_classes": 2,
        "rms_norm_eps": 1e-06,
        "vocab_offset": 262144,
        "vocab_size": 128,
    }
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Gemma3nForConditionalGeneration"],
                "model_type": "gemma3n",
                "dtype": "bfloat16",
                "eos_token_id": [1, 106],
                "audio_soft_tokens_per_image": 188,
                "vision_soft_tokens_per_image": 256,
                "vision_config": vision,
                "text_config": json.loads((text / "config.json").read_text()),
                "audio_config": {"model_type": "gemma3n_audio"},
            }
        )
    )
    return folder


@pytest.fixture(scope="module")
def multimodal(tiny_gemma3n, tmp_path_factory):
    return make_multimodal(tiny_gemma3n, tmp_path_factory.mktemp("multimodal") / "base", shards=2)


def full_class(folder):
    """transformers' own multimodal class on the meta device, without timm: its picture tower is a stand-in."""
    from transformers.models.gemma3n import modeling_gemma3n

    whole, real = AutoConfig.from_pretrained(folder), modeling_gemma3n.AutoModel.from_config
    whole.audio_config.conf_num_hidden_layers = 1
    tower = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([torch.nn.Linear(64, 64)])})
    modeling_gemma3n.AutoModel.from_config = lambda config: (
        tower if config.model_type == "gemma3n_vision" else real(config)
    )
    try:
        with torch.device("meta"):
            return transformers.Gemma3nForConditionalGeneration(whole)
    finally:
        modeling_gemma3n.AutoModel.from_config = real


IDS = torch.cat(
    [
        torch.full((2, 1), 2),
        torch.randint(10, 2000, (2, 39), generator=torch.Generator().manual_seed(0)),
    ],
    1,
)


def shaken(net):
    """The adapter with other than zeros, the same each time."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in adapter.trainable(net).values():
            p.copy_(0.02 * torch.randn(p.shape, generator=generator))
    return net


def loss_and_gradients(net):
    """Summed loss of a batch, and the adapter's gradients, by the trainer's own path."""
    labels = IDS.clone()
    labels[:, :5] = -100
    net.train()
    total = loss.token_losses(net, batches.batch_from_labels(IDS, labels)).sum()
    total.backward()
    gradients = {n: p.grad for n, p in adapter.trainable(net).items()}
    for p in adapter.trainable(net).values():
        p.grad = None
    net.eval()
    return total.detach(), gradients


def assert_same(first, second):
    assert torch.equal(first[0], second[0])
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][n], second[1][n]) for n in first[1])
    assert all(g.abs().max() > 0 for g in first[1].values()), "every module learns"


@pytest.fixture(scope="module")
def float32(tiny_gemma3n):
    """(model in float32 with a shaken adapter, its loss and gradients), nothing recomputed: the reference of several tests."""
    net = shaken(
        load.load_with_adapter(tiny_gemma3n, a_job(precision="fp32", gradient_checkpointing=False))
    )
    return net, loss_and_gradients(net)


# ---------------------------------------------------------------------------------------------------------------------
# where the adapter sits


def adapted(net):
    return {
        n.removeprefix("base_model.model.") for n, m in net.named_modules() if hasattr(m, "lora_A")
    }


def test_the_adapter_hits_exactly_the_seven_projections(tiny):
    """Of the 35 layers the last 15 share keys and values and own no k_proj, v_proj: 20 x 7 + 15 x 5 = 215."""
    net, _ = tiny
    names = adapted(net)
    expected = {
        f"model.layers.{n}.{'mlp' if p in adapter.MLP else 'self_attn'}.{p}"
        for n in range(35)
        for p in PROJECTIONS
        if n < 20 or p not in ("k_proj", "v_proj")
    }
    assert names == expected
    assert len(names) == 215
    assert all("lora_" in n for n in adapter.trainable(net))


def test_the_full_size_e4b_has_18_595_840_trainable_parameters():
    with torch.device("meta"):
        net = adapter.add(
            Gemma3nForCausalLM(Gemma3nTextConfig(num_kv_shared_layers=15)).requires_grad_(False),
            a_job(lora_r=8),
        )
    assert (adapter.count_parameters(net)[0], len(adapted(net))) == (18_595_840, 215)


# as transformers' Gemma3nForConditionalGeneration names them; its picture tower is timm's MobileNetV5
LANGUAGE = [
    f"model.language_model.layers.{n}.{part}"
    for n in (0, 7, 34)
    for part in [f"self_attn.{p}_proj" for p in "qkvo"]
    + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
]
OTHERS = [
    "lm_head",
    "model.embed_vision.embedding",
    "model.embed_vision.embedding_projection",
    "model.embed_audio.embedding_projection",
    *(
        f"model.language_model.{n}"
        for n in (
            "embed_tokens",
            "embed_tokens_per_layer",
            "per_layer_model_projection",
            "altup_projections.0",
            "altup_unembed_projections.2",
            "layers.0.self_attn",
            "layers.0.mlp",
            "layers.0.self_attn.q_norm",
            "layers.0.mlp.act_fn",
            "layers.0.laurel.linear_left",
            "layers.0.laurel.linear_right",
            "layers.0.per_layer_input_gate",
            "layers.0.per_layer_projection",
            "layers.0.altup.correction_coefs",
            "layers.0.altup.prediction_coefs",
            "layers.0.altup.modality_router",
        )
    ),
    *(
        f"model.audio_tower.{n}"
        for n in (
            "subsample_conv_projection.input_proj_linear",
            "conformer.0.attention.attn.q_proj",
            "conformer.0.attention.attn.k_proj",
            "conformer.11.attention.attn.v_proj",
            "conformer.0.attention.attn.relative_position_embedding.pos_proj",
            "conformer.0.attention.post",
            "conformer.0.ffw_layer_start.ffw_layer_1",
            "conformer.0.lconv1d.linear_start",
        )
    ),
    *(
        f"model.vision_tower.timm_model.{n}"
        for n in (
            "conv_stem.conv",
            "blocks.2.1.attn.query.proj",
            "blocks.3.5.attn.key.proj",
            "blocks.3.5.attn.value.proj",
            "blocks.3.5.attn.output.proj",
            "blocks.3.5.mlp.up_proj",
            "msfa.ffn.pw_proj.conv",
        )
    ),
]


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
        ("tiny", {}, 215, 1_054_720),
        ("tiny", {"lora_r": 16}, 215, 2_109_440),
        ("tiny", {"finetune_mlp_modules": False}, 110, 409_600),
        ("tiny", {"finetune_attention_modules": False}, 105, 645_120),
        ("tiny", {"use_dora": True}, 215, 1_122_560),
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
    """The numbers above are of a copy of its entries."""
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
        (drop_one, r"1,052,672 trainable parameters in 214 modules"),
        (add_one, r"1,057,280 trainable parameters in 215 modules"),
        (exchange_one, r"1,054,720 trainable parameters in 214 modules"),
        (train_a_norm, r"1,054,976 trainable parameters in 215 modules"),
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
        match=rf"the adapter has {found}; this architecture at r=8 has 1,054,720 in 215\. Nothing was trained",
    ):
        adapter.check_size(net, a_job())


def test_an_adapter_of_another_rank_is_an_error(tiny):
    with pytest.raises(UserError, match="at r=4 has 527,360 in 215"):
        adapter.check_size(tiny[0], a_job(lora_r=4))


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
        net = load.load_with_adapter(tiny_gemma3n, job)
        torch.testing.assert_close(net(input_ids=IDS).logits, before, atol=1e-4, rtol=1e-4)
    magnitudes = {n: p for n, p in adapter.trainable(net).items() if "magnitude" in n}
    assert len(magnitudes) == 215
    weight = plain.model.layers[7].mlp.down_proj.weight
    ours = next(p for n, p in magnitudes.items() if "layers.7.mlp.down_proj" in n)
    torch.testing.assert_close(ours.detach(), weight.norm(dim=1))
    _, gradients = loss_and_gradients(shaken(net))
    assert all(gradients[n].abs().max() > 0 for n in magnitudes)


def test_nothing_to_train_is_an_error():
    """Said before the base is read, too."""
    job = a_job(finetune_attention_modules=False, finetune_mlp_modules=False)
    refused = pytest.raises(
        UserError, match="both false: nothing would be trained. Set one to true"
    )
    with refused:
        adapter.target_pattern(False, False)
    with refused:
        options.check_options(job)


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


def test_a_fresh_adapter_is_seeded_and_changes_nothing(tiny_gemma3n):
    def fresh(seed):
        torch.seed()  # whatever was drawn before
        net = AutoModelForCausalLM.from_pretrained(
            tiny_gemma3n, dtype=torch.bfloat16
        ).requires_grad_(False)
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


# ---------------------------------------------------------------------------------------------------------------------
# loading


def test_the_base_is_frozen_and_in_the_announced_precision(tiny):
    net, _ = tiny
    dtype, why = device.choose_precision()
    assert net.dtype == dtype
    assert why
    assert not any(p.requires_grad for n, p in net.named_parameters() if "lora_" not in n)
    assert adapter.count_parameters(net) == (
        sum(p.numel() for p in adapter.trainable(net).values()),
        sum(p.numel() for p in net.parameters()),
    )


def test_a_4_bit_tensor_counts_as_the_numbers_it_stands_for():
    net = torch.nn.Linear(8, 4, bias=False)
    net.weight.requires_grad_(False)
    packed = torch.nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": torch.Size([4, 8])})()
    net.weight = packed
    assert adapter.count_parameters(net) == (0, 32)


def test_4_bit_without_a_card_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"load_in_4bit needs an NVIDIA GPU.*load_in_4bit: false"):
        load.load_base(tmp_path / "nothing-here", a_job(load_in_4bit=True))


@pytest.mark.parametrize(
    ("version", "refused"),
    [("5.5.4", True), ("4.57.1", True), ("5.6.0", False), ("5.17.0", False), ("6.0", False)],
)
def test_transformers_with_wrong_kv_sharing_is_refused(tiny_gemma3n, monkeypatch, version, refused):
    monkeypatch.setattr(load.transformers, "__version__", version)
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


def test_a_local_folder_and_what_is_missing_from_it(tiny_gemma3n, tmp_path):
    assert base.fetch(str(tiny_gemma3n)) == tiny_gemma3n
    with pytest.raises(UserError, match=r"has no config.json"):
        base.fetch(str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist.*hub id `owner/name`"):
        base.fetch(str(tmp_path / "missing"))
    for name in ("nothing", "./a/b", "~/model"):
        with pytest.raises(UserError, match="does not exist"):
            base.fetch(name)


def test_an_unknown_bundled_name():
    with pytest.raises(
        UserError,
        match=r"`bundled:gemma-7b` is not bundled; the only bundled one is bundled:gemma-3-270m",
    ):
        base.fetch("bundled:gemma-7b")


@pytest.mark.parametrize("name", ["owner/no-such-model", "own er/na me", "owner/-bad-"])
def test_a_hub_id_without_a_network_or_not_an_id(monkeypatch, tmp_path, name):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"base_model `{name}` could not be fetched: .*\n.*HF_TOKEN.*bundled:gemma-3-270m",
    ):
        base.fetch(name)


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
    net = load.load_with_adapter(tiny_gemma3n, a_job())
    assert (type(net).__name__, type(net.get_base_model())) == (
        "PeftModelForCausalLM",
        Gemma3nForCausalLM,
    )
    assert {p.dtype for p in net.parameters()} == {device.choose_precision()[0]}
    assert (net.get_base_model().is_gradient_checkpointing, net.config.use_cache) == (True, False)
    assert (
        not load.load_with_adapter(tiny_gemma3n, a_job(gradient_checkpointing=False))
        .get_base_model()
        .is_gradient_checkpointing
    )


def test_load_does_not_hand_out_a_wrong_adapter(tiny_gemma3n, monkeypatch):
    real = adapter.add
    monkeypatch.setattr(
        adapter, "add", lambda net, job: real(net, job.model_copy(update={"lora_r": 2}))
    )
    with pytest.raises(UserError, match="at r=8 has 1,054,720 in 215"):
        load.load_with_adapter(tiny_gemma3n, a_job())


# ---------------------------------------------------------------------------------------------------------------------
# the language model of a multimodal folder


@pytest.mark.parametrize("older", [False, True])
def test_of_a_multimodal_folder_the_language_model_is_loaded_bit_for_bit(
    tiny_gemma3n, tmp_path, older, heard, capfd
):
    """Both namings of the hub's folders; without timm or torchvision, and without a word about the towers that are not read."""
    folder = make_multimodal(tiny_gemma3n, tmp_path / "base", older, shards=3 if older else 1)
    plain, net = load.load_base(tiny_gemma3n, a_job()), load.load_base(folder, a_job())
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


def test_a_merged_multimodal_folder_answers_too(multimodal, heard, monkeypatch):
    monkeypatch.setattr(device, "set_threads", lambda: 1)
    with monkeypatch.context() as little:
        little.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
        if not torch.cuda.is_available():
            with pytest.raises(
                UserError, match="Not enough memory for .*multimodal.* GiB are free"
            ):
                load.load_merged(multimodal)
    net = load.load_merged(multimodal)
    assert (type(net), net.training, heard) == (Gemma3nForCausalLM, False, [])
    assert not adapter.trainable(net)


def test_the_adapter_of_a_multimodal_base_loads_into_its_own_class(
    tiny_gemma3n, multimodal, tmp_path, recwarn
):
    """saved_name's names fit transformers' multimodal class; PEFT's own, of the language model alone, are lost there with a warning.

    merge_adapter takes both for both namings of the base. For a plain base the names stay as they are.
    """
    net = shaken(load.load_with_adapter(multimodal, a_job(precision="fp32"))).eval()
    net.save_pretrained(tmp_path / "text")
    shutil.copytree(tmp_path / "text", tmp_path / "own")
    tensors = {
        adapter.saved_name(net, n): t
        for n, t in load_file(tmp_path / "text" / "adapter_model.safetensors").items()
    }
    save_file(tensors, tmp_path / "own" / "adapter_model.safetensors", metadata={"format": "pt"})
    language = net.get_base_model()
    with torch.no_grad():
        wanted = language.model(input_ids=IDS, use_cache=False).last_hidden_state
    fits = {}
    for name in ("text", "own"):
        full, plain = full_class(multimodal), load.load_base(multimodal, a_job(precision="fp32"))
        full.model.language_model, full.lm_head = plain.model, plain.lm_head
        recwarn.clear()
        loaded = (
            PeftModel.from_pretrained(full, tmp_path / name).get_base_model().model.language_model
        )
        with torch.no_grad():
            same = torch.equal(loaded(input_ids=IDS, use_cache=False).last_hidden_state, wanted)
        fits[name] = same, any("missing adapter keys" in str(w.message) for w in recwarn)
    assert fits == {"text": (False, True), "own": (True, False)}

    older = make_multimodal(tiny_gemma3n, tmp_path / "older", older=True)
    for folder in (multimodal, older, tiny_gemma3n):
        merged = []
        for name in ("text", "own"):
            assert (
                merge.merge_adapter(folder, tmp_path / name, tmp_path / "merged")["merged"] == 215
            )
            merged.append(
                {
                    n: t
                    for shard in (tmp_path / "merged").glob("*.safetensors")
                    for n, t in load_file(shard).items()
                }
            )
        assert all(torch.equal(merged[0][n], merged[1][n]) for n in merged[0])

    adapter.save(net, Masters(net, a_job()).weights, tmp_path / "saved", "owner/base", "")
    assert set(load_file(tmp_path / "saved" / "adapter_model.safetensors")) == set(tensors)

    plain = load.load_with_adapter(tiny_gemma3n, a_job())
    assert all(adapter.saved_name(plain, n) == n for n in plain.state_dict())


# ---------------------------------------------------------------------------------------------------------------------
# folders that are not whole


def rewrite(change, shards=1):
    def spoil(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        write_shards(folder, tensors, shards)

    return spoil


def cut(name, shards=1):
    def spoil(folder):
        if shards > 1:
            rewrite(lambda t: None, shards)(folder)
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])

    return spoil


def lose(name):
    def spoil(folder):
        rewrite(lambda t: None, 2)(folder)
        (folder / name).unlink()

    return spoil


def config(text=None, **changes):
    def spoil(folder):
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(values) if text is None else text)

    return spoil


def narrow(tensors):
    tensors["model.layers.3.mlp.up_proj.weight"] = tensors["model.layers.3.mlp.up_proj.weight"][
        :5
    ].clone()


UP = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lose("model-00002-of-00002.safetensors"), r"has no model-00002-of-00002\.safetensors"),
        (
            cut("model-00001-of-00002.safetensors", 2),
            r"cannot be read \(model-00001-of-00002\.safetensors\).*not fully covered",
        ),
        (cut("model.safetensors"), r"cannot be read \(model\.safetensors\).*not fully covered"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            r"cannot be read \(model\.safetensors\): .*header",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            r"has no model\.safetensors",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{"),
            r"index of shards .* is not readable JSON",
        ),
        (
            lambda folder: (folder / "model.safetensors.index.json").write_text("{}"),
            r"cannot be read \(model\.safetensors\): 'weight_map'",
        ),
        (
            rewrite(lambda t: (t.pop(UP), t.pop("model.norm.weight"))),
            rf"lacks 2 weights.*: {re.escape(UP)}, model\.norm\.weight\. They would be random",
        ),
        (
            rewrite(lambda t: t.pop("model.embed_tokens.weight")),
            r"lacks 1 weights.*: model\.embed_tokens\.weight\. They",
        ),
        (
            rewrite(narrow),
            rf"lacks 1 weights, or has them in another shape.*: {re.escape(UP)}\. They",
        ),
        (config(tie_word_embeddings=False), r"lacks 1 weights.*: lm_head\.weight\. They"),
        (
            config(hidden_size=128),
            r"lacks \d+ weights.*: model\.\S+, model\.\S+, model\.\S+ \.\.\.\. They",
        ),
        (config(text='{"a":'), r"cannot be read \(config\.json\).*not a valid JSON"),
        (config(text="[1]"), r"cannot be read \(config\.json\)"),
        (config(text="{}"), r"cannot be read \(config\.json\).*model_type"),
        (config(model_type="gemma99"), r"cannot be read \(config\.json\).*gemma99"),
        (
            config(hidden_size="wide"),
            r"cannot be read \(config\.json\).*'hidden_size' expected int",
        ),
        (config(text='{"model_type": "vit"}'), r"cannot be read \(config\.json\).*ViTConfig"),
        (lambda folder: (folder / "config.json").unlink(), r"cannot be read \(config\.json\)"),
        (
            config(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
            r"is quantised already.*Set base_model to the 16-bit",
        ),
    ],
)
@pytest.mark.parametrize("by", ["transformers", "unsloth"])
def test_a_folder_that_is_not_whole_is_refused_in_one_screen(
    tiny_gemma3n, tmp_path, heard, monkeypatch, spoil, said, by
):
    """Whoever loads, before a weight is read: what is wrong is named, no random weight comes into being, nothing else is printed."""
    folder = tmp_path / "base"
    shutil.copytree(
        tiny_gemma3n, folder, copy_function=os.link
    )  # replaced by the spoilers, but for the bytes cut below
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
        shutil.copy(tiny_gemma3n / name, folder / name)
    spoil(folder)
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: pytest.fail("weights were read"),
    )
    with pytest.raises(UserError, match=said) as caught:
        load.load_base(folder, a_job()) if by == "transformers" else load._load_by_unsloth(
            folder, a_job()
        )
    text = str(caught.value)
    assert "base" in text
    assert len(text.splitlines()) <= 3
    assert len(text) < 700
    assert heard == []


def test_a_weight_of_a_multimodal_folder_is_missed_by_its_name_in_the_language_model(
    multimodal, tmp_path, heard
):
    shutil.copytree(multimodal, tmp_path / "base")
    for shard in (tmp_path / "base").glob("model-*.safetensors"):
        tensors = load_file(shard)
        save_file(
            {n: t.clone() for n, t in tensors.items() if "layers.3.mlp.up_proj" not in n},
            shard,
            metadata={"format": "pt"},
        )
    with pytest.raises(UserError, match=rf"lacks 1 weights.*{re.escape(UP)}"):
        load.load_base(tmp_path / "base", a_job())
    assert heard == []


def test_weights_that_transformers_misses_though_they_are_there_are_an_error(
    multimodal, monkeypatch
):
    """As when a release of it renames in another way: its own report is believed too, and its voice comes back."""
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: (torch.nn.Linear(1, 1), {"missing_keys": {"model.norm.weight"}}),
    )
    with pytest.raises(UserError, match="lacks 1 weights.*model.norm.weight"):
        load.load_base(multimodal, a_job())

    def fail(*args, **kwargs):
        raise OSError("the disk\nis gone")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match="cannot be read: the disk is gone\nExpected"):
        load.load_base(multimodal, a_job())
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.WARNING


# ---------------------------------------------------------------------------------------------------------------------
# what the machine can do


@pytest.mark.parametrize(
    ("there", "changes", "dtype", "why"),
    [
        ({}, {}, torch.bfloat16, "processor multiplies bfloat16"),
        ({"cpu_bf16": False}, {}, torch.float32, "no fast bfloat16"),
        (H100, {"load_in_4bit": True}, torch.bfloat16, "the card has bfloat16"),
        (H100, {}, torch.bfloat16, "the card has bfloat16"),
        (T4, {"load_in_4bit": True}, torch.float16, "only products with 4-bit weights are float16"),
        (T4, {}, torch.float32, "overflows in float16"),
        (H100, {"precision": "fp32"}, torch.float32, "as set"),
        (H100, {"precision": "fp16", "load_in_4bit": True}, torch.float16, "as set"),
        ({"cpu_bf16": False}, {"precision": "bf16"}, torch.bfloat16, "as set"),
    ],
)
def test_precision(machine, there, changes, dtype, why):
    machine(**there)
    found, because = device.choose_precision(**changes)
    assert found == dtype
    assert why in because


@pytest.mark.parametrize(
    ("there", "changes"), [({}, {}), (H100, {}), (T4, {}), ({}, {"load_in_4bit": True})]
)
def test_float16_without_a_4_bit_base_is_refused(machine, there, changes):
    machine(**there)
    with pytest.raises(UserError, match=r"precision: fp16 is for a 4-bit base.*Use bf16 or fp32"):
        device.choose_precision("fp16", **changes)
    with pytest.raises(
        UserError,
        match=r"precision: fp16 is for a 4-bit base.*Use bf16 or fp32|load_in_4bit needs an NVIDIA GPU",
    ):
        options.check_options(a_job(precision="fp16", **changes))


@pytest.mark.parametrize(
    ("there", "changes", "who", "why"),
    [
        ({}, {}, "transformers", "there is no GPU"),
        (T4, {"load_in_4bit": True}, "unsloth", "4 bit on Tesla T4 with 16 GB"),
        (L4, {"load_in_4bit": True}, "unsloth", "4 bit on NVIDIA L4 with 24 GB"),
        (
            T4 | {"installed": ("bitsandbytes",)},
            {"load_in_4bit": True},
            "transformers",
            "unsloth is not installed",
        ),
        (L4, {}, "transformers", "the base is 16-bit"),
        (
            L4,
            {"load_in_4bit": True, "packing": True},
            "transformers",
            "packing, torch_compile and use_dora",
        ),
        (
            L4,
            {"load_in_4bit": True, "use_dora": True},
            "transformers",
            "packing, torch_compile and use_dora",
        ),
        (
            L4,
            {"load_in_4bit": True, "torch_compile": True},
            "transformers",
            "packing, torch_compile and use_dora",
        ),
        (
            H100,
            {"load_in_4bit": True},
            "transformers",
            "with 85 GB needs none of Unsloth's memory savings",
        ),
        (T4, {"load_in_4bit": True, "backend": "transformers"}, "transformers", "as set"),
        (H100, {"backend": "unsloth"}, "unsloth", "as set"),
    ],
)
def test_backend(machine, there, changes, who, why):
    machine(**there)
    found, because = options.choose_backend(a_job(**changes))
    assert found == who
    assert why in because


GPU_WITHOUT_UNSLOTH = L4 | {"installed": ("bitsandbytes",)}
PACKED = {"packing": True, "torch_compile": True, "offload_embedding": False}


@pytest.mark.parametrize(
    ("there", "changes", "said"),
    [
        (
            {},
            {"load_in_4bit": True},
            r"load_in_4bit needs an NVIDIA GPU.*params/cpu\.yaml.*load_in_4bit: false",
        ),
        ({}, {"optim": "adamw_8bit"}, r"optim: adamw_8bit needs an NVIDIA GPU.*optim: adamw_torch"),
        (
            L4 | {"installed": ()},
            {"optim": "adamw_8bit"},
            r"adamw_8bit need the package bitsandbytes.*requirements\.txt.*optim: adamw_torch",
        ),
        (
            L4 | {"installed": ()},
            {"load_in_4bit": True},
            r"load_in_4bit .*need the package bitsandbytes.*requirements\.txt.*load_in_4bit: false",
        ),
        ({}, PACKED, r"torch_compile needs an NVIDIA GPU.*torch_compile: false"),
        (
            H100,
            PACKED | {"packing": False},
            r"torch_compile needs packing: true.*Set both, or neither",
        ),
        (
            H100,
            PACKED | {"load_in_4bit": True},
            r"torch_compile needs a bfloat16 base.*load_in_4bit: false",
        ),
        (
            H100,
            PACKED | {"offload_embedding": True},
            r"torch_compile needs a bfloat16 base.*offload_embedding: false",
        ),
        (
            H100,
            PACKED | {"precision": "fp32"},
            r"torch_compile needs a bfloat16 base.*precision: bf16",
        ),
        (
            T4,
            {"packing": True},
            r"packing needs FlashAttention, which Tesla T4 cannot run.*packing: false",
        ),
        (
            {},
            {"packing": True, "neftune_noise_alpha": 5.0},
            r"neftune_noise_alpha .*packing.*packing: false, or neftune_noise_alpha: 0",
        ),
        (
            {},
            {"early_stopping_patience": 2},
            r"early_stopping_patience counts evals, and eval_steps is 0.*Set eval_steps",
        ),
        ({}, {"backend": "unsloth"}, r"backend: unsloth needs a CUDA card.*Set backend: auto"),
        (
            GPU_WITHOUT_UNSLOTH,
            {"backend": "unsloth"},
            r"backend: unsloth needs the package unsloth, which is not installed.*requirements\.txt",
        ),
        (
            L4,
            {"backend": "unsloth", "packing": True},
            r"backend: unsloth .*packing.*backend: transformers",
        ),
        (
            L4,
            {
                "backend": "unsloth",
                "torch_compile": True,
                "packing": True,
                "offload_embedding": False,
            },
            r"backend: unsloth .*torch_compile.*backend: transformers",
        ),
        (
            L4,
            {
                "torch_compile": True,
                "packing": True,
                "offload_embedding": False,
                "gradient_checkpointing": True,
                "lora_dropout": 0.1,
            },
            r"torch_compile with gradient_checkpointing.*lora_dropout: 0",
        ),
        (T4, {"precision": "bf16"}, r"precision: bf16 is not in Tesla T4.*precision: auto"),
        (
            L4,
            {"backend": "unsloth", "use_dora": True},
            r"backend: unsloth .*use_dora: false.*backend: transformers",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_read(
    machine, tmp_path, there, changes, said
):
    """The message names the setting and what to write instead; load and load_model say the same of a folder that is not there."""
    machine(**there)
    for check in (
        options.check_options,
        lambda job: load.load_with_adapter(tmp_path / "nothing", job),
        lambda job: load.load_base(tmp_path / "nothing", job),
    ):
        with pytest.raises(UserError, match=said) as caught:
            check(a_job(**changes))
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("there", "changes"),
    [
        ({}, {}),
        ({}, {"packing": True}),
        ({}, {"neftune_noise_alpha": 5.0}),
        (H100, PACKED),
        (L4, {"packing": True, "load_in_4bit": True}),
        (T4, {"load_in_4bit": True, "optim": "adamw_8bit"}),
        (T4, {}),
        (H100, {"early_stopping_patience": 2, "eval_steps": 10}),
        ({"installed": ()}, {}),
        (H100, {"use_dora": True, "use_rslora": True}),
        (L4, {"backend": "unsloth", "load_in_4bit": True}),
    ],
)
def test_settings_that_go_together(machine, there, changes):
    machine(**there)
    options.check_options(a_job(**changes))


def test_the_card_and_its_peak_rate(monkeypatch, tiny):
    """The rate is the datasheet's for exactly this card: an L40 is no L4, an unknown card has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda n: types.SimpleNamespace(
            name=f"NVIDIA A100-SXM4-80GB #{n}", total_memory=85_100_000_000
        ),
    )
    device.card.cache_clear()
    try:
        assert device.card() == ("NVIDIA A100-SXM4-80GB #1", 85.1)
        assert device.name() == "NVIDIA A100-SXM4-80GB #1"
        assert checks.count_flops(tiny[0])["peak_flops"] == 312e12
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert device.card().name, "asked once"
        device.card.cache_clear()
        assert device.card() == ("", 0.0)
        assert device.name()
    finally:
        device.card.cache_clear()
    for name, rate in (
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 0),
        ("Tesla T4", 65),
        ("NVIDIA A10G", 70),
        ("NVIDIA GeForce RTX 3060", 0),
        ("", 0),
    ):
        monkeypatch.setattr(device, "card", lambda name=name: device.Card(name, 1.0))
        assert checks.count_flops(tiny[0])["peak_flops"] == rate * 1e12, name


@pytest.mark.parametrize(
    ("there", "changes", "ranks", "where"),
    [
        ({}, {}, 1, None),
        (H100 | {"cards": 4}, {}, 1, {"": 0}),
        (L4 | {"cards": 2}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 22.0}, {}, 1, "balanced"),
        (L4 | {"gb": 22.0}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 22.0}, {"load_in_4bit": True}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 40.0}, {}, 1, {"": 0}),
        (L4 | {"cards": 2, "gb": 40.0}, {"precision": "fp32"}, 1, "balanced"),
        ({}, {}, 2, None),
        (H100 | {"cards": 2}, {}, 2, {"": 0}),
        (H100 | {"cards": 2}, {"fsdp": "full_shard"}, 1, {"": 0}),
        (H100 | {"cards": 2}, {"fsdp": "full_shard"}, 2, None),
        (L4 | {"cards": 2, "gb": 22.0}, {}, 2, None),
        (L4 | {"cards": 2, "gb": 40.0}, {"precision": "fp32"}, 2, None),
        (L4 | {"cards": 2, "gb": 22.0}, {"fsdp": "none"}, 2, {"": 0}),
    ],
)
def test_where_the_weights_go(machine, tmp_path, monkeypatch, there, changes, ranks, where):
    """20 GB of them: one card, or all in turn where one is too small; a rank of several takes its own, or main memory to be sharded from."""
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(20_000_000_000)  # sparse
    machine(**there)
    monkeypatch.setattr(parallel, "world_size", lambda: ranks)
    job = a_job(**changes)
    too_large = placement.exceeds_card(tmp_path, job.precision, job.load_in_4bit)
    sharded = placement.must_shard(job.fsdp, too_large, job.load_in_4bit, job.torch_compile)
    assert placement.choose_device_map(too_large, sharded, job.torch_compile) == where


@needs_cuda
def test_weights_put_aside_return_to_where_each_lay(tiny_gemma3n):
    """A model spread over cards; here over a card and main memory."""
    net = load.load_with_adapter(tiny_gemma3n, a_job())
    net.get_base_model().model.layers[1].to("cpu")
    before = {n: (p, p.device, p.detach().clone()) for n, p in net.named_parameters()}
    assert len({place for _, place, _ in before.values()}) == 2
    with placement.in_main_memory(net):
        assert {p.device.type for p in (*net.parameters(), *net.buffers())} == {"cpu"}
    for name, p in net.named_parameters():
        same, place, values = before[name]
        assert p is same
        assert (p.device, torch.equal(p, values)) == (place, True)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_base_over_two_cards_trains_as_on_one(tiny_gemma3n, monkeypatch):
    """Loss, gradients taken into the masters, weights published, answers to the held-out rows."""
    job, row = (
        a_job(precision="fp32", num_gpus=1),
        [{"input_ids": IDS[0].tolist(), "labels": [-100] * 5 + IDS[0].tolist()[5:]}],
    )

    def trained():
        net = load.load_with_adapter(tiny_gemma3n, job)
        masters = Masters(net, job)
        for _ in range(2):
            loss_now = compiled.forward_backward(net.train(), batches.pad_rows(row).to(net.device))
            masters.take_gradients()
            masters.step(masters.norm(), 1e-3, 1.0)
        return net, loss_now, {n: w.cpu() for n, w in masters.weights.items()}

    one, loss_one, weights = trained()
    assert not placement.is_spread(one)
    monkeypatch.setattr(placement, "exceeds_card", lambda *_: True)
    two, loss_two, found = trained()
    assert placement.is_spread(two)
    assert float(loss_two) == pytest.approx(float(loss_one), rel=1e-5)
    assert all(torch.allclose(found[n], w, atol=1e-5) for n, w in weights.items())
    with placement.in_main_memory(two):
        pass
    again = Masters(two, job)  # as after ranks have trained
    assert all(torch.allclose(again.weights[n].cpu(), w, atol=1e-5) for n, w in weights.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"load_in_4bit": True, "torch_compile": False},
        {"load_in_4bit": False, "torch_compile": True},
    ],
)
def test_what_cannot_be_sharded_is_refused(machine, monkeypatch, changes):
    machine(**H100)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    with pytest.raises(
        UserError,
        match="fsdp shards a 16-bit base.*load_in_4bit: false and torch_compile: false, or fsdp: none",
    ):
        placement.must_shard("full_shard", False, **changes)


# ---------------------------------------------------------------------------------------------------------------------
# memory: recomputed activations, the table in main memory, float32 around 4 bit


def test_recomputed_layers_give_the_same_gradients(tiny_gemma3n, float32, monkeypatch):
    """Bit for bit, through layers that read the keys and values of a layer recomputed after them; every layer really runs twice."""
    net, runs = shaken(load.load_with_adapter(tiny_gemma3n, a_job(precision="fp32"))), []
    layer = type(net.get_base_model().model.layers[0])
    forward = layer.forward
    monkeypatch.setattr(
        layer,
        "forward",
        lambda self, *args, **kwargs: (runs.append(self.layer_idx), forward(self, *args, **kwargs))[
            1
        ],
    )
    assert_same(loss_and_gradients(net), float32[1])
    assert sorted(runs) == sorted(list(range(35)) * 2)


def test_the_per_layer_table_off_the_card_changes_no_bit(tiny_gemma3n, float32):
    """Logits in bfloat16; loss and gradients of LoRA with recomputed layers. It is no parameter then, and still counted."""
    net = load.load_base(tiny_gemma3n, a_job())
    with torch.no_grad():
        before, (_, everything) = net(input_ids=IDS).logits, adapter.count_parameters(net)
        placement.offload_embedding(net)
        assert torch.equal(net(input_ids=IDS).logits, before)
    assert not [
        n
        for n in [*net.state_dict(), *dict(net.named_parameters()), *dict(net.named_buffers())]
        if "per_layer." in n and "embed" in n
    ]
    assert adapter.count_parameters(net) == (0, everything)
    assert everything - sum(p.numel() for p in net.parameters()) == 2048 * 35 * 256

    job = a_job(precision="fp32")
    net = load.load_base(tiny_gemma3n, job)
    placement.offload_embedding(net)
    net = shaken(adapter.add(net, job))
    net.gradient_checkpointing_enable({"use_reentrant": False})
    assert net.get_base_model().is_gradient_checkpointing
    assert adapter.check_size(net, job) == 215
    assert_same(loss_and_gradients(net), float32[1])


@pytest.mark.parametrize(
    ("cuda", "wanted", "moved"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_the_table_moves_only_where_there_is_a_card_and_the_job_wants_it(
    tiny_gemma3n, monkeypatch, cuda, wanted, moved
):
    job, seen = a_job(offload_embedding=wanted), []
    net = load.load_base(tiny_gemma3n, job)
    monkeypatch.setattr(load, "_read_language_model", lambda *args, **kwargs: net)
    monkeypatch.setattr(placement, "choose_device_map", lambda *args: None)
    monkeypatch.setattr(placement, "offload_embedding", seen.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    monkeypatch.setattr(device, "card", lambda: device.Card("NVIDIA L4", 23.6))
    load.load_base(tiny_gemma3n, job)
    assert seen == [net] * moved


@pytest.mark.parametrize("offloaded", [False, True])
def test_around_4_bit_everything_but_the_tables_is_float32(tiny, tiny_gemma3n, offloaded):
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
    assert 0 <= checks.check_cache(half, tiny[1]) < 0.01
    (total, gradients), (right, rights) = loss_and_gradients(half), loss_and_gradients(whole)
    assert float(total) == pytest.approx(float(right), rel=2e-3)
    assert all(g.dtype == torch.float32 and g.isfinite().all() for g in gradients.values())
    difference = sum((gradients[n] - rights[n]).square().sum() for n in rights) / sum(
        g.square().sum() for g in rights.values()
    )
    assert difference.sqrt() < 0.02


def test_load_widens_where_it_computes_in_float16_and_only_there(
    tiny_gemma3n, machine, monkeypatch
):
    seen, real = [], load.load_base
    net = real(tiny_gemma3n, a_job())
    monkeypatch.setattr(load, "load_base", lambda *args: copy.deepcopy(net))
    monkeypatch.setattr(
        load, "_widen_around_4_bit", lambda net: seen.append(len(adapter.trainable(net)))
    )
    for there, changes in (
        (T4, {"load_in_4bit": True, "backend": "transformers"}),
        (L4, {"load_in_4bit": True, "backend": "transformers"}),
        (T4, {}),
    ):
        machine(**there)
        load.load_with_adapter(tiny_gemma3n, a_job(**changes))
    assert seen == [430], "the adapter is there already, so that it becomes float32 too"


# ---------------------------------------------------------------------------------------------------------------------
# Unsloth


class Unsloth(types.ModuleType):
    """A stand-in for the package that notes how it is called; what it returns is made by transformers and peft."""

    def __init__(self, made):
        super().__init__("unsloth")
        self.__dict__["calls"], self.__dict__["made"] = {}, made

    def __getattr__(self, name):
        if name != "FastModel":
            raise AttributeError(name)
        self.calls["settings"] = {name: os.environ.get(name) for name in load.UNSLOTH}
        return types.SimpleNamespace(
            from_pretrained=self.note_read, get_peft_model=self.note_adapter
        )

    def note_read(self, *args, **kwargs):
        self.calls["read"] = args, kwargs
        self.calls["verbosity"] = transformers.utils.logging.get_verbosity()
        if self.made is not None:
            self.made.generation_config.max_length = 32_768
        return self.made, "its tokenizer"

    def note_adapter(self, *args, **kwargs):
        self.calls["adapter"] = args, kwargs
        return args[0]


@pytest.mark.parametrize(
    ("there", "changes", "dtype", "checkpointing"),
    [
        (T4, {}, torch.float16, "unsloth"),
        (
            L4,
            {
                "gradient_checkpointing": False,
                "lora_r": 4,
                "seed": 7,
                "use_rslora": True,
                "lora_dropout": 0.1,
                "max_seq_length": 512,
                "finetune_mlp_modules": False,
                "offload_embedding": False,
            },
            torch.bfloat16,
            False,
        ),
    ],
)
def test_unsloth_is_asked_for_the_same_job(
    tiny_gemma3n, machine, monkeypatch, there, changes, dtype, checkpointing
):
    """Text layers only, our seed, our list of what is not quantised, checkpointing as the job says, and nobody counted over the network."""
    job = a_job(load_in_4bit=True, **changes)
    made = adapter.add(load.load_base(tiny_gemma3n, a_job()), job)
    stand_in = Unsloth(made)
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    monkeypatch.setattr(
        load,
        "_widen_around_4_bit",
        lambda net: pytest.fail("Unsloth has its own way with float16"),
    )
    for name in load.UNSLOTH:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("UNSLOTH_COMPILE_DISABLE", "0")  # a user who wants its compiler
    machine(**there)
    assert load.load_with_adapter(tiny_gemma3n, job) is made
    assert stand_in.calls["settings"] == {
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(base.CACHE / "unsloth"),
        "UNSLOTH_COMPILE_DISABLE": "0",
        "UNSLOTH_BLOCK_COMPILE": "0",
        "UNSLOTH_DISABLE_FAST_GENERATION": "1",
    }, "set before the package is imported, where the user did not"
    assert (
        isinstance(made.get_base_model().model.embed_tokens_per_layer, placement.Offloaded)
        is job.offload_embedding
    )
    assert made.generation_config.max_length is None, "each answer would warn of two limits"
    args, kwargs = stand_in.calls["read"]
    assert args == (str(tiny_gemma3n),)
    four_bit = kwargs.pop("quantization_config")
    assert (
        four_bit.load_in_4bit,
        four_bit.bnb_4bit_quant_type,
        four_bit.bnb_4bit_use_double_quant,
    ) == (True, "nf4", True)
    assert (four_bit.bnb_4bit_compute_dtype, four_bit.llm_int8_skip_modules) == (
        dtype,
        load.KEEP_16_BIT,
    )
    assert kwargs == {
        "dtype": dtype,
        "max_seq_length": job.max_seq_length,
        "load_in_4bit": True,
        "random_state": job.seed,
        "use_gradient_checkpointing": checkpointing,
        "text_only": True,
        "offload_embedding": False,
    }
    args, kwargs = stand_in.calls["adapter"]
    assert args == (made,)
    assert kwargs == {
        "finetune_vision_layers": False,
        "finetune_language_layers": True,
        "finetune_attention_modules": True,
        "finetune_mlp_modules": job.finetune_mlp_modules,
        "r": job.lora_r,
        "lora_alpha": 8,
        "lora_dropout": job.lora_dropout,
        "bias": "none",
        "use_rslora": job.use_rslora,
        "random_state": job.seed,
        "use_gradient_checkpointing": checkpointing,
    }


def test_a_card_too_small_for_the_base(tiny_gemma3n, machine, monkeypatch):
    """Whoever loads it: the card, the size, what helps, and no page of torch's."""

    def full(*_, **__):
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 4.00 GiB. GPU 0 has a total capacity of 14.7 GiB. "
            + "Of it " * 200
        )

    for by in ("from_pretrained", "note_read"):
        with monkeypatch.context() as patch:
            patch.setattr(load.AutoModelForCausalLM, "from_pretrained", full)
            patch.setattr(Unsloth, "note_read", full)
            patch.setitem(sys.modules, "unsloth", Unsloth(None))
            machine(**T4)
            with pytest.raises(
                UserError,
                match=r"Tesla T4 \(15.6 GB\) has not enough memory for the base, 0.1 GB on disk: CUDA out of memory. "
                r"Tried to allocate 4.00 GiB.\n.*nvidia-smi.*offload_embedding: true, or take a smaller base",
            ):
                load.load_with_adapter(
                    tiny_gemma3n,
                    a_job(
                        backend="unsloth" if by == "note_read" else "transformers",
                        load_in_4bit=True,
                    ),
                )
    with monkeypatch.context() as patch:
        patch.setattr(load.AutoModelForCausalLM, "from_pretrained", full)
        with pytest.raises(UserError, match="not enough memory for the base"):
            load.load_merged(tiny_gemma3n)


@pytest.mark.parametrize("multimodal", [True, False])
def test_unsloth_reads_a_multimodal_base_without_a_page_of_its_towers(
    tiny_gemma3n, machine, monkeypatch, multimodal
):
    stand_in = Unsloth(adapter.add(load.load_base(tiny_gemma3n, a_job()), a_job()))
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    machine(**L4)
    text, logging = object(), transformers.utils.logging
    monkeypatch.setattr(
        load, "check_folder", lambda folder: (object() if multimodal else text, text)
    )
    before = logging.get_verbosity()
    load._load_by_unsloth(tiny_gemma3n, a_job(backend="unsloth", load_in_4bit=True))
    assert stand_in.calls["verbosity"] == (logging.ERROR if multimodal else before)
    assert logging.get_verbosity() == before != logging.ERROR


def test_an_adapter_of_unsloth_is_checked_too(tiny_gemma3n, machine, monkeypatch):
    made = adapter.add(load.load_base(tiny_gemma3n, a_job()), a_job(lora_r=4))
    monkeypatch.setitem(sys.modules, "unsloth", Unsloth(made))
    machine(**L4)
    with pytest.raises(
        UserError,
        match="527,360 trainable parameters in 215 modules; this architecture at r=8 has 1,054,720",
    ):
        load.load_with_adapter(tiny_gemma3n, a_job(backend="unsloth"))


def test_an_unsloth_base_in_16_bit_is_not_quantised(tiny_gemma3n, machine, monkeypatch):
    stand_in = Unsloth(adapter.add(load.load_base(tiny_gemma3n, a_job()), a_job()))
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    machine(**H100)
    load.load_with_adapter(tiny_gemma3n, a_job(backend="unsloth"))
    _, kwargs = stand_in.calls["read"]
    assert (kwargs["load_in_4bit"], kwargs["quantization_config"]) == (False, None)


# ---------------------------------------------------------------------------------------------------------------------
# counting, noise


TINY_LAYERS = (
    35
    * (
        2 * 256 * 256 + 3 * 256 * 512 + 2 * 256 * 64 + 2 * 256 * 256 + 4 * 4 + 4 * 16 + 256 * 4
    )  # q o, MLP, laurel, per-layer, altup
    + 20 * 2 * 256 * 128
)  # k v


def test_arithmetic_a_token_agrees_with_a_count_by_hand(tiny_gemma3n, tiny):
    """4 operations a weight of the layers' matrices; the adapter's are not counted, and no tower's."""
    plain = load.load_base(tiny_gemma3n, a_job())
    expected = {
        "flops_per_token": 4.0 * TINY_LAYERS,
        "flops_per_trained_token": 4.0 * 2048 * 256,
        "peak_flops": 0.0,
    }
    assert checks.count_flops(plain) == expected
    assert checks.count_flops(tiny[0]) == expected
    placement.offload_embedding(plain)
    assert checks.count_flops(plain) == expected


def test_arithmetic_of_the_multimodal_class_leaves_its_towers_out(multimodal):
    full = full_class(multimodal)
    assert any(
        "tower" in n and ".layers." in n and hasattr(m, "in_features")
        for n, m in full.named_modules()
    )
    assert checks.count_flops(full)["flops_per_token"] == 4.0 * TINY_LAYERS


def test_arithmetic_of_the_full_size_e4b():
    """3,904,924,400 weights in the layers: 15.6 GFLOP a token; the output layer adds 2.1 a trained token."""
    with torch.device("meta"):
        net = Gemma3nForCausalLM(Gemma3nTextConfig(num_kv_shared_layers=15)).requires_grad_(False)
    layer = (
        2 * 2048 * 2048
        + 3 * 2048 * 16384
        + 2 * 2048 * 64
        + 2 * 2048 * 256
        + 4 * 4
        + 4 * 16
        + 2048 * 4
    )
    assert 35 * layer + 20 * 2 * 2048 * 512 == 3_904_924_400
    for model_or_wrapped in (net, adapter.add(net, a_job(use_dora=True))):
        found = checks.count_flops(model_or_wrapped)
        assert (found["flops_per_token"], found["flops_per_trained_token"]) == (
            4.0 * 3_904_924_400,
            4.0 * 262_400 * 2048,
        )


def test_a_4_bit_weight_costs_the_arithmetic_of_what_it_stands_for(tiny_gemma3n):
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(tiny_gemma3n)
        ).requires_grad_(False)
    before = checks.count_flops(net)
    for name, module in net.named_modules():
        if name.endswith(("_proj", "linear_left")) and ".layers." in name:
            size = module.weight.shape
            module.weight = torch.nn.Parameter(
                torch.zeros(size.numel() // 2, 1, dtype=torch.uint8, device="meta"),
                requires_grad=False,
            )
            module.weight.quant_state = types.SimpleNamespace(shape=size)
    assert checks.count_flops(net) == before


@pytest.fixture(scope="module")
def embedder(tiny_gemma3n):
    """A model whose embeddings are looked at alone."""
    return load.load_base(tiny_gemma3n, a_job(precision="fp32"))


def embedded(net):
    return net.get_input_embeddings()(IDS)


def test_neftune_adds_bounded_seeded_noise_in_training_only(embedder):
    """Uniform up to alpha / sqrt(tokens x width) on each number, other noise each time, the same after the same seed, the same through PEFT."""
    plain, most = embedded(embedder), 5 / math.sqrt(40 * 256)
    with checks.add_neftune_noise(embedder, 5.0):
        embedder.eval()
        assert torch.equal(embedded(embedder), plain)
        embedder.train()
        torch.manual_seed(1)
        first, second = embedded(embedder) - plain, embedded(embedder) - plain
        torch.manual_seed(1)
        again = embedded(embedder) - plain
    assert 0.999 * most < first.abs().max() <= most * (1 + 1e-4)
    assert float(first.std()) == pytest.approx(most / math.sqrt(3), rel=0.02)
    assert abs(float(first.mean())) < 0.02 * most
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(embedded(embedder), plain), "gone with the block"


def test_neftune_reaches_the_loss_of_an_adapted_model(float32):
    net, (plain, _) = float32
    torch.manual_seed(0)
    with checks.add_neftune_noise(net, 20.0):
        noisy, _ = loss_and_gradients(net)
    assert not torch.equal(noisy, plain)
    assert torch.equal(loss_and_gradients(net)[0], plain)


def test_neftune_goes_after_an_exception_and_is_not_there_at_zero(embedder):
    embedder.train()
    plain = embedded(embedder)

    def stop():
        with checks.add_neftune_noise(embedder, 5.0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert torch.equal(embedded(embedder), plain)
    with checks.add_neftune_noise(embedder, 0.0):
        assert not embedder.get_input_embeddings()._forward_hooks
        assert torch.equal(embedded(embedder), plain)


# ---------------------------------------------------------------------------------------------------------------------
# the cache check


def test_cached_and_uncached_logits_agree(tiny):
    assert 0 <= checks.check_cache(*tiny) < 0.05


def test_a_broken_cache_is_found(tiny, monkeypatch):
    """What is read back of the second owned layer on is lost, as when shared layers look at the wrong keys."""
    net, tokenizer = tiny
    causal = net.get_base_model()
    forward = causal.forward

    def forgetful(*args, past_key_values=None, **kwargs):
        if past_key_values is not None:
            for layer in past_key_values.layers[1:]:
                layer.values.zero_()
        return forward(*args, past_key_values=past_key_values, **kwargs)

    monkeypatch.setattr(causal, "forward", forgetful)
    with pytest.raises(
        UserError, match=r"with and without the key/value cache differ by \d+.*Nothing was trained"
    ):
        checks.check_cache(net, tokenizer)


def test_logits_that_are_no_numbers_fail_the_check(tiny, monkeypatch):
    net, tokenizer = tiny
    causal = net.get_base_model()
    forward = causal.forward

    def spoiled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * float("nan")
        return out

    monkeypatch.setattr(causal, "forward", spoiled)
    with pytest.raises(UserError, match="differ by nan"):
        checks.check_cache(net, tokenizer)
