"""A finished run examined: a tiny Gemma 3n with an adapter, merged, as GGUF, in the record of a run.

python -m pytest tests/exam/test_take.py
"""

import contextlib
import functools
import json
import shutil

import pyarrow as pa
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.judge_server import judge_server, says
from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.data import chat, label_mask, splits
from lib.exam import models as exam_models
from lib.exam import multiple_choice, take
from lib.exam.answers import endpoint
from lib.export import gguf_export, merge, servers
from lib.medical import safety
from lib.model import base_record, device, llama
from lib.record import run_record
from lib.training import evaluate

TARGETS = r".*layers\.\d+\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)"
ITEMS = [
    {
        "id": f"q{n}",
        "topic": "",
        "question": "what stops the blood" + " now" * n,
        "options": {"A": "press", "B": "wait", "C": "walk"},
        "answer_letter": "ABC"[n % 3],
    }
    for n in range(3)
]
TURNS = [
    [
        {"role": "user", "content": "what stops the blood"},
        {"role": "assistant", "content": "press" + " hard and keep the press" * n},
    ]
    for n in (1, 2)
]


@pytest.fixture(scope="module")
def exported(tiny_gemma3n, tmp_path_factory):
    """Return a folder of runs with an exported one, `small`; it is made once: copy before changing."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    folder.mkdir()
    torch.manual_seed(1)
    net = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.bfloat16)
    get_peft_model(
        net,
        LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=TARGETS,
            task_type="CAUSAL_LM",
            init_lora_weights=False,
        ),
    ).save_pretrained(folder / "adapter")
    merge.merge_adapter(tiny_gemma3n, folder / "adapter", folder / "merged")
    merge.add_missing_shared_kv(folder / "merged", tiny_gemma3n)
    gguf_export.write_gguf(folder / "merged", folder / "gguf" / "small-f16.gguf", "f16")
    rows = [
        {
            "id": str(n),
            "topic": "",
            "question": "",
            "answer": "",
            "input_ids": ids,
            "labels": labels,
            "length": len(ids),
        }
        for n, (ids, labels) in enumerate(
            label_mask.encode(chat.load_chat(tiny_gemma3n), turns) for turns in TURNS
        )
    ]
    for name, kept in (("train", rows), ("validation", []), ("test", rows)):
        split = splits.SplitWriter(folder / "data" / name)
        if kept:
            split.write(pa.Table.from_pylist(kept, splits.SCHEMA))
        split.close()
    job = params.check_values(
        {"base_model": str(tiny_gemma3n), "dataset": "bundled:first-aid", "gguf_types": ["f16"]},
        "test",
    )
    (folder / "params.yaml").write_text(params.to_yaml(job))
    made = {"prepare": ["data"], "train": ["adapter"], "export": ["merged", "gguf"]}
    files.write_json(
        folder / "run.json",
        {
            "run": "small",
            "created": run_record.timestamp(),
            "fingerprints": {},
            "stages": {
                stage: {
                    "status": "finished",
                    "attempts": [{"by": "make", "exit": "ok", "end": run_record.timestamp()}],
                    "artifacts": files.describe_files(folder, names),
                    "inputs": {},
                }
                for stage, names in made.items()
            },
        },
    )
    (folder.parent / "exam.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return folder.parent


@pytest.fixture
def runs(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "runs")
    monkeypatch.setattr(device, "set_threads", lambda: 1)
    monkeypatch.setattr(llama, "load_gguf", functools.partial(llama.load_gguf, n_threads=1))
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def reparam(folder, **changes):
    job = params.check_values(
        {**params.load_job(folder / "params.yaml").model_dump(), **changes}, "test"
    )
    (folder / "params.yaml").write_text(params.to_yaml(job))


def ask(runs, capsys, *words, name="small", file="exam.jsonl"):
    code = take.main([name, str(runs / file), *words])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, said.out, said.err


def test_every_format_is_examined_on_the_same_items_and_goes_on_where_it_was_stopped(
    runs, capsys, monkeypatch
):
    real, asked = multiple_choice.ask_items, []

    def until(name):
        def take(items, tokenizer, score, model, *more):
            if model == name:
                raise KeyboardInterrupt
            asked.append(model)
            return real(items, tokenizer, score, model, *more)

        return take

    monkeypatch.setattr(multiple_choice, "ask_items", until("merged"))
    with pytest.raises(KeyboardInterrupt):
        ask(runs, capsys)
    assert asked == ["base", "adapter"]
    monkeypatch.setattr(multiple_choice, "ask_items", until(""))
    code, out, _ = ask(runs, capsys)
    assert (code, asked) == (0, ["base", "adapter", "merged", "f16"])
    assert f"base, {runs / 'exam.jsonl'}: examined before" in out
    entry = json.loads((runs / "small/exam.json").read_text())[str(runs / "exam.jsonl")]
    base, adapter, merged, gguf = (entry["models"][name] for name in asked)

    def scores(found):
        return [
            value
            for r in found["results"]
            for s in (r, *r["shuffled"])
            for value in s["scores"].values()
        ]

    assert len(scores(base)) == len(ITEMS) * 2 * 3
    # the adapter's products are not rounded as the merged weights are; llama.cpp computes in float16
    for other in (merged, gguf):
        assert max(abs(a - b) for a, b in zip(scores(adapter), scores(other), strict=True)) < 0.5
    assert max(abs(a - b) for a, b in zip(scores(adapter), scores(base), strict=True)) > 1
    for model in (base, adapter, merged, gguf):
        assert model["completion"]["normalised"] == "sum", "all items have the same options"
        assert model["completion"]["of"] == model["bits_per_byte"]["items"] == len(ITEMS)
    apart = [
        abs(other["bits_per_byte"]["mean"] - adapter["bits_per_byte"]["mean"])
        for other in (merged, gguf, base)
    ]
    assert max(apart[:2]) < 0.03 < 0.1 < apart[2], apart  # rounding, and another model
    assert entry["headline"]["form"] == "completion", "random weights do not answer with letters"
    assert base["held_out"]["rows"] == 2
    assert base["held_out"]["split"] == "test"
    assert gguf["held_out"] is None
    pairs = {(c["before"], c["after"]): c for c in entry["comparisons"]}
    assert list(pairs) == [
        ("base", "adapter"),
        ("base", "merged"),
        ("base", "f16"),
        ("merged", "f16"),
    ]
    assert pairs["base", "merged"]["perplexity_ratio"] == pytest.approx(
        merged["held_out"]["perplexity"] / base["held_out"]["perplexity"], rel=1e-4
    )
    assert "perplexity_ratio" not in pairs["base", "f16"]
    # the answers of these training rows are empty, so that options are drawn
    assert [entry["baselines"][key] for key in ("chance", "answers")] == [pytest.approx(1 / 3), 2]
    assert entry["baselines"]["longest"]["chosen"] == ["A"] * 3
    for text in (
        "3 items, of which guessing gets 33.3%",
        "always the longest option",
        "Caution: ",
        "p (McNemar, exact)",
        f"x {pairs['base', 'merged']['perplexity_ratio']:.3f}",
        "exam.json",
        "Educational use only",
    ):
        assert text in out
    section = json.loads((runs / "small/results.json").read_text())["exams"][
        servers.shared_name(str(runs / "exam.jsonl"))
    ]
    assert (section["base_correct"], section["tuned_correct"], section["f16"]["tuned_correct"]) == (
        base["right"],
        merged["right"],
        gguf["right"],
    )
    assert section["baselines"]["longest"]["correct"] == 1
    for form in ("completion", "bits_per_byte"):
        assert section[form]["items"] == section["f16"][form]["items"] == len(ITEMS)
        changed = pairs["base", "merged"][form]["interval"]
    assert section["bits_per_byte"]["difference_ci95"] == changed
    assert (section["headline"], section["mcnemar_p"]) == (
        "completion",
        pairs["base", "merged"]["p"],
    )
    assert section["perplexity_ratio_ci95"] == pairs["base", "merged"]["perplexity_interval"]
    every = files.read_json(runs / "small/exam.json", "exam file")
    files.write_json(
        runs / "small/exam.json",
        every
        | {"same.jsonl": entry, "before.jsonl": entry | {"of": "an adapter trained over since"}},
    )
    assert ask(runs, capsys)[0] == 0
    assert set(json.loads((runs / "small/results.json").read_text())["exams"]) == {
        servers.shared_name(str(runs / "exam.jsonl")),
        "same.jsonl",
    }


def test_the_safety_set_is_answered_by_every_format_and_judged(runs, capsys, monkeypatch):
    rows = [row for row in safety.load_rows() if row["emergency"] == "must"][:3] + [
        row for row in safety.load_rows() if row["emergency"] == "need_not"
    ][:2]
    monkeypatch.setattr(safety, "load_rows", lambda: rows)
    reparam(runs / "small", safety_tokens=4)
    assert take.main(["small", "bundled:safety"]) == 0
    out = capsys.readouterr().out
    entry = json.loads((runs / "small/exam.json").read_text())["bundled:safety"]
    assert list(entry["models"]) == ["base", "merged", "f16"]
    for found in entry["models"].values():
        assert [a["prompt"] for a in found["answers"]] == [row["prompt"] for row in rows]
        again = [
            safety.judge_answer(row, a["answer"], a["ended"])
            for row, a in zip(rows, found["answers"], strict=True)
        ]
        assert {k: found[k] for k in safety.count_judgements(again)} == safety.count_judgements(
            again
        )
        assert found["no_refusal"]["of"] == 5
        assert found["names_call"]["of"] == 3
    assert [a["answer"] for a in entry["models"]["merged"]["answers"]] != [
        a["answer"] for a in entry["models"]["base"]["answers"]
    ]
    assert "5 prompts, greedy answers of up to 4 tokens, judged by rules" in out
    results = json.loads((runs / "small/results.json").read_text())["safety"]
    assert list(results) == ["base", "tuned", "f16", "criteria", "baselines"]
    assert list(results["criteria"]) == ["base", "tuned", "f16"]
    assert results["baselines"]["the constant call"]["names_call"]["count"] == 3
    for name in results["criteria"]:
        section = results[name]
        found = entry["models"][name.replace("tuned", "merged")]
        assert {k: section[k] for k in safety.COUNTS} == {k: found[k] for k in safety.COUNTS}
        low, high = section["passed_ci95"]
        assert low <= found["passed"]["count"] / 5 <= high
    monkeypatch.setattr(evaluate, "generate_answers", lambda *_: pytest.fail("answered before"))
    assert take.main(["small", "bundled:safety"]) == 0
    assert "merged, bundled:safety: examined before" in capsys.readouterr().out
    with judge_server(says(lambda user, act: act in user["answer"])) as (judge, _):
        reparam(runs / "small", safety_tokens=4, judge=judge)
        assert take.main(["small", "bundled:safety"]) == 0
    written = json.loads((runs / "small/exam.json").read_text())["bundled:safety"]
    assert written["models"] == entry["models"]
    assert list(written["judge"]["models"]) == ["base", "merged", "f16"]
    assert "the judge model stand-in, beside the rules. On" in capsys.readouterr().out
    results = json.loads((runs / "small/results.json").read_text())["safety"]
    assert results["judge"]["agreement"] == written["judge"]["agreement"]
    reparam(runs / "small", safety_tokens=4, judge={**judge, "model": "another"})
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.0)
    assert take.main(["small", "bundled:safety"]) == 0, "its server has ended"
    assert "gave no answer in 5 tries" in capsys.readouterr().out
    written = json.loads((runs / "small/exam.json").read_text())["bundled:safety"]
    assert written["models"] == entry["models"]


def stand_in(name, made_of, loaded):
    """Return a model to which all is equally likely; it adds its name to `loaded` each time."""

    @contextlib.contextmanager
    def load():
        loaded.append(name)
        yield exam_models.Loaded(
            lambda trees, tick: [[-1.0] * len(tree.asked) for tree in trees], None
        )

    return exam_models.RunModel(name, made_of, load)


def test_a_result_is_kept_until_what_decides_it_changes_and_other_exams_keep_theirs(
    runs, capsys, monkeypatch
):
    asked, made_of = [], ["weights"]
    monkeypatch.setattr(take, "list_models", lambda *_: [stand_in("base", made_of, asked)])

    def again(file="exam.jsonl", *words):
        asked.clear()
        assert ask(runs, capsys, *words, file=file)[0] == 0
        return json.loads((runs / "small/exam.json").read_text())[str(runs / file)], bool(asked)

    first, fresh = again()
    assert fresh
    assert again() == (first, False)
    (runs / "other.jsonl").write_text(json.dumps(ITEMS[0]) + "\n")
    other, fresh = again("other.jsonl", "--shuffles", "0")
    assert fresh
    assert other["models"]["base"]["orders"][1:] == []
    assert again() == (first, False)
    assert again("exam.jsonl", "--shuffles", "2")[1]
    (runs / "exam.jsonl").write_text(
        "".join(json.dumps(item | {"answer_letter": "A"}) + "\n" for item in ITEMS)
    )
    assert again("exam.jsonl", "--shuffles", "2")[1]
    made_of[0] = "other weights"
    assert again("exam.jsonl", "--shuffles", "2")[1]
    monkeypatch.setattr(take, "_method", lambda: ["other code"])
    assert again("exam.jsonl", "--shuffles", "2")[1]
    assert again("exam.jsonl", "--shuffles", "2")[1] is False


def test_a_job_may_examine_base_and_merged_folder_alone(runs, capsys, monkeypatch):
    loaded = []
    listed = [stand_in(name, [name], loaded) for name in ("base", "adapter", "merged", "q8_0")]
    monkeypatch.setattr(take, "list_models", lambda *_: listed)
    reparam(runs / "small", exam_models="merged")
    assert ask(runs, capsys)[0] == 0
    assert loaded == ["base", "merged"]
    path = runs / "small/exam.json"
    two = json.loads(path.read_text())[str(runs / "exam.jsonl")]
    reparam(runs / "small", exam_models="all")
    assert ask(runs, capsys)[0] == 0
    assert loaded == ["base", "merged", "adapter", "q8_0"], "the others are asked later"
    four = json.loads(path.read_text())[str(runs / "exam.jsonl")]
    assert four["of"] == two["of"], "results of other exams stay current"


def test_what_cannot_be_examined_says_so_and_leaves_nothing(runs, capsys, monkeypatch):
    monkeypatch.setattr(multiple_choice, "ask_items", lambda *_: pytest.fail("asked"))
    assert (
        "is not a run: it has no run.json. Known runs: small." in ask(runs, capsys, name="smal")[2]
    )
    assert "cannot name a run" in ask(runs, capsys, name="../small")[2]
    (runs / "bad.jsonl").write_text(json.dumps(ITEMS[0] | {"answer_letter": "D"}) + "\n")
    assert (
        'bad.jsonl, line 1: its answer is "D"; expected one of A, B, C'
        in ask(runs, capsys, file="bad.jsonl")[2]
    )
    gguf = runs / "small/gguf/small-f16.gguf"
    data = bytearray(gguf.read_bytes())
    data[-5] ^= 1
    gguf.write_bytes(data)
    assert (
        "export is gguf/small-f16.gguf does not match its recorded sha256" in ask(runs, capsys)[2]
    )
    written = json.loads((runs / "small/run.json").read_text())
    written["stages"]["export"].update(status="interrupted")
    (runs / "small/run.json").write_text(json.dumps(written))
    code, _, said = ask(runs, capsys)
    assert code == 2
    assert "examined: export is interrupted. Finish it with `make export RUN=small`" in said
    assert not (runs / "small/exam.json").exists()


def test_base_adapter_and_held_out_rows_must_be_those_of_the_run(
    runs, tiny_gemma3n, capsys, monkeypatch
):
    monkeypatch.setattr(multiple_choice, "ask_items", lambda *_: pytest.fail("asked"))
    record = json.loads((runs / "small/run.json").read_text())

    def change(base_files=None, **train):
        changed = json.loads(json.dumps(record))
        changed["fingerprints"]["base_files"] = base_files or {}
        changed["stages"]["train"].update(train)
        (runs / "small/run.json").write_text(json.dumps(changed))

    change(base_record.hash_files(tiny_gemma3n) | {"model.safetensors": "0" * 64})
    said = ask(runs, capsys)[2]
    assert "is not the one this run was trained on: model.safetensors differs" in said
    assert "FORCE=1" in said
    change(output="another adapter")
    assert "its export was made from other weights" in ask(runs, capsys)[2]
    change()
    rows = next((runs / "small/data/test").rglob("*.arrow"))
    rows.write_bytes(rows.read_bytes()[:-1] + b"x")
    assert "so its held-out rows are not those that were prepared" in ask(runs, capsys)[2]
    assert not (runs / "small/exam.json").exists()


def test_a_renamed_run_is_examined_by_its_recorded_files(runs, tiny_gemma3n):
    (runs / "small").rename(runs / "other")
    made = files.describe_files(runs / "other", ["adapter", "merged", "gguf"])
    found = exam_models.list_models(runs / "other", tiny_gemma3n, ["f16"], made)
    assert found[-1].load.args == (runs / "other/gguf/small-f16.gguf",)
    with pytest.raises(UserError, match="last export of run `other` made no q8_0 GGUF"):
        exam_models.list_models(runs / "other", tiny_gemma3n, ["q8_0"], made)
