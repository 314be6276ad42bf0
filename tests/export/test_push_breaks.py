"""An interrupted push: nothing incomplete looks complete, and the same call completes it.

python -m pytest tests/export/test_push_breaks.py
"""

import json
import os
import signal
import subprocess
import sys

import pytest

from helpers.hub_upload import TOKEN
from helpers.push_case import CARDS, GGUF, LORA, MERGED, SIZES, TO, assert_complete, content
from lib.common.errors import ROOT, UserError
from lib.export import hub, push

# ---------------------------------------------------------------------------------------------------------------------
# failures in the middle


BREAKS = [
    ("POST", "/api/repos/create", 500, 1),
    ("POST", "/api/repos/create", "lost", 0),
    ("GET", f"/api/models/{LORA}", 500, 2),
    ("POST", "/preupload/", "drop", 3),
    ("POST", "/objects/batch", 503, 0),
    ("PUT", "/lfs/", "drop", 0),
    ("PUT", "/lfs/", 403, 4),
    ("POST", "/complete", 400, 0),
    ("POST", "/verify", "drop", 3),
    ("POST", "/commit/", 500, 0),
    ("POST", "/commit/", "lost", 3),
    ("GET", "/revision/", "drop", 5),
]


@pytest.mark.parametrize(
    ("method", "path", "how", "skip"),
    BREAKS,
    ids=lambda value: str(value).strip("/").replace("/", "."),
)
def test_after_any_break_nothing_looks_complete_and_the_same_call_completes_it(
    served, run, send, method, path, how, skip
):
    served.fail(method, path, how, skip=skip)
    reason = f"{how}, told to answer" if isinstance(how, int) else "the hub does not answer"
    with pytest.raises(UserError, match=f"(?s) failed: {reason}.*The same command continues"):
        send()
    arrived = 0
    for name, repo in served.repos.items():
        part = next(part for part, suffix in push.SUFFIX.items() if TO + suffix == name)
        assert repo.private
        assert "README.md" not in repo.files or set(content(run, part)) < set(repo.files), (
            "a card over an upload that is not complete"
        )
        arrived += sum(len(data) for path, data in repo.files.items() if path.endswith(hub.WEIGHTS))
    served.failures.clear()
    served.received.clear()
    send()
    assert_complete(served, run)
    weights = sum(size for path, size in SIZES.items() if path.endswith(hub.WEIGHTS))
    assert sum(served.received) <= weights - arrived, "what had arrived was sent again"


@pytest.mark.parametrize("how", [500, "drop"])
def test_one_hiccup_is_retried_and_the_retry_sends_the_whole_part(served, run, send, how):
    served.fail("PUT", "/lfs/", how, skip=1, times=1)
    send()
    assert_complete(served, run)


def test_a_file_of_someone_else_that_appears_during_the_push_gets_no_card_over_it(served, send):
    def log(line):
        if "00002" in line:
            served.repos[MERGED].add(
                {**served.repos[MERGED].commits[-1][1], "theirs.txt": b"hello"}
            )

    with pytest.raises(UserError, match=f"theirs.txt appeared in {MERGED} during the push"):
        send(log=log)
    assert served.repos[MERGED].files["theirs.txt"] == b"hello"
    assert "README.md" not in served.repos[MERGED].files
    with pytest.raises(
        UserError, match=f"The name {MERGED} is taken: its file theirs.txt is not from this run"
    ):
        send()


def test_a_file_that_changes_while_it_is_sent_gets_no_card(served, run, send):
    def log(line):
        if "model-q8_0" in line:
            (run / "gguf/model-q8_0.gguf").write_bytes(b"z" * 20000)

    with pytest.raises(
        UserError,
        match=f"^model-q8_0.gguf arrived in {GGUF} in another state than was verified",
    ):
        send(log=log)
    assert "README.md" not in served.repos[GGUF].files


# ---------------------------------------------------------------------------------------------------------------------
# in a process of its own: killed, and by the protocol that the hub's library prefers


CHILD = """
import json, pathlib, sys
from lib.common import files
from lib.common.errors import UserError
from lib.export import hub, push
folder = pathlib.Path(sys.argv[1])
try:
    push.push_run(folder, "maria/first-aid", files.describe_files(folder, ["adapter", "merged", "gguf"]), json.loads(sys.argv[2]))
except UserError as error:
    print("UserError:", error)
"""


def child(served, run, home, **more):
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith("HF_") and not k.lower().endswith("_proxy")
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(run), json.dumps(CARDS)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **kept,
            "HF_ENDPOINT": served.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **more,
        },
    )


def test_a_push_that_was_killed_continues_with_what_had_not_arrived(served, run, send, tmp_path):
    served.fail("PUT", f"/lfs/{MERGED}/", "hang", skip=3)  # in the middle of the second of two
    process = child(served, run, tmp_path, HF_HUB_DISABLE_XET="1")
    assert served.busy.wait(60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert set(served.repos) == {LORA, MERGED}
    assert set(served.repos[MERGED].files) == {"SHA256SUMS", "model-00001-of-00002.safetensors"}
    served.failures.clear()
    served.received.clear()
    send()
    assert_complete(served, run)
    assert (
        sum(served.received)
        == SIZES["merged/model-00002-of-00002.safetensors"] + SIZES["gguf/model-q8_0.gguf"]
    )


@pytest.mark.parametrize("how", [None, 403])
def test_by_chunks_the_same_arrives_and_a_refusal_is_explained(served, run, tmp_path, how):
    pytest.importorskip("hf_xet")
    if how:
        served.fail("POST", "/v1/xorbs/", how)
    printed, _ = child(served, run, tmp_path).communicate(timeout=120)
    assert any("/v1/xorbs/" in path for _, path in served.asked), "another protocol was spoken"
    assert not any(path.startswith("/lfs/") for _, path in served.asked)
    assert TOKEN not in printed
    if how:
        assert f"UserError: Sending adapter_model.safetensors to {LORA} failed: " in printed
        assert f"What has arrived in {LORA} stays. The same command continues." in printed
    else:
        assert "UserError" not in printed, printed
        assert_complete(served, run)
