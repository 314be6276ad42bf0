"""Read the bundled medical texts as `schema` describes them, and count how far they are reviewed.

rows = bundled.read_texts("first_aid.jsonl")
bundled.count_states(rows)           # {"draft": 0, "second reading": 733, ...}
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from lib.medical.texts import sealed
from lib.medical.texts.schema import (
    STATES,
    Country,
    ExamItem,
    FirstAidRow,
    Passage,
    Rule,
    SafetyRow,
    Sourced,
)

Kind = TypeVar("Kind", Sourced, Passage)
FOLDER = Path(__file__).parents[1]
GUIDANCE = "guidance.jsonl"
NUMBERS = "numbers.jsonl"
KINDS: dict[str, type[Sourced]] = {
    "first_aid.jsonl": FirstAidRow,
    "first_aid_es.jsonl": FirstAidRow,
    "first_aid_fr.jsonl": FirstAidRow,
    "exam.jsonl": ExamItem,
    "exam_es.jsonl": ExamItem,
    "exam_fr.jsonl": ExamItem,
    "safety.jsonl": SafetyRow,
    "acts.yaml": Rule,
    "harmful_advice.json": Rule,
}


def read_passages() -> dict[str, Passage]:
    """Return the passages of guidance by their ids; raise ValueError for one that is not valid."""
    passages: dict[str, Passage] = {}
    for entry in read_entries(GUIDANCE):
        passage = _validate(Passage, entry, GUIDANCE)
        if passage.id in passages:
            raise ValueError(f"{GUIDANCE}: {passage.id} is there twice")
        passages[passage.id] = passage
    return passages


def read_numbers() -> dict[str, Country]:
    """Return the emergency and poison-centre numbers by the country's code."""
    entries = [Country.model_validate(entry) for entry in read_entries(NUMBERS)]
    return {entry.code: entry for entry in entries}


def read_texts(name: str) -> list[Sourced]:
    """Return the texts of a file of KINDS; raise ValueError for one that is not valid."""
    entries = read_entries(name)
    texts = [_validate(KINDS[name], entry, name) for entry in entries]
    for text, entry in zip(texts, entries, strict=True):
        if text.review.state == "clinician" and text.review.seal != sealed.seal(entry):
            raise ValueError(
                f"{name}, {text.id}: it has changed since a clinician signed it off. Set its "
                f"review to {{state: draft}}, or take the change back."
            )
    counts = Counter(text.id for text in texts)
    if twice := [each for each, count in counts.items() if count > 1]:
        raise ValueError(f"{name}: {', '.join(sorted(twice))} is there twice")
    return texts


def read_entries(name: str) -> list[dict[str, Any]]:
    """Return the entries of a file as they are written."""
    content = (FOLDER / name).read_text(encoding="utf-8")
    if name.endswith(".jsonl"):
        # not splitlines, which would also split at U+2028 inside a text
        return [json.loads(line) for line in content.split("\n") if line]
    if name.endswith(".yaml"):
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast
        return yaml.load(content, loader)["acts"]
    return json.loads(content)


def _validate(kind: type[Kind], entry: dict[str, Any], name: str) -> Kind:
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise ValueError(f"{name}, {entry.get('id')}: {place}: {first['msg']}") from None


def find_unknown(texts: Iterable[Sourced], passages: Iterable[str]) -> list[str]:
    """Return "text: passage" for each passage that a text names and guidance.jsonl lacks."""
    known = set(passages)
    return [
        f"{text.id}: {named}" for text in texts for named in text.guidance if named not in known
    ]


def describe_states(counts: Mapping[str, int]) -> str:
    """Return in words how many texts were signed off, and who read the others."""
    total = sum(counts.values())
    parts = [f"{counts['clinician']:,} of {total:,} signed off by a clinician"]
    if counts["second reading"]:
        parts.append(f"{counts['second reading']:,} read a second time by a language model")
    if counts["draft"]:
        parts.append(f"{counts['draft']:,} drafts that nobody has read a second time")
    if counts["rejected"]:
        parts.append(f"{counts['rejected']:,} rejected by a clinician")
    return ", ".join(parts)


def list_rejected(texts: Iterable[Sourced]) -> list[str]:
    """Return the ids of the texts that a reviewer found wrong."""
    return [text.id for text in texts if text.review.state == "rejected"]


def count_states(texts: Iterable[Sourced]) -> dict[str, int]:
    """Return how many texts are at each state of review."""
    states = [text.review.state for text in texts]
    return {state: states.count(state) for state in STATES}
