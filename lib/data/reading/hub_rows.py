"""Read rows from data sets on the hub."""

import contextlib
import pathlib
import re
from collections.abc import Iterator
from typing import Any

from lib.common.errors import UserError
from lib.params import Source


def read_hub_rows(
    source: Source,
    commits: dict[str, str | None] | None,
    split: str = "train",
    configuration: str | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yield (where, values) of the rows of a hub set; raise UserError when it cannot be loaded.

    The commit behind its revision is stored in `commits`.
    """
    try:
        builder = _load_builder(source, configuration)
        builder.download_and_prepare()
        data = builder.as_dataset()
        if split not in data:
            raise ValueError(f"it has no split `{split}`, only {', '.join(data)}")
    except Exception as error:  # network, server and libraries raise errors of many kinds
        configured = f", configuration {configuration}" if configuration else ""
        at_revision = f" at {source.revision}" if source.revision else ""
        raise UserError(
            f"hub dataset `{source.dataset}`{configured}{at_revision} could not be loaded: "
            f"{_explain_hub_error(error)}\n"
            f"Check the id, the revision and the network; a private one needs HF_TOKEN in the "
            f"environment. Without network, HF_HUB_OFFLINE=1 reads what was loaded before, and "
            f'local files always work: SET="dataset=path/to/file.jsonl", or '
            f"dataset=bundled:first-aid."
        ) from None
    if commits is not None:
        is_commit = re.fullmatch("[0-9a-f]{40}", builder.hash or "")
        commits[f"{source.dataset}@{source.revision}"] = builder.hash if is_commit else None
    for number, values in enumerate(data[split], 1):
        yield f"{source.dataset}, row {number}", values


def _load_builder(source: Source, configuration: str | None) -> Any:
    """Return the `datasets` builder of a hub set at the source's revision."""
    import datasets  # takes a second, and only a hub source needs it
    import huggingface_hub

    revision = source.revision or None
    with contextlib.suppress(huggingface_hub.errors.OfflineModeIsEnabled):
        # Ask the hub first: a hub that does not answer, or lacks the set, is noticed at once.
        # `datasets` would try for half a minute, and then read what it has cached.
        huggingface_hub.HfApi().dataset_info(source.dataset, revision=revision, timeout=10)
    builder = datasets.load_dataset_builder(source.dataset, configuration, revision=revision)
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
