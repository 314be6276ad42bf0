"""report.html from records: offline, escaped, honest about what is missing; notebooks as pages; the examples rendered.

python -m pytest tests/pages/test_report.py
"""

import json
import pathlib
import re
import shutil

import pytest

from helpers import evil_run
from helpers.evil_run import EVIL
from helpers.page import Reader
from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.medical.disclaimer import DISCLAIMER
from lib.pages import card_tables, cautions, headline, report, safety_figures
from lib.record import ledger
from lib.record import run_record as record

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path):
    return evil_run.make(tmp_path)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Return the same run with its pages; do not change it."""
    folder = evil_run.make(tmp_path_factory.mktemp("runs"))
    report.write_report(folder)
    return folder


def read(path):
    page = Reader()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def offline(page, *links):
    assert not {"script", "iframe", "object", "form"} & set(page.tags)
    for link in page.links:
        assert link.startswith(("#", "data:")) or link in links, link


def test_a_file_that_is_not_as_recorded_is_the_first_warning(folder):
    record = json.loads((folder / "run.json").read_text())
    record["stages"]["train"]["notebook"] = "0" * 64
    record["stages"]["train"]["artifacts"].append(
        {"path": "samples.json", "bytes": 1, "sha256": "0"}
    )
    (folder / "run.json").write_text(json.dumps(record))
    text = " ".join(read(report.write_report(folder)).text)
    assert "train.ipynb has changed since it was executed" in text
    assert "samples.json has" in text
    assert "its contents cannot be trusted" in text


def test_a_comparison_that_failed_is_not_called_unmeasured(folder):
    results = files.read_json(folder / "results.json", "results")
    reason = "x-q8_0.gguf.refused tokenises 'a' as [1], the tokenizer as [2]"
    failed = {"verdict": "failed: the file is refused", "failed": reason}
    results["export"] = {"parity": {"q8_0": failed}, "lora": {"failed": "0.9 nats from merged"}}
    files.write_json(folder / "results.json", results)
    missing = " ".join(headline.list_unmeasured(results, {}))
    assert "distribution parity" not in missing
    assert "memory and speed of the files" in missing
    tile = headline.headline_numbers(results, {})[-1]
    assert (tile["value"], tile["note"]) == ("refused", "q8_0 failed its comparison")
    text = " ".join(read(report.write_report(folder)).text)
    assert f"q8_0 failed its comparison and is refused: {reason}" in text
    assert "the adapter's own GGUF failed its comparison and is refused: 0.9 nats" in text
    results["export"] = {}
    assert "distribution parity" in " ".join(headline.list_unmeasured(results, {}))


def test_a_sound_file_that_loses_more_by_rounding_than_others_is_a_caution(folder):
    results = files.read_json(folder / "results.json", "results")
    beyond = ["mean KL is 0.0247 nats, expected at most 0.01"]
    results["export"] = {"parity": {"q8_0": {"verdict": "close", "beyond_bounds": beyond}}}
    files.write_json(folder / "results.json", results)
    text = " ".join(read(report.write_report(folder)).text)
    assert "q8_0 is sound, but loses more by rounding" in text
    assert beyond[0] in text


def test_the_report_says_how_far_the_texts_were_reviewed(folder):
    results = files.read_json(folder / "results.json", "results")
    counts = {"draft": 3, "second reading": 4, "clinician": 2, "rejected": 0}
    results["prepare"]["review"] = {"bundled:first-aid": counts}
    files.write_json(folder / "results.json", results)
    text = " ".join(read(report.write_report(folder)).text)
    assert (
        "bundled:first-aid: 2 of 9 signed off by a clinician, 4 read a second time by a language "
        "model, 3 drafts that nobody has read a second time"
    ) in text
    results["prepare"]["review"] = {
        "bundled:first-aid": dict.fromkeys(counts, 0) | {"clinician": 9}
    }
    files.write_json(folder / "results.json", results)
    assert "signed off" not in " ".join(read(report.write_report(folder)).text)


@pytest.mark.parametrize(("language", "warned"), [("en", False), ("", False), ("es", True)])
def test_a_language_that_the_rules_cannot_read_is_a_caution(language, warned):
    job = params.Params(language=language)
    texts = cautions._warn_of_parameters(job)
    assert any("read English only: rows in es were not searched" in t for t in texts) == warned


def test_a_notebook_that_is_not_readable_is_a_warning_and_the_page_is_there(folder):
    (folder / "train.ipynb").write_text('{"cells": [')
    assert "train.ipynb` is not readable" in " ".join(read(report.write_report(folder)).text)


def test_nothing_is_fetched_and_nothing_from_data_is_markup(written):
    page = read(written / "report.html")
    offline(page, "train.html", "train.ipynb")
    assert "img" not in page.tags
    styles = (written / "report.html").read_text().split("<style")[1:]
    assert not [
        s for s in styles if "@import" in s.split("</style>")[0] or "url(" in s.split("</style>")[0]
    ]
    assert sum(EVIL in text for text in page.text) >= 8, "the text itself must be readable"


def test_a_notebook_page_keeps_text_and_tables_and_nothing_that_runs_or_loads(written):
    page = read(written / "train.html")
    offline(page, "report.html", "train.ipynb")
    assert "evil.example" not in " ".join(page.links)
    text = (written / "train.html").read_text()
    for gone in ("alert(2)", 'onerror=alert(1)>"', "url(", "scrapbook"):
        assert gone not in text.split("</style>")[-1], gone
    assert "<b>kept</b>" in text
    assert EVIL in "".join(page.text), "what was printed is there as text"
    assert re.search(r"<details><summary>code</summary>.*print", text, re.DOTALL), (
        "the code is there, folded away"
    )


def test_warnings_come_first_and_say_what_is_wrong(written):
    text = " ".join(read(written / "report.html").text)
    for expected in (
        "export is failed: ValueError",
        "uncommitted changes",
        "resumed 1 time: 2 sessions, with 3 steps run again",
        "higher after training",
        "4 rows of the data give outdated or harmful",
        "7 answers were cut",
        "1 exact and 2 near duplicates",
        "overfit: the training loss ends at 2.700",
        DISCLAIMER,
    ):
        assert expected in text, expected
    assert text.index("Read first") < text.index("held-out response loss")
    assert "+16.7%" in text


def test_headline_has_intervals_and_says_what_is_not_measured(written):
    told = report.gather_records(written)
    tiles = {one["name"]: one for one in headline.headline_numbers(told["results"], told["exams"])}
    assert tiles["held-out response loss, before → after"]["value"] == "3.000 → 3.500"
    assert "95 % interval: not measured" in tiles["held-out response loss, before → after"]["note"]
    assert tiles["perplexity of held-out answers, tuned / base"] == {
        "name": "perplexity of held-out answers, tuned / base",
        "value": "× 0.370",
        "note": "95 % 0.3 to 0.4, 3 test rows, paired",
    }
    exam = tiles[f"exam {EVIL}, right (merged)"]
    assert exam["value"] == "2 of 4"
    assert "95 % 15 to 85" in exam["note"]
    assert tiles["safety set, critical acts done"]["value"] is None
    assert tiles["training speed"]["value"] is None
    assert "not measured" in " ".join(read(written / "report.html").text)
    missing = headline.list_unmeasured(told["results"], told["exams"])
    assert "whether a clinician finds the answers safe" in missing
    assert not [m for m in missing if m.startswith("an exam")], "it was examined"
    assert safety_figures.MISSING in missing


def test_the_funnel_adds_up(folder):
    rows = report.funnel_rows(report.gather_records(folder)["results"]["prepare"])
    assert [row["left"] for row in rows] == [6, 6, 5, 3]
    assert rows[-1]["lost"] == pytest.approx(2 / 6)


def test_random_weights_harmful_answers_and_a_worse_exam_are_warned_of():
    run = {
        "stages": {
            s: {"status": "finished", "attempts": [{}]} for s in ("prepare", "train", "export")
        }
    }
    assert cautions.list_warnings(run, {}, "x") == []
    [said] = cautions.list_warnings(
        run, {"train": {"eval_loss_before": 12.9, "eval_loss_after": 12.1}}, "x"
    )
    assert "random or damaged" in said
    assert (
        cautions.list_warnings(
            run, {"train": {"eval_loss_before": 7.6, "eval_loss_after": 7.0}}, "x"
        )
        == []
    )
    [said] = cautions.list_warnings(
        run,
        {"train": {"eval_loss_before": 7.6}},
        "x",
        entries=[{"event": "session", "session": 1, "start_step": 0, "vocabulary": 2048}],
    )
    assert "2,048" in said
    exams = {
        "bundled:safety": {
            "models": {
                "base": {"no_harm": {"count": 1, "of": 9}},
                "q8_0": {"no_harm": {"count": 7, "of": 9}},
            },
            "comparisons": [],
        },
        "e": {
            "models": {},
            "comparisons": [
                {"before": "base", "after": "merged", "gained": 0, "lost": 8, "p": 0.008}
            ],
        },
    }
    assert [s[:22] for s in cautions.list_warnings(run, {}, "x", exams=exams)] == [
        "q8_0: 2 of 9 answers t",
        "merged does worse than",
    ]
    dropped = {"prepare": {"dropped": {"dangerous_advice": 6}, "changed": {}}}
    assert cautions.list_warnings(run, dropped, "x") == [], "rows that were dropped were not kept"
    kept = params.check_values({"near_duplicates": "keep", "decontaminate": 0}, "test")
    assert "held-out numbers may look too good" in cautions.list_warnings(run, {}, "x", job=kept)[0]
    evals = [
        {"event": "session", "session": 1, "start_step": 0},
        *(
            {"event": "eval", "session": 1, "when": "w", "step": n, "eval_loss": loss}
            for n, loss in ((0, 3.0), (5, 2.0), (9, 2.4))
        ),
    ]
    assert "lowest at step 5 (2.000)" in cautions.list_warnings(run, {}, "x", entries=evals)[0]


def test_artefacts_say_whether_they_are_here_pruned_or_changed(folder):
    run = json.loads((folder / "run.json").read_text())
    run["stages"]["train"]["artifacts"] = [
        {"path": p, "bytes": 3, "sha256": "a" * 64, **more}
        for p, more in (
            ("here", {}),
            ("gone", {}),
            ("other", {}),
            ("freed", {"pruned": "2026-02-03T04:05:06"}),
        )
    ]
    (folder / "here").write_text("abc")
    (folder / "other").write_text("abcd")
    states = {row["path"]: row["state"] for row in report.artifact_rows(folder, run, {})}
    assert states == {
        "freed": "pruned 2026-02-03",
        "gone": "not here",
        "here": "here",
        "other": "another size than recorded",
    }


def test_a_run_cut_off_in_training_has_a_page_with_its_curve(folder):
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({"prepare": results["prepare"]}))
    assert "Loss, learning rate and memory" in report.write_report(folder).read_text(
        encoding="utf-8"
    )


def test_a_run_that_only_began_has_a_page(folder):
    for name in ("metrics.jsonl", "results.json", "samples.json", "exam.json", "train.ipynb"):
        (folder / name).unlink()
    assert "not measured" in " ".join(read(report.write_report(folder)).text)


@pytest.mark.parametrize("name", ["demo", "e4b-h100"])
def test_examples_of_earlier_versions_have_small_whole_pages(name, tmp_path):
    shutil.copytree(ROOT / "runs" / "examples" / name, tmp_path / name)
    path = report.write_report(tmp_path / name)
    pages = sorted(tmp_path.glob("*/*.html"))
    assert len(pages) == 1 + len(list(tmp_path.glob("*/*.ipynb")))
    for page in pages:
        assert page.stat().st_size < 3e6
        links = read(page).links
        assert not [link for link in links if link.startswith("http") and page == path], links
    after = json.loads((tmp_path / name / "results.json").read_text())["train"]["eval_loss_after"]
    assert f"→ {after:.3f}" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", sorted(p.parent.name for p in (ROOT / "runs/examples").glob("*/run.json"))
)
def test_the_examples_are_as_they_were_recorded(name):
    """Check every file with a seal or a hash that is not left out; those of the first versions had none."""
    folder = ROOT / "runs" / "examples" / name
    run = record.read_record(folder / "run.json")
    assert report.find_damage(folder, run) == []
    kept = [
        a
        for stage in run["stages"].values()
        for a in stage["artifacts"]
        if (folder / a["path"]).exists()
    ]
    assert not files.find_damage(folder, kept)
    params.load_recorded(folder)
    results = files.read_json(folder / "results.json", "results")["train"]
    by_ledger = ledger.summarise(ledger.read_ledger(folder / "metrics.jsonl"))
    assert {k: results[k] for k in ("loss_last", "eval_loss_after", "steps")} == {
        k: by_ledger[k] for k in ("loss_last", "eval_loss_after", "steps")
    }


def test_not_a_run_and_a_torn_record_are_errors(folder, tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no run.json"):
        report.write_report(tmp_path)
    (folder / "results.json").write_text('{"prepare": ')
    with pytest.raises(UserError, match=r"is not readable JSON"):
        report.write_report(folder)


def test_a_failed_file_is_told_once():
    """The end of the export says it already; a file that failed in an export that went on is told."""
    failed = "x-lora.gguf is not the adapter: one number differs."
    stages = {s: {"status": "finished", "attempts": [{}]} for s in ("prepare", "train", "export")}
    results = {"export": {"lora": {"failed": failed}}}
    [said] = cautions.list_warnings({"stages": stages}, results, "x")
    assert failed in said
    stages["export"] = {"status": "failed", "attempts": [{"exit": f"UserError: {failed}"}]}
    assert cautions.list_warnings({"stages": stages}, results, "x") == [
        f"export is failed: UserError: {failed}"
    ]
    quiet = {"telling": False, "verdict": "its effect was not checked by prediction"}
    stages["export"] = {"status": "finished", "attempts": [{}]}
    [said] = cautions.list_warnings({"stages": stages}, {"export": {"lora": quiet}}, "x")
    assert "not checked by prediction" in said


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("run.json", "[]", "expected a JSON object, found list"),
        ("run.json", "{}", "is not complete"),
        ("run.json", '{"stages": null, "fingerprints": {}}', "is not complete"),
        ("results.json", "[1]", "expected a JSON object, found list"),
        ("results.json", '{"train": 3}', "`train` is no object"),
        ("exam.json", "[]", "expected a JSON object"),
        ("metrics.jsonl", None, "is a folder; expected a file"),
        ("rerun.json", "3", "expected a JSON object, found int"),
    ],
)
def test_a_record_of_another_shape_is_named_by_every_page(folder, name, content, said):
    (folder / name).unlink(missing_ok=True)
    if content is None:
        (folder / name).mkdir()
    else:
        (folder / name).write_text(content)
    with pytest.raises(UserError, match=said):
        report.write_report(folder)


def test_what_is_forgotten_is_a_number_only_where_rows_of_another_source_are_given():
    train = {
        "forgetting_loss_before": 2.5,
        "forgetting_loss_after": 2.75,
        "forgetting_loss_before_ci95": [2.4, 2.6],
        "forgetting_loss_after_ci95": [2.6, 2.9],
    }

    def tiles(**results):
        numbers = headline.headline_numbers(results, {})
        return [number for number in numbers if "what is forgotten" in number["name"]]

    assert tiles(train={}, prepare={}) == []
    (missing,) = tiles(train={}, prepare={"forgetting": 40})
    assert missing["value"] is None
    (tile,) = tiles(train=train, prepare={"forgetting": 40})
    assert tile["value"] == "2.500 → 2.750"
    assert tile["note"] == "+10.0%, 40 rows; 95 % interval: before 2.4 to 2.6, after 2.6 to 2.9"
    ((_, table), *_) = card_tables.list_sections({"train": train})
    assert table[3][1:] == ["2.5", "2.75"]
    assert table[4][1:] == ["2.4 to 2.6", "2.6 to 2.9"]
    ((_, table), *_) = card_tables.list_sections({"train": {}})
    assert len(table) == 3
