"""Pushing a run to a stand-in that speaks the hub's upload protocol: what arrives, and what is refused.

python -m pytest tests/export/test_push.py
"""

import random
import shutil
import subprocess

import pytest

from helpers import hub_upload
from helpers.hub_upload import TOKEN, changes
from helpers.push_case import CARD, CARDS, GGUF, LORA, MERGED, SIZES, assert_complete
from lib.common import files
from lib.common.errors import UserError
from lib.export import hub, push

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
        size for path, size in SIZES.items() if path.endswith(hub.WEIGHTS)
    )
    assert (
        send.lines[-1]
        == f"{GGUF}: all 5 files are on the hub as verified, private: {served.url}/{GGUF}"
    )


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
    listed = [a for a in files.describe_files(run, ["adapter", "data"]) if "left" not in a["path"]]
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
        {"SHA256SUMS"},
        {"adapter_model.safetensors"},
        {"adapter_config.json"},
        {"README.md"},
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


def test_what_this_run_sent_and_no_longer_makes_is_replaced_or_taken_back(served, run, send):
    (run / "gguf" / "model-lora.gguf").write_bytes(random.Random("lora").randbytes(5000))
    send()
    (run / "gguf" / "model-lora.gguf").unlink()
    (run / "gguf" / "Modelfile").write_bytes(b"FROM ./another.gguf")
    before = served.repos[GGUF].commits[-1][1]
    served.fail("POST", f"/{GGUF}/commit", 500, skip=2)
    with pytest.raises(UserError, match="The same command continues"):
        send(cards={**CARDS, "gguf": CARDS["gguf"] + "Without it.\n"})
    held = served.repos[GGUF].commits[-1][1]
    assert held["model-lora.gguf"] == before["model-lora.gguf"], "it goes with the new card"
    served.failures.clear()
    send(cards={**CARDS, "gguf": CARDS["gguf"] + "Without it.\n"})
    held = served.repos[GGUF].files
    assert held["Modelfile"] == b"FROM ./another.gguf"
    assert "model-lora.gguf" not in held
    assert held["README.md"].decode().endswith("Without it.\n")
    assert "model-lora" not in held["SHA256SUMS"].decode()


def test_another_training_of_this_run_and_files_of_others_are_refused(served, run, send):
    send()
    theirs = {**served.repos[GGUF].commits[-1][1], "theirs.gguf": b"by hand"}
    weights = run / "merged" / "model-00001-of-00002.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[::-1])
    asked = len(changes(served))
    with pytest.raises(
        UserError,
        match=r"its file model-00001-of-00002\.safetensors is of an earlier training of this run",
    ):
        send()
    weights.write_bytes(kept)
    served.repos[GGUF].add(theirs)
    with pytest.raises(UserError, match=r"its file theirs\.gguf is not from this run"):
        send()
    assert len(changes(served)) == asked


def test_public_ones_are_private_until_they_are_complete(served, run, send):
    served.fail("POST", f"/{MERGED}/commit", 500, skip=3)
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
        push.require_access(to)
    assert served.asked == []


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
    verified = files.describe_files(run, ["adapter", "merged", "gguf"])
    change(run)
    with pytest.raises(
        UserError,
        match=f"^{expected}, so the file is not the one that was verified. Nothing was pushed",
    ):
        send(artifacts=verified)
    assert served.asked == []


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("", "names no licence"),
        ("# First aid\n", "names no licence"),
        ("---\ntags: [x]\n---\n# First aid\n", "names no licence"),
        ("---\nlicense: [\n---\n# First aid\n", "cannot be read"),
        ("---\n- gemma\n---\n# First aid\n", "cannot be read"),
        (None, "names no licence"),
    ],
)
def test_a_card_that_is_missing_or_names_no_licence_is_refused(served, send, card, expected):
    cards = {**CARDS, "merged": card} if card is not None else {"adapter": CARD, "gguf": CARD}
    with pytest.raises(UserError, match=f"^The model card of merged .*{expected}"):
        send(cards=cards)
    assert served.asked == []


def test_parts_without_weights_are_refused(served, run, send):
    with pytest.raises(UserError, match="There is nothing to push"):
        send(artifacts=files.describe_files(run, ["data"]))
    with pytest.raises(UserError, match="^gguf/ has no verified weights"):
        send(artifacts=files.describe_files(run, ["adapter", "gguf/Modelfile"]))
    assert served.asked == []


# ---------------------------------------------------------------------------------------------------------------------
# refused by the hub, before anything is created


def test_a_token_without_rights_is_refused_before_anything_is_created(served, send):
    served.tokens = {TOKEN: hub_upload.account("read")}
    with pytest.raises(UserError, match="^HF_TOKEN of maria may only read. Nothing was created"):
        send()
    assert not served.repos
    assert changes(served) == []


def test_rights_that_only_trying_shows_leave_nothing(served, send):
    served.fail("POST", "/api/repos/create", 403)
    with pytest.raises(
        UserError,
        match=rf"^Creating {LORA} failed: 403, told to answer 403 to Bearer \(HF_TOKEN\)\n",
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
        "its file model.safetensors is not from this run",
    ),
    "another run": (
        lambda run: other(
            README__md=b"theirs",
            SHA256SUMS=b"",
            **{"model-q8_0__gguf": b"x" * 20000, "Modelfile": b"y"},
        ),
        "its file model-q8_0.gguf is not from this run",
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
    with pytest.raises(
        UserError, match=f"^Creating {LORA} failed: 409, You already|told to answer 409"
    ):
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
    with pytest.raises(UserError, match=f"^{MERGED} is public, but push_private is true"):
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
        match=f"^The hub made {LORA} public, although a private one was requested. No file was sent",
    ):
        send()
    assert not served.repos[LORA].files


def test_after_full_fine_tuning_nothing_is_named_after_an_adapter(served, run, send):
    shutil.rmtree(run / "adapter")
    artifacts = files.describe_files(run, ["merged", "gguf"])
    assert list(push.name_of_each("maria/first-aid", artifacts)) == ["merged", "gguf"]
    send(artifacts=artifacts, cards={part: CARDS[part] for part in ("merged", "gguf")})
    assert set(served.repos) == {"maria/first-aid", "maria/first-aid-gguf"}
