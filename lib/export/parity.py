"""Is a GGUF the model that was trained? Its tokens, its numbers and its predictions, held against the 16-bit folder.

checks, answers, truth = parity.check_all(run, {"q4_0": "model-q4_0.gguf"}, seed=3407, max_tokens=32)
"""

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from lib.common import files
from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.data import chat, label_mask, sources, splits
from lib.export import gguf_weights
from lib.model import llama, shards
from lib.model.load import load_merged, load_tokenizer
from lib.training import evaluate, loss

ROWS, POSITIONS, TEXTS, TOP = 32, 128, 500, 1000
REACH = 256  # positions are among a row's first so many tokens: all before one must be computed, and a large model does 10 a second
TIE = 0.5  # nats between the two likeliest tokens: below it a 16-bit model that rounds otherwise may choose the other one

# What a sound file may differ by: mean KL at most; perplexity at most so many times the 16-bit model's, at least its inverse; greedy
# agreement at least. Behind each what files of a Gemma 3 270M showed (the demo's, trained 22 steps; 128 positions, the worst of up to
# three draws). Larger models should lose less. 16 bits have room for a reference that itself computed in bfloat16 (`reference`).
BOUNDS = {
    "f16": (3e-3, 1.02, 0.88),  # 0.0000068, 1.000, 0.99
    "bf16": (3e-3, 1.02, 0.88),  # 0.000056, 1.001, 0.98
    "q8_0": (0.01, 1.04, 0.88),  # 0.0029, 0.991, 0.95
    "q6_k": (0.04, 1.08, 0.82),  # 0.0135, 1.019, 0.92
    "q5_k_m": (0.13, 1.25, 0.7),  # 0.043, 1.058, 0.84; the untrained base 0.041, 1.119, 0.90
    "q4_k_m": (0.8, 1.8, 0.45),  # 0.37, 1.396, 0.64: much worse, but no damage
    "q4_0": (2.0, 5.0, 0.2),  # 1.19, 3.316, 0.36: the same, and more
}
FAITHFUL = (
    (0.01, "as the 16-bit model"),
    (0.1, "close to the 16-bit model"),
)  # mean KL up to the number

HARD = (
    "Call 112 now; press firmly for 15 minutes.",
    "  two  spaces\n\n\nlines\tand a tab\n",
    "Fièvre à 39,5 °C – 漢字 😀",
    "<start_of_turn>user\nMy hand is burnt.<end_of_turn>\n<start_of_turn>model\n",
    "* **Cool** the burn: `20 min`",
)
PIECES = (
    " ",
    "  ",
    "     ",
    "\n",
    "\n\n\n\n",
    "\t\t",
    "\r\n",
    "0",
    "12",
    "3.5",
    "1,000",
    "...",
    "=====",
    "<b>",
    "</h1>",
    "<table>",
    "<bos>",
    "<eos>",
    "<end_of_turn>",
    "<unused5>",
    "<mask>",
    "\u2581",
    "\u200b",
    "\u200d",
    "\u00a0",
    "\ufeff",
    "\x00",
    "the",
    "CALL",
    " 112",
    "don't",
    "<0x41>",
    "\\n",
    "{{x}}",
    "http://a.b/c?d=1",
)
ALPHABETS = (
    (0x20, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x400),
    (0x400, 0x530),
    (0x590, 0x700),
    (0x900, 0x980),
    (0xE00, 0xE80),
    (0x2000, 0x2070),
    (0x20A0, 0x20D0),
    (0x2190, 0x2400),
    (0x3040, 0x3100),
    (0x4E00, 0x9FFF),
    (0xAC00, 0xD7A4),
    (0x1F300, 0x1F700),
    (0x10000, 0x10100),
    (1, 0x20),
)
SMALLEST = 1e-6  # a rest below float32's resolution of a sum near 1 is not known


class Reference(NamedTuple):
    """What files are held against: rows of token ids, answer positions in each, the 16-bit model's predictions there; texts."""

    rows: list[list[int]]
    positions: list[
        list[int]
    ]  # ascending; the token at each is the true one, predicted from those before it
    logprobs: (
        np.ndarray
    )  # (positions in all, vocabulary), float32: 1 MiB a position of Gemma's vocabulary
    texts: list[str]
    source: str  # where the rows are from
    arithmetic: str  # what the 16-bit model computed in


def reference(data_folder: Path, model_dir: Path, net: Any, seed: int) -> Reference:
    """Answer positions and texts chosen by seed, and what the merged model predicts there. `net` is that model, loaded.

    Computed in float32 where there is room for it, else by `net` as it is: bfloat16's own rounding is a mean KL of 7e-4 on
    Gemma 3 270M, a quarter of Q8_0's, and another likeliest token at 5 % of positions.
    """
    rows, positions, texts, source = choose(data_folder, model_dir, seed)
    folder = Path(model_dir)
    needed = 2.2 * shards.weight_bytes(folder)
    room = (
        torch.cuda.mem_get_info()[0]
        if net.device.type == "cuda"
        else psutil.virtual_memory().available
    )
    net = load_merged(folder, torch.float32) if needed < room else net
    body, weight, softcap = loss.split_model(net)
    found = []
    with torch.inference_mode():
        for ids, where in zip(
            progress_bar("16-bit predictions", rows, unit="row"),
            positions,
            strict=True,
        ):
            hidden = body(
                input_ids=torch.tensor([ids[: where[-1]]], device=net.device), use_cache=False
            ).last_hidden_state[0]
            logits = (hidden[[n - 1 for n in where]].to(weight.dtype) @ weight.T).float()
            loss.cap_logits(logits, softcap)
            found.append(torch.log_softmax(logits, -1).cpu().numpy())
    return Reference(
        rows,
        positions,
        np.concatenate(found),
        texts,
        source,
        str(weight.dtype).removeprefix("torch."),
    )


def check_all(
    run_folder: Path, ggufs: dict[str, Path], seed: int, max_tokens: int
) -> tuple[dict[str, Any], dict[str, list[str]], Reference]:
    """`check` of each {type: path} of a run: {type: figures}, every model's answers to the fixed prompts, what they were held against."""
    folder = Path(run_folder) / "merged"
    net = load_merged(folder)
    answers, checks = (
        {"16-bit model": evaluate.answer_prompts(net, load_tokenizer(folder), max_tokens)},
        {},
    )
    truth = reference(Path(run_folder) / "data", folder, net, seed)
    del net  # llama.cpp needs the memory
    for kind, path in ggufs.items():
        checks[kind], answers[f"llama.cpp, {kind}"] = check(
            path, kind, folder, truth, evaluate.PROMPTS, max_tokens
        )
    return checks, answers, truth


def prompts(truth: Reference, count: int = 8) -> list[list[int]]:
    """Token ids of rows up to where an answer's token is to be predicted."""
    return [ids[: where[0]] for ids, where in zip(truth.rows, truth.positions, strict=True)][:count]


def choose(
    data_folder: Path, model_dir: Path, seed: int
) -> tuple[list[list[int]], list[list[int]], list[str], str]:
    """(rows, positions, texts, source): POSITIONS trained positions over ROWS held-out rows; TEXTS texts, of theirs, hard, made up.

    Validation rows whose answer begins within REACH; test rows too where those are fewer than ROWS; where there are none, the
    bundled first-aid set's.
    """
    random, rows, texts, used = np.random.default_rng(seed), [], [], []
    for split in ("validation", "test"):
        held = splits.load_split(Path(data_folder), split)
        for n in random.permutation(len(held)).tolist() if len(rows) < ROWS else ():
            if any(label != label_mask.IGNORED for label in held[n]["labels"][:REACH]):
                rows.append((held[n]["input_ids"], held[n]["labels"]))
                used = [*dict.fromkeys([*used, split])]
            if len(rows) == ROWS:
                break
        few = held[random.permutation(len(held))[: TEXTS // 5].tolist()]
        texts += few["question"] + few["answer"]
    source = " and ".join(used)
    if not rows:
        bundled = sources.BUNDLED["bundled:first-aid"].read_text(encoding="utf-8").splitlines()
        few = [json.loads(bundled[n]) for n in random.permutation(len(bundled))[:ROWS]]
        turns = [
            [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
            for row in few
        ]
        rows = label_mask.encode_all(chat.load_chat(Path(model_dir)), turns)
        texts = [turn["content"] for pair in turns for turn in pair]
        source = "the bundled first-aid set: the run holds out no row that can be used, and may have trained on these"
    trained = [
        [n for n, label in enumerate(labels[:REACH]) if label != label_mask.IGNORED]
        for _, labels in rows
    ]
    rows, trained = (
        [ids for (ids, _), some in zip(rows, trained, strict=True) if some],
        [some for some in trained if some],
    )
    share = -(-POSITIONS // len(rows))
    positions = [
        sorted(random.choice(some, min(share, len(some)), replace=False).tolist())
        for some in trained
    ]
    texts = [*HARD, *texts]
    return rows, positions, texts + [_made_up(random) for _ in range(TEXTS - len(texts))], source


def _made_up(random: Any) -> str:
    """A text no one would write: bits that tokenizers treat specially, and characters of many scripts."""
    parts = []
    for _ in range(random.integers(1, 40)):
        low, high = ALPHABETS[random.integers(len(ALPHABETS))]
        parts.append(
            PIECES[random.integers(len(PIECES))]
            if random.random() < 0.5
            else "".join(map(chr, random.integers(low, high, random.integers(1, 6))))
        )
    return "".join(parts)


def check(
    gguf_file: Path,
    kind: str,
    model_dir: Path,
    truth: Reference,
    prompts: tuple[str, ...],
    max_tokens: int = 32,
) -> tuple[dict[str, Any], list[str]]:
    """Hold a GGUF of type `kind` against the folder it was made from; (figures, an answer to each prompt).

    In this order: every tensor's numbers, loading in llama.cpp, the same tokens for every text and the same prompts by the chat
    template, predictions within BOUNDS, answers. UserError at the first that fails.
    """
    path, folder, begin = Path(gguf_file), Path(model_dir), time.monotonic()
    shown = files.shown(path)
    print(
        f"{shown}: comparing its weights, then its tokens, predictions and {len(prompts)} answers in llama.cpp",
        flush=True,
    )
    weights = gguf_weights.compare(path, kind, folder)
    with llama.load_gguf(path) as engine:
        same_tokens(engine, chat.load_chat(folder), truth.texts, prompts, shown)
        figures = compare(truth, list(_predictions(engine, truth, kind)))
        within(figures, kind, shown)
        answers = [
            engine.chat([{"role": "user", "content": prompt}], max_tokens=max_tokens)
            for prompt in prompts
        ]
    said = [answer["text"].strip() for answer in answers]
    if not any(said):
        raise UserError(
            f"{shown} answers every prompt with nothing, the first being {prompts[0]!r}. Expected text: look at the training."
        )
    return {
        "verdict": verdict(figures["kl_mean"]),
        **figures,
        "rows": len(truth.rows),
        "rows_from": truth.source,
        "arithmetic_16bit": truth.arithmetic,
        "tensors": weights["tensors"],
        "largest_block_error": weights["worst"],
        "texts": len(truth.texts),
        "prompts": len(prompts),
        "empty_answers": said.count(""),
        "tokens": sum(answer["tokens"] for answer in answers),
        "tokens_per_second": sum(answer["tokens_per_second"] for answer in answers) / len(answers),
        "seconds": round(time.monotonic() - begin, 1),
    }, said


def same_tokens(
    engine: llama.Engine,
    tokenizer: chat.Chat,
    texts: list[str],
    prompts: tuple[str, ...],
    shown: str,
) -> None:
    """UserError unless llama.cpp gives every text the tokenizer's ids, and renders conversations as the tokenizer's template does."""

    def differ(ours: list[int], theirs: list[int], what: str, whose: str) -> None:
        if ours != theirs:
            n = next(
                (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)),
            )
            raise UserError(
                f"{shown} {what} as {theirs[n : n + 8]} from token {n} on, {whose} as {ours[n : n + 8]}. Expected the same ids: "
                "convert again from the base's own tokenizer files."
            )

    ids = lambda text: tokenizer.tokenizer.encode(text, add_special_tokens=False).ids  # noqa: E731
    for text in texts:
        differ(
            ids(text),
            engine.tokenize(text),
            f"tokenises {text[:80]!r}",
            "the tokenizer it was trained with",
        )
    for prompt in prompts:
        turn = [{"role": "user", "content": prompt}]
        for turns in (
            turn,
            [*turn, {"role": "assistant", "content": "Call for help first."}, *turn],
        ):
            differ(
                ids(tokenizer.render(turns, add_generation_prompt=True)),
                engine.tokenize(engine.render(turns), add_special=True),
                f"renders a conversation of {len(turns)} turns by its chat template",
                "the template it was trained with",
            )


def _predictions(engine: llama.Engine, truth: Reference, kind: str) -> Any:
    """{token id: log-probability} of the TOP likeliest tokens at each position, row by row."""
    with progress_bar(f"{kind} predictions", total=len(truth.logprobs), unit="position") as bar:
        for ids, where in zip(truth.rows, truth.positions, strict=True):
            for position in where:  # ascending, so that each continues what the one before it computed, as decoding does
                yield engine.next_token_logprobs(ids[:position], TOP, reuse=True)
                bar.update()


def compare(truth: Reference, found: list[dict[int, float]]) -> dict[str, Any]:
    """How far predictions are from the 16-bit model's; `found` has the likeliest tokens' log-probabilities at each position.

    kl_*: divergence of `found` from the 16-bit model in nats, all other tokens as one, so never more than the true one.
    perplexity*: of the true tokens; one that is not among the likeliest counts as the last of them, on both sides (`beyond_top`).
    greedy_agreement: share of positions with the same likeliest token; the others are near_ties, where the 16-bit model gives
    the two within TIE nats, and clear_disagreements.
    """
    targets = [
        ids[n] for ids, where in zip(truth.rows, truth.positions, strict=True) for n in where
    ]
    divergence, ours, theirs, regret, beyond = [], [], [], [], 0
    for p, q, target in zip(truth.logprobs.astype(np.float64), found, targets, strict=True):
        ids, likely = np.fromiter(q, int), np.fromiter(q.values(), np.float64)
        inside = p[ids]
        rest = max(0.0, 1 - np.exp(inside).sum()), max(SMALLEST, 1 - np.exp(likely).sum())
        divergence.append(
            (np.exp(inside) * (inside - likely)).sum()
            + (rest[0] * np.log(rest[0] / rest[1]) if rest[0] else 0.0)
        )
        ours.append(max(p[target], np.partition(p, -len(ids))[-len(ids)]))
        theirs.append(q.get(target, likely.min()))
        beyond += target not in q
        regret.append(p.max() - p[ids[likely.argmax()]])
    divergence, regret = np.maximum(divergence, 0), np.array(regret)
    perplexities = [float(np.exp(-np.mean(side))) for side in (ours, theirs)]
    return {
        "positions": len(targets),
        "top": TOP,
        "kl_mean": float(divergence.mean()),
        "kl_p99": float(np.quantile(divergence, 0.99)),
        "kl_max": float(divergence.max()),
        "perplexity_16bit": perplexities[0],
        "perplexity": perplexities[1],
        "perplexity_ratio": perplexities[1] / perplexities[0],
        "beyond_top": beyond,
        "greedy_agreement": float((regret == 0).mean()),
        "near_ties": int(((regret > 0) & (regret <= TIE)).sum()),
        "clear_disagreements": int((regret > TIE).sum()),
    }


def within(figures: dict[str, Any], kind: str, shown: str) -> None:
    """UserError unless `compare`'s figures are within BOUNDS of a file of type `kind`; NaN is not."""
    kl, ratio, agreement = BOUNDS[kind]
    found = figures["perplexity_ratio"]
    faults = (
        [f"mean KL {figures['kl_mean']:.3g} nats, at most {kl:g}"]
        if not figures["kl_mean"] <= kl
        else []
    )
    faults += (
        [f"perplexity {found:.4g} times the 16-bit model's, {1 / ratio:.3g} to {ratio:g}"]
        if not 1 / ratio <= found <= ratio
        else []
    )
    if not figures["greedy_agreement"] >= agreement:
        faults.append(
            f"the same likeliest token at {figures['greedy_agreement']:.1%} of positions, at least {agreement:.0%}"
        )
    if faults:
        raise UserError(
            f"{shown} does not predict what the 16-bit model does at {figures['positions']} held-out answer tokens: "
            f"{'; '.join(faults)} is what {kind} does to a sound file. Its weights are right, so its metadata or llama.cpp's "
            "reading of them is not: export again; if that does not help, do not ship it."
        )


def verdict(kl: float) -> str:
    """What a mean KL says to people, by FAITHFUL; a file within BOUNDS may still be a much worse model, as 4 bits of a small one are."""
    return next(
        (words for limit, words in FAITHFUL if kl <= limit),
        "much worse than the 16-bit model: read its answers before you ship it",
    )
