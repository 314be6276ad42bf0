"""Model folders that are incomplete or damaged are refused before a weight is read.

python -m pytest tests/model/test_model_folder.py
"""

import json
import re
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from helpers.tiny_models import a_job, write_shards
from lib.common.errors import UserError
from lib.model import load


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
            rf"lacks 2 weights.*: {re.escape(UP)}, model\.norm\.weight\. They would be replaced by random",
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
    small_base, tmp_path, heard, monkeypatch, spoil, said, by
):
    """Whoever loads, before a weight is read: what is wrong is named, no random weight comes into being, nothing else is printed."""
    folder = tmp_path / "base"
    shutil.copytree(small_base, folder)
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
    multimodal_tiny, tmp_path, heard
):
    shutil.copytree(multimodal_tiny, tmp_path / "base")
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
    multimodal_tiny, monkeypatch
):
    """As when a release of it renames in another way: its own report is believed too, and its voice comes back."""
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: (torch.nn.Linear(1, 1), {"missing_keys": {"model.norm.weight"}}),
    )
    with pytest.raises(UserError, match="lacks 1 weights.*model.norm.weight"):
        load.load_base(multimodal_tiny, a_job())

    def fail(*args, **kwargs):
        raise OSError("the disk\nis gone")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(UserError, match="cannot be read: the disk is gone\nExpected"):
        load.load_base(multimodal_tiny, a_job())
    assert transformers.utils.logging.get_verbosity() == transformers.utils.logging.WARNING
