"""The models of a run as an exam meets them: the base, the adapter on it, the merged folder and each GGUF, one loaded at a time."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lib.exam import choices
from lib.model import base, llama, load
from lib.params import Params
from lib.record.run_record import Run
from lib.training import evaluate

PROMPTS_AT_ONCE = 32
SLOTS = 16  # of llama.cpp, which computes no padding and so gains less from more
PARTS = (
    ".safetensors",
    ".json",
    ".model",
    ".jinja",
)  # cards, notices and scripts beside them are no part of a model
# (tokenizer, prompts, longest answer in tokens, how many more are done) to texts, and whether each ended by itself
Answer = Callable[[Any, list[str], int, Callable[[int], Any]], list[tuple[str, bool]]]


class Loaded(NamedTuple):
    """A model that can be asked: how letters are scored, how it answers, and the model itself where it is one of transformers."""

    score: choices.Score
    answer: Answer
    net: Any = None


def of(
    run: Run, job: Params, artifacts: list[dict[str, Any]]
) -> Iterator[tuple[str, list[str], Callable[[], Any]]]:
    """Name, hashes of what it is made of, and a context that gives it `Loaded`; `artifacts` are {path, sha256} of the run."""
    folder = base.fetch(job.base_model, job.base_revision)
    sums = {
        part: [
            a["sha256"]
            for a in artifacts
            if a["path"].startswith(f"{part}/") and a["path"].endswith(PARTS)
        ]
        for part in ("adapter", "merged")
    }
    yield "base", [base.fingerprint(folder)], partial(_loaded, folder)
    yield (
        "adapter",
        [base.fingerprint(folder), *sums["adapter"]],
        partial(_loaded, folder, run.folder / "adapter"),
    )
    yield "merged", sums["merged"], partial(_loaded, run.folder / "merged")
    for kind in job.gguf_types:
        path = run.folder / "gguf" / f"{run.folder.name}-{kind}.gguf"
        yield (
            kind,
            [a["sha256"] for a in artifacts if run.folder / a["path"] == path],
            partial(_served, path),
        )


@contextlib.contextmanager
def _loaded(folder: Path, adapter: Path | None = None) -> Iterator[Loaded]:
    gc.collect()  # of the model before this one
    torch.cuda.empty_cache()
    net = load.load_merged(folder)
    if adapter:
        import peft

        net = peft.PeftModel.from_pretrained(net, str(adapter)).eval()

    def answer(
        tokenizer: Any, prompts: list[str], tokens: int, tick: Callable[[int], Any]
    ) -> list[tuple[str, bool]]:
        # prompts of similar length together: a batch lasts as long as its longest answer, and padding is computed too
        order, said = sorted(range(len(prompts)), key=lambda n: len(prompts[n])), {}
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            now = order[start : start + PROMPTS_AT_ONCE]
            said |= dict(
                zip(
                    now,
                    evaluate.finished_answers(
                        net, tokenizer, tokens, tuple(prompts[n] for n in now)
                    ),
                    strict=True,
                )
            )
            tick(len(now))
        return [said[n] for n in range(len(prompts))]

    yield Loaded(partial(choices.model_scores, net), answer, net)


@contextlib.contextmanager
def _served(path: Path) -> Iterator[Loaded]:
    def score(
        prompts: choices.Prompts, wanted: choices.Wanted, tick: Callable[[int], Any]
    ) -> list[list[float]]:
        with llama.load_gguf(path, n_ctx=max(map(len, prompts)) + 8) as engine:
            return choices.gguf_scores(engine, prompts, wanted, tick)

    def answer(
        _: Any, prompts: list[str], tokens: int, tick: Callable[[int], Any]
    ) -> list[tuple[str, bool]]:
        with llama.load_gguf(path, n_parallel=SLOTS) as engine:
            turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
            return [
                (one["text"].strip(), one["stop"] == "stop")
                for one in engine.chat_many(turns, tokens, tick)
            ]

    yield Loaded(score, answer)
