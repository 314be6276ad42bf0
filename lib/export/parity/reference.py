"""Draw the reference for GGUFs: texts, held-out rows, and the 16-bit model's predictions.

net = load_merged(run.folder / "merged")
truth = reference.predict_reference(data_folder, run.folder / "merged", net, seed=3407)
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lib.common import limits
from lib.common.progress import progress_bar
from lib.data import chat, label_mask, splits
from lib.data.reading import sources
from lib.export import merge
from lib.export.base_needs import odd_texts
from lib.model import shards
from lib.model.load import load_merged
from lib.training import loss

ROWS, POSITIONS, TEXTS = 32, 128, 500  # how many are drawn
# Positions are drawn from the first tokens of a row only, since all tokens before one must be
# computed, and a large model computes 10 a second.
REACH = 256

EncodedRow = tuple[list[int], list[int]]  # ids and labels


class Sample(NamedTuple):
    """Rows, positions and texts to compare, drawn by a seed: the same for every file of a run."""

    rows: list[list[int]]  # token ids
    positions: list[list[int]]  # ascending; the token at each is predicted from those before it
    texts: list[str]
    source: str  # the origin of the rows, in words


class Reference(NamedTuple):
    """A sample, and the 16-bit model's predictions at its positions."""

    rows: list[list[int]]
    positions: list[list[int]]
    logprobs: np.ndarray  # (positions, vocabulary), float32: 1 MiB a position for Gemma
    texts: list[str]
    source: str
    arithmetic: str  # the type that the 16-bit model computed in, float32 or bfloat16

    def prompts(self, count: int = 8) -> list[list[int]]:
        """Return the token ids of the first rows, each up to its first position."""
        return [ids[: where[0]] for ids, where in zip(self.rows, self.positions, strict=True)][
            :count
        ]


def predict_reference(data_folder: Path, model_folder: Path, net: Any, seed: int) -> Reference:
    """Draw a sample, and predict with the merged model; `net` is that model, already loaded.

    It is computed in float32 if there is room for that, otherwise with `net` as it is. The rounding
    of bfloat16 alone gives a mean KL of 7e-4 on Gemma 3 270M, a quarter of Q8_0's, and another
    likeliest token at 5 % of positions.
    """
    sample = draw_sample(data_folder, model_folder, seed)
    if _has_room_for_float32(model_folder, net.device):
        net = load_merged(model_folder, torch.float32)
    bar = progress_bar("16-bit predictions", sample.rows, unit="row")
    predicted = [
        predict_positions(net, ids, where) for ids, where in zip(bar, sample.positions, strict=True)
    ]
    return Reference(
        sample.rows,
        sample.positions,
        np.concatenate(predicted),
        sample.texts,
        sample.source,
        str(net.dtype).removeprefix("torch."),
    )


def load_precise(model_folder: Path) -> Any:
    """Load a 16-bit folder in float32 if there is room for that, otherwise in 16 bits."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if _has_room_for_float32(model_folder, place):
        return load_merged(model_folder, torch.float32)
    return load_merged(model_folder)


@torch.inference_mode()
def predict_positions(net: Any, ids: list[int], where: list[int]) -> np.ndarray:
    """Return log-probabilities at ascending positions, (positions, vocabulary)."""
    body, weight, softcap = loss.split_model(net)
    inputs = torch.tensor([ids[: where[-1]]], device=net.device)
    hidden = body(input_ids=inputs, use_cache=False).last_hidden_state[0]
    before = hidden[[position - 1 for position in where]]
    logits = (before.to(weight.dtype) @ weight.T).float()
    loss.cap_logits(logits, softcap)
    return torch.log_softmax(logits, -1).cpu().numpy()


@contextlib.contextmanager
def adapted(
    net: Any, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]], factor: float
) -> Iterator[None]:
    """Let each adapted module of a model add factor * B @ A @ its input."""
    by_weight = {merge.weight_of(module): pair for module, pair in pairs.items()}
    hooks = []
    for name, module in net.named_modules():
        if pair := by_weight.pop(merge.weight_of(name), None):
            a, b = (half.to(module.weight.device, module.weight.dtype) for half in pair)

            def add(
                _: Any, inputs: Any, output: Any, a: torch.Tensor = a, b: torch.Tensor = b
            ) -> Any:
                return output + factor * (inputs[0] @ a.T) @ b.T

            hooks.append(module.register_forward_hook(add))
    assert not by_weight, f"the model has no {next(iter(by_weight))}"
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _has_room_for_float32(model_folder: Path, device: torch.device) -> bool:
    needed = 4.4 * shards.count_numbers(model_folder)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info()
    else:
        free = limits.free_memory()
    return needed < free


def draw_sample(data_folder: Path, model_folder: Path, seed: int) -> Sample:
    """Draw POSITIONS trained positions in ROWS held-out rows, and TEXTS texts.

    Texts come from held-out rows, or are hard ones and made-up ones. Rows are validation rows with
    an answer that begins within REACH, test rows too if these are fewer than ROWS, and rows of the
    bundled first-aid set if there are none.
    """
    random = np.random.default_rng(seed)
    rows, texts, used = _draw_held_out(data_folder, random)
    source = " and ".join(used)
    if not rows:
        rows, texts = _draw_bundled(model_folder, random)
        source = (
            "the bundled first-aid set: the run has no usable held-out row, "
            "and may have trained on these"
        )
    usable = [(ids, trained) for ids, labels in rows if (trained := _trained_positions(labels))]
    share = -(-POSITIONS // len(usable))
    positions = []
    for _, trained in usable:
        drawn = random.choice(trained, min(share, len(trained)), replace=False)
        positions.append(sorted(drawn.tolist()))
    texts = [*odd_texts.HARD, *texts]
    made_up = [odd_texts.make_up_text(random) for _ in range(TEXTS - len(texts))]
    return Sample([ids for ids, _ in usable], positions, texts + made_up, source)


def _draw_held_out(
    data_folder: Path, random: np.random.Generator
) -> tuple[list[EncodedRow], list[str], list[str]]:
    """Return rows with a trained position within REACH, some texts, and the rows' splits."""
    rows: list[EncodedRow] = []
    texts: list[str] = []
    used: list[str] = []
    for split in ("validation", "test"):
        held = splits.load_split(data_folder, split)
        if len(rows) < ROWS:
            for number in random.permutation(len(held)).tolist():
                row = held[number]
                if _trained_positions(row["labels"]):
                    rows.append((row["input_ids"], row["labels"]))
                    if split not in used:
                        used.append(split)
                if len(rows) == ROWS:
                    break
        few = held[random.permutation(len(held))[: TEXTS // 5].tolist()]
        texts += few["question"] + few["answer"]
    return rows, texts, used


def _draw_bundled(
    model_folder: Path, random: np.random.Generator
) -> tuple[list[EncodedRow], list[str]]:
    lines = sources.BUNDLED["bundled:first-aid"].read_text(encoding="utf-8").splitlines()
    few = [json.loads(lines[number]) for number in random.permutation(len(lines))[:ROWS]]
    conversations = []
    texts = []
    for row in few:
        conversations.append(
            [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        )
        texts += [row["question"], row["answer"]]
    return label_mask.encode_all(chat.load_chat(model_folder), conversations), texts


def _trained_positions(labels: list[int]) -> list[int]:
    """Return the positions within REACH that count in the training loss."""
    return [n for n, label in enumerate(labels[:REACH]) if label != label_mask.IGNORED]
