"""The runner: every way a stage can end leaves a true record; who waits, who is refused, what is skipped.

.venv/bin/python -m pytest tests/test_runs.py
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import psutil
import pytest

from helpers import standin
from lib import params
from lib.common import files, machine
from lib.common.errors import UserError
from lib.data import sources
from lib.params import reading
from lib.record import run_folder, run_record
from lib.runs import notebook as notebook_module
from lib.runs import stages
from lib.runs.run_job import main

PATIENT = "from lib.runs import notebook\nnotebook.GRACE_SECONDS = 600"
WAIT = "pathlib.Path('there').write_text(str(os.getpid()))\nwhile True: time.sleep(0.02)\n"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A tree nothing has run in; copy before use."""
    return standin.Tree.make(tmp_path_factory.mktemp("runner") / "tree")


@pytest.fixture(scope="module")
def whole(fresh, tmp_path_factory):
    """A tree with a finished run; copy before use."""
    made = fresh.copy(tmp_path_factory.mktemp("whole") / "tree")
    code, out, err = made.make_run("run")
    assert (code, err) == (0, ""), out + err
    return made


@pytest.fixture
def tree(fresh, tmp_path):
    yield (tree := fresh.copy(tmp_path / "tree"))
    tree.stop()


@pytest.fixture
def done(whole, tmp_path):
    yield (tree := whole.copy(tmp_path / "tree"))
    tree.stop()


def cell_states(notebook):
    """papermill's status of each cell, without the banners it adds."""
    return [
        c["metadata"]["papermill"]["status"]
        for c in notebook["cells"]
        if "papermill" in c["metadata"]
    ]


def assert_ended(tree, stage, status, words, cell=standin.WORK + 1):
    """Record and executed copy agree: which status, in which cell, why. `cell` counts the injected parameters, no banners."""
    entry, notebook = tree.stage(stage), tree.executed(f"{stage}.ipynb")
    last = entry["attempts"][-1]
    assert entry["status"] == status
    assert words in last["exit"]
    assert last["end"] is not None
    assert cell_states(notebook) == ["completed"] * (cell - 1) + ["failed"] + ["pending"] * (
        6 - cell
    )
    assert notebook["metadata"]["papermill"]["exception"] is True
    failed = notebook["cells"][last["cell"] - 1]
    assert failed["metadata"]["papermill"]["status"] == "failed"
    assert failed["metadata"]["papermill"]["exception"] is True
    errors = [o for o in failed["outputs"] if o["output_type"] == "error"]
    assert len(errors) == 1
    assert errors[0]["ename"] + ": " + errors[0]["evalue"] in last["exit"]
    return last


# ---------------------------------------------------------------------------------------------------------------------
# how a notebook can end


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("raise ValueError('no good')", "ValueError: no good"),
        ("os._exit(3)", "KernelDied: the kernel exited with code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "KernelDied: the kernel was killed (signal 9)"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "KernelDied: the kernel crashed (SIGSEGV)"),
    ],
)
def test_a_kernel_that_raises_or_dies_is_a_failure_in_its_cell(tree, work, words):
    (tree.root / "prepare.py").write_text(work)
    code, out, err = tree.make_run("run")
    assert code == 1
    assert words in err
    last = assert_ended(tree, "prepare", "failed", words)
    assert f"failed in cell {last['cell']} of runs/job/prepare.ipynb: {words}" in err
    assert tree.stage("train")["attempts"] == []
    assert not (tree.run / "train.ipynb").exists()


def test_a_users_mistake_found_in_a_notebook_is_shown_without_a_traceback(tree):
    (tree.root / "prepare.py").write_text(
        "from lib.common.errors import UserError\nraise UserError('row 7 has no answer.\\nGive it one.')"
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    last = assert_ended(tree, "prepare", "failed", "UserError: row 7 has no answer.\nGive it one.")
    assert (
        err
        == f"\nfailed in cell {last['cell']} of runs/job/prepare.ipynb: UserError: row 7 has no answer.\nGive it one.\n"
    )


def test_a_kernel_that_never_starts_is_a_failure_in_the_first_code_cell(tree):
    (tree.root / "ipykernel_launcher.py").write_text(
        "raise SystemExit('no kernel today')\n"
    )  # python -m finds it before the real one
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert "KernelNotStarted" in err
    assert_ended(tree, "prepare", "failed", "KernelNotStarted", cell=2)


def test_a_cell_that_takes_too_long_is_a_failure(tmp_path):
    (tmp_path / "source.ipynb").write_text(
        standin.notebook(["# slow", "import time", "time.sleep(600)", "print('never')"])
    )
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(notebook_module.StageFailed, match="^TimedOut: A cell timed out") as caught:
        notebook_module.execute(
            tmp_path / "source.ipynb", tmp_path / "out.ipynb", {}, fd, timeout=1
        )
    os.close(fd)
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    assert cell_states(notebook) == ["completed", "completed", "failed", "pending"]
    assert notebook["cells"][caught.value.cell - 1]["outputs"][-1]["ename"] == "TimedOut"
    assert notebook["metadata"]["papermill"]["exception"] is True
    assert not caught.value.interrupted


def test_what_is_no_notebook_is_a_failure_without_a_traceback(tree):
    (tree.root / "notebooks/prepare.ipynb").write_text("{")
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert tree.stage("prepare")["status"] == "failed"


def test_a_notebook_without_a_result_is_a_failure(tree):
    (tree.root / "notebooks/prepare.ipynb").write_text(
        standin.notebook(standin.cells("prepare")[:4])
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert "without recording a result" in err
    assert tree.stage("prepare")["status"] == "failed"


# ---------------------------------------------------------------------------------------------------------------------
# signals to the runner


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_reaches_the_kernel_and_is_recorded(tree, number, code):
    (tree.root / "prepare.py").write_text(
        f"try:\n    exec({WAIT!r})\nfinally:\n    pathlib.Path('saved').touch()\n"
    )
    process = tree.start("prepare")
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert (tree.root / "saved").exists()
    assert_ended(tree, "prepare", "interrupted", f"stopped by {number.name}: KeyboardInterrupt")
    assert "Traceback" not in out + err
    assert "The same command continues" in err
    (tree.root / "prepare.py").write_text("result, fingerprints = 'rows', {}")
    assert tree.make_run("prepare")[0] == 0
    assert cell_states(tree.executed("prepare.attempt1.ipynb"))[-2:] == ["failed", "pending"]


def test_a_second_signal_does_not_wait_for_a_kernel_that_holds_on(tree):
    (tree.root / "prepare.py").write_text(
        f"signal.signal(signal.SIGINT, lambda *_: pathlib.Path('asked').touch())\n{WAIT}"
    )
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(), "the cell"
        )
    )
    process.send_signal(signal.SIGINT)
    standin.wait_for((tree.root / "asked").exists, "the kernel to be asked")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert standin.gone(kernel)
    assert_ended(tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGINT")


def test_grace_ends(tree):
    (tree.root / "prepare.py").write_text(f"signal.signal(signal.SIGINT, lambda *_: None)\n{WAIT}")
    process = tree.start(
        "prepare", before="from lib.runs import notebook\nnotebook.GRACE_SECONDS = 1"
    )
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert_ended(tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGTERM")


def test_a_cell_that_lives_through_the_signal_is_the_last_one(tree):
    (tree.root / "prepare.py").write_text(
        "asked = []\nsignal.signal(signal.SIGINT, lambda *_: asked.append(1))\npathlib.Path('there').touch()\n"
        "while not asked: time.sleep(0.02)\nresult, fingerprints = 'rows', {}\n"
    )
    process = tree.start("prepare")
    standin.wait_for((tree.root / "there").exists, "the cell")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert_ended(
        tree,
        "prepare",
        "interrupted",
        "Interrupted: the run was stopped by SIGINT",
        cell=standin.WORK + 2,
    )


def test_a_signal_while_the_kernel_starts(tree):
    (tree.root / "ipykernel_launcher.py").write_text(f"import os, pathlib, time\n{WAIT}")
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(),
            "the start",
        )
    )
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert standin.gone(kernel)
    assert_ended(
        tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGTERM", cell=2
    )


def test_a_signal_that_meets_a_weak_references_callback_ends_the_run():
    """Python prints what is raised there, with a traceback, and goes on."""
    code = (
        "import os, signal, time, weakref\nfrom lib.runs import notebook\nnotebook._Stopper.install()\nclass Thing: pass\nthing = Thing()\n"
        "def callback(_):\n    os.kill(os.getpid(), signal.SIGTERM)\n    print('not at once')\n"
        "reference = weakref.ref(thing, callback)\ndel thing\ntime.sleep(60)\nprint('lived on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=standin.ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (143, "")
    assert "lived on" not in done.stdout


def test_a_signal_that_meets_the_kernels_own_code_ends_the_run(tree):
    """A KeyboardInterrupt there loses the cell's reply: the kernel waits for the next cell, ignoring signals, and we for the reply."""
    (tree.root / "prepare.py").write_text(
        "kernel, fingerprints, result = get_ipython().kernel, {}, 'rows'\nreal = kernel.session.send\n"
        "def send(stream, kind, *args, **kwargs):\n    if kind == 'execute_reply':\n        kernel.session.send = real\n"
        "        pathlib.Path('there').touch()\n        time.sleep(60)\n    return real(stream, kind, *args, **kwargs)\nkernel.session.send = send\n"
    )
    process = tree.start("prepare", before=PATIENT)
    standin.wait_for((tree.root / "there").exists, "the reply")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert_ended(tree, "prepare", "interrupted", "Interrupted: the run was stopped by SIGINT")


def test_a_signal_that_the_kernel_ignores_reaches_the_next_cell(tree):
    """Between two cells ipykernel ignores it."""
    (tree.root / "prepare.py").write_text(
        "kernel, result = get_ipython().kernel, 'rows'\nreal = kernel.pre_handler_hook\n"
        "def hook():\n    kernel.pre_handler_hook = real\n    pathlib.Path('there').touch()\n    time.sleep(2)\n    real()\nkernel.pre_handler_hook = hook\n"
        "class Slow:\n    def keys(self):\n        pathlib.Path('next').touch()\n        time.sleep(60)\nfingerprints = Slow()\n"
    )
    process = tree.start("prepare", before=PATIENT)
    standin.wait_for((tree.root / "there").exists, "the pause between two cells")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert (tree.root / "next").exists()
    assert_ended(
        tree,
        "prepare",
        "interrupted",
        "stopped by SIGTERM: KeyboardInterrupt",
        cell=standin.WORK + 2,
    )


def test_an_interrupt_of_the_kernel_alone_is_an_interruption(tree):
    (tree.root / "prepare.py").write_text("os.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    code, out, err = tree.make_run("prepare")
    assert code == 130
    assert_ended(tree, "prepare", "interrupted", "KeyboardInterrupt")


def test_a_session_that_is_over_is_not_a_failure_of_the_stage(tree):
    (tree.root / "prepare.py").write_text(
        "class SessionOver(Exception): pass\nraise SessionOver('time is up')"
    )
    code, out, err = tree.make_run("prepare")
    assert code == 1
    assert_ended(tree, "prepare", "interrupted", "SessionOver: time is up")


# ---------------------------------------------------------------------------------------------------------------------
# a killed runner, and two at once


def test_a_killed_runner_is_corrected_by_the_next_command(tree):
    (tree.root / "prepare.py").write_text(WAIT)
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(), "the cell"
        )
    )
    process.kill()
    process.wait()  # not communicate: the kernel has the pipes too
    assert tree.stage("prepare")["status"] == "running"  # nobody was left to say otherwise
    (tree.root / "prepare.py").write_text("result, fingerprints = 'rows', {}")
    code, out, err = tree.make_run("prepare")  # at once: it waits until the kernel has noticed
    assert (code, err) == (0, "")
    assert "the last attempt was cut off" in out
    assert standin.gone(kernel)
    entry = tree.stage("prepare")
    first, second = entry["attempts"]
    assert entry["status"] == "finished"
    assert "killed" in first["exit"]
    assert first["end"] is not None
    assert second["exit"] == "ok"
    earlier = tree.executed("prepare.attempt1.ipynb")
    assert cell_states(earlier) == ["completed"] * standin.WORK + ["failed", "pending"]
    assert earlier["metadata"]["papermill"]["exception"] is True
    assert earlier["cells"][first["cell"] - 1]["outputs"][-1]["ename"] == "Interrupted"
    assert set(cell_states(tree.executed("prepare.ipynb"))) == {"completed"}


def test_an_orphaned_kernel_keeps_the_lock_and_is_named(tree):
    # a stopped process cannot notice that its parent is gone
    (tree.root / "prepare.py").write_text(
        "pathlib.Path('there').write_text(str(os.getpid()))\nos.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    process = tree.start("prepare")
    kernel = int(
        standin.wait_for(
            lambda: (tree.root / "there").exists() and (tree.root / "there").read_text(), "the cell"
        )
    )
    process.kill()
    process.wait()  # not communicate: the kernel has the pipes too
    try:
        code, out, err = tree.make_run(
            "prepare", before="from lib.record import run_record\nrun_record.ORPHAN_SECONDS = 0.5"
        )
        assert code == 2
        assert f"process {process.pid} on {socket.gethostname()} (prepare, since" in err
        assert f"process {kernel}, which it had started, still runs" in err
        assert tree.stage("prepare")["status"] == "running"
    finally:
        os.kill(kernel, signal.SIGKILL)
    (tree.root / "prepare.py").write_text("result, fingerprints = 'rows', {}")
    assert tree.make_run("prepare")[0] == 0


def test_two_commands_on_one_run_and_whole_files_all_the_while(tree):
    (tree.root / "prepare.py").write_text(
        "print('x' * 30_000)\npathlib.Path('there').touch()\n"
        "while not pathlib.Path('go').exists(): time.sleep(0.02)\nresult, fingerprints = 'rows', {}\n"
    )
    process = tree.start("prepare")
    seen = 0
    while not (tree.root / "there").exists():  # every state a reader can meet is a whole one
        assert process.poll() is None
        for name in ("prepare.ipynb", "run.json"):
            if (tree.run / name).exists():
                seen += bool(tree.executed(name))
    code, out, err = tree.make_run("prepare")
    assert code == 2
    assert f"process {process.pid} on {socket.gethostname()} (prepare, since" in err
    (tree.root / "go").touch()
    while process.poll() is None:
        seen += bool(tree.executed("prepare.ipynb"))
    process.communicate()
    assert process.returncode == 0
    assert seen > 10
    assert sorted(p.name for p in tree.run.iterdir()) == [
        "data",
        "params.yaml",
        "prepare.ipynb",
        "results.json",
        "run.json",
    ]


# ---------------------------------------------------------------------------------------------------------------------
# what is skipped, what runs again


def test_a_finished_run_is_skipped_and_says_so(done):
    before = (done.run / "run.json").read_bytes()
    code, out, err = done.make_run("run")
    assert code == 0
    assert out.count("nothing to do") == 3
    assert (done.run / "run.json").read_bytes() == before


def test_the_executed_copies_name_no_path_of_this_machine(done):
    text = "".join(p.read_text() for p in [*done.run.glob("*.ipynb"), *done.run.glob("*.json")])
    assert str(standin.ROOT) not in text
    assert "/tree" not in text
    assert (
        done.executed("train.ipynb")["metadata"]["papermill"]["input_path"]
        == "notebooks/train.ipynb"
    )


def test_a_damaged_artefact_makes_its_stage_run_again_and_only_that(done):
    (done.run / "adapter/result.txt").write_text("something else")
    code, out, err = done.make_run("run")
    assert code == 0
    assert "train: was finished, but adapter/result.txt has 14 bytes, recorded" in out
    assert [len(done.stage(s)["attempts"]) for s in run_record.STAGES] == [
        1,
        2,
        1,
    ]  # the same result as before: export still fits
    (done.run / "data/result.txt").unlink()
    (done.root / "prepare.py").write_text(
        "from lib.data import sources\nresult, fingerprints = 'other rows', {'dataset': sources.fingerprint(job)}\n"
    )
    code, out, err = done.make_run("run")
    assert code == 0
    assert "prepare: was finished, but data/result.txt is missing" in out
    assert "train: was made from another result of prepare" in out
    assert [len(done.stage(s)["attempts"]) for s in run_record.STAGES] == [2, 3, 2]


def test_a_changed_export_parameter_runs_export_alone_in_place(done):
    code, out, err = done.make_run("run", "--set", "gguf_types=[f16]")
    assert code == 0
    assert "override: gguf_types = ['f16']" in out
    assert "export: `gguf_types` changed from ['q8_0'] to ['f16']" in out
    assert [len(done.stage(s)["attempts"]) for s in run_record.STAGES] == [1, 1, 2]
    assert (done.run / "gguf/result.txt").read_text() == "f16"
    assert (done.run / "export.attempt1.ipynb").exists()


def test_a_changed_training_parameter_is_refused_and_forced(done):
    (done.run / "checkpoints").mkdir()
    (done.run / "metrics.jsonl").write_text("old\n")
    before = (done.run / "run.json").read_bytes()
    code, out, err = done.make_run("train", "--set", "learning_rate=0.5")
    assert code == 2
    assert "learning_rate: recorded 2e-05, now 0.5" in err
    assert "make train FORCE=1" in err
    assert (done.run / "run.json").read_bytes() == before
    code, out, err = done.make_run("train", "--set", "learning_rate=0.5", "--force")
    assert code == 0
    assert (done.run / "metrics.attempt1.jsonl").read_text() == "old\n"
    assert not (done.run / "metrics.jsonl").exists()
    assert not (done.run / "checkpoints").exists()
    assert (done.run / "adapter/result.txt").read_text() == "adapter at 0.5"
    assert [len(done.stage(s)["attempts"]) for s in run_record.STAGES] == [1, 2, 1]
    assert done.stage("export")["status"] == "pending"


def test_a_changed_data_file_is_refused_even_when_training_is_forced(done):
    (done.root / "rows.jsonl").write_text('{"question": "q", "answer": "another"}\n')
    for words in (["run"], ["train", "--force"]):
        code, out, err = done.make_run(*words)
        assert code == 2
        assert (
            "(rows.jsonl, bundled:exam, bundled:safety) has changed since run `job` was prepared"
            in err
        )
        assert "FORCE=1" in err
    (done.root / "train.py").write_text("raise ValueError('stop here')")
    assert done.make_run("run", "--force")[0] == 1
    assert [len(done.stage(s)["attempts"]) for s in run_record.STAGES] == [2, 2, 1]


# ---------------------------------------------------------------------------------------------------------------------
# before anything starts


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fly"], "invalid choice"),
        (["run", "--bogus"], "unrecognized arguments"),
        ([], "required"),
        (["run", "--params", "params/none.yaml"], "At hand:"),
        (["run", "--set", "lerning_rate=1"], "did you mean `learning_rate`?"),
        (["run", "--run", "../other"], "cannot name a run"),
        (["report", "--run", "nothing"], "not a run"),
    ],
)
def test_wrong_usage_is_one_screen_and_exit_code_2(words, expected):
    done = subprocess.run(
        [os.sys.executable, "-m", "lib.runs", *words],
        cwd=standin.ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 15


@pytest.fixture
def here(fresh, tmp_path, monkeypatch):
    """This process as the runner of a tree of its own; no notebook is ever started."""
    tree = fresh.copy(tmp_path / "tree")
    for module in (stages, run_folder, reading, files, sources):
        monkeypatch.setattr(module, "ROOT", tree.root)
    monkeypatch.setenv("MEDRESCUE_RUNS", "runs")
    monkeypatch.setattr(
        notebook_module, "execute", lambda *_: pytest.fail("a notebook was started")
    )
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    handlers = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)
    }
    yield tree
    for number, handler in handlers.items():
        signal.signal(number, handler)


def refused(capsys, *words):
    assert main([*words, "--run", "job"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) < 15
    return err


@pytest.mark.parametrize("command", ["run", "prepare"])
def test_a_small_disk_is_an_error_before_anything_starts(here, command, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**20}))
    assert "Not enough disk for prepare" in refused(capsys, command, "--params", "params/job.yaml")
    assert not here.run.exists()


def test_all_stages_must_fit_at_the_start(here, monkeypatch, capsys):
    needs = [
        stages.disk_needed(stage, params.load_job("params/job.yaml")) for stage in run_record.STAGES
    ]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": max(needs) + 1}))
    assert "prepare, train, export" in refused(capsys, "run", "--params", "params/job.yaml")


def test_a_small_memory_is_an_error_before_training_and_export_but_not_before_prepare(
    here, monkeypatch, capsys
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**20}))
    bundled = ("--params", "params/job.yaml", "--set", "base_model=bundled:gemma-3-270m")
    for command in ("run", "train", "export"):
        assert (
            "Not enough memory for bundled:gemma-3-270m, which train and export load,"
            in refused(capsys, command, *bundled)
        )
    stages.check_machine(
        ["prepare"],
        params.load_job("params/job.yaml", "base_model=bundled:gemma-3-270m"),
        here.root,
    )


def test_a_gpu_job_without_a_gpu_names_the_way_out(here, monkeypatch, capsys):
    text = refused(capsys, "train", "--params", "params/gpu.yaml")
    assert "params/cpu.yaml" in text
    assert "load_in_4bit=true and optim=adamw_8bit" in text
    assert not here.run.exists()
    with pytest.raises(
        pytest.fail.Exception, match="a notebook was started"
    ):  # prepare needs no card
        main(["prepare", "--params", "params/gpu.yaml", "--run", "job"])
    monkeypatch.setattr(machine, "gpus", lambda: ["a card"])
    stages.check_machine(["train"], params.load_job("params/gpu.yaml"), here.root)


@pytest.mark.parametrize(
    "text", [None, "", '{"run": "job", "stag', "{}", "[]", '{"stages": {"prepare": {}}}']
)
def test_a_half_written_run_folder_is_refused_and_left_as_it_is(here, text, capsys):
    (here.run / "data").mkdir(parents=True)
    (here.run / "data/rows").write_text("precious")
    if text is not None:
        (here.run / "run.json").write_text(text)
    before = {p: p.is_file() and p.read_bytes() for p in here.run.rglob("*")}
    assert "RUN=" in refused(capsys, "run", "--params", "params/job.yaml")
    assert {p: p.is_file() and p.read_bytes() for p in here.run.rglob("*")} == before


def test_a_runs_folder_that_cannot_be_written(here, monkeypatch, capsys):
    monkeypatch.setenv("MEDRESCUE_RUNS", "rows.jsonl/runs")
    assert "MEDRESCUE_RUNS" in refused(capsys, "run", "--params", "params/job.yaml")
    monkeypatch.setenv("MEDRESCUE_RUNS", "runs")
    monkeypatch.setattr(
        os, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system"))
    )
    assert "cannot write `runs/job/run.json`: Read-only file system" in refused(
        capsys, "run", "--params", "params/job.yaml"
    )


def test_a_signal_in_the_middle_of_a_print_is_passed_on(capfd, monkeypatch):
    """Python refuses to enter a stream's buffer twice: a handler that prints may raise RuntimeError."""
    sent = []
    busy = type(
        "Busy",
        (),
        {
            "write": lambda *_: (_ for _ in ()).throw(RuntimeError("reentrant call")),
            "flush": lambda *_: None,
        },
    )()
    monkeypatch.setattr(
        notebook_module._Stopper,
        "kernel",
        type("Kernel", (), {"send_signal": sent.append, "pid": os.getpid()}),
    )
    monkeypatch.setattr(notebook_module._Stopper, "signal", None)
    monkeypatch.setattr(os.sys, "stdout", busy)
    monkeypatch.setattr(os.sys, "stderr", busy)
    try:
        notebook_module._Stopper.handle(signal.SIGTERM, None)
    finally:
        signal.alarm(0)
    assert sent == [signal.SIGINT]
    assert "SIGTERM: stopping at the next safe point" in capfd.readouterr().err


def test_the_disk_estimate_knows_the_formats():
    job = params.load_job("params/cpu.yaml")
    assert stages.disk_needed("export", job) < stages.disk_needed(
        "export", job.model_copy(update={"gguf_types": ["f16", "q8_0"]})
    )
    with pytest.raises(UserError, match="larger disk"):
        files.require_disk(standin.ROOT, 2**70, "a moon")
