"""Rows of every shape in tests: one question and answer, as turns, and what a row becomes."""

from lib.data.reading import shapes

Q, A = "How do I cool a burn?", "Under cool running water."
USER, MODEL, SYSTEM = (
    {"role": role, "content": text}
    for role, text in (("user", Q), ("assistant", A), ("system", "Be brief."))
)
LATER = [
    {"role": "user", "content": "For how long?"},
    {"role": "assistant", "content": "20 minutes."},
]
SHARED = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]


def said(row, columns=None):
    """Return the row's turns as (role, text)."""
    return [(turn["role"], turn["content"]) for turn in shapes.to_messages(row, columns)]
