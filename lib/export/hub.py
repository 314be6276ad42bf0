"""Writing to the hub: whose token it is and what it may do, and what the hub says without what must not be shown."""

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lib.common.errors import UserError
from lib.common.redact import redacted


def connect(owner: str) -> HfApi:
    """The hub's API with HF_TOKEN, which may write to `owner`: a user or an organisation. UserError when it may not; creates nothing."""
    if not (token := _token()):
        raise UserError(
            "Pushing needs HF_TOKEN, which is not set. Make a token with write permission on the hub's settings page and put it into "
            "the environment (in Colab: a secret named HF_TOKEN), or leave push_to empty."
        )
    if not re.fullmatch(r"[!-~]+", token):
        raise UserError(
            "HF_TOKEN holds a blank or a character that no token has; copy it again. It is read from the environment."
        )
    api = HfApi(token=token)
    with asking(
        "Asking the hub whose HF_TOKEN is",
        lambda: "Nothing was created. Check the network, and that HF_TOKEN is still valid.",
    ):
        refused = _refused(api.whoami(), owner)
    if refused:
        raise UserError(
            f"{refused}. Nothing was created.\nSet HF_TOKEN to a token with write permission on {owner}, or change push_to."
        )
    return api


def _token() -> str:
    return os.environ.get(
        "HF_TOKEN", ""
    ).strip()  # not get_token(): that one also takes what a login left in a file


def _refused(who: dict[str, Any], owner: str) -> str:
    """Why a token's answer to whoami says it may not write to `owner`; empty where it may, or where only trying can tell."""
    name, token = who["name"], (who.get("auth") or {}).get("accessToken") or {}
    if token.get("role") == "read":
        return f"HF_TOKEN, of {name}, may only read"
    if owner.casefold() != name.casefold():
        roles = {org["name"].casefold(): org.get("roleInOrg") for org in who.get("orgs") or []}
        if owner.casefold() not in roles:
            return f"HF_TOKEN is of {name}, who is not a member of {owner}" + (
                f", but of {', '.join(roles)}" if roles else ""
            )
        if roles[owner.casefold()] in ("read", "no_access"):
            return f"HF_TOKEN is of {name}, who may only read in {owner}"
    scopes = (token.get("fineGrained") or {}).get("scoped")
    if token.get("role") == "fineGrained" and isinstance(scopes, list):
        allowed = [
            s["entity"].get("name", "").casefold()
            for s in scopes
            if "repo.write" in s["permissions"]
        ]
        if not any(entity.split("/")[0] == owner.casefold() for entity in allowed):
            return f"HF_TOKEN, of {name}, has no write permission on repositories of {owner}"
    return ""


def masked(text: str) -> str:
    """Without secrets, and without the query of an address: a signed one is a key to the upload as long as it lasts."""
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", redacted(text))


@contextlib.contextmanager
def asking(doing: str, left: Callable[[], str]) -> Iterator[None]:
    """What goes wrong inside becomes a UserError: what was tried, what the hub said, and what `left` then says is there."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the hub's library raises its own, httpx's, ValueError, RuntimeError, and what Rust throws
        if isinstance(error, RuntimeError) and error.__cause__:
            error = error.__cause__  # "Error while uploading", and the reason under it
        said = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, HfHubHTTPError):
            said = f"{error.response.status_code}, {(error.server_message or str(error)).strip().splitlines()[0]}"
        elif isinstance(error, httpx.TransportError):
            said = f"the hub does not answer ({said})"
        raise UserError(f"{doing} failed: {masked(said)[:400]}\n{left()}") from None


@contextlib.contextmanager
def discreet() -> Iterator[None]:
    """What the hub's library warns of, addresses and all, is masked: a notebook keeps what is printed."""

    def mask(record: logging.LogRecord) -> bool:
        record.msg, record.args = masked(record.getMessage()), ()
        return True

    logger = logging.getLogger("huggingface_hub.utils._http")
    logger.addFilter(mask)
    try:
        yield
    finally:
        logger.removeFilter(mask)
