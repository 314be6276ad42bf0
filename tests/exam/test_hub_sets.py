"""Held-out sets of the hub's shapes, and of few and many options: both forms, baselines and tables.

python -m pytest tests/exam/test_hub_sets.py
"""

import random

import pytest
from transformers import AutoTokenizer

from lib.data.reading import exam_items
from lib.exam import baselines, cautions, multiple_choice, tables

COUNT = 6


def medqa(n):
    options = dict(zip("ABCD", ("press", "wait", "walk", "cool it"), strict=True))
    return exam_items.convert_medqa(
        {
            "question": f"q {n}",
            "options": options,
            "answer_idx": "ABCD"[n % 4],
            "meta_info": "step1",
        }
    )


def medmcqa(n):
    options = {"opa": "press", "opb": "wait", "opc": "walk", "opd": "cool it"}
    row = {"id": f"m{n}", "question": "q", "cop": n % 4, "subject_name": "Surgery"}
    return exam_items.convert_medmcqa(row | options)


def pubmedqa(n):
    row = {"pubid": n, "question": "is it so", "context": {"contexts": ["the abstract"]}}
    return exam_items.convert_pubmedqa(row | {"final_decision": ("yes", "yes", "no")[n % 3]})


def mmlu(n):
    choices = ["press", "wait", "walk", "cool it"]
    return exam_items.convert_mmlu(
        {"question": "q", "choices": choices, "answer": n % 4, "subject": "anatomy"}
    )


def two_options(n):
    return {"question": "q", "options": ["true", "false"], "answer_letter": "AB"[n % 2]}


def many_options(n):
    return {"question": "q", "options": [f"o{k}" for k in range(26)], "answer_letter": "Z"}


SETS = {medqa: 4, medmcqa: 4, pubmedqa: 3, mmlu: 4, two_options: 2, many_options: 26}


@pytest.mark.parametrize("make", SETS, ids=lambda make: make.__name__)
def test_a_set_takes_both_forms_and_stands_beside_its_baselines(tiny_gemma3n, make):
    """The scores are drawn, as those of a model that knows nothing would be."""
    rows = [make(n) for n in range(COUNT)]
    habits = exam_items.multiple_choice.find_habits([(str(n), row) for n, row in enumerate(rows)])
    items = [exam_items._to_item(row, str(n), habits) for n, row in enumerate(rows)]
    tokenizer = AutoTokenizer.from_pretrained(tiny_gemma3n)
    draw = random.Random(1)

    def score(trees, tick):
        return [[-30 * draw.random() - 1 for _ in tree.asked] for tree in trees]

    models = {}
    for name in ("base", "merged"):
        results = multiple_choice.ask_items(items, tokenizer, score, name)
        assert [len(result["scores"]) for result in results] == [SETS[make]] * COUNT
        assert all(len(result["completion"]["scores"]) == SETS[make] for result in results)
        assert all(result["bits_per_byte"] > 0 for result in results)
        models[name] = {
            **multiple_choice.choices.summarise_results(results),
            **multiple_choice.completion.summarise_results(
                results, multiple_choice.completion.choose_normalisation(items)
            ),
            "held_out": None,
            "results": results,
        }
    measured = baselines.measure_baselines(items, ["press hard", "cool it with water"])
    entry = {
        "exam": "set",
        "items": COUNT,
        "models": models,
        "baselines": measured,
        "comparisons": multiple_choice.compare_models(models, multiple_choice.exam_settings()),
    }
    assert measured["chance"] == pytest.approx(1 / SETS[make])
    assert measured["options_only"]["of"] == COUNT
    if make is pubmedqa:
        assert measured["options_only"]["chosen"] == ["A"] * COUNT, "yes is right most often"
    shown = tables.format_entry(entry)
    for text in ("bits per byte", "the words of the options alone", "by letter"):
        assert text in shown
    assert any(
        "6 items do not tell merged from the base" in t for t in cautions.list_cautions(entry)
    )
