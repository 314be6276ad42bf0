"""Keep a job's parameters with its run: a sealed params.yaml, and a hash in the folder's name."""

import hashlib
import json
import pathlib
from collections.abc import Collection
from typing import Any

import yaml

from lib.common import files
from lib.common.errors import UserError
from lib.params.reading import load_job
from lib.params.schema import FIELDS, Params, is_free, stage_of

SEAL = "# sha256 of the lines above: "


def find_changed(
    job: Params, stages: Collection[str] = ("prepare", "train", "export")
) -> dict[str, Any]:
    """Return the parameters of the given stages that differ from their defaults."""
    return {
        key: value
        for key, value in job.model_dump().items()
        if stage_of(key) in stages and value != FIELDS[key].get_default(call_default_factory=True)
    }


def fingerprint(job: Params) -> str:
    """Return 8 hex digits over the parameters that differ from defaults and affect the weights.

    A parameter that is added later renames no folder, since runs without it have its default.
    """
    values = find_changed(job, ("prepare", "train"))
    text = json.dumps({k: v for k, v in values.items() if not is_free(k)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def to_yaml(job: Params) -> str:
    """Return every parameter as YAML for `load_job`, with a seal that `load_recorded` checks."""
    text = yaml.safe_dump(job.model_dump(), sort_keys=False, allow_unicode=True)
    return f"{text}{SEAL}{_hash(text)}\n"


def load_recorded(folder: pathlib.Path) -> Params:
    """Return the parameters that a run was made with, from its params.yaml.

    Raise UserError if that file was damaged or edited: it would describe another job.
    """
    path = folder / "params.yaml"
    job = load_job(path)
    # the seal is over the text, not the values: a later version may know more parameters
    text, has_seal, seal = path.read_text(encoding="utf-8").rpartition(SEAL)
    # a file that was cut short has lost its seal, and reads as a job with fewer parameters
    cut = not has_seal and _has_sealed_record(folder)
    if cut or (has_seal and seal.strip() != _hash(text)):
        raise UserError(
            f"{files.format_path(path)} is not as the run recorded it: it was damaged, or changed "
            f"by hand. Restore the old values. For other parameters, write a params file of your "
            f"own, and give it by PARAMS= with another RUN=."
        )
    return job


def _has_sealed_record(folder: pathlib.Path) -> bool:
    """Tell whether a run is of a version that seals records, which seals its parameters too."""
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and "seal" in record


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
