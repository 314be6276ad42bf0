"""report.html from records: offline, escaped, honest about what is missing.

    python -m pytest tests/test_report.py
"""

import json

import pytest
from page import Reader

from lib import DISCLAIMER, params, report
from lib.params import UserError

EVIL = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


@pytest.fixture
def folder(tmp_path):
    """A run whose every text tries to be markup, trained in two sessions from a dirty checkout, not exported."""
    top = tmp_path / "evil-run"
    top.mkdir()
    attempt = {"by": "make", "start": "2026-01-01T00:00:00+00:00", "end": "2026-01-01T00:01:00+00:00", "exit": "ok", "cell": None, "pid": 1, "host": "h",
               "commit": "0123456789abcdef", "dirty": True}
    stages = {s: {"status": "finished", "attempts": [attempt], "artifacts": [], "inputs": {}} for s in ("prepare", "train")}
    stages["export"] = {"status": "failed", "attempts": [{**attempt, "exit": f"ValueError: {EVIL}"}], "artifacts": [], "inputs": {}}
    (top / "run.json").write_text(json.dumps({"run": "evil-run", "created": "2026-01-01", "stages": stages, "fingerprints": {"data": "abc"},
                                              "packages": {"torch": "2.13.0"}, "hardware": {"cpu": EVIL, "cores": 2, "gpus": []}}))
    (top / "params.yaml").write_text(params.dump(params.check({"dataset": EVIL, "lora_r": 4}, "test")))
    ledger = [{"event": "session", "session": 1, "start_step": 0}, {"event": "session", "session": 2, "start_step": 1},
              *({"event": "step", "session": 1, "step": n, "steps": 1, "loss": 3.0 - n / 10, "epoch": 1.0} for n in (1, 2, 3)),
              {"event": "eval", "session": 2, "when": "before", "step": 0, "eval_loss": 3.0}]
    (top / "metrics.jsonl").write_text("".join(json.dumps(e) + "\n" for e in ledger))
    (top / "samples.json").write_text(json.dumps({"prompts": [EVIL], "answers": {EVIL: [EVIL], "tuned": [""]}, "tokens": 8}))
    train = {"sessions": 2, "steps_repeated": 3, "steps": 3, "eval_loss_before": 3.0, "eval_loss_after": 3.5, "samples_per_second": None}
    prepare = {"rows_read": 3, "rows_kept": 3, "dropped": {EVIL: 0}, "train": 3, "validation": 0, "test": 0, "tokens_total": 9, "tokens_trained": 5,
               "truncated": 7, "changed": {EVIL: 2, "dangerous_advice_flagged": 4}}
    (top / "results.json").write_text(json.dumps({"prepare": prepare, "train": train}))
    return top


def read(path):
    page = Reader()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def test_nothing_is_fetched_and_nothing_from_data_is_markup(folder):
    page = read(report.write(folder))
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert all(link.startswith("#") or link in ("prepare.ipynb", "train.ipynb", "export.ipynb") for link in page.links), page.links
    styles = (folder / "report.html").read_text().split("<style")[1:]
    assert not [s for s in styles if "@import" in s.split("</style>")[0] or "url(" in s.split("</style>")[0]]
    assert sum(EVIL in text for text in page.text) >= 5, "the text itself must be readable"


def test_warnings_come_first_and_say_what_is_wrong(folder):
    text = " ".join(read(report.write(folder)).text)
    for expected in ("export is failed: ValueError", "uncommitted changes", "resumed: 2 sessions, 3 steps were run again", "higher after training", "4 rows of the data give outdated or harmful", "7 answers were cut",
                     DISCLAIMER):
        assert expected in text, expected
    assert text.index("Read first") < text.index("held-out response loss before")
    assert "not measured" in text, "a missing number is said to be missing"
    assert "+16.7%" in text


def test_a_run_that_only_began_has_a_page(folder):
    for name in ("metrics.jsonl", "results.json", "samples.json"):
        (folder / name).unlink()
    assert "not measured" in " ".join(read(report.write(folder)).text)


def test_not_a_run_and_a_torn_record_are_errors(folder, tmp_path):
    with pytest.raises(UserError, match=r"is not a run: it has no run.json"):
        report.write(tmp_path)
    (folder / "results.json").write_text('{"prepare": ')
    with pytest.raises(UserError, match=r"results.json.* is not readable JSON|is not readable JSON"):
        report.write(folder)
