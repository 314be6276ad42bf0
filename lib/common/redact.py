"""Texts without secrets: what a run keeps of its cells' output and errors, and what its commands print, passes through here."""

import contextlib
import html
import json
import os
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

PARTS = {
    "TOKEN",
    "SECRET",
    "KEY",
    "APIKEY",
    "PASS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "PAT",
    "CREDENTIALS",
}  # of a variable's name
LEAST = 8  # a shorter value is a word that stands elsewhere too
# of Hugging Face, OpenAI, GitHub, GitLab, AWS, Google, Slack, Weights & Biases: forms long enough that no word has them
KNOWN = re.compile(
    r"(?:hf_|api_org_)[A-Za-z0-9]{30,}|(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}|gh[a-z]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,}|"
    r"glpat-[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[A-Za-z0-9_-]{35}|xox[a-z]-[A-Za-z0-9-]{20,}|wandb_v1_[A-Za-z0-9_]{20,}"
)


def _secrets() -> list[tuple[str, str]]:
    """(value, variable) of the environment's secrets, the longest first, so that one that begins another leaves no tail of it."""
    found = []
    for name, value in os.environ.items():
        if PARTS & set(name.upper().split("_")):
            lines = (
                [line for line in value.split("\n") if len(line) >= 2 * LEAST]
                if "\n" in value.strip()
                else []
            )  # as of a private key
            found += [
                (text.strip(), name) for text in (value, *lines) if len(text.strip()) >= LEAST
            ]
    return sorted(found, key=lambda pair: (-len(pair[0]), pair))


def redacted(text: str) -> str:
    """Without the values of environment variables that are named like secrets, and without what looks like a token of a known service."""
    for value, name in _secrets():
        # as it is, and as it stands in JSON, in a traceback, in a page
        for form in (json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value), value):
            text = text.replace(form, f"({name})")
    return KNOWN.sub("(a token)", text)


def holds_secret(value: Any) -> bool:
    """Whether a value is a secret of the environment, or holds a long one or a token of a known form."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return bool(KNOWN.search(text)) or any(
        secret == text or len(secret) >= 2 * LEAST and secret in text for secret, _ in _secrets()
    )


def redacted_json(text: str) -> str:
    """A JSON file's text with its strings redacted; a list of lines, as a notebook has them, is one text."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {redacted(key): walk(item) for key, item in value.items()}
        if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            clean = redacted(whole := "".join(value))
            return value if clean == whole else clean.splitlines(keepends=True)
        return (
            [walk(item) for item in value]
            if isinstance(value, list)
            else redacted(value)
            if isinstance(value, str)
            else value
        )

    clean = walk(value := json.loads(text))
    return text if clean == value else json.dumps(clean, indent=1, ensure_ascii=False) + "\n"


class Redacted:
    """A text stream whose writes are redacted; everything else is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """What a command prints is redacted; so is the traceback of an error nobody foresaw, after which it ends with 1."""
    with (
        contextlib.redirect_stdout(Redacted(sys.stdout)),
        contextlib.redirect_stderr(Redacted(sys.stderr)),
    ):
        try:
            yield
        except Exception:
            sys.stderr.write(traceback.format_exc())
            raise SystemExit(1) from None
