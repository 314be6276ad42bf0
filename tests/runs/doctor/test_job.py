"""What a job needs of a machine, and all that would refuse it, on pretended machines.

.venv/bin/python -m pytest tests/runs/doctor/test_job.py
"""

import json
import pathlib
import shutil

import psutil
import pytest

from helpers.pretended_machine import H100, L4, T4, pretend
from lib.common import machine
from lib.common.errors import ROOT, UserError
from lib.runs.doctor import card, command, job, screen
from lib.runs.doctor.asking import ask

PRESETS = sorted(path.name for path in (ROOT / "params").glob("*.yaml"))


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """Let runs be in an empty folder, on a machine without a GPU and with room for all."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**40}))


def lines_of(params_file="params/cpu.yaml", overrides="", name=""):
    return ask("job", "missing", lambda: job.describe_job(params_file, overrides, name))


def missing(lines):
    return [line.text for line in lines if line.state == "missing"]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("gpu", [None, T4, L4, H100], ids=["processor", "T4", "L4", "H100"])
def test_every_preset_gets_an_answer_on_every_machine(monkeypatch, preset, gpu):
    pretend(monkeypatch, **(gpu or {}))
    monkeypatch.setattr(machine, "gpus", lambda: [gpu["name"]] if gpu else [])
    monkeypatch.setattr(job.constants, "HF_HUB_OFFLINE", False)
    lines = lines_of(f"params/{preset}")
    assert not [line for line in lines if "cannot be told" in line.text], lines
    assert len(screen.render(lines).split("\n")) <= 30
    runs_here = {
        None: {"cpu.yaml", "cpu-full.yaml"},
        "Tesla T4": {"cpu.yaml", "cpu-full.yaml", "t4.yaml", "t4-e2b.yaml"},
        "NVIDIA L4": set(PRESETS) - {"sweep.yaml"},
        "NVIDIA H100 80GB HBM3": set(PRESETS) - {"sweep.yaml"},
    }[gpu and gpu["name"]]
    assert (missing(lines) == []) == (preset in runs_here), missing(lines)


def test_full_fine_tuning_tells_its_memory_and_what_does_not_go_with_it(monkeypatch):
    pretend(monkeypatch)
    lines = [line.text for line in lines_of("params/cpu-full.yaml")]
    gib = 268_098_176 * 20 / 2**30  # weights and gradients in 2 and 4 bytes, two moments in 4
    assert any(f"full fine-tuning: {gib:.1f} GiB in main memory" in line for line in lines)
    told = missing(lines_of("params/cpu-full.yaml", "lora_r=4 fsdp=full_shard"))
    assert any("lora_r=4 would have no effect" in text for text in told)
    assert any("fsdp: full_shard shards frozen weights only" in text for text in told)


def test_all_refusals_are_told_together(monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: type("M", (), {"available": 2**20, "total": 2**34})
    )
    told = " ".join(
        missing(
            lines_of(
                overrides="load_in_4bit=true torch_compile=true max_steps=0 dataset=gone.jsonl "
                "start_from=gone report_to=nothing-so-far base_model=bundled:gemma-3-270m"
            )
        )
    )
    assert "report_to" in told  # a wrong parameter comes alone: no job can be made of it
    told = " ".join(
        missing(
            lines_of(
                overrides="load_in_4bit=true torch_compile=true max_steps=0 dataset=gone.jsonl "
                "start_from=gone base_model=bundled:gemma-3-270m"
            )
        )
    )
    for part in (
        "load_in_4bit needs an NVIDIA GPU",
        "torch_compile needs an NVIDIA GPU",
        "torch_compile needs packing: true",
        "max_steps is 0",
        "`gone.jsonl` does not exist",
        "start_from=`gone`",
        "Not enough memory",
    ):
        assert told.count(part) == 1, part
    assert "Not enough disk" in " ".join(missing(lines_of()))  # unknown while a source is missing


def test_a_base_that_is_no_model_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (told,) = missing(lines_of(overrides=f"base_model={tmp_path}"))[:1]
    assert str(tmp_path) in told
    assert "bundled" in missing(lines_of(overrides="base_model=bundled:gemma-9"))[0]
    assert "does not exist" in missing(lines_of(overrides="base_model=/nowhere/model"))[0]


def test_a_hub_base_that_was_not_downloaded_is_missing_only_offline(monkeypatch):
    """Tests set HF_HUB_OFFLINE; no size of it is known, and none is claimed."""
    base = [x for x in lines_of(overrides="base_model=some/model") if x.what == "base"]
    assert [line.state for line in base] == ["missing"]
    monkeypatch.setattr(job.constants, "HF_HUB_OFFLINE", False)
    base = [x for x in lines_of(overrides="base_model=some/model") if x.what == "base"]
    assert [line.state for line in base] == ["note"]
    assert "its size is not known" in base[0].text


def test_a_downloaded_base_is_whole_or_not_and_export_may_refuse_it(tmp_path, monkeypatch):
    def refuse(text):
        def check(*_):
            raise UserError(text)

        return check

    monkeypatch.setattr(job.base, "find_downloaded", lambda *_: tmp_path)
    monkeypatch.setattr(job.model_folder, "check_folder", refuse("weights are missing"))
    told = [x for x in lines_of(overrides="base_model=some/model") if x.what == "base"]
    assert "only a part is downloaded" in told[0].text
    monkeypatch.setattr(job.model_folder, "check_folder", lambda _: None)
    monkeypatch.setattr(job.exportable, "require_exportable", refuse("of another family"))
    told = [x for x in lines_of(overrides="base_model=some/model") if x.what == "base"]
    assert [line.state for line in told] == ["ok", "missing"]
    assert told[1].text == "of another family"


def test_time_and_memory_are_those_of_a_run_of_this_job_or_not_measured(tmp_path):
    def measured(overrides=""):
        return next(x.text for x in lines_of(overrides=overrides) if x.what == "measured")

    assert "not measured" in measured()
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    shutil.copy(ROOT / "params/cpu.yaml", run / "params.yaml")
    train = {"device": "a chip", "seconds": 61.4, "peak_memory_gib": 3.386, "memory_of": "process"}
    (run / "results.json").write_text(json.dumps({"train": train}))
    assert measured() == "in run mine on a chip: training 61 s, peak 3.4 GiB (process)"
    assert "not measured" in measured("learning_rate=1e-5")
    (run / "results.json").write_text("{")
    assert "not measured" in measured()


def test_what_is_finished_needs_nothing_more(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "params.yaml").write_text("dataset: gone.jsonl\nbase_model: bundled:gemma-3-270m\n")
    record = json.loads((ROOT / "runs/examples/demo/run.json").read_text())
    monkeypatch.setattr(job, "read_record", lambda _: record)
    (run / "run.json").write_text("{}")
    lines = lines_of("", "", "mine")
    assert missing(lines) == []
    assert "prepare, train, export finished" in lines[0].text


@pytest.mark.parametrize(
    ("gpu", "texts"),
    [
        (T4, ["no bf16 and no fp8", "16-bit base in float32"]),
        (L4, ["fp16, bf16 and fp8", "16-bit base in bfloat16"]),
        (H100, ["fp16, bf16 and fp8", "16-bit base in bfloat16"]),
    ],
)
def test_a_card_and_its_precisions(monkeypatch, gpu, texts):
    pretend(monkeypatch, **gpu, cards=2)
    properties = type("P", (), {"name": gpu["name"], "total_memory": gpu["gb"] * 1e9})
    monkeypatch.setattr(card.torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(card.torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90"])
    (line,) = card.describe_cards()
    capability = ".".join(map(str, gpu["capability"]))
    assert line.text.startswith(f"2 x {gpu['name']}, {gpu['gb'] / 1.073741824:.1f} GiB")
    assert f"compute capability {capability}" in line.text
    (line,) = card.describe_precision()
    assert all(text in line.text for text in texts), line.text


def test_a_card_that_torch_cannot_use_is_missing_with_the_reason(monkeypatch):
    pretend(monkeypatch)
    monkeypatch.setattr(machine, "gpus", lambda: ["Tesla T4, 15360 MiB"])
    monkeypatch.setattr(machine, "driver", lambda: "418.87")
    monkeypatch.setattr(card.torch.version, "cuda", None)
    (line,) = card.describe_cards()
    assert line.state == "missing"
    assert "build without CUDA" in line.text
    monkeypatch.setattr(card.torch.version, "cuda", "13.0")
    (line,) = card.describe_cards()
    assert "Driver 418.87, torch built for CUDA 13.0" in line.text


def test_a_card_too_old_for_this_torch_is_missing(monkeypatch):
    pretend(monkeypatch, name="Tesla K80", gb=11.4, bf16=False, capability=(3, 7))
    properties = type("P", (), {"name": "Tesla K80", "total_memory": 11.4e9})
    monkeypatch.setattr(card.torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(card.torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_90a", "sm_90"])
    assert [line.state for line in card.describe_cards()] == ["ok", "missing"]


def test_exit_codes(monkeypatch, capsys):
    monkeypatch.setattr(command.packages, "explain_failure", lambda _: "")
    assert command.main(["doctor", "--params", "params/cpu.yaml"]) == 0
    assert command.main(["doctor", "--params", "params/gone.yaml"]) == 1
    assert "does not exist" in capsys.readouterr().out
    assert pathlib.Path(ROOT / "params/cpu.yaml").is_file()
