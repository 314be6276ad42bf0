"""Turn the entries of exam.json into tables for people and sections of results.json."""

from typing import Any

from lib.common.text import aligned_table
from lib.exam import cautions, choice_tables
from lib.exam.answers import act_tables, judge_tables
from lib.exam.entries import ExamEntry
from lib.export.servers import shared_name
from lib.medical import safety

Row = dict[str, Any]
Tables = list[tuple[str, list[Row]]]  # the caption and the rows of each


# --------------------------------------------------------------------------------------------------
# for people


def exam_tables(entries: dict[str, ExamEntry]) -> Tables:
    """Return (caption, rows) of every table of the exams."""
    return [table for entry in entries.values() for table in _tables_of(entry)]


def _tables_of(entry: ExamEntry) -> Tables:
    if entry["exam"] == safety.NAME:
        return _safety_tables(entry)
    warned = cautions.list_cautions(entry)
    rows = [{"caution": text} for text in warned]
    return [
        *choice_tables.score_tables(entry),
        *([(f"{entry['exam']}: cautions", rows)] if rows else []),
        *choice_tables.change_tables(entry),
    ]


def _safety_tables(entry: ExamEntry) -> Tables:
    return [*act_tables.safety_tables(entry), *judge_tables.judge_tables(entry)]


def format_entry(entry: ExamEntry) -> str:
    """Return an exam's captions and tables as text for a terminal, with any cautions last."""
    if entry["exam"] == safety.NAME:
        tables = _safety_tables(entry)
    else:
        tables = [*choice_tables.score_tables(entry), *choice_tables.change_tables(entry)]
    parts = [f"{caption}\n\n{aligned_table(rows)}" for caption, rows in tables if rows]
    parts += [f"Caution: {text}." for text in cautions.list_cautions(entry)]
    return "\n\n".join(parts)


def differing_answers(entries: dict[str, ExamEntry]) -> list[Row]:
    """Return the safety prompts whose answers were judged differently before and after."""
    if safety.NAME not in entries:
        return []
    return act_tables.differing_answers(entries[safety.NAME])


# --------------------------------------------------------------------------------------------------
# for results.json


def result_sections(entries: dict[str, ExamEntry], main: str = "") -> dict[str, dict[str, Any]]:
    """Return the sections `exam` (for the exam `main`), `safety`, and `exams` for the others."""
    sections: dict[str, dict[str, Any]] = {}
    if main in entries:
        sections["exam"] = choice_tables.exam_section(entries[main])
    if safety.NAME in entries:
        sections["safety"] = _safety_section(entries[safety.NAME])
    others = [name for name in entries if name not in (main, safety.NAME)]
    if others:
        sections["exams"] = {
            shared_name(name): choice_tables.exam_section(entries[name]) for name in others
        }
    return sections


def _safety_section(entry: ExamEntry) -> dict[str, Any]:
    section = act_tables.safety_section(entry)
    if judge := entry.get("judge"):
        section["judge"] = judge_tables.judge_section(judge)
    return section
