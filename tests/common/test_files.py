"""Atomic writes, and locks that end with their processes.

.venv/bin/python -m pytest tests/common/test_files.py
"""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest

from lib.common import files, limits
from lib.common.errors import ROOT, UserError


def test_a_write_is_whole_or_absent(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    files.write_json(path, {"é": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": 1}
    seen = []
    real = os.replace
    monkeypatch.setattr(
        os,
        "replace",
        lambda a, b: (
            seen.append((path.read_text(), files.pathlib.Path(a).read_text())),
            real(a, b),
        ),
    )
    files.atomic_write(path, "new")
    assert seen == [
        ('{\n  "é": 1\n}\n', "new")
    ]  # until the rename a reader sees the old file, all of it
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_sealed_record_shows_a_changed_value_and_one_without_a_seal_is_read(tmp_path):
    path = tmp_path / "record.json"
    value = {"é": 1.5, "list": [1, {"b": None}], "by": {"2": True}}
    files.write_json(path, value, sealed=True)
    assert files.read_json(path, "record") == value
    sound = path.read_bytes()
    missed = 0
    for at in range(len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        try:
            found = files.read_json(path, "record")
        except UserError:
            continue
        missed += 1
        assert {k: v for k, v in found.items() if k in value} == value, f"byte {at}"
    assert missed < 40, "blanks between values, and the seal's own name"
    path.write_text('{"a": 1}')
    assert files.read_json(path, "record") == {"a": 1}
    path.write_text('{"a": 1, "seal": "0"}')
    with pytest.raises(UserError, match="does not match its seal"):
        files.read_json(path, "record")


def test_a_disk_that_refuses_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "record.json"
    path.write_text("old")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        files.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["record.json"]


def test_a_number_nobody_measured_is_not_written(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("old")
    with pytest.raises(ValueError):
        files.write_json(path, {"loss": float("nan")})
    assert path.read_text() == "old"


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff\xfe", None])
def test_torn_json_is_the_users_to_know(tmp_path, content):
    path = tmp_path / "run.json"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=r"run record `.*run\.json` is not readable JSON"):
        files.read_json(path, "run record")


def test_a_folder_is_replaced_by_a_complete_one(tmp_path):
    final, temporary = tmp_path / "adapter", tmp_path / ".adapter.tmp"
    for content in ("first", "second"):
        temporary.mkdir()
        (temporary / content).touch()
        files.replace_folder(temporary, final)
        assert os.listdir(final) == [content]
        assert os.listdir(tmp_path) == ["adapter"]


def test_every_kind_of_damage_is_named(tmp_path):
    (tmp_path / "data/deep").mkdir(parents=True)
    (tmp_path / "data/deep/a").write_text("aaaa")
    (tmp_path / "b").write_text("bbbb")
    listed = files.describe_files(tmp_path, ["data", "b"])
    assert [(f["path"], f["bytes"]) for f in listed] == [("b", 4), ("data/deep/a", 4)]
    assert files.find_damage(tmp_path, listed) == ""
    (tmp_path / "b").write_text("bbbx")
    assert files.find_damage(tmp_path, listed) == "b does not match its recorded sha256"
    (tmp_path / "b").write_text("bb")
    assert files.find_damage(tmp_path, listed) == "b has 2 bytes, recorded 4"
    (tmp_path / "b").unlink()
    assert files.find_damage(tmp_path, listed) == "b is missing"


def test_too_small_a_disk_is_said_in_gib(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 2**30}))
    files.require_disk(tmp_path, 2**30, "a model")
    with pytest.raises(
        UserError,
        match=r"(?s)a model: it needs about 1\.5 GiB, but 1\.0 GiB are free.*MEDRESCUE_RUNS",
    ):
        files.require_disk(tmp_path, 3 * 2**29, "a model")


def test_memory_too_small_says_how_much(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 2**30}))
    limits.require_memory(2**30, "a model")
    with pytest.raises(
        UserError,
        match=r"Not enough memory for a model: it needs about 1.5 GiB, but 1.0 GiB are free.\n.*smaller base_model",
    ):
        limits.require_memory(3 * 2**29, "a model")


def test_paths_are_shown_from_the_repository():
    assert files.format_path(ROOT / "runs" / "x") == "runs/x"
    assert files.format_path(files.pathlib.Path("/elsewhere/x")) == "/elsewhere/x"


def other(code, folder, **options):
    """Run code in another process of this environment; return its last line of output."""
    code = f"import os, pathlib, sys\nfrom lib.common import files\nfolder = pathlib.Path(sys.argv[1])\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2]


def test_one_process_has_the_lock_and_may_ask_twice(tmp_path):
    take = "print(files.lock_folder(folder) is not None)"
    fd = files.lock_folder(tmp_path)
    assert files.lock_folder(tmp_path) == fd
    assert other(take, tmp_path) == "False"
    files.unlock_folder(tmp_path)
    files.unlock_folder(tmp_path)
    assert other(take, tmp_path) == "True"
    assert (
        files.lock_folder(tmp_path) is not None
    )  # the other process is gone, and with it its lock
    files.unlock_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_handed_lock_lasts_until_both_have_let_go(tmp_path):
    """This happens between runner and kernel; the descriptor of another folder does not open this one."""
    same = "print(files.lock_folder(folder) == int(os.environ[files.FD_VARIABLE]))"
    fd = files.lock_folder(tmp_path)
    assert (
        other(same, tmp_path, env={**os.environ, files.FD_VARIABLE: str(fd)}, pass_fds=(fd,))
        == "True"
    )
    waiter = subprocess.Popen(
        [sys.executable, "-c", "print('here', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(fd,),
    )
    assert waiter.stdout.readline() == b"here\n"
    files.unlock_folder(tmp_path)
    assert other("print(files.lock_folder(folder) is None)", tmp_path) == "True"
    waiter.communicate(b"\n")
    (tmp_path / "other").mkdir()
    fd = files.lock_folder(tmp_path)
    assert (
        other(
            same, tmp_path / "other", env={**os.environ, files.FD_VARIABLE: str(fd)}, pass_fds=(fd,)
        )
        == "False"
    )
    files.unlock_folder(tmp_path)


def test_what_cannot_be_locked_is_the_users_to_know(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "absent"):
        with pytest.raises(UserError, match="cannot lock"):
            files.lock_folder(path)
    monkeypatch.setattr(
        files.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(9, "Bad file descriptor"))
    )  # as NFS does
    with pytest.raises(UserError, match="MEDRESCUE_RUNS"):
        files.lock_folder(tmp_path)


def test_a_finished_folder_has_the_permissions_of_this_processs_umask(tmp_path):
    """safetensors and tempfile write 0600 and 0700, with which nobody else could load a model."""
    import tempfile

    import safetensors.numpy

    for umask, file_mode, folder_mode in ((0o022, 0o644, 0o755), (0o027, 0o640, 0o750)):
        before = os.umask(umask)
        try:
            draft = files.pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
            (draft / "inner").mkdir(mode=0o700)
            weights = draft / "inner" / "model.safetensors"
            safetensors.numpy.save_file({"a": np.zeros(2)}, weights)
            assert weights.stat().st_mode & 0o777 == 0o600, "what is mended here"
            (draft / "away").symlink_to(tmp_path)
            files.replace_folder(draft, tmp_path / "adapter")
        finally:
            os.umask(before)
        done = tmp_path / "adapter"
        modes = {p.stat().st_mode & 0o777 for p in (done, done / "inner")}
        assert modes == {folder_mode}
        assert (done / "inner/model.safetensors").stat().st_mode & 0o777 == file_mode


@pytest.mark.parametrize("content", ["[]", "3", "null", '"run"', "[[]]"])
def test_json_that_is_no_object_is_the_users_to_know(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(content)
    with pytest.raises(UserError, match="run record .*expected a JSON object, found"):
        files.read_json(path, "run record")


def test_results_without_numbers_are_the_users_to_know(tmp_path):
    (tmp_path / "results.json").write_text('{"train": 3}')
    with pytest.raises(UserError, match="`train` is no object with numbers.\nRestore it"):
        files.read_results(tmp_path)
