"""Measure how long the safety set's answers take in transformers and in llama.cpp, on one core.

    python -m tests.benchmarks.answers MODEL_FOLDER [--tokens 192] [--prompts 82] WAY...

A WAY is `transformers`, or a GGUF type and the number of slots, such as `f16:16`. Processor seconds
tell more than the clock where the machine has other work.
"""

import argparse
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch

from lib.exam import models
from lib.export import gguf_export
from lib.medical import safety
from lib.model import llama
from lib.model.load import load_merged, load_tokenizer

Answers = list[tuple[str, bool]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("ways", nargs="+", metavar="WAY")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--prompts", type=int, default=82)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    prompts = [row["prompt"] for row in safety.load_rows()][: chosen.prompts]
    with tempfile.TemporaryDirectory() as scratch:
        for way in chosen.ways:
            print(way, measure(prepare(chosen.folder, way, pathlib.Path(scratch)), prompts, chosen))


def prepare(folder: pathlib.Path, way: str, scratch: pathlib.Path) -> Callable[..., Answers]:
    """Return a function of prompts and tokens that answers with a model, which is ready."""
    if way == "transformers":
        net, tokenizer = load_merged(folder), load_tokenizer(folder)
        return lambda prompts, tokens: models._answer_by_model(
            net, tokenizer, prompts, tokens, lambda count: None
        )
    kind, _, slots = way.partition(":")
    path = scratch / f"{kind}.gguf"
    if not path.exists():
        begun = time.process_time()
        gguf_export.write_gguf(folder, path, kind)
        print(f"{kind} made in {time.process_time() - begun:.0f} processor seconds")
    return partial(answer_in_slots, path, int(slots))


def answer_in_slots(path: pathlib.Path, slots: int, prompts: list[str], tokens: int) -> Answers:
    talks = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with llama.load_gguf(path, n_ctx=512, n_parallel=slots, n_threads=1) as engine:
        answers = engine.chat_many(talks, tokens)
    return [(answer["text"], answer["stop"] == "stop") for answer in answers]


def measure(answer: Callable[..., Answers], prompts: list[str], chosen: argparse.Namespace) -> str:
    wall, processor = time.monotonic(), time.process_time()
    answers = answer(prompts, chosen.tokens)
    wall, processor = time.monotonic() - wall, time.process_time() - processor
    ended = sum(end for _, end in answers)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{processor:.0f} processor seconds, {wall:.0f} s, {ended} of {len(answers)} ended, "
        f"peak so far {memory:.1f} GiB"
    )


if __name__ == "__main__":
    main()
