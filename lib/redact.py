"""Text without secrets: what goes into a run's folder or onto a terminal passes through here."""

import html
import json
import os
import re
from typing import Any

NAMED = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY)$", re.IGNORECASE)
KNOWN = re.compile(r"\b(?:hf_|sk-|ghp_|gho_|github_pat_|glpat-|AKIA)[A-Za-z0-9_-]{16,}")  # of Hugging Face, OpenAI, GitHub, GitLab, AWS
LEAST = 8  # a shorter value is a word that stands elsewhere too


def redacted(text: str) -> str:
    """Without the values of environment variables that are named like secrets, and without what looks like a token of a known service."""
    for name, value in os.environ.items():
        if NAMED.search(name) and len(value := value.strip()) >= LEAST:
            # as it is, and as it stands in JSON (a notebook), in a page, in a traceback
            for form in {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value), repr(value)[1:-1]}:
                text = text.replace(form, f"({name})")
    return KNOWN.sub("(a token)", text)


class Redacted:
    """A text stream whose writes are redacted; everything else is the stream's own."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(redacted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
