"""The rule that decides which form of a multiple-choice exam comes first; both are always shown.

The rule was fixed before any model of the demo was looked at, so that nobody chooses the form in
which a model looks better. It is the same for the base and for every model made from it:

    letters, if for every model of the exam
        its answer begins with one of the letters with a probability of LETTER_MASS or more, and
        in no order of the options does one letter take more than LETTER_SHARE of the choices and
        more than LETTER_EXCESS above its share of the right answers;
    completion otherwise.

Below half, a model would rather begin its answer with something else than a letter, and the scores
compare answers that it hardly gives. A letter that takes most choices, and clearly more than the
key gives it, is a habit and no knowledge. A set whose key itself prefers a letter (yes
is right in 55 % of PubMedQA) may have it chosen more often.
"""

from typing import Any

from lib.exam.entries import ChoiceResult, Headline

LETTER_MASS = 0.5
LETTER_SHARE = 0.5
LETTER_EXCESS = 0.25


def choose_form(models: dict[str, ChoiceResult]) -> Headline:
    """Return the form that comes first, by the rule above; results of older versions have one."""
    if not all("completion" in result for result in models.values()):
        return {"form": "letters", "reason": "the likelihood of the texts was not measured"}
    for name, result in models.items():
        if fault := find_fault(result):
            return {"form": "completion", "reason": f"{name} {fault}"}
    return {"form": "letters", "reason": "every model answers with letters, and prefers none"}


def list_forms(models: dict[str, Any]) -> list[str]:
    """Return the forms in which all these models were asked, the one that comes first, first."""
    if not all("completion" in result for result in models.values()):
        return ["letters"]
    forms = ["completion", "letters"]
    return forms if choose_form(models)["form"] == "completion" else forms[::-1]


def part_of_form(result: Any, form: str) -> Any:
    """Return what a record says of one form: a model's summary, an item's result, a comparison.

    The keys of the letters stand at the top of each, those of the completion one level below.
    """
    return result["completion"] if form == "completion" else result


def find_fault(result: ChoiceResult) -> str:
    """Say why a model's letters are no headline; empty if they are."""
    mass = result["letter_mass"]
    if not mass >= LETTER_MASS:  # nan too
        return f"begins its answer with one of the letters with a probability of only {mass:.1%}"
    for order in result["orders"]:
        for letter, share in order["letters"].items():
            excess = share["chosen"] - share["right"]
            if share["chosen"] > LETTER_SHARE and excess > LETTER_EXCESS:
                return (
                    f"answers {letter} to {share['chosen']:.0%} of the items, of which "
                    f"{letter} is right in {share['right']:.0%} ({order['order']})"
                )
    return ""
