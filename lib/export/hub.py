"""Get write access to the hub, report its errors without secrets, look into a repository.

api = hub.require_access("owner/name")
with hub.explain_errors("Creating owner/name", "The same command continues."):
    api.create_repo("owner/name")
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils.sha import git_hash

from lib.common.errors import UserError
from lib.common.redact import redacted
from lib.record.pushed import Sent

WEIGHTS = (".safetensors", ".gguf")
GIT_ATTRIBUTES = ".gitattributes"  # the hub's own first commit


def require_access(owner: str) -> HfApi:
    """Connect with HF_TOKEN.

    Raise UserError unless it may write to `owner` (user or organisation).
    """
    # not get_token(), which would also take the token that a login left in a file
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise UserError(
            "Pushing needs HF_TOKEN, which is not set. Create a token with write permission on the "
            "hub's settings page and put it into the environment (in Colab: a secret named "
            "HF_TOKEN), or leave push_to empty."
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            "HF_TOKEN, which is read from the environment, contains a space or a character that no "
            "token has. Copy it again."
        )
    api = HfApi(token=token)
    advice = "Nothing was created. Check the network, and that HF_TOKEN is still valid."
    with explain_errors("Asking the hub whose HF_TOKEN is", advice):
        refusal = _find_refusal(api.whoami(), owner)
    if refusal:
        raise UserError(
            f"{refusal}. Nothing was created.\nSet HF_TOKEN to a token with write permission on "
            f"{owner}, or change push_to."
        )
    return api


def _find_refusal(account: dict[str, Any], owner: str) -> str:
    """Say why a token's whoami forbids writing to `owner`; return "" if only trying can tell."""
    name = account["name"]
    token = (account.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        return f"HF_TOKEN of {name} may only read"
    owner = owner.casefold()
    if owner != name.casefold():
        orgs = account.get("orgs") or []
        roles = {org["name"].casefold(): org.get("roleInOrg") for org in orgs}
        if owner not in roles:
            others = f", but of {', '.join(roles)}" if roles else ""
            return f"HF_TOKEN belongs to {name}, who is not a member of {owner}{others}"
        if roles[owner] in ("read", "no_access"):
            return f"HF_TOKEN belongs to {name}, who may only read in {owner}"
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") == "fineGrained" and isinstance(scopes, list):
        writable = [s["entity"].get("name", "") for s in scopes if "repo.write" in s["permissions"]]
        if owner not in [entity.split("/")[0].casefold() for entity in writable]:
            return f"HF_TOKEN of {name} has no write permission on repositories of {owner}"
    return ""


def mask_secrets(text: str) -> str:
    """Remove secrets, and the query of each address, since a signed one is a key to the upload."""
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", redacted(text))


@contextlib.contextmanager
def explain_errors(attempt: str, outcome: str) -> Iterator[None]:
    """Turn any error inside into a UserError with the attempt, the hub's reason, and `outcome`."""
    try:
        yield
    except UserError:
        raise
    # the hub's library raises its own errors, httpx's, ValueError, RuntimeError and Rust panics
    except Exception as error:
        cause: BaseException = error
        if isinstance(error, RuntimeError) and error.__cause__:
            cause = error.__cause__  # the error says only "Error while uploading"
        reason = " ".join(str(cause).split()) or type(cause).__name__
        if isinstance(cause, HfHubHTTPError):
            first_line = (cause.server_message or str(cause)).strip().splitlines()[0]
            reason = f"{cause.response.status_code}, {first_line}"
        elif isinstance(cause, httpx.TransportError):
            reason = f"the hub does not answer ({reason})"
        raise UserError(f"{attempt} failed: {mask_secrets(reason)[:400]}\n{outcome}") from None


@contextlib.contextmanager
def mask_warnings() -> Iterator[None]:
    """Mask secrets in what the hub's library logs, since a notebook keeps what is printed."""

    def mask(record: logging.LogRecord) -> bool:
        record.msg, record.args = mask_secrets(record.getMessage()), ()
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(mask)
    try:
        yield
    finally:
        logger.removeFilter(mask)


# -------------------------------------------------------------------------------------------------
# what a repository holds


class PlannedFile(NamedTuple):
    """A file planned for a repository; `source` is its local path, or its bytes."""

    path: str
    size: int
    sha256: str
    source: pathlib.Path | bytes


def look_up(api: HfApi, repo: str) -> ModelInfo | None:
    """Read id, sha, private, and siblings with sizes and hashes; None without a repository."""
    try:
        return api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError:
        return None


def list_files(info: ModelInfo) -> dict[str, RepoSibling]:
    return {file.rfilename: file for file in info.siblings if file.rfilename != GIT_ATTRIBUTES}


def is_as_planned(sibling: RepoSibling | None, file: PlannedFile) -> bool:
    """Tell whether a file on the hub has the planned size and hash."""
    if sibling is None or sibling.size != file.size:
        return False
    if sibling.lfs:
        return sibling.lfs.sha256 == file.sha256
    # the hub has only git's hash of a small file
    data = _read_bytes(file)
    return hashlib.sha256(data).hexdigest() == file.sha256 and sibling.blob_id == git_hash(data)


def was_sent(sibling: RepoSibling, sent: Sent) -> bool:
    """Tell whether this run has sent a file in the version that the hub holds."""
    digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
    return digest in sent.get(sibling.rfilename, [])


def hash_both(file: PlannedFile) -> list[str]:
    """Return the hashes by which the hub may know a file: sha256 and, unless large, git's."""
    if file.path.endswith(WEIGHTS):
        return [file.sha256]
    return [file.sha256, git_hash(_read_bytes(file))]


def _read_bytes(file: PlannedFile) -> bytes:
    return file.source if isinstance(file.source, bytes) else file.source.read_bytes()
