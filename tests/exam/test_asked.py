"""Which exams are taken, and of which run.

python -m pytest tests/exam/test_asked.py
"""

import json

import pytest

from lib import params
from lib.common.errors import UserError
from lib.exam import take
from lib.export import servers
from lib.medical import safety

ITEM = {"question": "q", "options": {"A": "a", "B": "b"}, "answer_letter": "A"}


def job_of(exams, safety_tokens=0, language="en"):
    return params.Params(exam=exams, safety_tokens=safety_tokens, language=language)


def test_an_exam_whose_file_is_gone_is_named_and_left_out(tmp_path, capsys):
    """The adapter is trained: the export need not fail for it, and nothing is made up for it."""
    (tmp_path / "here.jsonl").write_text(json.dumps(ITEM) + "\n")
    gone = str(tmp_path / "gone.jsonl")
    exams = take.load_exams(job_of([gone, str(tmp_path / "here.jsonl")], 128))
    assert list(exams) == [str(tmp_path / "here.jsonl"), safety.NAME]
    assert f"exam not taken, so it is not measured: exam `{gone}`" in capsys.readouterr().out


@pytest.mark.parametrize(("language", "asked"), [("en", True), ("", True), ("es", False)])
def test_the_safety_set_is_not_asked_in_a_language_that_its_rules_cannot_read(
    language, asked, capsys
):
    assert (safety.NAME in take.load_exams(job_of([], 128, language))) == asked
    assert ("is not asked: it is English" in capsys.readouterr().out) != asked


def test_a_part_of_a_set_is_an_exam_with_a_name_of_its_own(tmp_path):
    path = tmp_path / "here.jsonl"
    path.write_text("".join(json.dumps(ITEM) + "\n" for _ in range(3)))
    exam = take.read_exam(f"{{dataset: {path}, max_rows: 2}}")
    ((name, items),) = take.load_exams(job_of([exam])).items()
    assert (name, len(items)) == (f"{path} (first 2)", 2)
    assert take.read_exam(str(path)) == str(path)
    for text, said in (
        (f"{{dataset: {path}, rows: 2}}", "`rows`: extra inputs"),
        (f"{{dataset: {path}, revision: main}}", "is local, so it has no revision"),
        ("{dataset: ", "EXAM"),
    ):
        with pytest.raises(UserError, match=said):
            take.read_exam(text)


def test_an_exam_that_cannot_be_read_is_still_an_error(tmp_path):
    (tmp_path / "bad.jsonl").write_text("{")
    with pytest.raises(UserError):
        take.load_exams(job_of([str(tmp_path / "bad.jsonl")]))


@pytest.mark.parametrize("count", ["-1", "21", "many"])
def test_an_impossible_number_of_shuffles_is_refused(count, capsys):
    with pytest.raises(SystemExit) as refused:
        take.main(["mine", "bundled:exam", "--shuffles", count])
    assert refused.value.code == 2
    assert "--shuffles" in capsys.readouterr().err


@pytest.mark.parametrize("run", ["", "  "])
def test_without_a_run_no_folder_is_made_up(run, capsys):
    assert take.main([run]) == 2
    assert "Which run? `make exam RUN=name`; known runs:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("owner/name", "owner/name"),
        ("bundled:exam", "bundled:exam"),
        ("/home/me/private/rows.jsonl", "rows.jsonl"),
        ("~/private/rows", "rows"),
        ("data/rows.jsonl", "rows.jsonl"),
        ("data/2024/rows", "rows"),
        ("../rows", "rows"),
    ],
)
def test_a_path_is_no_hub_id_even_if_its_file_is_gone(name, shown):
    assert servers.shared_name(name) == shown
