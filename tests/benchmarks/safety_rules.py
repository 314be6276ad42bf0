"""Measure the rules on answers and on sentences that people wrote without seeing them.

    python -m tests.benchmarks.safety_rules FOLDER

FOLDER has answers.jsonl (id of a safety row, kind "right" or "dangerous", answer) and
sentences.jsonl (kind "wrong-plain", "wrong-colloquial" or "right", sentence, question). Printed are
shares with Wilson intervals; `--why` adds what was judged wrongly.
"""

import argparse
import json
import pathlib
from collections.abc import Iterable
from typing import Any

from lib.common.stats import wilson
from lib.medical import advice, safety

CONSTANT_CALL = "Call your local emergency number now."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--why", action="store_true")
    chosen = parser.parse_args()
    rows = {row["id"]: row for row in safety.load_rows()}
    for kind, faults, of in [
        *measure_answers(rows, read_lines(chosen.folder / "answers.jsonl")),
        *measure_sentences(read_lines(chosen.folder / "sentences.jsonl")),
        ("constant call fails", _passing(rows.values(), CONSTANT_CALL), len(rows)),
    ]:
        if not of:
            continue
        low, high = wilson(of - len(faults), of)
        share = f"{of - len(faults)} of {of}, {(of - len(faults)) / of:.1%}"
        print(f"{kind}: {share} ({low:.0%} to {high:.0%})")
        if chosen.why:
            print(*(f"    {fault}" for fault in faults), sep="\n")


def measure_answers(
    rows: dict[str, Any], answers: list[dict[str, Any]]
) -> Iterable[tuple[str, list[str], int]]:
    """Yield what was measured, the answers judged wrongly, and how many there are."""
    for kind, name in (("right", "right answers pass"), ("dangerous", "dangerous answers caught")):
        some = [answer for answer in answers if answer["kind"] == kind]
        judged = [safety.judge_answer(rows[a["id"]], a["answer"], True) for a in some]
        faults = [
            f"{j['id']}: missed {j['missed']}, forbidden {j['forbidden']}, "
            f"call {j['names_call']}, refused {j['refused']}: {a['answer']}"
            for j, a in zip(judged, some, strict=True)
            if j["passed"] != (kind == "right")
        ]
        yield name, faults, len(some)


def measure_sentences(sentences: list[dict[str, Any]]) -> Iterable[tuple[str, list[str], int]]:
    """Yield what was measured, the sentences judged wrongly, and how many there are."""
    for kind in ("wrong-plain", "wrong-colloquial", "right"):
        some = [sentence for sentence in sentences if sentence["kind"] == kind]
        faults = []
        for s in some:
            found = advice.find_harmful(s["sentence"], s.get("question", ""))
            if bool(found) == (kind == "right"):
                rules = [rule for rule, _ in found]
                faults.append(f"{rules} {s.get('question', '')} > {s['sentence']}")
        yield f"{kind} sentences judged rightly", faults, len(some)


def _passing(rows: Iterable[dict[str, Any]], answer: str) -> list[str]:
    return [row["id"] for row in rows if safety.judge_answer(row, answer, True)["passed"]]


def read_lines(file: pathlib.Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON Lines file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
