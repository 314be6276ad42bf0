"""GGUF files of a merged folder: complete, checked before they get their names, with metadata about their origin.

python -m pytest tests/export/test_gguf_export.py
"""

import json
import shutil

import pytest

from lib.common import files
from lib.common.errors import UserError
from lib.export import gguf_export, merge
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
    assert steps["kv"] == {"from_base": 0, "placeholder": 45}
    made = steps["gguf"]
    assert made["architecture"] == "gemma3n"
    assert made["types"]["Q8_0"] > 300
    assert made["bytes"] < 56e6
    assert (made["eos_id"], made["eot_id"]) == (1, 6)


def test_gguf_without_shared_kv_is_refused_before_llama_cpp_sees_it(tiny_gemma3n, tmp_path):
    with pytest.raises(UserError, match=r"45 tensors are missing.*blk\.20\.attn_k"):
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
    with pytest.raises(UserError, match="no tokenizer.model"):
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
    with pytest.raises(UserError, match="so the adapter is not the one that was trained"):
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
    assert (made["merged"], made["placeholder"]) == (215, 45)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert (tmp_path / "merged" / merge.EXTRA_SHARD).is_file()
