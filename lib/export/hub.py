"""Get write access to the hub, and report its errors without secrets.

api = hub.require_access("owner/name")
with hub.explain_errors("Creating owner/name", "The same command continues."):
    api.create_repo("owner/name")
"""

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lib.common.errors import UserError
from lib.common.redact import redacted


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
