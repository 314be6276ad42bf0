"""The list of runs, and pruning: a run that was pruned stays finished, says so, and what needs the freed part says what is missing.

.venv/bin/python -m pytest tests/runs/test_listing.py
"""

import datetime
import json
import os
import shutil
import socket

import pytest

from helpers import evil_run, standin
from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.exam import take
from lib.pages import report
from lib.record import run_folder, run_record
from lib.runs import listing, manage
from lib.runs.prune import free_run


def finished(folder, **more):
    """A finished run as records and a few bytes of every part."""
    for part in ("checkpoints/step-1", "merged", "adapter", "gguf"):
        (folder / part).mkdir(parents=True)
        (folder / part / "w").write_text(part * 100)
    stages = {
        s: {
            "status": "finished",
            "attempts": [
                {
                    "start": "2026-01-01T00:00:00+00:00",
                    "end": "2026-01-01T00:01:00+00:00",
                    "exit": "ok",
                }
            ],
            "artifacts": [],
            "inputs": {},
        }
        for s in run_record.STAGES
    }
    stages["train"]["artifacts"], stages["export"]["artifacts"] = (
        files.describe_files(folder, ["adapter"]),
        files.describe_files(folder, ["merged", "gguf"]),
    )
    evil_run.write(
        folder,
        {
            "run.json": {
                "run": folder.name,
                "created": "2026-01-01T00:00:00+00:00",
                "fingerprints": {},
                "stages": stages,
                **more,
            }
        },
    )
    (folder / "params.yaml").write_text(params.to_yaml(params.load_job("params/cpu.yaml")))
    return folder


@pytest.fixture
def top(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    return tmp_path


def data(folder):
    return json.loads((folder / "run.json").read_text())


def test_the_list_says_state_headline_and_size(top):
    evil_run.make(top, "evil")
    finished(top / "good")
    (top / "torn").mkdir()
    (top / "torn" / "run.json").write_text("{")
    rows = {row["run"]: row for row in listing.list_runs(listing.find_runs())}
    assert [rows[n]["state"] for n in ("good", "evil", "torn")] == [
        "finished",
        "export failed",
        "record not readable",
    ]
    assert rows["evil"]["held-out loss"] == "3.000 -> 3.500"
    assert rows["evil"]["exam"] == "2 of 4"
    assert (rows["good"]["held-out loss"], rows["good"]["exam"]) == ("not measured", "not measured")
    assert rows["good"]["age"].endswith("days")
    assert rows["good"]["size"] == show_size(top / "good")


def show_size(folder):
    return f"{sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1024:,.1f} KiB"


def test_states_of_a_run_that_runs_or_was_cut_off(top):
    run = data(finished(top / "r"))
    for stage in ("train", "export"):
        run["stages"][stage].update(status="pending", attempts=[])
    assert listing.describe_state(run) == "prepare finished"
    run["stages"]["train"].update(
        status="running", attempts=[{"pid": os.getpid(), "host": socket.gethostname()}]
    )
    assert listing.describe_state(run) == "train running"
    run["stages"]["train"]["attempts"][0].update(pid=2**22 + 1)
    assert listing.describe_state(run) == "train cut off: its process is gone"
    run["stages"]["train"]["attempts"][0].update(host="elsewhere")
    assert listing.describe_state(run) == "train running", "of another machine nothing is known"


def test_prune_shows_asks_and_frees_only_what_can_be_made_again(top, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    folder, other = finished(top / "good"), evil_run.make(top, "unfinished")
    (other / "checkpoints").mkdir()
    monkeypatch.setattr("builtins.input", lambda text: "n")
    assert manage.main(["prune"]) == 0
    said = capsys.readouterr().out
    for text in ("unfinished (export failed)", "checkpoints/", "merged/", "nothing was removed"):
        assert text in said
    assert (folder / "merged" / "w").exists()

    def nobody(text):
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    manage.main(["prune"])
    assert (folder / "merged" / "w").exists()
    monkeypatch.setattr("builtins.input", lambda text: "y")
    manage.main(["prune"])
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter",
        "gguf",
        "params.yaml",
        "run.json",
    ]
    assert (other / "checkpoints").exists()
    run = run_record.Run(folder, data(folder))
    assert run.check_finished("export") == (True, ""), "what was freed on purpose is no damage"
    assert [a["path"] for a in run.stage("export")["artifacts"] if a.get("pruned")] == ["merged/w"]
    assert [p["path"] for p in run.data["pruned"]] == ["checkpoints", "merged"]
    assert listing.describe_state(run.data) == "finished, checkpoints and merged pruned"
    (folder / "gguf" / "w").write_text("other")
    assert run.check_finished("export")[1], "damage elsewhere is still seen"
    capsys.readouterr()
    manage.main(["prune", "--yes"])
    assert "nothing to remove" in capsys.readouterr().out


def test_a_failed_run_is_pruned_if_it_is_named_and_the_cost_is_shown(top, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    folder = finished(top / "failed")
    run = run_record.Run(folder, data(folder))
    run.stage("train")["status"], run.stage("export")["status"] = "failed", "pending"
    run.save()
    assert manage.main(["prune", "--yes"]) == 0
    said = capsys.readouterr().out
    assert "failed (train failed)" in said
    assert 'RUNS="name" prunes one of them too' in said
    assert (folder / "checkpoints").exists()
    assert manage.main(["prune", "--runs", "failed", "--yes"]) == 0
    said = capsys.readouterr().out
    assert "make train, from its first step (training is failed)" in said
    assert not (folder / "checkpoints").exists()
    assert (folder / "adapter" / "w").exists()
    assert run_record.when_pruned(data(folder), "checkpoints")
    assert listing.describe_state(data(folder)) == "train failed"


def test_damaged_results_are_called_damaged_and_have_a_way_out(top):
    """`not measured` would say that nobody looked."""
    folder = evil_run.make(top, "evil")
    text = (folder / "results.json").read_text()
    files.write_json(folder / "results.json", json.loads(text), sealed=True)
    sealed = (folder / "results.json").read_text()
    (folder / "results.json").write_text(sealed.replace("3.5", "2.5", 1))
    [row] = listing.list_runs([folder])
    assert row["held-out loss"] == "results.json is damaged"
    with pytest.raises(
        UserError, match=r"(?s)does not match its seal.*make export FORCE=1 RUN=evil"
    ):
        report.gather_records(folder)
    (folder / "results.json").write_text(text)
    (folder / "exam.json").write_text("{")
    [row] = listing.list_runs([folder])
    assert (row["held-out loss"], row["exam"]) == ("3.000 -> 3.500", "exam.json is damaged")


def test_an_age_is_in_its_largest_unit_and_never_below_zero():
    now = datetime.datetime.now(datetime.UTC)
    for seconds, said in (
        (5, "5 s"),
        (600, "10 min"),
        (86400 * 3, "3 days"),
        (-86400 * 400, "later than now"),
    ):
        assert listing.format_age((now - datetime.timedelta(seconds=seconds)).isoformat()) == said
    assert listing.format_age("yesterday") == "?"


def test_a_run_in_use_or_damaged_keeps_everything(top, monkeypatch, capsys):
    folder = finished(top / "good")
    (folder / "adapter" / "w").write_text("damaged")
    assert manage.main(["prune", "--yes"]) == 0
    assert "good: kept. adapter/w" in capsys.readouterr().out
    (folder / "adapter" / "w").write_text("adapter" * 100)
    monkeypatch.setattr(run_folder, "ORPHAN_SECONDS", 0)
    monkeypatch.setattr(files, "lock_folder", lambda folder: None)
    manage.main(["prune", "--yes"])
    assert "is in use" in capsys.readouterr().out
    assert (folder / "merged" / "w").exists()
    assert "pruned" not in (folder / "run.json").read_text()


def test_killed_while_it_removes_the_record_already_says_pruned(top, monkeypatch):
    folder = finished(top / "good")

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    assert manage.main(["prune", "--yes"]) == 130
    run = run_record.Run(folder, data(folder))
    assert run.check_finished("export") == (True, "")
    assert run_record.when_pruned(run.data, "merged")


def test_the_exam_says_what_is_missing(top, monkeypatch):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    free_run(finished(top / "good"))
    with pytest.raises(UserError, match=r"merged/ was pruned .*make export FORCE=1"):
        take.examine_run(top / "good", "bundled:safety")


@pytest.mark.slow
def test_the_same_command_leaves_a_pruned_run_as_it_is_and_force_makes_it_whole(tmp_path):
    tree = standin.Tree.make(tmp_path / "tree")
    (tree.root / "export.py").write_text(
        "(run.folder / 'merged').mkdir(exist_ok=True)\n(run.folder / 'merged' / 'w').write_text('w')\nresult, fingerprints = 'g', {}\n"
    )
    notebook = tree.root / "notebooks/export.ipynb"
    notebook.write_text(notebook.read_text().replace("['gguf']", "['gguf', 'merged']"))
    assert tree.make_run("run")[0] == 0
    prune = "from lib.runs import manage\nsys.argv = ['manage', 'prune', '--yes']\nsys.exit(manage.main())"
    code, out, err = tree.make_run("run", before=prune)
    assert "merged/ removed" in out, out + err
    assert not (tree.run / "merged").exists()
    code, out, _ = tree.make_run("run")
    assert code == 0
    assert "merged/ pruned; FORCE=1 makes it again" in out
    assert len(tree.stage("export")["attempts"]) == 1
    assert tree.make_run("export", "--force")[0] == 0
    assert (tree.run / "merged" / "w").exists()
    assert not run_record.when_pruned(tree.record(), "merged")
    tree.stop()


def test_a_cell_that_failed_in_an_open_notebook_is_not_called_running():
    stages = {s: {"status": "finished", "attempts": [{}]} for s in run_record.STAGES}
    attempt = {"by": "notebook", "pid": os.getpid(), "host": socket.gethostname(), "stopped": "x"}
    stages["train"] = {"status": "running", "attempts": [attempt]}
    assert listing.describe_state({"stages": stages}) == "train stopped, its notebook is open"
    attempt["pid"] = 2**22 + 1
    assert listing.describe_state({"stages": stages}) == "train stopped"
