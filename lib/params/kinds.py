"""Kinds of values that several parameters have, or that have many names."""

from typing import Annotated, Literal, get_args

import annotated_types

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
