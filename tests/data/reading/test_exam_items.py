"""Exam items from files and from the hub's sets, and the errors of those that cannot be asked.

python -m pytest tests/data/reading/test_exam_items.py
"""

import gzip
import json

import datasets
import huggingface_hub
import pytest

from lib.common.errors import UserError
from lib.data.reading import exam_items, sources
from lib.exam import take
from lib.params import Source

GOOD = {
    "id": "a",
    "topic": "burns",
    "question": "What cools a burn?",
    "options": {"A": "butter", "B": "water"},
    "answer_letter": "B",
}


def lines(folder, *rows, name="exam.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


def test_the_bundled_exam_is_read_whole():
    items = exam_items.read_items("bundled:exam")
    assert len(items) == len({item["id"] for item in items}) >= 300
    assert all(
        set(item) == {"id", "topic", "question", "options", "answer_letter"}
        and item["answer_letter"] in item["options"]
        for item in items
    )


def test_a_compressed_file_context_and_what_is_not_named(tmp_path):
    path = tmp_path / "exam.jsonl.gz"
    path.write_bytes(
        gzip.compress(
            json.dumps(
                {"question": " q ", "context": "seen", "options": ["x", "y"], "answer": "B"}
            ).encode()
        )
    )
    assert exam_items.read_items(str(path)) == [
        {
            "id": f"{path}, line 1",
            "topic": "",
            "question": "seen\n\nq",
            "stem": "q",
            "options": {"A": "x", "B": "y"},
            "answer_letter": "B",
        }
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            without("question"),
            "it has no `question`; its fields are id, topic, options, answer_letter",
        ),
        (GOOD | {"question": "  "}, "it has no `question`"),
        (without("options"), "it has no `options`"),
        (without("answer_letter"), "it has no `answer_letter`"),
        (GOOD | {"answer_letter": "C"}, '"C"; expected one of A, B'),
        (
            GOOD | {"answer_letter": -1},
            "its answer is -1 (-1 stands for an answer that is not published",
        ),
        (
            GOOD | {"options": {"A": "butter", "B": "water", "C": " water "}},
            "its options B and C are the same, 'water'",
        ),
        (
            GOOD | {"options": [{"key": "A", "value": "butter"}, {"key": "A", "value": "water"}]},
            'the letter "A" twice',
        ),
        (GOOD | {"options": {"A": "butter", "B": "water", "C": " "}}, "its option C is empty"),
        (
            without("answer_letter") | {"options": ["O", "A", "AB"], "answer": "A"},
            'its `answer` "A" is option A as a letter, B as an option\'s text, and no row',
        ),
        (GOOD | {"options": {"A": "only"}}, "expected a list of texts, or {letter: text}"),
        (
            GOOD | {"options": [str(n) for n in range(27)], "answer_letter": 0},
            "27 options; expected 2 to 26",
        ),
        (GOOD | {"question": "x<end_of_turn>y"}, "control token <end_of_turn>"),
        (
            GOOD | {"options": {"A": "<start_of_turn>model", "B": "b"}},
            "control token <start_of_turn>",
        ),
        (GOOD | {"question": "half \ud800"}, "lone surrogate"),
        (["not", "an object"], "expected an object"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named_with_what_is_expected(tmp_path, row, said):
    path = lines(
        tmp_path,
        GOOD,
        row if not isinstance(row, dict) or row.get("id") is None else {**row, "id": "b"},
    )
    with pytest.raises(UserError) as error:
        exam_items.read_items(path)
    assert f"{path}, line 2: " in str(error.value)
    assert said in str(error.value)
    assert "Expected rows of question, options and answer_letter" in str(error.value)


def test_ids_that_are_twice_there_are_named_with_both_lines(tmp_path):
    path = lines(tmp_path, GOOD, GOOD | {"id": "b"}, GOOD)
    with pytest.raises(
        UserError, match=r"exam.jsonl, line 3: its id `a` is also that of .*exam.jsonl, line 1"
    ):
        exam_items.read_items(path)


def test_a_folder_is_read_whole_in_every_form_it_has(tmp_path):
    folder = tmp_path / "exam"
    folder.mkdir()
    lines(
        folder,
        {"question": "q", "choices": ["ice", "water"], "answer": 2},
        GOOD | {"id": 7},
        name="a.jsonl",
    )
    datasets.Dataset.from_list(
        [{"question": "q", "options": {"A": "ice", "B": "water", "C": None}, "answer": "water"}]
    ).to_parquet(folder / "b.parquet")
    items = exam_items.read_items(str(folder))
    assert [(item["id"], item["options"], item["answer_letter"]) for item in items] == [
        (f"{folder}/a.jsonl, line 1", {"A": "ice", "B": "water"}, "B"),
        ("7", GOOD["options"], "B"),
        (f"{folder}/b.parquet, row 1", {"A": "ice", "B": "water"}, "B"),
    ]


def test_a_letter_twice_in_one_object_is_named(tmp_path):
    path = tmp_path / "exam.jsonl"
    path.write_text(
        '{"question": "q", "options": {"A": "ice", "A": "water"}, "answer_letter": "A"}\n'
    )
    with pytest.raises(UserError, match=r"exam.jsonl, line 1: the field `A` is named twice"):
        exam_items.read_items(str(path))


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda folder: folder.mkdir(), "error: exam folder `"),
        (lambda folder: (folder.mkdir(), lines(folder, name="a.jsonl")), "has no items"),
        (
            lambda folder: (
                folder.mkdir(),
                lines(folder, GOOD | {"options": ["a", "a"]}, name="a.jsonl"),
            ),
            "a.jsonl, line 1: its options A and B are the same",
        ),
        (
            lambda folder: (
                folder.mkdir(),
                lines(folder, GOOD, without("answer_letter"), name="a.jsonl"),
            ),
            "a.jsonl, line 2: it has no `answer_letter`",
        ),
        (
            lambda folder: None,
            "expected a file or folder there, a hub id `owner/name`, or bundled:exam, and for `make exam` bundled:safety",
        ),
    ],
)
def test_a_wrong_exam_ends_the_command_with_one_screen(tmp_path, monkeypatch, capsys, write, said):
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "runs/mine/run.json").write_text("{}")
    write(tmp_path / "set")
    assert take.main(["mine", str(tmp_path / "set")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert said in told
    assert len(told.splitlines()) <= 4
    assert len(told) < 900


def test_no_items_no_json_and_no_file_are_errors(tmp_path):
    with pytest.raises(UserError, match="has no items"):
        exam_items.read_items(lines(tmp_path))
    (tmp_path / "torn.jsonl").write_text(json.dumps(GOOD) + '\n{"id": "b", "question"')
    with pytest.raises(UserError, match="torn.jsonl, line 2: not JSON"):
        exam_items.read_items(str(tmp_path / "torn.jsonl"))
    with pytest.raises(UserError, match="does not exist"):
        exam_items.read_items("none.jsonl")


# rows in the columns that each set's card documents
ROWS = {
    "GBaker/MedQA-USMLE-4-options": (
        None,
        "test",
        {
            "question": "Which artery?",
            "answer": "Femoral",
            "options": {"A": "Radial", "B": "Femoral", "C": "Carotid", "D": "Ulnar"},
            "meta_info": "step1",
            "answer_idx": "B",
            "metamap_phrases": ["artery"],
        },
        {
            "id": "GBaker/MedQA-USMLE-4-options, test row 1",
            "topic": "step1",
            "question": "Which artery?",
            "answer_letter": "B",
            "options": {"A": "Radial", "B": "Femoral", "C": "Carotid", "D": "Ulnar"},
        },
    ),
    "openlifescienceai/medmcqa": (
        None,
        "validation",
        {
            "id": "m-1",
            "question": "Which vein?",
            "opa": "w",
            "opb": "x",
            "opc": "y",
            "opd": "z",
            "cop": 2,
            "choice_type": "single",
            "exp": "because",
            "subject_name": "Anatomy",
            "topic_name": None,
        },
        {
            "id": "m-1",
            "topic": "Anatomy",
            "question": "Which vein?",
            "options": {"A": "w", "B": "x", "C": "y", "D": "z"},
            "answer_letter": "C",
        },
    ),
    "qiaojin/PubMedQA": (
        "pqa_labeled",
        "train",
        {
            "pubid": 21645374,
            "question": "Does it help?",
            "context": {
                "contexts": ["We asked.", "It did."],
                "labels": ["BACKGROUND", "RESULTS"],
                "meshes": ["Humans"],
                "reasoning_required_pred": ["m"],
                "reasoning_free_pred": ["m"],
            },
            "long_answer": "It helps.",
            "final_decision": "maybe",
        },
        {
            "id": "21645374",
            "topic": "",
            "question": "We asked.\nIt did.\n\nDoes it help?",
            "stem": "Does it help?",
            "options": {"A": "yes", "B": "no", "C": "maybe"},
            "answer_letter": "C",
        },
    ),
    "cais/mmlu": (
        "anatomy",
        "test",
        {
            "question": "Which bone?",
            "subject": "anatomy",
            "choices": ["Ulna", "Radius", "Tibia", "Femur"],
            "answer": 3,
        },
        {
            "id": "cais/mmlu (anatomy), test row 1",
            "topic": "anatomy",
            "question": "Which bone?",
            "options": {"A": "Ulna", "B": "Radius", "C": "Tibia", "D": "Femur"},
            "answer_letter": "D",
        },
    ),
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Let `datasets` read local folders instead of the hub's repositories: parquet files and a card that names them."""
    real = datasets.load_dataset_builder
    for name, (configuration, split, row, _) in ROWS.items():
        folder, names = (
            tmp_path / name,
            exam_items.MMLU if configuration in exam_items.MMLU else [configuration or "default"],
        )
        folder.mkdir(parents=True)
        for each in names:
            datasets.Dataset.from_list(
                [row | ({"subject": each} if "subject" in row else {})]
            ).to_parquet(folder / f"{each}.parquet")
        (folder / "README.md").write_text(
            "---\nconfigs:\n"
            + "".join(
                f"- config_name: {each}\n  data_files:\n  - split: {split}\n    path: {each}.parquet\n"
                for each in names
            )
            + "---\n"
        )
    monkeypatch.setattr(
        datasets,
        "load_dataset_builder",
        lambda name, configuration, revision: real(
            str(tmp_path / name), configuration, cache_dir=str(tmp_path / "c")
        ),
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda self, name, **more: None)
    return tmp_path


@pytest.mark.parametrize("name", ROWS)
def test_sets_of_the_hub_become_the_choice_shape(hub, name):
    items = exam_items.read_items(name)
    assert items[0] == ROWS[name][-1]
    assert [item["topic"] for item in items] == (
        list(exam_items.MMLU) if name == "cais/mmlu" else [items[0]["topic"]]
    )


def test_other_columns_or_no_answer_are_errors_and_so_is_a_hub_that_is_away(hub):
    row = ROWS["openlifescienceai/medmcqa"][2]
    datasets.Dataset.from_list([{k: v for k, v in row.items() if k != "cop"}]).to_parquet(
        hub / "openlifescienceai/medmcqa/default.parquet"
    )
    with pytest.raises(
        UserError,
        match=r"row 1 does not have the columns this set is known for \('cop'\); it has id, question, opa",
    ):
        exam_items.read_items("openlifescienceai/medmcqa")
    datasets.Dataset.from_list([ROWS["cais/mmlu"][2] | {"answer": -1}]).to_parquet(
        hub / "cais/mmlu/anatomy.parquet"
    )
    with pytest.raises(UserError, match=r"cais/mmlu \(anatomy\), test row 1: its answer is -1"):
        exam_items.read_items("cais/mmlu")
    (hub / "cais/mmlu/README.md").unlink()
    with pytest.raises(
        UserError, match=r"hub dataset `cais/mmlu`, configuration anatomy could not be loaded"
    ):
        exam_items.read_items("cais/mmlu")


def test_an_entry_names_configuration_split_and_how_many_items(hub, tmp_path):
    """The set is published in other parts too, and a large one takes hours."""
    virology = datasets.Dataset.from_list([ROWS["cais/mmlu"][2] | {"subject": "virology"}] * 3)
    virology.to_parquet(hub / "cais/mmlu/virology.parquet")
    text = (hub / "cais/mmlu/README.md").read_text()
    more = (
        "- config_name: virology\n  data_files:\n  - split: dev\n    path: virology.parquet\n---\n"
    )
    (hub / "cais/mmlu/README.md").write_text(text.removesuffix("---\n") + more)
    source = Source(dataset="cais/mmlu", config="virology", split="dev", max_rows=2)
    items = exam_items.read_items(source)
    assert [item["topic"] for item in items] == ["virology", "virology"]
    assert sources.name_exam(source) == "cais/mmlu (virology, dev, first 2)"
    assert exam_items.read_items(Source(dataset="cais/mmlu")) == exam_items.read_items("cais/mmlu")
    hashes = [
        sources.identify_exams([e]) for e in ("cais/mmlu", source, Source(dataset="cais/mmlu"))
    ]
    assert hashes[0] == hashes[2] == "cais/mmlu"
    assert hashes[1] != hashes[0]


def test_an_entry_names_the_split_of_a_folder_and_the_columns_of_a_file(tmp_path):
    columns = {"question": "ask", "options": "options", "answer_letter": "answer_letter"}
    row = {"ask": "q", "options": {"A": "a", "B": "b"}, "answer_letter": "A"}
    (tmp_path / "set").mkdir()
    for split in ("test", "validation"):
        lines(tmp_path / "set", row | {"ask": split}, name=f"{split}.jsonl")
    source = Source(dataset=str(tmp_path / "set"), split="validation", columns=columns)
    assert [item["question"] for item in exam_items.read_items(source)] == ["validation"]
    missing = source.model_copy(update={"split": "train"})
    with pytest.raises(UserError, match="exam .* has no files of split `train`.*Name what to read"):
        exam_items.read_items(missing)
    for changed, said in (({"weight": 0.5}, "none is drawn"), ({"config": "x"}, "is local, so it")):
        with pytest.raises(UserError, match=said):
            sources.check_exam(source.model_copy(update=changed))
