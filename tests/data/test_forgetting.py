"""Rows of another source, measured for what is forgotten: cleaned, kept apart, never trained on.

python -m pytest tests/data/test_forgetting.py
"""

import json

import pytest

from helpers.preparing import job, jsonl, made_up, prepare
from lib.common.errors import UserError
from lib.data import data_card, splits
from lib.data.reading import sources


def split_ids(folder, *names):
    return [splits.load_split(folder / "data", name)["id"][:] for name in names]


@pytest.fixture
def other(tmp_path):
    """Return a file of 8 rows of another kind, one with an address, and one that cannot be kept."""
    rows = made_up(8, 7)
    mail = {"id": "mail", "question": "Whom do I ask about this now?"}
    mail["answer"] = "You can always write to jane.doe@example.org about that."
    empty = {"id": "null", "question": "What now?", "answer": None}
    return jsonl(tmp_path / "other.jsonl", [*rows, mail, empty])


def test_they_are_cleaned_and_kept_apart_and_what_repeats_them_is_not_trained_on(
    bundled_base, cache, tmp_path, other
):
    train, (long, *_) = made_up(60), made_up(8, 7)
    text = " ".join(row["answer"] for row in made_up(4, 5))
    rows = [json.loads(line) for line in other.read_text().splitlines()]
    jsonl(other, [*rows, {**long, "id": "long", "question": "Why so?", "answer": text}])
    leaks = [
        rows[0] | {"id": "copy"},
        rows[1] | {"id": "asked", "answer": "Something else entirely, as another has it. " * 3},
        rows[2] | {"id": "near", "question": "Why?", "answer": text.replace(" a ", " one ")},
        {"id": "quoted", "question": "What is it?", "answer": "It says: " + rows[3]["answer"]},
    ]
    path = jsonl(tmp_path / "train.jsonl", [*leaks, *train])
    plain, counted = prepare(job(path), bundled_base, tmp_path / "plain")
    assert not (tmp_path / "plain/data/forgetting").exists()
    assert "forgetting" not in counted
    own = job(path, forgetting=str(other))
    prepared, results = prepare(own, bundled_base, tmp_path / "run")
    ids, trained = split_ids(tmp_path / "run", "forgetting", "train")
    assert ids == [*(f"forgetting-r{n}" for n in range(8)), "forgetting-mail", "forgetting-long"]
    assert set(trained).isdisjoint({"copy", "asked", "near", "quoted"})
    # the sides of the job's own rows are as without them
    assert [set(part) - {row["id"] for row in leaks} for part in split_ids(tmp_path / "run", *splits.SPLITS)] == [
        set(part) - {row["id"] for row in leaks} for part in split_ids(tmp_path / "plain", *splits.SPLITS)
    ]  # fmt: skip
    assert (results["forgetting"], results["rows_read"]) == (10, counted["rows_read"] + 11)
    answers = splits.load_split(tmp_path / "run/data", "forgetting")["answer"]
    assert not any("jane.doe" in answer for answer in answers)
    card = data_card.describe_data(prepared, results, "")
    assert card["forgetting"]["dataset"] == str(other)
    assert [source["dataset"] for source in card["sources"]] == [str(path)], "not trained on"
    assert card["held_out_by_files"] == []
    said = data_card.describe_inputs(card["files"])
    assert "forgetting: 11 rows of" in said
    assert "never trained on" in said
    assert sources.hash_sources(own) != sources.hash_sources(job(path))
    assert plain.facts["fingerprint"] != prepared.facts["fingerprint"]


def test_a_row_that_is_held_out_already_stays_there(bundled_base, cache, tmp_path, other):
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set/train.jsonl", made_up(40))
    test = [json.loads(line) for line in other.read_text().splitlines()][:3]
    jsonl(tmp_path / "set/test.jsonl", test)
    own = job(tmp_path / "set", forgetting=str(other))
    prepare(own, bundled_base, tmp_path / "run")
    ids, held_out = split_ids(tmp_path / "run", "forgetting", "test")
    assert held_out == [f"test-r{n}" for n in range(3)]
    assert ids == [*(f"forgetting-r{n}" for n in range(3, 8)), "forgetting-mail"]


def test_a_part_of_them_or_a_folders_test_files_are_read(bundled_base, cache, tmp_path, other):
    path = jsonl(tmp_path / "train.jsonl", made_up(40))
    few = job(path, forgetting={"dataset": str(other), "max_rows": 3})
    prepare(few, bundled_base, tmp_path / "few")
    assert split_ids(tmp_path / "few", "forgetting") == [[f"forgetting-r{n}" for n in range(3)]]
    (tmp_path / "set").mkdir()
    other.rename(tmp_path / "set/test.jsonl")
    jsonl(tmp_path / "set/train.jsonl", made_up(5, 9))
    prepare(job(path, forgetting=str(tmp_path / "set")), bundled_base, tmp_path / "of_folder")
    (ids,) = split_ids(tmp_path / "of_folder", "forgetting")
    assert ids == [*(f"forgetting-r{n}" for n in range(8)), "forgetting-mail"]


def test_what_cannot_be_measured_is_named_before_anything_is_read(
    bundled_base, cache, tmp_path, other
):
    path = jsonl(tmp_path / "train.jsonl", made_up(40))
    for value, said in (
        ("no/such.jsonl", "forgetting `no/such.jsonl` does not exist"),
        ({"dataset": str(other), "weight": 0.5}, "max_rows takes the first ones"),
        ({"dataset": str(other), "config": "x"}, f"forgetting `{other}` is local"),
    ):
        with pytest.raises(UserError, match=said):
            sources.check_sources(job(path, forgetting=value))
    jsonl(other, [{"id": "null", "question": "What now?", "answer": None}])
    with pytest.raises(UserError, match="no row of `forgetting` .* is left"):
        prepare(job(path, forgetting=str(other)), bundled_base, tmp_path / "run")
