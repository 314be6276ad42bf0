"""Provide the base model's files: bundled, from a local folder, or fetched from the hub.

This module imports neither torch nor transformers.
"""

import pathlib
from collections.abc import Callable

from lib.common import files, locations
from lib.common.errors import ROOT, UserError
from lib.common.files import fingerprint_weights as fingerprint
from lib.model import bundled

CACHE = locations.cache_folder()
BUNDLED = "bundled:gemma-3-270m"
FROM_GGUF = (
    "A GGUF file cannot be trained: set base_model to the repository or folder it was made from."
)


def fetch(
    base_model: str,
    base_revision: str = "",
    weights: bool = True,
    progress: Callable[[str], object] = print,
) -> pathlib.Path:
    """Return the base model as a local folder; raise UserError when there is none.

    `weights=False` fetches only tokenizer and configuration from the hub. `progress` is called with
    a line of text when the bundled model is made, which happens once.
    """
    if base_model.startswith("bundled:"):
        if base_model != BUNDLED:
            raise UserError(describe_unbundled(base_model))
        locations.make_cache(CACHE)
        return bundled.materialize(CACHE, progress)
    folder = find_folder(base_model)
    if folder:
        return folder
    return _download(base_model, base_revision, weights)


def describe_unbundled(base_model: str) -> str:
    """Return the message for a name of a bundled model that there is not."""
    return f"base_model `{base_model}` is not bundled; the only bundled model is {BUNDLED}."


def find_folder(base_model: str) -> pathlib.Path | None:
    """Return a local base, or None for one on the hub; raise UserError if it can be neither."""
    folder = locations.local_path(base_model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                f"base_model folder `{base_model}` has no config.json; expected a Hugging Face "
                f"model folder.{_name_contents(folder)}"
            )
        return folder
    if folder.is_file():
        raise UserError(
            f"base_model `{base_model}` is a file; expected a Hugging Face model folder, with "
            f"config.json and safetensors. {FROM_GGUF if folder.suffix == '.gguf' else ''}".strip()
        )
    if base_model.count("/") != 1 or base_model.startswith((".", "/", "~")):
        raise UserError(
            f"base_model `{base_model}` does not exist (looked in {ROOT}); expected a folder "
            f"there, a hub id `owner/name`, or {BUNDLED}."
        )
    return None


def find_downloaded(base_model: str, base_revision: str) -> pathlib.Path | None:
    """Return the folder of a hub base that was downloaded before, perhaps in part, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            base_model, revision=base_revision or None, local_files_only=True
        )
    except (LocalEntryNotFoundError, OSError):
        return None
    return pathlib.Path(folder)


def _name_contents(folder: pathlib.Path) -> str:
    """Say what a folder without config.json is instead, and what to set; "" if that is unclear."""
    if (folder / "adapter_config.json").is_file():
        config = files.read_json(folder / "adapter_config.json", "adapter configuration")
        base = config.get("base_model_name_or_path") or "the base it was trained on"
        return (
            f"\nIt is an adapter of `{base}`: set base_model to that, and start_from to this "
            f"folder to train it further."
        )
    return f"\n{FROM_GGUF}" if any(folder.glob("*.gguf")) else ""


def _download(base_model: str, base_revision: str, weights: bool) -> pathlib.Path:
    # here, not at the top: a bundled or local base needs no hub
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.model", "*.jinja"]
    if weights:
        patterns.append("*.safetensors")
    try:
        folder = snapshot_download(
            base_model, revision=base_revision or None, allow_patterns=patterns
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"base_model `{base_model}` could not be fetched: {str(error).splitlines()[0]}\n"
            "Check the id and the network; a gated model needs HF_TOKEN in the environment. "
            f"Without a network use base_model={BUNDLED} or a local folder."
        ) from None
    return pathlib.Path(folder)


def provenance(folder: pathlib.Path) -> dict[str, str]:
    """Return what a run records about its base: the fingerprint, and any hub commit."""
    record = {"base": fingerprint(folder)}
    if commit := commit_of(folder):
        record["base_commit"] = commit
    return record


def commit_of(folder: pathlib.Path) -> str:
    """Return the commit in a path of the hub's cache; empty for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else ""
