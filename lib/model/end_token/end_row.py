"""The row of the word embedding with which a model ends its turns, trained beside LoRA.

    end_row.add(net, end_row.find_token(folder))     # peft's trainable_token_indices

A pretrained base never saw `<end_of_turn>`, and LoRA on the layers cannot raise its row, so its
answers do not end. The row is read twice: as the token's embedding, and as its weights in the
output layer. In a tied base both are one row; in an untied one both rows are trained.
"""

import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from lib.common import files
from lib.common.chat_template import TURN_END
from lib.common.errors import UserError
from lib.model import start

# in peft's name of a trained row
STORED = "token_adapter.trainable_tokens_delta"


def find_token(folder: pathlib.Path) -> int:
    """Return the id of a base's end token; raise UserError if it is no token of its own."""
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    for token in tokenizer["added_tokens"]:
        if token["content"] == TURN_END:
            return token["id"]
    raise UserError(
        f"train_end_token: the tokenizer of {files.format_path(folder)} has no token `{TURN_END}` "
        f"of its own, so there is no row to train. Set train_end_token: false."
    )


class EndRow(NamedTuple):
    """A trained row of the output layer."""

    token: int
    row: torch.nn.Parameter  # (1, width)


def add(model: Any, token: int) -> None:
    """Let peft train one token's row of a model with LoRA.

    Call it once the model is where it will be trained: moving or sharding it later would leave the
    row behind.
    """
    from peft.utils.other import set_additional_trainable_modules  # takes seconds to import

    config = model.peft_config["default"]
    setattr(config, start.ROWS, _list_rows(model, token))
    tied = {"tie_word_embeddings": _is_tied(model)}
    set_additional_trainable_modules(model, config, tied, "default")
    for _, layer in _list_layers(model):
        layer.__class__ = type("EndRowLayer", (type(layer),), {"forward": _forward})


def _is_tied(model: Any) -> bool:
    base = model.get_base_model()
    return base.get_output_embeddings().weight is base.get_input_embeddings().weight


def _list_rows(model: Any, token: int) -> list[int] | dict[str, list[int]]:
    """Return peft's setting: a list stands for the word embedding and what is tied to it."""
    return [token] if _is_tied(model) else {"embed_tokens": [token], "lm_head": [token]}


def _list_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and peft layer of each module with a trained row."""
    for name, module in model.named_modules():
        if hasattr(module, "trainable_tokens_delta"):
            yield name, module


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the base layer's output with the row in its place.

    peft's own forward copies the whole table, 262,144 rows, for each pass.
    """
    result = layer.base_layer(x)
    if layer.disable_adapters or layer.merged:
        return result
    token, row = _read_row(layer)
    row = row.to(result.device)
    if isinstance(layer.base_layer, torch.nn.Embedding):
        row = row * layer.base_layer.embed_scale.to(row)  # Gemma's embeddings are scaled
        return torch.where((x == token)[..., None], row.to(result.dtype), result)
    logit = (x.to(row.dtype) @ row[0]).to(result.dtype)
    words = torch.arange(result.shape[-1], device=result.device)
    return torch.where(words == token, logit[..., None], result)


def _read_row(layer: Any) -> EndRow:
    return EndRow(layer.token_indices["default"][0], layer.trainable_tokens_delta["default"])


def find(model: Any) -> EndRow | None:
    """Return the output layer's trained row, if the model has one."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layer = getattr(base.get_output_embeddings(), "token_adapter", None)
    return _read_row(layer) if layer is not None else None


def plain_weight(layer: Any) -> torch.Tensor:
    """Return the weight of a base's layer, of which peft would give a copy with the row in it."""
    wrapped = getattr(layer, "token_adapter", None)
    return (layer if wrapped is None else wrapped.base_layer).weight


@torch.no_grad()
def fold_in(model: Any) -> Any:
    """Write the trained rows into the weights of a model that is only asked, and return it."""
    layers = list(_list_layers(model))
    for _, layer in layers:
        weight = layer.base_layer.weight
        weight[layer.token_indices["default"]] = layer.trainable_tokens_delta["default"].to(weight)
    for name, layer in layers:
        model.set_submodule(name.removesuffix(".token_adapter"), layer.base_layer)
    return model
