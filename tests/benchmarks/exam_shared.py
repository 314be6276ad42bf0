"""What it saves to compute the beginnings that an item's prompts and options share once: seconds, tokens, the same verdicts.

    python tests/benchmarks/exam_shared.py .cache/gemma-3-270m             # or a .gguf, with --tokenizer FOLDER
    python tests/benchmarks/exam_shared.py .cache/gemma-3-270m.gguf --tokenizer .cache/gemma-3-270m

Both ways in this process, one after the other; loading a folder is not counted, loading a GGUF is. Alone: each letter prompt, and each
question with one option, is a tree of its own.
"""

import argparse
import functools
import pathlib
import sys
import time

import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from lib.data.reading import exam_items
from lib.exam import choices, completion, multiple_choice
from lib.exam.scoring import likelihood, token_tree
from lib.model import device, load


def score_alone(score, trees, tick):
    """Score each path of the trees as a tree of its own; letters of one prompt stay together."""
    alone, members = [], []
    for tree in trees:
        for last, numbers in _same_paths(tree).items():
            nodes = [last]
            while tree.parents[nodes[0]] >= 0:
                nodes.insert(0, tree.parents[nodes[0]])
            place = {node: n for n, node in enumerate(nodes)}
            asked = [[(place[node], token) for node, token in tree.asked[n]] for n in numbers]
            ids = [tree.ids[node] for node in nodes]
            alone.append(
                token_tree.TokenTree(
                    ids, list(range(-1, len(ids) - 1)), list(range(len(ids))), asked
                )
            )
            members.append((id(tree), numbers))
    found = {
        (tree, number): value
        for (tree, numbers), row in zip(members, score(alone, tick), strict=True)
        for number, value in zip(numbers, row, strict=True)
    }
    return [[found[id(tree), n] for n in range(len(tree.asked))] for tree in trees], sum(
        len(t.ids) for t in alone
    )


def _same_paths(tree):
    paths = {}
    for number, asked in enumerate(tree.asked):
        paths.setdefault(asked[-1][0], []).append(number)
    return paths


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("exam", nargs="?", default="bundled:exam")
    parser.add_argument("--tokenizer", type=pathlib.Path)
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--dtype", default="")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    device.set_threads = lambda: torch.set_num_threads(options.threads) or options.threads
    items = exam_items.read_items(options.exam)[: options.items or None]
    tokenizer = load.load_tokenizer((options.tokenizer or options.model).resolve())
    if options.model.suffix == ".gguf":
        score = functools.partial(likelihood.score_by_gguf, options.model)
    else:
        dtype = getattr(torch, options.dtype) if options.dtype else None
        score = functools.partial(
            likelihood.score_by_model, load.load_merged(options.model.resolve(), dtype)
        )
    found = {}
    for name in ("shared", "alone"):
        tokens = []

        def timed(trees, tick, name=name, tokens=tokens):
            tokens.append(sum(len(tree.ids) for tree in trees))
            if name == "shared":
                return score(trees, tick)
            scores, count = score_alone(score, trees, lambda _: None)
            tokens[0] = count
            return scores

        begin = time.perf_counter(), time.process_time()
        found[name] = multiple_choice.ask_items(items, tokenizer, timed, name)
        seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
        texts = completion.summarise_results(found[name], completion.choose_normalisation(items))
        print(
            f"{name}: {tokens[0]:,} tokens, {seconds[0]:.1f} s (processor {seconds[1]:.1f} s), "
            f"{len(items) / seconds[0]:.1f} items/s; right {choices.summarise_results(found[name])['right']} by "
            f"letter, {texts['completion']['by']} by text, {texts['bits_per_byte']['mean']:.4f} bits per byte"
        )
    differ = sum(
        a["right"] != b["right"] or a["completion"]["right"] != b["completion"]["right"]
        for a, b in zip(found["shared"], found["alone"], strict=True)
    )
    print(f"items judged otherwise in either form: {differ}")


if __name__ == "__main__":
    main()
