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
from lib.data.reading import exam_items, source_rows, sources

def run(job):
    commits = {}
    try:
        ask_only = job.pop("ask only", False)
        job = params.check_values({"exam": [], **job}, "test")
        if ask_only:
            return {"there": sources.require_hub_sets(job) is None}
        if job.exam:
            return {"items": [item for name in job.exam for item in exam_items.read_items(name)]}
        inputs = []
        rows = list(source_rows.read_rows(job, None, commits=commits, inputs=inputs))
        return {"rows": rows, "commits": commits, "inputs": inputs}
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


ITEM = {"question": "Which?", "choices": ["ice", "water"], "answer": "B"}


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
        made.commit(
            "owner/unlike",
            {
                "train-1.jsonl": lines(exchange("a")),
                "train-2.jsonl": lines({"question": "b", "answer": "c", "source": "d"}),
            },
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
    "ask": {"dataset": "owner/cards", "exam": ["owner/questions"], "ask only": True},
    "ask for a missing folder": {"dataset": "data/mine", "ask only": True},
    "ask for an unknown revision": {
        "dataset": ["owner/cards", {"dataset": "owner/cards", "revision": "v9"}],
        "ask only": True,
    },
    "ask for an unknown exam": {
        "dataset": "bundled:first-aid",
        "exam": ["my/exam"],
        "ask only": True,
    },
    "unknown id": {"dataset": "nobody/nothing"},
    "unknown revision": {"dataset": "owner/cards", "dataset_revision": "v9"},
    "no train": {"dataset": "owner/questions"},
    "no test": {"exam": ["owner/cards"]},
    "no data": {"dataset": "owner/none"},
    "two configurations": {"dataset": "owner/two"},
    "configuration": {"dataset": {"dataset": "owner/two", "config": "children"}},
    "configuration as a parameter": {"dataset": "owner/two", "dataset_config": "adults"},
    "configurations in a list": {
        "dataset": [{"dataset": "owner/two", "config": c} for c in ("children", "adults")]
    },
    "unknown configuration": {"dataset": {"dataset": "owner/two", "config": "elderly"}},
    "split": {"dataset": {"dataset": "owner/questions", "split": "test"}},
    "split as a parameter": {"dataset": "owner/Parquet-Set", "dataset_split": "test"},
    "two splits": {"dataset": {"dataset": "owner/Parquet-Set", "split": "train+test"}},
    "part of a split": {"dataset": {"dataset": "owner/cards", "split": "train[1:]"}},
    "unknown split": {"dataset": {"dataset": "owner/Parquet-Set", "split": "dev"}},
    "other columns": {"dataset": "owner/unlike"},
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


ID = "Check the id, which is owner/name; a private or gated set needs HF_TOKEN"
FILES = "Its own files are at fault, or differ in their columns or types."
EXAM = "An exam is read from `test`. Save the rows as a file, and name it in `exam`."


@pytest.mark.parametrize(
    ("job", "expected", "step"),
    [
        (
            "unknown id",
            "hub dataset `nobody/nothing` could not be loaded: the hub has no dataset of this id, or it is private\n",
            ID,
        ),
        (
            "unknown revision",
            "hub dataset `owner/cards` at v9 could not be loaded: it has no such revision\n",
            "Check the revision: a commit, tag or branch of the set.",
        ),
        (
            "private",
            "hub dataset `owner/secret` could not be loaded: the hub has no dataset of this id, or it is private\n",
            ID,
        ),
        (
            "private exam",
            "hub dataset `owner/secret` could not be loaded: the hub has no dataset of this id, or it is private\n",
            ID,
        ),
        (
            "no train",
            "it has no split `train`, only test.",
            "Name it: dataset: {dataset: owner/questions, split: ...}",
        ),
        ("no test", "it has no split `test`, only train.", EXAM),
        (
            "no data",
            "could not be loaded: The directory at hf://datasets/owner/none",
            "Check on its page which files it has.",
        ),
        (
            "two configurations",
            "it has several ones: adults, children.",
            "Name it: dataset: {dataset: owner/two, config: ...}",
        ),
        (
            "unknown configuration",
            "configuration elderly could not be loaded: it has no configuration `elderly`: adults, children.",
            "Name it: dataset: {dataset: owner/two, config: ...}",
        ),
        (
            "unknown split",
            "it has no split `dev`, only train, test.",
            "Name it: dataset: {dataset: owner/Parquet-Set, split: ...}",
        ),
        ("torn", "An error occurred while generating the dataset", FILES),
        ("other columns", "could not be loaded: An error occurred while generating", FILES),
    ],
)
def test_what_cannot_be_loaded_says_why_and_the_step_that_helps(results, job, expected, step):
    error = results[job]["error"]
    assert expected in error
    assert step in error
    assert "network" not in error, "the hub did answer"
    assert len(error) < 900


def test_what_the_hub_does_not_have_is_an_error_before_a_run_starts(results):
    assert results["ask"] == {"there": True}
    for job, name, step in (
        ("ask for a missing folder", "data/mine", ID),
        ("ask for an unknown revision", "owner/cards", "Check the revision"),
        ("ask for an unknown exam", "my/exam", ID),
    ):
        error = results[job]["error"]
        assert error.startswith(
            f"`{name}` is no file or folder here, and as a hub dataset it could"
        )
        assert step in error


@pytest.mark.parametrize(
    ("job", "expected", "unread"),
    [
        ("configuration", ["b"], ["owner/two, configuration adults"]),
        ("configuration as a parameter", ["a"], ["owner/two, configuration children"]),
        (
            "configurations in a list",
            ["b", "a"],
            ["owner/two, configuration adults", "owner/two, configuration children"],
        ),
        ("split", ["Which?\n\nA) ice\nB) water"], []),
        ("split as a parameter", ["t"], ["owner/Parquet-Set, split train"]),
        ("two splits", ["p", "t"], []),
        ("part of a split", ["newer"], []),
        ("parquet", ["p"], ["owner/Parquet-Set, split test"]),
    ],
)
def test_configuration_and_split_are_chosen_and_the_others_are_named(
    results, job, expected, unread
):
    assert questions(results[job]) == expected
    assert [entry["name"] for entry in results[job]["inputs"] if entry["unread"]] == unread
    read = [entry for entry in results[job]["inputs"] if not entry["unread"]]
    assert sum(entry["rows"] for entry in read) == len(expected)
    assert not any("split" in row for row in results[job]["rows"])


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


def test_a_hub_that_does_not_answer_is_asked_once_and_stops_no_command(tmp_path):
    with hub.Hub() as gone:
        pass
    asked = {"dataset": "owner/cards", "ask only": True}
    assert ask(gone, tmp_path, asked) == [{"there": True}]
    assert ask(gone, tmp_path, asked, offline="1") == [{"there": True}]


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
    assert all(
        word in result["error"]
        for word in ("HF_TOKEN", "HF_HUB_OFFLINE=1", "Local files", "bundled:first-aid")
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


@pytest.mark.slow
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
