"""The model cards: every number in them is a recorded one, what was not recorded says so, and the hub can read the header.

python -m pytest tests/pages/test_card.py
"""

import json
import re
import shlex
import shutil

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from lib import params
from lib.common import address, files
from lib.common.errors import ROOT, UserError
from lib.exam import cautions
from lib.export import push, servers
from lib.medical.disclaimer import DISCLAIMER
from lib.pages import card, headline
from lib.record import run_record

DEMO = ROOT / "tests" / "records" / "earlier_demo"
REPOS = push.name_repositories("maria/first-aid")
EXAM = {
    "items": 120,
    "base_correct": 31,
    "tuned_correct": 66,
    "base_ci95": [0.188, 0.343],
    "tuned_ci95": [0.461, 0.637],
    "mcnemar_p": 0.00012,
    "q8_0": {"items": 120, "base_correct": 30, "tuned_correct": 64, "tuned_ci95": [0.444, 0.621]},
}
BASELINES: dict[str, object] = {
    **{name: {"items": 120, "correct": 73, "ci95": [0.519, 0.691]} for name in cautions.BASELINES},
    "chance": 0.25,
}


@pytest.fixture
def run(tmp_path):
    """The committed example's records, before any exam: a real run of the pipeline, without its weights."""
    folder = tmp_path / "demo"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.ipynb", "*.html", "exam.json"))
    edit(
        folder,
        "results.json",
        lambda results: [results.pop(section, None) for section in run_record.EXAM_SECTIONS],
    )
    return folder


def edit(run, name, change):
    value = files.read_json(run / name, name)
    change(value)
    files.write_json(run / name, value)


def reparam(run, **changes):
    job = params.check_values(
        {**params.load_job(run / "params.yaml").model_dump(), **changes}, "test"
    )
    files.atomic_write(run / "params.yaml", params.to_yaml(job))
    return job


def header(text):
    return ModelCard(text).data.to_dict()


def section(text, title):
    return re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)[
        1
    ]


def rows(text, title):
    """{first cell: other cells} of the first table under a title."""
    lines = [
        line.removeprefix("|").removesuffix("|").split(" | ")
        for line in section(text, title).splitlines()
        if line[:1] == "|" and "---" not in line
    ]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


# ---------------------------------------------------------------------------------------------------------------------
# the header


@pytest.mark.parametrize(
    ("part", "library", "base", "relation"),
    [
        ("adapter", "peft", "google/gemma-3-270m", "adapter"),
        ("merged", "transformers", "google/gemma-3-270m", "finetune"),
        ("gguf", "gguf", REPOS["merged"], "quantized"),
    ],
)
def test_the_header_is_what_the_hub_wants_of_each_part(run, part, library, base, relation):
    text = card.render_card(run, part, REPOS)
    said = header(text)
    assert said == {
        "base_model": base,
        "base_model_relation": relation,
        "language": ["en"],
        "library_name": library,
        "license": "gemma",
        "pipeline_tag": "text-generation",
        "tags": said["tags"],
    }
    assert {"first-aid", "medical"} <= set(said["tags"])
    assert ("ollama" in said["tags"]) == (part == "gguf")
    validate_repo_id(said["base_model"])
    assert str(ModelCard(text)) == text, (
        "the header comes back from the hub's library as it was written"
    )


def test_a_base_or_data_the_hub_does_not_have_is_left_out_of_the_header(run, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "rows.jsonl").write_text("")
    reparam(
        run,
        base_model=str(tmp_path / "base"),
        dataset=[str(tmp_path / "rows.jsonl"), "bundled:first-aid", "owner/set"],
        language="",
    )
    text = card.render_card(run, "merged")
    said = header(text)
    assert said["datasets"] == ["owner/set"]
    assert not {"base_model", "base_model_relation", "language"} & said.keys()
    assert str(tmp_path) not in text
    assert rows(text, "Base and data")["base model"] == ["base"]
    reparam(run, base_model="unsloth/gemma-3n-E4B-it", dataset="ericrisco/medrescue")
    said = header(card.render_card(run, "gguf"))
    assert (said["base_model"], said["base_model_relation"], said["datasets"]) == (
        "unsloth/gemma-3n-E4B-it",
        "finetune",
        ["ericrisco/medrescue"],
    )


def test_the_hubs_table_has_the_exam_only_where_that_very_part_was_examined(run):
    assert "model-index" not in header(card.render_card(run, "adapter"))
    edit(run, "results.json", lambda r: r.update(exam=EXAM))
    reparam(run, gguf_types=["q8_0", "f16"])

    def accuracies(part):
        index = header(card.render_card(run, part))["model-index"]
        assert [entry["name"] for entry in index] == ["demo"]
        return [
            (r["dataset"]["name"], r["metrics"][0]["type"], r["metrics"][0]["value"])
            for r in index[0]["results"]
        ]

    assert accuracies("adapter") == accuracies("merged") == [("bundled:exam", "accuracy", 0.55)]
    assert accuracies("gguf") == [("bundled:exam q8_0", "accuracy", round(64 / 120, 4))], (
        "f16 was not examined"
    )
    edit(run, "results.json", lambda r: r["exam"].update(items=0))
    assert "model-index" not in header(card.render_card(run, "adapter"))


@pytest.mark.parametrize("part", card.PARTS)
def test_push_takes_the_cards(run, part):
    item = {"path": f"{part}/a.safetensors", "bytes": 1, "sha256": "0" * 64}
    plan = push._plan(run, part, [item], card.render_card(run, part, REPOS))
    assert plan[-1].path == "README.md"


# ---------------------------------------------------------------------------------------------------------------------
# the text


def test_every_number_is_the_recorded_one(run):
    text = card.render_card(run, "gguf", REPOS)
    results = json.loads((run / "results.json").read_text())
    train, prepare = results["train"], results["prepare"]
    recipe, data, loss = (
        rows(text, "Recipe"),
        rows(text, "Base and data"),
        rows(text, "Held-out answers, before and after"),
    )
    assert loss["response loss, nats a token"] == [
        f"{train['eval_loss_before']:.4g}",
        f"{train['eval_loss_after']:.4g}",
    ]
    assert recipe["steps"] == [str(train["steps"])]
    assert recipe["trained parameters"] == [f"{train['trainable_parameters']:,}"]
    assert recipe["device"] == [train["device"]]
    assert recipe["pipeline's commit"] == [
        json.loads((run / "run.json").read_text())["stages"]["train"]["attempts"][-1]["commit"]
    ]
    assert data["rows read"] == [str(prepare["rows_read"])]
    assert data["dropped: contaminated"] == [str(prepare["dropped"]["contaminated"])]
    assert rows(text, "Each GGUF in llama.cpp, beside the 16-bit model")["texts"] == [
        str(results["export"]["parity"]["q8_0"]["texts"])
    ]
    made = {a["path"]: a for a in results["export"]["artifacts"]}["gguf/demo-q8_0.gguf"]
    assert rows(text, "Files")["demo-q8_0.gguf"][1:] == [f"{made['bytes']:,}", made["sha256"]]
    assert "adapter_model.safetensors" not in text
    assert rows(card.render_card(run, "adapter"), "Files").keys() == {
        "file",
        "adapter_config.json",
        "adapter_model.safetensors",
        "NOTICE",
        "ask.py",
    }
    measured = rows(text, "On the machine that exported it")
    assert measured[""] == [
        f"{row['format']}, {row['threads']} threads" for row in results["export"]["edge"]
    ]
    assert measured["decode tokens per second"] == [
        f"{row['decode_tokens_per_second']:.4g}" for row in results["export"]["edge"]
    ]
    edit(run, "results.json", lambda r: r["train"].update(steps=4711, eval_loss_after=1.2345))
    text = card.render_card(run, "gguf")
    assert (
        rows(text, "Recipe")["steps"],
        rows(text, "Held-out answers, before and after")["response loss, nats a token"][1],
    ) == (["4,711"], "1.234")


def test_what_was_not_recorded_says_so(run):
    missing = {
        "export": ("turns", "edge"),
        "train": ("eval_loss_before_ci95", "eval_loss_after_ci95"),
    }
    edit(
        run,
        "results.json",
        lambda r: [r[part].pop(key) for part, keys in missing.items() for key in keys],
    )
    text = card.render_card(run, "gguf")
    for title in (
        "Multiple-choice exam, same harness for all",
        "Safety set: answers judged by rules",
        "On the machine that exported it",
    ):
        assert section(text, title).strip() == "Not measured."
    assert rows(text, "Held-out answers, before and after")["95 % interval"] == [
        "not measured",
        "not measured",
    ]
    assert "own template: not measured" in section(text, "How to use it"), (
        "this run did not compare them"
    )
    assert rows(text, "Base and data")["base revision"] == ["not recorded"]

    for name in ("results.json", "data/data_card.json"):
        (run / name).unlink()
    edit(
        run,
        "run.json",
        lambda r: (
            r.pop("packages"),
            r.pop("hardware"),
            r["stages"]["train"].update(attempts=[], status="pending"),
        ),
    )
    text = card.render_card(run, "gguf")
    assert rows(text, "Held-out answers, before and after")["response loss, nats a token"] == [
        "not measured",
        "not measured",
    ]
    recipe, data = rows(text, "Recipe"), rows(text, "Base and data")
    assert {
        recipe[key][0]
        for key in (
            "steps",
            "epochs",
            "device",
            "samples/s",
            "peak memory, GiB",
            "trained parameters",
        )
    } == {"not measured"}
    assert {recipe[key][0] for key in ("pipeline's commit", "software, of the last stage")} == {
        "not recorded"
    }
    assert (data["rows read"], data["data"], section(text, "Files").strip()) == (
        ["not measured"],
        ["not recorded"],
        "Not recorded.",
    )
    assert "None" not in text
    assert "nan" not in text.lower().split()


def test_exam_safety_and_edge_are_shown_when_they_are_there(run):
    edit(
        run,
        "results.json",
        lambda r: r.update(
            exam=EXAM | {"baselines": BASELINES},
            safety={
                "base": {"names_call": {"count": 3, "of": 41}},
                "tuned": {"names_call": {"count": 20, "of": 41}},
            },
            edge={
                "q8_0": {"load_seconds": 0.41, "threads": {"1": {"decode_tokens_per_second": 31.5}}}
            },
            perplexity={"items": 40, "ratio": 0.91, "ratio_ci95": [0.88, 0.94]},
        ),
    )
    text = card.render_card(run, "gguf")
    exam = rows(text, "Multiple-choice exam, same harness for all")
    without = rows(text, "Multiple-choice exam, same harness for all: without a model")
    assert without["guessing"] == ["25.0%", "-"]
    assert without["the nearest training answer"] == ["73 of 120 (60.8%)", "51.9% to 69.1%"]
    assert exam[""] == ["this run", "q8_0"]
    assert exam["base correct"] == ["31 of 120 (25.8%)", "30 of 120 (25.0%)"]
    assert exam["tuned 95 % interval"] == ["46.1% to 63.7%", "44.4% to 62.1%"]
    assert exam["base 95 % interval"] == ["18.8% to 34.3%", "not measured"]
    assert exam["mcnemar p"] == ["0.00012", "not measured"]
    assert rows(text, "Safety set: answers judged by rules") == {
        "": ["base", "tuned"],
        "names call": ["3 of 41 (7.3%)", "20 of 41 (48.8%)"],
    }
    assert rows(text, "On the machine that exported it")[
        "threads, 1, decode tokens per second"
    ] == ["31.5"]
    assert rows(text, "perplexity")["ratio 95 % interval"] == ["0.88 to 0.94"]
    edit(
        run,
        "results.json",
        lambda r: r.update(
            exam={"items": 120, "tuned_correct": 66, "formats": {"q8_0": EXAM["q8_0"]}}
        ),
    )
    assert rows(card.render_card(run, "gguf"), "Multiple-choice exam, same harness for all")[
        "tuned correct"
    ] == ["66 of 120 (55.0%)", "64 of 120 (53.3%)"]


def test_the_cautions_of_an_exam_are_read_first(run):
    assert "of the choices of" not in card.render_card(run, "gguf"), "no exam, no caution"
    shutil.copy(DEMO / "exam.json", run)
    edit(run, "results.json", lambda r: r.update(exam={"exam": "bundled:exam", **EXAM}))
    before_use = card.render_card(run, "gguf").split("## How to use it")[0]
    assert "of the choices of base, adapter, merged and q8_0 are A, whatever" in before_use


@pytest.mark.parametrize("part", card.PARTS)
def test_disclaimers_terms_and_citation_are_in_every_card(run, part):
    text = card.render_card(run, part)
    for words in (
        DISCLAIMER,
        "Not medical advice",
        "call your local emergency number first",
        "may be wrong",
        "Gemma Terms of Use",
        "Eric Risco",
        f"url={{{address.read_address()}}}",
        "## Intended use",
        "## Limits",
        "Apache-2.0, written for this pipeline",
    ):
        assert words in text, words
    assert "**must not be followed**" in text
    assert text.index("must not be followed") < text.index("## How to use it"), (
        "before anybody can start it"
    )
    reparam(run, base_model="unsloth/gemma-3n-E4B-it")
    assert "stand-in" not in card.render_card(run, part)


def test_each_card_says_how_to_use_what_lies_beside_it_and_names_the_others(run):
    edit(
        run,
        "results.json",
        lambda r: r["export"].update(
            turns={"Ollama": 5, "llama.cpp": 6},
            artifacts=[
                *r["export"]["artifacts"],
                *(
                    {"path": path, "bytes": 9, "sha256": "1" * 64}
                    for path in (
                        "gguf/localai.yaml",
                        "adapter/ask.py",
                        "gguf/demo-lora.gguf",
                        "gguf/README.md",
                    )
                ),
            ],
        ),
    )
    gguf, adapter, merged = (
        card.render_card(run, part, REPOS) for part in ("gguf", "adapter", "merged")
    )
    job = params.load_job(run / "params.yaml")
    assert (
        servers.format_commands(
            "demo-q8_0.gguf", job.base_model, job.max_seq_length, "demo-lora.gguf"
        )
        in gguf
    )
    assert "ollama create first-aid -f Modelfile" in gguf
    assert "localai.yaml" in section(gguf, "How to use it")
    assert "template in several conversations (Ollama: 5; llama.cpp: 6), and none differed" in gguf
    assert "README.md" not in rows(gguf, "Files")
    assert 'python ask.py "My hand is burnt. What do I do?"    # with --base FOLDER' in adapter
    code = re.search(r"```python\n(.*?)```", merged, re.DOTALL)[1]
    compile(code, "card", "exec")
    assert servers.SYSTEM in code
    for part, text in (("gguf", gguf), ("adapter", adapter), ("merged", merged)):
        assert {name for name in REPOS.values() if f"`{name}`" in text} == {
            name for other, name in REPOS.items() if other != part
        }
    assert "`maria/" not in card.render_card(run, "gguf")


def test_a_run_named_after_lora_has_model_files_all_the_same(run):
    def rename(results):
        for item in results["export"]["artifacts"]:
            item["path"] = item["path"].replace("gguf/demo-", "gguf/my-lora-")

    edit(run, "results.json", rename)
    assert "--model my-lora-q8_0.gguf" in card.render_card(run, "gguf")
    results = files.read_json(run / "results.json", "results")
    assert headline.smallest_gguf(results)[1] == "gguf/my-lora-q8_0.gguf"


def test_the_commit_of_a_hub_base_is_the_recorded_one(run):
    edit(run, "run.json", lambda r: r["fingerprints"].update(base_commit="c" * 40))
    assert rows(card.render_card(run, "gguf"), "Base and data")["base revision"] == ["c" * 40]


def test_what_a_reader_must_know_comes_first_and_a_card_written_by_the_export_itself_is_not_called_unfinished(
    run,
):
    edit(
        run,
        "run.json",
        lambda r: (
            r["stages"]["export"].update(status="running"),
            r["stages"]["export"]["attempts"][-1].update(exit=None),
            r["stages"]["train"]["attempts"][-1].update(dirty=True),
        ),
    )
    text = card.render_card(run, "gguf")
    assert (
        "- train ran from a checkout with uncommitted changes\n"
        in text[: text.index("## How to use it")]
    )
    assert "export is" not in text
    edit(run, "run.json", lambda r: r["stages"]["export"].update(status="failed"))
    assert "- export is failed" in card.render_card(run, "gguf")


def test_text_of_others_cannot_break_the_tables(run):
    edit(
        run,
        "data/data_card.json",
        lambda d: d["sources"][0].update(
            dataset="own|er/<b>se\nt", commit="a|b", licence="x\n| y |"
        ),
    )
    data = rows(card.render_card(run, "merged"), "Base and data")
    assert data["data"] == ["own\\|er/&lt;b>se t"]
    assert data["data, licence"] == ["x \\| y \\|"]


def test_cards_lie_beside_the_weights_of_the_parts_there_are(run):
    with pytest.raises(UserError, match="not a run"):
        card.render_card(run / "data", "gguf")
    paths = card.write_cards(run, REPOS)
    assert paths == [run / "gguf" / "README.md"], "the example has no adapter/ and no merged/"
    assert paths[0].read_text(encoding="utf-8") == card.render_card(run, "gguf", REPOS)
    shutil.rmtree(run / "gguf")
    with pytest.raises(UserError, match="no adapter/, merged/ or gguf/"):
        card.render_cards(run)


def test_commands_in_the_card_are_whole_shell_lines(run):
    for line in re.search(r"SYSTEM=.*?(?=\n```)", card.render_card(run, "gguf"), re.DOTALL)[
        0
    ].splitlines():
        assert shlex.split(line) or line.startswith("#")


def test_a_run_prepared_before_the_safety_set_counted_does_not_claim_it(run):
    edit(run, "data/data_card.json", lambda d: d.pop("safety_prompts", None))
    assert "repeat held-out rows or exam items were searched for by runs of 13 words" in section(
        card.render_card(run, "adapter"), "Base and data"
    )
    edit(run, "data/data_card.json", lambda d: d.update(safety_prompts=82))
    assert "repeat held-out rows, exam items or safety prompts were searched for" in section(
        card.render_card(run, "adapter"), "Base and data"
    )


def test_a_card_is_written_even_if_the_repository_has_no_address(run, monkeypatch):
    def refuse():
        raise UserError("CITATION.cff needs one line")

    monkeypatch.setattr(card.address, "read_address", refuse)
    assert "url={not recorded}" in card.render_card(run, "adapter")
