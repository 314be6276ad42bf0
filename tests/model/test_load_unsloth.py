"""The calls of Unsloth, recorded by a stand-in for the package.

python -m pytest tests/model/test_load_unsloth.py
"""

import copy
import os
import sys
import types

import pytest
import torch
import transformers

from helpers.pretended_machine import H100, L4, T4
from helpers.tiny_models import a_job
from lib.common.errors import UserError
from lib.model import adapter, base, load, placement


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
    tiny_gemma3n, plain_tiny, machine, monkeypatch, there, changes, dtype, checkpointing
):
    """Text layers only, our seed, our list of what is not quantised, checkpointing as the job says, and nobody counted over the network."""
    job = a_job(load_in_4bit=True, **changes)
    made = adapter.add(copy.deepcopy(plain_tiny), job)
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
    assert load.load_for_training(tiny_gemma3n, job) is made
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
                match=r"Tesla T4 \(15.6 GB\) does not have enough memory for the base, 0.1 GB on disk: CUDA out of memory. "
                r"Tried to allocate 4.00 GiB.\n.*nvidia-smi.*offload_embedding: true, or choose a smaller base",
            ):
                load.load_for_training(
                    tiny_gemma3n,
                    a_job(
                        backend="unsloth" if by == "note_read" else "transformers",
                        load_in_4bit=True,
                    ),
                )
    with monkeypatch.context() as patch:
        patch.setattr(load.AutoModelForCausalLM, "from_pretrained", full)
        with pytest.raises(UserError, match="not have enough memory for the base"):
            load.load_merged(tiny_gemma3n)


@pytest.mark.parametrize("multimodal", [True, False])
def test_unsloth_reads_a_multimodal_base_without_a_page_of_its_towers(
    tiny_gemma3n, plain_tiny, machine, monkeypatch, multimodal
):
    stand_in = Unsloth(adapter.add(copy.deepcopy(plain_tiny), a_job()))
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


def test_an_adapter_of_unsloth_is_checked_too(tiny_gemma3n, plain_tiny, machine, monkeypatch):
    made = adapter.add(copy.deepcopy(plain_tiny), a_job(lora_r=4))
    monkeypatch.setitem(sys.modules, "unsloth", Unsloth(made))
    machine(**L4)
    with pytest.raises(
        UserError,
        match="394,240 trainable parameters in 165 modules, but this architecture at r=8 has 788,480",
    ):
        load.load_for_training(tiny_gemma3n, a_job(backend="unsloth"))


def test_an_unsloth_base_in_16_bit_is_not_quantised(tiny_gemma3n, plain_tiny, machine, monkeypatch):
    stand_in = Unsloth(adapter.add(copy.deepcopy(plain_tiny), a_job()))
    monkeypatch.setitem(sys.modules, "unsloth", stand_in)
    machine(**H100)
    load.load_for_training(tiny_gemma3n, a_job(backend="unsloth"))
    _, kwargs = stand_in.calls["read"]
    assert (kwargs["load_in_4bit"], kwargs["quantization_config"]) == (False, None)
