"""A judge model's server that fails, refuses, talks nonsense, or repeats the key.

python -m pytest tests/exam/answers/test_endpoint.py
"""

import pytest

from helpers.judge_server import completion, judge_server
from lib.common.errors import UserError
from lib.exam.answers import endpoint

SCHEMA = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
KEY = "key-of-a-judge-0123456789"


def ask(judge, waited=None):
    with endpoint.connect(judge, (waited if waited is not None else []).append) as server:
        return server.ask_json("system", "user", SCHEMA)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv(endpoint.KEY, raising=False)


def test_a_question_is_greedy_seeded_and_bound_to_the_schema(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with judge_server(lambda *_: (200, completion('{"a": true}'), {})) as (judge, asked):
        assert ask(judge) == {"a": True}
    ((path, headers, body),) = asked
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"]) == ("stand-in", 0)
    assert body["seed"] == endpoint.SEED
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_what_passes_is_tried_again_later_and_later():
    troubles = [
        (503, b"loading", {}),
        (429, b"slow down", {"Retry-After": "7"}),
        (None, b"", {}),
        (200, completion("no json"), {}),
        (200, completion('{"a": false}'), {}),
    ]
    waited = []
    with judge_server(lambda body, number: troubles[number - 1]) as (judge, asked):
        assert ask(judge, waited) == {"a": False}
    assert len(asked) == 5
    assert waited == [1, 7, 4, 8]


@pytest.mark.parametrize(
    "text", ["", "[true]", '{"a": 1}', '{"a": true, "b": true}', "{}", '{"a": true', None]
)
def test_what_is_not_a_verdict_is_none(text):
    with (
        judge_server(lambda *_: (200, completion(text), {})) as (judge, asked),
        pytest.raises(endpoint.NoVerdictError),
    ):
        ask(judge)
    assert len(asked) == endpoint.TRIES


def test_a_refusal_is_told_at_once_without_the_key_that_the_server_repeats(monkeypatch):
    monkeypatch.setenv(endpoint.KEY, KEY)
    refused = (401, {"error": f"no such key: {KEY}"}, {})
    with judge_server(lambda *_: refused) as (judge, asked), pytest.raises(UserError) as error:
        ask(judge)
    assert [headers["Authorization"] for _, headers, _ in asked] == [f"Bearer {KEY}"]
    assert "refuses: 401" in str(error.value)
    assert endpoint.KEY in str(error.value)
    assert KEY not in str(error.value)


def test_a_server_that_is_not_there_is_named():
    with judge_server(lambda *_: (200, b"", {})) as (judge, _):
        pass
    with pytest.raises(UserError, match=r"server 127\.0\.0\.1 gave no answer in 5 tries: Connect"):
        ask(judge)


def test_another_host_is_never_followed_to_and_gets_no_key_unencrypted(monkeypatch):
    moved = (307, b"", {"Location": "http://127.0.0.1:1/v1/chat/completions"})
    with (
        judge_server(lambda *_: moved) as (judge, _),
        pytest.raises(UserError, match="refuses: 307"),
    ):
        ask(judge)
    monkeypatch.setenv(endpoint.KEY, KEY)
    for address, key, why in (
        ("http://judge.example/v1", KEY, "would travel unencrypted"),
        ("https://judge.example/v1", "kéy-of-a-judge-0123", "characters that no key has"),
        ("https://judge.example:99999x/v1", KEY, "is not an address"),
    ):
        monkeypatch.setenv(endpoint.KEY, key)
        with (
            pytest.raises(UserError, match=why),
            endpoint.connect({"base_url": address, "model": "m"}),
        ):
            pytest.fail("connected")
