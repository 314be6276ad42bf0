"""A folder of wheels is checked where it is installed: whole, and for this machine and project.

python -m pytest tests/runs/offline/test_check.py
"""

import os
import platform
import shutil
import subprocess
import sys

import pytest

from helpers.small_wheels import write_wheel
from lib.common.errors import ROOT, UserError
from lib.runs.offline import check, folder

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def stick(tmp_path, monkeypatch):
    """A folder for this machine, with what the two requirements files of a checkout pin."""
    (tmp_path / "requirements-cpu.txt").write_text("aid-base==1.0\ntorch==2.0\n")
    (tmp_path / "requirements.txt").write_text("-r requirements-cpu.txt\nfast==3.0\n")
    monkeypatch.setattr(check, "ROOT", tmp_path)
    place = tmp_path / "stick"
    place.mkdir()
    for name, version in (("aid-base", "1.0"), ("torch", "2.0+cpu"), ("fast", "3.0")):
        write_wheel(place, name, version)
    relist(place)
    return place


def relist(place, **changed):
    about = {"set": "cuda", "python": HERE, "platform": f"manylinux_2_28_{platform.machine()}"}
    hashes = {path.name: folder.files.sha256(path) for path in place.glob("*.whl")}
    folder.write_list(place, about | changed, hashes)


def refusal(place, set_name="cuda", chosen=False):
    with pytest.raises(UserError) as caught:
        check.check(str(place), set_name, chosen)
    return str(caught.value)


def test_a_sound_folder_passes(stick, capsys):
    check.check(str(stick), "cuda", False)
    assert "Checking the 4 files" in capsys.readouterr().out


def test_a_wheel_that_was_cut_off_and_one_that_is_gone_are_named(stick):
    torch = stick / "torch-2.0+cpu-py3-none-any.whl"
    torch.write_bytes(torch.read_bytes()[:-20])
    (stick / "fast-3.0-py3-none-any.whl").unlink()
    said = refusal(stick)
    assert "of 4 files" in said
    assert "torch-2.0+cpu-py3-none-any.whl (damaged or cut off)" in said
    assert "fast-3.0-py3-none-any.whl (missing)" in said
    assert "downloads only these" in said


def test_many_damaged_ones_fit_on_a_screen(stick):
    for number in range(40):
        write_wheel(stick, f"p{number}")
    relist(stick)
    for path in stick.glob("p*.whl"):
        path.write_bytes(b"")
    said = refusal(stick)
    assert "and 30 more" in said
    assert len(said) < 1200


def test_a_wheel_that_nobody_listed_is_refused(stick):
    write_wheel(stick, "torch", "9.9")
    assert "torch-9.9-py3-none-any.whl, which `make wheels` did not put" in refusal(stick)


def test_what_a_mac_leaves_on_a_stick_is_no_wheel(stick):
    (stick / "._fast-3.0-py3-none-any.whl").write_bytes(b"\0\5\26\7")
    (stick / "photo.jpg").write_bytes(b"")
    check.check(str(stick), "cuda", False)


def test_another_python_is_named_with_both_ways_on(stick):
    relist(stick, python="3.99")
    said = refusal(stick)
    assert f"for Python 3.99, but this is Python {HERE}" in said
    assert "PYTHON=python3.99" in said
    assert f"FOR_PYTHON={HERE}" in said


@pytest.mark.parametrize(
    "tag", ["manylinux_2_28_riscv64", "macosx_14_0_arm64", "macosx_14_0_x86_64"]
)
def test_another_platform_is_named(stick, tag):
    relist(stick, platform=tag)
    assert f"is for {tag}, but this machine is" in refusal(stick)


def test_an_older_system_library_is_named(stick, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.17"))
    assert "glibc 2.28 or newer, this machine has 2.17" in refusal(stick)


def test_the_cpu_set_on_a_machine_with_a_gpu(stick):
    relist(stick, set="cpu")
    said = refusal(stick, "cuda")
    assert "has the CPU set, but the NVIDIA GPU here needs the CUDA set" in said
    assert "but FOR=cuda needs" in refusal(stick, "cuda", chosen=True)
    assert "FOR=cpu" in said
    check.check(str(stick), "cpu", True)


def test_the_cuda_set_on_a_machine_without_one(stick):
    said = refusal(stick, "cpu")
    assert "has the CUDA set, but nvidia-smi finds no GPU" in said
    assert "FOR=cpu" in said
    check.check(str(stick), "cpu", True)


def test_another_state_of_the_project_is_named(stick):
    (check.ROOT / "requirements-cpu.txt").write_text("aid_base==1.1\ntorch==2.0\nnew-one==1\n")
    said = refusal(stick)
    assert "aid_base==1.1 (there: 1.0), new-one==1 (there: none)" in said
    assert "torch" not in said


def test_a_folder_that_is_not_finished_or_not_there(stick, tmp_path):
    (stick / folder.LIST).unlink()
    assert "the download was not finished" in refusal(stick)
    assert "is not a folder" in refusal(tmp_path / "nowhere")


@pytest.fixture
def make(tmp_path, monkeypatch):
    """`make -n` in a folder with our Makefile, on a machine with or without a GPU."""
    for name in ("Makefile", "quoting.mk"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for variable in ("MAKEFLAGS", "FOR", "WHEELS"):
        monkeypatch.delenv(variable, raising=False)
    for name in ("requirements-cpu.txt", "requirements.txt"):
        (tmp_path / name).touch()

    def dry_run(*words, gpu=False):
        smi = tmp_path / "bin" / "nvidia-smi"
        smi.write_text("#!/bin/sh\n" + ("echo 'GPU 0: a card'\n" if gpu else "exit 9\n"))
        smi.chmod(0o755)
        command = ["make", "-n", *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.stdout + done.stderr

    return dry_run


def test_setup_reads_the_folder_alone_and_checks_it_first(make):
    shown = make("setup", "WHEELS=/media/my stick", gpu=True)
    checks, installs = (shown.index(words) for words in ("offline.check", "--no-index"))
    assert checks < installs
    assert "offline.check --for cuda  -- '/media/my stick'" in shown
    assert "--chosen" not in shown
    assert "PIP_CONFIG_FILE=/dev/null .venv/bin/pip --isolated install" in shown
    assert shown.count("bin/pip ") == 1, "nothing else asks an index"
    assert "--for cpu --chosen" in make("setup", "WHEELS=x", "FOR=cpu", gpu=True)


def test_without_a_folder_setup_asks_the_index(make):
    for gpu, name in ((True, "requirements.txt"), (False, "requirements-cpu.txt")):
        shown = make("setup", gpu=gpu)
        assert f"pip install -q -r {name}" in shown
        assert "--no-index" not in shown
        assert ("torch==2.13.0+cpu" in shown) is not gpu


def test_a_set_that_was_chosen_is_kept(make, tmp_path):
    """Otherwise the next `make run` would set up again, from the network."""
    assert "touch .venv/.ready-requirements-cpu.txt .venv/.for-cpu" in make("setup", "FOR=cpu")
    (tmp_path / ".venv").mkdir()
    for name in (".for-cpu", ".ready-requirements-cpu.txt"):
        (tmp_path / ".venv" / name).touch()
    assert "pip" not in make("runs", gpu=True)
    assert "requirements.txt" in make("setup", "FOR=cuda", gpu=True)


def test_a_set_that_does_not_exist_is_refused(make):
    assert "FOR=gpu: expected cpu or cuda" in make("setup", "FOR=gpu")


def test_it_runs_before_anything_is_installed(tmp_path):
    command = [sys.executable, "-S", "-m", "lib.runs.offline.check", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: WHEELS=")
