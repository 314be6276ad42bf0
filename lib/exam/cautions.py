"""Say in sentences, with the numbers in them, why an exam's figures may not mean what they seem to.

    list_cautions(entry)  # [] if nothing speaks against them

They come from an exam's entry alone, and stand wherever its figures do.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

from lib.common import stats
from lib.exam import forms
from lib.exam.entries import ExamEntry, Share
from lib.medical import safety

TUNED = ("merged", "adapter")  # the tuned model in an exam, the first that was examined
ONE_LETTER = 0.9  # of the choices; above it, a score counts where that letter happens to be right
SMALL = 0.05  # a difference that an exam should be able to show
NAMES = {"letters": "letter", "completion": "the options' text"}
BASELINES = {
    "nearest_answer": "the nearest training answer",
    "options_only": "the words of the options alone",
    "shortest": "always the shortest option",
    "longest": "always the longest option",
}


class Form(NamedTuple):
    """One way to score a set: every model's share, and the pairs of models compared."""

    name: str
    scores: dict[str, Share]
    comparisons: list[Any]


def tuned_model(entry: Any) -> str | None:
    """Return the tuned model in an exam's entry, the first of TUNED that was examined."""
    return next((name for name in TUNED if name in entry.get("models", {})), None)


def list_cautions(entry: ExamEntry) -> list[str]:
    """Return what speaks against the figures of a multiple-choice set, one sentence each."""
    if not entry["models"] or entry["exam"] == safety.NAME:
        return []
    of_letters = [
        *_caution_of_one_letter(entry["models"]),
        *_caution_of_letter_mass(entry["models"]),
    ]
    tuned = tuned_model(entry)
    shown = _list_forms(entry, with_letters=not of_letters)
    return [
        *of_letters,
        *(text for form in shown for text in _caution_of_baselines(form, tuned, entry)),
        *(text for form in shown for text in _caution_of_size(form, tuned)),
    ]


def _list_forms(entry: ExamEntry, with_letters: bool) -> list[Form]:
    """Return the forms to judge, the headline's first.

    Letters that a caution has called empty already are only judged if there is nothing else.
    """
    names = forms.list_forms(entry["models"])
    if len(names) > 1 and not with_letters:
        names.remove("letters")
    pairs = entry.get("comparisons", [])
    return [
        Form(
            NAMES[name],
            {model: forms.part_of_form(result, name) for model, result in entry["models"].items()},
            [{**pair, **forms.part_of_form(pair, name)} for pair in pairs],
        )
        for name in names
    ]


# --------------------------------------------------------------------------------------------------
# letters


def _caution_of_one_letter(models: dict[str, Any]) -> Iterator[str]:
    """Name the models that choose one letter nearly always, by that letter."""
    chosen: dict[str, dict[str, float]] = {}
    for name, result in models.items():
        letters = result["orders"][0]["letters"]
        letter = max(letters, key=lambda letter: letters[letter]["chosen"])
        if letters[letter]["chosen"] > ONE_LETTER:
            chosen.setdefault(letter, {})[name] = letters[letter]["chosen"]
    for letter, shares in chosen.items():
        yield (
            f"{_percent_span(shares.values())} of the choices of {_join(shares)} are {letter}, "
            f"whatever is asked: a score by letter only tells how often {letter} is right"
        )


def _caution_of_letter_mass(models: dict[str, Any]) -> Iterator[str]:
    """Name the models that would hardly answer with a letter at all."""
    masses = {name: result["letter_mass"] for name, result in models.items()}
    masses = {name: mass for name, mass in masses.items() if mass < forms.LETTER_MASS}
    if masses:
        yield (
            f"an answer of {_join(masses)} begins with a letter at all with a probability of only "
            f"{_percent_span(masses.values())}: a score by letter compares answers that would "
            f"hardly be given"
        )


# --------------------------------------------------------------------------------------------------
# any form


def _caution_of_baselines(form: Form, tuned: str | None, entry: ExamEntry) -> Iterator[str]:
    """Name the rules without a model that a tuned model's score does not clearly beat."""
    if tuned is None or "baselines" not in entry:
        return
    score = form.scores[tuned]
    low, high = score["interval"]
    unbeaten = _name_unbeaten(entry["baselines"], low)
    if unbeaten:
        yield (
            f"by {form.name}, {tuned}'s {score['right']} of {score['of']} (95 % interval "
            f"{low:.0%} to {high:.0%}) do not beat {_join(unbeaten)}: such a score is no sign of "
            f"medical knowledge"
        )


def _name_unbeaten(baselines: dict[str, Any], low: float) -> list[str]:
    """Return the rules that get at least the share `low`, the best first, each with its share."""
    shares = {name: baselines[key]["accuracy"] for key, name in BASELINES.items()}
    shares["guessing"] = baselines["chance"]
    best_first = sorted(shares, key=lambda name: -shares[name])
    return [f"{name} ({shares[name]:.0%})" for name in best_first if shares[name] >= low]


def _caution_of_size(form: Form, tuned: str | None) -> Iterator[str]:
    """Say how many items would do where a set does not tell the tuned model from its base."""
    for pair in form.comparisons:
        if (pair["before"], pair["after"]) != ("base", tuned) or pair["p"] < 0.05:
            continue
        items = form.scores[pair["after"]]["of"]
        # fewer items than the difference itself cannot change
        changing = max(SMALL, (pair["gained"] + pair["lost"]) / items)
        needed = stats.items_needed(changing, SMALL)
        yield (
            f"by {form.name}, {items} items do not tell {tuned} from the base ({pair['gained']} "
            f"gained, {pair['lost']} lost, p = {pair['p']:.2g}): to show a difference of "
            f"{100 * SMALL:.0f} points in 80 of 100 exams, about {_two_digits(needed):,} items "
            f"would do, if the same share of them changes"
        )


def _two_digits(count: int) -> int:
    """Round a number of items, which is an estimate, up to two digits."""
    step = 10 ** max(0, len(str(count)) - 2)
    return -(-count // step) * step


def _join(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last


def _percent_span(shares: Any) -> str:
    low, high = f"{min(shares):.0%}", f"{max(shares):.0%}"
    return low if low == high else f"{low[:-1]} to {high}"
