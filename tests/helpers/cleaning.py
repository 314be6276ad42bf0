"""Run rows and texts through the cleaning rules, for their tests."""

from lib import params
from lib.common import errors
from lib.data.cleaning import clean, text_rules

ANY = {"language": "", "dangerous_advice": "ignore", "damaged_text": "ignore"}
DATA = errors.ROOT.parent / "shared" / "data"


def job(**values):
    return params.check_values(ANY | values, "test")


def cleaned(text, **values):
    return text_rules.apply_rules(text, text_rules.select_rules(job(**values)))


def row(*texts):
    """Return turns of user and assistant; a first text in brackets is the system message."""
    system = [{"role": "system", "content": texts[0][0]}] if isinstance(texts[0], list) else []
    return system + [
        {"role": ("user", "assistant")[n % 2], "content": text}
        for n, text in enumerate(texts[len(system) :])
    ]


def reason(*texts, **values):
    return clean.clean_row(row(*texts), job(**values))[1]
