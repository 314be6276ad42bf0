"""report_to: the ledger's lines, sent to a tracker as well. The ledger stays the record; a tracker that fails stops nothing.

The names are Hugging Face's, the x axis is the optimizer step. A session that resumes continues the tracker's run:
TensorBoard replaces the steps that are repeated, trackio and wandb show both. Where to and as whom (login,
WANDB_MODE=offline, WANDB_PROJECT, TRACKIO_SPACE_ID) is said in their own environment variables, never in a parameter.
"""

import importlib
import os
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any

from lib import params
from lib.common.errors import UserError
from lib.params import Params

PROJECT = "medrescue-tuning"
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}

Tracker = tuple[
    Callable[[dict[str, float], int], None], Callable[[], None]
]  # takes numbers and their step; ends the run


def start(job: Params, folder: pathlib.Path) -> Callable[[str, dict[str, Any]], None]:
    """A function that takes every event of the ledger with its values; for report_to none it does nothing.

    The last event is `end`, however the session ends: without it a kernel that is killed takes along what wandb and
    trackio have not written yet. UserError when the package is not there; what fails later is one printed warning.
    """
    if job.report_to == "none":
        return lambda event, values: None
    if job.report_to == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
    try:
        module = importlib.import_module(MODULES[job.report_to])
    except Exception as error:  # a package beside another it does not fit raises anything
        raise UserError(
            f"report_to is {job.report_to}, which cannot be imported here: {error}.\nInstall it with `pip install -r "
            f"requirements-trackers.txt` (or `pip install {job.report_to}` alone), or set report_to: none."
        ) from None
    begin = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}[job.report_to]
    restarts = len(
        list(folder.glob("metrics.attempt*.jsonl"))
    )  # ledgers set aside by FORCE=1: each was another training
    name = f"{folder.name}-{restarts}" if restarts else folder.name
    tracker: Tracker | None = None

    def report(event: str, values: dict[str, Any]) -> None:
        nonlocal tracker
        try:
            if event == "session":
                tracker = begin(module, job, folder, name, values["start_step"])
            elif tracker and event == "end":
                tracker[1]()
            elif tracker and (numbers := named(event, values)):
                tracker[0](numbers, values["step"])
        except Exception as error:
            tracker = None
            print(
                f"{job.report_to} failed and is told nothing more; training goes on, and metrics.jsonl has every line. "
                f"{type(error).__name__}: {error}",
                flush=True,
            )

    return report


def named(event: str, values: dict[str, Any]) -> dict[str, float]:
    """A line of the ledger under Hugging Face's names, memory in GiB, rates a second; empty for an event without a step."""
    if event == "eval":
        return {"eval/loss": values["eval_loss"]}
    if event != "step":
        return {}
    return {
        "train/loss": values["loss"],
        "train/learning_rate": values["lr"],
        "train/grad_norm": values["grad_norm"],
        "train/epoch": values["epoch"],
        "train/memory_gib": values["memory_gib"],
        "train/tokens_per_second": values["tokens"] / values["seconds"],
        "train/samples_per_second": values["rows"] / values["seconds"],
    }


def _tensorboard(module: Any, job: Params, folder: pathlib.Path, name: str, step: int) -> Tracker:
    writer = module.SummaryWriter(
        str(folder / "tensorboard" / name), purge_step=step + 1
    )  # the line of `step` itself stands
    writer.add_text("params", textwrap.indent(params.to_yaml(job), "    "), step)

    def log(numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)
        writer.flush()  # a killed session keeps its lines, and a full disk is noticed here

    return log, writer.close


def _trackio(module: Any, job: Params, folder: pathlib.Path, name: str, step: int) -> Tracker:
    # embed would start the dashboard's server in the notebook; a Space made for TRACKIO_SPACE_ID is public unless told
    run = module.init(
        PROJECT, name=name, config=job.model_dump(), resume="allow", embed=False, private=True
    )
    return run.log, run.finish


def _wandb(module: Any, job: Params, folder: pathlib.Path, name: str, step: int) -> Tracker:
    # what was printed, the code and the checkout's diff stay here: nobody has looked them through for secrets.
    # Without a limit (60 seconds) a network that is gone holds up the end; what was not sent then waits for `wandb sync`.
    settings = {"console": "off", "disable_code": True, "disable_git": True, "finish_timeout": 60.0}
    run = module.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        dir=str(folder),
        id=name,
        name=name,
        config=job.model_dump(),
        resume="allow",
        allow_val_change=True,
        reinit="finish_previous",
        settings=settings,
    )
    run.define_metric(
        "train/global_step"
    )  # wandb's own step cannot go back, as a session that resumes does
    run.define_metric("*", step_metric="train/global_step")
    return lambda numbers, step: run.log({**numbers, "train/global_step": step}), run.finish
