"""Hold a base model's files against what a run recorded of them, and a hub base at its commit.

    folder = base_record.fetch_prepared(job.base_model, job.base_revision, run.data["fingerprints"])
    run.data["fingerprints"].update(base_record.describe_trained(folder))     # at the end of train
    folder = base_record.fetch_trained(job.base_model, job.base_revision, run.data["fingerprints"])

Prepare records the files that it tokenised with, train all that it read. Whole files are hashed:
another fine-tune of one base has the same sizes, and often the same first and last bytes.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from lib.common import files
from lib.common.errors import UserError
from lib.model import base
from lib.record.schema import Fingerprints, PreparedBase

# what transformers reads of a model folder, apart from its weights
SETTINGS = re.compile(
    r"(?:(?:generation_|preprocessor_|processor_)?config\.json|tokenizer(?:_config)?\.json|"
    r"tokenizer\.model|special_tokens_map\.json|added_tokens\.json|chat_template.*|"
    r".*\.safetensors\.index\.json)"
)
# only the converter reads it, whose result is compared with tokenizer.json: it may be added later
ADDABLE = "tokenizer.model"
SUMS = "BASE_SHA256SUMS"  # in adapter/, for `sha256sum -c` and for ask.py


def fetch_prepared(base_model: str, base_revision: str, fingerprints: Fingerprints) -> pathlib.Path:
    """Return the base as `base.fetch` does, at the commit and with the files of prepare.

    Raise UserError if the tokenizer or a configuration is another: the rows' tokens would mean
    something else.
    """
    folder = base.fetch(base_model, pin_revision(base_revision, fingerprints))
    recorded = fingerprints.get("prepared_base", {}).get("files", {})
    differences = _compare(recorded, hash_files(folder, weights=False) if recorded else {})
    if differences:
        raise UserError(
            f"the base `{base_model}` is not the one with which this run's rows were tokenised: "
            f"{differences}.\n"
            f"Put those files back, or name the place the base moved to with base_model; or start "
            f"the run over with `make run FORCE=1` and its RUN."
        )
    return folder


def fetch_trained(base_model: str, base_revision: str, fingerprints: Fingerprints) -> pathlib.Path:
    """Return the base as `base.fetch` does, at the commit and with the files of train.

    Raise UserError if a file is another: the adapter belongs to the base it was trained on, and on
    others its answers are untested. A run of an earlier version recorded only a fingerprint.
    """
    commit = fingerprints.get("base_commit")
    folder = base.fetch(base_model, commit or base_revision)
    recorded = fingerprints.get("base_files", {})
    differences = _compare(recorded, hash_files(folder)) if recorded else ""
    quick = fingerprints.get("base")
    if not recorded and quick and (present := base.fingerprint(folder)) != quick:
        differences = (
            f"config.json or a weight file differs (fingerprint {present}, recorded {quick})"
        )
    if differences:
        raise UserError(
            f"the base `{base_model}` is not the one this run was trained on: {differences}.\n"
            f"Put the recorded files back{f' (commit {commit})' if commit else ''}, or train on "
            f"this base with `make run FORCE=1` and its RUN."
        )
    return folder


def pin_revision(base_revision: str, fingerprints: Fingerprints) -> str:
    """Return the commit at which prepare read a base from the hub, or else `base_revision`."""
    return fingerprints.get("prepared_base", {}).get("commit") or base_revision


def describe_prepared(folder: pathlib.Path) -> PreparedBase:
    """Return what prepare records: the hashes of all but the weights, and any hub commit."""
    described: PreparedBase = {"files": hash_files(folder, weights=False)}
    if commit := base.commit_of(folder):
        described["commit"] = commit
    return described


def describe_trained(folder: pathlib.Path) -> dict[str, Any]:
    """Return what train records: the quick fingerprint, every file's hash, and any hub commit."""
    return {**base.provenance(folder), "base_files": hash_files(folder)}


def hash_files(folder: pathlib.Path, weights: bool = True) -> dict[str, str]:
    """Return {name: sha256} of the files of a model folder that are read."""
    names = sorted(
        path.name
        for path in folder.iterdir()
        if path.is_file()
        and (SETTINGS.fullmatch(path.name) or (weights and path.suffix == ".safetensors"))
    )
    return {name: files.sha256(folder / name) for name in names}


def format_sums(recorded: Mapping[str, str]) -> str:
    """Return recorded hashes as the lines that `sha256sum -c` reads in the base's folder."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(recorded.items()))


def _compare(recorded: Mapping[str, str], present: Mapping[str, str]) -> str:
    """Say which files differ from their record, or are missing or new; "" if none does."""
    told = []
    for name in sorted(recorded.keys() | present.keys()):
        old, new = recorded.get(name, ""), present.get(name, "")
        if old == new or (name == ADDABLE and not old):
            continue
        if not new:
            told.append(f"{name} is missing")
        elif not old:
            told.append(f"{name} is new")
        else:
            told.append(f"{name} differs (sha256 {new[:12]}, recorded {old[:12]})")
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    return ", ".join(told[:3]) + more
