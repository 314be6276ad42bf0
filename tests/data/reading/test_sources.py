"""Sources: ids, topics, columns and caps of rows, lists of sources, and data sets that are not there.

python -m pytest tests/data/reading/test_sources.py
"""

import json

import pytest

from helpers.reading import GOOD, HEAD, ROWS, A, Q, Read, columnar, jsonl, numbered, refused
from lib import params
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.medical import safety

# ---------------------------------------------------------------------------------------------------------------------
# rows: ids, topics, columns, caps


def test_ids_and_topics_are_the_rows_own_or_the_place(tmp_path):
    rows = Read(
        jsonl(
            tmp_path / "d.jsonl",
            {**ROWS[0], "id": 7, "topic": "burns"},
            {**ROWS[0], "id": None, "topic": None},
            {**ROWS[0], "id": ""},
            {**ROWS[0], "id": 0},
        )
    )
    assert [(r["id"], r["topic"]) for r in rows] == [
        ("7", "burns"),
        ("row-0000001", ""),
        ("row-0000002", ""),
        ("0", ""),
    ]


def test_columns_name_fields_id_and_topic(tmp_path):
    path = jsonl(tmp_path / "d.jsonl", {"ask": Q, "reply": A, "nr": 7, "subject": "burns"})
    assert Read(
        path, columns={"question": "ask", "answer": "reply", "id": "nr", "topic": "subject"}
    ) == [
        {
            "id": "7",
            "topic": "burns",
            "messages": [{"role": "user", "content": Q}, {"role": "assistant", "content": A}],
        }
    ]
    assert (
        "d.jsonl, line 1: `columns` names question; the row has ask, reply, nr, subject"
        in refused(path, columns={"question": "question", "answer": "reply"})
    )


def test_only_id_and_topic_may_be_named(tmp_path):
    (row,) = Read(
        jsonl(tmp_path / "d.jsonl", {"prompt": Q, "completion": A, "nr": 7}), columns={"id": "nr"}
    )
    assert (row["id"], row["messages"][0]["content"]) == ("7", Q)


@pytest.mark.parametrize(
    ("more", "count"), [({}, 9), ({"max_rows": 4}, 4), ({"max_rows": 9}, 9), ({"max_rows": 99}, 9)]
)
def test_max_rows_reads_only_the_first(tmp_path, more, count):
    assert Read(jsonl(tmp_path / "d.jsonl", *numbered(9)), **more).pairs == [
        (f"q{n}", f"a{n}") for n in range(count)
    ]


def test_rows_after_max_rows_are_not_looked_at(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(b'{"question": "a", "answer": "b"}\n\xff broken\n')
    assert len(Read(tmp_path / "d.jsonl", max_rows=1)) == 1


def test_the_fingerprint_is_of_the_bytes_and_of_a_hub_sets_revision(tmp_path, monkeypatch):
    def printed(dataset, **more):
        return sources.hash_sources(params.check_values({"dataset": dataset, **more}, "test"))

    path = jsonl(tmp_path / "d.jsonl", *numbered(2))
    before = printed(str(path))
    assert before == printed(str(path))
    jsonl(path, *numbered(3))
    assert before != printed(str(path))
    assert printed("owner/name") != printed("owner/name", dataset_revision="v1")
    held, off = printed(str(path)), printed(str(path), decontaminate=0)
    monkeypatch.setattr(
        safety, "ROWS_FILE", jsonl(tmp_path / "safety.jsonl", {"prompt": "another"})
    )
    assert held != printed(str(path)), "another safety set may drop other rows"
    assert off == printed(str(path), decontaminate=0)


def test_the_bundled_sets_are_read():
    rows = Read("bundled:first-aid")
    assert len(rows) >= 320
    assert all(len(r["messages"]) == 2 and r["topic"] for r in rows)


# ---------------------------------------------------------------------------------------------------------------------
# lists


def test_a_list_reads_one_source_after_the_other_and_names_rows_by_theirs(tmp_path):
    jsonl(tmp_path / "one.jsonl", *numbered(2))
    jsonl(
        tmp_path / "two.jsonl", {"ask": "x", "reply": "y"}, {"ask": "z", "reply": "w", "id": "own"}
    )
    rows = Read(
        [
            {"dataset": str(tmp_path / "one.jsonl")},
            {
                "dataset": str(tmp_path / "two.jsonl"),
                "columns": {"question": "ask", "answer": "reply"},
            },
            {"dataset": "bundled:first-aid", "max_rows": 1},
        ]
    )
    assert rows.pairs[:4] == [("q0", "a0"), ("q1", "a1"), ("x", "y"), ("z", "w")]
    assert [r["id"] for r in rows][:4] == [
        "one.jsonl-0000000",
        "one.jsonl-0000001",
        "two.jsonl-0000000",
        "two.jsonl-own",
    ]
    assert len(rows) == 5


def test_sources_of_the_same_name_give_their_rows_different_ids(tmp_path):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        jsonl(tmp_path / folder / "d.jsonl", *numbered(2))
    rows = Read([{"dataset": str(tmp_path / folder / "d.jsonl")} for folder in "ab"])
    assert [r["id"] for r in rows] == [
        "d.jsonl-1-0000000",
        "d.jsonl-1-0000001",
        "d.jsonl-2-0000000",
        "d.jsonl-2-0000001",
    ]


def test_columns_of_the_job_are_for_sources_without_their_own(tmp_path):
    one, two = (
        jsonl(tmp_path / "one.jsonl", {"ask": "a", "reply": "b"}),
        jsonl(tmp_path / "two.jsonl", {"q": "c", "a": "d"}),
    )
    rows = Read(
        [{"dataset": str(one)}, {"dataset": str(two), "columns": {"question": "q", "answer": "a"}}],
        columns={"question": "ask", "answer": "reply"},
    )
    assert rows.pairs == [("a", "b"), ("c", "d")]


@pytest.mark.parametrize(
    ("caps", "total", "expected"),
    [
        ((2, 0), 0, ["q0", "q1", "q0", "q1", "q2"]),
        ((0, 1), 0, ["q0", "q1", "q2", "q0"]),
        ((2, 2), 3, ["q0", "q1", "q0"]),
        ((0, 0), 2, ["q0", "q1"]),
        ((2, 0), 2, ["q0", "q1"]),
        ((0, 0), 3, ["q0", "q1", "q2"]),
    ],
)
def test_caps_of_a_source_and_of_all(tmp_path, caps, total, expected):
    path = jsonl(tmp_path / "d.jsonl", *numbered(3))
    assert [
        q
        for q, _ in Read(
            [{"dataset": str(path), "max_rows": cap} for cap in caps], max_rows=total
        ).pairs
    ] == expected


def test_a_cap_goes_over_the_files_of_a_folder(tmp_path):
    jsonl(tmp_path / "1.jsonl", *numbered(3))
    jsonl(tmp_path / "2.jsonl", *numbered(3, 3))
    assert len(Read([{"dataset": str(tmp_path), "max_rows": 4}])) == 4


def test_a_weight_keeps_about_its_share_and_counts_the_rest(tmp_path):
    rows = Read([{"dataset": str(jsonl(tmp_path / "d.jsonl", *numbered(4000))), "weight": 0.3}])
    assert 1110 < len(rows) < 1290, "six standard deviations"
    assert len(rows) + len(rows.dropped) == 4000
    assert {(reason, why) for reason, _, why in rows.dropped} == {("not_sampled", "weight 0.3")}
    assert {row_id for _, row_id, _ in rows.dropped}.isdisjoint(r["id"] for r in rows)


def test_a_weighted_choice_depends_on_seed_and_place_and_stays_when_rows_are_appended(tmp_path):
    def chosen(count, number=0, **more):
        path = jsonl(tmp_path / "d.jsonl", *numbered(count))
        return [
            q
            for q, _ in Read(
                [{"dataset": "bundled:first-aid", "max_rows": 1}] * number
                + [{"dataset": str(path), "weight": 0.5}],
                **more,
            ).pairs[number:]
        ]

    before = chosen(200)
    assert chosen(200) == before
    assert chosen(400)[: len(before)] == before
    assert chosen(200, seed=1) != before
    assert chosen(200, number=1) != before, "two sources of the same rows give the same ones"


def test_a_cap_counts_the_rows_read_not_those_a_weight_leaves(tmp_path):
    rows = Read(
        [
            {
                "dataset": str(jsonl(tmp_path / "d.jsonl", *numbered(100))),
                "weight": 0.5,
                "max_rows": 10,
            }
        ]
    )
    assert len(rows) + len(rows.dropped) == 10


@pytest.mark.parametrize(
    "entry", [{"weight": 0}, {"weight": 1.5}, {"max_rows": -1}, {"part": 1}, {"dataset": ""}]
)
def test_wrong_entries_of_a_list_are_refused(entry):
    with pytest.raises(UserError, match="weight > 0 and <= 1"):
        params.check_values({"dataset": [{"dataset": "bundled:first-aid", **entry}]}, "test")


@pytest.mark.parametrize("key", ["revision", "config", "split"])
def test_what_is_for_a_single_data_set_is_refused_beside_a_list(key):
    with pytest.raises(UserError, match=f"in a list, give each entry its own: .*{key}: v1}}"):
        sources.check_sources(
            params.check_values(
                {"dataset": [{"dataset": "owner/name"}], f"dataset_{key}": "v1"}, "test"
            )
        )


# ---------------------------------------------------------------------------------------------------------------------
# what is not there, and rows passed over


@pytest.mark.parametrize(
    "name", ["nowhere.jsonl", "nowhere.csv.gz", "bundled:second-aid", "data/a/b", "./x", "one-name"]
)
def test_unknown_datasets_name_what_is_expected(name):
    assert "bundled:first-aid" in refused(name)
    with pytest.raises(UserError):
        sources.check_sources(params.check_values({"exam": [name]}, "test"))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hf://datasets/owner/name", "write `owner/name`"),
        ("https://huggingface.co/datasets/owner/name", "write `owner/name`"),
        ("https://huggingface.co/datasets/owner/name/resolve/main/a.csv", "write `owner/name`"),
        ("https://example.org/data.csv", "Download the file first"),
        ("owner/name:part", "{dataset: owner/name, config: part}"),
        ("$HOME/data/my.jsonl", "write the path itself"),
        ("${DATA}/my.jsonl", "write the path itself"),
        ("data/*.jsonl", "Name the folder"),
        ("one.jsonl,two.jsonl", "[one.jsonl, two.jsonl]"),
        ("C:\\Users\\me\\my.jsonl", "Write paths with /"),
    ],
)
@pytest.mark.parametrize("key", ["dataset", "exam"])
def test_a_name_that_is_nothing_says_what_was_probably_meant(name, meant, key):
    job = params.check_values({key: name if key == "dataset" else [name]}, "test")
    with pytest.raises(UserError) as error:
        sources.check_sources(job)
    assert meant in str(error.value)


@pytest.mark.parametrize("key", ["dataset", "exam"])
def test_a_missing_file_in_a_folder_that_is_there_is_not_taken_for_a_hub_id(
    tmp_path, monkeypatch, key
):
    monkeypatch.setattr(sources, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    jsonl(tmp_path / "data" / "mine.jsonl", *numbered(1))

    def check(name, **more):
        values = {"dataset": name, **more} if key == "dataset" else {"exam": [name], **more}
        sources.check_sources(params.check_values(values, "test"))

    with pytest.raises(
        UserError, match=r"`data/mine` does not exist; folder `data` has mine.jsonl"
    ):
        check("data/mine")
    check("owner/mine")
    if key == "dataset":
        check("data/mine", dataset_revision="main")


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    jsonl(tmp_path / "d.jsonl", *numbered(1))
    assert Read("~/d.jsonl").pairs == [("q0", "a0")]
    with pytest.raises(UserError, match="does not exist"):
        Read("~/other.jsonl")


@pytest.mark.parametrize("key", ["revision", "config"])
def test_a_local_source_has_no_revision_or_configuration(tmp_path, key):
    path = jsonl(tmp_path / "d.jsonl", *numbered(1))
    for dataset, more in (
        ({"dataset": str(path), key: "x"}, {}),
        ([{"dataset": str(path), key: "x"}], {}),
        (str(path), {f"dataset_{key}": "x"}),
    ):
        with pytest.raises(UserError, match=f"is local, so it has no {key} `x`"):
            sources.check_sources(params.check_values({"dataset": dataset, **more}, "test"))


@pytest.mark.parametrize("key", ["revision", "config", "split"])
def test_what_is_given_twice_must_agree(key):
    def check(own):
        dataset = {"dataset": "owner/name", key: own}
        sources.check_sources(
            params.check_values({"dataset": dataset, f"dataset_{key}": "x"}, "test")
        )

    check("x")
    check("")
    with pytest.raises(UserError, match=f"dataset_{key} is x, but `dataset` has {key}: y"):
        check("y")


def test_an_empty_folder_says_what_it_should_hold(tmp_path):
    (tmp_path / "README.md").write_text("x")
    assert "has no .jsonl, .ndjson, .json, .csv" in refused(tmp_path)


def test_a_hub_id_offline_says_what_to_do():
    error = refused("nobody-here/no-such-set")
    assert all(
        word in error
        for word in (
            "could not be loaded",
            "Check the id, the revision and the network",
            "HF_TOKEN",
            "bundled:first-aid",
        )
    )


LINES = {  # five rows, of which the second and the fourth are bad
    "d.jsonl": GOOD + b"{\n" + GOOD + b'{"question": "\xff"}\n' + GOOD,
    "shape.jsonl": GOOD
    + b'{"ask": 1}\n'
    + GOOD
    + b'{"question": "\\ud800", "answer": ""}\n'
    + GOOD,
    "d.json": json.dumps(
        [{"question": "a", "answer": "b"}, 7] * 2 + [{"question": "a", "answer": "b"}]
    ).encode(),
    "d.csv": HEAD + b"a,b\na\na,b\n\xff,b\na,b\n",
    "quote.csv": HEAD + b'a,b\n"a"b,c\na,b\na,b,c\na,b\n',
    "d.parquet": columnar(
        "parquet",
        [
            {"question": "a", "answer": "b", "messages": m}
            for m in (None, [{"role": "x"}], None, [{"role": "x"}], None)
        ],
    ),
}


@pytest.mark.parametrize("name", LINES)
def test_skip_bad_lines_lets_so_many_pass_and_counts_them(tmp_path, name):
    (tmp_path / name).write_bytes(LINES[name])
    rows = Read(tmp_path / name, skip_bad_lines=2)
    assert len(rows) == 3
    assert [r["id"] for r in rows] == ["row-0000000", "row-0000002", "row-0000004"]
    first = 3 if "csv" in name else 2
    assert [(reason, where.rsplit(" ", 1)[1]) for reason, where, _ in rows.dropped] == [
        ("unreadable", str(first)),
        ("unreadable", str(first + 2)),
    ]
    assert all(name in where and why for _, where, why in rows.dropped)
    error = refused(tmp_path / name, skip_bad_lines=1)
    assert f" {first + 2}: " in error
    assert "2 rows could not be read; skip_bad_lines allows 1." in error
    assert f" {first}: " in refused(tmp_path / name)


def test_skip_bad_lines_is_for_all_sources_together(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(LINES["d.jsonl"])
    both = [{"dataset": str(tmp_path / "d.jsonl")}] * 2
    assert len(Read(both, skip_bad_lines=4)) == 6
    assert "4 rows could not be read; skip_bad_lines allows 3." in refused(both, skip_bad_lines=3)


def test_rows_that_an_open_quote_took_in_are_never_passed_over(tmp_path):
    (tmp_path / "d.csv").write_bytes(HEAD + b'"open,b\n' + b"a,b\n" * 50 + b'"c",d\n')
    assert "line 2: a quote that opens in this row" in refused(
        tmp_path / "d.csv", skip_bad_lines=10
    )
