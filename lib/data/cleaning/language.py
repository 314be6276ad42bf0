"""Tell whether an answer is in another language than the job's, and how often that is wrong.

    find_language("What should I do?", "Llame a una ambulancia ahora.", "en")     # "es"
    measure_rule("en")     # false drops of terse English answers, misses of foreign ones

py3langid gives a log-likelihood for each language. A list of drugs, organisms or laboratory values
is in no language's usual words, so that any of 140 languages may come first by a little. Therefore
a language must be ahead of the wanted one by a margin. Latin ("Escherichia coli") and `zxx`, which
is text without words, count as the wanted language.
"""

import functools
import json
import pathlib
import re
from typing import Any

from lib.common.errors import UserError
from lib.common.text import shorten

CHARACTERS = 200  # that the detector reads: its time grows with the length
NEUTRAL = ("la", "zxx")
# By how many nats a language must be ahead of the wanted one, in total and per character, for the
# answer alone and for question and answer together. Found on the answers in TRIALS and a sample of
# real English; tests/benchmarks/language.py measures the errors on all of it.
ALONE = (18.0, 0.4)
WITH_QUESTION = (20.0, 0.25)
# Names such as Sjögren, Ménière and Behçet stand in any language.
NAME = re.compile(r"\b[A-ZÀ-ÖØ-Þ]\w+")
PLAIN = str.maketrans("éèêöüäç", "eeeouac")
TRIALS = pathlib.Path(__file__).with_name("language_trials.jsonl")


@functools.cache
def _load_detector() -> Any:
    """Return py3langid's detector; loading it takes a second, and only this stage needs it."""
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


def list_languages() -> list[str]:
    """Return the codes that `language` may have."""
    return sorted(set(_load_detector().labels) - {"zxx"})


def check_language(wanted: str) -> None:
    """Raise UserError for a language that the detector does not know; "" means any language."""
    if wanted and wanted not in list_languages():
        near = [code for code in list_languages() if code == wanted.strip().lower()[:2]]
        hint = f" did you mean `{near[0]}`?" if near else ""
        raise UserError(
            f"language `{shorten(wanted)}` is not one the detector knows;{hint} expected one of "
            f"{', '.join(list_languages())}, or empty for any."
        )


def find_language(question: str, answer: str, wanted: str) -> str:
    """Return the language of an answer that is not in `wanted`; empty for one that may be."""
    language, nats, length = _find_ahead(answer, wanted)
    if nats <= 0:
        return ""
    if nats >= max(ALONE[0], ALONE[1] * length):
        return language
    # a short answer: its question may tell
    language, nats, length = _find_ahead(f"{question}\n{answer}", wanted)
    return language if nats >= max(WITH_QUESTION[0], WITH_QUESTION[1] * length) else ""


def _find_ahead(text: str, wanted: str) -> tuple[str, float, int]:
    """Return the likeliest other language, its nats ahead of `wanted`, and the characters read."""
    text = text[:CHARACTERS]
    if not any(map(str.isalpha, text)):
        return "", 0.0, len(text)
    plain = NAME.sub(_strip_accents, text)
    detector = _load_detector()
    if detector.classify(plain)[0] in (wanted, *NEUTRAL):  # most texts; rank takes twice as long
        return "", 0.0, len(text)
    ranked = dict(detector.rank(plain))
    own = max(ranked.pop(language) for language in {wanted, *NEUTRAL})
    language = max(ranked, key=ranked.__getitem__)
    return language, ranked[language] - own, len(text)


def _strip_accents(name: re.Match[str]) -> str:
    return name[0].translate(PLAIN)


# -------------------------------------------------------------------------------------------------
# how often the rule is wrong


def read_trials() -> list[dict[str, str]]:
    """Return the bundled answers: {"language", "kind", "question", "answer"}."""
    return [json.loads(line) for line in TRIALS.read_text(encoding="utf-8").splitlines()]


@functools.cache
def measure_rule(wanted: str) -> dict[str, Any]:
    """Return the rule's errors on the bundled answers, for the notebook and the data card.

    `false_drops` are answers in `wanted` that it takes for foreign (for English, terse medical
    ones), `misses` are foreign answers that it keeps. Empty without a wanted language.
    """
    if not wanted:
        return {}
    own, foreign = [], []
    for trial in read_trials():
        if trial["language"] == wanted:
            own.append(trial)
        elif trial["language"] != "en" or trial["kind"] == "sentence":
            foreign.append(trial)  # a terse English answer may stand in any language
    dropped = [trial["answer"] for trial in own if _is_dropped(trial, wanted)]
    kept = [trial["answer"] for trial in foreign if not _is_dropped(trial, wanted)]
    return {
        "language": wanted,
        "false_drops": {"answers": len(own), "wrong": len(dropped), "examples": dropped[:3]},
        "misses": {"answers": len(foreign), "wrong": len(kept), "examples": kept[:3]},
    }


def tabulate_errors(wanted: str) -> list[dict[str, Any]]:
    """Return what measure_rule found as rows of a table."""
    measured = measure_rule(wanted)
    if not measured:
        return []
    mistakes = {
        "false_drops": f"bundled answers in {wanted}, dropped as foreign",
        "misses": "bundled answers in other languages, kept",
    }
    return [
        {
            "mistake": words,
            "answers": measured[name]["answers"],
            "wrong": measured[name]["wrong"],
            "examples": "\n".join(measured[name]["examples"]),
        }
        for name, words in mistakes.items()
    ]


def _is_dropped(trial: dict[str, str], wanted: str) -> bool:
    return bool(find_language(trial["question"], trial["answer"], wanted))
