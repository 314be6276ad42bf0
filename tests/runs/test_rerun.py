"""Repeating a job from its record: pinned, compared with the record, with a true answer to whether the result is the same.

.venv/bin/python -m pytest tests/runs/test_rerun.py
"""

import hashlib
import json

import pytest

from helpers import evil_run
from lib import params
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.pages import report
from lib.params import keeping
from lib.record import run_folder
from lib.runs import rerun, run_job

COMMIT = "0123456789abcdef"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a finished training in a runs folder of its own, from another commit."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    folder = evil_run.make(tmp_path, "job")
    (folder / "params.yaml").write_text(params.to_yaml(params.load_job("params/cpu.yaml")))
    change(
        folder,
        lambda run: run["fingerprints"].update(
            dataset=sources.hash_sources(params.load_job("params/cpu.yaml"))
        ),
    )
    change(
        folder,
        lambda run: run["stages"]["train"].update(
            artifacts=[{"path": "adapter/adapter_model.safetensors", "bytes": 1, "sha256": "aa"}]
        ),
    )
    return folder


def change(folder, how):
    run = json.loads((folder / "run.json").read_text())
    how(run)
    (folder / "run.json").write_text(json.dumps(run))


def repeated(folder, monkeypatch, **more):
    """What rerun asks of the runner, which here only makes the run."""
    asked = []

    def run(argv):
        asked.extend(argv)
        target = evil_run.make(folder.parent, argv[argv.index("--run") + 1], **more)
        change(
            target,
            lambda run: run["stages"].update(
                json.loads((folder / "run.json").read_text())["stages"]
            ),
        )
        return 0

    monkeypatch.setattr(run_job, "main", run)
    assert rerun.repeat_run("job") == 0
    return asked


def test_the_same_job_in_a_folder_of_its_own_and_what_differs_is_named(folder, monkeypatch, capsys):
    asked = repeated(folder, monkeypatch)
    assert asked == ["train", "--params", str(folder / "params.yaml"), "--run", "job-rerun"], (
        "export was not finished, so it is not repeated"
    )
    said = capsys.readouterr().out
    for text in (
        "commit: recorded 0123456789ab, now ",
        "uncommitted changes (they were not kept)",
        "torch: recorded 2.13.0, now ",
        "the same result as job",
        "trained weights: the same",
        "training loss: the same in all 3 steps",
        "held-out loss after: the same, 3.5000",
    ):
        assert text in said, text
    told = json.loads((folder.parent / "job-rerun" / "rerun.json").read_text())
    assert told["same"] is True
    assert (
        "A repetition of job: the same result"
        in (folder.parent / "job-rerun" / "report.html").read_text()
    )


def test_another_result_is_called_another(folder, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda folder: None)
    repeated(folder, monkeypatch, data="other rows", after=3.4)
    said = capsys.readouterr().out
    assert "not the same result as job" in said
    assert "prepared rows: different" in said
    assert "held-out loss after: 3.5000, now 3.4000 (-0.1)" in said


def test_a_loss_or_an_adapter_that_differs_is_found(folder):
    old, new = report.gather_records(folder), report.gather_records(folder)
    assert rerun.compare_results(old, new)[0] is True
    new["entries"][3] = {**new["entries"][3], "loss": 2.8 + 1e-9}
    same, said = rerun.compare_results(old, new)
    assert same is False
    assert "different in 1 of 3 steps, first at step 2, by 1e-09" in " ".join(said)
    new = report.gather_records(folder)
    new["run"]["stages"]["train"]["artifacts"] = [
        {"path": "adapter/adapter_model.safetensors", "bytes": 1, "sha256": "bb"}
    ]
    assert rerun.compare_results(old, new)[0] is False
    new["run"]["stages"]["train"]["artifacts"] = []
    same, said = rerun.compare_results(old, new)
    assert same is False
    assert "trained weights: not recorded in both" in said


def test_revisions_of_the_record_are_pinned(folder):
    told = report.gather_records(folder)
    assert rerun.pin_revisions(told) == []
    told["run"]["fingerprints"]["base_commit"] = "b" * 40
    (folder / "data").mkdir()
    (folder / "data" / "data_card.json").write_text(
        json.dumps({"sources": [{"dataset": "owner/set", "commit": "d" * 40}]})
    )
    told["job"] = params.check_values({"dataset": "owner/set"}, "test")
    assert params.parse_overrides(rerun.pin_revisions(told)[1]) == {
        "base_revision": "b" * 40,
        "dataset_revision": "d" * 40,
    }
    alone = {"dataset": "owner/set", "config": "c", "revision": "main"}
    told["job"] = params.check_values({"dataset": alone}, "test")
    assert params.parse_overrides(rerun.pin_revisions(told)[1])["dataset"] == {
        **alone,
        "revision": "d" * 40,
        "weight": 1.0,
        "max_rows": 0,
        "columns": {},
    }
    (folder / "data" / "data_card.json").write_text(
        json.dumps({"sources": [], "forgetting": {"dataset": "owner/other", "commit": "e" * 40}})
    )
    told["job"] = params.check_values({"forgetting": "owner/other"}, "test")
    pinned = params.parse_overrides(rerun.pin_revisions(told)[1])["forgetting"]
    assert (pinned["dataset"], pinned["revision"]) == ("owner/other", "e" * 40)
    mixed = [{"dataset": "owner/set", "max_rows": 5}, {"dataset": "bundled:first-aid"}]
    (folder / "data" / "data_card.json").write_text(
        json.dumps({"sources": [{"commit": "d" * 40}, {"commit": None}]})
    )
    told["job"] = params.check_values({"dataset": mixed}, "test")
    pinned = params.check_values(
        {**told["job"].model_dump(), **params.parse_overrides(rerun.pin_revisions(told)[1])}, "test"
    )
    assert [(s.dataset, s.revision, s.max_rows) for s in sources.list_sources(pinned)] == [
        ("owner/set", "d" * 40, 5),
        ("bundled:first-aid", "", 0),
    ]


def test_changed_data_an_unfinished_run_and_no_run_are_refused(folder, capsys):
    with pytest.raises(UserError, match="`` is not one run"):
        rerun.repeat_run("")
    with pytest.raises(UserError, match="`nothing` is not a run"):
        rerun.repeat_run("nothing")
    change(folder, lambda run: run["fingerprints"].update(dataset="other"))
    with pytest.raises(UserError, match="have changed since it was prepared .sha256 other"):
        rerun.repeat_run("job")
    change(folder, lambda run: run["stages"]["train"].update(status="failed"))
    with pytest.raises(UserError, match="no finished training to repeat .its state: train failed"):
        rerun.repeat_run("job")


def test_a_parameter_the_record_lacks_is_named_with_its_default(folder):
    kept, _, _ = (
        (folder / "params.yaml").read_text().partition(keeping.SEAL)
    )  # as a version that did not know it wrote and sealed it
    text = "".join(
        line for line in kept.splitlines(keepends=True) if not line.startswith("use_dora:")
    )
    (folder / "params.yaml").write_text(
        f"{text}{keeping.SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n"
    )
    now = {
        "commit": COMMIT,
        "dirty": False,
        "packages": {"torch": "2.13.0"},
        "hardware": json.loads((folder / "run.json").read_text())["hardware"],
    }
    assert rerun.find_differences(report.gather_records(folder), now) == [
        "that checkout had uncommitted changes (they were not kept)",
        "not in the record, so today's defaults apply: use_dora=false",
    ]
    assert run_folder.runs_folder() == folder.parent
