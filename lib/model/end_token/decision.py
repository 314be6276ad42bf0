"""Decide whether the end token's row is trained, by a measurement on the base itself.

measured = evaluate.measure_ends(net, rows, folder) if decision.is_open(job, run) else {}
job, end = decision.settle(net, job, run, folder, measured)    # in the train notebook
"""

import math
import pathlib
from typing import Any

from lib.common.errors import UserError
from lib.model import start
from lib.model.end_token import end_row
from lib.model.options import choose_backend
from lib.params import Params
from lib.record import run_folder
from lib.record.run_record import Run
from lib.record.schema import EndToken

# The base cannot end an answer if the end token is, where answers end, this many times less likely
# than a token drawn blindly. In the pretrained Gemma 3 270M it is 3 x 10^8 times (e^-32 instead of
# 1/262,144). A base that was tuned on turns has learnt to write it there. The factor keeps a model
# with random weights, which draws blindly, from counting as one that cannot.
BELOW_CHANCE = 20.0
FULL = "full fine-tuning trains all rows"


def is_open(job: Params, run: Run) -> bool:
    """Tell whether only a measurement can decide: nothing that is set or recorded does."""
    decided = job.train_end_token != "auto" or job.full_finetuning or bool(job.start_from)
    return not decided and not run_folder.has_checkpoint(run.folder)


def settle(
    model: Any, job: Params, run: Run, folder: pathlib.Path, measured: EndToken
) -> tuple[Params, EndToken]:
    """Return the job with train_end_token decided, and by what; add the row to the model if so.

    The decision is recorded in the run, and a training with a checkpoint keeps it. `folder` is the
    base's. Raise UserError if the backend cannot train the row.
    """
    if job.full_finetuning:
        limit = _limit_of(model.config.get_text_config().vocab_size)
        end = EndToken(limit=limit, trained=False, because=FULL, **measured)
        run.data["end_token"] = end
        return job, end
    if run_folder.has_checkpoint(run.folder):
        # a checkpoint of an earlier version has no record, and no row
        as_set = EndToken(trained=job.train_end_token is True, because="as in the checkpoint")
        end = run.data.get("end_token", as_set)
    else:
        end = _decide(job, measured, model.config.get_text_config().vocab_size)
    if end["trained"] and choose_backend(job)[0] == "unsloth":
        raise UserError(
            f"{describe(end)} But a trained row was not tried with backend: unsloth. Set backend: "
            f"transformers, or train_end_token: false (answers may not end)."
        )
    run.data["end_token"] = end
    run.save()
    if end["trained"] and end_row.find(model) is None:
        end_row.add(model, end_row.find_token(folder))
    return job.model_copy(update={"train_end_token": end["trained"]}), end


def _decide(job: Params, measured: EndToken, vocabulary: int) -> EndToken:
    """Return the measurement with the limit, the decision and its reason."""
    limit = _limit_of(vocabulary)
    end: EndToken = {"limit": limit, **measured}
    if job.train_end_token != "auto":
        return {**end, "trained": job.train_end_token, "because": "as set"}
    if job.start_from:
        return {
            **end,
            "trained": start.has_end_row(job.start_from),
            "because": "as in the adapter it begins from",
        }
    if not measured:
        return {**end, "trained": False, "because": "no answer ends in the rows measured"}
    cannot = measured["log_probability"] < limit
    return {
        **end,
        "trained": cannot,
        "because": "the base cannot end an answer" if cannot else "the base can end an answer",
    }


def _limit_of(vocabulary: int) -> float:
    """Return the log-probability below which a base counts as unable to end an answer."""
    return round(-math.log(BELOW_CHANCE * vocabulary), 4)


def describe(end: EndToken) -> str:
    """Return the measurement and the decision in a sentence or two."""
    decision = "is trained beside LoRA" if end["trained"] else "is not trained"
    text = f"The end token's row {decision}: {end['because']}."
    if end["because"] == FULL:
        text = "All rows are trained, the end token's too."
    if "log_probability" not in end:
        return text
    return (
        f"{text} Where {end['ends']} training answers end, its log-probability is "
        f"{end['log_probability']:.1f} in the base; below {end['limit']:.1f} counts as never "
        f"learnt ({BELOW_CHANCE:g} times less likely than a token drawn blindly)."
    )
