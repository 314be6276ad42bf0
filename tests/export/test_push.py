"""A run on the hub, held against a stand-in that speaks its upload protocol: what arrives, what is refused, what is left when it breaks.

python -m pytest tests/test_push.py
"""

import hashlib
import io
import os
import pathlib
import random
import signal
import subprocess
import sys
import types

import pytest
from huggingface_hub import constants

from helpers import hub_upload
from lib.common import files
from lib.common.errors import UserError
from lib.export import push

ROOT = pathlib.Path(__file__).parents[2]
TOKEN = "hf_writes"
TO = "maria/first-aid"
LORA, MERGED, GGUF = "maria/first-aid-lora", "maria/first-aid", "maria/first-aid-lora-gguf"
CARD = "---\nlicense: gemma\n---\n# First aid\nEducational use only.\n"
CARDS = {part: CARD.replace("First aid", part) for part in ("adapter", "merged", "gguf")}
SIZES = {
    "adapter/adapter_model.safetensors": 9000,
    "adapter/adapter_config.json": 300,
    "merged/model-00001-of-00002.safetensors": 25000,
    "merged/model-00002-of-00002.safetensors": 12000,
    "merged/config.json": 200,
    "merged/tokenizer/tokenizer.json": 4000,
    "gguf/model-q8_0.gguf": 20000,
    "gguf/Modelfile": 100,
    "gguf/notes.json": 0,
}


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
    """The stand-in, and this process's hub library pointed at it, without the waits between its retries."""
    with hub_upload.Hub() as made:
        made.part_size = 10000
        for name, value in {
            "ENDPOINT": made.url,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_PROGRESS_BARS": True,
            "HF_TOKEN_PATH": str(tmp_path / "token"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(
            "huggingface_hub.utils._http.time", types.SimpleNamespace(sleep=lambda seconds: None)
        )
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield made


@pytest.fixture
def send(served, run, caplog, capfd):
    """push.push of the run; every line logged, printed, warned or raised is held against the token and the signed addresses."""
    lines = []

    def call(to=TO, artifacts=None, cards=CARDS, log=lines.append, **more):
        said = ""
        try:
            return push.push(
                run,
                to,
                files.describe(run, ["adapter", "merged", "gguf"])
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


def content(run, part):
    return {
        path.relative_to(run / part).as_posix(): path.read_bytes()
        for path in (run / part).rglob("*")
        if path.is_file()
    }


def assert_complete(served, run, private=True):
    assert set(served.repos) == {LORA, MERGED, GGUF}
    for repo, part in ((LORA, "adapter"), (MERGED, "merged"), (GGUF, "gguf")):
        held, own = dict(served.repos[repo].files), content(run, part)
        assert held.pop("README.md").decode() == CARDS[part]
        sums = dict(
            reversed(line.split("  ")) for line in held.pop("SHA256SUMS").decode().splitlines()
        )
        assert held == own
        assert sums == {path: hashlib.sha256(data).hexdigest() for path, data in own.items()}
        assert served.repos[repo].private is private


def changes(served):
    """What was asked of the hub beyond looking."""
    return [
        (method, path)
        for method, path in served.asked
        if method != "GET" and path != "/api/validate-yaml"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# what arrives


def test_three_private_repositories_hold_what_was_verified_and_nothing_else(served, run, send):
    results = send()
    assert_complete(served, run)
    for result, repo, part in zip(
        results, (LORA, MERGED, GGUF), ("adapter", "merged", "gguf"), strict=True
    ):
        held = served.repos[repo]
        assert result == {
            "part": part,
            "repo": repo,
            "commit": held.commits[-1][0],
            "files": len(held.files),
            "private": True,
            "bytes": sum(map(len, held.files.values())),
            "url": f"{served.url}/{repo}",
        }
    assert max(served.received) == 10000, "large files went in parts"
    assert 9000 in served.received, "small ones in one piece"
    assert sum(served.received) == sum(
        size for path, size in SIZES.items() if path.endswith(push.WEIGHTS)
    )
    assert send.lines[-1] == f"{GGUF}: 5 files are there as verified, private: {served.url}/{GGUF}"


def test_the_sums_are_what_sha256sum_checks(served, run, send, tmp_path):
    send()
    for path, data in served.repos[MERGED].files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    check = ["sha256sum", "-c", "SHA256SUMS"]
    assert (
        subprocess.run(check, cwd=tmp_path / "copy", capture_output=True, check=False).returncode
        == 0
    )
    (tmp_path / "copy" / "config.json").write_text("{}")
    assert (
        subprocess.run(check, cwd=tmp_path / "copy", capture_output=True, check=False).returncode
        == 1
    )


def test_the_card_comes_last_and_what_was_verified_besides_is_not_pushed(served, run, send):
    (run / "adapter" / "README.md").write_text("a template")
    (run / "adapter" / "left.safetensors").write_bytes(b"never verified")
    (run / "data").mkdir()
    (run / "data" / "rows.jsonl").write_text("a person's words")
    listed = [a for a in files.describe(run, ["adapter", "data"]) if "left" not in a["path"]]
    results = send(artifacts=listed)
    assert [result["repo"] for result in results] == [LORA]
    assert served.repos[LORA].files["README.md"].decode() == CARDS["adapter"]
    assert set(served.repos[LORA].files) == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "README.md",
        "SHA256SUMS",
    }
    order = [
        set(new) - set(old)
        for (_, old), (_, new) in zip(
            served.repos[LORA].commits, served.repos[LORA].commits[1:], strict=False
        )
    ]
    assert order == [
        {"SHA256SUMS", "adapter_model.safetensors"},
        {"README.md", "adapter_config.json"},
    ]


def test_the_same_again_changes_nothing_and_a_new_format_sends_that_alone(served, run, send):
    first = send()
    before, _ = len(served.received), served.asked.clear()
    assert send() == first
    assert changes(served) == []
    (run / "gguf" / "model-f16.gguf").write_bytes(random.Random("f16").randbytes(7000))
    cards = {**CARDS, "gguf": CARDS["gguf"] + "Now with f16.\n"}
    again = send(cards=cards)
    assert served.received[before:] == [7000]
    assert [result["commit"] for result in again][:2] == [result["commit"] for result in first][:2]
    assert (
        served.repos[GGUF].files["model-f16.gguf"] == (run / "gguf" / "model-f16.gguf").read_bytes()
    )
    assert served.repos[GGUF].files["README.md"].decode() == cards["gguf"]


def test_public_ones_are_private_until_they_are_complete(served, run, send):
    served.fail("POST", f"/{MERGED}/commit", 500, skip=2)
    with pytest.raises(UserError, match="config.json"):
        send(private=False)
    assert (served.repos[LORA].private, served.repos[MERGED].private) == (False, True)
    served.failures.clear()
    assert [result["private"] for result in send(private=False)] == [False] * 3
    assert_complete(served, run, private=False)


# ---------------------------------------------------------------------------------------------------------------------
# refused before anything is asked


@pytest.mark.parametrize(
    "to",
    [
        "",
        "first-aid",
        "maria/",
        "/first-aid",
        "maria/first/aid",
        "https://hub/maria/first-aid",
        "maria/first aid",
        "maria/è",
        "maria/first--aid",
        "maria/.aid",
        "maria/aid-",
        "maria/aid.git",
        "maria/" + "a" * 90,
        "maria/aid\n",
        f"maria/{TOKEN}/x",
    ],
)
def test_a_malformed_name_is_refused_with_the_expected_form(served, send, to):
    with pytest.raises(
        UserError,
        match=r"(?s)^push_to is `.*expected owner/name of.* maria/first-aid-lora, maria/first-aid, maria/first-aid-lora-gguf",
    ):
        send(to)
    with pytest.raises(UserError, match="push_to is `"):
        push.ready(to)
    assert served.asked == []


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "HF_TOKEN, which is not set"),
        ("  \n", "HF_TOKEN, which is not set"),
        ("hf_wri tes", "copy it again"),
        ("hf_writés", "copy it again"),
        ("hf_\x01writes", "copy it again"),
    ],
)
def test_no_token_or_a_broken_one_is_an_error_even_if_a_login_left_one(
    served, send, monkeypatch, token, expected
):
    pathlib.Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=expected):
        send()
    assert served.asked == []


def test_a_token_copied_with_a_line_end_is_taken(served, run, send, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    send()
    assert_complete(served, run)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda run: (run / "merged/config.json").unlink(), "merged/config.json is missing"),
        (
            lambda run: (run / "merged/config.json").write_bytes(b"longer"),
            "merged/config.json has 6 bytes, recorded 200",
        ),
        (
            lambda run: (run / "gguf/model-q8_0.gguf").write_bytes(b"x" * 20000),
            "gguf/model-q8_0.gguf does not match its recorded sha256",
        ),
    ],
)
def test_what_is_not_as_verified_is_not_pushed(served, run, send, change, expected):
    verified = files.describe(run, ["adapter", "merged", "gguf"])
    change(run)
    with pytest.raises(
        UserError, match=f"^{expected}, so it is not what was verified. Nothing was pushed"
    ):
        send(artifacts=verified)
    assert served.asked == []


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("", "is empty"),
        ("---\nlicense: gemma\n---\n  \n", "is empty"),
        ("# First aid\n", "names no licence"),
        ("---\ntags: [x]\n---\n# First aid\n", "names no licence"),
        ("---\nlicense: [\n---\n# First aid\n", "cannot be read"),
        ("---\n- gemma\n---\n# First aid\n", "cannot be read"),
        (None, "is empty"),
    ],
)
def test_a_card_that_is_missing_or_names_no_licence_is_refused(served, send, card, expected):
    cards = {**CARDS, "merged": card} if card is not None else {"adapter": CARD, "gguf": CARD}
    with pytest.raises(UserError, match=f"^The model card of merged .*{expected}"):
        send(cards=cards)
    assert served.asked == []


def test_parts_without_weights_are_refused(served, run, send):
    with pytest.raises(UserError, match="There is nothing to push"):
        send(artifacts=files.describe(run, ["data"]))
    with pytest.raises(UserError, match="^gguf/ holds no weights"):
        send(artifacts=files.describe(run, ["adapter", "gguf/Modelfile"]))
    assert served.asked == []


# ---------------------------------------------------------------------------------------------------------------------
# refused by the hub, before anything is created


ACCOUNTS = {
    "unknown": (None, TO, "Asking the hub whose HF_TOKEN is failed: 401, Invalid user token"),
    "may only read": (hub_upload.account("read"), TO, "HF_TOKEN, of maria, may only read"),
    "another's name": (
        hub_upload.account(name="otto", orgs={"clinic": "write"}),
        TO,
        "HF_TOKEN is of otto, who is not a member of maria, but of clinic",
    ),
    "reader of an organisation": (
        hub_upload.account(orgs={"clinic": "read"}),
        "clinic/first-aid",
        "HF_TOKEN is of maria, who may only read in clinic",
    ),
    "scoped to another": (
        hub_upload.account(
            "fineGrained",
            scoped=[{"entity": {"type": "org", "name": "clinic"}, "permissions": ["repo.write"]}],
        ),
        TO,
        "HF_TOKEN, of maria, has no write permission on repositories of maria",
    ),
    "scoped to reading": (
        hub_upload.account(
            "fineGrained",
            scoped=[
                {"entity": {"type": "user", "name": "maria"}, "permissions": ["repo.content.read"]}
            ],
        ),
        TO,
        "HF_TOKEN, of maria, has no write permission on repositories of maria",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_a_token_without_rights_is_refused_with_whose_it_is(served, send, case):
    account, to, expected = ACCOUNTS[case]
    served.tokens = {TOKEN: account} if account else {}
    with pytest.raises(UserError, match=f"^{expected}.*\n?.*Nothing was created"):
        send(to)
    assert not served.repos
    assert changes(served) == []


@pytest.mark.parametrize(
    ("account", "to"),
    [
        (hub_upload.account(orgs={"Clinic": "contributor"}), "clinic/first-aid"),
        (
            hub_upload.account(
                "fineGrained",
                scoped=[
                    {"entity": {"type": "user", "name": "maria"}, "permissions": ["repo.write"]}
                ],
            ),
            TO,
        ),
    ],
)
def test_a_token_with_rights_is_not_refused(served, account, to):
    served.tokens = {TOKEN: account}
    assert push.ready(to).endpoint == served.url


def test_rights_that_only_trying_shows_leave_nothing(served, send):
    served.fail("POST", "/api/repos/create", 403)
    with pytest.raises(
        UserError,
        match=rf"^Creating {LORA} failed: 403, told to answer 403 to Bearer \(HF_TOKEN\)\n{LORA} was not created",
    ):
        send()
    assert not served.repos


def test_a_card_the_hub_refuses_is_refused_before_the_upload(served, send):
    with pytest.raises(
        UserError,
        match='Looking for maria/first-aid-lora-gguf failed: Invalid metadata in README.md. - "license" must be one of',
    ):
        send(cards={**CARDS, "gguf": CARD.replace("gemma", "none-such")})
    assert not served.repos


def test_a_hub_that_is_down_or_switched_off_is_an_error(send, monkeypatch):
    with hub_upload.Hub() as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    with pytest.raises(
        UserError,
        match="the hub does not answer .*Connection refused.*\nNothing was created. Check the network",
    ):
        send()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode is enabled.*HF_HUB_OFFLINE"):
        send()


def test_a_hub_that_ends_every_answer_is_an_error(served, send):
    served.fail("GET", "/api/models", "drop")
    with pytest.raises(
        UserError,
        match=f"^Looking for {LORA} failed: the hub does not answer .*\nNothing was pushed",
    ):
        send()
    assert not served.repos


# ---------------------------------------------------------------------------------------------------------------------
# names that are taken


def other(private=True, **held):
    made = hub_upload.Repo(private)
    for path, data in held.items():
        made.add({**made.commits[-1][1], path.replace("__", "."): data})
    return made


TAKEN = {
    "another model": (
        lambda run: other(model__safetensors=b"theirs", SHA256SUMS=b""),
        "model.safetensors in it is not this run's",
    ),
    "another run": (
        lambda run: other(
            README__md=b"theirs",
            SHA256SUMS=b"",
            **{"model-q8_0__gguf": b"x" * 20000, "Modelfile": b"y"},
        ),
        "model-q8_0.gguf in it is not this run's, nor are 1 more files",
    ),
    "a card alone": (
        lambda run: other(README__md=b"coming soon"),
        "it was not made by a push of this run",
    ),
    "our files by hand": (
        lambda run: other(Modelfile=(run / "gguf/Modelfile").read_bytes()),
        "it was not made by a push of this run",
    ),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_name_that_is_taken_is_refused_and_the_other_repositories_are_not_made(
    served, run, send, case
):
    make, expected = TAKEN[case]
    served.repos[GGUF] = make(run)
    before = list(served.repos[GGUF].commits)
    with pytest.raises(
        UserError, match=f"^The name {GGUF} is taken: {expected}.*Nothing was pushed or changed"
    ):
        send()
    assert (list(served.repos), served.repos[GGUF].commits) == ([GGUF], before)
    assert changes(served) == []


def test_a_name_that_is_taken_meanwhile_is_neither_filled_nor_deleted(served, send):
    served.fail("POST", "/api/repos/create", 409)
    with pytest.raises(UserError, match=f"^The name {LORA} is taken: it has just appeared"):
        send()
    assert changes(served) == [("POST", "/api/repos/create")]


def test_a_name_that_leads_elsewhere_is_taken(served, send):
    served.repos[MERGED] = other()
    served.repos[MERGED].name = "maria/renamed"
    with pytest.raises(UserError, match=f"^The name {MERGED} is taken: it leads to maria/renamed"):
        send()
    assert changes(served) == []


def test_a_public_repository_is_not_filled_when_private_was_asked(served, run, send):
    served.repos[MERGED] = other(private=False)
    with pytest.raises(UserError, match=f"^{MERGED} is public, and push_private is true"):
        send()
    assert changes(served) == []
    served.repos[MERGED].private = True
    send()
    assert_complete(served, run)  # an empty one is taken for ours


def test_a_hub_that_makes_a_public_one_against_the_wish_gets_nothing(served, send, monkeypatch):
    monkeypatch.setattr(
        hub_upload.Repo,
        "__init__",
        lambda self, private, make=hub_upload.Repo.__init__: make(self, False),
    )
    with pytest.raises(
        UserError,
        match=rf"^Creating {LORA} failed: the hub made it public\n{LORA}, still empty, was deleted again",
    ):
        send()
    assert not served.repos
    assert not served.received


# ---------------------------------------------------------------------------------------------------------------------
# failures in the middle


BREAKS = [
    ("POST", "/api/repos/create", 500, 0),
    ("POST", "/api/repos/create", 500, 1),
    ("POST", "/api/repos/create", "lost", 0),
    ("GET", f"/api/models/{LORA}", "once", 2),
    ("POST", "/preupload/", 500, 0),
    ("POST", "/preupload/", "drop", 3),
    ("POST", "/objects/batch", 503, 0),
    ("PUT", "/lfs/", 500, 0),
    ("PUT", "/lfs/", "drop", 0),
    ("PUT", "/lfs/", 403, 2),
    ("PUT", "/lfs/", "drop", 4),
    ("POST", "/complete", 400, 0),
    ("POST", "/verify", 500, 1),
    ("POST", "/verify", "drop", 3),
    ("POST", "/commit/", 500, 0),
    ("POST", "/commit/", 412, 1),
    ("POST", "/commit/", "lost", 0),
    ("POST", "/commit/", "lost", 3),
    ("POST", "/commit/", "drop", 4),
    ("POST", "/commit/", 412, 6),
    ("GET", "/revision/", 500, 0),
    ("GET", "/revision/", "drop", 5),
]


@pytest.mark.parametrize(
    ("method", "path", "how", "skip"),
    BREAKS,
    ids=lambda value: str(value).strip("/").replace("/", "."),
)
def test_after_any_break_no_repository_is_empty_and_the_same_call_completes_it(
    served, run, send, method, path, how, skip
):
    status = 500 if how == "once" else how
    served.fail(method, path, status, skip=skip, times=1 if how == "once" else 10**6)
    reason = f"{status}, told to answer" if isinstance(status, int) else "the hub does not answer"
    with pytest.raises(UserError, match=f"(?s) failed: {reason}.*[Tt]he same command"):
        send()
    committed = [
        data
        for repo in served.repos.values()
        for name, data in repo.files.items()
        if name.endswith(push.WEIGHTS)
    ]
    for name, repo in served.repos.items():
        assert any(path.endswith(push.WEIGHTS) for path in repo.files), (
            f"{name} is left without weights"
        )
        part = next(part for part, suffix in push.SUFFIX.items() if TO + suffix == name)
        assert "README.md" not in repo.files or set(content(run, part)) < set(repo.files), (
            "a card over an upload that is not complete"
        )
    served.failures.clear()
    served.received.clear()
    send()
    assert_complete(served, run)
    assert sum(served.received) <= sum(
        size for path, size in SIZES.items() if path.endswith(push.WEIGHTS)
    ) - sum(map(len, committed))


@pytest.mark.parametrize("how", [500, "drop"])
def test_one_hiccup_is_retried_and_the_retry_sends_the_whole_part(served, run, send, how):
    served.fail("PUT", "/lfs/", how, skip=1, times=1)
    send()
    assert_complete(served, run)


def test_an_empty_repository_that_cannot_be_deleted_is_said_and_filled_by_the_next_call(
    served, run, send
):
    served.fail("PUT", "/lfs/", 500)
    served.fail("DELETE", "/api/repos/delete", 500)
    with pytest.raises(UserError, match=f"{LORA} may be left there, private and empty"):
        send()
    assert not served.repos[LORA].files
    served.failures.clear()
    send()
    assert_complete(served, run)


def test_what_has_a_commit_is_not_deleted_even_if_the_hub_shows_it_empty(served, run, send):
    def log(line):
        if "00002" in line:
            served.repos[MERGED].shown = 0

    served.fail("PUT", f"/lfs/{MERGED}/", 403, skip=3)
    with pytest.raises(UserError, match=f"What has arrived in {MERGED} stays"):
        send(log=log)
    assert "model-00001-of-00002.safetensors" in served.repos[MERGED].files


def test_a_commit_by_someone_else_meanwhile_is_not_overwritten(served, send):
    def log(line):
        if "00002" in line:
            served.repos[MERGED].add(
                {**served.repos[MERGED].commits[-1][1], "theirs.txt": b"hello"}
            )

    with pytest.raises(UserError, match="failed: 412, A commit has happened since"):
        send(log=log)
    assert served.repos[MERGED].files["theirs.txt"] == b"hello"
    with pytest.raises(
        UserError, match=f"The name {MERGED} is taken: theirs.txt in it is not this run's"
    ):
        send()


def test_a_file_that_changes_while_it_is_sent_gets_no_card(served, run, send):
    def log(line):
        if "model-q8_0" in line:
            (run / "gguf/model-q8_0.gguf").write_bytes(b"z" * 20000)

    with pytest.raises(
        UserError,
        match=f"^model-q8_0.gguf arrived in {GGUF} as something else than what was verified",
    ):
        send(log=log)
    assert "README.md" not in served.repos[GGUF].files


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_before_the_first_commit_leaves_nothing_and_says_so(served, run, send, stop):
    lines = io.StringIO()

    def log(line):
        print(line, file=lines)
        if "sending" in line:
            raise stop

    with pytest.raises(stop):
        send(log=log)
    assert not served.repos
    assert f"{LORA}, still empty, was deleted again" in lines.getvalue()
    send()
    assert_complete(served, run)


# ---------------------------------------------------------------------------------------------------------------------
# in a process of its own: killed, and by the protocol that the hub's library prefers


CHILD = """
import json, pathlib, sys
from lib.common import files
from lib.common.errors import UserError
from lib.export import push
folder = pathlib.Path(sys.argv[1])
try:
    push.push(folder, "maria/first-aid", files.describe(folder, ["adapter", "merged", "gguf"]), json.loads(sys.argv[2]))
except UserError as error:
    print("UserError:", error)
"""


def child(served, run, home, **more):
    import json

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
def test_by_chunks_the_same_arrives_and_a_refusal_leaves_nothing(served, run, tmp_path, how):
    pytest.importorskip("hf_xet")
    if how:
        served.fail("POST", "/v1/xorbs/", how)
    said, _ = child(served, run, tmp_path).communicate(timeout=120)
    assert any("/v1/xorbs/" in path for _, path in served.asked), "another protocol was spoken"
    assert not any(path.startswith("/lfs/") for _, path in served.asked)
    assert TOKEN not in said
    if how:
        assert (
            f"UserError: Sending SHA256SUMS, adapter_model.safetensors to {LORA} failed: " in said
        )
        assert f"{LORA}, still empty, was deleted again" in said
        assert not served.repos
    else:
        assert "UserError" not in said, said
        assert_complete(served, run)
