"""The choice of Unsloth or transformers, and settings that are refused before anything is read.

python -m pytest tests/model/test_options.py
"""

import pytest

from helpers.pretended_machine import H100, L4, T4
from helpers.tiny_models import a_job
from lib.common.errors import UserError
from lib.model import load, options


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
            r"early_stopping_patience counts evals, but eval_steps is 0.*Set eval_steps",
        ),
        ({}, {"backend": "unsloth"}, r"backend: unsloth needs an NVIDIA GPU.*Set backend: auto"),
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
        (
            T4,
            {"precision": "bf16"},
            r"precision: bf16 is not supported by Tesla T4.*precision: auto",
        ),
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
        lambda job: load.load_for_training(tmp_path / "nothing", job),
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
