"""GGUF files of a merged folder: complete, checked before they get their names, with metadata about their origin.

python -m pytest tests/export/test_gguf_export.py
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import adapters, export_runs, tiny_gemma3
from lib.common import files
from lib.common.errors import UserError
from lib.data import chat
from lib.export import (
    gguf_export,
    gguf_file,
    gguf_plan,
    gguf_weights,
    merge,
)
from lib.export.parity import compare, reference, rounding
from lib.model.load import load_merged
from lib.params import Params
from lib.record.run_record import Run

SERVER_FILES = (
    "adapter/NOTICE",
    "adapter/ask.py",
    "gguf/Modelfile",
    "gguf/NOTICE",
    "gguf/localai.yaml",
)


def patched(source, target, old, new):
    """Copy a file, with one occurrence of `old` replaced by the same number of bytes."""
    data = source.read_bytes()
    assert data.count(old) >= 1
    assert len(old) == len(new)
    target.write_bytes(data.replace(old, new, 1))
    return target


def test_q8_0_is_complete(exported):
    folder, steps = exported
    assert steps["kv"] == {"from_base": 0, "placeholder": 15}
    made = steps["gguf"]
    assert made["architecture"] == "gemma3n"
    assert made["types"]["Q8_0"] == 25 * 9 + 2
    assert made["bytes"] < 40.5e6
    assert (made["eos_id"], made["eot_id"]) == (1, 6)


@pytest.mark.slow
def test_gguf_without_shared_kv_is_refused_before_llama_cpp_sees_it(tiny_gemma3n, tmp_path):
    with pytest.raises(UserError, match=r"15 tensors are missing.*blk\.20\.attn_k"):
        gguf_export.write_gguf(tiny_gemma3n, tmp_path / "gguf" / "bare.gguf")
    assert list((tmp_path / "gguf").iterdir()) == []


def test_damaged_gguf_is_refused(exported, tmp_path):
    folder, good = exported[0] / "merged", exported[0] / "gguf" / "tiny-q8_0.gguf"
    damage = (
        (
            b"blk.7.attn_q.weight",
            b"blk.7.attn_x.weight",
            r"1 tensors are missing, for example blk\.7\.attn_q",
        ),
        (b"'<start_of_turn>model", b"'<start_of_turm>model", "chat template is not"),
        (b"tokenizer.chat_template", b"tokenizer.chat_templatX", "there is no chat template"),
        (
            b"\x0d\0\0\0\0\0\0\0<end_of_turn>",
            b"\x0d\0\0\0\0\0\0\0<end_of_turm>",
            "control tokens are wrong",
        ),
    )
    for old, new, said in damage:
        with pytest.raises(UserError, match=said):
            gguf_export.check_gguf(patched(good, tmp_path / "bad.gguf", old, new), folder)
    for size in (good.stat().st_size - 4096, 300_000, 1000, 3):
        (tmp_path / "short.gguf").write_bytes(good.read_bytes()[:size])
        with pytest.raises(UserError, match="not a complete GGUF"):
            gguf_export.check_gguf(tmp_path / "short.gguf", folder)
    with pytest.raises(UserError, match="license.name is 'gemma'"):
        gguf_export.check_gguf(good, folder, {"general.license.name": "mit"})


@pytest.mark.slow
def test_converter_failure_shows_its_last_lines(exported, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(exported[0] / "merged", broken)
    config = json.loads((broken / "config.json").read_text()) | {"architectures": ["NoSuchModel"]}
    (broken / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="NoSuchModel"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf")
    with pytest.raises(UserError, match="q5_0.*Expected one of"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf", "q5_0")
    (broken / "tokenizer.model").unlink()
    tokenizer = json.loads((broken / "tokenizer.json").read_text()) | {"normalizer": None}
    (broken / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"no tokenizer.model.*its normaliser does more"):
        gguf_export.write_gguf(broken, tmp_path / "out.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken"]


def test_metadata_names_base_data_and_training(tmp_path):
    (tmp_path / "data").mkdir()
    sources = [
        {"dataset": "bundled:first-aid", "revision": None, "commit": None},
        {"dataset": "a/b", "revision": "main", "commit": "c" * 40},
    ]
    (tmp_path / "data" / "data_card.json").write_text(json.dumps({"sources": sources}))
    job = Params(base_model="google/gemma-3n-E4B-it")
    (tmp_path / "results.json").write_text(
        json.dumps(
            {"train": {"steps": 22, "eval_loss_before": 3.98438, "eval_loss_after": 2.95162}}
        )
    )
    found = gguf_export.collect_metadata(
        job, tmp_path, tmp_path / "models--google--gemma" / "snapshots" / "abc"
    )
    assert "22 steps, held-out response loss 3.984 -> 2.952" in found["description"]
    assert (found["base_model.0.name"], found["base_model.0.version"]) == (
        "google/gemma-3n-E4B-it",
        "abc",
    )
    assert [found.get(f"dataset.{n}.{key}") for n in (0, 1) for key in ("name", "version")] == [
        "bundled:first-aid",
        None,
        "a/b",
        "c" * 40,
    ]
    (tmp_path / "results.json").write_text(
        json.dumps({"train": {"steps": 22, "eval_loss_before": None, "eval_loss_after": 2.9}})
    )
    other = job.model_copy(update={"base_revision": "v1", "base_model": str(tmp_path)})
    found = gguf_export.collect_metadata(other, tmp_path)
    assert str(tmp_path) not in json.dumps(found)
    assert found["description"].endswith("held-out response loss not measured.")
    assert found["base_model.0.version"] == "v1"


def test_artifacts_are_what_this_export_made_and_the_adapter_of_train(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "run")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)  # PEFT's
    trained = files.describe_files(folder, ["adapter"])
    for name in SERVER_FILES:
        (folder / name).write_text("of this export")
    run = Run(folder, {"stages": {"train": {"artifacts": trained}}})
    for name in ("adapter/README.md", "gguf/old-q4_0.gguf", "merged/README.md"):
        (folder / name).write_text("of an earlier export")
    gguf = folder / "gguf" / "tiny-q8_0.gguf"
    described = gguf_export.describe_artifacts(run, {"q8_0": gguf}, with_lora=False)
    listed = {item["path"]: item for item in described}
    assert {path for path in listed if not path.startswith("merged/")} == {
        *(item["path"] for item in trained),
        "gguf/tiny-q8_0.gguf",
        *SERVER_FILES,
    }
    assert "merged/model.safetensors" in listed
    assert "merged/README.md" not in listed
    made = listed["gguf/tiny-q8_0.gguf"]
    assert (made["bytes"], made["sha256"]) == (
        exported[1]["gguf"]["bytes"],
        exported[1]["gguf"]["sha256"],
    )
    card = folder / "adapter" / "README.md"
    of_export = gguf_export.list_made(run, described, [card])
    assert {path for path in of_export if not path.startswith("merged/")} == {
        "adapter/README.md",
        "gguf/samples.json",
        "gguf/tiny-q8_0.gguf",
        *SERVER_FILES,
    }
    with pytest.raises(UserError, match=r"gguf/run-lora\.gguf is missing"):
        gguf_export.describe_artifacts(run, {"q8_0": gguf}, with_lora=True)
    config = folder / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace("0.0", "0.1", 1))
    with pytest.raises(UserError, match="so the weights are not those that were trained"):
        gguf_export.describe_artifacts(run, {"q8_0": gguf}, with_lora=False)


def test_merged_gets_its_name_once_it_is_complete(tiny_gemma3n, trained, tmp_path, monkeypatch):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "old").write_text("of an earlier export")

    def stop(folder, base):
        raise UserError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(merge, "add_missing_shared_kv", stop)
        with pytest.raises(UserError, match="no space"):
            merge.make_merged(tiny_gemma3n, trained[0], tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["old"]
    made = merge.make_merged(tiny_gemma3n, trained[0], tmp_path / "merged")
    assert (made["merged"], made["placeholder"]) == (165, 15)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / merge.EXTRA_SHARD).is_file()


@pytest.fixture(scope="module")
def odd_base(tmp_path_factory):
    """Return a run folder and its GGUF files {type: path} from a float32 Gemma 3 with an output layer of its own.

    It has no tokenizer.model and no generation_config.json, as transformers 5 saves many.
    """
    base = tiny_gemma3.build(tmp_path_factory.mktemp("odd") / "base", "float32", tied=False)
    (base / "tokenizer.model").unlink()
    (base / "generation_config.json").unlink()
    run = base.with_name("odd")
    adapters.save_random(base, run / "adapter")
    merge.make_merged(base, run / "adapter", run / "merged")
    ggufs = gguf_export.name_ggufs(run, ["f16", "bf16", "q8_0", "q4_k_m"])
    gguf_export.write_ggufs(run / "merged", ggufs)
    return run, ggufs


def test_a_float32_base_with_an_untied_output_layer_is_rounded_once(odd_base):
    """The limits are those of a 16-bit base: f16 is half a step of its 11 bits from float32 itself, measured 0.000487."""
    run, ggufs = odd_base
    worst = {}
    for kind, path in ggufs.items():
        worst |= gguf_weights.compare_weights(path, kind, run / "merged")["worst"]
    assert 0.0004 < worst["F16"] < 2**-11
    assert 0.003 < worst["BF16"] < 2**-8
    assert 0.004 < worst["Q8_0"] < 0.0045
    assert worst["F32"] == 0
    header = gguf_file.read_header(ggufs["q4_k_m"])
    kinds = {tensor.name: tensor.kind for tensor in header.tensors}
    assert kinds["output.weight"] == "Q6_K"
    assert kinds["token_embd.weight"] == "Q4_K", "as llama.cpp does, if they are not tied"


def test_its_files_pass_parity_with_the_tokenizer_model_that_was_made(odd_base, small):
    run, ggufs = odd_base
    rows = [(f"What about this {n}?", f"{n}. {export_runs.ANSWER}") for n in range(3)]
    for split in ("train", "validation", "test"):
        export_runs.write_split(run / "data", split, rows, chat.load_chat(run / "merged"))
    net = load_merged(run / "merged")
    truth = reference.predict_reference(run / "data", run / "merged", net, 1)
    figures, _ = compare.check_parity(
        ggufs["f16"], "f16", compare.Origin(run / "merged"), truth, tuple(export_runs.PROMPTS), 12
    )
    assert figures["kl_mean"] < 1e-4
    assert figures["verdict"] == "as the 16-bit model"
    net = load_merged(run / "merged", torch.float32)
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    rounding.replace_weights(net, ggufs["q4_k_m"], run / "merged")
    for name, weight in net.state_dict().items():
        apart = (weight - before[name]).norm() / before[name].norm()
        assert (apart == 0) if weight.ndim == 1 else (0.001 < apart < 0.1), name


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_damaged_file_of_a_float32_base_is_refused(odd_base, tmp_path, kind):
    """Planted: in one row, its largest number is two steps of the type too large."""
    run, ggufs = odd_base
    damaged = tmp_path / "damaged.gguf"
    for name in ("output.weight", "blk.1.ffn_up.weight"):
        tensor = next(t for t in gguf_file.read_header(ggufs[kind]).tensors if t.name == name)
        numbers = np.fromfile(ggufs[kind], np.uint16)
        row = numbers[tensor.offset // 2 :][: tensor.shape[0]]
        row[(row & 0x7FFF).argmax()] += 2
        numbers.tofile(damaged)
        with pytest.raises(UserError, match=rf"a block of .*{kind.upper()}.* is off by"):
            gguf_weights.compare_weights(damaged, kind, run / "merged")


def test_weights_of_several_types_are_converted_in_float32(odd_base, tmp_path):
    run, _ = odd_base
    folder = shutil.copytree(run / "merged", tmp_path / "mixed")
    tensors = load_file(folder / "model.safetensors")
    types = (torch.float16, torch.bfloat16, torch.float32)

    def save(choose):
        changed = {name: choose(name, tensor) for name, tensor in sorted(tensors.items())}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        return gguf_plan.converted_type(folder)

    assert save(lambda name, tensor: tensor) == "F32"
    for dtype, kind in zip(types, ("F16", "BF16", "F32"), strict=True):
        assert save(lambda name, tensor, dtype=dtype: tensor.to(dtype)) == kind
        # a norm's type does not matter, since norms are float32 in every GGUF
        assert (
            save(lambda name, t, dtype=dtype: t.float() if "norm" in name else t.to(dtype)) == kind
        )
    assert save(lambda name, t: t.half() if "q_proj" in name else t.bfloat16()) == "F32"
