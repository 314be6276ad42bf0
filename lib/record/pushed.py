"""pushed.json: which files, in which versions, a run has sent to repositories of the hub.

A later push replaces or removes there only what this record names.
"""

import pathlib
from collections.abc import Mapping

from lib.common import files

NAME = "pushed.json"
Sent = dict[str, list[str]]  # {path: sha256 or git's hash of each version}


def read_sent(folder: pathlib.Path, repo: str) -> Sent:
    """Return what a run has sent to a repository."""
    return files.read_or_set_aside(folder / NAME, "record of pushes").get(repo, {})


def note_sent(folder: pathlib.Path, repo: str, hashes: Mapping[str, list[str]]) -> None:
    """Add files that are about to be sent, so that an interrupted push is known too."""
    record = files.read_or_set_aside(folder / NAME, "record of pushes")
    sent: Sent = record.get(repo, {})
    for path, versions in hashes.items():
        sent[path] = sorted({*sent.get(path, []), *versions})
    files.write_json(folder / NAME, {**record, repo: sent}, sealed=True)
