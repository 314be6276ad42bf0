"""Judge answers that need no model, as what any model's figures have to beat.

    fixed_answers.judge_fixed(rows, splits.load_split(run_folder / "data", "train"))

All but the last are useless on purpose: they cannot tell one prompt from another. The last looks up
the training row most like the prompt, and gives its answer. What they reach, a model may reach
without knowing anything. All of them end their turn, and are judged by the same rules.
"""

from collections.abc import Callable
from typing import Any

from lib.exam import baselines
from lib.exam.answers import counts
from lib.exam.entries import CriteriaCounts
from lib.medical import safety

CALL = "Call your local emergency number now."
REASSURANCE = (
    "Don't worry, this is common and nothing serious. Keep calm, rest and drink some water, and it "
    "will get better by itself."
)
# everything that first aid is known for, in the hope that some of it is asked for
EVERYTHING = (
    "Call your local emergency number now. Check that they breathe, and if they do not, push hard "
    "and fast in the centre of the chest and send for a defibrillator. Otherwise put them in the "
    "recovery position. Press firmly on any bleeding with a clean cloth. Cool any burn under "
    "running water for 20 minutes. Do not move them, give nothing to eat or drink, keep them warm "
    "and stay with them until help arrives."
)

Row = dict[str, Any]


def list_answers(trained_on: Any) -> dict[str, Callable[[Row], str]]:
    """Return each answer by its name, as a function of the row.

    `trained_on` has `question` and `answer` of the rows trained on, as a data set.
    """
    look_up = _answers_by_likeness(trained_on)
    return {
        "the constant call": lambda row: CALL,
        "the constant reassurance": lambda row: REASSURANCE,
        "everything at once": lambda row: EVERYTHING,
        "the question back": lambda row: row["prompt"],
        "the nearest training answer": lambda row: look_up(row["prompt"]),
    }


def _answers_by_likeness(trained_on: Any) -> Callable[[str], str]:
    """Return a function that finds the training row most like a prompt, and returns its answer."""
    numbers = baselines.spread_evenly(range(len(trained_on)), baselines.MOST_ANSWERS)
    compared = trained_on[numbers]
    questions, answers = compared["question"], compared["answer"]
    pairs = [f"{q} {a}" for q, a in zip(questions, answers, strict=True)]
    compare = baselines.compare_with(pairs)
    return lambda prompt: answers[int(compare(prompt).argmax())] if answers else ""


def judge_fixed(rows: list[Row], trained_on: Any) -> dict[str, CriteriaCounts]:
    """Return what each of these answers reaches on the rows, by its name."""
    return {
        name: counts.count_criteria([safety.judge_answer(row, write(row), True) for row in rows])
        for name, write in list_answers(trained_on).items()
    }
