"""A base held against what a run recorded of it: which differences are refused, and at which commit it is fetched.

python -m pytest tests/model/test_base_record.py
"""

import json
import re
import subprocess

import pytest

from lib.common.errors import UserError
from lib.model import base, base_record

FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"[]",
    "tokenizer_config.json": b"{}",
    "model.safetensors": bytes(3 * 2**20),
    "README.md": b"a card",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.fixture
def recorded(folder):
    prepared = {"prepared_base": base_record.describe_prepared(folder)}
    return json.loads(json.dumps(prepared | base_record.describe_trained(folder)))


def turn_a_bit_in_the_middle(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


CHANGES = {  # change, what train says ("" if it may differ), what export says
    "nothing": (lambda folder: None, "", ""),
    "its card": (write("README.md", "another"), "", ""),
    "tokenizer.model is added": (write("tokenizer.model", "x"), "", ""),
    "weights": (turn_a_bit_in_the_middle, "", "model.safetensors differs (sha256"),
    "tokenizer": (
        write("tokenizer.json", "{}"),
        "tokenizer.json differs (sha256",
        "tokenizer.json differs (sha256",
    ),
    "a template that wins over the old one": (
        write("chat_template.jinja", "{{ x }}"),
        "chat_template.jinja is new",
        "chat_template.jinja is new",
    ),
    "a shard is added": (write("model-2.safetensors", "x"), "", "model-2.safetensors is new"),
    "a file is gone": (
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        "tokenizer_config.json is missing",
        "tokenizer_config.json is missing",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_is_named_with_what_to_do(folder, recorded, name):
    change, by_train, by_export = CHANGES[name]
    change(folder)
    for fetch, expected, what in (
        (base_record.fetch_prepared, by_train, "rows were tokenised"),
        (base_record.fetch_trained, by_export, "was trained on"),
    ):
        if not expected:
            assert fetch(str(folder), "", recorded) == folder
            continue
        with pytest.raises(UserError, match=f"(?s){what}.*{re.escape(expected)}.*FORCE=1"):
            fetch(str(folder), "", recorded)


def test_a_run_without_such_records_is_taken_by_what_it_has(folder, recorded):
    assert base_record.fetch_trained(str(folder), "", {}) == folder
    older = {"base": recorded["base"]}
    assert base_record.fetch_trained(str(folder), "", older) == folder
    (folder / "config.json").write_text("{ }")
    with pytest.raises(UserError, match=r"config\.json or a weight file differs \(fingerprint"):
        base_record.fetch_trained(str(folder), "", older)


def test_a_hub_base_without_a_revision_stays_at_its_commit(folder, monkeypatch):
    snapshot = folder / "models--a--b" / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    for name, data in FILES.items():
        (snapshot / name).write_bytes(data)
    asked = []

    def fetch(base_model, revision="", weights=True):
        asked.append(revision)
        return snapshot

    monkeypatch.setattr(base, "fetch", fetch)
    fingerprints = {"prepared_base": base_record.describe_prepared(snapshot)}
    base_record.fetch_prepared("a/b", "", fingerprints)
    fingerprints.update(base_record.describe_trained(snapshot))
    base_record.fetch_trained("a/b", "", fingerprints)
    assert asked == ["c" * 40, "c" * 40]
    turn_a_bit_in_the_middle(snapshot)
    with pytest.raises(UserError, match=rf"Put the recorded files back \(commit {'c' * 40}\)"):
        base_record.fetch_trained("a/b", "", fingerprints)


def test_sums_are_what_sha256sum_checks(folder, recorded):
    (folder / "sums").write_text(base_record.format_sums(recorded["base_files"]))
    check = ["sha256sum", "-c", "--quiet", "sums"]
    assert subprocess.run(check, cwd=folder, check=False).returncode == 0
    turn_a_bit_in_the_middle(folder)
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 1
