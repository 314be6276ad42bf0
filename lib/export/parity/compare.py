"""Check that a GGUF is the model that was trained, by comparing it with the 16-bit folder.

    origin = importance.prepare(run, job, base)
    checks, answers, truth = compare.check_ggufs(run, {"q4_0": path}, origin, 3407, max_tokens=32)

Weights, tokens and predictions are compared. Where predictions are not nearly the 16-bit model's,
torch must give the same ones with the file's own numbers. lib/common/gguf_types.py says how much a
type's rounding may cost.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.common import files, stats
from lib.common.errors import UserError
from lib.common.progress import progress_bar
from lib.common.redact import redacted
from lib.data import chat
from lib.export import gguf_export, gguf_weights
from lib.export.few_bits.importance import Origin
from lib.export.parity import reference, rounding, verdicts
from lib.export.parity.reference import Reference
from lib.model import llama
from lib.model.load import load_merged, load_tokenizer
from lib.record.run_record import Run
from lib.training import evaluate

TOP = 1000  # likeliest tokens compared at each position
# nats between the two likeliest tokens; if there are fewer, a 16-bit model that rounds differently
# may choose the other one
TIE = 0.5
FAILED = "failed: the file is refused"
SMALLEST = 1e-6  # float32 cannot resolve a smaller remainder of a sum near 1


class Parity(NamedTuple):
    """The GGUF files of a run compared with the 16-bit model."""

    figures: dict[str, dict[str, Any]]  # by type
    answers: dict[str, list[str]]  # by model, to the fixed prompts
    reference: Reference


def check_ggufs(
    run: Run, ggufs: dict[str, Path], origin: Origin, seed: int, max_tokens: int
) -> Parity:
    """Call `check_parity` for the draft of each {type: path} of a run, and name those that pass.

    Raise UserError at the first file that fails, which gets a name and an entry in results.json
    that say so.
    """
    folder = origin.merged
    net = load_merged(folder)
    tokenizer = load_tokenizer(folder)
    answers = {"16-bit model": evaluate.answer_prompts(net, tokenizer, max_tokens)}
    truth = reference.predict_reference(run.folder / "data", folder, net, seed)
    del net  # llama.cpp needs the memory
    figures: dict[str, dict[str, Any]] = {}
    for file_type, path in ggufs.items():
        draft = gguf_export.draft_of(path)
        try:
            figures[file_type], answers[f"llama.cpp, {file_type}"] = check_parity(
                draft, file_type, origin, truth, evaluate.PROMPTS, max_tokens
            )
        except UserError as error:
            refused = gguf_export.refuse_draft(path)
            reason = str(error).replace(files.format_path(draft), refused.name)
            measured = error.figures if isinstance(error, verdicts.OutsideBounds) else {}
            figures[file_type] = {"verdict": FAILED, "failed": redacted(reason), **measured}
            run.add_results("export", {"parity": figures})
            raise UserError(reason) from None
        gguf_export.accept_draft(path)
    return Parity(figures, answers, truth)


def check_parity(
    path: Path,
    file_type: str,
    origin: Origin,
    truth: Reference,
    prompts: tuple[str, ...],
    max_tokens: int = 32,
) -> tuple[dict[str, Any], list[str]]:
    """Check a GGUF against what it was made from; return figures and answers to the prompts.

    In this order: every tensor's numbers, loading in llama.cpp, the same tokens for every text and
    the same prompts by the chat template, predictions, answers. UserError at the first that fails.
    """
    begin = time.monotonic()
    name, folder = files.format_path(path), origin.merged
    print(
        f"{name}: comparing its weights, then its tokens, predictions and {len(prompts)} answers "
        "in llama.cpp",
        flush=True,
    )
    weights = gguf_weights.compare_weights(path, file_type, folder, origin.base, origin.matrix)
    with llama.load_gguf(path) as engine:
        require_same_tokens(engine, chat.load_chat(folder), truth.texts, prompts, name)
        predictions = list(_predict_positions(engine, truth, file_type))
        replies = [
            engine.chat([{"role": "user", "content": prompt}], max_tokens=max_tokens)
            for prompt in prompts
        ]
    figures = compare_predictions(truth, predictions)
    if verdicts.asks_for_rounding(figures, file_type):
        figures |= explain_by_rounding(path, folder, truth, predictions)
    beyond = verdicts.require_within_bounds(figures, file_type, name)
    answers = [reply["text"].strip() for reply in replies]
    if not any(answers):
        raise UserError(
            f"{name} gives an empty answer to every prompt, the first of which is {prompts[0]!r}. "
            "Expected text: look at the training."
        )
    speeds = [reply["tokens_per_second"] for reply in replies]
    return {
        "verdict": verdicts.judge_kl(figures["kl_mean"]),
        **figures,
        **({"beyond_bounds": beyond} if beyond else {}),
        "rows": len(truth.rows),
        "rows_from": truth.source,
        "arithmetic_16bit": truth.arithmetic,
        "tensors": weights["tensors"],
        "largest_block_error": weights["worst"],
        **weights.get("tuning", {}),
        "texts": len(truth.texts),
        "prompts": len(prompts),
        "empty_answers": answers.count(""),
        "tokens": sum(reply["tokens"] for reply in replies),
        "tokens_per_second": sum(speeds) / len(speeds),
        "seconds": round(time.monotonic() - begin, 1),
    }, answers


def require_same_tokens(
    engine: llama.Engine,
    tokenizer: chat.Chat,
    texts: list[str],
    prompts: tuple[str, ...],
    name: str,
) -> None:
    """Raise UserError unless llama.cpp reads texts and renders conversations as the tokenizer does.

    llama.cpp must give the tokenizer's ids for every text, and those of its template for
    conversations of one and three turns.
    """
    for text in texts:
        _require_same_ids(
            _encode(tokenizer, text),
            engine.tokenize(text),
            f"{name} tokenises {text[:80]!r}",
            "the tokenizer it was trained with",
        )
    for prompt in prompts:
        question = {"role": "user", "content": prompt}
        answer = {"role": "assistant", "content": "Call for help first."}
        for turns in ([question], [question, answer, question]):
            _require_same_ids(
                _encode(tokenizer, tokenizer.render(turns, add_generation_prompt=True)),
                engine.tokenize(engine.render(turns), add_special=True),
                f"{name} renders a conversation of {len(turns)} turns by its chat template",
                "the template it was trained with",
            )


def _encode(tokenizer: chat.Chat, text: str) -> list[int]:
    return tokenizer.tokenizer.encode(text, add_special_tokens=False).ids


def _require_same_ids(ours: list[int], theirs: list[int], what: str, whose: str) -> None:
    if ours == theirs:
        return
    first = 0
    while first < min(len(ours), len(theirs)) and ours[first] == theirs[first]:
        first += 1
    raise UserError(
        f"{what} as {theirs[first : first + 8]} from token {first} on, "
        f"{whose} as {ours[first : first + 8]}. Expected the same ids: "
        "convert again from the base's own tokenizer files."
    )


def _predict_positions(
    engine: llama.Engine, truth: Reference, file_type: str
) -> Iterator[dict[int, float]]:
    """Yield {token id: log-probability} of the TOP likeliest tokens at each position."""
    name = f"{file_type} predictions"
    with progress_bar(name, total=len(truth.logprobs), unit="position") as bar:
        for ids, positions in zip(truth.rows, truth.positions, strict=True):
            # ascending, so that each continues the computation of the one before, as in decoding
            for position in positions:
                yield engine.next_token_logprobs(ids[:position], TOP, reuse=True)
                bar.update()


class PositionGap(NamedTuple):
    """The distance of a prediction from the 16-bit model's at one position."""

    divergence: float  # nats
    logprob_16bit: float  # of the true token
    logprob: float
    is_beyond_top: bool  # the true token is not among the likeliest
    regret: float  # nats between the 16-bit model's likeliest token and the one predicted here


def compare_predictions(truth: Reference, predictions: list[dict[int, float]]) -> dict[str, Any]:
    """Return how far predictions are from the 16-bit model's.

    `predictions` has {token id: log-probability} of the likeliest tokens at each position.

    - kl_*: divergence of the predictions from the 16-bit model in nats. All other tokens count as
      one, so it is never more than the true divergence.
    - perplexity*: of the true tokens. One that is not among the likeliest counts as the last of
      them, on both sides (`beyond_top`).
    - greedy_agreement: share of positions with the same likeliest token. The others are near_ties,
      where the 16-bit model has the two within TIE nats, and clear_disagreements.
    """
    targets = [
        ids[position]
        for ids, positions in zip(truth.rows, truth.positions, strict=True)
        for position in positions
    ]
    gaps = [
        _compare_position(logprobs.astype(np.float64), likeliest, target)
        for logprobs, likeliest, target in zip(truth.logprobs, predictions, targets, strict=True)
    ]
    divergence = np.maximum([gap.divergence for gap in gaps], 0)
    regret = np.array([gap.regret for gap in gaps])
    losses_16bit = [-gap.logprob_16bit for gap in gaps]
    losses = [-gap.logprob for gap in gaps]
    _, interval = stats.perplexity_ratio(_one_token_each(losses_16bit), _one_token_each(losses))
    perplexity_16bit, perplexity = (float(np.exp(np.mean(each))) for each in (losses_16bit, losses))
    return {
        "positions": len(targets),
        "top": TOP,
        "kl_mean": float(divergence.mean()),
        "kl_mean_ci95": list(stats.mean_interval(divergence.tolist())),
        "kl_p99": float(np.quantile(divergence, 0.99)),
        "kl_max": float(divergence.max()),
        "perplexity_16bit": perplexity_16bit,
        "perplexity": perplexity,
        "perplexity_ratio": perplexity / perplexity_16bit,
        "perplexity_ratio_ci95": list(interval),
        "beyond_top": sum(gap.is_beyond_top for gap in gaps),
        "greedy_agreement": float((regret == 0).mean()),
        "greedy_agreement_ci95": list(stats.wilson(int((regret == 0).sum()), len(regret))),
        "near_ties": int(((regret > 0) & (regret <= TIE)).sum()),
        "clear_disagreements": int((regret > TIE).sum()),
    }


def _one_token_each(losses: list[float]) -> np.ndarray:
    return np.array([(loss, 1) for loss in losses])


def _compare_position(
    logprobs: np.ndarray, likeliest: dict[int, float], target: int
) -> PositionGap:
    """Compare one position; `logprobs` are the 16-bit model's, `target` is the true token."""
    ids = np.fromiter(likeliest, int)
    theirs = np.fromiter(likeliest.values(), np.float64)
    ours = logprobs[ids]
    divergence = (np.exp(ours) * (ours - theirs)).sum()
    our_rest = max(0.0, 1 - np.exp(ours).sum())
    their_rest = max(SMALLEST, 1 - np.exp(theirs).sum())
    if our_rest:
        divergence += our_rest * np.log(our_rest / their_rest)
    last_of_ours = np.partition(logprobs, -len(ids))[-len(ids)]
    return PositionGap(
        divergence=divergence,
        logprob_16bit=max(logprobs[target], last_of_ours),
        logprob=likeliest.get(target, theirs.min()),
        is_beyond_top=target not in likeliest,
        regret=logprobs.max() - logprobs[ids[theirs.argmax()]],
    )


def explain_by_rounding(
    path: Path, folder: Path, truth: Reference, predictions: list[dict[int, float]]
) -> dict[str, Any]:
    """Return how far llama.cpp's predictions are from torch's with the file's own numbers, in nats.

    {"own_numbers_kl", "own_numbers_kl_ci95"}. If they are the same, the file's metadata are right
    too, and all that changed the predictions is rounding.
    """
    own = truth._replace(logprobs=rounding.predict_rounded(path, folder, truth))
    found = compare_predictions(own, predictions)
    return {"own_numbers_kl": found["kl_mean"], "own_numbers_kl_ci95": found["kl_mean_ci95"]}
