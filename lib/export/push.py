"""Push a verified run to the hub: adapter, merged folder and GGUF files, each in a repository.

    push.require_access("owner/name")         # checks name and token before hours are spent
    push.push_run(run.folder, "owner/name", artifacts, cards)

SHA256SUMS is sent first and marks a repository as this run's. Each weight file is one commit, so an
interrupted call continues with the missing files. The card is sent last, after every file on the
hub has its recorded hash: a repository with a card is complete. Until then it is private.

A later push of the same weights replaces the small files that this run has sent, and removes with
the new card what its export no longer makes. Other weights under the same name are refused.
"""

import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import validate_repo_id

from lib.common import files
from lib.common.errors import UserError
from lib.common.text import format_size
from lib.export import hub
from lib.record import pushed

SUFFIX = {"adapter": "-lora", "merged": "", "gguf": "-lora-gguf"}
FULL_SUFFIX = {"merged": "", "gguf": "-gguf"}  # after full fine-tuning, which leaves no adapter
CARD = "README.md"
SUMS = "SHA256SUMS"  # for `sha256sum -c`; it also marks a repository as made by a push
AGAIN = "The same command continues."


def name_repositories(push_to: str, parts: Iterable[str] = tuple(SUFFIX)) -> dict[str, str]:
    """Name the repository of each part; raise UserError unless `push_to` is `owner/name`."""
    reason = ""
    suffixes = SUFFIX if "adapter" in parts else FULL_SUFFIX
    names = {part: push_to + suffix for part, suffix in suffixes.items() if part in parts}
    try:
        for name in names.values():
            validate_repo_id(name)
        well_formed = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", push_to, re.ASCII)
    except HFValidationError as error:
        reason, well_formed = f" ({hub.mask_secrets(str(error))})", None
    if not well_formed:
        examples = ", ".join("maria/first-aid" + suffix for suffix in SUFFIX.values())
        raise UserError(
            f"push_to is `{hub.mask_secrets(push_to)}`{reason}; expected owner/name of letters, "
            f"digits, - _ and ., for example push_to=maria/first-aid, which becomes {examples}.\n"
            f"Leave it empty to push nothing."
        )
    return names


def name_of_each(push_to: str, artifacts: Iterable[files.Artifact]) -> dict[str, str]:
    """Name the repository of each part of a run that has a verified file."""
    paths = [artifact["path"] for artifact in artifacts]
    parts = [part for part in SUFFIX if any(path.startswith(f"{part}/") for path in paths)]
    return name_repositories(push_to, parts)


def push_run(
    folder: pathlib.Path,
    push_to: str,
    artifacts: list[files.Artifact],
    cards: dict[str, str],
    private: bool = True,
    log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Push each part, and return [{part, repo, commit, files, bytes, private, url}].

    artifacts: [{path, bytes, sha256}] as verified; only paths under adapter/, merged/ and gguf/ of
    the run's `folder` are pushed. cards: the README.md of each part, with a licence in its header.
    Before creating anything, raise UserError when a file is not as verified, a card is missing,
    HF_TOKEN may not write there, or a repository of that name has other contents. What is sent is
    noted in pushed.json.
    """
    of_part = {part: [a for a in artifacts if a["path"].startswith(f"{part}/")] for part in SUFFIX}
    repos = name_of_each(push_to, artifacts)
    if not repos:
        raise UserError(
            "There is nothing to push: no file of adapter/, merged/ or gguf/ was verified. "
            "Run the export stage first."
        )
    plans = {part: _plan(folder, part, of_part[part], cards.get(part, "")) for part in repos}
    if trouble := files.find_damage(folder, [a for part in repos for a in of_part[part]]):
        raise UserError(
            f"{trouble}, so the file is not the one that was verified. Nothing was pushed. "
            f"Run the export stage again (FORCE=1)."
        )
    api = require_access(push_to)
    with hub.mask_warnings():
        present = {}
        for part, repo in repos.items():  # look at all of them before creating the first
            with hub.explain_errors(f"Looking for {repo}", "Nothing was pushed or changed."):
                present[part] = hub.look_up(api, repo)
                # create_commit would check the card only hours later, and ModelCard.validate()
                # ignores HF_ENDPOINT
                api._validate_yaml(cards[part])
            if present[part]:
                sent = pushed.read_sent(folder, repo)
                _require_ours(repo, present[part], plans[part], sent, private)
        results = []
        for part, repo in repos.items():
            pushed.note_sent(folder, repo, {file.path: hub.hash_both(file) for file in plans[part]})
            info = _fill(api, repo, plans[part], present[part], log)
            results.append({"part": part, **_publish(api, repo, plans[part], info, private, log)})
    return results


# -------------------------------------------------------------------------------------------------
# before anything is created


def require_access(push_to: str) -> HfApi:
    """Connect to the hub.

    Raise UserError unless the name is well-formed and HF_TOKEN may write there.
    """
    name_repositories(push_to)
    return hub.require_access(push_to.split("/")[0])


def _plan(
    folder: pathlib.Path, part: str, artifacts: list[files.Artifact], card: str
) -> list[hub.PlannedFile]:
    """List the files of a part's repository: their sums, the verified files, then the card."""
    _require_licence(part, card)
    verified = []
    for item in artifacts:
        path = item["path"].removeprefix(f"{part}/")
        if path not in (CARD, SUMS):  # the push writes its own
            source = folder / item["path"]
            verified.append(hub.PlannedFile(path, item["bytes"], item["sha256"], source))
    if not any(file.path.endswith(hub.WEIGHTS) for file in verified):
        raise UserError(
            f"{part}/ has no verified weights ({' or '.join(hub.WEIGHTS)}). "
            f"Nothing was pushed. Run the export stage again."
        )
    sums = "".join(f"{file.sha256}  {file.path}\n" for file in verified)
    return [_plan_text(SUMS, sums), *verified, _plan_text(CARD, card)]


def _plan_text(path: str, text: str) -> hub.PlannedFile:
    data = text.encode()
    return hub.PlannedFile(path, len(data), hashlib.sha256(data).hexdigest(), data)


def _require_licence(part: str, card: str) -> None:
    """Raise UserError unless a card names a licence in its header."""
    trouble = "names no licence in its header"
    try:
        if ModelCard(card).data.license:
            return
    except (yaml.YAMLError, ValueError, TypeError) as error:
        trouble = f"has a header that cannot be read ({' '.join(str(error).split())})"
    raise UserError(
        f"The model card of {part} {trouble}. Nothing was pushed. Expected a header between --- "
        f"lines with `license: ...`, then text."
    )


def _require_ours(
    repo: str, info: ModelInfo, plan: list[hub.PlannedFile], sent: pushed.Sent, private: bool
) -> None:
    """Raise UserError unless a repository is empty or of this plan, and private if asked for.

    Files that this run has `sent` may differ from the plan, except weights that would be replaced.
    """
    held = hub.list_files(info)
    planned = {file.path: file for file in plan}
    other = {
        path: hub.was_sent(sibling, sent)
        for path, sibling in held.items()
        if path not in (CARD, SUMS)
        and not (path in planned and hub.is_as_planned(sibling, planned[path]))
    }
    foreign = [path for path, is_own in other.items() if not is_own]
    earlier = [path for path in other if path in planned and path.endswith(hub.WEIGHTS)]
    reason = ""
    if info.id.casefold() != repo.casefold():
        reason = f"it leads to {info.id}"
    elif foreign:
        reason = f"its file {foreign[0]} is not from this run"
    elif earlier:
        reason = f"its file {earlier[0]} is of an earlier training of this run"
    elif held and SUMS not in held:
        reason = f"it was not made by a push of this run ({SUMS} is missing)"
    if reason:
        raise UserError(
            f"The name {repo} is taken: {reason}. Nothing was pushed or changed.\n"
            f"Choose another push_to, or delete that repository on its page."
        )
    if private and not info.private:
        raise UserError(
            f"{repo} is public, but push_private is true. Nothing was pushed or changed.\n"
            f"Make it private on its settings page, or set push_private=false."
        )


# -------------------------------------------------------------------------------------------------
# one repository


def _fill(
    api: HfApi,
    repo: str,
    plan: list[hub.PlannedFile],
    before: ModelInfo | None,
    log: Callable[[str], None],
) -> ModelInfo:
    """Create or complete a repository, which had `before`; return what the hub then has."""
    info = before
    if info is None:
        with hub.explain_errors(
            f"Creating {repo}", f"If {repo} exists now, it is private. {AGAIN}"
        ):
            api.create_repo(repo, private=True)
            info = api.model_info(repo, files_metadata=True)
        if not info.private:
            raise UserError(
                f"The hub made {repo} public, although a private one was requested. "
                f"No file was sent.\n"
                f"Delete it on its page, or make it private on its settings page."
            )
    sums, *verified, card = plan
    weights = [file for file in verified if file.path.endswith(hub.WEIGHTS)]
    small = [file for file in verified if file not in weights]
    for batch in ([sums], *([weight] for weight in weights), small):
        info = _send(api, repo, batch, info, log)
    planned = {file.path for file in plan}
    # of an earlier export; _require_ours has found that this run sent them
    past = sorted(set(hub.list_files(before)) - planned) if before else []
    _require_arrived(repo, info, plan[:-1], past)
    info = _send(api, repo, [card], info, log, past)
    _require_arrived(repo, info, plan)
    return info


def _send(
    api: HfApi,
    repo: str,
    batch: list[hub.PlannedFile],
    info: ModelInfo,
    log: Callable[[str], None],
    past: Iterable[str] = (),
) -> ModelInfo:
    """Commit the files of a batch that the hub lacks, remove `past`; return what it then has."""
    held = hub.list_files(info)
    missing = [file for file in batch if not hub.is_as_planned(held.get(file.path), file)]
    gone = [path for path in past if path in held]
    if not missing and not gone:
        return info
    names = " and ".join([*(file.path for file in missing[:1]), *(f"no {path}" for path in gone)])
    if len(missing) > 1:
        names += f" and {len(missing) - 1} more"
    log(f"{repo}: sending {names}, {format_size(sum(file.size for file in missing))}")
    # not upload_folder(), which would also send files that were not verified
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(file.path, file.source) for file in missing
    ]
    operations += [CommitOperationDelete(path) for path in gone]
    with hub.explain_errors(
        f"Sending {names} to {repo}", f"What has arrived in {repo} stays. {AGAIN}"
    ):
        commit = api.create_commit(repo, operations, commit_message=f"Add {names}")
        return api.model_info(repo, revision=commit.oid, files_metadata=True)


def _require_arrived(
    repo: str, info: ModelInfo, planned: list[hub.PlannedFile], past: Iterable[str] = ()
) -> None:
    """Raise UserError unless the hub holds exactly the planned files with their recorded hashes.

    It may still hold `past`, which this run sent earlier.
    The hub's verify_repo_checksums() would compare with the files on disk, not with the records.
    """
    held = hub.list_files(info)
    for file in planned:
        if not hub.is_as_planned(held.get(file.path), file):
            raise UserError(
                f"{file.path} arrived in {repo} in another state than was verified.\n"
                f"Delete that repository on its page, run the export stage again, then push."
            )
    if foreign := sorted(set(held) - {file.path for file in planned} - {CARD, *past}):
        raise UserError(
            f"{foreign[0]} appeared in {repo} during the push, but is not from this run. "
            f"Look at the repository's page."
        )


def _publish(
    api: HfApi,
    repo: str,
    plan: list[hub.PlannedFile],
    info: ModelInfo,
    private: bool,
    log: Callable[[str], None],
) -> dict[str, Any]:
    """Make a complete repository public if asked to; return its entry in the results."""
    if not private and info.private:
        with hub.explain_errors(f"Making {repo}, which is complete, public", AGAIN):
            api.update_repo_settings(repo, private=False)
    url = f"{api.endpoint}/{repo}"
    visibility = "private" if private else "public"
    log(f"{repo}: all {len(plan)} files are on the hub as verified, {visibility}: {url}")
    return {
        "repo": repo,
        "commit": info.sha,
        "files": len(plan),
        "bytes": sum(file.size for file in plan),
        "private": private,
        "url": url,
    }
