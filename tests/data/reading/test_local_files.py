"""Folders, archives and workbooks: what is read, which split it belongs to, and what is named as not read.

python -m pytest tests/data/reading/test_local_files.py
"""

import gzip
import json
import os
import zipfile

import pytest

from helpers.reading import PAIRS, ROWS, Read, columnar, delimited, jsonl, numbered, refused
from lib import params
from lib.common.errors import UserError
from lib.data.reading import exam_items, sources
from lib.data.reading.local_files import find_split


def folder_of(path, names):
    """Write files of two rows each, whose questions begin with the files' names."""
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        jsonl(path / name, *({"question": f"{name} {n}", "answer": n} for n in "ab"))
    return path


def by_split(rows):
    """Return {split: names of the files whose rows it has}."""
    found = {}
    for row in rows:
        name = row["messages"][0]["content"].rsplit(" ", 1)[0]
        found.setdefault(row.get("split", "train"), set()).add(name)
    return found


def unread(rows):
    return {os.path.basename(e["name"]): e["unread"] for e in rows.inputs if e["unread"]}


# ---------------------------------------------------------------------------------------------------------------------
# names


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("Train.CSV", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("train_2.jsonl.gz", "train"),
        ("squad-train-v1.1.json", "train"),
        ("training/part1.csv", "train"),
        ("val.csv", "validation"),
        ("valid-00000-of-00001.parquet", "validation"),
        ("my_validation.jsonl", "validation"),
        ("dev.tsv", "validation"),
        ("test.jsonl", "test"),
        ("test/data-00000-of-00001.arrow", "test"),
        ("medqa.test.jsonl", "test"),
        ("TestSet.csv", "test"),
        ("eval.jsonl", "test"),
        ("held-out.csv", "test"),
        ("holdout.jsonl", "test"),
        ("book.xlsx/Test", "test"),
        # a name that is only a split's counts more than a word in one
        ("train/unit_test_01.jsonl", "train"),
        ("my-training-data/test.jsonl", "test"),
        # rather held out than trained on
        ("test/train.jsonl", "test"),
        ("val_test.csv", "test"),
        ("latest.csv", None),
        ("contest.csv", None),
        ("pretrained.csv", None),
        ("devices.csv", None),
        ("values.csv", None),
        ("train_test_split.csv", None),
        ("burns.jsonl", None),
    ],
)
def test_the_split_that_a_name_tells(name, split):
    assert find_split(name) == split


# ---------------------------------------------------------------------------------------------------------------------
# splits


@pytest.mark.parametrize(
    ("names", "expected", "not_read"),
    [
        (
            ["train.jsonl", "validation.jsonl", "test.jsonl"],
            {"train": {0}, "validation": {1}, "test": {2}},
            (),
        ),
        (["a.jsonl", "b/test.jsonl"], {"train": {0}, "test": {1}}, ()),
        (["a.jsonl", "b.jsonl"], {"train": {0, 1}}, ()),
        (["train1.jsonl", "train2.jsonl", "dev.jsonl"], {"train": {0, 1}, "validation": {2}}, ()),
        (["train.jsonl", "all.jsonl", "test.jsonl"], {"train": {0}, "test": {2}}, {"all.jsonl"}),
    ],
)
def test_held_out_files_of_a_folder_are_read_as_such_and_first(tmp_path, names, expected, not_read):
    rows = Read(folder_of(tmp_path, names))
    assert by_split(rows) == {k: {names[n] for n in own} for k, own in expected.items()}
    held_out = ["split" in row for row in rows]
    assert held_out == sorted(held_out, reverse=True), (
        "a row to train on came before a held-out one"
    )
    assert all(row["id"].startswith(row["split"]) for row in rows if "split" in row)
    assert len({row["id"] for row in rows}) == len(rows)
    assert set(unread(rows)) == set(not_read)
    assert sum(entry["rows"] for entry in rows.inputs) == len(rows)


@pytest.mark.parametrize(
    ("split", "names"),
    [
        ("train", {"train.jsonl"}),
        ("test", {"test.jsonl"}),
        ("train+validation", {"train.jsonl", "dev.jsonl"}),
        ("all", {"train.jsonl", "dev.jsonl", "test.jsonl"}),
    ],
)
@pytest.mark.parametrize("form", ["parameter", "mapping", "list"])
def test_a_split_that_is_named_is_trained_on_and_nothing_else_is_read(tmp_path, split, names, form):
    folder_of(tmp_path, ["train.jsonl", "dev.jsonl", "test.jsonl"])
    entry = {"dataset": str(tmp_path), "split": split}
    more = {"dataset_split": split} if form == "parameter" else {}
    dataset = {"parameter": str(tmp_path), "mapping": entry, "list": [entry]}[form]
    rows = Read(dataset, **more)
    assert by_split(rows) == {"train": names}
    assert set(unread(rows)) == {"train.jsonl", "dev.jsonl", "test.jsonl"} - names


@pytest.mark.parametrize("split", ["", "validation", "train[:10]", "nothing"])
def test_a_split_that_is_not_there_lists_what_there_is(tmp_path, split):
    folder_of(tmp_path, ["test.jsonl"])
    error = refused({"dataset": str(tmp_path), "split": split})
    assert f"has no files of split `{split or 'train'}`, only of test" in error
    assert "split: test}" in error
    with pytest.raises(UserError):
        sources.check_sources(
            params.check_values({"dataset": {"dataset": str(tmp_path), "split": split}}, "test")
        )


def test_a_file_that_is_named_itself_is_trained_on_whatever_its_name(tmp_path):
    path = jsonl(tmp_path / "test.jsonl", *numbered(2))
    assert ["split" in row for row in Read(path)] == [False, False]


def test_a_cap_is_for_each_split_and_a_weight_for_training_rows_alone(tmp_path):
    jsonl(tmp_path / "train.jsonl", *numbered(400))
    jsonl(tmp_path / "test.jsonl", *numbered(400, 400))
    capped = Read(tmp_path, max_rows=3)
    assert [row.get("split") for row in capped] == ["test"] * 3 + [None] * 3
    weighted = Read([{"dataset": str(tmp_path), "weight": 0.5}])
    held_out = [row for row in weighted if "split" in row]
    assert len(held_out) == 400
    assert 150 < len(weighted) - len(held_out) < 250
    alone = Read([{"dataset": str(tmp_path), "weight": 0.5, "split": "train"}])
    assert [r["id"] for r in weighted if "split" not in r] == [r["id"] for r in alone]


def test_files_that_max_rows_leaves_out_are_named(tmp_path):
    rows = Read(folder_of(tmp_path, ["1.jsonl", "2.jsonl", "3.jsonl"]), max_rows=2)
    reached = "max_rows was reached before it"
    assert unread(rows) == {"2.jsonl": reached, "3.jsonl": reached}


def test_a_file_that_moves_to_another_split_changes_the_fingerprint(tmp_path):
    job = params.check_values({"dataset": str(tmp_path)}, "test")
    folder_of(tmp_path, ["a.jsonl", "b.jsonl"])
    plain = sources.hash_sources(job)
    (tmp_path / "b.jsonl").rename(tmp_path / "b.test.jsonl")
    assert sources.hash_sources(job) != plain


def test_an_exam_is_the_test_split_of_a_folder_or_all_of_it(tmp_path):
    item = {"options": ["a", "b"], "answer": 0}
    for name in ("train", "validation", "test", "other"):
        jsonl(tmp_path / f"{name}.jsonl", {"question": name, **item})

    def asked():
        return [item["question"] for item in exam_items.read_items(str(tmp_path))]

    assert asked() == ["test"]
    (tmp_path / "test.jsonl").unlink()
    assert asked() == ["validation"]
    (tmp_path / "validation.jsonl").unlink()
    assert asked() == ["other", "train"]


# ---------------------------------------------------------------------------------------------------------------------
# folders


def test_a_folder_is_all_its_files_in_order_of_name(tmp_path):
    for n, name in enumerate(
        ["a/comma.csv", "a/d.json", "b.jsonl.gz", "c.parquet", "d/stream.arrow", "e.tsv"]
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = numbered(2, 2 * n)
        content = {
            "v": delimited(rows, delimiter="\t" if "tsv" in name else ","),
            "n": json.dumps(rows).encode(),
            "w": columnar("stream", rows),
            "t": columnar("parquet", rows),
            "z": gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()),
        }[name[-1]]
        (tmp_path / name).write_bytes(content)
    for name in ("README.md", ".hidden.jsonl", "a/.DS_Store", "cache-0123.arrow"):
        (tmp_path / name).write_text("not data")
    rows = Read(tmp_path)
    assert rows.pairs == [(f"q{n}", f"a{n}") for n in range(12)]
    assert len({r["id"] for r in rows}) == 12
    assert rows.ticks == sorted(rows.ticks)
    assert rows.ticks[-1] <= sources.count_local_bytes(
        params.check_values({"dataset": str(tmp_path)}, "test")
    )


def test_what_datasets_saves_to_disk_is_read_with_its_splits(tmp_path):
    import datasets

    made = datasets.Dataset.from_list(ROWS)
    made.save_to_disk(tmp_path / "one", num_shards=2)
    datasets.DatasetDict(train=made, test=datasets.Dataset.from_list(numbered(3))).save_to_disk(
        tmp_path / "splits"
    )
    datasets.DatasetDict(test=made).save_to_disk(tmp_path / "test only")
    assert Read(tmp_path / "one").pairs == PAIRS
    splits = Read(tmp_path / "splits")
    assert splits.pairs == [(f"q{n}", f"a{n}") for n in range(3)] + PAIRS
    assert [row.get("split") for row in splits] == ["test"] * 3 + [None] * 3
    assert "has no files of split `train`, only of test" in refused(tmp_path / "test only")


def test_what_is_not_read_is_named_with_the_reason(tmp_path):
    folder = tmp_path / "data"
    folder_of(folder, ["a.jsonl", "sub/b.jsonl", ".ipynb_checkpoints/a.jsonl"])
    folder_of(tmp_path / "elsewhere", ["c.jsonl"])
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "here.jsonl").symlink_to(tmp_path / "elsewhere" / "c.jsonl")
    (folder / ".hidden.csv").write_text("x")
    (folder / "d.docx").write_text("x")
    (folder / "e.xlsx").write_bytes(b"PK\x03\x04 not really")
    (folder / "f.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd")
    (folder / "g.zip").write_bytes(b"PK\x03\x04")
    (folder / "dataset_info.json").write_text("{}")
    rows = Read(folder)
    assert by_split(rows) == {"train": {"a.jsonl", "c.jsonl", "sub/b.jsonl"}}
    assert {name: why.split(":")[0] for name, why in unread(rows).items()} == {
        ".ipynb_checkpoints": "hidden",
        ".hidden.csv": "hidden",
        "linked": "a link to a folder",
        "gone.jsonl": "a broken link",
        "d.docx": "unknown ending",
        "e.xlsx": "not an Excel workbook, or one with a password",
        "f.csv.zst": "cannot be read",
        "g.zip": "cannot be read",
        "dataset_info.json": "no rows",
    }


def test_a_folder_without_any_data_says_what_it_has(tmp_path):
    (tmp_path / "cases.docx").write_text("x")
    error = refused(tmp_path)
    assert "has no .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .arrow, .xlsx, .zip" in error
    assert "it has cases.docx. Save one of these as CSV or JSON Lines." in error


# ---------------------------------------------------------------------------------------------------------------------
# archives


def archive_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_an_archive_is_read_as_a_folder_is(tmp_path):
    lines = ["".join(json.dumps(row) + "\n" for row in numbered(2, 2 * n)) for n in range(3)]
    path = archive_of(
        tmp_path / "all.zip",
        {
            "set/train-1.jsonl.gz": gzip.compress(lines[0].encode()),
            "set/train-2.jsonl": lines[1],
            "set/test.jsonl": lines[2],
            "set/": "",
            "set/README.md": "x",
            "__MACOSX/set/._train-1.jsonl": "x",
            "set/more.zip": "x",
            "set/more.xlsx": "x",
        },
    )
    rows = Read(path)
    assert rows.pairs == [(f"q{n}", f"a{n}") for n in (4, 5, 0, 1, 2, 3)]
    assert [row.get("split") for row in rows] == ["test"] * 2 + [None] * 4
    assert set(unread(rows)) == {"README.md", "._train-1.jsonl", "more.zip", "more.xlsx"}
    folder = tmp_path / "folder"
    folder.mkdir()
    path.rename(folder / "all.zip")
    assert Read(folder).pairs == rows.pairs
    assert "all.zip/set/train-2.jsonl, line 1: " in refused(
        archive_of(tmp_path / "bad.zip", {"a.csv": "a", "set/train-2.jsonl": "1\n"})
    ).replace("bad.zip", "all.zip")


def test_an_archive_of_one_file_is_trained_on_whatever_its_name(tmp_path):
    path = archive_of(tmp_path / "d.zip", {"test.csv": "question,answer\na,b\n"})
    assert [
        (row.get("split"), *pair) for row, pair in zip(Read(path), Read(path).pairs, strict=True)
    ] == [(None, "a", "b")]


def test_parquet_in_an_archive_is_read(tmp_path):
    path = archive_of(tmp_path / "d.zip", {"d.parquet": columnar("parquet")})
    assert Read(path).pairs == PAIRS


def test_an_archive_with_a_password_says_what_to_do(tmp_path):
    path = archive_of(tmp_path / "d.zip", {"a.csv": "question,answer\na,b\n"})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1  # the flag of an encrypted member
    path.write_bytes(data)
    assert "Unpack the archive, and name the folder" in refused(path)


def test_a_damaged_archive_is_an_error(tmp_path):
    path = archive_of(
        tmp_path / "d.zip",
        {"a.jsonl": "".join(json.dumps(r) + "\n" for r in numbered(5000))},
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 16] ^= 1  # of the checksum
    path.write_bytes(data)
    error = refused(path)
    assert "d.zip/a.jsonl, after line 4" in error
    assert "cannot be read: Bad CRC-32" in error
    path.write_bytes(data[:-30])
    assert "d.zip: cannot be read: File is not a zip file" in refused(path)
