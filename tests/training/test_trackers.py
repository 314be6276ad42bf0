"""Trackers: the ledger's lines under Hugging Face's names, one run over all sessions, and no failure that reaches the training.

    python -m pytest tests/training/test_trackers.py

The fakes have the signatures of tensorboard 2.21, trackio 0.43 and wandb 0.31; the last tests need the real ones
(requirements-trackers.txt) and are skipped without.
"""

import importlib
import os
import pathlib
import re
import subprocess
import sys
import types

import pytest

from helpers.tracker_session import SESSION, a_session, measured, step
from lib.common.errors import ROOT, UserError
from lib.params import Params
from lib.record import ledger
from lib.training import trackers


def named(number, loss=2.5):
    return {
        "train/loss": loss,
        "train/learning_rate": 1e-4,
        "train/grad_norm": 1.25,
        "train/epoch": number / 10,
        "train/memory_gib": 3.5,
        "train/tokens_per_second": 75.0,
        "train/samples_per_second": 8.0,
    }


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (
        "TRACKIO_DIR",
        "TRACKIO_SPACE_ID",
        "TRACKIO_SERVER_URL",
        "WANDB_PROJECT",
        "WANDB_MODE",
        "WANDB_DIR",
    ):
        monkeypatch.setenv(name, "")  # so that what `start` sets is undone
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "demo-1a2b").mkdir()
    return tmp_path / "demo-1a2b"


class FakeWriter:
    def __init__(
        self,
        log_dir=None,
        comment="",
        purge_step=None,
        max_queue=10,
        flush_secs=120,
        filename_suffix="",
    ):
        self.made, self.scalars, self.texts, self.flushed, self.closed = (
            (log_dir, purge_step),
            [],
            [],
            0,
            0,
        )

    def add_scalar(
        self,
        tag,
        scalar_value,
        global_step=None,
        walltime=None,
        new_style=False,
        double_precision=False,
    ):
        self.scalars.append((tag, scalar_value, global_step))

    def add_text(self, tag, text_string, global_step=None, walltime=None):
        self.texts.append((tag, text_string, global_step))

    def flush(self):
        self.flushed = len(self.scalars)

    def close(self):
        self.closed += 1


class FakeRun:
    def __init__(self, **made):
        self.made, self.logged, self.metrics, self.finished, self.broken = made, [], [], 0, None

    def finish(self, exit_code=None):
        self.finished += 1


class FakeTrackioRun(FakeRun):
    def log(self, metrics, step=None):
        self.logged.append((metrics, step))


class FakeWandbRun(FakeRun):
    def log(self, data, step=None, commit=None):
        if self.broken:
            raise self.broken
        self.logged.append(data)

    def define_metric(
        self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None
    ):
        self.metrics.append((name, step_metric))


@pytest.fixture
def fake(monkeypatch):
    """Put fakes of the three packages into sys.modules; return the list of runs and writers that they make."""
    made = []

    def keep(thing):
        made.append(thing)
        return thing

    def trackio_init(
        project,
        name=None,
        group=None,
        space_id=None,
        server_url=None,
        dataset_id=None,
        bucket_id=None,
        config=None,
        resume="never",
        settings=None,
        private=None,
        embed=True,
        auto_log_gpu=None,
        gpu_log_interval=10.0,
        auto_log_cpu=None,
        cpu_log_interval=10.0,
        webhook_url=None,
        webhook_min_level=None,
    ):
        return keep(FakeTrackioRun(**locals(), TRACKIO_DIR=os.environ.get("TRACKIO_DIR")))

    def wandb_init(
        entity=None,
        project=None,
        dir=None,
        id=None,
        name=None,
        notes=None,
        tags=None,
        config=None,
        config_exclude_keys=None,
        config_include_keys=None,
        allow_val_change=None,
        group=None,
        job_type=None,
        mode=None,
        force=None,
        reinit=None,
        resume=None,
        resume_from=None,
        fork_from=None,
        save_code=None,
        tensorboard=None,
        sync_tensorboard=None,
        monitor_gym=None,
        settings=None,
    ):
        return keep(FakeWandbRun(**locals()))

    writer = types.SimpleNamespace(SummaryWriter=lambda *a, **k: keep(FakeWriter(*a, **k)))
    for name, module in (
        ("torch.utils.tensorboard", writer),
        ("trackio", types.SimpleNamespace(init=trackio_init)),
        ("wandb", types.SimpleNamespace(init=wandb_init)),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_names_rates_and_steps():
    assert trackers.name_numbers("step", step(7)) == named(7), "300 tokens and 32 rows in 4 seconds"
    assert trackers.name_numbers("eval", measured(7)) == {"eval/loss": 2.0}
    assert trackers.name_numbers("forgetting", measured(7)) == {"forgetting/loss": 2.0}
    assert trackers.name_numbers("compiled", {"seconds": 60.0}) == {}


def test_none_does_nothing_and_imports_nothing(folder):
    code = (
        "import pathlib, sys; from lib.training import trackers; from lib.params import Params\n"
        f"report = trackers.start_tracker(Params(), pathlib.Path({str(folder)!r})); report('session', {SESSION!r}); report('step', {step(1)!r})\n"
        "print(sorted(n for n in ('tensorboard', 'torch', 'trackio', 'wandb') if n in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    assert not list(folder.iterdir())


def test_tensorboard(fake, folder):
    job = Params(report_to="tensorboard", lora_r=17)
    a_session(job, folder)
    (writer,) = fake
    assert writer.made == (str(folder / "tensorboard" / "demo-1a2b"), 1)
    assert writer.scalars == [
        ("eval/loss", 4.0, 0),
        *((k, v, n) for n in (1, 2) for k, v in named(n).items()),
        ("eval/loss", 2.0, 2),
    ]
    ((tag, text, at),) = writer.texts
    assert (tag, at) == ("params", 0)
    assert "    lora_r: 17\n" in text
    assert (writer.flushed, writer.closed) == (len(writer.scalars), 1)


def test_trackio(fake, folder):
    job = Params(report_to="trackio")
    a_session(job, folder)
    (run,) = fake
    assert {
        k: run.made[k]
        for k in ("project", "name", "config", "resume", "embed", "private", "TRACKIO_DIR")
    } == {
        "project": "medrescue-tuning",
        "name": "demo-1a2b",
        "config": job.model_dump(),
        "resume": "allow",
        "embed": False,
        "private": True,
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    assert run.logged == [
        ({"eval/loss": 4.0}, 0),
        (named(1), 1),
        (named(2), 2),
        ({"eval/loss": 2.0}, 2),
    ]
    assert run.finished == 1


def test_trackio_dir_of_the_environment_wins(fake, folder, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", "/elsewhere")
    a_session(Params(report_to="trackio"), folder)
    assert fake[0].made["TRACKIO_DIR"] == "/elsewhere"


def test_wandb(fake, folder):
    job = Params(report_to="wandb")
    a_session(job, folder)
    (run,) = fake
    assert {
        k: run.made[k]
        for k in ("project", "id", "name", "dir", "config", "resume", "allow_val_change", "reinit")
    } == {
        "project": "medrescue-tuning",
        "id": "demo-1a2b",
        "name": "demo-1a2b",
        "dir": str(folder),
        "config": job.model_dump(),
        "resume": "allow",
        "allow_val_change": True,
        "reinit": "finish_previous",
    }
    assert run.made["mode"] is run.made["entity"] is None, "WANDB_MODE and WANDB_ENTITY decide"
    assert run.made["settings"] == {
        "console": "off",
        "disable_code": True,
        "disable_git": True,
        "finish_timeout": 60.0,
    }
    assert run.metrics == [("train/global_step", None), ("*", "train/global_step")]
    assert run.logged == [
        {"eval/loss": 4.0, "train/global_step": 0},
        *({**named(n), "train/global_step": n} for n in (1, 2)),
        {"eval/loss": 2.0, "train/global_step": 2},
    ]
    assert run.finished == 1


def test_wandb_project_of_the_environment_wins(fake, folder, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    a_session(Params(report_to="wandb"), folder)
    assert fake[0].made["project"] == "mine"


def test_a_resumed_session_is_the_same_run_and_a_forced_one_another(fake, folder):
    def places():
        tensorboard, trackio, wandb = fake[-3:]
        return [pathlib.Path(tensorboard.made[0]).name, trackio.made["name"], wandb.made["id"]]

    for start, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        for kind in ("tensorboard", "trackio", "wandb"):
            a_session(Params(report_to=kind), folder, start, steps)
        assert places() == ["demo-1a2b"] * 3
        assert fake[-3].made[1] == start + 1, (
            "what lies past the checkpoint is hidden, its own line is not"
        )
    (folder / "metrics.attempt1.jsonl").touch()
    for kind in ("tensorboard", "trackio", "wandb"):
        a_session(Params(report_to=kind), folder)
    assert places() == ["demo-1a2b-1"] * 3


@pytest.mark.parametrize("kind", ["tensorboard", "trackio", "wandb"])
@pytest.mark.parametrize(
    "error",
    [ModuleNotFoundError("No module named 'it'"), AttributeError("numpy has no such thing")],
)
def test_a_missing_or_broken_package_says_what_to_install(kind, error, folder, monkeypatch):
    def fails(name, *rest):
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(UserError, match=re.escape(str(error))) as told:
        trackers.start_tracker(Params(report_to=kind), folder)
    assert all(
        words in str(told.value)
        for words in (
            f"report_to is {kind}",
            "pip install -r requirements-trackers.txt",
            f"pip install {kind}",
            "report_to: none",
        )
    )
    assert (ROOT / "requirements-trackers.txt").exists()


@pytest.mark.parametrize("kind", ["tensorboard", "trackio", "wandb"])
@pytest.mark.parametrize("event", ["session", "step", "end"])
def test_a_tracker_that_fails_warns_once_and_stops_nothing(
    kind, event, fake, folder, monkeypatch, capsys
):
    calls = []

    def fails(*a, **k):
        calls.append(a)
        raise OSError(28, "No space left on device")

    run, names = {
        "tensorboard": (FakeWriter, ("SummaryWriter", "flush", "close")),
        "trackio": (FakeTrackioRun, ("init", "log", "finish")),
        "wandb": (FakeWandbRun, ("init", "log", "finish")),
    }[kind]
    place = sys.modules[trackers.MODULES[kind]] if event == "session" else run
    monkeypatch.setattr(place, names[("session", "step", "end").index(event)], fails)
    report = a_session(Params(report_to=kind), folder)
    report("step", step(3))
    report("end", {})
    out = capsys.readouterr()
    assert out.out == (
        f"{kind} failed and will receive no more lines; training goes on, and metrics.jsonl has every line. "
        f"OSError: [Errno 28] No space left on device\n"
    )
    assert not out.err
    assert len(calls) == 1, "after its failure it is not called again"


def test_an_interrupt_is_not_swallowed(fake, folder):
    report = trackers.start_tracker(Params(report_to="wandb"), folder)
    report("session", SESSION)
    fake[0].broken = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        report("step", step(1))


def test_every_line_of_a_real_ledger_is_taken(fake, folder, capsys):
    entries = ledger.read_ledger(ROOT / "runs" / "examples" / "demo" / "metrics.jsonl")
    report = trackers.start_tracker(Params(report_to="wandb"), folder)
    for entry in entries:
        report(entry["event"], {k: v for k, v in entry.items() if k not in ("event", "session")})
    sent = [e for e in entries if e["event"] in ("step", "eval")]
    assert [line["train/global_step"] for line in fake[0].logged] == [e["step"] for e in sent]
    assert [line.get("train/loss", line.get("eval/loss")) for line in fake[0].logged] == [
        e.get("loss", e.get("eval_loss")) for e in sent
    ]
    assert not capsys.readouterr().out


# --------------------------------------------------------------------------------------------------
# the real ones


def run_python(code, folder, **environment):
    """In a process of its own: wandb and trackio read the environment once and keep threads and a service."""
    head = (
        "import os, pathlib, sys\nfrom helpers.tracker_session import *\n"
        "from lib.params import Params\nfrom lib.training import trackers\n"
        "folder = pathlib.Path(sys.argv[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + code, str(folder)],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "HOME": str(folder.parent),
            **environment,
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout, done.stdout
    return done.stdout


@pytest.mark.filterwarnings("ignore")
def test_real_tensorboard_shows_a_repeated_step_once(folder):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_session(Params(report_to="tensorboard"), folder, 0, (1, 2, 3), end=False)
    report = trackers.start_tracker(Params(report_to="tensorboard"), folder)
    report("session", {**SESSION, "start_step": 2})
    for number in (3, 4):
        report("step", step(number, loss=20.0))
    found = EventAccumulator(str(folder / "tensorboard" / "demo-1a2b")).Reload()
    assert [(e.step, e.value) for e in found.Scalars("train/loss")] == [
        (1, 2.5),
        (2, 2.5),
        (3, 20.0),
        (4, 20.0),
    ]
    assert [(e.step, e.value) for e in found.Scalars("eval/loss")] == [(0, 4.0)], (
        "the one at step 3 was hidden with its step"
    )
    assert set(found.Tags()["scalars"]) == {*named(1), "eval/loss"}
    assert (
        b"report_to: tensorboard"
        in found.Tensors("params/text_summary")[0].tensor_proto.string_val[0]
    )


def test_real_trackio_keeps_one_run_in_the_folder(folder):
    pytest.importorskip("trackio")
    for start, steps in ((0, (1, 2)), (2, (3, 4))):
        run_python(f"a_session(Params(report_to='trackio'), folder, {start}, {steps})", folder)
    assert (folder / "trackio" / "medrescue-tuning.db").exists()
    out = run_python(
        "from trackio.sqlite_storage import SQLiteStorage as S\nlogs = S.get_logs('medrescue-tuning', 'demo-1a2b')\n"
        "print(S.get_runs('medrescue-tuning'), [(e['step'], e['train/loss']) for e in logs if 'train/loss' in e])\n"
        "print([(e['step'], e['eval/loss']) for e in logs if 'eval/loss' in e])\n"
        "print(S.get_run_config('medrescue-tuning', 'demo-1a2b')['report_to'])",
        folder,
        TRACKIO_DIR=str(folder / "trackio"),
    )
    assert out.splitlines() == [
        "['demo-1a2b'] [(1, 2.5), (2, 2.5), (3, 2.5), (4, 2.5)]",
        "[(0, 4.0), (2, 2.0), (4, 2.0)]",
        "trackio",
    ]


def test_real_wandb_offline_needs_no_network_and_writes_no_key(folder):
    pytest.importorskip("wandb")
    key = "0123456789" * 4
    run_python(
        "a_session(Params(report_to='wandb', lora_r=17), folder)",
        folder,
        WANDB_MODE="offline",
        WANDB_API_KEY=key,
    )
    written = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}
    (log,) = (data for path, data in written.items() if path.name == "run-demo-1a2b.wandb")
    for words in (
        b"train/global_step",
        b"train/samples_per_second",
        b"eval/loss",
        b"lora_r",
        b"medrescue-tuning",
    ):
        assert words in log
    assert not any(key.encode() in data for data in written.values())
