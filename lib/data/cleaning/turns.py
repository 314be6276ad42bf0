"""The turns of a conversation: who speaks, and whether an answer is trained.

turn = {"role": "assistant", "content": "Wait and see.", "masked": "yes"}
is_trained(turn)  # False: the model reads this answer, but does not learn it
"""

Turn = dict[str, str]
# the key of an answer that is read and not trained; any other answer lacks it
MASKED = "masked"


def is_trained(turn: Turn) -> bool:
    """Tell whether a turn's text is trained: an answer is, unless it is masked."""
    return turn["role"] == "assistant" and MASKED not in turn


def name_speaker(turn: Turn) -> str:
    """Return who speaks, with a star for an answer that is masked."""
    return f"{turn['role']}{'*' * (MASKED in turn)}"


def words_trained_beside_masked(turns: list[Turn], words_of_turns: list[list[str]]) -> list[str]:
    """Return the words of the trained answers of a conversation with a masked one.

    One conversation may be several rows, each of which trains another of its answers.
    """
    if not any(MASKED in turn for turn in turns):
        return []
    pairs = zip(turns, words_of_turns, strict=True)
    return [word for turn, own in pairs if is_trained(turn) for word in own]
