"""Texts without secrets.

What a run keeps of its cells' output and errors, and what its commands print, passes through here.
"""

import contextlib
import html
import json
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

# words in the name of an environment variable that holds a secret
SECRET_WORDS = {
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
}
SHORTEST = 8  # characters: a shorter value is a word that stands elsewhere too
# forms of known services' tokens, long enough that no ordinary word has them
KNOWN_TOKENS = (
    r"(?:hf_|api_org_)[A-Za-z0-9]{30,}",  # Hugging Face
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{32,}",  # OpenAI and others
    r"gh[a-z]_[A-Za-z0-9]{30,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{40,}",
    r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"(?:AKIA|ASIA)[A-Z0-9]{16}",  # AWS
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"xox[a-z]-[A-Za-z0-9-]{20,}",  # Slack
    r"wandb_v1_[A-Za-z0-9_]{20,}",  # Weights & Biases
)
KNOWN = re.compile("|".join(KNOWN_TOKENS))


def _find_secrets() -> list[tuple[str, str]]:
    """(value, variable) of the environment's secrets, long enough to be told from ordinary words.

    The longest come first, so that one that begins another leaves no tail of it.
    """
    secrets = []
    for name, value in os.environ.items():
        if not SECRET_WORDS & set(name.upper().split("_")):
            continue
        texts = [value]
        if "\n" in value.strip():  # a private key, for example: a traceback may show one line of it
            texts += [line for line in value.split("\n") if len(line) >= 2 * SHORTEST]
        secrets += [(text.strip(), name) for text in texts if len(text.strip()) >= SHORTEST]
    return sorted(secrets, key=lambda pair: (-len(pair[0]), pair))


def redacted(text: str) -> str:
    """The text without the environment's secrets and without tokens of known services."""
    for value, name in _find_secrets():
        # as it stands in JSON, in a traceback, in a page, and as it is
        for form in (json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value), value):
            text = text.replace(form, f"({name})")
    return KNOWN.sub("(a token)", text)


def holds_secret(value: Any) -> bool:
    """Whether a value is a secret of the environment, contains a long one, or a known token."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if KNOWN.search(text):
        return True
    # a short secret inside a longer text may be chance
    return any(
        secret == text or (len(secret) >= 2 * SHORTEST and secret in text)
        for secret, _ in _find_secrets()
    )


def redacted_json(text: str) -> str:
    """A JSON file's text with its strings redacted."""
    value = json.loads(text)
    clean = _redact_value(value)
    return text if clean == value else json.dumps(clean, indent=1, ensure_ascii=False) + "\n"


def _redact_value(value: Any) -> Any:
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {redacted(key): _redact_value(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, str) for item in value):
            # a list of lines, as a notebook has them, is one text: a secret may go over its lines
            whole = "".join(value)
            clean = redacted(whole)
            return value if clean == whole else clean.splitlines(keepends=True)
        return [_redact_value(item) for item in value]
    return value


class RedactedStream:
    """A text stream whose writes are redacted; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_terminal() -> Iterator[None]:
    """Redact what a command prints, tracebacks too; an unforeseen error ends it with code 1."""
    with (
        contextlib.redirect_stdout(RedactedStream(sys.stdout)),
        contextlib.redirect_stderr(RedactedStream(sys.stderr)),
    ):
        try:
            yield
        except Exception:
            sys.stderr.write(traceback.format_exc())
            raise SystemExit(1) from None
