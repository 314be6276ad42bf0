"""Load the models of a run for an exam, one at a time.

They are the base, the adapter on it (none after full fine-tuning), the merged folder and each GGUF.

    for model in models.list_models(run_folder, base_folder, job.gguf_types, artifacts):
        with model.load() as loaded:
            loaded.score(...), loaded.answer(...)
"""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.common.errors import UserError
from lib.exam.scoring import likelihood
from lib.model import base, llama
from lib.model.end_token import end_row
from lib.model.load import load_merged
from lib.record.schema import Artifact
from lib.training import evaluate

PROMPTS_AT_ONCE = 32
# parallel conversations in llama.cpp, which computes no padding, so that more gain little
SLOTS = 16
# the folders also have cards, notices and scripts, which do not affect what the model computes
MODEL_SUFFIXES = (".safetensors", ".json", ".model", ".jinja")

# Takes a tokenizer, prompts, the longest answer in tokens and a Tick for progress. Returns each
# answer, and whether it ended by itself.
Answer = Callable[[Any, list[str], int, likelihood.Tick], list[tuple[str, bool]]]


class Loaded(NamedTuple):
    """A model in memory: functions to score trees and to answer, and any transformers model."""

    score: likelihood.Score
    answer: Answer
    net: Any = None


class RunModel(NamedTuple):
    """A model of a run: its name, the hashes of its files, and a context that loads it."""

    name: str
    made_of: list[str]
    load: Callable[[], contextlib.AbstractContextManager[Loaded]]


def list_models(
    run_folder: Path, base_folder: Path, gguf_types: Sequence[str], artifacts: Sequence[Artifact]
) -> list[RunModel]:
    """List the models of a run in the order they are examined; `artifacts` are its files."""
    base_hash = base.fingerprint(base_folder)
    adapter_folder, merged_folder = run_folder / "adapter", run_folder / "merged"
    adapter_hashes = _hashes_under("adapter", artifacts)
    models = [RunModel("base", [base_hash], partial(_load_transformers, base_folder))]
    if adapter_hashes:
        load_adapter = partial(_load_transformers, base_folder, adapter_folder)
        models.append(RunModel("adapter", [base_hash, *adapter_hashes], load_adapter))
    merged_hashes = _hashes_under("merged", artifacts)
    models.append(RunModel("merged", merged_hashes, partial(_load_transformers, merged_folder)))
    for kind in gguf_types:
        # by its end, since the folder of a run may have been renamed
        made = [a for a in artifacts if a["path"].endswith(f"-{kind}.gguf")]
        if len(made) != 1:
            raise UserError(
                f"The last export of run `{run_folder.name}` made no {kind} GGUF, so there is "
                f"none to examine. `make export RUN={run_folder.name}` makes it."
            )
        load = partial(_load_gguf, run_folder / made[0]["path"])
        models.append(RunModel(kind, [made[0]["sha256"]], load))
    return models


def _hashes_under(part: str, artifacts: Sequence[Artifact]) -> list[str]:
    """Return the hashes of the files in a folder of the run that affect what the model computes."""
    return [
        artifact["sha256"]
        for artifact in artifacts
        if artifact["path"].startswith(f"{part}/") and artifact["path"].endswith(MODEL_SUFFIXES)
    ]


@contextlib.contextmanager
def _load_transformers(folder: Path, adapter: Path | None = None) -> Iterator[Loaded]:
    gc.collect()  # frees the model that was examined before this one
    torch.cuda.empty_cache()
    net = load_merged(folder)
    if adapter:
        import peft  # takes seconds, and only the adapter needs it

        net = end_row.fold_in(peft.PeftModel.from_pretrained(net, str(adapter)).eval())
    yield Loaded(partial(likelihood.score_by_model, net), partial(_answer_by_model, net), net)


def _answer_by_model(
    net: Any, tokenizer: Any, prompts: list[str], tokens: int, tick: likelihood.Tick
) -> list[tuple[str, bool]]:
    # batch prompts of similar length, since padding is computed too
    order = sorted(range(len(prompts)), key=lambda n: len(prompts[n]))
    answers: dict[int, tuple[str, bool]] = {}
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        batch = order[start : start + PROMPTS_AT_ONCE]
        texts = tuple(prompts[n] for n in batch)
        finished = evaluate.generate_answers(net, tokenizer, tokens, texts)
        answers.update(zip(batch, finished, strict=True))
        tick(len(batch))
    return [answers[n] for n in range(len(prompts))]


@contextlib.contextmanager
def _load_gguf(path: Path) -> Iterator[Loaded]:
    # each loads the file for itself, since scoring and answering need different contexts
    yield Loaded(partial(likelihood.score_by_gguf, path), partial(_answer_by_gguf, path))


def _answer_by_gguf(
    path: Path, tokenizer: Any, prompts: list[str], tokens: int, tick: likelihood.Tick
) -> list[tuple[str, bool]]:
    # the GGUF holds a tokenizer and a chat template of its own, so `tokenizer` is not used
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with llama.load_gguf(path, n_parallel=SLOTS) as engine:
        answers = engine.chat_many(conversations, tokens, tick)
    return [(answer["text"].strip(), answer["stop"] == "stop") for answer in answers]
