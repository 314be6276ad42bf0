"""What is skipped, what runs again; a killed runner, and two at once.

.venv/bin/python -m pytest tests/runs/test_stages.py
"""

import os
import signal
import socket

import pytest

from helpers import standin
from lib.record import run_record


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
        "from lib.data.reading import sources\nresult, fingerprints = 'other rows', {'dataset': sources.hash_sources(job)}\n"
    )
    code, out, err = done.make_run("run")
    assert code == 0
    assert "prepare: was finished, but data/result.txt is missing" in out
    assert "train was made from another result of prepare" in out
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


# --------------------------------------------------------------------------------------------------
# a killed runner, and two at once


def test_a_killed_runner_is_corrected_by_the_next_command(tree):
    (tree.root / "prepare.py").write_text(standin.WAIT)
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
    assert standin.cell_states(earlier) == ["completed"] * standin.WORK + ["failed", "pending"]
    assert earlier["metadata"]["papermill"]["exception"] is True
    assert earlier["cells"][first["cell"] - 1]["outputs"][-1]["ename"] == "Interrupted"
    assert set(standin.cell_states(tree.executed("prepare.ipynb"))) == {"completed"}


@pytest.mark.slow
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
            "prepare", before="from lib.record import run_folder\nrun_folder.ORPHAN_SECONDS = 0.5"
        )
        assert code == 2
        assert f"process {process.pid} on {socket.gethostname()} (prepare, since" in err
        assert f"process {kernel}, which it started, still runs" in err
        assert tree.stage("prepare")["status"] == "running"
    finally:
        os.kill(kernel, signal.SIGKILL)
    (tree.root / "prepare.py").write_text("result, fingerprints = 'rows', {}")
    assert tree.make_run("prepare")[0] == 0


@pytest.mark.slow
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
