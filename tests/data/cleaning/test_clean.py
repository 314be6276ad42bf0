"""Reasons to drop a row: what each must drop, what only looks bad and must stay.

python -m pytest tests/data/cleaning/test_clean.py
"""

import gzip
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import DATA, cleaned, job, reason, row
from helpers.odd_texts import any_of, any_text, subsets
from lib import params
from lib.common.words import words_of
from lib.data.cleaning import clean, lists, text_rules, turn_order
from lib.data.cleaning.links import is_link_list
from lib.medical import advice

RULE = dict(text_rules.TEXT_RULES)


@pytest.mark.parametrize(
    ("expected", "question", "answer"),
    [
        ("empty", "What?", " \n"),
        ("empty", "<br>", "Rest."),
        ("empty", "\u200b", "Rest."),
        ("empty", "What?", "<think>x</think>"),
        ("placeholder", "What?", "N/A."),
        ("placeholder", "What?", "n.a."),
        ("placeholder", "What?", "None"),
        ("placeholder", "What?", "[Deleted]"),
        ("placeholder", "What?", "..."),
        ("placeholder", "What?", "<nooutput>"),
        ("placeholder", "What?", "Answer: TBD"),
        ("answer_is_question", "What is it ?", "what is IT?"),
        ("link_list", "Where?", "See https://a.org/x and www.b.org."),
        ("link_list", "Where?", "See <a href='https://a.org'>here</a>."),
        ("link_list", "Where?", "Resources about burns:  - Red Cross  - WHO   See also:  - NHS"),
        ("leaked_turns", "What?", "Rest.\nPatient: thanks\nDoctor: bye"),
        ("leaked_turns", "What?", "Rest.\n### Instruction:\nNext"),
        ("leaked_turns", "It hurts.\nDoctor: where?", "Here."),
        ("leaked_turns", "What?", "Patient: I fell."),
        ("reasoning_without_end", "What?", "<think>I wonder"),
        ("reasoning_without_end", "What?", "so.</reasoning> Rest."),
        ("reasoning_without_end", "What?", "<think>a<think>b</think>c"),
        ("too_long", "What?", "x" * 1_000_001),
        ("unclear_markup", "What?", "Give <del>5 mg 10 mg."),
        ("unclear_markup", "What?", "Give 10<sup>9 cells."),
        ("unclear_markup", "What?", "<table><tr><td><del>5</td><td>6</del></td></tr></table>"),
        ("unclear_markup", "What?", "<math><mn>1</mn><mfrac><mn>1</mn><mn>2</mn></mfrac></math>"),
        ("unclear_markup", "What?", "<b>" * 60 + "deep"),
        ("control_tokens", "What?", "Rest.</s> And wait."),
        ("control_tokens", "What?", "Rest.<|im_end|>\n<|im_start|>user\nAnd now?"),
        ("control_tokens", "What?", "Rest.<end_of_turn>\n<start_of_turn>user\nAnd now?"),
        ("control_tokens", "[INST] What? [/INST] Rest. [INST] And then?", "Wait."),
        ("control_tokens", "What?", "Take <unk> mg."),
        ("control_tokens", "What?", "Take 5 <unk>"),
        ("control_tokens", "What?", "a <|reserved_special_token_7|> b"),
        ("control_tokens", "What?", "Rest.<｜end▁of▁sentence｜>Wait."),
    ],
)
def test_rows_are_dropped_with_their_reason(expected, question, answer):
    assert reason(question, answer) == expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is it none?", "None of these."),
        ("NA?", "Na is sodium."),
        ("What?", "No."),
        ("What?", "5"),
        ("What?", "Yes: N/A applies."),
        ("Is aspirin safe?", "Aspirin is safe?"),
        ("Press?", "Press, press."),
        (
            "Where?",
            "Cool the burn for 20 minutes, then cover it loosely and see https://a.org for more.",
        ),
        ("Kit?", "Resources you need in a kit:\n- gauze\n- tape"),
        (
            "More information?",
            "Steps:\n- press\n- hold\nMore information is at the clinic, but call 911 first.",
        ),
        ("Roles?", "Call the doctor: he decides. The patient: lies down."),
        ("How?", "### Instructions\n1. Press.\n\n### Response to shock\nLie down."),
        ("Patient: I fell.\nPatient: It hurts.", "Rest."),
        ("What is <think>?", "I think so."),
    ],
)
def test_rows_that_only_look_bad_are_kept(question, answer):
    assert reason(question, answer) == ""


@pytest.mark.parametrize(
    ("rule", "question", "answer"),
    [
        ("escapes", "What?", r"Press.\nHold."),
        ("mojibake", "What?", "37 Â°C is fine."),
        ("html", "What?", "10 &lt; 20 <b>mg</b>"),
        ("control_characters", "What?", "Re\u200bst."),
        ("blanks", "What?", " Rest  now.\n\n\n\nYes.\u00a0"),
        ("question_mark", "What is it ?", "A burn."),
        ("flattened_lists", "What?", "Bring • gauze • tape"),
        ("leaked_turns", "Patient: What?", "Doctor: Rest."),
        ("leaked_turns", "What?", "Rest.\nPatient: thanks"),
        ("control_tokens", "What?", "Rest.</s>"),
        ("control_tokens", "What?", "Rest.</s> And wait."),
        ("placeholder", "What?", "N/A"),
        ("answer_is_question", "What is it?", "What is it?"),
        ("link_list", "Where?", "See https://a.org"),
    ],
)
def test_a_rule_switched_off_leaves_the_text_and_keeps_the_row(rule, question, answer):
    messages = row(question, answer)
    assert clean.clean_row(messages, job())[0] != messages or reason(question, answer)
    assert clean.clean_row(messages, job(skip_rules=[rule])) == (messages, "", {})


def test_every_cleaning_rule_is_switched_off_above():
    marks = test_a_rule_switched_off_leaves_the_text_and_keeps_the_row.pytestmark[0].args[1]
    assert {m[0] for m in marks} == set(params.RULES) - {
        "exact_duplicate",
        "tables",
        *turn_order.RULES,  # see test_turn_order.py
    }
    table = "a\tb\tc\nd\t\tf"
    assert "|" not in cleaned(table, skip_rules=["tables"])[0]
    assert cleaned(table, skip_rules=["tables", "blanks"]) == (table, {})
    assert set(RULE) - set(params.RULES) == {"reasoning", "personal_data"}, (
        "a rule without a switch and without a policy"
    )
    assert (
        text_rules.select_rules(
            job(skip_rules=list(params.RULES), reasoning="keep", personal_data="keep")
        )
        == []
    )


def test_french_keeps_the_blank_before_its_question_marks():
    assert cleaned("Que faire ?", language="fr") == ("Que faire ?", {})
    assert cleaned("What now ?", language="en")[0] == "What now?"


def test_reasoning_is_kept_when_told_and_is_never_looked_for_in_questions():
    messages = row("Does <think>a</think> help?", "<think>b</think>Yes.")
    assert clean.clean_row(messages, job(reasoning="keep")) == (messages, "", {})
    assert [m["content"] for m in clean.clean_row(messages, job())[0]] == [
        "Does <think>a</think> help?",
        "Yes.",
    ]


def test_conversations_and_system_messages():
    messages = row(["You  help."], "It  bleeds.", "Press .", "And ?", "Hold.")
    out, why, changed = clean.clean_row(messages, job())
    assert [m["role"] for m in out] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in out] == ["You help.", "It bleeds.", "Press .", "And?", "Hold."]
    assert why == ""
    assert changed["blanks"] == ("You  help.", "You help."), (
        "the first change of a rule is the one shown"
    )
    assert clean.clean_row(row([" "], "It bleeds.", "Press."), job()) == (
        row("It bleeds.", "Press."),
        "",
        {"blanks": (" ", ""), "empty_system_message": (" ", "")},
    )
    assert reason("Hi.", "Hello.", "What is it?", "What is it?") == "answer_is_question"
    assert reason("Hi.", "N/A", "What is it?", "A burn.") == "placeholder"


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ([], "empty"),
        (["system"], "turns_out_of_order"),
        (["user"], "turns_out_of_order"),
        (["assistant", "user"], "turns_out_of_order"),
        (["user", "user"], "turns_out_of_order"),
        (["user", "assistant", "user"], ""),
        (["user", "system", "assistant"], "turns_out_of_order"),
        (["system", "system", "user", "assistant"], ""),
        (["user", "assistant"], ""),
        (["system", "user", "assistant", "user", "assistant"], ""),
    ],
)
def test_turns_must_alternate(roles, expected):
    messages = [{"role": role, "content": f"Text {n}."} for n, role in enumerate(roles)]
    assert clean.clean_row(messages, job())[1] == expected


def test_dangerous_advice_is_dropped_flagged_or_ignored_as_told(monkeypatch):
    monkeypatch.setattr(
        advice,
        "find_harmful",
        lambda text, question="": [("ice", "Put ice on it.")] if "ice" in text else [],
    )
    messages = row("Burn?", "Put ice on it.")
    shown = {"dangerous_advice_flagged": ("Put ice on it.", "rule ice")}
    assert clean.clean_row(messages, job(dangerous_advice="drop")) == (
        messages,
        "dangerous_advice",
        {"dangerous_advice": shown["dangerous_advice_flagged"]},
    )
    assert clean.clean_row(messages, job(dangerous_advice="flag")) == (messages, "", shown)
    assert clean.clean_row(messages, job(dangerous_advice="ignore")) == (messages, "", {})
    assert reason("May I put ice on it?", "Cool it with water.", dangerous_advice="drop") == "", (
        "a question gives no advice"
    )


@pytest.mark.parametrize("option", ["None", "Na", "Nil", "NA", "n/a", "+", "↑"])
@pytest.mark.parametrize(
    "question",
    [
        "Which?\n\nA) Asthma\nB) {0}\nC) Mg",
        "Which?\nA. Asthma\nB. {0}.",
        "Which? (a) asthma, (b) {0}, (c) both",
        "Which? 1) asthma 2) {0}",
    ],
)
def test_an_option_that_looks_like_a_placeholder_is_an_answer(question, option):
    assert reason(question.format(option), option) == ""
    assert reason("Which?", option) == "placeholder"
    assert reason(question.format("Both"), option) == "placeholder"
    assert reason(question.format(f"{option} or both"), option) == "placeholder"


@any_of
@given(st.lists(any_text, min_size=1, max_size=5), subsets, st.booleans())
def test_a_row_is_unchanged_exactly_when_no_rule_is_named(contents, off, with_system):
    messages = row([contents[0]], *contents[1:]) if with_system else row(*contents)
    out, why, changed = clean.clean_row(messages, job(skip_rules=off))
    assert (out == messages) == (not changed)
    assert set(changed) <= set(clean.CHANGES)
    assert why in ("", *clean.REASONS)
    assert (
        all(m["role"] in ("system", "user", "assistant") and m["content"].strip() for m in out)
        or why
    )
    if not why:
        assert clean.clean_row(out, job(skip_rules=off))[0] == out


# ---------------------------------------------------------------------------------------------------------------------
# real data


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data with real questions and answers")
def test_the_known_defects_of_medquad_are_found():
    with gzip.open(DATA / "medquad.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    alike = [r for r in rows if words_of(r["question"]) == words_of(r["answer"])]
    assert len(alike) == 5
    assert {reason(r["question"], r["answer"]) for r in alike} == {"answer_is_question"}
    links = [r for r in rows if is_link_list(r["question"], r["answer"])]
    assert 1_080 <= len(links) <= 1_095
    assert all("resources" in r["answer"] for r in links)
    tables = [lists.break_lists(r["answer"]) for r in rows if lists.TABLE_HEAD in r["answer"]]
    assert len(tables) == 2_243
    table_lines = [
        line
        for text in tables
        for line in text.split(lists.TABLE_HEAD)[1]
        .split(lists.TABLE_TAIL[1:])[0]
        .strip()
        .split("\n")
    ]
    assert (
        sum(
            not re.fullmatch(r"[^%]+ (?:-|<?[\d.]*%|\d+/\d+|\d of \d+)", line)
            for line in table_lines
        )
        < 5
    )
    questions = [text_rules.tidy_question_mark(r["question"]) for r in rows]
    assert (
        sum(before["question"] != after for before, after in zip(rows, questions, strict=True))
        > 16_000
    )
    assert not any(" ?" in question for question in questions)
