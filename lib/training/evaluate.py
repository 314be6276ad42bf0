"""Held-out response loss and the fixed prompts that are answered before and after training."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lib.common import files
from lib.model import device, ranks
from lib.training import batches
from lib.training.loss import token_losses

PROMPTS = (
    "Someone near me collapsed, does not respond and only gasps now and then. What should I do?",
    "My friend cut her forearm and blood is spurting through the cloth. How do I stop it?",
    "I spilled boiling water over my hand a minute ago. Should I put butter or ice on it?",
    "A man's face droops on one side and his speech is slurred. What do I do?",
)


def groups(lengths: list[int], rows: int) -> list[list[int]]:
    """Row numbers in groups of similar length, longest first so that running out of memory happens at once."""
    order = sorted(range(len(lengths)), key=lambda n: (-lengths[n], n))
    return [order[n : n + rows] for n in range(0, len(order), rows)]


@contextlib.contextmanager
def _not_training(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def response_loss(
    model: Any, data: Any, rows_at_once: int = 8, bar: Any = iter
) -> tuple[float | None, int]:
    """Mean cross entropy in nats a trained token over a split, and the number of those tokens; (None, 0) of an empty split."""
    return mean_loss(row_losses(model, data, rows_at_once, bar))


def mean_loss(rows: np.ndarray) -> tuple[float | None, int]:
    """The mean over all trained tokens of what `row_losses` gives, and their number; (None, 0) of no rows."""
    loss, tokens = rows.sum(axis=0)
    return (float(loss / tokens), int(tokens)) if tokens else (None, 0)


def row_losses(model: Any, data: Any, rows_at_once: int = 8, bar: Any = iter) -> np.ndarray:
    """(rows, 2) of a split, in its order: the row's summed cross entropy in nats, and its trained tokens.

    Under torchrun the ranks share the rows, and each gets the whole result. Where the card has no room for so many rows at
    once, beside a recorded step for example, half as many are tried.
    """
    found = None
    # tried again outside, since the exception keeps the failed attempt's tensors alive
    with contextlib.suppress(torch.OutOfMemoryError), _not_training(model):
        found = _row_losses(model, data, rows_at_once, bar)
    if found is not None:
        return found
    if rows_at_once == 1 or ranks.world_size() > 1:  # the others are in the middle of it
        raise device.out_of_memory_error(
            f"the held-out loss, {rows_at_once} rows at once", "lower max_seq_length"
        )
    print(
        f"held-out loss: {rows_at_once} rows at once do not fit, trying {rows_at_once // 2}",
        flush=True,
    )
    torch.cuda.empty_cache()
    return row_losses(model, data, rows_at_once // 2, bar)


def _row_losses(model: Any, data: Any, rows_at_once: int, bar: Any) -> np.ndarray:
    found, every = (
        torch.zeros(len(data), 2, dtype=torch.float64),
        groups(data["length"][:], rows_at_once),
    )
    with (
        torch.no_grad()
    ):  # not inference_mode: weights that FSDP gathers in it could not serve training
        for n in bar(
            range(ranks.rank(), len(every) + -len(every) % ranks.world_size(), ranks.world_size())
        ):
            batch = batches.make_batch(data[every[min(n, len(every) - 1)]])
            losses = (
                token_losses(model, batch.to(model.device)).double().cpu()
            )  # a card adds up in no fixed order
            if n < len(every):  # ranks with nothing left keep the others company
                row = torch.tensor(every[n])[batch.where // batch.input_ids.shape[1]]
                found.index_add_(0, row, torch.stack([losses, torch.ones_like(losses)], dim=1))
    ranks.sum_in_place(found := found.to(model.device))
    return found.cpu().numpy()


def answers(
    model: Any, tokenizer: Any, new_tokens: int, prompts: tuple[str, ...] = PROMPTS
) -> list[str]:
    """Greedy answers to single-turn prompts, batched, ended at <end_of_turn>."""
    print(f"answering {len(prompts)} prompts, up to {new_tokens} tokens each", flush=True)
    return [text for text, _ in finished_answers(model, tokenizer, new_tokens, prompts)]


def finished_answers(
    model: Any, tokenizer: Any, new_tokens: int, prompts: tuple[str, ...]
) -> list[tuple[str, bool]]:
    """`answers`, each with whether it ended by itself before `new_tokens`."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        for p in prompts
    ]
    batch = tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    ).to(model.device)
    stop = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    with (
        _not_training(model),
        torch.inference_mode(),
        _whole_slices(model),
        device.explain_out_of_memory(f"{len(prompts)} answers", "lower sample_tokens"),
    ):
        out = model.generate(
            **batch,
            max_new_tokens=new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=stop,
            pad_token_id=tokenizer.pad_token_id,
            top_k=None,
            top_p=None,
        )
    out = out[:, batch["input_ids"].shape[1] :]
    ended = torch.isin(out, torch.tensor(stop, device=out.device)).any(1).tolist()
    return [
        (text.strip(), end)
        for text, end in zip(
            tokenizer.batch_decode(out, skip_special_tokens=True), ended, strict=True
        )
    ]


@contextlib.contextmanager
def _whole_slices(model: Any) -> Iterator[None]:
    """generate gives the output layer a slice, the last position of each prompt; of one with gaps torch's CPU product copies the layer's
    weights, 262,144 rows, once a prompt: 16 s where 0.5 s do (16 prompts, Gemma 3 270M, bfloat16, torch 2.13)."""
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
