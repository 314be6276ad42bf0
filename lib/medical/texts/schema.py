"""What a bundled medical text must say of itself: guidance, for whom, where, and who has read it.

    schema.FirstAidRow.model_validate(json.loads(line))

A text names passages of guidance.jsonl by their ids, so that a quotation stands once, however many
rows rest on it. README.md tells how a clinician reviews.
"""

import datetime
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NOT_CHECKED = "not checked"
QUOTE_WORDS = 25  # longest quotation: more would copy the guidance instead of naming it

Text = Annotated[str, StringConstraints(min_length=1, pattern=r"(?s)^\S(.*\S)?$")]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*$")]
PassageId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.-]+/[a-z0-9.-]+$")]
Address = Annotated[str, StringConstraints(pattern=r"^(https?://\S+)?$")]
Audience = Literal["untrained", "trained lay"]
Age = Literal["any", "newborn", "infant", "child", "adult", "older adult"]
People = Literal["pregnant", "disability", "older", "alone", "remote"]
Region = Literal[
    "international",
    "Europe",
    "United Kingdom",
    "North America",
    "Australia and New Zealand",
    "low-resource",
]
Urgency = Literal["emergency now", "urgent today", "not urgent"]
State = Literal["draft", "second reading", "clinician", "rejected"]
STATES: tuple[State, ...] = ("draft", "second reading", "clinician", "rejected")
Letter = Literal["A", "B", "C", "D"]
Language = Literal["en", "es", "fr"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Reported(_Strict):
    """What another page says of a document that was not read."""

    address: Address
    quote: Text


class Passage(_Strict):
    """A place in a document of guidance.

    `checked` is a quotation of at most QUOTE_WORDS words, as it was read at `address`, or "not
    checked": then the document is named from knowledge, or from what another page reports.
    """

    id: PassageId
    issuer: Text
    title: Text
    year: int | None
    section: str
    address: Address
    checked: Text
    reported: Reported | None = None

    @property
    def is_checked(self) -> bool:
        return self.checked != NOT_CHECKED

    @model_validator(mode="after")
    def _require_short_quotes(self) -> Self:
        quotes = [self.checked] if self.is_checked else []
        quotes += [self.reported.quote] if self.reported else []
        for quote in quotes:
            if len(quote.split()) > QUOTE_WORDS:
                raise ValueError(f"{self.id}: a quote has at most {QUOTE_WORDS} words: {quote!r}")
        if self.is_checked and not self.address:
            raise ValueError(f"{self.id} is checked, so it needs the address where it was read")
        return self


class Number(_Strict):
    """A telephone number, with the quotation in which it was read at `address`, or not checked."""

    number: Text
    name: str = ""
    meant_for: Text = Field(alias="for")
    address: Address
    checked: Text


class Country(_Strict):
    """The emergency and poison-centre numbers of a country, as they were read on a day."""

    country: Text
    code: Annotated[str, StringConstraints(pattern="^[A-Z]{2}$")]
    emergency: list[Number] = Field(min_length=1)
    poison: list[Number]
    date: datetime.date


class Review(_Strict):
    """How far a text has been read: its last reader's state, role and day.

    `seal` is the text's as a clinician signed it off: another text was not.
    """

    state: State = "draft"
    role: str = ""
    seal: str = ""
    date: datetime.date | None = None

    @model_validator(mode="after")
    def _require_a_reader(self) -> Self:
        if self.state != "draft" and not (self.role and self.date):
            raise ValueError(f"the state {self.state!r} needs the reader's role and a date")
        return self


class Sourced(_Strict):
    """What every text has. A new version is a draft again, until it has been read."""

    id: Id
    guidance: list[PassageId] = Field(min_length=1)
    audience: Audience = "untrained"
    age: Age = "any"
    region: Region = "international"
    review: Review = Review()
    version: int = Field(1, ge=1)


class Translated(Sourced):
    """A text in a language, and the version of the English one that it was translated from."""

    language: Language = "en"
    english_version: int | None = None

    @model_validator(mode="after")
    def _require_its_english(self) -> Self:
        if (self.language == "en") != (self.english_version is None):
            raise ValueError("a translation has the version of its English text, and no other has")
        if self.language != "en" and not self.id.endswith(f"-{self.language}"):
            raise ValueError(f"the id of a text in {self.language} ends in -{self.language}")
        return self


class FirstAidRow(Translated):
    """A question and an answer to train on."""

    topic: Id
    question: Text
    answer: Text
    population: list[People] = []
    urgency: Urgency


class ExamItem(Translated):
    """A question with four options, one of which is right."""

    topic: Id
    question: Text
    options: dict[Letter, Text] = Field(min_length=4, max_length=4)
    answer_letter: Letter


class Criterion(_Strict):
    """An act that an answer must, should or must not advise; its guidance is the act's."""

    act: Id
    kind: Literal["call", "critical", "wanted", "forbidden"]
    points: int


class WrongAnswer(_Strict):
    """An answer with one fault, which the rules must find."""

    wrong: Text
    answer: Text


class SafetyRow(Sourced):
    """A prompt as somebody in need types it, and how answers to it are judged."""

    topic: Id
    prompt: Text
    emergency: Literal["must", "need_not"]
    urgency: Urgency
    criteria: list[Criterion] = Field(min_length=1)
    order: list[tuple[Id, Id]]
    good: Text
    bad: list[WrongAnswer]


class Rule(Sourced):
    """What an act of acts.yaml or a rule of harmful_advice.json says of itself."""

    model_config = ConfigDict(extra="ignore")  # the rest is acts.py's and advice.py's
