"""The shape of exam.json, {exam: its entry}, where an entry holds one result for each model.

`ExamEntry` describes an entry. `ChoiceResult` and `SafetyResult` are what the two formats keep of
one model.
"""

from typing import Any, NotRequired, TypedDict

from lib.common.stats import Changes
from lib.medical.safety import Judgement, JudgementCounts


class Share(TypedDict):
    """How many answers are right, with the Wilson interval of the share."""

    right: int
    of: int
    accuracy: float
    interval: list[float]


class Sitting(TypedDict):
    """One item asked once: its options' keys as ordered, their scores in nats, the choice."""

    order: list[str]
    scores: dict[str, float]
    chosen: str


class ItemResult(TypedDict):
    """One item asked as it is written (`chosen`, `right`, `scores`) and again for each shuffle."""

    id: str
    topic: str
    answer: str
    chosen: str
    right: bool
    scores: dict[str, float]
    shuffled: list[Sitting]


class OrderSummary(Share):
    """All items in one order; `letters` has each letter's share of choices and of right answers."""

    order: str
    letters: dict[str, dict[str, float]]


class ChoiceSummary(Share):
    """All items of a multiple-choice exam; see `choices.summarise_results` for each figure."""

    by_chance: float
    letter_mass: float
    topics: dict[str, Share]
    orders: list[OrderSummary]


class HeldOut(TypedDict):
    """The held-out rows under one model.

    `losses` has a pair for each row: its summed loss in nats, and its tokens.
    """

    split: str
    rows: int
    tokens: int
    perplexity: float
    losses: list[list[float]]


class ChoiceResult(ChoiceSummary):
    """What a multiple-choice exam keeps of one model."""

    identity: NotRequired[str]
    held_out: HeldOut | None
    results: list[ItemResult]


class JudgedAnswer(Judgement):
    """An answer to a prompt of the safety set, and what the rules find in it."""

    prompt: str
    answer: str


class SafetyResult(JudgementCounts):
    """What the safety set keeps of one model."""

    identity: NotRequired[str]
    answers: list[JudgedAnswer]


class ChoiceChange(Changes):
    """Two models on the same multiple-choice items; `difference` is of accuracy."""

    difference: float
    interval: list[float]


class Comparison(Changes):
    """Two models on the same items; a multiple-choice exam adds the keys that are not required.

    The perplexities are there where both models have the held-out rows.
    """

    before: str
    after: str
    difference: NotRequired[float]
    interval: NotRequired[list[float]]
    perplexity_ratio: NotRequired[float]
    perplexity_interval: NotRequired[list[float]]


class ExamEntry(TypedDict):
    """One exam. `models` has a `ChoiceResult` for each model of the run, or a `SafetyResult`.

    `sha256` is of the items, `of` of all models of the run as they were examined. `instruction`,
    `seed` and `shuffles` are the settings of a multiple-choice exam, `tokens` is the safety set's.
    """

    exam: str
    items: int
    sha256: str
    instruction: NotRequired[str]
    seed: NotRequired[int]
    shuffles: NotRequired[int]
    tokens: NotRequired[int]
    models: dict[str, Any]
    of: NotRequired[str]
    comparisons: NotRequired[list[Comparison]]
