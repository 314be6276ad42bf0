"""A run as its notebooks make it when they are executed by hand, without make."""

import json

from lib.record import notebook
from lib.record.run_record import STAGES

NOBODY = 2**22 + 1  # above the largest process id of Linux


def by_hand(stage, **values):
    return notebook.begin_stage(stage, {"run_name": "job", **values})


def finish(run, stage, output="a result"):
    (run.folder / stage).mkdir(exist_ok=True)
    (run.folder / stage / "file").write_text(output)
    notebook.finish_stage(run, stage, {"value": output}, [stage], output)


def finished(folder, **values):
    """Finish all three stages, as their notebooks do when run by hand."""
    for stage in STAGES:
        finish(by_hand(stage, **values)[1], stage)
    return json.loads((folder / "run.json").read_text())


def statuses(folder):
    return [json.loads((folder / "run.json").read_text())["stages"][s]["status"] for s in STAGES]


def executed(*states):
    """Return an executed copy as papermill leaves it: text, then a code cell for each state."""
    cells = [
        {
            "cell_type": "markdown" if n == 0 else "code",
            "source": "",
            "outputs": [],
            "metadata": {"papermill": {"status": s, "exception": None}},
        }
        for n, s in enumerate(states)
    ]
    return {
        "cells": cells,
        "metadata": {"papermill": {"exception": None}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
