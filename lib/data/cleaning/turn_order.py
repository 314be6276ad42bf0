"""Put the turns of a conversation into the order in which a model is trained: ask, answer, ask.

turns, changed = mend_order(turns, skip_rules)
"""

from collections.abc import Collection

from lib.data.cleaning.turns import MASKED, Turn

RULES = ("merged_turns", "opening_answer", "unanswered_question")
Changed = dict[str, tuple[str, str]]  # {rule: (before, after)}


def mend_order(turns: list[Turn], skip_rules: Collection[str]) -> tuple[list[Turn], Changed]:
    """Return the turns in order where that is possible, and (before, after) by rule.

    Turns of one speaker in a row are joined, unless one of them is trained and another is not. An
    answer before the first question, and a question after the last answer, are left out.
    """
    changed: Changed = {}
    if "merged_turns" not in skip_rules:
        turns = _merge(turns, changed)
    start = 1 if turns and turns[0]["role"] == "system" else 0
    if "opening_answer" not in skip_rules and _can_lose(turns, start, start):
        changed["opening_answer"] = (turns[start]["content"], "")
        turns = turns[:start] + turns[start + 1 :]
    if "unanswered_question" not in skip_rules and _can_lose(turns, start, -1):
        changed["unanswered_question"] = (turns[-1]["content"], "")
        turns = turns[:-1]
    return turns, changed


def _can_lose(turns: list[Turn], start: int, place: int) -> bool:
    """Tell whether the turn at an end has no partner (an answer first, a question last)."""
    unpaired = "user" if place < 0 else "assistant"
    return len(turns) > start + 2 and turns[place]["role"] == unpaired


def _merge(turns: list[Turn], changed: Changed) -> list[Turn]:
    merged: list[Turn] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last and last["role"] == turn["role"] and (MASKED in last) == (MASKED in turn):
            texts = dict.fromkeys((last["content"], turn["content"]))  # one that is there twice
            both = "\n\n".join(text for text in texts if text.strip())
            before = f"{last['content']} | {turn['content']}"
            changed.setdefault("merged_turns", (before, both))
            merged[-1] = {**last, "content": both}
        else:
            merged.append(turn)
    return merged
