"""What a stage needs of this machine is asked before anything starts.

.venv/bin/python -m pytest tests/runs/test_needs.py
"""

import shutil

import psutil
import pytest

from helpers import standin, tiny_gemma3
from lib import params
from lib.common import files, limits, machine
from lib.common.errors import UserError
from lib.params import packages
from lib.record import opening, run_record
from lib.runs import needs, run_job
from lib.runs.run_job import main


def leave(monkeypatch, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": free}))


@pytest.fixture(autouse=True)
def a_large_disk(monkeypatch):
    """Whatever disk the tests run on: full fine-tuning of the bundled base alone needs 13 GiB."""
    leave(monkeypatch, 2**40)


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_small_disk_is_an_error_before_anything_starts(here, command, monkeypatch, capsys):
    leave(monkeypatch, 2**20)
    assert "Not enough disk for prepare" in standin.refused(
        capsys, command, "--params", "params/job.yaml"
    )
    assert not here.run.exists()


def test_all_stages_must_fit_at_the_start(here, monkeypatch, capsys):
    wanted = [
        needs.estimate_disk(stage, params.load_job("params/job.yaml"))
        for stage in run_record.STAGES
    ]
    leave(monkeypatch, max(wanted) + 1)
    assert "prepare, train, export" in standin.refused(capsys, "run", "--params", "params/job.yaml")


def test_a_small_memory_is_an_error_before_training_and_export_but_not_before_prepare(
    here, monkeypatch, capsys
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
    bundled = ("--params", "params/job.yaml", "--set", "base_model=bundled:gemma-3-270m")
    for command in ("run", "train", "export"):
        assert (
            "Not enough memory for bundled:gemma-3-270m, which train and export load,"
            in standin.refused(capsys, command, *bundled)
        )
    needs.check_machine(
        ["prepare"],
        params.load_job("params/job.yaml", "base_model=bundled:gemma-3-270m"),
        here.root,
    )


def test_a_gpu_job_without_a_gpu_names_the_way_out(here, monkeypatch, capsys):
    text = standin.refused(capsys, "train", "--params", "params/gpu.yaml")
    assert "params/cpu.yaml" in text
    assert "load_in_4bit=true and optim=adamw_8bit" in text
    assert not here.run.exists()
    with pytest.raises(
        pytest.fail.Exception, match="a notebook was started"
    ):  # prepare needs no card
        main(["prepare", "--params", "params/gpu.yaml", "--run", "job"])
    monkeypatch.setattr(machine, "gpus", lambda: ["a card"])
    monkeypatch.setattr(packages, "is_installed", lambda name: True)
    needs.check_machine(["train"], params.load_job("params/gpu.yaml"), here.root)


def test_a_cache_that_cannot_be_written_is_an_error_before_anything_starts(
    here, monkeypatch, capsys
):
    """As in a checkout on a read-only disk."""
    monkeypatch.setenv("MEDRESCUE_CACHE", "rows.jsonl/cache")
    text = standin.refused(capsys, "run", "--params", "params/job.yaml")
    assert "Set MEDRESCUE_CACHE to a folder that you can write to" in text
    assert not here.run.exists()


def test_the_disk_estimate_knows_the_formats():
    job = params.load_job("params/cpu.yaml")
    assert needs.estimate_disk("export", job) < needs.estimate_disk(
        "export", job.model_copy(update={"gguf_types": ["f16", "q8_0"]})
    )
    with pytest.raises(UserError, match="larger disk"):
        files.require_disk(standin.ROOT, 2**70, "a moon")


@pytest.mark.parametrize("command", ["run", "prepare", "train"])
def test_a_base_that_cannot_be_exported_is_refused_before_anything_starts(here, command, capsys):
    tiny_gemma3.build_other(here.root / "llama", "Llama")
    capsys.readouterr()  # the progress bar of writing it
    text = standin.refused(
        capsys, command, "--params", "params/job.yaml", "--set", "base_model=llama"
    )
    assert "The base `llama` is of the family 'llama'" in text
    assert not here.run.exists()


FULL = ("--params", "params/job.yaml", "--set")


def test_full_fine_tuning_of_too_large_a_base_is_refused_before_anything_starts(
    here, monkeypatch, capsys
):
    job = "base_model=bundled:gemma-3-270m full_finetuning=true load_in_4bit=false"
    free = needs.BUNDLED_NUMBERS * 19
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": free}))
    monkeypatch.setattr(limits, "free_memory", lambda: free)
    told = standin.refused(capsys, "run", *FULL, job)
    assert "Not enough memory for full_finetuning of bundled:gemma-3-270m" in told
    monkeypatch.setattr(machine, "gpus", lambda: ["a card"])
    monkeypatch.setattr(machine, "card_bytes", lambda: free)
    told = standin.refused(capsys, "run", *FULL, job)
    assert "Not enough memory on the card for full_finetuning" in told
    assert not here.run.exists()


def test_what_does_not_go_with_full_fine_tuning_is_refused_before_anything_starts(here, capsys):
    told = standin.refused(
        capsys, "run", *FULL, "full_finetuning=true load_in_4bit=true lora_r=4 optim=adamw_8bit"
    )
    assert "which 4 bits cannot hold" in told
    assert "lora_r=4 would have no effect" in told
    assert not here.run.exists()


def test_the_checkpoints_of_full_fine_tuning_are_counted(here):
    changes = "base_model=bundled:gemma-3-270m optim=adamw_torch save_total_limit=2"
    adapter = params.load_job("params/job.yaml", f"{changes} load_in_4bit=false")
    full = adapter.model_copy(update={"full_finetuning": True})
    more = needs.estimate_disk("train", full) - needs.estimate_disk("train", adapter)
    weights_and_moments, saved = 12 * needs.BUNDLED_NUMBERS, 4 * needs.BUNDLED_NUMBERS
    assert more == 3 * weights_and_moments + saved - 2 * files.STAGE_BYTES


IMPOSSIBLE = [
    ("finetune_attention_modules=false finetune_mlp_modules=false", "nothing would be trained"),
    ("push_to=noslash", "push_to is `noslash`"),
    ("fsdp=full_shard num_gpus=1", "shards the base over several GPUs"),
    ("num_gpus=3", "3 GPUs cannot share evenly"),
]
ELSEWHERE = [
    ("start_from=nope", "no such run or folder"),
    ("load_in_4bit=true optim=adamw_8bit", "load_in_4bit=true and optim=adamw_8bit"),
    ("num_gpus=2", "num_gpus=2"),
    ("fsdp=full_shard", "fsdp=full_shard"),
    ("backend=unsloth", "backend=unsloth"),
    ("report_to=wandb", "report_to is wandb, which is not installed"),
]


@pytest.fixture
def prepared(here, monkeypatch):
    """Return a tree with a run whose prepare is finished, in a process without optional packages."""
    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    job = params.load_job("params/job.yaml")
    run = opening.open_run(here.run, job)
    run.begin_attempt("prepare", "make")
    run.end_attempt("prepare", "finished", "ok")
    files.unlock_folder(here.run)
    return here


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("command", ["run", "prepare", "train", "export"])
@pytest.mark.parametrize(("settings", "said"), IMPOSSIBLE)
def test_what_no_machine_can_train_is_never_recorded(
    prepared, capsys, begun, command, settings, said
):
    name = "job" if begun else "new"
    words = (command, "--params", "params/job.yaml", "--run", name, "--set", settings)
    before = sorted(prepared.run.parent.rglob("*"))
    own = (prepared.run / "params.yaml").read_text()
    assert main(list(words)) == 2
    assert said in capsys.readouterr().err
    assert sorted(prepared.run.parent.rglob("*")) == before
    assert (prepared.run / "params.yaml").read_text() == own


@pytest.mark.parametrize("name", ["job", "new"])
@pytest.mark.parametrize(("settings", "said"), ELSEWHERE)
def test_what_this_machine_cannot_train_is_refused_before_prepare_or_noted_by_it(
    prepared, monkeypatch, capsys, name, settings, said
):
    """A job may be prepared here, and trained on a machine with a card."""
    words = ["--params", "params/job.yaml", "--run", name, "--set", settings]
    for command in ("run", "train"):
        assert main([command, *words]) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setattr(run_job, "run_stage", lambda *_: None)
    assert main(["prepare", *words]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert said in notes[0]
    assert all(note.startswith("note: not on this machine: ") for note in notes)


@pytest.mark.parametrize(
    ("base", "said"),
    [("/nope", "`/nope` does not exist"), ("bundled:foo", "`bundled:foo` is not bundled")],
)
def test_a_base_that_is_not_there_is_refused_before_a_row_is_read(here, capsys, base, said):
    for command in ("run", "prepare"):
        words = (command, "--params", "params/job.yaml", "--set", f"base_model={base}")
        assert said in standin.refused(capsys, *words)
    assert not here.run.exists()


def test_a_finished_run_with_settings_that_are_refused_today_can_still_be_exported(here):
    job = params.load_job("params/job.yaml", "max_steps=0")
    with pytest.raises(UserError, match="max_steps is 0"):
        needs.require_possible(job, here.run)
    here.run.mkdir(parents=True)
    (here.run / "run.json").write_text("{}")
    (here.run / "params.yaml").write_text(params.to_yaml(job))
    needs.require_possible(job, here.run)
