"""Secrets stay out of texts: values of variables named like secrets, tokens known by their form, and streams that pass through.

    python -m pytest tests/test_redact.py
"""

import io

import pytest

from lib import params, redact
from lib.params import UserError
from lib.redact import redacted

HF = "hf_" + "Ab1" * 11


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "SSH_PRIVATE_KEY", "openai_apikey"])
def test_the_value_of_a_variable_named_like_a_secret_goes(monkeypatch, name):
    monkeypatch.setenv(name, " correct-horse\n")
    assert redacted("login correct-horse now") == f"login ({name}) now"


def test_other_variables_and_short_values_stay(monkeypatch):
    monkeypatch.setenv("HF_HOME", "some-long-folder")
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("TOKENIZERS", "a-long-value")
    assert redacted("short a-long-value some-long-folder") == "short a-long-value some-long-folder"


@pytest.mark.parametrize("token", [HF, "sk-" + "a" * 20, "ghp_" + "a1" * 18, "github_pat_" + "b" * 30, "glpat-" + "x" * 20, "AKIA" + "Q" * 16])
def test_a_token_of_a_known_service_goes_without_a_variable(token):
    assert redacted(f"a {token}, b") == "a (a token), b"
    assert redacted("hf_transfer sk-learn") == "hf_transfer sk-learn"


def test_a_stream_is_redacted_and_otherwise_itself():
    stream = redact.Redacted(inner := io.StringIO())
    assert stream.write(f"x {HF} y\n") == len(HF) + 5
    stream.flush()
    assert inner.getvalue() == "x (a token) y\n"
    assert stream.getvalue() == inner.getvalue()


@pytest.mark.parametrize("key", ["base_model", "push_to", "dataset"])
def test_a_parameter_that_holds_a_token_is_refused_without_showing_it(key, tmp_path):
    (tmp_path / "job.yaml").write_text(f"{key}: {HF}\n")
    with pytest.raises(UserError, match=f"`{key}` holds a token or password") as error:
        params.load(tmp_path / "job.yaml")
    assert HF not in str(error.value)
    with pytest.raises(UserError, match="holds a token"):
        params.load("params/cpu.yaml", f"{key}={HF}")
