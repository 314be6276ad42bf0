"""A run folder, the hub's stand-in, and a push between them that never shows the token."""

import random

import pytest

from helpers import hub_upload
from helpers.hub_upload import TOKEN
from helpers.push_case import CARDS, SIZES, TO
from lib.common import files
from lib.common.errors import UserError
from lib.export import push


@pytest.fixture
def run(tmp_path):
    """A run folder; the weights are random bytes, other than in any other test."""
    source = random.Random(str(tmp_path))
    for path, size in SIZES.items():
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / path).write_bytes(source.randbytes(size))
    return tmp_path / "run"


@pytest.fixture
def served(monkeypatch, tmp_path):
    with hub_upload.serving(monkeypatch, tmp_path / "token") as hub:
        hub.part_size = 10000
        yield hub


@pytest.fixture
def send(served, run, caplog, capfd):
    """push.push_run of the run; every line logged, printed, warned or raised is held against the token and the signed addresses."""
    lines = []

    def call(to=TO, artifacts=None, cards=CARDS, log=lines.append, **more):
        said = ""
        try:
            return push.push_run(
                run,
                to,
                files.describe_files(run, ["adapter", "merged", "gguf"])
                if artifacts is None
                else artifacts,
                cards,
                log=log,
                **more,
            )
        except UserError as error:
            said = str(error)
            raise
        finally:
            told = capfd.readouterr()
            shown = "\n".join([said, *lines, caplog.text, told.out, told.err])
            assert TOKEN not in shown, "the token is shown"
            assert "SIGNED" not in shown, "a signed address is shown"

    call.lines = lines
    return call
