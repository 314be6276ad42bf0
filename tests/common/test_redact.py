"""Secrets stay out of texts: values of variables named like secrets, tokens known by their form, and streams that pass through.

python -m pytest tests/common/test_redact.py
"""

import io
import json
import os
import subprocess
import sys

import pytest

from lib import params
from lib.common import redact
from lib.common.errors import ROOT, UserError
from lib.common.redact import redacted

HF = "hf_" + "Ab1" * 11


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "WANDB_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "MY_PASSWORD",
        "SSH_PRIVATE_KEY",
        "OPENAI_APIKEY",
        "HF_TOKEN_WRITE",
        "KAGGLE_KEY",
        "db_pass",
        "GITHUB_PAT",
    ],
)
def test_the_value_of_a_variable_named_like_a_secret_goes(monkeypatch, name):
    monkeypatch.setenv(name, " correct-horse\n")
    assert redacted("login correct-horse now") == f"login ({name}) now"


def test_other_variables_and_short_values_stay(monkeypatch):
    monkeypatch.setenv("HF_HOME", "some-long-folder")
    monkeypatch.setenv("HF_TOKEN", "short")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "a-long-value")
    assert redacted("short a-long-value some-long-folder") == "short a-long-value some-long-folder"


@pytest.mark.parametrize(
    "token",
    [
        HF,
        "sk-" + "a" * 40,
        "ghp_" + "a1" * 18,
        "github_pat_" + "b" * 60,
        "glpat-" + "x" * 20,
        "AKIA" + "Q" * 16,
    ],
)
def test_a_token_of_a_known_service_goes_without_a_variable(token):
    assert redacted(f"a {token}, b") == "a (a token), b"
    assert redacted(f"a\n{token}\tb\x1b[31m{token}").count("(a token)") == 2 - token.startswith(
        "sk-"
    ), "after a colour code stands a letter"
    plain = "hf_transfer hf_raise_for_status data/hf_medical_questions.jsonl risk-assessment-of-the-whole-patient-and-others"
    assert redacted(plain) == plain


def test_a_secret_in_quotes_with_a_backslash_or_of_many_lines_leaves_a_notebook_json(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", '"hf-in-quotes"')
    monkeypatch.setenv("DB_PASSWORD", "ends-in-one\\")
    monkeypatch.setenv("OTHER_PASSWORD", "12345678")
    monkeypatch.setenv(
        "SSH_PRIVATE_KEY", "-----BEGIN KEY-----\n" + "a1" * 20 + "\n-----END KEY-----"
    )
    value = {
        "cells": [
            {
                "source": ["print(\n", "1)"],
                "outputs": [
                    {
                        "text": [
                            '"hf-in-quotes"\n',
                            "-----BEGIN KEY-----\n",
                            "a1" * 20 + "\n",
                            "ends-in-one\\",
                        ],
                        "number": 0.0012345678,
                        "one": '"hf-in-quotes"',
                    }
                ],
            }
        ],
        "tags": ["a", "b"],
    }
    clean = json.loads(redact.redacted_json(json.dumps(value)))
    assert clean["cells"][0]["outputs"][0]["one"] == "(HF_TOKEN)"
    assert clean["cells"][0]["outputs"][0]["number"] == 0.0012345678
    assert "".join(clean["cells"][0]["outputs"][0]["text"]).splitlines() == [
        "(HF_TOKEN)",
        "(SSH_PRIVATE_KEY)",
        "(SSH_PRIVATE_KEY)",
        "(DB_PASSWORD)",
    ]
    assert clean["cells"][0]["source"] == ["print(\n", "1)"]
    assert clean["tags"] == ["a", "b"]
    untouched = json.dumps({"a": ["b"]})
    assert redact.redacted_json(untouched) is untouched


def test_of_two_secrets_of_which_one_begins_the_other_nothing_is_left(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "secret-value")
    monkeypatch.setenv("B_TOKEN", "secret-value-and-more")
    assert redacted("x secret-value-and-more y secret-value") == "x (B_TOKEN) y (A_TOKEN)"


def test_an_error_nobody_foresaw_is_redacted_too(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "a-secret-of-mine")
    with pytest.raises(SystemExit) as stop, redact.redacted_terminal():
        raise RuntimeError("login with a-secret-of-mine failed")
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert "login with (HF_TOKEN) failed" in said
    assert "a-secret" not in said


def test_a_stream_is_redacted_and_otherwise_itself():
    stream = redact.RedactedStream(inner := io.StringIO())
    assert stream.write(f"x {HF} y\n") == len(HF) + 5
    stream.flush()
    assert inner.getvalue() == "x (a token) y\n"
    assert stream.getvalue() == inner.getvalue()


def test_a_name_that_only_looks_like_one_is_a_parameter(monkeypatch):
    monkeypatch.setenv("JUPYTER_TOKEN", "medrescue")
    assert params.check_values({"dataset": "data/hf_medical_questions.jsonl"}, "test").dataset
    assert params.check_values({"dataset": "ericrisco/medrescue"}, "test").dataset


@pytest.mark.parametrize("key", ["base_model", "push_to", "dataset"])
def test_a_parameter_that_holds_a_token_is_refused_without_showing_it(key, tmp_path):
    (tmp_path / "job.yaml").write_text(f"{key}: {HF}\n")
    with pytest.raises(UserError, match=f"`{key}` contains a token or password") as error:
        params.load_job(tmp_path / "job.yaml")
    assert HF not in str(error.value)
    with pytest.raises(UserError, match="contains a token"):
        params.load_job("params/cpu.yaml", f"{key}={HF}")


def test_what_a_terminal_cannot_show_is_escaped_and_no_terminal_is_no_error():
    inner = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = redact.RedactedStream(inner)
    stream.write("Fièvre \udcff 🚑\n")
    stream.flush()
    assert inner.buffer.getvalue() == rb"Fi\xe8vre \udcff \U0001f691" + b"\n"
    redact.RedactedStream(None).write("nobody reads")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no such run"), 2, "error: no such run\n"),
        (
            PermissionError(13, "Permission denied", "/a/run.json"),
            2,
            "error: cannot read or write `/a/run.json`: permission denied. Give this account",
        ),
        (OSError(28, "No space left on device"), 2, "write a file: no space left on device. Free"),
        (OSError(30, "Read-only file system", "/a"), 2, "MEDRESCUE_RUNS and MEDRESCUE_CACHE"),
        (OSError(36, "File name too long", "/a"), 2, "Choose a shorter name"),
        (FileNotFoundError(2, "No such file", "/a"), 1, "Traceback"),
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
    ],
)
def test_what_a_disk_refuses_is_told_and_only_what_nobody_foresaw_has_a_traceback(
    error, code, said, capsys, monkeypatch
):
    monkeypatch.setattr(os, "dup2", lambda a, b: None)  # the test's own output stays
    with pytest.raises(SystemExit) as stop, redact.redacted_terminal():
        raise error
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert said in err
    assert bool(err) == bool(said)
    assert ("Traceback" in err) == (said == "Traceback")


def test_a_reader_that_leaves_early_ends_a_command_in_silence():
    program = (
        "from lib.common.redact import redacted_terminal\n"
        "with redacted_terminal():\n"
        "    for n in range(100_000): print(n)\n"
    )
    command = f'"{sys.executable}" -c "{program}" | head -1'
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
