"""What an earlier export made: set aside by name, and removed once it has been made again.

python -m pytest tests/record/test_earlier.py
"""

from helpers.runs_by_hand import by_hand, finish, finished
from lib.common import files
from lib.record import earlier


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def names(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


OLD = ("gguf/x-q8_0.gguf", "gguf/x-lora.gguf", "gguf/Modelfile", "merged/deep/w", "merged/w")
TRAINED = "adapter/adapter_model.safetensors"


def test_what_is_made_again_goes_and_the_rest_stays_aside(tmp_path):
    write(tmp_path, *OLD, TRAINED, "adapter/README.md", "adapter/ask.py", "gguf/.x.draft")
    write(tmp_path, "gguf/x-q4_0.gguf.refused", "earlier/gguf/x-f16.gguf")
    assert earlier.set_export_aside(tmp_path) == [
        "earlier/gguf/x-lora.gguf",
        "earlier/gguf/x-q8_0.gguf",
    ]
    aside = {f"earlier/{name}" for name in OLD} | {"earlier/gguf/x-f16.gguf"}
    assert names(tmp_path) == aside | {TRAINED}
    assert earlier.set_export_aside(tmp_path) == []
    assert names(tmp_path) == aside | {TRAINED}, "an export that failed at once loses nothing"
    write(tmp_path, "merged/w", "gguf/x-q8_0.gguf", "gguf/Modelfile")
    left = ["earlier/gguf/x-f16.gguf", "earlier/gguf/x-lora.gguf"]
    assert earlier.drop_remade(tmp_path) == left
    assert names(tmp_path / "earlier") == {"gguf/x-f16.gguf", "gguf/x-lora.gguf"}
    write(tmp_path, "gguf/x-f16.gguf", "gguf/x-lora.gguf")
    assert earlier.drop_remade(tmp_path) == []
    assert not (tmp_path / "earlier").exists()


def test_only_another_adapter_sets_an_export_aside(folder, capsys):
    finished(folder)
    write(folder, "gguf/job-q8_0.gguf", "merged/w")
    finish(by_hand("train")[1], "train")  # the same result
    assert (folder / "gguf/job-q8_0.gguf").exists()
    finish(by_hand("prepare")[1], "prepare", "other rows")
    assert (folder / "gguf/job-q8_0.gguf").exists(), "the adapter is still the same"
    finish(by_hand("train")[1], "train", "another adapter")
    assert not (folder / "gguf").exists()
    assert not (folder / "merged").exists()
    assert "of an earlier export, set aside: earlier/gguf/job-q8_0.gguf" in capsys.readouterr().out
    assert set(files.read_json(folder / "results.json", "results")) == {"prepare", "train"}


def test_an_export_begins_without_the_results_of_the_one_before(folder):
    finished(folder)
    _, run = by_hand("export")
    assert "export" not in files.read_json(folder / "results.json", "results")
    run.add_results("export", {"parity": {"q8_0": {}}})
    run.add_results("export", {"lora": {}})
    found = files.read_json(folder / "results.json", "results")["export"]
    assert found == {"parity": {"q8_0": {}}, "lora": {}}
