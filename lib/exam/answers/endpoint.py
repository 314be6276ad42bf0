"""Ask a model on an OpenAI-compatible server for JSON of a given schema.

    with endpoint.connect({"base_url": "http://127.0.0.1:8080/v1", "model": "m"}) as server:
        server.ask_json("system text", "user text", schema)

The host is what the job's parameters say: redirects are not followed. The key is read from KEY in
the environment, and sent to nobody else; it is neither recorded nor shown.
"""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import httpx

from lib.common.errors import UserError
from lib.common.redact import redacted

KEY = "MEDRESCUE_JUDGE_KEY"
TIMEOUT = httpx.Timeout(180, connect=10)  # seconds; a small machine may think for minutes
TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the second try, doubled after each
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)  # states that may pass by themselves
LONGEST_ANSWER = 2048  # tokens; verdicts take a tenth, and a model that reasons first more
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SEED = 3407
# greedy, so that the same question gets the same verdict as far as the server allows
SETTINGS = {"temperature": 0, "seed": SEED, "max_tokens": LONGEST_ANSWER}

Wait = Callable[[float], object]


class NoVerdictError(Exception):
    """The server answered, but not with JSON of the schema."""


class Server(NamedTuple):
    """A server and the name of the model that is asked there."""

    client: httpx.Client
    model: str
    wait: Wait

    def ask_json(self, system: str, user: str, schema: dict[str, Any]) -> dict[str, bool]:
        """Return the model's JSON object, whose keys are those of the schema, all booleans.

        Raise NoVerdictError if no try gave one, and UserError if the server does not answer or
        refuses.
        """
        body = request_body(self.model, system, user, schema)
        trouble: Exception = NoVerdictError("not asked")
        for number in range(TRIES):
            if number:
                self.wait(_seconds_to_wait(number, trouble))
            try:
                return _read_verdict(_post(self.client, body), schema)
            except (NoVerdictError, _PassingError) as error:
                trouble = error
        if isinstance(trouble, NoVerdictError):
            raise trouble
        raise UserError(f"{_name(self.client)} gave no answer in {TRIES} tries: {trouble}")


@contextlib.contextmanager
def connect(judge: dict[str, str], wait: Wait = time.sleep) -> Iterator[Server]:
    """Yield a server by a job's `judge`.

    Raise UserError for an address that is none, and if a key would travel unencrypted.
    """
    try:
        address = httpx.URL(judge["base_url"].rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise UserError(f"base_url of `judge` is not an address: {error}") from None
    local = address.host in LOOPBACK
    key = os.environ.get(KEY, "").strip()
    if key and address.scheme == "http" and not local:
        raise UserError(
            f"the judge's address is http, and {KEY} is set: the key would travel unencrypted. "
            f"Expected https, or no key."
        )
    if not key.isascii():
        raise UserError(f"{KEY} has characters that no key has. Copy the key again.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # a proxy of the environment cannot reach this machine's own servers
    with httpx.Client(
        base_url=address, headers=headers, timeout=TIMEOUT, trust_env=not local
    ) as client:
        yield Server(client, judge["model"], wait)


def request_body(model: str, system: str, user: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the request, which decides the verdict together with the server's address."""
    wanted = {"name": "verdicts", "strict": True, "schema": schema}
    return {
        "model": model,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": user}],
        "response_format": {"type": "json_schema", "json_schema": wanted},
        **SETTINGS,
    }


class _PassingError(Exception):
    """A trouble that may pass, with the seconds after which the server wants to be asked again."""

    def __init__(self, text: str, seconds: float = 0) -> None:
        super().__init__(text)
        self.seconds = seconds


def _seconds_to_wait(number: int, trouble: Exception) -> float:
    asked_for = trouble.seconds if isinstance(trouble, _PassingError) else 0.0
    return min(LONGEST_WAIT, max(asked_for, FIRST_WAIT * 2 ** (number - 1)))


def _post(client: httpx.Client, body: dict[str, Any]) -> Any:
    """Return the server's JSON; raise _PassingError, or UserError for what no further try mends."""
    try:
        response = client.post("chat/completions", json=body)
    except httpx.RequestError as error:
        raise _PassingError(f"{type(error).__name__}: {redacted(str(error))}") from None
    if response.status_code in PASSING:
        raise _PassingError(_describe(response), _retry_after(response))
    if response.status_code != httpx.codes.OK:
        raise UserError(
            f"{_name(client)} refuses: {_describe(response)}. "
            f"Look at base_url and model of `judge`, and at {KEY} in the environment."
        )
    try:
        return response.json()
    except ValueError:
        raise NoVerdictError("no JSON") from None


def _describe(response: httpx.Response) -> str:
    """Return state and beginning of a refusal, in which a server may repeat the key."""
    return f"{response.status_code} {redacted(' '.join(response.text.split()))[:200]}".strip()


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 0.0  # a date is not worth reading


def _name(client: httpx.Client) -> str:
    return f"the judge model's server {client.base_url.host}"


def _read_verdict(answer: Any, schema: dict[str, Any]) -> dict[str, bool]:
    """Return the verdict in a completion; servers without JSON schemas may give anything."""
    try:
        text = answer["choices"][0]["message"]["content"]
        verdict = json.loads(text)
    except (KeyError, IndexError, TypeError, ValueError):
        raise NoVerdictError("no JSON object in the answer") from None
    if not isinstance(verdict, dict) or sorted(verdict) != sorted(schema["properties"]):
        raise NoVerdictError("other keys than the acts")
    if not all(isinstance(done, bool) for done in verdict.values()):
        raise NoVerdictError("something else than true and false")
    return verdict
