"""What a job trains: an adapter on the base, or all weights of the language model.

    net = load_for_training(folder, job)    # calls `unfreeze` for full fine-tuning
    part = trained.save(net, masters.weights, run.folder, job, revision)    # adapter or weights

lib/model/adapter.py is about adapters. The weights of full fine-tuning are kept in float32, in one
file, under the names that all classes of a model share.
"""

import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from lib.common import files, limits
from lib.common.errors import UserError
from lib.model import adapter, device, shards, start
from lib.params import Params, number_bytes

OUTPUT = "lm_head.weight"
# of Gemma 3n's last layers: in the files, but neither transformers nor llama.cpp uses them
SHARED_KV = re.compile(r"layers\.(\d+)\.self_attn\.(?:k_proj|v_proj|k_norm)\.weight")


# --------------------------------------------------------------------------------------------------
# before training


def require_room(folder: pathlib.Path, job: Params) -> None:
    """Raise UserError unless weights, gradients and optimizer of full fine-tuning fit one device.

    They are neither spread over cards nor sharded, so several cards do not help.
    """
    if not job.full_finetuning:
        return
    dtype, _ = device.choose_precision(job.precision, job.load_in_4bit)
    numbers = shards.count_language(folder)
    needed = number_bytes.full_training(numbers, job.optim, dtype.itemsize)
    what = f"full_finetuning of {job.base_model}"
    if torch.cuda.is_available():
        limits.require_card_memory(needed, device.card().gb * 1e9, what)
    else:
        limits.require_memory(needed + number_bytes.WORKING, what)


def unfreeze(model: Any, folder: pathlib.Path) -> Any:
    """Let all weights of a language model be trained; `folder` has the numbers they begin with."""
    model.requires_grad_(True)
    model.base_folder = folder  # the model's own numbers may be rounded
    return model


def describe(model: Any, job: Params) -> dict[str, Any]:
    """Return what is trained, as {what: how many}; raise UserError unless it is complete."""
    if not job.full_finetuning:
        return {"adapted modules": adapter.check_size(model, job)}
    live = {shards.canonical_name(name) for name in adapter.trainable(model)}
    in_base = filter(shards.is_language, shards.locate_tensors(model.base_folder))
    left = sorted({shards.canonical_name(name) for name in in_base} - live)
    config = model.config.get_text_config()
    strangers = [name for name in left if not _is_unused(name, config)]
    count, total = adapter.count_parameters(model)
    if strangers or count != total:
        raise UserError(
            f"full_finetuning would train {count:,} of {total:,} parameters, and the base has "
            f"{len(strangers)} weights that transformers did not load"
            f"{f', for example {strangers[0]}' if strangers else ''}. Nothing was trained: this "
            f"base and the installed version of transformers do not suit each other."
        )
    return {"trained tensors, of the whole language model": len(live)}


def _is_unused(name: str, config: Any) -> bool:
    """Tell whether a weight of the base's files takes no part in the language model."""
    if name == OUTPUT:
        return bool(config.tie_word_embeddings)
    sharing = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
    match = SHARED_KV.fullmatch(name)
    return match is not None and int(match[1]) >= sharing


# --------------------------------------------------------------------------------------------------
# the weights that training begins with, and ends with


def read_start(model: Any, job: Params) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights to begin with, by the names of the model's trained parameters.

    They are those of `start_from`, or of full fine-tuning's base; a new adapter keeps its own.
    Raise UserError if they are not of this model.
    """
    if not job.full_finetuning:
        if job.start_from:
            yield from adapter.read_weights(model, job.start_from).items()
        return
    if job.start_from:
        path = start.weight_file(start.find_start(job))
        with safe_open(path, "pt") as file:
            located = dict.fromkeys(file.keys(), path)
    else:
        located = shards.locate_tensors(model.base_folder)
    names = {shards.canonical_name(name): name for name in located}
    for live, parameter in adapter.trainable(model).items():
        name = names.get(shards.canonical_name(live), "")
        weight = _read(located[name], name) if name else None
        if weight is None or weight.shape != parameter.shape:
            raise UserError(
                f"start_from=`{job.start_from}` does not fit this base: it has no {live} of shape "
                f"{list(parameter.shape)}."
            )
        if not job.start_from and not torch.equal(
            weight.to(parameter.device, parameter.dtype), parameter
        ):
            raise UserError(
                "the model in memory has been trained already, and there is no checkpoint to "
                "resume from. Restart the kernel (the notebook) and run all cells again."
            )
        yield live, weight


def _read(path: pathlib.Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)


def save(
    model: Any, weights: dict[str, torch.Tensor], folder: pathlib.Path, job: Params, revision: str
) -> str:
    """Write what was trained, float32 `weights`, into a run's folder; return the part's name.

    The part appears once it is complete. What an earlier training of the other kind left goes.
    """
    if not job.full_finetuning:
        adapter.save(model, weights, folder / start.ADAPTER, job.base_model, revision)
        shutil.rmtree(folder / start.FULL, ignore_errors=True)
        return start.ADAPTER
    partial = folder / f".{start.FULL}.tmp"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    tensors = {shards.canonical_name(name): w.contiguous() for name, w in weights.items()}
    save_file(tensors, partial / start.FULL_FILE, metadata={"format": "pt"})
    files.replace_folder(partial, folder / start.FULL)
    shutil.rmtree(folder / start.ADAPTER, ignore_errors=True)
    return start.FULL
