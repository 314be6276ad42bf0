"""The data stage as a whole: rows add up, nothing is dropped or changed uncounted, what is on disk is what was proven, the cache re-uses.

python -m pytest tests/test_data.py
"""

import gzip
import json
import pathlib
import random

import numpy as np
import pytest

from lib import params
from lib.common import files, workers
from lib.common.errors import UserError
from lib.common.words import words_of
from lib.data import chat, chunks, duplicates, label_mask, splits
from lib.data import prepare as data
from lib.medical import safety

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
WORDS = (
    "the quiet river runs past an old stone bridge where children watch boats drift slowly toward distant mountains while evening light "
    "turns every window golden and farmers bring their horses home across wide fields of ripe corn before another long winter begins with heavy "
    "snow over small villages along this valley"
).split()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def job(path, **values):
    return params.check_values(
        {
            "dataset": str(path),
            "max_seq_length": 256,
            "validation_size": 0.1,
            "test_size": 0.1,
            "exam": [],
            **values,
        },
        "test",
    )


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def made_up(count, seed=1, start=0):
    rng = random.Random(seed)
    rows = [
        {
            "id": f"r{n}",
            "question": "What about " + " ".join(rng.choices(WORDS, k=8)) + "?",
            "answer": "Then " + " ".join(rng.choices(WORDS, k=25)) + ".",
        }
        for n in range(start + count)
    ]
    return rows[start:]


def prepare(job_, base, folder):
    """All steps; (Rows, results)."""
    folder.mkdir(exist_ok=True)
    rows = data.begin(job_, folder)
    data.read_and_clean(rows)
    data.measure(rows, base)
    data.deduplicate(rows)
    data.decontaminate(rows)
    return rows, data.tokenise(rows, base, folder / "data")


def stored(folder):
    return {
        r["id"]: {**r, "split": s}
        for s in splits.SPLITS
        for r in splits.load_split(folder / "data", s).to_list()
    }


def mixed():
    rows = made_up(60)
    return [
        *rows,
        rows[3],
        {**rows[4], "id": "caps", "question": rows[4]["question"].upper()},
        {"id": "null", "question": "What now?", "answer": None},
        {"id": "none", "question": "What then?", "answer": "N/A"},
        {"id": "echo", "question": "Is it so?", "answer": "is it so ?"},
        {
            "id": "mail",
            "question": "Whom do I ask about this?",
            "answer": "You can always write to jane.doe@example.org about that.",
        },
        {
            "id": "long",
            "question": "Why is that?",
            "answer": ("It is because of this. " * 80).strip(),
        },
        {
            "id": "spaces",
            "question": "What is the reason ?",
            "answer": "There   is no   particular reason for it.",
        },
    ]


def test_rows_add_up_and_what_is_dropped_is_named_with_its_reason(bundled_base, cache, tmp_path):
    rows, results = prepare(
        job(jsonl(tmp_path / "d.jsonl", mixed())), bundled_base, tmp_path / "run"
    )
    assert results["dropped"] == {
        "exact_duplicate": 2,
        "empty": 1,
        "placeholder": 1,
        "answer_is_question": 1,
        "too_long": 1,
    }
    assert results["changed"] == {"question_mark": 2, "personal_data": 1, "blanks": 1}
    assert results["rows_read"] == 68
    assert (
        results["rows_kept"]
        == results["train"] + results["validation"] + results["test"]
        == len(stored(tmp_path / "run"))
        == 62
    )
    listed = [
        json.loads(line) for line in (tmp_path / "run/data/dropped.jsonl").read_text().splitlines()
    ]
    assert {r["id"]: r["reason"] for r in listed} == {
        "r3": "exact_duplicate",
        "caps": "exact_duplicate",
        "null": "empty",
        "none": "placeholder",
        "echo": "answer_is_question",
        "long": "too_long",
    }
    assert {r["id"]: r.get("by") for r in listed if r["reason"] == "exact_duplicate"} == {
        "r3": "r3",
        "caps": "r4",
    }
    card = data.card(rows, results, "hash")
    assert {k: v["rows"] for k, v in card["dropped"].items()} == results["dropped"]
    assert all(
        1 <= len(v["examples"]) <= 3 for part in ("dropped", "changed") for v in card[part].values()
    )
    assert card["changed"]["personal_data"]["examples"] == [
        {
            "id": "mail",
            "before": "You can always write to jane.doe@example.org about that.",
            "after": "You can always write to [e-mail] about that.",
        }
    ]
    assert json.dumps(card)
    assert not (tmp_path / "run/.prepare.tmp").exists()


def test_what_is_on_disk_is_what_an_own_reading_and_encoding_gives(bundled_base, cache, tmp_path):
    _, results = prepare(
        job(jsonl(tmp_path / "d.jsonl", made_up(120))), bundled_base, tmp_path / "run"
    )
    gemma, kept = chat.load_chat(bundled_base), stored(tmp_path / "run")
    assert len(kept) == 120
    for row in made_up(120):
        messages = [
            {"role": "user", "content": row["question"]},
            {"role": "assistant", "content": row["answer"]},
        ]
        ids, labels = label_mask.encode(gemma, messages)
        assert kept[row["id"]] == {
            "id": row["id"],
            "topic": "",
            "question": row["question"],
            "answer": row["answer"],
            "input_ids": ids,
            "labels": labels,
            "length": len(ids),
            "split": kept[row["id"]]["split"],
        }
    assert results["tokens_total"] == sum(r["length"] for r in kept.values())
    assert results["tokens_trained"] == sum(
        label != -100 for r in kept.values() for label in r["labels"]
    )


def test_several_processes_give_the_same_bytes_as_one(bundled_base, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK_ROWS", 25)
    path = jsonl(tmp_path / "d.jsonl", mixed() + [{"wrong": 1}] + made_up(100, 5, 60) + [["wrong"]])
    hashes = []
    for name, small in (("one", True), ("several", False)):
        monkeypatch.setattr(chunks, "CACHE", tmp_path / f"cache-{name}")
        monkeypatch.setattr(
            data.workers, "start_pool", lambda small, start=workers.start_pool, want=small: start(want)
        )
        rows, _ = prepare(
            job(path, dataset=[{"dataset": str(path), "weight": 0.7}], skip_bad_lines=9),
            bundled_base,
            tmp_path / name,
        )
        hashes.append(
            (
                rows.facts["fingerprint"],
                [(a["path"], a["sha256"]) for a in files.describe_files(tmp_path / name, ["data"])],
            )
        )
    assert hashes[0] == hashes[1]
    reasons = [
        json.loads(line)["reason"]
        for line in (tmp_path / "one/data/dropped.jsonl").read_text().splitlines()
    ]
    assert {"not_sampled", "unreadable", "exact_duplicate"} <= set(reasons)


def test_the_fingerprint_sees_every_token_label_and_side(bundled_base, cache, tmp_path):
    path = jsonl(tmp_path / "d.jsonl", made_up(40))
    seen = {prepare(job(path), bundled_base, tmp_path / "a")[0].facts["fingerprint"]}
    assert prepare(job(path), bundled_base, tmp_path / "b")[0].facts["fingerprint"] in seen
    rows = made_up(40)
    rows[7]["answer"] = rows[7]["answer"].replace("Then", "When")
    seen.add(
        prepare(job(jsonl(tmp_path / "e.jsonl", rows)), bundled_base, tmp_path / "c")[0].facts[
            "fingerprint"
        ]
    )
    seen.add(prepare(job(path, seed=5), bundled_base, tmp_path / "d")[0].facts["fingerprint"])
    assert len(seen) == 3


def test_an_overlong_answer_is_cut_where_asked_and_counted(bundled_base, cache, tmp_path):
    path = jsonl(
        tmp_path / "d.jsonl",
        [
            *made_up(30),
            {
                "id": "long",
                "question": "Why is that?",
                "answer": ("It is because of this. " * 80).strip(),
            },
        ],
    )
    rows, results = prepare(job(path, overlong="cut"), bundled_base, tmp_path / "run")
    assert (results["truncated"], results["changed"]) == (1, {"answer_cut": 1})
    assert "too_long" not in results["dropped"]
    row = stored(tmp_path / "run")["long"]
    assert 240 < row["length"] <= 256
    assert row["answer"].endswith("of this.")
    assert row["labels"].count(106) == 1
    assert data.card(rows, results, "")["changed"]["answer_cut"]["examples"][0]["id"] == "long"


def test_training_rows_that_repeat_exam_or_held_out_rows_go(bundled_base, cache, tmp_path):
    exam = [
        {
            "id": "e1",
            "question": "A cyclist fell and does not answer when spoken to, which of these is the first thing you should do?",
            "options": {"A": "Check the breathing", "B": "Give water"},
            "answer_letter": "A",
        }
    ]
    repeats = {
        "id": "leak",
        "question": "Tell me: a cyclist fell and does not answer when spoken to, which of these is the first thing you should do?",
        "answer": "Make sure that you are safe yourself.",
    }
    near = {
        "id": "near",
        "question": "Somebody fell here, what is first?",
        "answer": "Check the breathing",
    }
    rows = [*made_up(100), repeats, near]
    exam.append(
        {
            "id": "e2",
            "question": near["question"],
            "options": {"A": near["answer"], "B": "Give water"},
            "answer_letter": "A",
        }
    )
    settings = {
        "exam": [str(jsonl(tmp_path / "exam.jsonl", exam))],
        "validation_size": 0.0,
        "test_size": 0.0,
    }
    path = jsonl(tmp_path / "d.jsonl", rows)
    got, results = prepare(job(path, **settings), bundled_base, tmp_path / "run")
    assert results["dropped"] == {"contaminated": 2}
    listed = {
        r["id"]: r["by"]
        for r in map(json.loads, (tmp_path / "run/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed == {"leak": "exam e1", "near": "exam e2"}
    assert got.facts["exam_items"] == 2
    assert (
        prepare(job(path, **{**settings, "decontaminate": 0}), bundled_base, tmp_path / "off")[1][
            "dropped"
        ]
        == {}
    )

    sides = {r["id"]: r["split"] for r in stored(tmp_path / "off").values()}
    assert set(sides.values()) == {"train"}
    prepare(job(path, exam=[]), bundled_base, tmp_path / "split")
    held = next(r for r in stored(tmp_path / "split").values() if r["split"] == "test")
    copy = {
        "id": "copy",
        "question": "And now something else entirely, about " + " ".join(WORDS[:6]) + "?",
        "answer": "Well. " + held["answer"] + " So it is.",
    }
    for n in range(40):  # until its own question's side is train
        copy["question"] += f" {WORDS[n + 7]}"
        prepare(
            job(jsonl(tmp_path / "f.jsonl", [*rows, copy]), exam=[], decontaminate=0),
            bundled_base,
            tmp_path / "probe",
        )
        if stored(tmp_path / "probe")["copy"]["split"] == "train":
            break
    _, results = prepare(job(tmp_path / "f.jsonl", exam=[]), bundled_base, tmp_path / "last")
    listed = {
        r["id"]: r["by"]
        for r in map(json.loads, (tmp_path / "last/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed["copy"] == held["id"]


def test_training_rows_that_repeat_a_safety_prompt_go(bundled_base, cache, tmp_path):
    asked = safety.load_rows()
    long = next(row for row in asked if len(words_of(row["prompt"])) > 20)
    nearly = next(
        row for row in asked if row is not long and 14 < len(words_of(row["prompt"])) <= 25
    )
    swapped = " ".join(
        [*nearly["prompt"].split()[::-1]]
    )  # no run of words in common, but the same words
    rows = [
        *made_up(30),
        {
            "id": "run",
            "question": "Someone wrote to us.",
            "answer": "They said: " + " ".join(long["prompt"].split()[:14]) + ".",
        },
        {
            "id": "less",
            "question": "Someone else wrote.",
            "answer": "They said: " + " ".join(long["prompt"].split()[:9]) + ".",
        },
        {"id": "near", "question": swapped, "answer": "Call your local emergency number."},
    ]
    path, settings = jsonl(tmp_path / "d.jsonl", rows), {"validation_size": 0.0, "test_size": 0.0}
    got, results = prepare(job(path, **settings), bundled_base, tmp_path / "run")
    listed = {
        r["id"]: (r["reason"], r["by"])
        for r in map(json.loads, (tmp_path / "run/data/dropped.jsonl").read_text().splitlines())
    }
    assert listed == {
        "run": ("contaminated", f"safety set {long['id']}"),
        "near": ("contaminated", f"safety set {nearly['id']}"),
    }
    assert (results["dropped"], results["rows_kept"]) == ({"contaminated": 2}, 31)
    assert (got.facts["safety_prompts"], got.facts["exam_items"]) == (len(asked), 0)
    shown = data.card(got, results, "")["dropped"]["contaminated"]["examples"]
    assert shown[0]["shared"] in " ".join(words_of(long["prompt"])[:14])
    assert (
        prepare(job(path, **settings, decontaminate=0), bundled_base, tmp_path / "off")[1][
            "dropped"
        ]
        == {}
    )


def test_no_row_left_is_an_error_with_the_drop_table(bundled_base, cache, tmp_path):
    path = jsonl(
        tmp_path / "d.jsonl",
        [{"question": "Q?", "answer": ""}] * 3 + [{"question": "Q", "answer": "none"}],
    )
    with pytest.raises(
        UserError, match=r"no row is left of the 4 read[\s\S]*empty +3\n +placeholder +1\n"
    ):
        prepare(job(path), bundled_base, tmp_path / "run")
    long = jsonl(
        tmp_path / "e.jsonl",
        [{"question": "Why is it so?", "answer": "It is so because of this. " * 90}],
    )
    with pytest.raises(UserError, match=r"no row is left of the 1 read[\s\S]*too_long +1\n"):
        prepare(job(long), bundled_base, tmp_path / "run2")
    held = jsonl(tmp_path / "f.jsonl", made_up(1))
    key = duplicates.keys(
        [
            {"role": "user", "content": made_up(1)[0]["question"]},
            {"role": "assistant", "content": "x"},
        ]
    )["question"]
    seed = next(
        n
        for n in range(99)
        if duplicates.side_of(
            np.array([key]), job(held, seed=n, validation_size=0.49, test_size=0.49)
        )[0]
    )
    with pytest.raises(UserError, match=r"no training row is left: \d validation and \d test rows"):
        prepare(
            job(held, seed=seed, validation_size=0.49, test_size=0.49),
            bundled_base,
            tmp_path / "run3",
        )


def test_a_single_row_of_50_mb_is_dropped_without_working_on_it(bundled_base, cache, tmp_path):
    import time

    path = jsonl(
        tmp_path / "d.jsonl",
        [
            *made_up(5),
            {
                "id": "huge",
                "question": "Why is it so?",
                "answer": "word <b> &amp; - x ? " * 2_500_000,
            },
        ],
    )
    assert path.stat().st_size > 50_000_000
    begun = time.monotonic()
    _, results = prepare(job(path, overlong="cut"), bundled_base, tmp_path / "run")
    assert results["dropped"] == {"too_long": 1}
    assert time.monotonic() - begun < 60, "minutes would mean that it was cleaned or tokenised"


def count_encoded(monkeypatch):
    """A list that takes the number of rows of each call of encode_all."""
    calls = []
    real = label_mask.encode_all

    def counting(gemma, rows):
        calls.append(len(list(rows)))
        return real(gemma, rows)

    monkeypatch.setattr(label_mask, "encode_all", counting)
    return calls


def test_the_cache_reuses_what_did_not_change(bundled_base, cache, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK_ROWS", 50)
    cleaned, real = [], chunks.clean.clean_row
    monkeypatch.setattr(
        chunks.clean,
        "clean_row",
        lambda messages, job_: (cleaned.append(1), real(messages, job_))[1],
    )
    encoded = count_encoded(monkeypatch)

    def work(path, **values):
        cleaned.clear()
        encoded.clear()
        _, results = prepare(job(path, **values), bundled_base, tmp_path / "run")
        return len(cleaned), sum(encoded), results

    rows = made_up(100)
    rows[10]["answer"] += " Write to a@example.org."
    path = jsonl(tmp_path / "d.jsonl", rows)
    first = work(path)
    assert first[:2] == (100, 100)
    again = work(path)
    assert again[:2] == (0, 0)
    assert {k: v for k, v in again[2].items() if "seconds" not in k} == {
        k: v for k, v in first[2].items() if "seconds" not in k
    }
    assert work(path, seed=9, near_duplicate_threshold=0.9)[:2] == (0, 0), (
        "decisions are made anew, rows are not"
    )
    assert work(path, personal_data="keep")[:2] == (100, 1), (
        "a changed rule cleans anew; only the row that differs is tokenised"
    )
    jsonl(path, [*rows, *made_up(20, 3, 100)])
    assert work(path)[:2] == (20, 20), "appended rows alone"


def test_a_damaged_cache_file_is_made_again(bundled_base, cache, tmp_path):
    path = jsonl(tmp_path / "d.jsonl", made_up(30))
    rows, _ = prepare(job(path), bundled_base, tmp_path / "a")
    for file in cache.iterdir():
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    assert (
        prepare(job(path), bundled_base, tmp_path / "b")[0].facts["fingerprint"]
        == rows.facts["fingerprint"]
    )


def test_the_cache_is_kept_within_its_limit(cache, monkeypatch):
    import os
    import time

    cache.mkdir()
    for n, days in enumerate((9, 5, 0)):
        (cache / f"{n}").write_bytes(b"x" * 1000)
        os.utime(cache / f"{n}", (time.time() - 86400 * days,) * 2)
    for limit, left in ((5000, {"0", "1", "2"}), (2500, {"1", "2"}), (10, {"2"})):
        monkeypatch.setattr(chunks, "CACHE_LIMIT", limit)
        chunks.prune()
        assert {p.name for p in cache.iterdir()} == left, (
            "nothing of the last day goes: another run may be reading it"
        )


def test_saved_splits_are_datasets_with_many_shards_too(tmp_path, monkeypatch):
    import datasets
    import pyarrow as pa

    monkeypatch.setattr(splits, "SHARD", 2000)
    out = splits.SplitWriter(tmp_path / "data" / "train")
    rows = [
        {
            "id": f"r{n}",
            "topic": "",
            "question": "q",
            "answer": "a",
            "input_ids": [n] * 30,
            "labels": [-100] * 30,
            "length": 30,
        }
        for n in range(100)
    ]
    for n in range(0, 100, 10):
        out.write(pa.Table.from_pylist(rows[n : n + 10], splits.SCHEMA))
    out.close()
    assert len(list((tmp_path / "data/train").glob("data-*.arrow"))) > 2
    assert (
        datasets.load_from_disk(str(tmp_path / "data/train")).to_list()
        == splits.load_split(tmp_path / "data", "train").to_list()
        == rows
    )
    empty = splits.SplitWriter(tmp_path / "data" / "test")
    empty.close()
    assert len(splits.load_split(tmp_path / "data", "test")) == 0
    with pytest.raises(UserError, match="run prepare first"):
        splits.load_split(tmp_path, "train")


@pytest.mark.parametrize("damage", ["truncated", "no state", "not Arrow"])
def test_an_unreadable_split_says_so_and_what_to_do(tmp_path, damage):
    split = splits.SplitWriter(tmp_path / "train")
    split.write(splits.SCHEMA.empty_table())
    split.close()
    file = next((tmp_path / "train").glob("*.arrow"))
    {
        "truncated": lambda: file.write_bytes(file.read_bytes()[:40]),
        "no state": (tmp_path / "train" / "state.json").unlink,
        "not Arrow": lambda: file.write_text("hello"),
    }[damage]()
    with pytest.raises(UserError, match="(?s)train` cannot be read.*make prepare FORCE=1"):
        splits.load_split(tmp_path, "train")


def test_a_template_that_breaks_the_mask_stops_the_stage(
    bundled_base, cache, tmp_path, monkeypatch
):
    path = jsonl(tmp_path / "d.jsonl", made_up(5))
    real = chat.load_chat
    monkeypatch.setattr(
        chat,
        "load_chat",
        lambda folder: (c := real(folder))._replace(
            template=c.template.replace("{{- bos_token -}}", "{{- bos_token -}}{{- bos_token -}}")
        ),
    )
    chunks._chat.cache_clear()
    with pytest.raises(UserError, match=r"row r0: 2 <bos> tokens"):
        prepare(job(path), bundled_base, tmp_path / "run")
    chunks._chat.cache_clear()
    assert not (tmp_path / "run/data").exists()


def test_counts_that_do_not_add_up_fail_the_stage(bundled_base, cache, tmp_path):
    rows, results = prepare(
        job(jsonl(tmp_path / "d.jsonl", made_up(10))), bundled_base, tmp_path / "run"
    )
    rows.read += 1
    with pytest.raises(AssertionError):
        data.summary(rows, results)


def test_the_exam_itself_leaves_no_row_to_train_on(bundled_base, cache, tmp_path):
    with pytest.raises(UserError, match=r"no (training )?row is left"):
        prepare(
            job(
                "bundled:exam",
                exam=["bundled:exam"],
                validation_size=0.0,
                test_size=0.0,
                max_seq_length=1024,
            ),
            bundled_base,
            tmp_path / "run",
        )


def test_no_row_is_dropped_in_favour_of_one_that_is_too_long_itself(bundled_base, cache, tmp_path):
    question = "Why is it so?"
    rows = [
        {"id": "long", "question": question, "answer": "It is so because of this. " * 80},
        {"id": "short", "question": question, "answer": "It is so, that is all."},
    ]
    _, results = prepare(
        job(jsonl(tmp_path / "d.jsonl", made_up(20) + rows), same_question="longest"),
        bundled_base,
        tmp_path / "run",
    )
    assert results["dropped"] == {"too_long": 1}
    assert "short" in stored(tmp_path / "run")


def test_steps_out_of_turn_say_so(bundled_base, cache, tmp_path):
    (tmp_path / "run").mkdir()
    rows = data.begin(job(jsonl(tmp_path / "d.jsonl", made_up(5))), tmp_path / "run")
    with pytest.raises(
        UserError,
        match=r"deduplicate comes after begin, read_and_clean, measure; done so far: begin\.",
    ):
        data.deduplicate(rows)
    data.read_and_clean(rows)
    with pytest.raises(UserError, match="Run the cells again from the one with data.begin"):
        data.read_and_clean(rows)


def test_a_wrong_exam_is_found_before_anything_is_read(cache, tmp_path):
    pairs = jsonl(tmp_path / "pairs.jsonl", made_up(2))
    with pytest.raises(
        UserError,
        match="exam: .*pairs.jsonl, line 1: [\\s\\S]*Expected rows of question, options and answer_letter",
    ):
        data.begin(
            job(jsonl(tmp_path / "d.jsonl", made_up(5)), exam=[str(pairs)]), tmp_path / "run"
        )


def test_a_full_disk_is_told_and_what_was_there_before_stays(
    bundled_base, cache, tmp_path, monkeypatch
):
    path = jsonl(tmp_path / "d.jsonl", made_up(20))
    rows, _ = prepare(job(path), bundled_base, tmp_path / "run")

    def full(self, table):
        raise OSError(28, "No space left on device", "train/0.arrow")

    monkeypatch.setattr(splits.SplitWriter, "write", full)
    with pytest.raises(UserError, match=r"tokenise: No space left on device: train/0.arrow"):
        prepare(job(path, seed=5), bundled_base, tmp_path / "run")
    assert len(stored(tmp_path / "run")) == 20


# ---------------------------------------------------------------------------------------------------------------------
# real data: the defects its README counts


@pytest.fixture(scope="module")
def real(bundled_base, tmp_path_factory):
    if not SHARED.is_dir():
        pytest.skip("the three public medical sets are not at hand beside the repository")
    found = {}
    for name in ("firstaidqa", "wikidoc_patient", "medquad"):
        folder = tmp_path_factory.mktemp(name)
        path = folder / f"{name}.jsonl"
        path.write_bytes(gzip.decompress((SHARED / f"{name}.jsonl.gz").read_bytes()))
        found[name] = prepare(
            job(path, max_seq_length=1024, exam=["bundled:exam"]), bundled_base, folder / "run"
        )[1]
    return found


def test_real_sets_show_the_defects_they_are_known_for(real):
    assert {name: r["rows_read"] for name, r in real.items()} == {
        "firstaidqa": 5550,
        "wikidoc_patient": 5942,
        "medquad": 16407,
    }
    first, wiki, quad = (real[n]["dropped"] for n in real)
    assert first["exact_duplicate"] == 41
    assert first["dangerous_advice"] >= 3, "three answers name ipecac"
    assert 95 <= wiki["exact_duplicate"] <= 101
    assert quad["answer_is_question"] == 5
    assert 1085 <= quad["link_list"] <= 1100
    assert quad["answer_repeated"] >= 338, "one answer stands 348 times, ten may"
    assert real["medquad"]["changed"]["question_mark"] >= 16_000
    assert real["medquad"]["changed"]["personal_data"] >= 15
    for results in real.values():
        assert results["rows_read"] - sum(results["dropped"].values()) == results["rows_kept"]
        assert results["dropped"].get("other_language", 0) <= 12
