"""Measure the language rule on real English, and on the bundled terse and foreign answers.

    python tests/benchmarks/language.py FOLDER      # FOLDER: .jsonl.gz files of English questions and answers

Real English in two forms: each answer as it is, and its pieces of 4 to 90 characters (list items, headings, short
sentences), as if each were the answer. `likeliest` is the rule that takes the likeliest of all languages.
"""

import gzip
import json
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import py3langid

from lib.data.cleaning import language

Pairs = list[tuple[str, str]]
PIECE = re.compile(r"\n|\s{2,}|\. |; | - ")


def likeliest(question: str, answer: str) -> bool:
    """Return whether the likeliest of all languages is not English; short answers are judged with their question."""
    text = answer if len(answer) >= 80 else f"{question}\n{answer}"
    return len(text) >= 20 and py3langid.classify(text[:200])[0] != "en"


def ours(question: str, answer: str) -> bool:
    return bool(language.find_language(question, answer, "en"))


def read_pairs(folder: pathlib.Path) -> Pairs:
    pairs = []
    for path in sorted(folder.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            pairs += [
                (row["question"], row["answer"])
                for row in map(json.loads, file)
                if row.get("answer")
            ]
    return list(dict.fromkeys(pairs))


def cut_up(pairs: Pairs) -> Pairs:
    """Return each distinct piece of the answers once, with the question it stood under."""
    pieces: dict[str, str] = {}
    for question, answer in pairs:
        for piece in PIECE.split(answer):
            piece = piece.strip(" -*•.")
            if 4 <= len(piece) <= 90:
                pieces.setdefault(piece, question)
    return [(question, piece) for piece, question in pieces.items()]


def measure(name: str, pairs: Pairs) -> None:
    if not pairs:
        return
    for rule in (likeliest, ours):
        begun = time.perf_counter()
        wrong = [answer for question, answer in pairs if rule(question, answer)]
        seconds = time.perf_counter() - begun
        print(
            f"{name}: {rule.__name__} takes {len(wrong):,} of {len(pairs):,} for foreign, {seconds:.1f} s"
        )
        for answer in wrong[:5] if rule is ours else []:
            print(f"    {answer[:100]!r}")


def main() -> None:
    trials = language.read_trials()
    measure(
        "bundled, terse English",
        [(t["question"], t["answer"]) for t in trials if t["language"] == "en"],
    )
    measure(
        "bundled, foreign", [(t["question"], t["answer"]) for t in trials if t["language"] != "en"]
    )
    for folder in sys.argv[1:]:
        pairs = read_pairs(pathlib.Path(folder))
        measure("real English answers", pairs)
        measure("pieces of them", cut_up(pairs))


if __name__ == "__main__":
    main()
