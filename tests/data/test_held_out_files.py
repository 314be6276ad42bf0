"""Held-out files of a folder through the whole stage: they are the measured sides, and never trained on.

python -m pytest tests/data/test_held_out_files.py
"""

import json

import pytest

from helpers.preparing import job, jsonl, made_up, prepare
from lib.data import data_card, splits
from lib.data import prepare as data


def split_ids(folder):
    return {name: splits.load_split(folder / "data", name)["id"][:] for name in splits.SPLITS}


def swap_word(text, place):
    words = text.split()
    return " ".join([*words[:place], "elsewhere", *words[place + 1 :]])


def write_folder(folder, with_validation=True):
    """Write 60 training, 8 validation and 8 test rows, and training rows that repeat held-out ones."""
    folder.mkdir()
    train, validation, test = made_up(60), made_up(8, 2), made_up(8, 3)
    long = made_up(1, 4)[0] | {"answer": " ".join(row["answer"] for row in made_up(4, 5))}
    test.append(long | {"id": "long"})
    leaks = [
        test[0] | {"id": "copy"},
        test[1]
        | {"id": "asked", "answer": "Something else entirely, as another book has it. " * 3},
        long | {"id": "near", "answer": swap_word(long["answer"], 30)},
        made_up(1, 6)[0] | {"id": "quoted", "answer": "It says: " + test[2]["answer"]},
        validation[0] | {"id": "copied from validation"},
    ]
    validation.append(test[3] | {"id": "on both"})
    jsonl(folder / "train.jsonl", [*leaks, *train])
    if with_validation:
        jsonl(folder / "validation.jsonl", validation)
    jsonl(folder / "test.jsonl", test)
    return folder


POLICIES = [
    {},
    {"near_duplicates": "keep"},
    {"skip_rules": ["exact_duplicate"], "near_duplicates": "keep"},
    {"same_question": "longest"},
    {"same_question": "first", "seed": 1},
    {"decontaminate": 0},
    {"validation_size": 0.0, "test_size": 0.0},
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_held_out_files_are_the_sides_and_nothing_of_them_is_trained_on(
    bundled_base, cache, tmp_path, policy
):
    folder = write_folder(tmp_path / "set")
    rows, results = prepare(job(folder, **policy), bundled_base, tmp_path / "run")
    found = split_ids(tmp_path / "run")
    assert found["test"] == [*(f"test-r{n}" for n in range(8)), "test-long"]
    assert found["validation"] == [f"validation-r{n}" for n in range(8)], "`on both` stays in test"
    leaks = {"copy", "asked", "near", "copied from validation"}
    if policy.get("decontaminate") != 0:
        leaks.add("quoted")
    assert set(found["train"]).isdisjoint(leaks)
    assert set(found["train"]) >= {f"r{n}" for n in range(60)}, "a row was moved or dropped"
    assert results["rows_read"] == 60 + 5 + 9 + 9
    listed = [
        json.loads(line) for line in (tmp_path / "run/data/dropped.jsonl").read_text().splitlines()
    ]
    assert {row["id"] for row in listed} == leaks | {"validation-on both"}
    assert all(row["by"] for row in listed), "each names the held-out row"


def test_only_the_side_that_no_file_gives_is_drawn(bundled_base, cache, tmp_path):
    folder = write_folder(tmp_path / "set", with_validation=False)
    given = job(folder, validation_size=0.3, test_size=0.3)
    prepare(given, bundled_base, tmp_path / "run")
    found = split_ids(tmp_path / "run")
    assert found["test"] == [*(f"test-r{n}" for n in range(8)), "test-long"]
    assert 5 < len(found["validation"]) < 35
    assert not any(name.startswith("test-") for name in found["validation"] + found["train"])


def test_held_out_files_of_one_source_count_for_the_rows_of_another(bundled_base, cache, tmp_path):
    folder = write_folder(tmp_path / "set")
    other = jsonl(tmp_path / "before.jsonl", [made_up(8, 3)[4] | {"id": "leak"}, *made_up(9, 7)])
    given = job("", dataset=[str(other), str(folder)], validation_size=0.3, test_size=0.3)
    prepare(given, bundled_base, tmp_path / "run")
    found = split_ids(tmp_path / "run")
    assert "before.jsonl-leak" not in found["train"]
    assert "set-test-r4" in found["test"]
    assert sum(name.startswith("before") for name in found["train"]) == 9, "none is drawn from it"


def test_the_data_card_and_the_terminal_say_what_was_held_out_and_not_read(
    bundled_base, cache, tmp_path
):
    folder = write_folder(tmp_path / "set")
    (folder / "more.docx").write_text("x")
    rows, results = prepare(job(folder), bundled_base, tmp_path / "run")
    card = json.loads(json.dumps(data.describe_data(rows, results, "hash")))
    assert card["held_out_by_files"] == ["test", "validation"]
    assert [
        (entry["name"].rsplit("/", 1)[1], entry["split"], entry["rows"], bool(entry["unread"]))
        for entry in card["files"]
    ] == [
        ("test.jsonl", "test", 9, False),
        ("validation.jsonl", "validation", 9, False),
        ("train.jsonl", "train", 65, False),
        ("more.docx", "", 0, True),
    ]
    said = data.describe_inputs(rows.inputs)
    assert "test: 9 rows, all of them from held-out files (" in said
    assert "not read: " in said
    assert "more.docx (unknown ending)" in said


def test_many_files_are_cut_in_the_card_but_counted():
    inputs = [{"name": f"{n}", "split": "train", "rows": 2, "unread": ""} for n in range(1000)]
    listed = data_card.list_inputs(inputs)
    assert len(listed) == data_card.MOST_INPUTS + 1
    assert sum(entry["rows"] for entry in listed) == 2000
    assert listed[-1]["name"] == "and 800 more"
