"""Choose what computes the layers of a compiled job: the hand-written ones, or transformers'.

stack, name = choose.prepare_layers(model, job, longest, checkpoints)
"""

import pathlib
from typing import TYPE_CHECKING, Any

from lib.common.errors import UserError
from lib.model import ranks
from lib.params import Params
from lib.training import compiled
from lib.training.checkpoint import newest_checkpoint
from lib.training.stack import fits

if TYPE_CHECKING:
    from lib.training.stack.stack import Stack

HAND_WRITTEN, COMPILED = "hand-written", "transformers', compiled"


def prepare_layers(
    model: Any, job: Params, longest: int, checkpoints: pathlib.Path
) -> tuple["Stack | None", str]:
    """Join the model's weights for what trains it, and say what it is; return it with its name.

    It is a Stack, or None for transformers' layers. `longest` are the tokens of the longest row.
    Gradients of the two are rounded differently, so a
    run goes on with what its newest checkpoint was trained by; UserError if that is not possible.
    """
    hindrance = "layers: compiled" if job.layers == "compiled" else fits.find_hindrance(model, job)
    newest = ranks.from_first(newest_checkpoint(checkpoints) if ranks.rank() == 0 else None)
    if newest:
        path, state = newest
        by_hand = state.get("layers by") == HAND_WRITTEN
        if by_hand and hindrance:
            raise UserError(
                f"checkpoint {path.name} was trained by the hand-written layers, which cannot go "
                f"on here: {hindrance}. Their gradients are rounded differently from "
                f"transformers'. Continue where the job fits them, or start over with FORCE=1."
            )
        if not by_hand and not hindrance:
            hindrance = "the checkpoint was trained by them"
    name = COMPILED if hindrance else HAND_WRITTEN
    if ranks.rank() == 0:
        print(f"layers: {name} ({hindrance or 'the job fits them'})", flush=True)
    if hindrance:
        compiled.fuse(model)
        return None, name
    # imported here, since triton is installed only on machines with a GPU
    from lib.training.stack.stack import Stack

    return Stack(model, longest), name
