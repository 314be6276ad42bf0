"""The trained state: float32 masters and optimizer; on disk as folders that are whole or absent, no pickle."""

import os
import pathlib
import shutil
import time
from typing import Any

from safetensors import SafetensorError

from lib.common import files
from lib.common.errors import UserError
from lib.model import ranks
from lib.training.masters import Masters


def save_checkpoint(
    folder: pathlib.Path, step: int, masters: Masters, identity: dict[str, Any], keep: int
) -> None:
    """Write checkpoints/step-NNNNNN beside and rename; older ones beyond `keep` go afterwards."""
    final = folder / f"step-{step:06d}"
    if final.exists() or ranks.rank():
        return
    temporary = folder / f".{final.name}.tmp"
    for left in folder.glob(".step-*.tmp"):  # by a kill
        shutil.rmtree(left)
    try:
        temporary.mkdir(parents=True)
        masters.save(temporary)
        state = {"step": step, **identity, "files": files.describe_files(temporary, ["."])}
        files.write_json(temporary / "checkpoint.json", state, sealed=True)
        for path in temporary.glob("*.safetensors"):  # on disk before an older checkpoint goes
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        temporary.replace(final)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(
            f"the checkpoint of step {step} could not be saved: {error}. Earlier checkpoints are whole. Free some disk space, or lower "
            f"save_total_limit; the same command continues from the last one."
        ) from None
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)


def newest_checkpoint(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, Any]] | None:
    """The newest checkpoint whose files match their hashes; damaged ones are passed over, and it says so."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            state = files.read_json(path / "checkpoint.json", "record")
            trouble = files.find_damage(path, state["files"])
        except UserError as error:
            trouble = str(error).removesuffix(".")
        except (KeyError, TypeError) as error:
            trouble = f"checkpoint.json: {error}"
        if not trouble:
            return path, state
        print(f"checkpoint {path.name} is damaged ({trouble}); trying the one before it")
        path.rename(path.with_name(f"damaged-{path.name}-{int(time.time())}"))
    return None


def resume(folder: pathlib.Path, masters: Masters, identity: dict[str, Any]) -> int:
    """Load the newest good checkpoint; returns its step, 0 without one. Refuses one of other data, parameters or size."""
    found = ranks.from_first(newest_checkpoint(folder) if ranks.rank() == 0 else None)
    if not found:
        return 0
    path, state = found
    differ = [
        f"  {k}: checkpoint {state.get(k)}, now {v}"
        for k, v in identity.items()
        if state.get(k) != v
    ]
    if differ:
        raise UserError(
            "\n".join(
                [
                    f"checkpoint {path.name} does not belong to this job:",
                    *differ,
                    "Start training over with FORCE=1, or choose another RUN=.",
                ]
            )
        )
    masters.load(path)
    return state["step"]
