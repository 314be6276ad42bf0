"""The data stage as a whole: rows add up, and what is on disk is what was proven.

python -m pytest tests/data/test_prepare.py
"""

import gzip
import json
import pathlib
import time

import numpy as np
import pytest

from helpers.preparing import job, jsonl, made_up, mixed, prepare, stored
from lib.common import files, workers
from lib.common.errors import UserError
from lib.data import chat, chunk_cache, chunks, duplicates, label_mask, sides, splits
from lib.data import prepare as data

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


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
    assert results["changed"] == {
        "question_mark": 2,
        "repeated_id": 1,
        "personal_data": 1,
        "blanks": 1,
    }
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
        "r3#61": "exact_duplicate",
        "caps": "exact_duplicate",
        "null": "empty",
        "none": "placeholder",
        "echo": "answer_is_question",
        "long": "too_long",
    }
    assert {r["id"]: r.get("by") for r in listed if r["reason"] == "exact_duplicate"} == {
        "r3#61": "r3",
        "caps": "r4",
    }
    card = data.describe_data(rows, results, "hash")
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
        monkeypatch.setattr(chunk_cache, "CACHE", tmp_path / f"cache-{name}")
        monkeypatch.setattr(
            data.workers,
            "start_pool",
            lambda small, start=workers.start_pool, want=small: start(want),
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
    compared = data.compare_tokenizers(rows, bundled_base)
    assert compared == results["rows_kept"] - 1, "the ids of a cut row are not those of its text"
    assert (
        data.describe_data(rows, results, "")["changed"]["answer_cut"]["examples"][0]["id"]
        == "long"
    )


def test_no_row_left_is_an_error_with_the_drop_table(bundled_base, cache, tmp_path):
    path = jsonl(
        tmp_path / "d.jsonl",
        [{"question": "Q?", "answer": ""}] * 3 + [{"question": "Q", "answer": "none"}],
    )
    with pytest.raises(
        UserError,
        match=r"no row is left of the 4 read[\s\S]*empty +3 +\(no parameter\)\n +placeholder +1 +skip_rules: \[placeholder\]\n",
    ):
        prepare(job(path), bundled_base, tmp_path / "run")
    long = jsonl(
        tmp_path / "e.jsonl",
        [{"question": "Why is it so?", "answer": "It is so because of this. " * 90}],
    )
    with pytest.raises(
        UserError,
        match=r"no row is left of the 1 read[\s\S]*too_long +1 +max_seq_length, overlong\n",
    ):
        prepare(job(long), bundled_base, tmp_path / "run2")
    held = jsonl(tmp_path / "f.jsonl", made_up(1))
    key = duplicates.comparison_keys(
        [
            {"role": "user", "content": made_up(1)[0]["question"]},
            {"role": "assistant", "content": "x"},
        ]
    )["question"]
    seed = next(
        n
        for n in range(99)
        if sides.hash_side(np.array([key]), n, validation_size=0.49, test_size=0.49)[0]
    )
    with pytest.raises(UserError, match=r"no training row is left: \d validation and \d test rows"):
        prepare(
            job(held, seed=seed, validation_size=0.49, test_size=0.49),
            bundled_base,
            tmp_path / "run3",
        )
    few = jsonl(tmp_path / "g.jsonl", [*made_up(2), {"id": "e", "question": "Q?", "answer": ""}])
    stopping = {"early_stopping_patience": 2, "validation_size": 0.001}
    with pytest.raises(
        UserError, match=r"no validation row is left, [\s\S]*empty +1 [\s\S]*raise validation_size"
    ):
        prepare(job(few, **stopping), bundled_base, tmp_path / "run4")


def test_a_single_row_of_50_mb_is_dropped_without_working_on_it(bundled_base, cache, tmp_path):

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
    chunks._load_chat.cache_clear()
    with pytest.raises(UserError, match=r"row r0: 2 <bos> tokens"):
        prepare(job(path), bundled_base, tmp_path / "run")
    chunks._load_chat.cache_clear()
    assert not (tmp_path / "run/data").exists()


def test_counts_that_do_not_add_up_fail_the_stage(bundled_base, cache, tmp_path):
    rows, results = prepare(
        job(jsonl(tmp_path / "d.jsonl", made_up(10))), bundled_base, tmp_path / "run"
    )
    rows.read += 1
    with pytest.raises(AssertionError):
        data.summarise(rows, results)


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
    with pytest.raises(UserError, match="Run the cells again from the one with prepare.begin"):
        data.read_and_clean(rows)


def test_an_empty_split_leaves_a_caution_and_making_the_base_is_no_step(
    bundled_base, cache, tmp_path, capsys
):
    rows = made_up(1)
    (tmp_path / "run").mkdir()
    steps = data.begin(job(jsonl(tmp_path / "d.jsonl", rows), test_size=0), tmp_path / "run")
    data.read_and_clean(steps)
    steps.started -= 1000  # as if the base had been made here for so long
    data.measure(steps, bundled_base)
    data.deduplicate(steps)
    data.decontaminate(steps)
    capsys.readouterr()
    results = data.tokenise(steps, bundled_base, tmp_path / "run" / "data")
    assert (results["train"], results["validation"], results["test"]) == (1, 0, 0)
    out = capsys.readouterr().out
    assert out.count("caution: ") == 1
    assert "caution: validation_size is 0.1, but no validation row is left of 1 rows" in out
    assert results["step_seconds"]["tokenise"] < 500
    assert 1000 <= results["seconds_between_steps"] <= results["seconds"]


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
