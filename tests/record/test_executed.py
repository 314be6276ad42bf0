"""An error is put into an executed notebook where it ended.

.venv/bin/python -m pytest tests/record/test_executed.py
"""

from helpers.runs_by_hand import executed
from lib.record.executed import mark_failed


def test_a_copy_that_papermill_gave_its_banners_is_read_too():
    notebook = executed("completed", "failed", "pending")
    notebook["cells"].insert(
        0,
        {
            "cell_type": "markdown",
            "source": "An Exception was encountered",
            "metadata": {"tags": []},
        },
    )
    assert mark_failed(notebook, "Interrupted", "killed") == 3


def test_the_interrupt_that_shuts_a_kernel_down_is_not_taken_for_the_cause():
    notebook = executed("completed", "running", "pending")
    notebook["cells"][1]["outputs"] = [
        {"output_type": "stream"},
        {"output_type": "error", "ename": "KeyboardInterrupt"},
    ]
    assert mark_failed(notebook, "TimedOut", "too slow") == 2
    assert [o.get("ename") for o in notebook["cells"][1]["outputs"]] == [None, "TimedOut"]
