"""Rebuild the bundled model's tokenizer files from the tokens, scores and types in its GGUF.

tokenizer.json and tokenizer_config.json are for transformers, tokenizer.model is for llama.cpp's
converter; tests/model/test_bundled.py compares all three with llama.cpp on 2,000 strings.
"""

import pathlib
from typing import Any, NamedTuple

from lib.common import files

# types of tokens in a GGUF; sentencepiece uses the same numbers
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
SPACE = "\u2581"  # how sentencepiece writes a space

# Gemma's turn format: a system message is put before the first user turn, contents are trimmed,
# roles alternate. A backslash at the end of a line joins it to the next.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user, assistant, user, \
... after an optional system message') -}}
  {%- endif -%}
  {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else \
message['role']) + '\\n' -}}
  {{- (system if loop.first else '') + (message['content'] | trim) + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}
"""


class Vocabulary(NamedTuple):
    """Three lists with an entry for each token, by id."""

    tokens: list[str]
    scores: list[float]
    types: list[int]


def read_vocabulary(reader: Any) -> Vocabulary:
    """Read the vocabulary of a GGUFReader."""
    tokens, scores, types = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "scores", "token_type")
    )
    return Vocabulary(tokens, scores, types)


def write_tokenizer(vocabulary: Vocabulary, folder: pathlib.Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    # only the first run with the bundled model needs it
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    bpe = models.BPE(
        ids, _merges(vocabulary, ids), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        "<bos> $A", "<bos> $A <bos>:1 $B:1", [("<bos>", 2)]
    )
    added = {
        i: AddedToken(token, normalized=False, special=vocabulary.types[i] == CONTROL)
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] in (CONTROL, USER_DEFINED)
    }
    tokenizer.add_tokens(list(added.values()))
    tokenizer.save(str(folder / "tokenizer.json"))
    files.write_json(folder / "tokenizer_config.json", _tokenizer_config(added))


def _merges(vocabulary: Vocabulary, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return BPE's merges: every split of a token into two, tokens with the best scores first."""
    scored = [
        (-vocabulary.scores[i], token[:cut], token[cut:])
        for i, token in enumerate(vocabulary.tokens)
        if vocabulary.types[i] == NORMAL
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    scored.sort(key=lambda merge: merge[0])
    return [(left, right) for _, left, right in scored]


def _tokenizer_config(added: dict[int, Any]) -> dict[str, Any]:
    return {
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
        # the converter knows user-defined tokens (newlines, runs of spaces, HTML tags) only from
        # this table
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
    }


def write_sentencepiece(vocabulary: Vocabulary, folder: pathlib.Path) -> None:
    """Write tokenizer.model, which the llama.cpp converter reads."""
    # only the first run with the bundled model needs it
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at its import
    for token, score, token_type in zip(*vocabulary, strict=True):
        # sentencepiece requires exactly one piece of type UNKNOWN, and escaped spaces
        proto.pieces.add(
            piece=token.replace(" ", SPACE),
            score=score,
            type=UNKNOWN if token == "<unk>" else token_type,
        )
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(vocabulary.tokens)
    trainer.byte_fallback = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = 0, 1, 2, 3
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
