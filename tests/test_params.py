"""Strict parameters: what is refused, in which words, and what the run folder's hash depends on.

python -m pytest tests/test_params.py
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib import params
from lib.common import errors, files
from lib.common.errors import UserError


@pytest.fixture
def write(tmp_path):
    def _write(text, name="job.yaml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return _write


def test_defaults_are_the_recipe():
    job = params.Params()
    assert (job.lora_r, job.lora_alpha, job.lora_dropout, job.bias) == (8, 8, 0.0, "none")
    assert (
        job.per_device_train_batch_size,
        job.gradient_accumulation_steps,
        job.learning_rate,
    ) == (4, 4, 2e-5)
    assert (job.max_seq_length, job.warmup_steps, job.weight_decay, job.optim) == (
        1024,
        5,
        0.01,
        "adamw_8bit",
    )
    assert (job.num_train_epochs, job.save_steps, job.seed, job.lr_scheduler_type) == (
        1.0,
        500,
        3407,
        "linear",
    )
    assert (job.base_model, job.load_in_4bit) == ("unsloth/gemma-3n-E4B-it", True)


def test_a_runs_own_parameters_show_a_change_by_hand(tmp_path):
    job = params.check_values(
        {"learning_rate": 1e-4, "dataset": ["a.jsonl", {"dataset": "b"}]}, "test"
    )
    path = tmp_path / "params.yaml"
    path.write_text(params.to_yaml(job))
    assert params.load_recorded(tmp_path) == params.load_job(path) == job
    path.write_text(params.to_yaml(job).replace("0.0001", "0.0007"))
    with pytest.raises(UserError, match="not as the run recorded it"):
        params.load_recorded(tmp_path)
    assert params.load_job(path).learning_rate == 7e-4, (
        "as a params file of one's own it may be edited"
    )
    path.write_text(params.to_yaml(job).rpartition("#")[0])
    assert params.load_recorded(tmp_path) == job
    for record in ("5", "null", "[]", "{", '{"run": "mine"}'):  # no record, or an earlier version's
        (tmp_path / "run.json").write_text(record)
        assert params.load_recorded(tmp_path) == job


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_runs_own_parameters_that_were_cut_short_are_no_other_job(share, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    job = params.check_values({"learning_rate": 1e-4, "gguf_types": ["f16"]}, "test")
    files.write_json(folder / "run.json", {"run": "mine"}, sealed=True)
    text = params.to_yaml(job)
    (folder / "params.yaml").write_text(text[: int(share * (len(text) - 1))])
    with pytest.raises(UserError):
        params.load_recorded(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learning_rat: 1.0e-4", "did you mean `learning_rate`"),
        ("zzzzzz: 1", "unknown parameter `zzzzzz`"),
        ("seed: 1\nseed: 2", "`seed` is given twice"),
        ("lora_r: eight", '`lora_r` is "eight"; expected a whole number >= 1 and <= 256'),
        ("lora_r: 8.0", "`lora_r` is 8.0; expected a whole number"),
        ("lora_r: 0", "`lora_r` is 0; expected a whole number >= 1"),
        ("learning_rate: 2", "`learning_rate` is 2; expected a number > 0 and < 1"),
        ("learning_rate: .nan", "expected a number"),
        ("num_train_epochs: 1.0e+308", "expected a number > 0 and <= 100,000"),
        ("lora_alpha: 99999999999", "expected a whole number >= 1 and <= 10,000"),
        ("neftune_noise_alpha: 1.0e+300", "expected a number >= 0 and <= 1,000"),
        ("num_gpus: 99999999999", "expected a whole number >= 1 and <= 10,000, or auto"),
        ("", "sets no parameter, so every one would be the default"),
        ("# seed: 1", "sets no parameter"),
        ("optim: adamw", "expected one of adamw_8bit, adamw_torch"),
        ("load_in_4bit: no", "write true or false"),
        ("load_in_4bit: 1", "expected true or false"),
        ("seed: 010", "`010` means different things"),
        ("seed: 0x1F", "`0x1F` means different things"),
        ("max_steps: 1_000", "`1_000` means different things"),
        ("max_minutes: 1:30", "`1:30` means different things"),
        (
            "gguf_types: q8_0",
            "expected a list, one or more of f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0",
        ),
        (
            "gguf_types: [q9_9]",
            "expected a list, one or more of f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0",
        ),
        ("gguf_types: []", "expected a list, one or more of"),
        ("dataset:", "line 1: `dataset` has no value (null); write"),
        ("- seed", "is of type list; expected lines of `key: value`"),
        ("seed: [", "line 1"),
        ("judge: {model: m}", "It needs base_url and model, and nothing else"),
        ("judge: {base_url: host/v1, model: m}", "base_url is not an address"),
        ("judge: {base_url: 'http://u:p@host/v1', model: m}", "a key belongs in the environment"),
        ("judge: {base_url: 'http://host/v1', model: 7}", "expected a mapping of text to text"),
        ("? [seed]\n: 1", "a key is a list"),
        ("seed: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
    ],
)
def test_wrong_values_are_named_with_the_expected_form(write, text, expected):
    with pytest.raises(UserError) as error:
        params.load_job(write(text))
    assert expected in str(error.value)
    assert "job.yaml" in str(error.value)
    assert len(str(error.value).splitlines()) < 10


NUMBERS = [key for key, field in params.FIELDS.items() if field.annotation is float]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", ["1e999", "-1e999", ".inf", ".nan"])
def test_a_number_is_finite(write, key, value):
    """`inf` passes every lower bound, and a run whose record has one could not be read again."""
    with pytest.raises(UserError, match=rf"`{key}` is .*; expected "):
        params.load_job(write("{}"), f"{key}={value}")


def test_every_wrong_key_is_reported_at_once(write):
    with pytest.raises(UserError) as error:
        params.load_job(write("lora_r: 0\nseed: -1\n"))
    assert "lora_r" in str(error.value)
    assert "seed" in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("2e-5", 2e-5), ("1E-4", 1e-4), ("1e-4", 1e-4), ("0.5", 0.5), (".5", 0.5), ("5.0e-4", 5e-4)],
)
def test_scientific_numbers_are_floats(write, text, value):
    assert params.load_job(write(f"learning_rate: {text}")).learning_rate == value


def test_a_whole_number_is_a_number_but_not_the_other_way(write):
    assert params.load_job(write("num_train_epochs: 2")).num_train_epochs == 2.0


def test_missing_and_binary_files(write, tmp_path):
    with pytest.raises(UserError, match=r"does not exist[\s\S]*params/cpu.yaml"):
        params.load_job("params/nowhere.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-16"):
        params.load_job(tmp_path / "b.yaml")


def test_an_empty_file_is_asked_about_and_an_empty_mapping_means_the_defaults(write):
    assert params.load_job(write("{}\n")) == params.Params()
    with pytest.raises(UserError, match=r"sets no parameter.*\n.*write \{\} into it"):
        params.load_job(write("# nothing\n"))


def test_overrides_win_and_are_as_strict(write):
    path = write("seed: 1\nmax_steps: 7\n")
    job = params.load_job(
        path, 'learning_rate=1e-4 max_steps=50 gguf_types="[q8_0, f16]" dataset_revision='
    )
    assert (job.seed, job.learning_rate, job.max_steps, job.gguf_types, job.dataset_revision) == (
        1,
        1e-4,
        50,
        ["q8_0", "f16"],
        "",
    )
    for text, expected in (
        ("max_step=1", "did you mean `max_steps`"),
        ("max_steps", "not of the form key=value"),
        ("seed=1 seed=2", "given twice"),
        ("load_in_4bit=no", "write true or false"),
        ('seed="1', "expected SET"),
    ):
        with pytest.raises(UserError) as error:
            params.load_job(path, text)
        assert expected in str(error.value)


def test_dump_reads_back_to_the_same(write):
    job = params.load_job(
        write("base_model: 'no'\nlearning_rate: 1e-7\nnum_train_epochs: 1e5\ngguf_types: [f16]\n")
    )
    assert params.load_job(write(params.to_yaml(job), "again.yaml")) == job


def test_fingerprint_depends_on_data_and_training_alone(write):
    base = params.fingerprint(params.load_job(write("seed: 1")))
    assert base == params.fingerprint(params.load_job(write("seed: 1\ngguf_types: [f16]"))), (
        "an export key renamed the run"
    )
    assert base == params.fingerprint(params.load_job(write("seed: 1\nlora_r: 8"))), (
        "a default spelled out renamed the run"
    )
    assert base == params.fingerprint(
        params.load_job(write("seed: 1\nmax_minutes: 9\nnum_gpus: 1"))
    ), "what changes no weight renamed the run"
    assert base != params.fingerprint(params.load_job(write("seed: 2")))
    assert base != params.fingerprint(params.load_job(write("seed: 1\nlora_r: 4")))


def test_every_key_is_described_and_has_a_stage():
    for key, field in params.FIELDS.items():
        assert field.description, key
        assert params.stage_of(key) in ("prepare", "train", "export"), key
        assert params.describe_type(key), key


@pytest.mark.parametrize(
    "path",
    sorted(p for p in (errors.ROOT / "params").glob("*.yaml") if p.name != "sweep.yaml"),
    ids=lambda p: p.name,
)
def test_presets_are_valid_short_and_list_only_what_differs(path):
    job, lines = params.load_job(path), path.read_text().splitlines()
    assert len(lines) <= 25
    given = {line.split(":")[0] for line in lines if line and not line.startswith("#")}
    assert given == set(params.find_changed(job)), "a preset repeats a default"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (
            [{"dataset": "a/b"}, {"dataset": "c/d", "wieght": 0.5}],
            "Entry 2, `wieght`: extra inputs are not permitted",
        ),
        ([{"dataset": "a/b", "weight": 0}], "Entry 1, `weight`: input should be greater than 0"),
        (
            [{"dataset": "a/b", "weight": 2.0}],
            "Entry 1, `weight`: input should be less than or equal to 1",
        ),
        ([{"revision": "v1"}], "Entry 1, `dataset`: field required"),
        ([], "expected a text, or a list, one or more of texts or {dataset, "),
        (5, "expected a text, or a list, one or more of texts or {dataset, "),
        ({"dataset": "a/b", "subset": "c"}, ". `subset`: extra inputs are not permitted"),
        ({"config": "c"}, ". `dataset`: field required"),
    ],
)
def test_a_wrong_list_of_sources_names_the_entry(listed, expected):
    with pytest.raises(UserError) as error:
        params.check_values({"dataset": listed}, "test")
    assert expected in str(error.value)


def test_a_list_of_sources_may_name_them_plainly_and_comes_back_from_its_own_yaml(tmp_path):
    job = params.check_values(
        {"dataset": ["a/b", {"dataset": "c.jsonl", "max_rows": 5}], "columns": {"question": "ask"}},
        "test",
    )
    (tmp_path / "p.yaml").write_text(params.to_yaml(job))
    assert params.load_job(tmp_path / "p.yaml") == job


def test_a_single_data_set_may_be_a_mapping_and_comes_back_from_its_own_yaml(tmp_path):
    job = params.check_values({"dataset": {"dataset": "a/b", "config": "c", "split": "d"}}, "test")
    assert (job.dataset.config, job.dataset.split) == ("c", "d")
    (tmp_path / "p.yaml").write_text(params.to_yaml(job))
    assert params.load_job(tmp_path / "p.yaml") == job
    overrides = params.parse_overrides("dataset='{dataset: a/b, config: c, split: d}'")
    assert params.check_values(overrides, "test") == job


@pytest.mark.parametrize(
    ("dataset", "language"),
    [
        ("bundled:first-aid", "en"),
        ("bundled:first-aid-es", "es"),
        ("[bundled:first-aid-fr]", "fr"),
        ("[{dataset: bundled:first-aid-es, max_rows: 9}]", "es"),
        ("[bundled:first-aid, bundled:first-aid-es]", ""),
        ("rows-es.jsonl", "en"),
    ],
)
def test_the_language_follows_a_bundled_set_unless_it_is_given(dataset, language):
    assert (
        params.load_job(
            "params/cpu.yaml", f"dataset='{dataset}'" if " " in dataset else f"dataset={dataset}"
        ).language
        == language
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("dataset=bundled:first-aid-es language=en", "in es, but language is 'en'"),
        ("dataset=bundled:first-aid-es language=", "in es, but language is ''"),
        ("dataset=[bundled:first-aid,bundled:first-aid-fr]", "translations of each other"),
        ("dataset=[bundled:first-aid-es,bundled:first-aid-fr]", "translations of each other"),
    ],
)
def test_what_does_not_go_with_a_bundled_translation_is_refused(change, said):
    with pytest.raises(UserError, match=said):
        params.require_consistent(params.load_job("params/cpu.yaml", change))
    params.require_consistent(params.load_job("params/cpu.yaml", "dataset=bundled:first-aid-es"))


def test_keys_of_a_source_that_came_later_rename_no_run_of_before():
    job = params.check_values({"dataset": [{"dataset": "a/b", "max_rows": 5}]}, "test")
    # as computed before `config` and `split` were keys
    assert params.find_changed(job)["dataset"] == [
        {"dataset": "a/b", "revision": "", "weight": 1.0, "max_rows": 5, "columns": {}}
    ]
    assert params.fingerprint(job) == "ff390136"


def test_a_mapping_cut_by_its_blanks_says_how_to_quote_it():
    with pytest.raises(
        UserError, match=r"""quote a value with spaces in it: SET="columns='\{question: \.\.\.'"""
    ):
        params.parse_overrides("columns={question: ask}")
    assert params.parse_overrides("columns='{question: ask}'") == {"columns": {"question": "ask"}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"overlong": "truncate"}, "one of drop, cut"),
        ({"skip_rules": ["blank"]}, "none or more of placeholder"),
        ({"near_duplicate_threshold": 0.3}, ">= 0.8 and <= 1"),
        ({"personal_data": "hide"}, "one of mask, drop, keep"),
        ({"dangerous_advice": "off"}, "one of drop, flag, ignore"),
        ({"columns": {"question": 1}}, "a mapping of text to text"),
        ({"exam": "bundled:exam"}, "a list, none or more of texts"),
        ({"answer_cap": -1}, ">= 0"),
        ({"decontaminate": 101}, "<= 100"),
        ({"skip_bad_lines": True}, "a whole number"),
        ({"same_question": "best"}, "one of all, first, longest"),
        ({"near_duplicates": "flag"}, "one of drop, keep"),
        ({"reasoning": "cut"}, "one of strip, keep"),
        ({"language": 1}, "a text"),
    ],
)
def test_each_wrong_value_of_the_data_stage_says_what_is_expected(values, expected):
    with pytest.raises(UserError) as error:
        params.check_values(values, "test")
    assert expected in str(error.value)
    assert len(str(error.value).splitlines()) < 6


def test_a_folder_is_no_params_file_and_an_empty_mapping_is_all_defaults(write, tmp_path):
    with pytest.raises(UserError, match="is a folder; expected a params file, such as params/cpu"):
        params.load_job(tmp_path)
    path = write("{}")
    with pytest.raises(UserError, match="is a folder; .* such as .*/job.yaml"):
        params.load_job(tmp_path)
    assert params.load_job(path) == params.Params()


CONSISTENT = {"load_in_4bit": False, "offload_embedding": False, "optim": "adamw_torch"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"finetune_attention_modules": False, "finetune_mlp_modules": False},
            "both false, so nothing would be trained",
        ),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"early_stopping_patience": 2}, "eval_steps is 0"),
        ({"precision": "fp16"}, "fp16 is for a 4-bit base"),
        ({"torch_compile": True}, "needs packing: true"),
        ({"torch_compile": True, "packing": True, "precision": "fp32"}, "needs a bfloat16 base"),
        ({"packing": True, "neftune_noise_alpha": 5.0}, "set packing: false"),
        ({"fsdp": "full_shard", "load_in_4bit": True}, "16-bit base only"),
        ({"fsdp": "full_shard", "num_gpus": 1}, "several GPUs, but num_gpus is 1"),
        ({"num_gpus": 3}, "which 3 GPUs cannot share evenly"),
        ({"backend": "unsloth", "use_dora": True}, "set use_dora: false"),
        ({"backend": "unsloth", "packing": True}, "set both to false"),
    ],
)
def test_settings_that_contradict_each_other_are_named_without_a_machine(changes, said):
    params.require_consistent(params.check_values(CONSISTENT, "test"))
    job = params.check_values({**CONSISTENT, **changes}, "test")
    with pytest.raises(UserError, match=f"(?i){said}"):
        params.require_consistent(job)
    assert len(params.list_conflicts(job)) == 1
