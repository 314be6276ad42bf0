"""Examine a finished run: the base, the adapter on it, the merged folder and each GGUF on the same items, into the run's exam.json.

    python -m lib.exam RUN [EXAM]     # EXAM: bundled:exam, a file or folder of question/options/answer_letter (.gz too), or a hub id;
                                      # bundled:safety asks the safety set, and judges the answers by rules (lib/safety.py)

Each model's result is written as soon as it is there, and the same command goes on after those already examined. Exit codes: 0, 2 wrong
usage or a run that is not finished, 130 / 143 interrupted.
"""

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import json
import math
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from lib import DISCLAIMER, base, choices, device, evaluate, exam_items, files, llama, model, params, prepared, record, safety, stats
from lib.params import UserError
from lib.record import Run

SAFETY_TOKENS, PROMPTS_AT_ONCE = 128, 16
# (tokenizer, prompts, how many more are done) to texts, and whether each ended by itself
Answers = Callable[[Any, list[str], Callable[[int], Any]], list[tuple[str, bool]]]


def examine(folder: pathlib.Path, exam: str = "bundled:exam", shuffles: int = 1, seed: int = choices.SEED) -> dict[str, Any]:
    """The entry of an exam in a run's exam.json, after asking every model of the run that has no result in it yet; UserError unless exported."""
    if not (folder / "run.json").is_file():
        there = ", ".join(sorted(p.parent.name for p in record.runs_folder().glob("*/run.json"))) or "none"
        raise UserError(f"`{files.shown(folder)}` is not a run: it has no run.json. Runs there: {there}.")
    items = safety.load() if exam == safety.NAME else exam_items.read(exam)
    record.lock(folder)
    try:
        job, run = params.load(folder / "params.yaml"), Run(folder, record.read_record(folder / "run.json"))
        for stage in record.STAGES[1:]:
            done, trouble = run.finished(stage)
            if not done:
                raise UserError(f"run `{folder.name}` cannot be examined: {stage} is {trouble or run.stage(stage)['status']}. "
                                f"Finish it with `make export` and its PARAMS and RUN.")
        return _examine(run, job, exam, items, shuffles, seed)
    finally:
        files.unlock(folder)


def _examine(run: Run, job: params.Params, exam: str, items: list[dict[str, Any]], shuffles: int, seed: int) -> dict[str, Any]:
    path = run.folder / "exam.json"
    every = files.read_json(path, "exam file") if path.exists() else {}
    settings = {"items": len(items), "sha256": _hash(items)}
    settings |= {"tokens": SAFETY_TOKENS} if exam == safety.NAME else {"instruction": choices.INSTRUCTION, "seed": seed, "shuffles": shuffles}
    known, entry = every.get(exam, {}).get("models", {}), {"exam": exam, **settings, "models": {}}
    tokenizer = model.load_tokenizer(run.folder / "merged")
    for name, made_of, load in _models(run, job):
        if exam == safety.NAME and name == "adapter":  # merged is the same model, and an answer takes longer than a letter
            continue
        identity = _hash([settings, made_of, _method()])
        if known.get(name, {}).get("identity") == identity:
            print(f"{name}: examined before, nothing to do")
            entry["models"][name] = known[name]
        else:
            found = _answer(load, items, tokenizer, name) if exam == safety.NAME else _sit(load, run.folder, items, tokenizer, name, shuffles, seed)
            entry["models"][name] = {"identity": identity, **found}
        entry["comparisons"] = safer(entry["models"]) if exam == safety.NAME else comparisons(entry["models"], seed)
        files.write_json(path, {**every, exam: entry})
    return entry


def _sit(load: Callable[[], Any], folder: pathlib.Path, items: list[dict[str, Any]], tokenizer: Any, name: str, shuffles: int,
         seed: int) -> dict[str, Any]:
    with load() as (score, net, _):
        results = choices.take(items, tokenizer, score, name, shuffles, seed)
        return {**choices.summary(results), "held_out": None if net is None else _held_out(net, folder, name), "results": results}


def _answer(load: Callable[[], Any], items: list[dict[str, Any]], tokenizer: Any, name: str) -> dict[str, Any]:
    """The safety set, answered and judged; the counts of safety.summary, and every answer with what the rules found in it."""
    bar = tqdm(total=len(items), desc=f"{name}, safety set", unit="answer", file=sys.stdout, mininterval=2, ncols=100)
    with load() as (_, _, answer), bar:
        said = answer(tokenizer, [item["prompt"] for item in items], bar.update)
    judged = [safety.judge(item, *one) for item, one in zip(items, said, strict=True)]
    return {**safety.summary(judged), "answers": [{**j, "prompt": item["prompt"], "answer": text}
                                                  for j, item, (text, _) in zip(judged, items, said, strict=True)]}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


def _method() -> list[str]:
    """What decides a score besides the model and the items: our code, the libraries that compute, and in what precision."""
    code = [files.sha256(pathlib.Path(__file__).with_name(name)) for name in ("choices.py", "loss.py", "evaluate.py", "safety.py", "advice.py")]
    return [*code, *(importlib.metadata.version(p) for p in ("torch", "transformers", "xllamacpp")), str(device.precision()[0])]


# ---------------------------------------------------------------------------------------------------------------------
# the models of a run


def _models(run: Run, job: params.Params) -> Iterator[tuple[str, list[str], Callable[[], Any]]]:
    """Name, what it is made of, and a context that gives (how letters are scored, the model where it is one of transformers, how it answers)."""
    recorded = [a for stage in ("train", "export") for a in run.stage(stage)["artifacts"]]
    folder = base.folder(job)
    sums = {part: [a["sha256"] for a in recorded if a["path"].startswith(f"{part}/")] for part in ("adapter", "merged")}
    yield "base", [base.fingerprint(folder)], partial(_loaded, folder)
    yield "adapter", [base.fingerprint(folder), *sums["adapter"]], partial(_loaded, folder, run.folder / "adapter")
    yield "merged", sums["merged"], partial(_loaded, run.folder / "merged")
    for kind in job.gguf_types:
        path = run.folder / "gguf" / f"{run.folder.name}-{kind}.gguf"
        yield kind, [a["sha256"] for a in recorded if run.folder / a["path"] == path], partial(_served, path)


@contextlib.contextmanager
def _loaded(folder: pathlib.Path, adapter: pathlib.Path | None = None) -> Iterator[tuple[choices.Score, Any, Answers]]:
    gc.collect()  # of the model before this one
    torch.cuda.empty_cache()
    net = model.load_merged(folder)
    if adapter:
        import peft

        net = peft.PeftModel.from_pretrained(net, str(adapter)).eval()

    def answer(tokenizer: Any, prompts: list[str], tick: Callable[[int], Any]) -> list[tuple[str, bool]]:
        said = []
        for start in range(0, len(prompts), PROMPTS_AT_ONCE):
            said += evaluate.finished_answers(net, tokenizer, SAFETY_TOKENS, tuple(prompts[start:start + PROMPTS_AT_ONCE]))
            tick(len(said) - start)
        return said

    yield partial(choices.model_scores, net), net, answer


@contextlib.contextmanager
def _served(path: pathlib.Path) -> Iterator[tuple[choices.Score, None, Answers]]:
    def score(prompts: choices.Prompts, wanted: choices.Wanted, tick: Callable[[int], Any]) -> list[list[float]]:
        with llama.load(path, n_ctx=max(map(len, prompts)) + 8) as engine:
            return choices.gguf_scores(engine, prompts, wanted, tick)

    def answer(_: Any, prompts: list[str], tick: Callable[[int], Any]) -> list[tuple[str, bool]]:
        said = []
        with llama.load(path) as engine:
            for prompt in prompts:
                one = engine.chat([{"role": "user", "content": prompt}], max_tokens=SAFETY_TOKENS)
                said.append((one["text"].strip(), one["stop"] == "stop"))
                tick(1)
        return said

    yield score, None, answer


def _held_out(net: Any, folder: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Response loss and tokens of each row of the split never looked at in training, without one of the other; None without either."""
    for split in ("test", "validation"):
        data = prepared.load(folder / "data", split)
        if len(data):
            bar = partial(tqdm, desc=f"{name}, held-out rows", file=sys.stdout, mininterval=2, ncols=100)
            rows = evaluate.row_losses(net, data, bar=bar)
            return {"split": split, "rows": len(rows), "tokens": int(rows[:, 1].sum()),
                    "perplexity": math.exp(rows[:, 0].sum() / rows[:, 1].sum()), "losses": rows.round(6).tolist()}
    return None


# ---------------------------------------------------------------------------------------------------------------------
# before and after


def comparisons(models: dict[str, Any], seed: int = choices.SEED) -> list[dict[str, Any]]:
    """Each model beside the base, and each GGUF beside the merged folder it was made from: `compare` of the exam, and where both have
    the held-out rows the ratio of perplexities with its bootstrap interval."""
    pairs = [("base", name) for name in models if name != "base"] + [("merged", name) for name in models if name not in ("base", "adapter", "merged")]
    found = []
    for before, after in pairs:
        found.append({"before": before, "after": after, **choices.compare(models[before]["results"], models[after]["results"], seed)})
        rows = [models[name]["held_out"] for name in (before, after)]
        if all(rows):
            ratio, interval = stats.perplexity_ratio(*(np.array(r["losses"]) for r in rows), seed)
            found[-1] |= {"perplexity_ratio": ratio, "perplexity_interval": list(interval)}
    return found


def safer(models: dict[str, Any]) -> list[dict[str, Any]]:
    """Each model's passed answers to the safety set beside the base's, paired by prompt."""
    found = []
    for name in [n for n in models if n != "base"]:
        was, now = ([a["passed"] for a in models[which]["answers"]] for which in ("base", name))
        found.append({"before": "base", "after": name, **stats.changes(was, now)})
    return found


def safety_table(entry: dict[str, Any]) -> str:
    """The entry of the safety set as text for a terminal."""
    lines = [f"{entry['exam']}: {entry['items']} prompts, greedy answers of up to {entry['tokens']} tokens, judged by rules", "",
             f"{'':12}" + "".join(f"{key.replace('_', ' '):>16}" for key in safety.COUNTS)]
    for name, m in entry["models"].items():
        counts = [m[key] for key in safety.COUNTS]
        lines.append(f"{name:12}" + "".join(f"{c['count']:>6} of {c['of']:<3} {c['count'] / c['of']:>3.0%}" for c in counts))
    lines += ["", *(f"base -> {c['after']}: {c['gained']} passed that had not, {c['lost']} no longer, p = {c['p']:.2g} (McNemar, exact)"
                    for c in entry["comparisons"]),
              "The rules see what is named, not whether the steps are right: a fluent answer beside the point may pass. Read the answers."]
    return "\n".join(lines)


def table(entry: dict[str, Any]) -> str:
    """The entry as text for a terminal."""
    if entry["exam"] == safety.NAME:
        return safety_table(entry)
    first = next(iter(entry["models"].values()))
    lines = [f"{entry['exam']}: {entry['items']} items, of which guessing gets {first['by_chance']:.1%}", "",
             f"{'':12}{'right':>11}{'accuracy':>10}{'95 %':>16}{'shuffled':>10}{'on letters':>12}{'perplexity':>12}"]
    for name, m in entry["models"].items():
        shuffled = f"{np.mean([o['accuracy'] for o in m['orders'][1:]]):.1%}" if m["orders"][1:] else "-"
        perplexity = f"{m['held_out']['perplexity']:.3f}" if m["held_out"] else "-"
        lines.append(f"{name:12}{m['right']:>5} / {m['of']:<3}{m['accuracy']:>10.1%}{_range(m['interval']):>16}{shuffled:>10}"
                     f"{m['letter_mass']:>12.1%}{perplexity:>12}")
    lines += ["", "on letters: the probability that the answer begins with one of the letters at all", ""]
    for name, m in entry["models"].items():
        said = ", ".join(f"{letter} {s['chosen']:.0%} ({s['right']:.0%})" for letter, s in m["orders"][0]["letters"].items())
        lines.append(f"{name:12}chooses (is right): {said}")
    lines.append("")
    for c in entry["comparisons"]:
        lines.append(f"{c['before']} -> {c['after']}: {c['difference']:+.1%} ({_range(c['interval'], '+')}), {c['gained']} gained, {c['lost']} lost, "
                     f"p = {c['p']:.2g} (McNemar, exact)")
        if "perplexity_ratio" in c:
            lines[-1] += f"; perplexity x {c['perplexity_ratio']:.3f} ({c['perplexity_interval'][0]:.3f} to {c['perplexity_interval'][1]:.3f})"
    return "\n".join(lines)


def _range(ends: list[float], sign: str = "") -> str:
    return f"{100 * ends[0]:{sign}.1f} to {100 * ends[1]:{sign}.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.exam", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("exam", nargs="?", default="bundled:exam", metavar="EXAM")
    parser.add_argument("--shuffles", type=int, default=1, metavar="N", help="times each item is asked with its options shuffled (default 1)")
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        folder = record.folder_for(params.Params(), "", options.run)
        print(f"{table(examine(folder, options.exam, max(0, options.shuffles)))}\n\nin {files.shown(folder)}/exam.json. {DISCLAIMER}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on after the models already examined", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
