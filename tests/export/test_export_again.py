"""A run exported again: what is recorded, shown and pushed is what this export made and checked.

python -m pytest tests/export/test_export_again.py
"""

import shutil

import pytest

from helpers import adapters, export_by_cells
from helpers.export_by_cells import export, listed, record, results
from helpers.push_case import GGUF, LORA, MERGED, TO
from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.exam import take
from lib.export.parity import compare, verdicts
from lib.model import device, llama
from lib.pages import card, headline, report
from lib.record import run_record
from lib.runs import ask

pytestmark = pytest.mark.slow  # each export takes 10 s


@pytest.fixture(scope="module")
def adapter(tiny_gemma3n, tmp_path_factory):
    return adapters.save_random(tiny_gemma3n, tmp_path_factory.mktemp("other") / "adapter")


@pytest.fixture(scope="module")
def first(tiny_gemma3n, trained, tmp_path_factory):
    """A run on a base of its own that was exported once, as q8_0; copy before changing."""
    top = tmp_path_factory.mktemp("again")
    base = shutil.copytree(tiny_gemma3n, top / "base")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch, top)
        folder = export_by_cells.make_trained(top / "job", base, trained[0])
        export(folder)
    return folder


def prepare(patch, runs):
    patch.setenv("MEDRESCUE_RUNS", str(runs))
    patch.setattr(run_record, "hardware", dict)
    patch.setattr(device, "set_threads", lambda: 1)
    export_by_cells.make_less(patch)


@pytest.fixture
def job(first, tmp_path, monkeypatch):
    """A copy of that run and of its base, which tests may change."""
    prepare(monkeypatch, tmp_path / "runs")
    shutil.copytree(first.parent, tmp_path / "runs")
    folder = tmp_path / "runs" / "job"
    values = params.load_recorded(folder).model_dump() | {"base_model": str(folder.parent / "base")}
    (folder / "params.yaml").write_text(params.to_yaml(params.check_values(values, "test")))
    yield folder
    files.unlock_folder(folder)


def on_disk(folder):
    return sorted(path.name for path in (folder / "gguf").glob("*.gguf"))


def assert_as_recorded(folder):
    entry = record(folder)["stages"]["export"]
    assert entry["status"] == "finished"
    assert files.find_damage(folder, entry["artifacts"]) == ""
    made = {path.relative_to(folder).as_posix() for path in (folder / "gguf").rglob("*")}
    assert made <= {a["path"] for a in entry["artifacts"]}, "a file that the record does not name"


def test_the_record_lists_what_the_export_made_and_the_adapter_stays_trains(first):
    assert_as_recorded(first)
    assert listed(first) == on_disk(first) == ["job-q8_0.gguf"]
    paths = {a["path"] for a in record(first)["stages"]["export"]["artifacts"]}
    assert {"adapter/README.md", "adapter/ask.py", "adapter/BASE_SHA256SUMS"} <= paths
    assert "merged/model.safetensors" in paths
    assert not {f"adapter/{name}" for name in export_by_cells.ADAPTER} & paths
    assert not [a for a in results(first)["artifacts"] if a["path"].endswith("README.md")]


def test_a_push_that_failed_goes_on_and_one_is_added_to_a_finished_run(job, served):
    assert record(job)["stages"]["export"]["status"] == "finished"
    served.fail("PUT", "/lfs/", 500, skip=1)
    with pytest.raises(UserError, match="The same command continues"):
        export(job, push_to=TO)  # added later
    assert len(served.repos) < 3
    assert record(job)["stages"]["export"]["status"] == "running", "nobody says finished"
    served.failures.clear()
    export(job, push_to=TO)  # the same command
    assert_as_recorded(job)
    assert set(served.repos) == {LORA, MERGED, GGUF}
    before = len(served.received)
    export(job, push_to=TO)  # again, as FORCE=1 does
    assert served.received[before:] == [], "the same weights are not sent again"
    held = served.repos[GGUF].files
    assert {"job-q8_0.gguf", "README.md", "Modelfile", "SHA256SUMS"} <= set(held)
    assert held["job-q8_0.gguf"] == (job / "gguf" / "job-q8_0.gguf").read_bytes()


def test_another_type_after_a_training_leaves_nothing_of_the_old_adapter(
    job, adapter, served, monkeypatch
):
    old = (job / "gguf" / "job-q8_0.gguf").read_bytes()
    export_by_cells.train(job, job.parent / "base", adapter)
    assert "export" not in files.read_json(job / "results.json", "results"), "of another adapter"
    assert not (job / "gguf").exists()
    assert (job / "earlier" / "gguf" / "job-q8_0.gguf").read_bytes() == old
    with pytest.raises(UserError, match="export of run `job` is pending"):
        ask.find_gguf(job)
    export(job, gguf_types=["q4_0"], push_to=TO)
    assert_as_recorded(job)
    assert listed(job) == on_disk(job) == ["job-q4_0.gguf"]
    found = files.read_json(job / "results.json", "results")
    assert headline.smallest_gguf(found)[1] == "gguf/job-q4_0.gguf"
    assert "q8_0" not in card.render_card(job, "gguf")
    assert "job-q8_0" not in report.write_report(job).read_text(encoding="utf-8")
    assert "job-q8_0.gguf" not in served.repos[GGUF].files
    assert ask.find_gguf(job)[1].name == "job-q4_0.gguf"
    assert (job / "earlier" / "gguf" / "job-q8_0.gguf").read_bytes() == old
    assert not (job / "earlier" / "merged").exists()


def test_an_adapters_gguf_that_is_no_longer_made_is_not_recommended(job, served):
    export(job, lora_gguf=True, push_to=TO)
    assert listed(job) == ["job-lora.gguf", "job-q8_0.gguf"]
    assert "--lora job-lora.gguf" in (job / "gguf" / "README.md").read_text()
    assert "job-lora.gguf" in served.repos[GGUF].files
    export(job, lora_gguf=False, push_to=TO)
    assert_as_recorded(job)
    assert listed(job) == on_disk(job) == ["job-q8_0.gguf"]
    assert (job / "earlier" / "gguf" / "job-lora.gguf").is_file()
    for part in ("adapter", "gguf"):
        assert "lora.gguf" not in (job / part / "README.md").read_text()
    assert "job-lora.gguf" not in served.repos[GGUF].files, "this run sent it, and takes it back"


def test_a_broken_file_has_another_name_and_the_report_says_that_it_failed(job, monkeypatch):
    monkeypatch.setattr(verdicts, "SAME_KL", 0.0)
    with pytest.raises(UserError, match=r"job-q8_0\.gguf\.refused is broken"):
        export(job)
    assert sorted(path.name for path in (job / "gguf").iterdir()) == ["job-q8_0.gguf.refused"]
    assert (job / "earlier" / "gguf" / "job-q8_0.gguf").is_file(), "of the export before"
    found = results(job)
    assert found["parity"]["q8_0"]["verdict"] == compare.FAILED
    assert found["parity"]["q8_0"]["kl_mean"] > 0
    assert headline.smallest_gguf(files.read_json(job / "results.json", "results")) is None
    page = report.write_report(job).read_text(encoding="utf-8")
    assert "q8_0 failed its comparison and is refused" in page
    assert "distribution parity of the GGUF" not in page, "it was measured"
    with pytest.raises(UserError, match="so there is no verified GGUF"):
        ask.find_gguf(job)
    monkeypatch.undo()


def test_a_base_that_was_replaced_after_training_is_refused_by_export_and_exam(
    job, monkeypatch, capsys
):
    weights = job.parent / "base" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1  # the same size, and the same first and last MiB
    weights.write_bytes(data)
    before = listed(job)
    with pytest.raises(
        UserError,
        match=r"(?s)is not the one this run was trained on: model\.safetensors differs "
        r"\(sha256 \w{12}, recorded \w{12}\)\.\nPut the recorded files back, or train on",
    ):
        take.examine_run(job, "bundled:safety")
    with pytest.raises(UserError, match="is not the one this run was trained on"):
        export(job, gguf_types=["q4_0"])
    assert record(job)["stages"]["export"]["status"] in ("running", "failed")
    assert on_disk(job) == before, "nothing was made, and the files are still this adapter's"
    files.unlock_folder(job)
    with pytest.raises(UserError, match="so there is no verified GGUF"):
        ask.find_gguf(job)


def test_make_ask_reads_no_base_and_refuses_a_gguf_of_another_adapter(job, monkeypatch):
    shutil.rmtree(job.parent / "base")
    monkeypatch.setattr(llama, "load_gguf", lambda *_, **__: pytest.fail("loaded"))
    assert ask.find_gguf(job)[1].name == "job-q8_0.gguf"
    changed = record(job)
    changed["stages"]["train"]["output"] = "another adapter"
    files.write_json(job / "run.json", changed, sealed=True)
    with pytest.raises(UserError, match="trained again since its export"):
        ask.find_gguf(job)
    with pytest.raises(UserError, match="its export was made from other weights"):
        take.examine_run(job, "bundled:safety")
