"""Measure the held-out response loss, and answer fixed prompts before and after training."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from lib.common import files
from lib.data.label_mask import IGNORED
from lib.model import device, ranks
from lib.model.end_token import end_row
from lib.record.schema import EndToken
from lib.training import batches
from lib.training.loss import token_losses

PROMPTS = (
    "Someone near me collapsed, does not respond and only gasps now and then. What should I do?",
    "My friend cut her forearm and blood is spurting through the cloth. How do I stop it?",
    "I spilled boiling water over my hand a minute ago. Should I put butter or ice on it?",
    "A man's face droops on one side and his speech is slurred. What do I do?",
)


ENDS = 16  # rows measured: -33.1 in the pretrained Gemma 3 270M, where the limit is -15.5
# passes the numbers of the groups through and shows a progress bar
Bar = Callable[[Iterable[int]], Iterable[int]]


def group_by_length(lengths: list[int], rows: int) -> list[list[int]]:
    """Put row numbers into groups of similar length.

    The longest come first, so that the process runs out of memory at once or never.
    """
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    return [order[n : n + rows] for n in range(0, len(order), rows)]


# --------------------------------------------------------------------------------------------------
# the response loss


def mean_loss(rows: np.ndarray) -> tuple[float | None, int]:
    """Return the mean of `measure_row_losses` over all trained tokens, and their number.

    Return (None, 0) for no rows.
    """
    loss, tokens = rows.sum(axis=0)
    return (float(loss / tokens), int(tokens)) if tokens else (None, 0)


def measure_row_losses(model: Any, data: Any, rows_at_once: int = 8, bar: Bar = iter) -> np.ndarray:
    """Return each row's cross entropy and trained tokens as (rows, 2), in the split's order.

    The cross entropy is a sum in nats. Under torchrun the ranks share the rows, and each gets the
    complete result. If the card has no room for `rows_at_once` rows, for example next to a recorded
    step, half as many are tried. Raise UserError when a single row does not fit.
    """
    losses = None
    # the next attempt comes after this block, since the exception keeps the failed tensors alive
    with contextlib.suppress(torch.OutOfMemoryError), _not_training(model):
        losses = _try_row_losses(model, data, rows_at_once, bar)
    if losses is not None:
        return losses
    # several ranks cannot try again, because the others are still in the middle of this attempt
    if rows_at_once == 1 or ranks.world_size() > 1:
        raise device.out_of_memory_error(
            f"the held-out loss, {rows_at_once} rows at once", "lower max_seq_length"
        )
    half = rows_at_once // 2
    print(f"held-out loss: {rows_at_once} rows at once do not fit, trying {half}", flush=True)
    torch.cuda.empty_cache()
    return measure_row_losses(model, data, half, bar)


def _try_row_losses(model: Any, data: Any, rows_at_once: int, bar: Bar) -> np.ndarray:
    sums = torch.zeros(len(data), 2, dtype=torch.float64)
    groups = group_by_length(data["length"][:], rows_at_once)
    # Ranks wait for each other, so each must compute the same number of groups: beyond the last
    # group, a rank computes that one again, without counting it.
    world = ranks.world_size()
    numbers = range(ranks.rank(), len(groups) + -len(groups) % world, world)
    # not inference_mode: weights that FSDP gathers in it could not be used in training
    with torch.no_grad():
        for n in bar(numbers):
            batch = batches.make_batch(data[groups[min(n, len(groups) - 1)]])
            # summed on the CPU, since a card adds in no fixed order
            losses = token_losses(model, batch.to(model.device)).double().cpu()
            if n < len(groups):
                row = torch.tensor(groups[n])[batch.where // batch.input_ids.shape[1]]
                sums.index_add_(0, row, torch.stack([losses, torch.ones_like(losses)], dim=1))
    sums = sums.to(model.device)  # the ranks' backend adds tensors on the device
    ranks.sum_in_place(sums)
    return sums.cpu().numpy()


@contextlib.contextmanager
def _not_training(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def measure_ends(model: Any, data: Any, base: pathlib.Path) -> EndToken:
    """Measure the end token's mean log-probability where the answers of the first rows end.

    `base` is the base's folder, which names the token. Return {} if no answer ends in these rows.
    """
    token = end_row.find_token(base)
    rows = data.select_columns(["input_ids", "labels"])[: min(ENDS, len(data))]
    losses: list[float] = []
    with torch.no_grad(), _not_training(model):
        for ids, labels in zip(rows["input_ids"], rows["labels"], strict=True):
            ends = [label if label == token else IGNORED for label in labels]
            batch = batches.make_batch({"input_ids": [ids], "labels": [ends]})
            if len(batch.where):
                losses += token_losses(model, batch.to(model.device)).tolist()
    if not losses:
        return {}
    return {"ends": len(losses), "log_probability": round(-sum(losses) / len(losses), 4)}


# --------------------------------------------------------------------------------------------------
# answers


def answer_prompts(
    model: Any, tokenizer: Any, new_tokens: int, prompts: tuple[str, ...] = PROMPTS
) -> list[str]:
    """Answer single-turn prompts greedily, all in one batch, up to <end_of_turn>."""
    print(f"answering {len(prompts)} prompts, up to {new_tokens} tokens each", flush=True)
    return [text for text, _ in generate_answers(model, tokenizer, new_tokens, prompts)]


def generate_answers(
    model: Any, tokenizer: Any, new_tokens: int, prompts: tuple[str, ...]
) -> list[tuple[str, bool]]:
    """Return each prompt's greedy answer, and whether it ended by itself before `new_tokens`."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    batch = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(model.device)
    stop = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    with (
        _not_training(model),
        torch.inference_mode(),
        _contiguous_output(model),
        device.explain_out_of_memory(f"{len(prompts)} answers", "lower sample_tokens"),
    ):
        tokens = model.generate(
            **batch,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id,
            top_k=None,
            top_p=None,
        )
    tokens = tokens[:, batch["input_ids"].shape[1] :]
    ended = torch.isin(tokens, torch.tensor(stop, device=tokens.device)).any(1).tolist()
    answers = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return [(text.strip(), end) for text, end in zip(answers, ended, strict=True)]


@contextlib.contextmanager
def _contiguous_output(model: Any) -> Iterator[None]:
    """Give the output layer a contiguous tensor inside the block.

    generate gives it a slice, the last position of each prompt. For a tensor with gaps, torch's
    product on a CPU copies the layer's weights, 262,144 rows, once per prompt: 16 s instead of
    0.5 s (16 prompts, Gemma 3 270M, bfloat16, torch 2.13).
    """
    hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda module, inputs: (inputs[0].contiguous(), *inputs[1:])
    )
    try:
        yield
    finally:
        hook.remove()


def save_samples(path: pathlib.Path, columns: dict[str, list[str]], tokens: int) -> None:
    """Write the fixed prompts with a column of answers for each model."""
    files.write_json(path, {"prompts": list(PROMPTS), "answers": columns, "tokens": tokens})
