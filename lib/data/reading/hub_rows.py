"""Read rows from data sets on the hub."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from lib.common.errors import UserError
from lib.params import Source

LOCAL = 'Local files always work: SET="dataset=path/to/file.jsonl", or dataset=bundled:first-aid.'
ANYTHING = (
    "Check the id, the revision and the network; a private one needs HF_TOKEN in the environment. "
    "Without network, HF_HUB_OFFLINE=1 reads what was loaded before. " + LOCAL
)
COLUMNS_DIFFER = (
    "Its own files are at fault, or differ in their columns or types. Choose some of them by "
    "config or split, or download them and name their folder: there, each row may have fields of "
    "its own."
)


class NotThere(Exception):
    """A configuration or split that a set does not have, or that has to be chosen."""


def read_hub_rows(
    source: Source,
    commits: dict[str, str | None] | None = None,
    unread: list[tuple[str, str]] | None = None,
    what: str = "dataset",
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a hub set; raise UserError when it cannot be loaded.

    They are those of its split, or of `train`. `what`, dataset or exam, decides on what a message
    advises. The commit behind its revision is stored in
    `commits`, and (name, reason) of the splits and configurations that are not read in `unread`.
    """
    split = source.split or "train"
    try:
        builder = _load_builder(source, what)
        builder.download_and_prepare()
        names = list(builder.info.splits)
        asked = [part.split("[")[0].strip() for part in split.split("+")]
        if not set(asked) <= {*names, "all"}:
            raise NotThere(
                f"it has no split `{split}`, only {', '.join(names)}. "
                f"{_choose(source, 'split', what)}"
            )
        data = builder.as_dataset(split=split)
    except Exception as error:  # network, server and libraries raise errors of many kinds
        configured = f", configuration {source.config}" if source.config else ""
        at_revision = f" at {source.revision}" if source.revision else ""
        raise UserError(
            f"hub dataset `{source.dataset}`{configured}{at_revision} could not be loaded: "
            f"{_explain_hub_error(error)}\n{_say_what_to_do(error)}".strip()
        ) from None
    if commits is not None:
        is_commit = re.fullmatch("[0-9a-f]{40}", builder.hash or "")
        commits[f"{source.dataset}@{source.revision}"] = builder.hash if is_commit else None
    if unread is not None and "all" not in asked:
        unread += [
            (f"{source.dataset}, split {name}", "see `split`")
            for name in names
            if name not in asked
        ]
        unread += [
            (f"{source.dataset}, configuration {name}", "see `config`")
            for name in builder.builder_configs
            if name != builder.config.name
        ]
    for number, values in enumerate(data, 1):
        yield f"{source.dataset}, row {number}", values


def require_hub_set(source: Source) -> None:
    """Raise UserError if the hub answers that it has no such set, or not at this revision.

    A hub that does not answer is no error: what was loaded before may still be read.
    """
    import huggingface_hub  # takes half a second, and only a hub source needs it

    try:
        huggingface_hub.HfApi().dataset_info(
            source.dataset, revision=source.revision or None, timeout=10
        )
    except huggingface_hub.errors.HfHubHTTPError as error:
        known = (
            huggingface_hub.errors.RepositoryNotFoundError,
            huggingface_hub.errors.RevisionNotFoundError,
        )
        if isinstance(error, known):
            raise UserError(
                f"`{source.dataset}` is no file or folder here, and as a hub dataset it could not "
                f"be found: {_explain_hub_error(error)}\n{_say_what_to_do(error)}"
            ) from None
    except huggingface_hub.errors.HFValidationError as error:
        raise UserError(
            f"`{source.dataset}` is no file or folder here, and no hub id: {error}"
        ) from None
    except Exception:  # no network, or a token that cannot be sent: reading will say so
        return


def _choose(source: Source, key: str, what: str) -> str:
    """Say how a configuration or split is named in the parameters."""
    if what == "exam":
        return "An exam is read from `test`. Save the rows as a file, and name it in `exam`."
    config = f", config: {source.config}" if source.config and key != "config" else ""
    return f"Name it: dataset: {{dataset: {source.dataset}{config}, {key}: ...}}"


def _load_builder(source: Source, what: str) -> Any:
    """Return the `datasets` builder of a hub set at the source's revision."""
    import datasets  # takes a second, and only a hub source needs it
    import huggingface_hub

    revision = source.revision or None
    with contextlib.suppress(huggingface_hub.errors.OfflineModeIsEnabled):
        # Ask the hub first: a hub that does not answer, or lacks the set, is noticed at once.
        # `datasets` would try for half a minute, and then read what it has cached.
        huggingface_hub.HfApi().dataset_info(source.dataset, revision=revision, timeout=10)
    try:
        builder = datasets.load_dataset_builder(
            source.dataset, source.config or None, revision=revision
        )
    except ValueError as error:
        # it names neither the parameter nor, for a configuration that is not there, all that are
        names = re.findall(r"'([^']+)'", str(error).partition("[")[2].partition("]")[0])
        if not names:
            raise
        missing = f"no configuration `{source.config}`" if source.config else "several ones"
        raise NotThere(
            f"it has {missing}: {', '.join(names)}. {_choose(source, 'config', what)}"
        ) from None
    if builder.__module__.endswith(".cache"):
        # without network, `datasets` takes the commit loaded last, which may be another revision's
        commit = _find_cached_commit(source)
        if commit:
            builder = type(builder)(
                dataset_name=builder.dataset_name,
                config_name=builder.config.name,
                version=str(builder.config.version),
                hash=commit,
                repo_id=source.dataset,
            )
    return builder


def _find_cached_commit(source: Source) -> str:
    """Return the commit that the revision had when last loaded, or else the revision."""
    from huggingface_hub import constants

    cache = pathlib.Path(constants.HF_HUB_CACHE)
    folder = cache / f"datasets--{source.dataset.replace('/', '--')}"
    ref = folder / "refs" / (source.revision or "main")
    return ref.read_text().strip() if ref.is_file() else source.revision


def _explain_hub_error(error: Exception) -> str:
    """Return an error of the hub's libraries in one line, without the token."""
    from huggingface_hub import errors, get_token

    # GatedRepoError is a subclass of RepositoryNotFoundError, so it comes first
    if isinstance(error, errors.GatedRepoError):
        return "it is gated; accept its terms on its page"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no dataset of this id, or it is private"
    if isinstance(error, errors.RevisionNotFoundError):
        return "it has no such revision"
    texts = dict.fromkeys(str(e) for e in (error, error.__cause__) if e)
    text = " ".join(" ".join(texts).split()) or type(error).__name__
    return text.replace(get_token() or "\0", "(HF_TOKEN)")[:400]


def _say_what_to_do(error: Exception) -> str:
    """Return the next step after an error; "" if the error itself names it."""
    import datasets
    from huggingface_hub import errors

    if isinstance(error, NotThere):
        return ""
    if isinstance(error, errors.RevisionNotFoundError):
        return f"Check the revision: a commit, tag or branch of the set. {LOCAL}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"Check the id, which is owner/name; a private or gated set needs HF_TOKEN in the "
            f"environment. {LOCAL}"
        )
    without_data = (
        datasets.data_files.EmptyDatasetError,
        datasets.exceptions.DataFilesNotFoundError,
    )
    if isinstance(error, without_data):
        return f"Check on its page which files it has. {LOCAL}"
    if isinstance(error, datasets.exceptions.DatasetsError):
        return f"{COLUMNS_DIFFER} {LOCAL}"
    return ANYTHING
