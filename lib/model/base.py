"""The base model's files: bundled, a local folder, or fetched from the hub. Nothing heavy is imported for them."""

import hashlib
import pathlib
from typing import Any

from lib.common.errors import ROOT, UserError
from lib.model import bundled
from lib.params import Params

CACHE = ROOT / ".cache"


def folder(job: Params, weights: bool = True, progress: Any = print) -> pathlib.Path:
    """The base model as a local folder: bundled, given, or fetched from the hub (`weights=False`: tokenizer and config only)."""
    if job.base_model.startswith("bundled:"):
        if job.base_model != "bundled:gemma-3-270m":
            raise UserError(
                f"base_model `{job.base_model}` is not bundled; there is bundled:gemma-3-270m."
            )
        return bundled.materialize(CACHE, progress)
    path = ROOT / job.base_model
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"base_model folder `{job.base_model}` has no config.json; expected a Hugging Face model folder."
            )
        return path
    if job.base_model.count("/") != 1 or job.base_model.startswith((".", "/", "~")):
        raise UserError(
            f"base_model `{job.base_model}` does not exist (looked in {ROOT}); expected a folder there, a hub id `owner/name`, "
            f"or bundled:gemma-3-270m."
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.model", "*.jinja"] + (["*.safetensors"] if weights else [])
    try:
        return pathlib.Path(
            snapshot_download(
                job.base_model, revision=job.base_revision or None, allow_patterns=patterns
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"base_model `{job.base_model}` could not be fetched: {str(error).splitlines()[0]}\n"
            f"Check the id and the network; a gated one needs HF_TOKEN in the environment. Without network use "
            f"base_model=bundled:gemma-3-270m or a local folder."
        ) from None


def fingerprint(path: pathlib.Path) -> str:
    """16 hex digits that change when the base does: its config, and size, head and tail of each weight file (all of 16 GB takes a minute)."""
    found = hashlib.sha256((path / "config.json").read_bytes())
    for file in sorted(path.glob("*.safetensors")):
        size = file.stat().st_size
        found.update(f"{file.name} {size}".encode())
        with open(file, "rb") as data:
            found.update(data.read(2**20))
            data.seek(max(0, size - 2**20))
            found.update(data.read())
    return found.hexdigest()[:16]


def recorded(path: pathlib.Path) -> dict[str, str]:
    """For a run's record: the fingerprint of a base, and of one from the hub the commit that its folder is named by."""
    found = {"base": fingerprint(path)}
    return {**found, "base_commit": path.name} if path.parent.name == "snapshots" else found
