"""Loading a base, where the adapter sits, and the errors of both.

    python -m pytest tests/test_model.py
"""

import json
import re
import shutil

import pytest
import torch
import transformers
from peft import LoraConfig, inject_adapter_in_model
from transformers import AutoModelForCausalLM, Gemma3nAudioConfig, Gemma3nForCausalLM, Gemma3nTextConfig

from lib import base, model
from lib.params import Params, UserError

PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


pytestmark = pytest.mark.usefixtures("two_threads")


def a_job(**changes):
    return Params(**{"load_in_4bit": False, "optim": "adamw_torch", **changes})


@pytest.fixture(scope="module")
def tiny(tiny_gemma3n):
    """(model with adapter, tokenizer) as the notebook loads them."""
    job = a_job(base_model=str(tiny_gemma3n))
    folder = base.folder(job)
    return model.add_lora(model.load_model(folder, job), job), model.load_tokenizer(folder)


# ---------------------------------------------------------------------------------------------------------------------
# where the adapter sits


def adapted(net):
    return {n.removeprefix("base_model.model.") for n, m in net.named_modules() if hasattr(m, "lora_A")}


def test_the_adapter_hits_exactly_the_seven_projections(tiny):
    """Of the 35 layers the last 15 share keys and values and own no k_proj, v_proj: 20 x 7 + 15 x 5 = 215."""
    net, _ = tiny
    names = adapted(net)
    expected = {f"model.layers.{n}.{'mlp' if p in model.MLP else 'self_attn'}.{p}" for n in range(35) for p in PROJECTIONS
                if n < 20 or p not in ("k_proj", "v_proj")}
    assert names == expected
    assert len(names) == 215
    assert all("lora_" in n for n in model.trainable(net))


def test_the_full_size_e4b_has_18_595_840_trainable_parameters():
    with torch.device("meta"):
        net = model.add_lora(Gemma3nForCausalLM(Gemma3nTextConfig(num_kv_shared_layers=15)).requires_grad_(False), a_job(lora_r=8))
    assert (model.count(net)[0], len(adapted(net))) == (18_595_840, 215)


# as transformers' Gemma3nForConditionalGeneration names them; its picture tower is timm's MobileNetV5
LANGUAGE = [f"model.language_model.layers.{n}.{part}" for n in (0, 7, 34) for part in
            [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]]
OTHERS = ["lm_head", "model.embed_vision.embedding", "model.embed_vision.embedding_projection", "model.embed_audio.embedding_projection",
          *(f"model.language_model.{n}" for n in (
              "embed_tokens", "embed_tokens_per_layer", "per_layer_model_projection", "altup_projections.0", "altup_unembed_projections.2",
              "layers.0.self_attn", "layers.0.mlp", "layers.0.self_attn.q_norm", "layers.0.mlp.act_fn", "layers.0.laurel.linear_left",
              "layers.0.laurel.linear_right", "layers.0.per_layer_input_gate", "layers.0.per_layer_projection", "layers.0.altup.correction_coefs",
              "layers.0.altup.prediction_coefs", "layers.0.altup.modality_router")),
          *(f"model.audio_tower.{n}" for n in (
              "subsample_conv_projection.input_proj_linear", "conformer.0.attention.attn.q_proj", "conformer.0.attention.attn.k_proj",
              "conformer.11.attention.attn.v_proj", "conformer.0.attention.attn.relative_position_embedding.pos_proj", "conformer.0.attention.post",
              "conformer.0.ffw_layer_start.ffw_layer_1", "conformer.0.lconv1d.linear_start")),
          *(f"model.vision_tower.timm_model.{n}" for n in (
              "conv_stem.conv", "blocks.2.1.attn.query.proj", "blocks.3.5.attn.key.proj", "blocks.3.5.attn.value.proj",
              "blocks.3.5.attn.output.proj", "blocks.3.5.mlp.up_proj", "msfa.ffn.pw_proj.conv"))]


def test_the_pattern_spares_the_vision_and_audio_towers():
    pattern = model.lora_targets(a_job())
    assert [n for n in LANGUAGE if not re.fullmatch(pattern, n)] == []
    assert [n for n in OTHERS if re.fullmatch(pattern, n)] == []


def test_the_real_audio_tower_is_not_hit():
    with torch.device("meta"):
        tower = transformers.AutoModel.from_config(Gemma3nAudioConfig(conf_num_hidden_layers=2))
    names = [f"model.audio_tower.{n}" for n, _ in tower.named_modules() if n]
    assert any(n.endswith("q_proj") for n in names)
    assert not [n for n in names if re.fullmatch(model.lora_targets(a_job()), n)]


@pytest.mark.parametrize(("changes", "expected"), [
    ({"finetune_mlp_modules": False}, set(model.ATTENTION)), ({"finetune_attention_modules": False}, set(model.MLP))])
def test_attention_or_mlp_alone(tiny_gemma3n, changes, expected):
    with torch.device("meta"):
        net = AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tiny_gemma3n))
    net = inject_adapter_in_model(LoraConfig(target_modules=model.lora_targets(a_job(**changes))), net)
    assert {n.rpartition(".")[2] for n in adapted(net)} == expected


def test_nothing_to_train_is_an_error():
    with pytest.raises(UserError, match="both false"):
        model.lora_targets(a_job(finetune_attention_modules=False, finetune_mlp_modules=False))


def test_what_must_stay_in_16_bit_is_not_quantised():
    """Judged by transformers' own matching; 4-bit altup coefficients are uint8, and training dies where they are clamped."""
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [n for n in LANGUAGE + OTHERS if not should_convert_module(n, model.KEEP_16_BIT)]
    assert not set(kept) & set(LANGUAGE)
    assert {n for n in OTHERS if "altup" in n or "tower" in n or "embed_vision" in n or "embed_audio" in n
            or n == "lm_head" or n.endswith("per_layer_model_projection")} <= set(kept)


def test_a_fresh_adapter_is_seeded_and_changes_nothing(tiny_gemma3n):
    def fresh(seed):
        torch.seed()  # whatever was drawn before
        net = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.bfloat16).requires_grad_(False)
        plain = net(input_ids=ids).logits
        tuned = model.add_lora(net, a_job(seed=seed))
        return plain, tuned(input_ids=ids).logits, {n: p.detach().clone() for n, p in model.trainable(tuned).items()}

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
    dtype, why = model.precision()
    assert net.dtype == dtype
    assert why
    assert not any(p.requires_grad for n, p in net.named_parameters() if "lora_" not in n)
    assert model.count(net) == (sum(p.numel() for p in model.trainable(net).values()), sum(p.numel() for p in net.parameters()))


def test_a_4_bit_tensor_counts_as_the_numbers_it_stands_for():
    net = torch.nn.Linear(8, 4, bias=False)
    net.weight.requires_grad_(False)
    packed = torch.nn.Parameter(torch.zeros(16, 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = type("State", (), {"shape": torch.Size([4, 8])})()
    net.weight = packed
    assert model.count(net) == (0, 32)


def test_4_bit_without_a_card_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"load_in_4bit needs an NVIDIA GPU.*load_in_4bit: false"):
        model.load_model(tmp_path / "nothing-here", a_job(load_in_4bit=True))


@pytest.mark.parametrize(("version", "refused"), [("5.5.4", True), ("4.57.1", True), ("5.6.0", False), ("5.17.0", False), ("6.0", False)])
def test_transformers_with_wrong_kv_sharing_is_refused(tiny_gemma3n, monkeypatch, version, refused):
    monkeypatch.setattr(model.transformers, "__version__", version)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *args, **kwargs: torch.nn.Linear(1, 1))
    monkeypatch.setattr(torch.nn.Linear, "config", transformers.PretrainedConfig(), raising=False)
    if refused:
        with pytest.raises(UserError, match=rf"transformers {re.escape(version)} trains Gemma 3n wrongly; expected 5.6 or newer"):
            model.load_model(tiny_gemma3n, a_job())
    else:
        assert model.load_model(tiny_gemma3n, a_job()).weight.requires_grad is False


def test_a_local_folder_and_what_is_missing_from_it(tiny_gemma3n, tmp_path):
    assert base.folder(a_job(base_model=str(tiny_gemma3n))) == tiny_gemma3n
    with pytest.raises(UserError, match=r"has no config.json"):
        base.folder(a_job(base_model=str(tmp_path)))
    with pytest.raises(UserError, match=r"does not exist.*hub id `owner/name`"):
        base.folder(a_job(base_model=str(tmp_path / "missing")))
    for name in ("nothing", "./a/b", "~/model"):
        with pytest.raises(UserError, match="does not exist"):
            base.folder(a_job(base_model=name))


def test_an_unknown_bundled_name():
    with pytest.raises(UserError, match=r"`bundled:gemma-7b` is not bundled; there is bundled:gemma-3-270m"):
        base.folder(a_job(base_model="bundled:gemma-7b"))


@pytest.mark.parametrize("name", ["owner/no-such-model", "own er/na me", "owner/-bad-"])
def test_a_hub_id_without_a_network_or_not_an_id(monkeypatch, tmp_path, name):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"base_model `{name}` could not be fetched: .*\n.*HF_TOKEN.*bundled:gemma-3-270m"):
        base.folder(a_job(base_model=name))


def test_a_tokenizer_without_a_chat_template(tiny_gemma3n, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "config.json"):
        shutil.copy(tiny_gemma3n / name, tmp_path / name)
    assert model.load_tokenizer(tmp_path).chat_template
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no chat template"):
        model.load_tokenizer(tmp_path)


# ---------------------------------------------------------------------------------------------------------------------
# the cache check


def test_cached_and_uncached_logits_agree(tiny):
    assert 0 <= model.check_cache(*tiny) < 0.05


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
    with pytest.raises(UserError, match=r"with and without the key/value cache differ by \d+.*Nothing was trained"):
        model.check_cache(net, tokenizer)


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
        model.check_cache(net, tokenizer)
