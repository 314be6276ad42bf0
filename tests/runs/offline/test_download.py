"""Packages for a machine without network, from an index that is a folder of small wheels.

python -m pytest tests/runs/offline/test_download.py
"""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.small_wheels import write_wheel
from lib.common.errors import UserError
from lib.runs.offline import download, folder, target


@pytest.fixture
def index(tmp_path, monkeypatch):
    """An index of our own, and nothing else that pip could reach."""
    place = tmp_path / "index"
    place.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", place.as_uri())
    for variable in ("PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(variable, raising=False)
    write_wheel(place, "aid-base", "1.0", needs=["aid-parts>=2"])
    write_wheel(place, "aid-parts", "2.0")
    write_wheel(place, "aid-parts", "1.0")
    write_wheel(place, "unrelated", "1.0")
    return place


@pytest.fixture
def pins(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text("aid-base==1.0  # the base\n")
    return path


NAMES = ["aid_base-1.0-py3-none-any.whl", "aid_parts-2.0-py3-none-any.whl"]


def names_in(place):
    return sorted(path.name for path in place.iterdir())


def fetch(place, pins, set_name="cpu", python=""):
    download.download(str(place), set_name, target.make_target(python), pins)


def test_the_folder_has_what_is_needed_and_a_list_of_it(index, pins, tmp_path, capsys):
    place = tmp_path / "a stick"
    fetch(place, pins)
    assert names_in(place) == [folder.LIST, *[folder.ABOUT, *NAMES]]
    hashes = folder.read_list(place)
    assert set(hashes) == {folder.ABOUT, *NAMES}
    assert folder.find_damaged(place, hashes) == {}
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert folder.read_about(place)["python"] == here
    shown = capsys.readouterr().out
    assert "2 packages, 0.00 GB" in shown
    assert "make setup WHEELS=/path/to/a stick" in shown


@pytest.mark.slow
def test_again_mends_what_is_damaged_and_fetches_nothing_else(
    index, pins, tmp_path, capsys, monkeypatch
):
    place = tmp_path / "stick"
    fetch(place, pins)
    (place / NAMES[1]).write_bytes((place / NAMES[1]).read_bytes()[:100])
    (place / "photo.jpg").write_bytes(b"not ours")
    (place / folder.LIST).write_text((place / folder.LIST).read_text()[:30])
    fetched = []
    fetch_group = download._fetch_group

    def note(place, group, options):
        fetched.extend(wheel.name for wheel in group)
        fetch_group(place, group, options)

    monkeypatch.setattr(download, "_fetch_group", note)
    fetch(place, pins)
    assert fetched == [NAMES[1]]
    assert folder.find_damaged(place, folder.read_list(place)) == {}
    assert "1 are in" in capsys.readouterr().out

    # other pins: what is no longer needed goes, what is not ours stays
    pins.write_text("aid-parts==1.0\n")
    fetch(place, pins)
    assert names_in(place) == sorted(
        ["aid_parts-1.0-py3-none-any.whl", folder.ABOUT, folder.LIST, "photo.jpg"]
    )


@pytest.mark.slow
def test_an_interrupted_download_has_no_list_and_goes_on(index, pins, tmp_path, monkeypatch):
    place = tmp_path / "stick"
    monkeypatch.setattr(download, "GROUP_FILES", 1)
    fetch_group, calls = download._fetch_group, []

    def stop(place, group, options):
        calls.append(group[0].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        fetch_group(place, group, options)

    monkeypatch.setattr(download, "_fetch_group", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(place, pins)
    assert folder.read_list(place) == {}
    done = [name for name in NAMES if (place / name).exists()]
    assert done == [calls[0]]
    fetch(place, pins)
    assert calls[2:] == [calls[1]], "only the other one is fetched"
    assert folder.find_damaged(place, folder.read_list(place)) == {}
    assert not (place / download.PARTIAL).exists()


@pytest.mark.parametrize(
    ("set_name", "offered", "expected"),
    [
        pytest.param("cpu", ["2.0", "2.0+cpu"], "2.0+cpu", marks=pytest.mark.slow),
        pytest.param("cpu", ["2.0"], "2.0", marks=pytest.mark.slow),
        ("cuda", ["2.0", "2.0+cpu"], "2.0"),
    ],
)
def test_which_build_of_torch(index, tmp_path, capsys, set_name, offered, expected):
    """With the CPU build within reach, pip prefers it to the standard one for CUDA as well."""
    for version in offered:
        write_wheel(index, "torch", version)
    pins = tmp_path / "pins.txt"
    pins.write_text("torch==2.0\n")
    fetch(tmp_path / "stick", pins, set_name)
    assert (tmp_path / "stick" / f"torch-{expected}-py3-none-any.whl").exists()
    assert ("no CPU build" in capsys.readouterr().out) is (offered == ["2.0"])


def test_a_cuda_set_without_cuda_is_refused(index, tmp_path):
    write_wheel(index, "torch", "2.0+cpu")
    pins = tmp_path / "pins.txt"
    pins.write_text("torch==2.0\n")
    with pytest.raises(UserError, match="torch==2.0"):
        fetch(tmp_path / "stick", pins, "cuda")


@pytest.mark.slow
def test_what_only_the_target_needs_is_there(index, pins, tmp_path):
    other = "3.12" if sys.version_info[:2] != (3, 12) else "3.13"
    write_wheel(index, "aid-parts", "2.1", needs=[f'only-there; python_version == "{other}"'])
    write_wheel(index, "only-there", "1.0")
    fetch(tmp_path / "stick", pins, python=other)
    assert (tmp_path / "stick" / "only_there-1.0-py3-none-any.whl").exists()
    assert json.loads((tmp_path / "stick" / folder.ABOUT).read_text())["python"] == other


def test_a_package_without_a_wheel_for_the_target_is_named(index, tmp_path):
    write_wheel(index, "old", "1.0", tag="cp39-cp39-manylinux_2_28_x86_64")
    pins = tmp_path / "pins.txt"
    pins.write_text("old==1.0\n")
    place = tmp_path / "stick"
    with pytest.raises(UserError, match=r"old==1\.0[^$]*FOR_PYTHON"):
        fetch(place, pins)
    assert not (place / folder.LIST).exists()


def test_what_arrives_other_than_announced_gets_no_name(index, pins, tmp_path, monkeypatch):
    place = tmp_path / "stick"
    list_wheels = download.list_wheels

    def exchange(report):
        wheels = list_wheels(report)
        write_wheel(index, "aid-parts", "2.0", padding=b"something else")
        return wheels

    monkeypatch.setattr(download, "list_wheels", exchange)
    with pytest.raises(UserError, match=r"the download stopped[^$]*goes on from there"):
        fetch(place, pins)
    assert names_in(place) == []


def test_a_disk_that_is_too_small_is_found_before_the_download(index, pins, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"0\.06 GB are needed, but 0\.00 GB are free"):
        fetch(tmp_path / "stick", pins)


@pytest.mark.parametrize("name", ["", " "])
def test_without_a_folder_it_says_what_to_type(name, capsys):
    assert download.main([name]) == 2
    assert "make wheels DIR=/media/stick" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert download.main([str(tmp_path / "file" / "stick")]) == 2
    assert "cannot be written: Not a directory" in capsys.readouterr().err


@given(st.lists(st.one_of(st.none(), st.integers(0, 200 * 10**6)), max_size=60))
def test_groups_have_every_file_once_and_stay_small(sizes):
    wheels = [download.Wheel(str(n), str(n), "", "", size) for n, size in enumerate(sizes)]
    groups = list(download.group_wheels(wheels))
    assert [wheel for group in groups for wheel in group] == wheels
    for group in groups:
        assert 1 <= len(group) <= download.GROUP_FILES
        assert len(group) == 1 or sum(w.size or 0 for w in group) <= download.GROUP_BYTES


def test_sizes_that_no_index_tells_are_said():
    wheels = [download.Wheel("a", "a", "", "", size) for size in (10**9, None, 5 * 10**8)]
    assert download.format_sizes(wheels) == "1.50 GB and 1 of unknown size"
    assert download._ask_size(pathlib.Path("/nowhere/x.whl").as_uri()) is None


@pytest.mark.slow  # makes an environment
def test_what_was_downloaded_installs_without_network(index, pins, tmp_path):
    place = tmp_path / "my stick"
    fetch(place, pins)
    shutil.rmtree(index)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = ["-m", "pip", "--isolated", "install", "-q", "--no-index", "--find-links", place]
    subprocess.run([tmp_path / "env/bin/python", *install, "-r", pins], check=True)
    program = "import aid_base, aid_parts; print(aid_base.version, aid_parts.version)"
    shown = subprocess.run(
        [tmp_path / "env/bin/python", "-c", program], capture_output=True, text=True, check=True
    )
    assert shown.stdout.split() == ["1.0", "2.0"]
