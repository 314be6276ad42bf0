"""The medical texts as a sheet for a clinician, in a browser and in a spreadsheet, and its verdicts read back.

python -m pytest tests/runs/review
"""

import csv
import datetime
import json
import pathlib
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import browser
from lib import params
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.exam import take
from lib.medical.texts import bundled, sealed
from lib.runs import manage
from lib.runs.review import sheet, sign_off

FILES = [*bundled.KINDS, bundled.GUIDANCE]
ENTRIES = sheet.list_entries()
LONG = [name for name in bundled.KINDS if name.endswith(".jsonl")]
FIRST = 30  # lines of each, where a test needs no more
FEW = []
for name in bundled.KINDS:
    own = [entry for entry in ENTRIES if entry.file == name]
    FEW += own[:FIRST] if name in LONG else own
TODAY = datetime.date.today().isoformat()


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Let the texts be read from, and written to, a copy."""
    for name in FILES:
        shutil.copy(bundled.FOLDER / name, tmp_path)
    monkeypatch.setattr(bundled, "FOLDER", tmp_path)
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    return tmp_path


def shorten(folder):
    """Copy the texts anew, with the first lines of the long files alone."""
    source = pathlib.Path(bundled.__file__).parents[1]
    for name in FILES:
        lines = (source / name).read_text(encoding="utf-8").split("\n")
        if name in LONG:
            lines = [*lines[:FIRST], ""]
        (folder / name).write_text("\n".join(lines), encoding="utf-8")


@pytest.fixture
def few(copied):
    shorten(copied)
    return copied


def line(entry, verdict="right", comment="", role="emergency physician", date=TODAY):
    return dict(
        zip(
            sheet.READ_BACK,
            [entry.file, entry.id, entry.seal, verdict, comment, role, date],
            strict=True,
        )
    )


def save(path, lines, delimiter=","):
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, sheet.READ_BACK, delimiter=delimiter)
        writer.writeheader()
        writer.writerows(lines)
    return path


def test_the_sheet_has_every_text_with_its_guidance(copied):
    html, table = sheet.write_sheet()
    page = html.read_text()
    assert page.count("<fieldset ") == len(ENTRIES)
    assert {entry.file for entry in ENTRIES} == set(bundled.KINDS)
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["id"]) for row in rows] == [(e.file, e.id) for e in ENTRIES]
    for row, entry in zip(rows, ENTRIES, strict=True):
        assert row["seal"] == entry.seal
        assert len(row["guidance"].splitlines()) == len(entry.passages)
        assert all(said in row["text"] for _, said in entry.parts)
    first = bundled.read_entries("first_aid.jsonl")[0]
    assert first["answer"] in rows[0]["text"]
    item = next(entry for entry in ENTRIES if entry.file == "exam.jsonl")
    assert dict(item.parts)["options"].count("<- right") == 1


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chosen=st.dictionaries(
        st.sampled_from(range(len(FEW))), st.sampled_from(sheet.VERDICTS), min_size=1
    ),
    delimiter=st.sampled_from(",;"),
)
def test_verdicts_are_entered_and_nothing_else_changes(copied, chosen, delimiter):
    shorten(copied)
    (copied / sign_off.LOG).unlink(missing_ok=True)
    lines = [line(FEW[n], verdict, "say 20 minutes") for n, verdict in chosen.items()]
    told = sign_off.read_sheet(save(copied / "sheet.csv", lines, delimiter))
    counts = [list(chosen.values()).count(verdict) for verdict in sheet.VERDICTS]
    assert told.startswith(f"{counts[0]} signed off, {counts[1]} to change, {counts[2]} rejected; ")
    after = {(entry.file, entry.id): entry for entry in sheet.list_entries()}
    for n, entry in enumerate(FEW):
        now = after[entry.file, entry.id]
        state = sign_off.STATES[chosen[n]] if n in chosen else entry.state
        assert now == entry._replace(state=state)
    log = (copied / sign_off.LOG).read_text().splitlines()
    assert [json.loads(each) for each in log] == lines
    assert ("fails until a rejected text" in told) == bool(counts[2])


def test_a_second_sheet_takes_the_place_of_the_first_verdict_and_both_are_logged(copied):
    for verdict in ("change", "right"):
        lines = [line(entry, verdict, "a reason") for entry in ENTRIES[::300]]
        sign_off.read_sheet(save(copied / "sheet.csv", lines))
    states = [entry.state for entry in sheet.list_entries()][::300]
    assert set(states) == {"clinician"}
    assert (copied / "acts.yaml").read_text().count("review: ") == sum(
        entry.file == "acts.yaml" for entry in ENTRIES[::300]
    )
    assert len((copied / sign_off.LOG).read_text().splitlines()) == 2 * len(states)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"verdict": "good"}, "the verdict 'good'; expected right, change, wrong"),
        ({"verdict": "wrong"}, "'wrong' without a comment"),
        ({"role": ""}, "the role ''; say who read it"),
        ({"role": "-"}, "the role '-'; say who read it"),
        ({"role": "Language model, not a clinician"}, "say who read it"),
        ({"verdict": "", "comment": "too long"}, "a comment without a verdict"),
        ({"date": "20261129"}, "expected year-month-day"),
        ({"date": "2026-W48-6"}, "expected year-month-day"),
        ({"date": "29.11.2026"}, "the date '29.11.2026'; expected year-month-day"),
        ({"date": "2999-01-01"}, "has not come yet"),
        ({"id": "burns-99"}, "there is no such text"),
        ({"seal": "s" + "0" * 16}, "the text has changed since this sheet"),
    ],
)
def test_one_bad_line_and_nothing_is_entered(copied, change, said):
    before = {name: (copied / name).read_bytes() for name in FILES}
    lines = [line(ENTRIES[0]), line(ENTRIES[1]) | change]
    with pytest.raises(UserError, match="nothing was entered") as caught:
        sign_off.read_sheet(save(copied / "sheet.csv", lines))
    assert said in str(caught.value)
    assert {name: (copied / name).read_bytes() for name in FILES} == before
    assert not (copied / sign_off.LOG).exists()


def test_what_is_no_sheet_is_one_line_and_no_traceback(copied, capsys):
    (copied / "latin.csv").write_bytes("file,id\nné".encode("latin-1"))
    (copied / "other.csv").write_text("a,b\n1,2\n")
    empty = save(copied / "empty.csv", [line(ENTRIES[0]) | {"verdict": ""}])
    twice = save(copied / "twice.csv", [line(ENTRIES[0]), line(ENTRIES[0])])
    columns = copied / "columns.csv"
    columns.write_text(",".join([*sheet.READ_BACK, "verdict"]) + "\n")
    open_quote = copied / "quote.csv"
    open_quote.write_text(twice.read_text(encoding="utf-8-sig") + '"never closed,\n')
    for path, said in (
        (copied / "none.csv", "is not a file. Expected the CSV file that the page saved"),
        (copied, "is not a file"),
        (copied / "latin.csv", "is not UTF-8"),
        (copied / "other.csv", "has no column file, id, seal"),
        (empty, "has no verdict"),
        (twice, "two verdicts"),
        (columns, "two columns verdict"),
        (open_quote, "unexpected end of data"),
    ):
        assert manage.main(["review", "--sheet", str(path)]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert "Traceback" not in told


def test_a_rejected_text_is_signed_off_by_nobody_and_trained_on_by_no_run(copied, monkeypatch):
    save(copied / "sheet.csv", [line(ENTRIES[0], "wrong", "it is dangerous")])
    sign_off.read_sheet(copied / "sheet.csv")
    with pytest.raises(UserError, match="another reviewer rejected it"):
        sign_off.read_sheet(save(copied / "late.csv", [line(ENTRIES[0])]))
    job = params.load_job("params/cpu.yaml")
    with pytest.raises(UserError, match=f"a reviewer rejected, for example {ENTRIES[0].id}"):
        sources.check_sources(job)


@pytest.mark.parametrize(
    ("name", "dataset"), [("exam.jsonl", "bundled:exam"), ("safety.jsonl", "bundled:safety")]
)
def test_a_model_is_asked_nothing_that_a_reviewer_rejected(copied, name, dataset, capsys):
    entry = next(entry for entry in ENTRIES if entry.file == name)
    sign_off.read_sheet(save(copied / "sheet.csv", [line(entry, "wrong", "the key is wrong")]))
    job = params.load_job("params/cpu.yaml")
    with pytest.raises(UserError, match=f"{dataset} has 1 texts.*, for example {entry.id}"):
        sources.check_sources(job)
    assert dataset not in take.load_exams(job)  # rejected after training: the export goes on
    assert f"it is not measured: {dataset} has 1 texts" in capsys.readouterr().out


def test_a_text_that_changed_since_it_was_signed_off_is_not(copied):
    sign_off.read_sheet(save(copied / "sheet.csv", [line(ENTRIES[0])]))
    path = copied / "first_aid.jsonl"
    signed = path.read_text()
    assert bundled.read_texts("first_aid.jsonl")[0].review.state == "clinician"
    path.write_text(signed.replace(bundled.read_entries("first_aid.jsonl")[0]["answer"], "Drink."))
    with pytest.raises(ValueError, match="has changed since a clinician signed it off"):
        bundled.read_texts("first_aid.jsonl")


def test_line_ends_of_other_alphabets_break_no_file(copied):
    role, comment = "emergency\u2028physician", "press\u2028hard"
    told = sign_off.read_sheet(
        save(copied / "sheet.csv", [line(ENTRIES[0], "wrong", comment, role)])
    )
    assert told.startswith("0 signed off, 0 to change, 1 rejected")
    assert bundled.read_texts("first_aid.jsonl")[0].review.role == "emergency physician"


def test_a_filled_in_sheet_is_not_written_over(few, capsys):
    _, table = sheet.write_sheet()
    content = table.read_text(encoding="utf-8-sig")
    assert sheet.write_sheet()[1] == table, "an empty one is"
    first = f"{ENTRIES[0].file},{ENTRIES[0].id},{ENTRIES[0].seal},"
    table.write_text(content.replace(first, f"{first}right", 1), encoding="utf-8-sig")
    assert manage.main(["review"]) == 2
    assert "is filled in. Enter it with" in capsys.readouterr().err
    assert "right" in table.read_text(encoding="utf-8-sig").splitlines()[1]


def test_a_text_that_was_changed_after_the_sheet_is_not_signed_off(copied):
    rows = bundled.read_entries("first_aid.jsonl")
    rows[0]["answer"] += " Then wait."
    assert sealed.seal(rows[0]) != ENTRIES[0].seal
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (copied / "first_aid.jsonl").write_text(content)
    with pytest.raises(UserError, match="the text has changed since this sheet"):
        sign_off.read_sheet(save(copied / "sheet.csv", [line(ENTRIES[0])]))


@pytest.mark.skipif(not browser.CHROMIUM, reason=browser.SKIP)
def test_ticks_in_a_browser_become_a_sheet_that_is_read_back(few):
    html, _ = sheet.write_sheet()
    with browser.start() as chromium:
        chromium.open(html, 1200)
        assert (chromium.fetched, chromium.logged) == ([], [])
        chromium.js(
            """URL.createObjectURL = blob => { blob.text().then(text => window.saved = text); return "#"; };
            document.getElementById("save").click()"""
        )
        told = 'document.getElementById("told").textContent'
        assert chromium.js(told) == "Nothing is ticked yet."
        chromium.js("texts[0].querySelector('[value=right]').click()")
        chromium.js("texts[5].querySelector('[value=wrong]').click(); save()")
        assert chromium.js(told) == "Fill in your role and the date first."
        chromium.js("role.value = 'GP, \"first aid\"'; save()")
        assert chromium.js(told) == f"{ENTRIES[5].id} needs a comment."
        chromium.js(
            "texts[5].querySelector('textarea').value = 'press, do not\\nrub'; keep(); save()"
        )
        assert chromium.js(told) == f"2 of {len(FEW)} texts saved."
        kept = chromium.js("localStorage.getItem(keptAs)")
        assert json.loads(kept)["ticks"].keys() == {
            f"{e.file} {e.id} {e.seal}" for e in (ENTRIES[0], ENTRIES[5])
        }
        chromium.js("show.value = 'open'; filter()")
        assert chromium.js("texts.filter(text => text.hidden).length") == 2
        saved = chromium.js("window.saved")
        chromium.open(html, 400)  # as after closing the page
        assert chromium.js("texts.filter(verdictOf).length") == 2
        assert chromium.js("document.documentElement.scrollWidth") <= 400
    (few / "saved.csv").write_text(saved, encoding="utf-8", newline="")
    told = sign_off.read_sheet(few / "saved.csv")
    assert told.startswith("1 signed off, 0 to change, 1 rejected")
    assert sheet.list_entries()[0].state == "clinician"
    assert json.loads((few / sign_off.LOG).read_text().splitlines()[1])["comment"] == (
        "press, do not\nrub"
    )
