"""Which form of an exam comes first.

python -m pytest tests/exam/test_forms.py
"""

import pytest

from lib.exam import forms


def model(mass=0.9, chosen=0.3, right=0.25, order="as written"):
    letters = {
        "A": {"chosen": chosen, "right": right},
        "B": {"chosen": 1 - chosen, "right": 1 - right},
    }
    return {
        "letter_mass": mass,
        "orders": [{"order": order, "letters": letters}],
        "completion": {},
    }


@pytest.mark.parametrize(
    ("changes", "form", "why"),
    [
        ({}, "letters", "prefers none"),
        ({"mass": 0.5}, "letters", "prefers none"),
        ({"mass": 0.49}, "completion", "probability of only 49.0%"),
        ({"chosen": 0.99}, "completion", "tuned answers A to 99% of the items"),
        ({"chosen": 0.52}, "completion", "A is right in 25%"),
        ({"chosen": 0.5}, "letters", "prefers none"),
        ({"chosen": 0.74, "right": 0.55}, "letters", "prefers none"),  # the key itself prefers it
        ({"chosen": 0.81, "right": 0.55}, "completion", "A is right in 55%"),
        ({"chosen": 0.9, "order": "shuffled 1"}, "completion", "(shuffled 1)"),
        ({"mass": float("nan")}, "completion", "nan%"),
    ],
)
def test_the_rule_holds_for_the_base_and_the_tuned_model_alike(changes, form, why):
    for names in (("base", "tuned"), ("tuned", "base")):
        models = dict(zip(names, (model(), model(**changes)), strict=True))
        found = forms.choose_form(models)
        assert found["form"] == form
        assert why.replace("tuned", names[1]) in found["reason"]


def test_results_of_letters_alone_have_no_other_form():
    old = model(mass=0.1)
    del old["completion"]
    assert forms.choose_form({"base": old, "merged": model()})["form"] == "letters"
