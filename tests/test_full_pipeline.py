"""Full fine-tuning through the three notebooks: no adapter anywhere, and every file compared.

python -m pytest tests/test_full_pipeline.py
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from helpers import adapters, by_hand, tiny_gemma3
from lib.common import files
from lib.common.errors import ROOT
from lib.exam import take
from lib.model.shards import canonical_name
from lib.pages import report
from lib.record import run_record
from lib.runs import listing, prune, rerun

pytestmark = pytest.mark.slow  # a run takes half a minute

JOB = """base_model: {base}
dataset: {rows}
exam: [{exam}]
safety_tokens: 0
load_in_4bit: false
full_finetuning: true
optim: adamw_torch
precision: bf16
max_seq_length: 512
validation_size: 0.2
learning_rate: 1.0e-3
max_steps: 4
warmup_steps: 0
save_steps: 2
save_total_limit: 1
sample_tokens: 4
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
"""


def call(folder, *words, check=0):
    """Run a command of lib.runs with its runs under `folder`; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "lib.runs", *map(str, words)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MEDRESCUE_RUNS": str(folder)},
    )
    assert done.returncode == check, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module", params=["gemma3", "gemma3n"])
def run(request, tiny_gemma3n, tmp_path_factory):
    """A finished run, its base, its params file, and what the command printed."""
    top = tmp_path_factory.mktemp(request.param)
    base = tiny_gemma3n if request.param == "gemma3n" else tiny_gemma3.build(top / "base")
    items = (ROOT / "lib" / "medical" / "exam.jsonl").read_text(encoding="utf-8").splitlines()
    (top / "exam.jsonl").write_text("\n".join(sorted(items, key=len)[:4]) + "\n", encoding="utf-8")
    rows = by_hand.write_rows(top / "rows.jsonl")
    job = top / "full.yaml"
    job.write_text(JOB.format(base=base, rows=rows, exam=top / "exam.jsonl"))
    printed = call(top / "runs", "run", "--params", job, "--run", "full")
    return top / "runs" / "full", base, job, printed


def read(folder, name):
    return files.read_json(folder / name, name)


def test_merged_is_what_was_trained_and_there_is_no_adapter(run):
    folder, base, _, _ = run
    assert not (folder / "adapter").exists()
    trained = load_file(folder / "weights" / "model.safetensors")
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    merged, before = adapters.read_weights(folder / "merged"), adapters.read_weights(base)
    assert trained.keys() == {canonical_name(name) for name in before}
    for name in before:
        assert torch.equal(merged[name], trained[canonical_name(name)].bfloat16()), name
        assert not torch.equal(merged[name], before[name]), f"{name} was not trained"
    newest = load_file(folder / "checkpoints" / "step-000004" / "weights.safetensors")
    assert all(torch.equal(trained[canonical_name(name)], w) for name, w in newest.items())
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000004"]


def test_records_say_what_was_done(run):
    folder, _, _, printed = run
    results = read(folder, "results.json")
    train, export = results["train"], results["export"]
    assert train["trainable_parameters"] == train["total_parameters"] > 1e6
    assert train["eval_loss_after"] < train["eval_loss_before"]
    assert export["parity"]["q8_0"]["tokens"] > 0
    assert "failed" not in export["parity"]["q8_0"]
    assert export["lora"] == {}
    paths = {item["path"].split("/")[0] for item in export["artifacts"]}
    assert paths == {"merged", "gguf"}
    recorded = [item["path"] for item in read(folder, "run.json")["stages"]["train"]["artifacts"]]
    assert "weights/model.safetensors" in recorded
    for exam in read(folder, "exam.json").values():
        assert [name for name in exam["models"] if name != "baselines"][:3] == [
            "base",
            "merged",
            "q8_0",
        ]
    assert "Traceback" not in printed


def test_pages_and_files_name_the_method(run):
    folder = run[0]
    for part in ("merged", "gguf"):
        card = (folder / part / "README.md").read_text(encoding="utf-8")
        assert "all weights fine-tuned" in card
        assert "full fine-tuning: all weights of the language model" in card
        assert "LoRA" not in card
        notice = (folder / part / "NOTICE").read_text(encoding="utf-8")
        assert "by full fine-tuning" in notice
    modelfile = (folder / "gguf" / "Modelfile").read_text(encoding="utf-8")
    assert "by full fine-tuning" in modelfile
    assert not list((folder / "gguf").glob("*lora*"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "full_finetuning" in page
    assert "weights/model.safetensors" in page


def test_the_other_commands_work_without_an_adapter(run, monkeypatch):
    folder, _, job, _ = run
    monkeypatch.setenv("MEDRESCUE_RUNS", str(folder.parent))
    assert call(folder.parent, "run", "--params", job, "--run", "full").count("nothing to do") == 3
    assert "edical advice" in call(folder.parent, "ask", "--run", "full", "--question", "Hi?")
    assert listing.list_runs([folder])[0]["state"] == "finished"
    report.write_report(folder)
    assert set(prune.measure_freeable(folder)) == {"checkpoints", "merged"}
    entry = take.examine_run(folder, str(folder.parents[1] / "exam.jsonl"))
    assert "adapter" not in entry["models"]


def test_a_second_run_begins_from_its_weights(run):
    folder, _, job, _ = run
    words = ("--params", job, "--run", "second", "--set", "start_from=full max_steps=2")
    for stage in ("prepare", "train"):
        call(folder.parent, stage, *words)
    second = folder.parent / "second"
    results, first = read(second, "results.json")["train"], read(folder, "results.json")["train"]
    assert results["eval_loss_before"] == pytest.approx(first["eval_loss_after"], rel=1e-6)
    begun = read(second, "run.json")["start"]
    assert (begun["run"], begun["full"], begun["base_by"]) == ("full", True, "fingerprint")
    assert "the full weights of run `full`" in run_record.describe_start(begun)
    told = call(folder.parent, "compare", "--runs", "full second")
    assert "start_from" in told
    told = call(folder.parent, "diff", "--runs", "full second")
    assert "Traceback" not in told


def test_it_is_repeated_to_the_bit(run, monkeypatch):
    folder = run[0]
    monkeypatch.setenv("MEDRESCUE_RUNS", str(folder.parent))
    assert rerun.repeat_run("full") == 0
    answer = read(folder.parent / "full-rerun", "rerun.json")
    assert answer["same"], answer["results"]
    assert "trained weights: the same" in answer["results"]


def test_damaged_weights_are_made_again_before_they_are_exported(run):
    folder, _, job, _ = run
    path = folder / "weights" / "model.safetensors"
    sound = path.read_bytes()
    content = bytearray(sound)
    content[-3] ^= 1
    path.write_bytes(content)
    printed = call(folder.parent, "export", "--params", job, "--run", "full", "--force")
    assert "train: was finished, but weights/model.safetensors" in printed
    assert path.read_bytes() == sound
    stages = json.loads((folder / "run.json").read_text())["stages"]
    assert [stages[stage]["status"] for stage in ("train", "export")] == ["finished"] * 2
