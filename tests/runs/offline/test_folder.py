"""The list of a folder of wheels: read back, damaged, and as sha256sum reads it.

python -m pytest tests/runs/offline/test_folder.py
"""

import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.common.errors import ROOT, UserError
from lib.runs.offline import folder

ABOUT = {"set": "cpu", "python": "3.11", "platform": "manylinux_2_28_x86_64"}


@pytest.fixture
def listed(tmp_path):
    hashes = {}
    for name in ("a-1.0-py3-none-any.whl", "torch-2.0+cpu-cp311-cp311-linux_x86_64.whl"):
        (tmp_path / name).write_bytes(name.encode() * 50)
        hashes[name] = folder.files.sha256(tmp_path / name)
    folder.write_list(tmp_path, ABOUT, hashes)
    return tmp_path


def test_sha256sum_reads_the_list(listed):
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", folder.LIST],
        cwd=listed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": OK") == 3, "about.json too"
    assert folder.find_damaged(listed, folder.read_list(listed)) == {}
    assert folder.read_about(listed) == ABOUT


@settings(max_examples=30)
@given(st.data())
def test_any_change_of_a_file_is_found(data):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.whl"
        content = data.draw(st.binary(min_size=1, max_size=40))
        changed = data.draw(st.binary(max_size=40).filter(lambda other: other != content))
        path.write_bytes(content)
        hashes = {"a.whl": folder.files.sha256(path)}
        path.write_bytes(changed)
        assert folder.find_damaged(Path(name), hashes) == {"a.whl": "damaged or cut off"}
        path.unlink()
        assert folder.find_damaged(Path(name), hashes) == {"a.whl": "missing"}


@pytest.mark.parametrize("cut", [10, 70, -3])
def test_a_list_that_was_cut_off_is_named(listed, cut):
    path = listed / folder.LIST
    path.write_text(path.read_text()[:cut])
    try:
        hashes = folder.read_list(listed)
    except UserError:
        return
    # a cut within a name leaves a line of its kind, whose file is then missing
    assert "missing" in folder.find_damaged(listed, hashes).values()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"set": "gpu"}', '{"set": "cpu", "python": ""}'])
def test_a_damaged_about_is_named(listed, text):
    (listed / folder.ABOUT).write_text(text)
    with pytest.raises(UserError, match="about.json` is damaged"):
        folder.read_about(listed)


def test_names_are_compared_as_pip_does():
    assert folder.wheel_version("PyYAML-6.0.3-cp311-cp311-linux_x86_64.whl") == ("pyyaml", "6.0.3")
    assert folder.wheel_version("torch-2.13.0+cpu-cp311-x.whl") == ("torch", "2.13.0+cpu")
    assert folder.normalise("types_PyYAML") == folder.normalise("types-pyyaml") == "types-pyyaml"


def test_pins_of_the_full_set_contain_those_of_the_small_one():
    small, full = (list(folder.read_pins(ROOT / name)) for name in folder.REQUIREMENTS.values())
    assert set(small) < set(full)
    assert all(pin.count("==") == 1 for pin in full)
