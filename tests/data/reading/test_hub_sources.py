"""Data sets on the hub, read from a stand-in: commits, revisions, tokens, and the errors when it does not answer.

python -m pytest tests/data/reading/test_hub_sources.py
"""

import io
import json
import pathlib
import subprocess
import sys
import time

import pytest

from helpers import hub

ROOT = pathlib.Path(__file__).parents[3]
TOKEN = "hf_AbCdEfGhIjKlMnOp"
# the hub's libraries read the environment when they are imported: what is tested runs in a process of its own
CHILD = """
import json, sys
from lib import params
from lib.common.errors import UserError
from lib.data.reading import exam_items, sources

def run(job):
    commits = {}
    try:
        job = params.check_values({"exam": [], **job}, "test")
        if job.exam:
            return {"items": [item for name in job.exam for item in exam_items.read_items(name)]}
        return {"rows": list(sources.read_rows(job, None, commits=commits)), "commits": commits}
    except UserError as error:
        return {"error": str(error)}

print("RESULT" + json.dumps([run(job) for job in json.loads(sys.argv[1])]))
"""


def ask(served, home, *jobs, **more):
    """Return each job's result: rows and commits, items, or the error."""
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(jobs)],
        env=served.environment(home, **more),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    said = ran.stdout + ran.stderr
    assert "Traceback" not in said
    assert not more.get("token") or more["token"][:12] not in said, "the token is shown"
    return json.loads(ran.stdout.split("RESULT")[1])


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def exchange(question, answer="Under water."):
    return {"question": question, "answer": answer}


def questions(result):
    assert "rows" in result, result
    return [row["messages"][0]["content"] for row in result["rows"]]


def parquet(*rows):
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


ITEM = {"question": "Which?", "choices": ["ice", "water"], "answer": 1}


@pytest.fixture(scope="module")
def served():
    with hub.Hub() as made:
        made.old = made.commit(
            "owner/cards",
            {"README.md": b"# Cards\n", "train.jsonl": lines(exchange("old"))},
            "main",
            "v1",
        )
        made.new = made.commit(
            "owner/cards",
            {"README.md": b"# Cards\n", "train.jsonl": lines(exchange("new"), exchange("newer"))},
            "main",
        )
        made.parquet = made.commit(
            "owner/Parquet-Set",
            {
                "data/train-00000-of-00001.parquet": parquet(
                    {
                        "messages": [
                            {"role": "user", "content": "p"},
                            {"role": "assistant", "content": "a"},
                        ]
                    }
                ),
                "data/test-00000-of-00001.parquet": parquet(
                    {
                        "messages": [
                            {"role": "user", "content": "t"},
                            {"role": "assistant", "content": "a"},
                        ]
                    }
                ),
            },
        )
        made.commit("owner/questions", {"test.jsonl": lines(ITEM)})
        made.commit("owner/odd", {"train.jsonl": lines({"ask": "a", "reply": "b"})})
        made.commit("owner/torn", {"train.jsonl": lines(exchange("a")) + b'{"question": '})
        made.commit(
            "owner/mixed",
            {"train.jsonl": lines(exchange("a"), {"question": {"deep": 1}, "answer": 2})},
        )
        made.commit("owner/none", {"README.md": b"# Nothing\n"})
        made.commit(
            "owner/two",
            {
                "README.md": b"---\nconfigs:\n- config_name: adults\n  data_files: a.jsonl\n- config_name: children\n  data_files: b.jsonl\n---\n",
                "a.jsonl": lines(exchange("a")),
                "b.jsonl": lines(exchange("b")),
            },
        )
        made.secret = made.commit(
            "owner/secret", {"train.jsonl": lines(exchange("secret"))}, token=TOKEN
        )
        yield made


JOBS = {
    "newest": {"dataset": "owner/cards"},
    "branch": {"dataset": "owner/cards", "dataset_revision": "main"},
    "tag": {"dataset": "owner/cards", "dataset_revision": "v1"},
    "commit": {"dataset": "owner/cards", "dataset_revision": "OLD"},
    "parquet": {"dataset": "owner/Parquet-Set"},
    "capped": {"dataset": "owner/cards", "max_rows": 1},
    "list": {
        "dataset": [
            {"dataset": "owner/cards", "revision": "v1"},
            {"dataset": "owner/Parquet-Set"},
            {"dataset": "bundled:first-aid", "max_rows": 1},
            {"dataset": "owner/odd", "columns": {"question": "ask", "answer": "reply"}},
        ]
    },
    "exam": {"exam": ["owner/questions", "bundled:exam"]},
    "unknown id": {"dataset": "nobody/nothing"},
    "unknown revision": {"dataset": "owner/cards", "dataset_revision": "v9"},
    "no train": {"dataset": "owner/questions"},
    "no test": {"exam": ["owner/cards"]},
    "no data": {"dataset": "owner/none"},
    "two configurations": {"dataset": "owner/two"},
    "unknown shape": {"dataset": "owner/odd"},
    "mixed types": {"dataset": "owner/mixed"},
    "torn": {"dataset": "owner/torn"},
    "private": {"dataset": "owner/secret"},
    "private exam": {"exam": ["owner/secret"]},
}


@pytest.fixture(scope="module")
def results(served, tmp_path_factory):
    jobs = [{k: v if v != "OLD" else served.old for k, v in job.items()} for job in JOBS.values()]
    return dict(zip(JOBS, ask(served, tmp_path_factory.mktemp("home"), *jobs), strict=True))


@pytest.mark.parametrize(
    ("job", "expected", "commit"),
    [
        ("newest", ["new", "newer"], "new"),
        ("branch", ["new", "newer"], "new"),
        ("tag", ["old"], "old"),
        ("commit", ["old"], "old"),
        ("parquet", ["p"], "parquet"),
        ("capped", ["new"], "new"),
    ],
)
def test_rows_arrive_in_the_revision_asked_for_and_its_commit_is_known(
    served, results, job, expected, commit
):
    assert questions(results[job]) == expected
    revision = JOBS[job].get("dataset_revision", "").replace("OLD", served.old)
    assert results[job]["commits"] == {
        f"{JOBS[job]['dataset']}@{revision}": getattr(served, commit)
    }


def test_a_list_mixes_hub_and_bundled_sets_each_with_its_revision_and_columns(served, results):
    old, p, _, a = questions(results["list"])
    assert (old, p, a) == ("old", "p", "a")
    assert [row["id"] for row in results["list"]["rows"]][:2] == [
        "cards-0000000",
        "Parquet-Set-0000000",
    ]
    assert results["list"]["commits"]["owner/cards@v1"] == served.old
    assert "bundled:first-aid" not in results["list"]["commits"]


def test_exam_items_come_from_the_test_split(results):
    first, second = results["exam"]["items"][:2]
    assert (first["question"], first["options"], first["answer_letter"]) == (
        "Which?",
        {"A": "ice", "B": "water"},
        "B",
    )
    assert second["answer_letter"] in second["options"]


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (
            "unknown id",
            "hub dataset `nobody/nothing` could not be loaded: the hub has no dataset of this id, or it is private\n",
        ),
        (
            "unknown revision",
            "hub dataset `owner/cards` at v9 could not be loaded: it has no such revision\n",
        ),
        (
            "private",
            "hub dataset `owner/secret` could not be loaded: the hub has no dataset of this id, or it is private\n",
        ),
        (
            "private exam",
            "hub dataset `owner/secret` could not be loaded: the hub has no dataset of this id, or it is private\n",
        ),
        ("no train", "it has no split `train`, only test\n"),
        ("no test", "it has no split `test`, only train\n"),
        ("no data", "could not be loaded: The directory at hf://datasets/owner/none"),
        ("two configurations", "available configs: ['adults', 'children']"),
        ("torn", "An error occurred while generating the dataset"),
    ],
)
def test_what_cannot_be_loaded_says_why_and_what_to_do(results, job, expected):
    error = results[job]["error"]
    assert expected in error
    assert all(word in error for word in ("HF_TOKEN", "network", "local file", "bundled:first-aid"))
    assert len(error) < 900


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (
            "unknown shape",
            "owner/odd, row 1: no known shape; its fields are ask, reply.\nKnown shapes",
        ),
        ("mixed types", 'owner/mixed, row 2: a text field is {"deep": 1}; expected a string'),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_what_it_holds(results, job, expected):
    assert results[job]["error"].startswith(expected)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (TOKEN, ""),
        ("hf_WrongWrongWrong", "the hub has no dataset of this id, or it is private"),
        ("hf_WrongWrong\x01Wrong", "the hub has no dataset of this id, or it is private"),
        ("hf_WrongWrongWrång", "can't encode character"),
    ],
)
def test_a_private_set_takes_the_right_token_and_no_message_shows_one(
    served, tmp_path, token, expected
):
    (result,) = ask(served, tmp_path, {"dataset": "owner/secret"}, token=token)
    if expected:
        assert expected in result["error"]
        assert "HF_TOKEN" in result["error"]
    else:
        assert questions(result) == ["secret"]
        assert result["commits"] == {"owner/secret@": served.secret}


def test_a_token_that_the_hub_itself_shows_is_masked(served, tmp_path):
    served.commit("owner/tattler", {"train.jsonl": lines(exchange("a"))})
    served.repos["owner/tattler"].tattles = True
    (result,) = ask(served, tmp_path, {"dataset": "owner/tattler"}, token=TOKEN)
    assert "not for Bearer (HF_TOKEN)" in result["error"]


def test_a_hub_that_is_gone_is_an_error_within_seconds(tmp_path):
    with hub.Hub() as gone:
        pass
    started = time.monotonic()
    (result,) = ask(gone, tmp_path, {"dataset": "owner/cards"})
    assert time.monotonic() - started < 12, "it retried"
    assert (
        "hub dataset `owner/cards` could not be loaded: [Errno 111] Connection refused\nCheck the id, the revision and the network"
        in result["error"]
    )


def test_offline_the_revision_asked_for_is_read_from_the_cache_or_it_is_an_error(tmp_path):
    with hub.Hub() as served:
        one, two = (
            served.commit("owner/cards", {"train.jsonl": lines(exchange(q))}, "main", tag)
            for q, tag in (("one", "v1"), ("two", "v2"))
        )
        main, tagged = ask(
            served,
            tmp_path,
            {"dataset": "owner/cards"},
            {"dataset": "owner/cards", "dataset_revision": "v1"},
        )
        assert (questions(main), questions(tagged)) == (["two"], ["one"])
        three = served.commit("owner/cards", {"train.jsonl": lines(exchange("three"))}, "main")
        served.asked.clear()
        jobs = [
            {"dataset": "owner/cards", "dataset_revision": revision}
            for revision in ("", "v1", one, two, "v2", three)
        ]
        results = ask(served, tmp_path, *jobs, {"dataset": "owner/other"}, offline="1")
        assert not served.asked
    assert [questions(r) for r in results[:4]] == [["two"], ["one"], ["one"], ["two"]]
    assert [r["commits"] for r in results[:4]] == [
        {"owner/cards@": two},
        {"owner/cards@v1": one},
        {f"owner/cards@{one}": one},
        {f"owner/cards@{two}": two},
    ]
    assert all("could not be loaded" in r["error"] for r in results[4:]), (
        "another revision was read"
    )


def test_online_a_moved_branch_is_read_anew_and_a_set_that_went_is_not_read_from_the_cache(
    tmp_path,
):
    with hub.Hub() as served:
        for text in ("one", "two"):
            commit = served.commit("owner/cards", {"train.jsonl": lines(exchange(text))})
            (result,) = ask(served, tmp_path, {"dataset": "owner/cards"})
            assert (questions(result), result["commits"]) == ([text], {"owner/cards@": commit})
        del served.repos["owner/cards"]
        (result,) = ask(served, tmp_path, {"dataset": "owner/cards"})
    assert "no dataset of this id" in result["error"]
