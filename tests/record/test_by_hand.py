"""What a kernel keeps when a notebook's cells are run by hand again.

.venv/bin/python -m pytest tests/record/test_by_hand.py
"""

import gc
import json
import sys
import weakref

import pytest
import torch

from helpers.runs_by_hand import finish
from lib.common.errors import UserError
from lib.record import by_hand, notebook

OWN = ("params_file", "run_name")
CELL = 'params_file: str = ""\nrun_name: str = "job"\nmax_steps: int = 3\nlora_r: int = 4\n'


def kernel(*cells, **before):
    """Return a kernel's variables after these cells, with the list of cells that IPython keeps."""
    names = {"In": [""], **before}
    for cell in cells:
        names["In"].append(cell)
        exec(cell, names)  # noqa: S102 - the cells are the tests' own
    return names


def given(*cells, **before):
    return by_hand.read_given(kernel(*cells, **before), OWN)


def test_the_cells_values_count_and_those_of_cells_run_after_it():
    assert given(CELL) == {"max_steps": 3, "lora_r": 4}
    assert given(CELL, "lora_r = 16", "x = lora_r") == {"max_steps": 3, "lora_r": 16}
    assert given("lora_r = 2", CELL) == {"max_steps": 3, "lora_r": 4}
    injected = "# Parameters\nmax_steps = 5\nrun_name = 'other'\n"
    assert given(CELL, injected) == {"max_steps": 5, "lora_r": 4}


def test_a_removed_line_is_not_remembered():
    without = CELL.replace("max_steps: int = 3\n", "# max_steps: int = 3\n")
    assert given(CELL, without) == {"lora_r": 4}


@pytest.mark.parametrize(
    "cells",
    [
        (CELL + "max_step: int = 5",),
        (CELL + "learning_rates = 1",),
        (CELL, "# Parameters\nmax_step = 5\n"),
    ],
)
def test_a_misspelt_parameter_is_refused_with_the_name_that_was_meant(cells):
    with pytest.raises(
        UserError, match="unknown parameter `.*did you mean `(max_steps|learning_rate)`"
    ):
        given(*cells)


def test_a_helper_of_the_cell_itself_is_no_parameter():
    values = given('root = "/data"\n' + CELL + 'dataset = root + "/rows.jsonl"')
    assert values["dataset"] == "/data/rows.jsonl"


def test_cells_with_magics_or_errors_do_not_hide_the_parameters():
    names = kernel(CELL)
    names["In"] = ["", "%pip list", *names["In"][1:], "max_steps = = 7"]
    assert by_hand.read_given(names, OWN) == {"max_steps": 3, "lora_r": 4}


def test_without_a_history_every_variable_counts():
    assert by_hand.read_given({"max_steps": 3, "other": 1}, OWN) == {"max_steps": 3}


def test_the_first_cells_again_drop_what_an_earlier_pass_holds(folder):
    net, mine = torch.nn.Linear(2, 2), [1]
    dropped = weakref.ref(net)
    names = {"run_name": "job", "net": net, "weight": net.weight, "mine": mine, "torch": torch}
    sys.last_value = ValueError(net)
    del net
    finish(notebook.begin_stage("prepare", names)[1], "prepare")
    gc.collect()
    assert dropped() is None
    assert names == {"run_name": "job", "mine": mine, "torch": torch}


def test_the_error_of_a_cell_is_recorded_until_that_cell_succeeds(folder, monkeypatch):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    shell.user_ns["run_name"] = "job"
    begin = "from lib.record import notebook\njob, run = notebook.begin_stage('prepare', globals())"

    def last():
        attempt = json.loads((folder / "run.json").read_text())["stages"]["prepare"]["attempts"][-1]
        return attempt.get("stopped"), attempt["end"]

    shell.run_cell(begin)
    assert last() == (None, None)
    shell.run_cell("x = 0")
    shell.run_cell("y = 1 / x")
    assert last() == ("ZeroDivisionError: division by zero", None)
    shell.run_cell("x = 1")
    assert last() == ("ZeroDivisionError: division by zero", None)
    shell.run_cell("y = 1 / x")
    assert last() == (None, None)
    shell.run_cell("raise ValueError('again')")
    shell.run_cell(begin)
    first, second = json.loads((folder / "run.json").read_text())["stages"]["prepare"]["attempts"]
    assert first["exit"] == "ValueError: again"
    assert "stopped" not in {**first, **second}
    notes = [c for c in shell.events.callbacks["post_run_cell"] if by_hand._is_note(c)]
    assert len(notes) == 1
