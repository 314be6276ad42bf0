"""The kinds of values that a parameter may have, besides plain ones."""

import re
import urllib.parse
from typing import Annotated, Any, Literal, get_args

import annotated_types
import pydantic

Text = Annotated[str, annotated_types.MinLen(1)]
CountOrAuto = Annotated[int, annotated_types.Ge(1), annotated_types.Le(10_000)] | Literal["auto"]
Rule = Literal[
    "placeholder",
    "answer_is_question",
    "link_list",
    "exact_duplicate",
    "escapes",
    "mojibake",
    "html",
    "control_characters",
    "blanks",
    "question_mark",
    "flattened_lists",
    "leaked_turns",
    "control_tokens",
    "tables",
    "merged_turns",
    "opening_answer",
    "unanswered_question",
]
RULES: tuple[str, ...] = get_args(Rule)


CONFIG = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def parameter(stage: str, default: Any, text: str, free: bool = False, **bounds: Any) -> Any:
    """Return a field of Params: the first stage it affects, what it does, and pydantic's bounds.

    A `free` parameter changes no weight: it does not affect the name of the run's folder, and may
    change from one session of a run to the next.
    """
    note: dict[str, Any] = {"stage": stage, "free": free}
    return pydantic.Field(default, description=text, json_schema_extra=note, **bounds)


class Source(pydantic.BaseModel):
    """One data set: what to read, and how much of it."""

    model_config = CONFIG

    dataset: Text
    revision: str = ""
    config: str = ""
    split: str = ""
    weight: float = pydantic.Field(default=1.0, gt=0, le=1)
    max_rows: int = pydantic.Field(default=0, ge=0)
    columns: dict[str, str] = {}

    @pydantic.model_serializer(mode="wrap")
    def _without_later_keys(self, serialise: Any) -> dict[str, Any]:
        """Leave out empty keys that were added later, which would rename the runs of older jobs."""
        later = ("config", "split")
        values = serialise(self)
        return {key: value for key, value in values.items() if value or key not in later}


def language_of(dataset: Any) -> str:
    """Return the language of a `dataset`, as given: a bundled set's own, "" if they differ.

    Any other data set counts as English.
    """
    found = [re.fullmatch(r"bundled:first-aid-([a-z]{2})", name) for name in _names_of(dataset)]
    languages = {match[1] if match else "en" for match in found}
    return languages.pop() if len(languages) == 1 else ""


def count_translations(dataset: Any) -> int:
    """Return how many of the bundled first-aid sets a `dataset` names, in whatever language."""
    return len({name for name in _names_of(dataset) if name.startswith("bundled:first-aid")})


def _names_of(dataset: Any) -> list[str]:
    listed = dataset if isinstance(dataset, list) else [dataset]
    names = [entry.get("dataset", "") if isinstance(entry, dict) else entry for entry in listed]
    return [str(getattr(name, "dataset", name)) for name in names]


def check_judge(judge: dict[str, str]) -> dict[str, str]:
    """Raise ValueError unless a judge is empty, or has a server's address and a model's name."""
    if judge and sorted(judge) != ["base_url", "model"]:
        raise ValueError("It needs base_url and model, and nothing else")
    address = urllib.parse.urlsplit(judge.get("base_url", "http://localhost"))
    if address.scheme not in ("http", "https") or not address.hostname:
        raise ValueError("base_url is not an address such as https://HOST/v1")
    if address.username or address.password or address.query or address.fragment:
        raise ValueError("base_url may hold host, port and path; a key belongs in the environment")
    if judge and not judge["model"].strip():
        raise ValueError("model is empty")
    return judge


Judge = Annotated[dict[str, str], pydantic.AfterValidator(check_judge)]
