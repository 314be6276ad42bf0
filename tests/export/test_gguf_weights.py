"""The list of a GGUF's tensors compared with the folder; blocks are in test_parity.py.

python -m pytest tests/export/test_gguf_weights.py
"""

import shutil

import pytest

from lib.common.errors import UserError
from lib.export import gguf_file, gguf_plan, gguf_weights
from lib.model import shards


def test_tensors_from_nowhere_and_a_file_of_another_type_are_refused(parity_run, tmp_path):
    merged, path, *_ = parity_run
    header = gguf_file.read_header(path)
    names, more = (
        {tensor.name for tensor in header.tensors},
        header.tensors[1]._replace(name="blk.25.attn_q.weight"),
    )
    gguf_weights.check_tensors(header, "q8_0", names, "BF16", "x")
    with pytest.raises(UserError, match=r"it has 1 tensors too many, for example blk\.25"):
        gguf_weights.check_tensors(
            header._replace(tensors=[*header.tensors, more]), "q8_0", names, "BF16", "x"
        )
    with pytest.raises(UserError, match="it has 1 tensors too many"):
        gguf_weights.check_tensors(
            header._replace(tensors=[*header.tensors, header.tensors[1]]),
            "q8_0",
            names,
            "BF16",
            "x",
        )
    with pytest.raises(UserError, match="another type than a q4_0 file's"):
        gguf_weights.compare_weights(path, "q4_0", merged)
    bare = (
        tmp_path / "bare"
    )  # K/V of the shared layers in neither folder nor file: the same list on both sides, and llama.cpp refuses it
    shutil.copytree(merged, bare, ignore=shutil.ignore_patterns("model-shared-kv.safetensors"))
    shared = [
        f"blk.{n}.{part}.weight"
        for n in range(20, 25)
        for part in ("attn_k", "attn_v", "attn_k_norm")
    ]
    lacking = header._replace(
        tensors=[tensor for tensor in header.tensors if tensor.name not in shared]
    )
    assert len(lacking.tensors) == 607 - 15
    with pytest.raises(
        UserError, match=r"15 tensors are missing, for example blk\.20\.attn_k\.weight"
    ):
        gguf_weights.check_tensors(
            lacking,
            "q8_0",
            gguf_plan.expect_names(bare, shards.read_text_config(bare)),
            "BF16",
            "x",
        )
