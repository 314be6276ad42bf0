"""Judge an item of lm-evaluation-harness's completion task as lib/exam/completion.py does."""

from typing import Any


def process_results(doc: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
    """Return whether the likeliest option is right: the whole text (acc), and per character.

    lm-eval moves the newline at the prompt's end into every option. Its likelihood is asked as one
    more option, the empty one, and taken off before the rest is divided by the text's length.
    """
    options = {letter: text for letter, text in doc["options"].items() if text is not None}
    *whole, newline = (likelihood for likelihood, _ in results)
    pairs = zip(whole, options.values(), strict=True)
    each = [(score - newline) / len(text) for score, text in pairs]
    right = list(options).index(doc["answer_letter"])
    return {
        "acc": float(whole.index(max(whole)) == right),
        "acc_norm": float(each.index(max(each)) == right),
    }
