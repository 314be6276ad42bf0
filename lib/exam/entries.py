"""The schema of exam.json, {exam: entry}, where an entry has one result for each model.

`ExamEntry` describes an entry. `ChoiceResult` and `SafetyResult` are the results of one model in
the two formats.
"""

from typing import Any, NotRequired, TypedDict

from lib.common.stats import Changes
from lib.medical.safety import Count, Judgement, JudgementCounts


class Share(TypedDict):
    """How many answers are right, with the Wilson interval of the share."""

    right: int
    of: int
    accuracy: float
    interval: list[float]


class Sitting(TypedDict):
    """One item asked once: its options' keys in order, their scores in nats, and the choice."""

    order: list[str]
    scores: dict[str, float]
    chosen: str


class CompletionResult(TypedDict):
    """One item in the completion form.

    `scores` has the log-likelihood of each option's text in nats, summed over its tokens. `chosen`
    is the option that is likeliest as the exam counts (`CompletionSummary`), and `chosen_by` the
    likeliest by `sum`, per `token` and per `character`. An option without text is never chosen.
    """

    scores: dict[str, float]
    chosen: str
    right: bool
    chosen_by: dict[str, str]


class ItemResult(TypedDict):
    """One item asked as written (`chosen`, `right`, `scores`) and again for each shuffle.

    Results of versions that asked for letters only lack `completion` and `bits_per_byte`, the bits
    that the right option's text takes per byte of UTF-8.
    """

    id: str
    topic: str
    answer: str
    chosen: str
    right: bool
    scores: dict[str, float]
    shuffled: list[Sitting]
    completion: NotRequired[CompletionResult]
    bits_per_byte: NotRequired[float]


class OrderSummary(Share):
    """All items in one order; `letters` has how often each letter was chosen, and was right."""

    order: str
    letters: dict[str, dict[str, float]]


class LetterSummary(Share):
    """All items in the letter form; see `choices.summarise_results` for each figure."""

    by_chance: float
    letter_mass: float
    topics: dict[str, Share]
    orders: list[OrderSummary]


class CompletionSummary(Share):
    """All items in the completion form.

    `normalised` says how an option's length counts: `character` divides its log-likelihood by its
    characters, `sum` by nothing. `by` has the right answers by `sum`, per `token` and per
    `character`.
    """

    normalised: str
    topics: dict[str, Share]
    by: dict[str, int]


class Mean(TypedDict):
    """A mean over items, with its bootstrap interval."""

    mean: float
    interval: list[float]
    items: int


class TextSummary(TypedDict):
    """The likelihood of the options' texts; absent in results of versions without it."""

    completion: NotRequired[CompletionSummary]
    bits_per_byte: NotRequired[Mean]


class HeldOut(TypedDict):
    """The loss of one model on the held-out rows.

    `losses` has a pair for each row: its summed loss in nats and its number of tokens.
    """

    split: str
    rows: int
    tokens: int
    perplexity: float
    losses: list[list[float]]


class ChoiceResult(LetterSummary, TextSummary):
    """One model's result in a multiple-choice exam: letters, and the likelihood of the texts."""

    identity: NotRequired[str]
    held_out: HeldOut | None
    results: list[ItemResult]


class ActShare(TypedDict):
    """How many (`count`) of how many (`of`), and the share's 95 % interval; None if `of` is 0."""

    count: int
    of: int
    ci95: list[float] | None


class MeanPoints(TypedDict):
    """A mean share of points, or the difference of two, with its bootstrap interval."""

    mean: float | None
    ci95: list[float] | None


class ActCounts(TypedDict):
    """What the criteria alone say of all answers.

    `critical_acts` counts acts; the others count rows: those with neither a critical act nor the
    call missed, and those with a forbidden act.
    """

    critical_acts: ActShare
    none_missed: ActShare
    forbidden_acts: ActShare
    points: MeanPoints


class CriteriaCounts(ActCounts):
    """Every figure of one model in the safety set.

    `names_call` is over the rows that need the call, `over_triage` over those that are not an
    emergency now. `no_listed_harm` are the answers in which no rule of harmful_advice.json matched.
    """

    names_call: ActShare
    over_triage: ActShare
    no_listed_harm: ActShare
    refused: ActShare
    ended: ActShare
    says_twice: ActShare  # not in records of earlier versions
    passed: ActShare


class CriteriaChanges(TypedDict):
    """Two models on the same rows of the safety set; gained is the better in both counts."""

    none_missed: Changes
    forbidden_acts: Changes
    points: MeanPoints


class JudgedAnswer(Judgement):
    """An answer to a safety prompt, and what the rules find in it."""

    prompt: str
    answer: str


class SafetyResult(JudgementCounts):
    """One model's result in the safety set."""

    identity: NotRequired[str]
    criteria: NotRequired[CriteriaCounts]  # records of earlier versions lack it
    answers: list[JudgedAnswer]


class Agreement(TypedDict):
    """Cohen's kappa between two judges, with its bootstrap interval over the rows."""

    kappa: float
    ci95: list[float]


class JudgeAgreement(Agreement):
    """A judge model on the safety set's own right and wrong answers.

    kappa is between what it passes and what is known to be right; `acts` is between its verdict on
    each act and the rules'. `unjudged` are the answers on which it gave no verdict.
    """

    answers: int
    unjudged: int
    right_passed: Count
    wrong_caught: Count
    acts: Agreement


class ModelVerdicts(TypedDict):
    """A judge model's verdicts on one model's answers: by act, None where it gave none."""

    criteria: ActCounts
    unjudged: int
    verdicts: list[dict[str, bool] | None]


class JudgeSection(TypedDict):
    """What a judge model says, or why it said nothing (`failed`); never without its agreement."""

    model: str
    failed: NotRequired[str]
    agreement: NotRequired[JudgeAgreement]
    models: NotRequired[dict[str, ModelVerdicts]]


class ChoiceChange(Changes):
    """Two models on the same multiple-choice items; `difference` is that of their accuracies."""

    difference: float
    interval: list[float]


class BitsChange(TypedDict):
    """Bits per byte after minus before, paired by item; fewer are better.

    `better` and `worse` count the items on which it fell and rose.
    """

    difference: float
    interval: list[float]
    better: int
    worse: int


class Comparison(Changes):
    """Two models on the same items; only a multiple-choice exam has the keys that are not required.

    Its changes are those of the letters; `completion` and `bits_per_byte` exist if both models were
    asked for the texts. The perplexities exist if both were measured on the held-out rows.
    """

    before: str
    after: str
    difference: NotRequired[float]
    interval: NotRequired[list[float]]
    completion: NotRequired[ChoiceChange]
    bits_per_byte: NotRequired[BitsChange]
    perplexity_ratio: NotRequired[float]
    perplexity_interval: NotRequired[list[float]]
    criteria: NotRequired[CriteriaChanges]  # of the safety set


class Baseline(Share):
    """What a rule without a model gets; `chosen` has its option for each item, in order."""

    chosen: list[str]


class Baselines(TypedDict):
    """What a multiple-choice set gives away without a model; see `baselines.py` for each rule.

    `chance` is the share that guessing gets. `answers_compared` of the `answers` trained on were
    searched for the nearest one.
    """

    chance: float
    longest: Baseline
    shortest: Baseline
    options_only: Baseline
    nearest_answer: Baseline
    answers_compared: int
    answers: int


class Headline(TypedDict):
    """The form that comes first, `letters` or `completion`, and why; see lib/exam/forms.py."""

    form: str
    reason: str


class ExamEntry(TypedDict):
    """One exam. `models` has a `ChoiceResult` or a `SafetyResult` for each model of the run.

    `sha256` is a hash of the items, and `of` one of all models of the run as they were examined.
    `instruction`, `seed` and `shuffles` are the settings of a multiple-choice exam, `tokens` is
    that of the safety set. `baselines` has what answers without any model reach there. `headline`
    names the form of a multiple-choice exam that comes first.
    """

    exam: str
    items: int
    sha256: str
    instruction: NotRequired[str]
    seed: NotRequired[int]
    shuffles: NotRequired[int]
    tokens: NotRequired[int]
    models: dict[str, Any]
    # `Baselines`, or {name: CriteriaCounts} of the safety set
    baselines: NotRequired[dict[str, Any]]
    judge: NotRequired[JudgeSection]
    of: NotRequired[str]
    headline: NotRequired[Headline]
    comparisons: NotRequired[list[Comparison]]
