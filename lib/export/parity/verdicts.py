"""Judge how far a GGUF's predictions are from the 16-bit model's: refused, or a verdict in words.

    verdicts.require_within_bounds(figures, "q8_0", "mine-q8_0.gguf")
    verdicts.judge_kl(figures["kl_mean"])       # "as the 16-bit model"

`figures` are those of compare.compare_predictions, with own_numbers_kl where rounding was asked.
"""

import math
from typing import Any

from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES, ParityBounds

# Largest mean KL, in nats, at which llama.cpp predicts the same as torch. With the same numbers on
# both sides, 0.0014 to 0.0081 were seen from q8_0 to q4_0 on two Gemma 3 270M, since llama.cpp also
# rounds what goes into a layer to 8 bits; for f16 it was 0.00001.
SAME_KL = 0.01
CLOSE_KL = 0.1
MUCH_WORSE = "much worse than the 16-bit model: read its answers before you ship it"


class OutsideBounds(UserError):
    """Predictions that are too far from the 16-bit model's; `figures` tell how far."""

    def __init__(self, message: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


def asks_for_rounding(figures: dict[str, Any], file_type: str) -> bool:
    """Tell whether predictions are so far off that the file's rounding must explain them.

    16-bit types are left out: what rounds so little explains nothing.
    """
    recipe = FILE_TYPES[file_type]
    is_same = figures["kl_mean"] <= SAME_KL and not list_faults(figures, recipe.bounds)
    return recipe.is_packed and not is_same


def require_within_bounds(figures: dict[str, Any], file_type: str, name: str) -> list[str]:
    """Raise OutsideBounds for a broken file, or one that loses too much by rounding; NaN is both.

    A file is broken if llama.cpp does not predict what its numbers give in torch. One that is not,
    and is still close to the 16-bit model, may be outside its type's bounds: these were measured on
    trained models, and one that is barely trained loses more. Return what is outside, in words.

    A figure is outside if its whole 95 % interval is: a mean over few positions is uncertain.
    """
    # each condition is `not within`, so that a NaN counts as a fault
    is_explained = _with_interval(figures, "own_numbers_kl")[1] <= SAME_KL
    if "own_numbers_kl" in figures and not is_explained:
        raise OutsideBounds(_say_broken(figures, name), figures)
    faults = list_faults(figures, FILE_TYPES[file_type].bounds)
    if faults and not (is_explained and figures["kl_mean"] <= CLOSE_KL):
        raise OutsideBounds(_say_outside(figures, faults, file_type, name), figures)
    return faults


def list_faults(figures: dict[str, Any], bounds: ParityBounds) -> list[str]:
    """Return in words which figures are outside a type's bounds, with their whole interval."""
    most = bounds.perplexity_ratio
    kl = _with_interval(figures, "kl_mean")
    ratio = _with_interval(figures, "perplexity_ratio")
    agreement = _with_interval(figures, "greedy_agreement")
    faults = []
    if not kl[1] <= bounds.kl:
        expected = f"expected at most {bounds.kl:g}"
        faults.append(f"mean KL is {kl[0]:.3g} nats, {expected} {_format_interval(*kl)}")
    if not (ratio[1] <= most and 1 / most <= ratio[2]):
        expected = f"expected {1 / most:.3g} to {most:g}"
        faults.append(
            f"perplexity is {ratio[0]:.4g} times the 16-bit model's, {expected} "
            f"{_format_interval(*ratio)}"
        )
    if not agreement[2] >= bounds.agreement:
        expected = f"expected at least {bounds.agreement:.0%}"
        faults.append(
            f"the likeliest token is the same at {agreement[0]:.1%} of positions, {expected} "
            f"{_format_interval(*agreement)}"
        )
    return faults


def _with_interval(figures: dict[str, Any], key: str) -> tuple[float, float, float]:
    """Return a figure and its 95 % interval; a missing one is NaN."""
    value = figures.get(key, math.nan)
    return (value, *figures.get(f"{key}_ci95", (value, value)))


def _say_broken(figures: dict[str, Any], name: str) -> str:
    apart = _with_interval(figures, "own_numbers_kl")
    return (
        f"{name} is broken: at {figures['positions']} held-out answer tokens llama.cpp is "
        f"{apart[0]:.3g} nats {_format_interval(*apart)} from what the file's own numbers give in "
        f"torch, expected at most {SAME_KL:g}, and {figures['kl_mean']:.3g} from the 16-bit "
        f"model.\n"
        f"Known: its numbers are the 16-bit ones within the rounding of its type, and llama.cpp "
        f"reads texts and template as the tokenizer does. So other metadata are wrong, or this "
        f"llama.cpp computes wrongly.\n"
        f"Export again. Do not ship the file."
    )


def _say_outside(figures: dict[str, Any], faults: list[str], file_type: str, name: str) -> str:
    advice = "Other metadata may be wrong: export again. Do not ship the file."
    if own := figures.get("own_numbers_kl"):
        advice = (
            f"The file is sound, since torch with its numbers predicts the same ({own:.2g} nats "
            f"apart): this model loses too much by the rounding of {file_type}.\n"
            f"Export a finer type, or train longer. Do not ship the file."
        )
    return (
        f"{name} does not predict what the 16-bit model does at {figures['positions']} held-out "
        f"answer tokens: {'; '.join(faults)} for a sound {file_type} file.\n"
        f"Known: its numbers are the 16-bit ones within the rounding of {file_type}, and llama.cpp "
        f"reads texts and template as the tokenizer does.\n"
        f"{advice}"
    )


def _format_interval(_: float, low: float, high: float) -> str:
    return f"(95 % interval {low:.3g} to {high:.3g})"


def judge_kl(kl: float) -> str:
    """Return a mean KL in nats as a verdict in words.

    A file within its bounds may still be a much worse model, such as a small one in 4 bits.
    """
    if kl <= SAME_KL:
        return "as the 16-bit model"
    return "close to the 16-bit model" if kl <= CLOSE_KL else MUCH_WORSE
