"""report_to: send the ledger's lines to a tracker as well.

The ledger stays the record; training goes on if a tracker fails. Metric names are those of Hugging
Face, and the x axis is the optimizer step. A session that resumes continues the tracker's run:
TensorBoard replaces the repeated steps, trackio and wandb show both. Account and destination are
set by the trackers' own environment variables (login, WANDB_MODE=offline, WANDB_PROJECT,
TRACKIO_SPACE_ID), never by a parameter.

accelerate.tracking is not used: each call of its trackers raises unless accelerate's PartialState
has set up devices and process groups, which training does itself. Its trackers would also take the
same arguments as these.
"""

import importlib
import os
import pathlib
import textwrap
from collections.abc import Callable
from typing import Any, NamedTuple

from lib import params
from lib.common.errors import UserError
from lib.params import Params
from lib.record.ledger import Ledger

PROJECT = "medrescue-tuning"
MODULES = {"tensorboard": "torch.utils.tensorboard", "trackio": "trackio", "wandb": "wandb"}

Report = Callable[[str, dict[str, Any]], None]


class Tracker(NamedTuple):
    """An open run of a tracker: `log` sends numbers of a step, `finish` ends the run."""

    log: Callable[[dict[str, float], int], None]
    finish: Callable[[], None]


def note(ledger: Ledger | None, report: Report | None, event: str, **values: Any) -> None:
    """Write an event to the ledger and the tracker, which only rank 0 has."""
    if ledger and report:
        ledger.write(event, **values)
        report(event, values)


def start_tracker(job: Params, folder: pathlib.Path) -> Report:
    """Return a function to call with every event of the ledger and its values.

    It does nothing for report_to: none. However the session ends, its last event is `end`: without
    it, what wandb and trackio have not written yet would be lost when the kernel is killed. Raise
    UserError if the package cannot be imported; later failures only print a warning.
    """
    if job.report_to == "none":
        return lambda event, values: None
    if job.report_to == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # trackio's import reads it
    module = import_package(job.report_to)
    begin = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}[job.report_to]
    # FORCE=1 renames the ledger and starts another training
    restarts = len(list(folder.glob("metrics.attempt*.jsonl")))
    name = f"{folder.name}-{restarts}" if restarts else folder.name
    tracker: Tracker | None = None

    def report(event: str, values: dict[str, Any]) -> None:
        nonlocal tracker
        try:
            if event == "session":
                tracker = begin(module, job, folder, name, values["start_step"])
            elif tracker and event == "end":
                tracker.finish()
            elif tracker and (numbers := name_numbers(event, values)):
                tracker.log(numbers, values["step"])
        except Exception as error:
            tracker = None
            print(
                f"{job.report_to} failed and will receive no more lines; training goes on, and "
                f"metrics.jsonl has every line. {type(error).__name__}: {error}",
                flush=True,
            )

    return report


def import_package(report_to: str) -> Any:
    """Return the module of a tracker; raise UserError if it cannot be imported."""
    try:
        return importlib.import_module(MODULES[report_to])
    except Exception as error:  # incompatible packages can raise anything
        raise UserError(
            f"report_to is {report_to}, which cannot be imported here: {error}.\n"
            f"Install it with `pip install -r requirements-trackers.txt` "
            f"(or `pip install {report_to}` alone), or set report_to: none."
        ) from None


def name_numbers(event: str, values: dict[str, Any]) -> dict[str, float]:
    """Return a ledger line under Hugging Face's names, with memory in GiB and rates per second.

    The result is empty for an event without a step.
    """
    if event in ("eval", "forgetting"):
        return {f"{event}/loss": values["eval_loss"]}
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
    # the line of `step` itself stays, and later ones are repeated
    writer = module.SummaryWriter(str(folder / "tensorboard" / name), purge_step=step + 1)
    writer.add_text("params", textwrap.indent(params.to_yaml(job), "    "), step)

    def log(numbers: dict[str, float], step: int) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, step)
        writer.flush()  # a killed session keeps its lines, and a full disk is noticed here

    return Tracker(log, writer.close)


def _trackio(module: Any, job: Params, folder: pathlib.Path, name: str, step: int) -> Tracker:
    run = module.init(
        PROJECT,
        name=name,
        config=job.model_dump(),
        resume="allow",
        embed=False,  # True would start the dashboard's server in the notebook
        private=True,  # otherwise the Space made for TRACKIO_SPACE_ID would be public
    )
    return Tracker(run.log, run.finish)


def _wandb(module: Any, job: Params, folder: pathlib.Path, name: str, step: int) -> Tracker:
    settings = {
        # output, code and the checkout's diff are not sent, since they may contain secrets
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        # seconds, so that a lost network does not delay the end; `wandb sync` can send the rest
        "finish_timeout": 60.0,
    }
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
    # wandb's own step cannot go back, as in a session that resumes
    run.define_metric("train/global_step")
    run.define_metric("*", step_metric="train/global_step")
    return Tracker(
        lambda numbers, step: run.log({**numbers, "train/global_step": step}), run.finish
    )
