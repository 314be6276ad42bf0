"""Access to the hub: whose token it is, what it may do, and errors without secrets.

python -m pytest tests/export/test_hub.py
"""

import logging
import pathlib

import pytest
from huggingface_hub import constants

from helpers import hub_upload
from helpers.hub_upload import TOKEN
from lib.common.errors import UserError
from lib.export import hub

SIGNED = "https://s3.example.org/bucket/part?X-Amz-Signature=SIGNED"


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("", "HF_TOKEN, which is not set"),
        ("  \n", "HF_TOKEN, which is not set"),
        ("hf_wri tes", "Copy it again"),
        ("hf_writés", "Copy it again"),
        ("hf_\x01writes", "Copy it again"),
    ],
)
def test_no_token_or_a_broken_one_is_an_error_even_if_a_login_left_one(
    served, monkeypatch, token, expected
):
    pathlib.Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=expected):
        hub.require_access("maria")
    assert served.asked == []


def test_a_token_copied_with_a_line_end_is_taken(served, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    assert hub.require_access("maria").token == TOKEN


ACCOUNTS = {
    "unknown": (None, "maria", "Asking the hub whose HF_TOKEN is failed: 401, Invalid user token"),
    "may only read": (hub_upload.account("read"), "maria", "HF_TOKEN of maria may only read"),
    "another's name": (
        hub_upload.account(name="otto", orgs={"clinic": "write"}),
        "maria",
        "HF_TOKEN belongs to otto, who is not a member of maria, but of clinic",
    ),
    "reader of an organisation": (
        hub_upload.account(orgs={"clinic": "read"}),
        "clinic",
        "HF_TOKEN belongs to maria, who may only read in clinic",
    ),
    "scoped to another": (
        hub_upload.account(
            "fineGrained",
            scoped=[{"entity": {"type": "org", "name": "clinic"}, "permissions": ["repo.write"]}],
        ),
        "maria",
        "HF_TOKEN of maria has no write permission on repositories of maria",
    ),
    "scoped to reading": (
        hub_upload.account(
            "fineGrained",
            scoped=[
                {"entity": {"type": "user", "name": "maria"}, "permissions": ["repo.content.read"]}
            ],
        ),
        "maria",
        "HF_TOKEN of maria has no write permission on repositories of maria",
    ),
}


@pytest.mark.parametrize("case", ACCOUNTS)
def test_a_token_without_rights_is_refused_with_whose_it_is(served, case):
    account, owner, expected = ACCOUNTS[case]
    served.tokens = {TOKEN: account} if account else {}
    with pytest.raises(UserError, match=f"^{expected}.*\n?.*Nothing was created") as error:
        hub.require_access(owner)
    assert TOKEN not in str(error.value)
    assert hub_upload.changes(served) == []


@pytest.mark.parametrize(
    ("account", "owner"),
    [
        (hub_upload.account(orgs={"Clinic": "contributor"}), "clinic"),
        (
            hub_upload.account(
                "fineGrained",
                scoped=[
                    {"entity": {"type": "user", "name": "maria"}, "permissions": ["repo.write"]}
                ],
            ),
            "maria",
        ),
    ],
)
def test_a_token_with_rights_is_not_refused(served, account, owner):
    served.tokens = {TOKEN: account}
    assert hub.require_access(owner).endpoint == served.url


def test_a_hub_that_is_down_or_switched_off_is_an_error(served, monkeypatch):
    with hub_upload.Hub() as gone:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", gone.url)
    with pytest.raises(
        UserError,
        match="the hub does not answer .*Connection refused.*\nNothing was created. Check the network",
    ):
        hub.require_access("maria")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="offline mode is enabled.*HF_HUB_OFFLINE"):
        hub.require_access("maria")


def test_an_error_and_a_warning_of_the_library_hide_the_token_and_signed_addresses(served, caplog):
    text = f"no answer from {SIGNED} to Bearer {TOKEN}"
    with (
        pytest.raises(UserError, match="^Sending failed: no answer from https://s3") as error,
        hub.explain_errors("Sending", "The same command continues."),
    ):
        raise ValueError(text)
    with hub.mask_warnings():
        logging.getLogger("huggingface_hub.utils._http").warning("%s", text)
    for shown in (str(error.value), caplog.text):
        assert "s3.example.org/bucket/part" in shown
        assert "SIGNED" not in shown
        assert TOKEN not in shown
