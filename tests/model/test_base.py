"""Where the base model's files come from, and the errors when they are missing.

python -m pytest tests/model/test_base.py
"""

import pytest

from lib.common.errors import UserError
from lib.model import base


def test_a_local_folder_and_what_is_missing_from_it(tiny_gemma3n, tmp_path):
    assert base.fetch(str(tiny_gemma3n)) == tiny_gemma3n
    with pytest.raises(UserError, match=r"has no config.json"):
        base.fetch(str(tmp_path))
    with pytest.raises(UserError, match=r"does not exist.*hub id `owner/name`"):
        base.fetch(str(tmp_path / "missing"))
    for name in ("nothing", "./a/b", "~/model"):
        with pytest.raises(UserError, match="does not exist"):
            base.fetch(name)


def test_an_unknown_bundled_name():
    with pytest.raises(
        UserError,
        match=r"`bundled:gemma-7b` is not bundled; the only bundled model is bundled:gemma-3-270m",
    ):
        base.fetch("bundled:gemma-7b")


@pytest.mark.parametrize("name", ["owner/no-such-model", "own er/na me", "owner/-bad-"])
def test_a_hub_id_without_a_network_or_not_an_id(monkeypatch, tmp_path, name):
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        UserError,
        match=rf"base_model `{name}` could not be fetched: .*\n.*HF_TOKEN.*bundled:gemma-3-270m",
    ):
        base.fetch(name)


def test_what_is_no_base_is_named(tmp_path):
    """An adapter's folder, a folder of GGUF files, and such a file."""
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/base"}')
    with pytest.raises(
        UserError,
        match=r"no config.json.*\nIt is an adapter of `owner/base`: set base_model to that, and "
        "start_from to this folder",
    ):
        base.fetch(str(adapter))
    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    (ggufs / "model.gguf").touch()
    with pytest.raises(UserError, match=r"no config.json.*\nA GGUF file cannot be trained"):
        base.fetch(str(ggufs))
    with pytest.raises(UserError, match=r"is a file; expected .* folder.* A GGUF file cannot"):
        base.fetch(str(ggufs / "model.gguf"))
    (tmp_path / "model.bin").touch()
    with pytest.raises(UserError, match=r"is a file; expected .*safetensors\.$"):
        base.fetch(str(tmp_path / "model.bin"))
