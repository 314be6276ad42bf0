"""The script in an adapter's folder: base and adapter answer from anywhere, and from no other base.

python -m pytest tests/export/test_adapter_ask.py
"""

import hashlib
import json
import os
import pathlib
import re
import runpy
import shutil
import sys

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lib.export import servers, turns
from lib.medical.disclaimer import DISCLAIMER
from lib.model import base_record

STOP = "<end_of_turn>"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Keep the script's notes of hashed bases out of the user's cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def talk(question):
    return [{"role": "user", "content": question}]


def ask(monkeypatch, capsys, folder, *words):
    monkeypatch.setattr(sys, "argv", ["ask.py", *words])
    found = runpy.run_path(str(folder / "ask.py"), run_name="__main__")
    return found, capsys.readouterr().out


def test_the_adapters_own_script_answers_with_it(
    tiny_run, tiny_gemma3n, tmp_path, monkeypatch, capsys
):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    assert not re.search(
        r"^\s*(?:from|import) lib\b", (adapter / "ask.py").read_text(), re.MULTILINE
    ), "it must stand alone"
    found, out = ask(
        monkeypatch, capsys, adapter, "--base", str(tiny_gemma3n), "--tokens", "8", "Cool a burn?"
    )
    assert (found["SYSTEM"], found["DISCLAIMER"]) == (servers.SYSTEM, DISCLAIMER)
    assert out.endswith(f"\n\n{DISCLAIMER}\n")

    tokenizer = AutoTokenizer.from_pretrained(tiny_gemma3n)
    prompt = tokenizer.apply_chat_template(
        turns.prepend_system(talk("Cool a burn?"), servers.SYSTEM),
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert found["prompt"]["input_ids"].tolist() == prompt["input_ids"].tolist()
    assert found["stop"] == tokenizer.convert_tokens_to_ids(["<eos>", STOP])
    base = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.bfloat16)
    with torch.inference_mode():
        plain = base(**prompt).logits[0, -1]
        tuned = PeftModel.from_pretrained(base, adapter)(**prompt).logits[0, -1]
        theirs = found["model"](**prompt).logits[0, -1]
    assert torch.equal(theirs, tuned)
    assert not torch.allclose(theirs, plain, atol=0.1), "without the adapter"


def test_the_adapters_script_takes_the_base_from_the_adapter_and_says_when_there_is_none(
    tiny_run, tiny_gemma3n, tmp_path, monkeypatch, capsys
):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": "bundled:gemma-3-270m"})
    )
    with pytest.raises(
        SystemExit, match=r"on no hub: pass its folder with --base.*\.cache/gemma-3-270m"
    ):
        ask(monkeypatch, capsys, adapter, "Cool a burn?")
    (adapter / "adapter_config.json").write_text(
        json.dumps(config | {"base_model_name_or_path": str(tiny_gemma3n)})
    )
    found, _ = ask(monkeypatch, capsys, adapter, "--tokens", "1", "Cool a burn?")
    assert found["base"] == tiny_gemma3n


def test_the_adapters_script_refuses_another_base_than_the_recorded_one(
    tiny_run, tiny_gemma3n, tmp_path, monkeypatch, capsys
):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    base = shutil.copytree(tiny_gemma3n, tmp_path / "base")
    sums = base_record.format_sums(base_record.hash_files(base))
    (adapter / base_record.SUMS).write_text(sums)
    words = ("--base", str(base), "--tokens", "1", "Cool a burn?")
    assert ask(monkeypatch, capsys, adapter, *words)[1]
    data = bytearray((base / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (base / "model.safetensors").write_bytes(data)
    with pytest.raises(SystemExit, match=r"was trained on: model\.safetensors differs"):
        ask(monkeypatch, capsys, adapter, *words)
    (base / "model.safetensors").unlink()
    with pytest.raises(SystemExit, match=r"model\.safetensors is missing.*Pass the recorded"):
        ask(monkeypatch, capsys, adapter, *words)


def test_a_base_that_was_hashed_is_not_read_again_until_it_changes(
    tiny_run, tiny_gemma3n, tmp_path, monkeypatch, capsys
):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    base = shutil.copytree(tiny_gemma3n, tmp_path / "base")
    names = base_record.hash_files(base)
    (adapter / base_record.SUMS).write_text(base_record.format_sums(names))
    script = runpy.run_path(str(adapter / "ask.py"))
    check = script["require_recorded"]
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: (read.append(file.name), real(file, kind))[1]
    )
    sums = (adapter / base_record.SUMS).read_text()
    check(base, sums)
    assert len(read) == len(names)
    check(base, sums)
    assert len(read) == len(names), "not a byte again"
    weights = base / "model.safetensors"
    before = weights.stat()
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `cp -p` and rsync do
    with pytest.raises(SystemExit, match=r"model\.safetensors differs"):
        check(base, sums)
    with pytest.raises(SystemExit, match=r"model\.safetensors differs"):
        check(base, sums)  # the note must not call it right
    for damaged in ("[", "[1]", "null"):
        (tmp_path / "cache/medrescue/hashed_bases.json").write_text(damaged)
        with pytest.raises(SystemExit, match=r"model\.safetensors differs"):
            check(base, sums)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    shutil.copy2(tiny_gemma3n / "model.safetensors", weights)
    check(base, sums)  # a cache that cannot be written costs time only


def test_the_script_finds_the_base_from_any_folder_and_after_a_move(
    tiny_run, tmp_path, monkeypatch
):
    home = tmp_path / "pipeline"
    adapter = shutil.copytree(tiny_run / "adapter", home / "runs" / "mine" / "adapter")
    base = home / "models" / "gemma"
    bundled = home / ".cache" / "gemma-3-270m"
    for folder in (base, bundled):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    find = runpy.run_path(str(adapter / "ask.py"))["find_base"]
    assert find(None, {"base_model_name_or_path": "models/gemma"}) == base
    assert find(None, {"base_model_name_or_path": "bundled:gemma-3-270m"}) == bundled
    moved = pathlib.Path(shutil.move(adapter, elsewhere / "adapter"))
    find = runpy.run_path(str(moved / "ask.py"))["find_base"]
    monkeypatch.setenv("MEDRESCUE_CACHE", str(home / ".cache"))
    assert find(None, {"base_model_name_or_path": "bundled:gemma-3-270m"}) == bundled
    assert str(find("../pipeline/models/gemma", {})) == "../pipeline/models/gemma"
    with pytest.raises(SystemExit, match=r"`/nope/x` is not here.*--base FOLDER"):
        find("/nope/x", {})
    with pytest.raises(SystemExit, match=r"`owner/name` could not be fetched.*(?s:.)*--base"):
        find("owner/name", {})


def test_mistakes_are_told_in_a_sentence(tiny_run, tiny_gemma3n, tmp_path, monkeypatch, capsys):
    adapter = shutil.copytree(tiny_run / "adapter", tmp_path / "adapter")
    for words in ([" "], ["--tokens", "0", "Burnt?"]):
        with pytest.raises(SystemExit):
            ask(monkeypatch, capsys, adapter, *words)
        assert "expected a question, and --tokens of at least 1" in capsys.readouterr().err
    long = "wound " * 40_000
    with pytest.raises(SystemExit, match=r"has [\d,]+ tokens .*240,000 characters.*at most 2,040"):
        ask(monkeypatch, capsys, adapter, "--base", str(tiny_gemma3n), "--tokens", "8", long)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(SystemExit, match=r"no readable adapter_config\.json in .*by its path"):
        ask(monkeypatch, capsys, adapter, "Burnt?")
