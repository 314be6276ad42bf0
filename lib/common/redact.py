"""Remove secrets from texts.

The cell output and errors that a run keeps, and all that its commands print, pass through here.
"""

import contextlib
import html
import io
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from lib.common.errors import UserError, describe_refusal

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
SHORTEST = 8  # characters: a shorter value may occur as an ordinary word
# token formats of known services, long enough that no ordinary word matches
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
    """Return (value, variable) of the environment's secrets, except those as short as words.

    The longest come first: otherwise replacing a secret that begins another would leave the other's
    tail in the text.
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
    """Return the text without the environment's secrets and without tokens of known services."""
    for value, name in _find_secrets():
        # as it is written in JSON, in a traceback, in an HTML page, and as it is
        for form in (json.dumps(value)[1:-1], repr(value)[1:-1], html.escape(value), value):
            text = text.replace(form, f"({name})")
    return KNOWN.sub("(a token)", text)


def holds_secret(value: Any) -> bool:
    """Tell whether a value is a secret of the environment, or contains a long one or a token."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    if KNOWN.search(text):
        return True
    # a short secret inside a longer text may be a coincidence
    return any(
        secret == text or (len(secret) >= 2 * SHORTEST and secret in text)
        for secret, _ in _find_secrets()
    )


def redacted_json(text: str) -> str:
    """Return a JSON file's text with its strings redacted."""
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
            # a notebook stores a text as a list of lines, and a secret may span several of them
            text = "".join(value)
            clean = redacted(text)
            return value if clean == text else clean.splitlines(keepends=True)
        return [_redact_value(item) for item in value]
    return value


class RedactedStream:
    """A text stream that redacts what is written; all else is passed on to the wrapped stream."""

    def __init__(self, stream: TextIO | None) -> None:
        # None under `>&-`, where nobody reads
        self._stream = io.StringIO() if stream is None else stream

    def write(self, text: str) -> int:
        clean = redacted(text)
        try:
            self._stream.write(clean)
        except UnicodeEncodeError:  # an ASCII terminal, or bytes of a name that are no text
            encoding = self._stream.encoding or "ascii"
            self._stream.write(clean.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def redacted_terminal() -> Iterator[None]:
    """Redact what a command prints, tracebacks too; an unexpected error ends it with code 1.

    What a disk refuses is told without a traceback, with code 2. When whoever read the output has
    left (`| head`), the command ends in silence, as others do.
    """
    with (
        contextlib.redirect_stdout(RedactedStream(sys.stdout)),
        contextlib.redirect_stderr(RedactedStream(sys.stderr)),
    ):
        try:
            yield
            sys.stdout.flush()
        except UserError as error:  # such as one of an import that reads the environment
            sys.stderr.write(f"error: {error}\n")
            raise SystemExit(2) from None
        except BrokenPipeError:
            # the interpreter would try to write what is left
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(128 + signal.SIGPIPE) from None
        except OSError as error:
            told = describe_refusal(error)
            sys.stderr.write(f"error: {told}\n" if told else traceback.format_exc())
            raise SystemExit(2 if told else 1) from None
        except Exception:
            sys.stderr.write(traceback.format_exc())
            raise SystemExit(1) from None
