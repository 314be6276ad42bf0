"""An entry of exam.json with both forms, made by the exam's own functions from given scores."""

from lib.exam import choices, completion, multiple_choice

ITEMS = [
    {
        "id": f"q{number}",
        "topic": "burns",
        "question": "What now?",
        "options": {"A": "cool it", "B": "butter"},
        "answer_letter": "AB"[number % 2],
    }
    for number in range(4)
]


def result(right, bits, mass=0.2):
    """Return a model's result that is right by text in `right` items, and answers A to all."""
    results = []
    for number, item in enumerate(ITEMS):
        orders = choices.option_orders(item, 1, choices.SEED)
        judged = choices.judge_item(item, orders, [[-2.3, -2.4], [-2.3, -2.4]])
        answer, texts = item["answer_letter"], item["options"]
        nats = {key: -20.0 if (key == answer) != (number < right) else -1.0 for key in texts}
        judged["completion"] = completion.judge_item(item, [2, 2], list(nats.values()), "character")
        judged["bits_per_byte"] = bits
        results.append(judged)
    summary = {**choices.summarise_results(results), "letter_mass": mass}
    texts = completion.summarise_results(results, "character")
    return {**summary, **texts, "held_out": None, "results": results}


def entry(name="bundled:exam"):
    """Return an exam's entry in which the tuned model gains two items by text, and none by letter."""
    models = {"base": result(1, 2.0), "merged": result(3, 1.5), "q8_0": result(3, 1.5)}
    comparisons = multiple_choice.compare_models(models, {"seed": 1})
    return {
        "exam": name,
        "items": len(ITEMS),
        "sha256": "items",
        "models": models,
        "comparisons": [pair for pair in comparisons if pair["before"] == "base"],
    }
