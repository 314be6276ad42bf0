"""A verified run on the hub: adapter, merged folder and GGUF files, each in a repository of its own.

    push.ready("owner/name")                      # before hours are spent: the name's form, the token, its rights
    push.push(run.folder, "owner/name", artifacts, cards)

Weights go first, one commit a file; the card goes last, when every weight has been read back. So a repository with a card is
complete, one without is continued by the same call, and an upload that fails before its first commit takes the repository it
had made away again. Until all is there a repository is private.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from lib.common import files
from lib.common.errors import UserError
from lib.common.text import format_size
from lib.export import hub

SUFFIX = {"adapter": "-lora", "merged": "", "gguf": "-lora-gguf"}
CARD, SUMS = (
    "README.md",
    "SHA256SUMS",
)  # sums: for `sha256sum -c`, and the mark by which a repository of ours is known
WEIGHTS = (".safetensors", ".gguf")
AGAIN = "The same command continues."


def repositories(push_to: str, parts: Any = tuple(SUFFIX)) -> dict[str, str]:
    """Repository of each part, for cards that name each other; UserError unless `push_to` is `owner/name`."""
    try:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push_to, re.ASCII):
            raise HFValidationError("")
        names = {part: push_to + suffix for part, suffix in SUFFIX.items() if part in parts}
        for name in names.values():
            validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"push_to is `{hub.masked(push_to)}`{f' ({hub.masked(str(error))})' if str(error) else ''}; expected owner/name of letters, "
            f"digits, - _ and ., for example push_to=maria/first-aid, which becomes "
            f"{', '.join('maria/first-aid' + suffix for suffix in SUFFIX.values())}.\nLeave it empty to push nothing."
        ) from None
    return names


def ready(push_to: str) -> HfApi:
    """The hub's API, when `push_to` is well formed and HF_TOKEN may write there; UserError otherwise. Creates nothing."""
    repositories(push_to)
    return hub.connect(push_to.split("/")[0])


def push(
    folder: pathlib.Path,
    push_to: str,
    artifacts: list[dict[str, Any]],
    cards: dict[str, str],
    private: bool = True,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Put what was verified on the hub; returns [{part, repo, commit, files, bytes, private, url}], one of each part there is.

    artifacts: [{path, bytes, sha256}] as verified, paths under adapter/, merged/ or gguf/ of the run's `folder` (others are not pushed).
    cards: README.md's text of each part, with a licence in its header. UserError before anything is created when a file is not as
    verified, a card is missing, HF_TOKEN may not write there, or a repository of that name holds something else.
    """
    folder = pathlib.Path(folder)
    parts = {part: [a for a in artifacts if a["path"].startswith(f"{part}/")] for part in SUFFIX}
    repos = repositories(push_to, [part for part, found in parts.items() if found])
    if not repos:
        raise UserError(
            "There is nothing to push: no file of adapter/, merged/ or gguf/ was verified. Run the export stage first."
        )
    plans = {part: _plan(folder, part, parts[part], cards.get(part, "")) for part in repos}
    if trouble := files.damaged(folder, [a for part in repos for a in parts[part]]):
        raise UserError(
            f"{trouble}, so it is not what was verified. Nothing was pushed; run the export stage again (FORCE=1)."
        )
    api, there = ready(push_to), {}
    with hub.discreet():
        for part, repo in repos.items():  # all of them, before the first is created
            with hub.asking(f"Looking for {repo}", lambda: "Nothing was pushed or changed."):
                there[part] = _look(api, repo)
                api._validate_yaml(
                    plans[part][-1]["source"].decode()
                )  # create_commit asks the same, hours later
            if there[part]:
                _require_ours(repo, there[part], plans[part], private)
        return [
            {"part": part, **_fill(api, repo, plans[part], there[part], private, log)}
            for part, repo in repos.items()
        ]


# ---------------------------------------------------------------------------------------------------------------------
# before anything is created


def _plan(
    folder: pathlib.Path, part: str, artifacts: list[dict[str, Any]], card: str
) -> list[dict[str, Any]]:
    """[{path in the repository, bytes, sha256, source}] of a part: its verified files, their sums, and the card as the last."""
    try:
        read = ModelCard(card)
        wanting = (
            "is empty"
            if not read.text.strip()
            else "names no licence in its header"
            if not read.data.license
            else ""
        )
    except (yaml.YAMLError, ValueError, TypeError) as error:
        wanting = f"has a header that cannot be read ({' '.join(str(error).split())})"
    if wanting:
        raise UserError(
            f"The model card of {part} {wanting}. Nothing was pushed; expected a header between --- with `license: ...`, then text."
        )
    found = [
        {**a, "path": a["path"].removeprefix(f"{part}/"), "source": folder / a["path"]}
        for a in artifacts
    ]
    found = [item for item in found if item["path"] not in (CARD, SUMS)]  # they give way to ours
    if not any(item["path"].endswith(WEIGHTS) for item in found):
        raise UserError(
            f"{part}/ holds no weights ({' or '.join(WEIGHTS)}) that were verified. Nothing was pushed; run the export stage again."
        )
    sums = "".join(f"{item['sha256']}  {item['path']}\n" for item in found)
    return found + [
        {
            "path": path,
            "bytes": len(text),
            "sha256": hashlib.sha256(text).hexdigest(),
            "source": text,
        }
        for path, text in ((SUMS, sums.encode()), (CARD, card.encode()))
    ]


def _require_ours(repo: str, info: Any, plan: list[dict[str, Any]], private: bool) -> None:
    """UserError unless an existing repository is empty or holds nothing but files of this plan, and is as private as asked."""
    ours, there = {item["path"]: item for item in plan}, _files(info)
    strange = [
        path
        for path, file in there.items()
        if path not in (CARD, SUMS) and not (path in ours and _same(file, ours[path]))
    ]
    if info.id.casefold() != repo.casefold():
        why = f"it leads to {info.id}"
    elif strange:
        why = f"{strange[0]} in it is not this run's" + (
            f", nor are {len(strange) - 1} more files" if strange[1:] else ""
        )
    elif there and SUMS not in there:
        why = f"it was not made by a push of this run ({SUMS} is missing)"
    elif private and not info.private:
        raise UserError(
            f"{repo} is public, and push_private is true. Nothing was pushed or changed.\n"
            f"Make it private on its settings page, or set push_private=false."
        )
    else:
        return
    raise UserError(
        f"The name {repo} is taken: {why}. Nothing was pushed or changed.\n"
        f"Choose another push_to, or delete that repository on its page."
    )


# ---------------------------------------------------------------------------------------------------------------------
# one repository


def _fill(
    api: HfApi,
    repo: str,
    plan: list[dict[str, Any]],
    info: Any,
    private: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Bring a repository to its plan, made or continued; after each commit it is read back."""
    weights = [item for item in plan if item["path"].endswith(WEIGHTS)]
    empty = info is None  # made here, and nothing of ours in it yet

    def left() -> str:
        return _undo(api, repo) if empty else f"What has arrived in {repo} stays. {AGAIN}"

    try:
        if empty:
            with hub.asking(f"Creating {repo}", left):
                info = _create(api, repo)
        for batch in ([plan[-2], weights[0]], *([item] for item in weights[1:]), plan):
            if not (
                missing := [
                    item for item in batch if not _same(_files(info).get(item["path"]), item)
                ]
            ):
                continue
            names = (
                ", ".join(item["path"] for item in missing)
                if len(missing) < 4
                else f"{missing[0]['path']} and {len(missing) - 1} more files"
            )
            log(f"{repo}: sending {names}, {format_size(sum(item['bytes'] for item in missing))}")
            operations = [CommitOperationAdd(item["path"], item["source"]) for item in missing]
            with hub.asking(
                f"Sending {names} to {repo}", left
            ):  # parent_commit: refused when someone else has committed since
                commit = api.create_commit(
                    repo, operations, commit_message=f"Add {names}", parent_commit=info.sha
                )
                empty = False
                info = api.model_info(repo, revision=commit.oid, files_metadata=True)
            if wrong := [
                item["path"] for item in batch if not _same(_files(info).get(item["path"]), item)
            ]:
                raise UserError(
                    f"{wrong[0]} arrived in {repo} as something else than what was verified.\n"
                    f"Delete that repository on its page, run the export stage again, then push."
                )
    except UserError:
        raise
    except BaseException:  # Ctrl-C, or a signal that ends the stage
        log(left())
        raise
    if extra := sorted(set(_files(info)) - {item["path"] for item in plan}):
        raise UserError(
            f"{extra[0]} has appeared in {repo} meanwhile and is not of this run. Look at its page."
        )
    if not private and info.private:
        with hub.asking(f"Making {repo}, which is complete, public", lambda: AGAIN):
            api.update_repo_settings(repo, private=False)
    url = f"{api.endpoint}/{repo}"
    log(
        f"{repo}: {len(plan)} files are there as verified, {'private' if private else 'public'}: {url}"
    )
    return {
        "repo": repo,
        "commit": info.sha,
        "files": len(plan),
        "bytes": sum(item["bytes"] for item in plan),
        "private": private,
        "url": url,
    }


def _create(api: HfApi, repo: str) -> Any:
    """Make a private repository; what the hub then holds. UserError when the name is taken after all."""
    try:
        api.create_repo(repo, private=True)
    except HfHubHTTPError as error:
        if error.response.status_code == 409:
            raise UserError(
                f"The name {repo} is taken: it has just appeared, or HF_TOKEN may not see it. Choose another push_to."
            ) from None
        raise
    info = api.model_info(repo, files_metadata=True)
    if not info.private:
        raise ValueError("the hub made it public")
    return info


def _undo(api: HfApi, repo: str) -> str:
    """Delete a repository that this call made, unless something has arrived in it after all; says what is left."""
    try:
        if (info := _look(api, repo)) is None:
            return f"{repo} was not created. The same command tries again."
        if _files(info):  # the commit whose answer was lost
            return f"What has arrived in {repo} stays. {AGAIN}"
        api.delete_repo(repo)
        return f"{repo}, still empty, was deleted again. The same command tries again."
    except Exception:
        return f"{repo} may be left there, private and empty, as the hub does not let it be deleted. The same command fills it."


def _look(api: HfApi, repo: str) -> Any:
    """What the hub holds: id, sha, private, siblings with sizes and hashes; None when there is no such repository."""
    try:
        return api.model_info(repo, files_metadata=True)
    except RepositoryNotFoundError:
        return None


def _files(info: Any) -> dict[str, Any]:
    return {
        file.rfilename: file for file in info.siblings if file.rfilename != ".gitattributes"
    }  # the hub's own first commit


def _same(file: Any, item: dict[str, Any]) -> bool:
    """Whether a file on the hub has the size and hash of a planned one; small ones are known there by git's hash alone."""
    if file is None or file.size != item["bytes"]:
        return False
    if file.lfs:
        return file.lfs.sha256 == item["sha256"]
    data = item["source"] if isinstance(item["source"], bytes) else item["source"].read_bytes()
    return (
        hashlib.sha256(data).hexdigest() == item["sha256"]
        and file.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    )
