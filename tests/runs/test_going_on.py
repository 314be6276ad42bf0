"""A run goes on when what it does not read has changed: its sources, its name, its place, the command.

.venv/bin/python -m pytest tests/runs/test_going_on.py
"""

import os
import shutil

import pytest

from lib.record import run_record


def attempts(tree):
    return [len(tree.stage(stage)["attempts"]) for stage in run_record.STAGES]


# --------------------------------------------------------------------------------------------------
# the sources of a run that is prepared


def append_a_row(tree):
    with open(tree.root / "rows.jsonl", "a") as file:
        file.write('{"question": "q2", "answer": "a2"}\n')


def delete_the_data(tree):
    (tree.root / "rows.jsonl").unlink()


def edit_the_safety_set(tree):
    with open(tree.root / "lib/medical/safety.jsonl", "a") as file:
        file.write(" ")


CHANGES = {
    append_a_row: "the data (rows.jsonl) changed",
    delete_the_data: "a source cannot be read any more: dataset `rows.jsonl` does not exist",
    edit_the_safety_set: "the safety set (bundled:safety) changed",
}


@pytest.fixture
def with_parts(done):
    """A finished run as the prepare notebook records it: with a hash of each of its sources."""
    parts = "from lib.data.reading import source_changes, sources\nresult, fingerprints = 'rows', {'dataset': sources.hash_sources(job)}\nrun.data['sources'] = source_changes.hash_parts(job)\n"
    (done.root / "prepare.py").write_text(parts)
    assert done.make_run("prepare", "--force")[0] == 0
    return done


@pytest.mark.parametrize(
    "change",
    [
        append_a_row,
        pytest.param(delete_the_data, marks=pytest.mark.slow),
        pytest.param(edit_the_safety_set, marks=pytest.mark.slow),
    ],
)
def test_a_changed_source_is_told_and_recorded_and_the_run_goes_on(with_parts, change):
    tree, before = with_parts, attempts(with_parts)
    change(tree)
    code, out, err = tree.make_run("export", "--set", "gguf_types=[q8_0,f16]", params="")
    assert (code, err) == (0, ""), out + err
    assert f"note: since run `job` was prepared, {CHANGES[change]}" in out
    assert "`make prepare FORCE=1 RUN=job`" in out
    assert attempts(tree) == [before[0], before[1], before[2] + 1], "export alone"
    assert tree.record()["sources_changed"].startswith(CHANGES[change])


@pytest.mark.slow
def test_training_of_several_sessions_survives_another_commit_and_an_edited_safety_set(with_parts):
    """As in Colab, where every session clones anew."""
    tree = with_parts
    (tree.root / "train.py").write_text("raise KeyboardInterrupt('stopped after step 3')")
    tree.make_run("train", "--force")
    (tree.run / "checkpoints").mkdir()
    (tree.run / "metrics.jsonl").write_text("three steps\n")
    edit_the_safety_set(tree)
    with open(tree.root / "lib/training/loop.py", "a") as file:
        file.write("# another commit\n")
    (tree.root / "train.py").write_text("result, fingerprints = 'adapter', {}\n")
    code, out, err = tree.make_run("train")
    assert (code, err) == (0, ""), out + err
    assert (tree.run / "checkpoints").exists()
    assert (tree.run / "metrics.jsonl").read_text() == "three steps\n"


def test_an_older_record_says_that_one_of_the_sources_changed(done):
    append_a_row(done)
    code, out, _ = done.make_run("run")
    assert code == 0
    assert "the data (rows.jsonl) or the exam (bundled:exam) or the safety set" in out


@pytest.mark.slow
def test_the_changed_source_is_prepared_on_request_and_training_starts_over(with_parts):
    append_a_row(with_parts)
    (with_parts.root / "prepare.py").write_text(
        "from lib.data.reading import sources\nresult, fingerprints = 'other', {'dataset': sources.hash_sources(job)}\n"
    )
    assert with_parts.make_run("run")[0] == 0
    assert "sources_changed" in with_parts.record()
    assert with_parts.make_run("prepare", "--force", params="")[0] == 0
    assert not with_parts.record().get("sources_changed")
    assert with_parts.stage("train")["status"] == "pending"


def test_damaged_rows_of_changed_sources_are_not_made_again_in_silence(with_parts):
    """Other rows would throw the training away."""
    append_a_row(with_parts)
    (with_parts.run / "data/result.txt").write_text("flipped")
    before = with_parts.record()
    code, _, err = with_parts.make_run("run")
    assert code == 2
    assert "the prepared rows of run `job` are damaged" in err
    assert "make run FORCE=1 RUN=job" in err
    assert with_parts.record()["stages"] == before["stages"]


def test_sources_that_prepare_needs_must_be_there(tree):
    delete_the_data(tree)
    code, _, err = tree.make_run("run")
    assert code == 2
    assert "rows.jsonl" in err
    assert not tree.run.exists()


# --------------------------------------------------------------------------------------------------
# PARAMS and SET that nobody remembers


@pytest.mark.slow
def test_the_name_of_a_run_is_enough_to_go_on(tree):
    first = ("--set", "learning_rate=0.25 gguf_types=[f16]")
    assert tree.make_run("train", *first)[0] == 0
    code, out, err = tree.make_run("export", params="")
    assert (code, err) == (0, ""), out + err
    assert "parameters: the run's own, runs/job/params.yaml" in out
    assert attempts(tree) == [1, 1, 1]
    assert (tree.run / "gguf/result.txt").read_text() == "f16"
    code, out, err = tree.make_run("export", "--set", "gguf_types=[q4_0]", params="")
    assert (code, err) == (0, ""), out + err
    assert "the run's own, runs/job/params.yaml and SET" in out
    assert (tree.run / "gguf/result.txt").read_text() == "q4_0"
    assert attempts(tree) == [1, 1, 2]


def test_a_forgotten_set_is_refused_and_the_message_knows_the_way(done):
    done.make_run("train", "--force", "--set", "learning_rate=0.25")
    code, _, err = done.make_run("export")
    assert code == 2
    assert "learning_rate: recorded 0.25, now 2e-05" in err
    assert "`make run RUN=job` alone, without PARAMS and SET, continues" in err
    assert "params_file = 'runs/job/params.yaml'" in err


def test_a_new_run_without_params_has_the_defaults_file(tree):
    (tree.root / "params/cpu.yaml").write_text((tree.root / "params/job.yaml").read_text())
    code, out, err = tree.make_run("prepare", params="", name="new")
    assert code == 0, out + err
    assert "parameters: the run's own" not in out


def test_the_own_params_file_of_a_run_means_that_run(done):
    code, out, _ = done.make_run("run", params="runs/job/params.yaml", name="")
    assert code == 0
    assert out.count("nothing to do") == 3


@pytest.mark.slow
def test_a_new_run_names_those_of_the_same_file(tree):
    assert tree.make_run("prepare", "--set", "max_rows=5", name="")[0] == 0
    [first] = [path.name for path in (tree.root / "runs").iterdir()]
    _, out, _ = tree.make_run("prepare", name="")
    assert f"a new run; of other parameters, but the same file: {first}" in out


@pytest.mark.parametrize("command", ["report", "ask"])
def test_a_run_that_nobody_named_is_not_called_missing(here, command, capsys):
    from lib.runs.run_job import main

    assert main([command, "--question", "q"]) == 2
    err = capsys.readouterr().err
    assert f"Which run? Without RUN=, `make {command}` means the run of the default" in err


# --------------------------------------------------------------------------------------------------
# renamed and moved


def test_a_renamed_folder_is_the_same_run_under_its_new_name(done):
    new = done.run.with_name("better-name")
    done.run.rename(new)
    done.run = new
    code, out, err = done.make_run("run", name="better-name", params="")
    assert (code, err) == (0, ""), out + err
    assert out.count("nothing to do") == 3
    assert done.record()["run"] == "better-name"


@pytest.mark.parametrize("given", ["absolute", "relative", "with a slash"])
def test_a_run_elsewhere_is_named_by_its_path(done, tmp_path, given):
    elsewhere = tmp_path / "usb" / "job"
    elsewhere.parent.mkdir()
    shutil.move(done.run, elsewhere)
    done.run = elsewhere
    names = {
        "absolute": str(elsewhere),
        "relative": os.path.relpath(elsewhere, done.root),
        "with a slash": f"{elsewhere}/",
    }
    code, out, err = done.make_run("run", name=names[given], params="")
    assert (code, err) == (0, ""), out + err
    assert out.count("nothing to do") == 3
    assert not (done.root / "runs" / "job").exists()


# --------------------------------------------------------------------------------------------------
# what a stopped stage says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("prepare", "reads the data again"),
        ("train", "continues from the last good checkpoint"),
        ("export", "exports what was trained again"),
    ],
)
def test_ctrl_c_says_what_the_same_command_does(tree, stage, words):
    (tree.root / f"{stage}.py").write_text("raise KeyboardInterrupt")
    code, _, err = tree.make_run("run")
    assert code == 130
    assert f"The same command {words}" in err
    assert ("checkpoint" in err) is (stage == "train")
