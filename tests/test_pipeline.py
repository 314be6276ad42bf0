"""The three notebooks through papermill: on a tiny Gemma 3n of the true architecture, in Jupyter's way, and on the bundled model.

python -m pytest tests/test_pipeline.py
"""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

import nbformat
import pytest

from lib.common import files
from lib.record.run_record import STAGES

ROOT = pathlib.Path(__file__).parents[1]
EVIL = "<script>alert('row')</script>"


def make(command, params, folder, *more, check=0):
    """Run the runner as `make` does, with its runs under `folder`; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "lib.runs", command, "--params", str(params), *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "MEDRESCUE_RUNS": str(folder)},
    )
    assert done.returncode == check, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def job(tiny_gemma3n, tmp_path_factory):
    """Write a params file for the tiny model on 22 short rows, three of which must be dropped."""
    folder = tmp_path_factory.mktemp("job")
    assets = (ROOT / "lib" / "medical" / "first_aid.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        {k: v for k, v in json.loads(line).items() if k != "source"}
        for line in sorted(assets, key=len)[:18]
    ]
    rows += [
        rows[0],
        {**rows[1], "id": "no-answer", "answer": ""},
        {
            **rows[2],
            "id": "evil",
            "question": f"Is {EVIL} safe?",
            "answer": f"No, nobody should open this: {EVIL}",
        },
    ]
    rows += [
        {
            "id": "long",
            "topic": "",
            "question": "Why is that?",
            "answer": "It is because of this, and that is all. " * 90,
        }
    ]
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8"
    )
    exam = (ROOT / "lib" / "medical" / "exam.jsonl").read_text(encoding="utf-8").splitlines()
    shortest = sorted(exam, key=len)[:4]
    (folder / "exam.jsonl").write_text("\n".join(shortest) + "\n", encoding="utf-8")
    path = folder / "tiny.yaml"
    path.write_text(
        f"base_model: {tiny_gemma3n}\ndataset: {folder / 'rows.jsonl'}\nload_in_4bit: false\noptim: adamw_torch\nmax_seq_length: 512\n"
        "validation_size: 0.2\nlearning_rate: 1.0e-3\nmax_steps: 2\nwarmup_steps: 0\nsave_steps: 1\nsample_tokens: 4\n"
        f"per_device_train_batch_size: 2\ngradient_accumulation_steps: 2\nexam: [{folder / 'exam.jsonl'}]\nsafety_tokens: 0\nlora_gguf: false\n"
        "skip_rules: [html]  # the row that tries to be markup must reach the page\n"
    )
    return path


@pytest.fixture(scope="module")
def run(job, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    printed = make("run", job, runs, "--run", "tiny")
    return runs / "tiny", printed


def test_everything_the_layout_names_is_there(run):
    folder, _ = run
    for name in (
        "params.yaml",
        "run.json",
        "metrics.jsonl",
        "results.json",
        "report.html",
        "prepare.ipynb",
        "train.ipynb",
        "export.ipynb",
        "data/data_card.json",
        "data/train",
        "checkpoints/step-000002",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "merged/config.json",
        "merged/model.safetensors",
        "gguf/tiny-q8_0.gguf",
        "gguf/Modelfile",
    ):
        assert (folder / name).exists(), name
    assert not [p for p in folder.rglob("*") if p.name.endswith((".tmp", ".old"))]


def test_record_says_finished_and_names_no_path_of_this_machine(run, job):
    folder, _ = run
    record = json.loads((folder / "run.json").read_text())
    for stage in STAGES:
        entry = record["stages"][stage]
        assert entry["status"] == "finished"
        assert [a["exit"] for a in entry["attempts"]] == ["ok"]
        assert files.find_damage(folder, entry["artifacts"]) == ""
    assert record["packages"]["torch"]
    assert set(record["fingerprints"]) >= {"dataset", "data"}
    assert str(ROOT) not in (folder / "run.json").read_text()
    assert str(ROOT) not in (folder / "results.json").read_text()


def test_executed_notebooks_are_whole_small_and_glued(run):
    import scrapbook

    folder, _ = run
    for stage in STAGES:
        content = nbformat.read(folder / f"{stage}.ipynb", as_version=4)
        assert (folder / f"{stage}.ipynb").stat().st_size < 400_000
        assert content.metadata.papermill["exception"] is None
        for cell in content.cells:
            assert cell.metadata.papermill["status"] == "completed"
            if cell.cell_type == "code":
                assert not [
                    o
                    for o in cell.outputs
                    if o.output_type == "error"
                    or "image/png" in o.get("data", {})
                    and not o.data["image/png"]
                ]
                assert len([o for o in cell.outputs if o.output_type == "stream"]) <= 2, (
                    "progress bars must not pile up"
                )
        outputs = [o for c in content.cells if c.cell_type == "code" for o in c.outputs]
        if stage != "export":
            assert any("image/png" in o.get("data", {}) for o in outputs), (
                f"{stage} shows no figure"
            )
    glued = scrapbook.read_notebook(str(folder / "train.ipynb"))
    results = json.loads((folder / "results.json").read_text())
    assert glued.scraps.data_dict["loss_mean"] == pytest.approx(results["train"]["loss_mean"])
    assert glued.parameters.max_steps == 2


def test_results_add_up_and_come_from_the_ledger(run):
    from lib.record import ledger

    folder, _ = run
    results = json.loads((folder / "results.json").read_text())
    prepare, train = results["prepare"], results["train"]
    assert prepare["rows_read"] == 22
    assert prepare["dropped"] == {"empty": 1, "exact_duplicate": 1, "too_long": 1}
    assert (
        prepare["rows_read"] - sum(prepare["dropped"].values())
        == prepare["rows_kept"]
        == prepare["train"] + prepare["validation"] + prepare["test"]
    )
    end = train.pop("end_token")
    assert (end["trained"], end["because"]) == (False, "the base can end an answer")
    entries = ledger.read_ledger(folder / "metrics.jsonl")
    assert ledger.summarise(entries) == train
    assert (train["steps"], train["sessions"], train["steps_repeated"]) == (2, 1, 0)
    assert train["eval_loss_after"] < train["eval_loss_before"]
    for when in ("before", "after"):
        low, high = train[f"eval_loss_{when}_ci95"]
        assert low < train[f"eval_loss_{when}"] < high
    assert train["trainable_parameters"] > 0
    parity = results["export"]["parity"]["q8_0"]
    assert parity["tokens"] > 0
    listed = {a["path"]: a for a in results["export"]["artifacts"]}
    assert (
        listed["gguf/tiny-q8_0.gguf"]["sha256"]
        == hashlib.sha256((folder / "gguf" / "tiny-q8_0.gguf").read_bytes()).hexdigest()
    )


def test_every_format_was_examined(run):
    folder, _ = run
    results, entries = (
        files.read_json(folder / name, name) for name in ("results.json", "exam.json")
    )
    (exam,) = (entries[name]["models"] for name in entries)
    assert list(exam) == ["base", "adapter", "merged", "q8_0"]
    assert results["exam"]["items"] == 4
    assert results["exam"]["tuned_correct"] == sum(r["right"] for r in exam["merged"]["results"])
    assert results["exam"]["tuned_perplexity"] < results["exam"]["base_perplexity"]
    assert "safety" not in results, "nobody asked"
    card = (folder / "gguf" / "README.md").read_text(encoding="utf-8")
    assert f"{results['exam']['q8_0']['tuned_correct']} of 4" in card


def test_terminal_shows_stage_step_loss_and_time_left(run):
    _, printed = run
    for text in (
        "prepare:",
        "train:",
        "export:",
        "training:",
        "2/2",
        "loss=",
        "held-out loss before",
        "report:",
    ):
        assert text in printed, text
    assert "Traceback" not in printed


def test_same_command_again_does_nothing(run, job):
    folder, _ = run
    printed = make("run", job, folder.parent, "--run", "tiny")
    assert printed.count("nothing to do") == 3


@pytest.mark.slow
def test_a_changed_export_runs_alone_and_examines_only_what_is_new(run, job, tmp_path):
    shutil.copytree(run[0], tmp_path / "tiny")
    folder = tmp_path / "tiny"
    more = "gguf_types=[f16] safety_tokens=2 lora_gguf=true"
    printed = make("run", job, tmp_path, "--run", "tiny", "--set", more)
    assert [printed.count(f"{stage}: finished") for stage in STAGES] == [1, 1, 0]
    assert "export: `gguf_types` changed" in printed
    assert (folder / "gguf" / "tiny-f16.gguf").exists()
    assert "merged, " in printed
    assert printed.count("examined before, nothing to do") == 3, (
        "base, adapter and merged are the same; f16 is new"
    )
    results = files.read_json(folder / "results.json", "results")
    assert results["export"]["lora"]["apart"] < results["export"]["lora"]["apart_without"]
    assert "gguf/tiny-lora.gguf" in [a["path"] for a in results["export"]["artifacts"]]
    safety = list(files.read_json(folder / "exam.json", "exam").values())[1]["models"]
    assert list(safety) == ["base", "merged", "f16"]
    for name, key in (("base", "base"), ("merged", "tuned"), ("f16", "f16")):
        assert len(safety[name]["answers"]) == 82
        assert results["safety"][key]["passed"]["count"] == sum(
            answer["passed"] for answer in safety[name]["answers"]
        )
    assert "of 82" in (folder / "gguf" / "README.md").read_text(encoding="utf-8")


def test_report_shows_this_run(run):
    page = (run[0] / "report.html").read_text(encoding="utf-8")
    for text in (
        "not medical advice",
        "Read first",
        "held-out response loss",
        "tiny-q8_0.gguf",
        "max_steps",
        "Not measured",
    ):
        assert text in page, text
    assert EVIL not in page


@pytest.mark.slow
def test_running_all_cells_in_jupyter_with_params_file_is_the_same_job(
    run, job, tmp_path, monkeypatch
):
    from nbclient import NotebookClient

    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    for stage in ("prepare", "train"):
        content = nbformat.read(ROOT / "notebooks" / f"{stage}.ipynb", as_version=4)
        cell = next(c for c in content.cells if "parameters" in c.metadata.get("tags", []))
        cell.source = cell.source.replace(
            'params_file: str = ""', f'params_file: str = "{job}"'
        ).replace('run_name: str = ""', 'run_name: str = "tiny"')
        NotebookClient(
            content,
            timeout=300,
            kernel_name="python3",
            resources={"metadata": {"path": str(ROOT / "notebooks")}},
        ).execute()
    ours, theirs = (
        json.loads((f / "tiny" / "run.json").read_text()) for f in (tmp_path, run[0].parent)
    )
    for stage in ("prepare", "train"):
        assert ours["stages"][stage]["status"] == "finished"
        assert ours["stages"][stage]["output"] == theirs["stages"][stage]["output"], (
            f"{stage} differs from make's"
        )
    assert "nothing to do" in make("train", job, tmp_path, "--run", "tiny")


@pytest.mark.slow
def test_the_bundled_model_and_data(tmp_path):
    folder = tmp_path / "demo"
    make(
        "run",
        "params/cpu.yaml",
        tmp_path,
        "--run",
        "demo",
        "--set",
        "max_rows=60 max_steps=2 sample_tokens=6 exam=[] safety_tokens=0 lora_gguf=false",
    )
    results = json.loads((folder / "results.json").read_text())
    assert (
        results["train"]["total_parameters"]
        == 268_098_176 + results["train"]["trainable_parameters"]
    )
    assert results["train"]["steps"] == 2
    assert results["export"]["parity"]["q8_0"]["tokens"] > 0
    assert "Gemma 3 270M" in (folder / "report.html").read_text()
