"""Which files of a folder, archive or workbook are read, and which split each belongs to.

found = find_parts(folder, columns, "")
"""

import functools
import os
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lib.common import files
from lib.common.errors import UserError
from lib.data.reading import csv_rows, formats, sheets

# The names that data sets on the hub use for their splits, and two that others use. A file whose
# name has one as a word belongs to it, also if only its folder is named so.
NAMES = {
    "test": r"test(?:ing)?|eval(?:uation)?|held[-_ ]?out|hold[-_ ]?out",
    "validation": r"val(?:id(?:ation)?)?|dev(?:elopment)?",
    "train": r"train(?:ing)?",
}
ENDS = r"(?:[-_ ]?(?:set|data|split))?"
WORDS = {
    split: re.compile(rf"(?<![a-z])(?:{names}){ENDS}(?![a-z])") for split, names in NAMES.items()
}
SHARD = re.compile(r"[-_. ]*\d*(?:-of-\d+)?$")  # train-00000-of-00002
SPLITS = ("train", "validation", "test")
# `datasets` writes these beside the data
NOT_DATA = (
    "state.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
)


class Part(NamedTuple):
    """A file to read, or a part of it: `inside` is a member of an archive, or a sheet."""

    path: pathlib.Path
    inside: str
    split: str  # one of SPLITS

    @property
    def name(self) -> str:
        """Return the name of the part for people."""
        return formats.name_part(self.path, self.inside)


class Found(NamedTuple):
    """The parts of a source that are read, held-out ones first, and (name, reason) of others."""

    parts: list[Part]
    unread: list[tuple[str, str]]


def find_parts(path: pathlib.Path, columns: dict[str, str], split: str, what: str) -> Found:
    """Return what is read of a file or folder.

    `split` names the splits that are trained on, as in `train+validation`; `all` is every file.
    With "", the training files are, and those of other splits are held out. For `exam` and
    `forgetting` (`what`), it is the test split, if there is one. A file of a folder that cannot
    even be opened is named as not read. Raise UserError when nothing is left to read.
    """
    unread: list[tuple[str, str]] = []
    candidates: list[tuple[pathlib.Path, str, str]] = []  # path, inside, the name that tells
    for file in _walk(path, unread) if path.is_dir() else [path]:
        name = file.relative_to(path).as_posix() if path.is_dir() else ""
        try:
            listed = _list_inside(file, columns, unread)
            formats.require_openable(file)
        except UserError as error:
            if not path.is_dir():
                raise
            unread.append((files.format_path(file), str(error).partition(": ")[2]))
        else:
            candidates += [(file, inside, f"{name}/{inside}") for inside in listed]
    if not candidates:
        others = ", ".join(pathlib.PurePath(name).name for name, _ in unread[:10])
        raise UserError(
            f"{what} {'folder ' if path.is_dir() else ''}`{files.format_path(path)}` has no "
            f"{formats.ENDINGS} file"
            + (f"; it has {others}. Save one of these as CSV or JSON Lines." if others else ".")
        )
    named = [(file, inside, find_split(name)) for file, inside, name in candidates]
    if len(named) == 1 and not path.is_dir():
        named = [(*named[0][:2], None)]
    if what != "dataset" and not split:
        return _choose_exam(named, unread)
    return _choose(path, named, unread, split, what)


def find_split(name: str) -> str | None:
    """Return the split that a path's names tell, or None if they tell none, or two.

    A name that is only a split's counts more than a word in it, and a held-out split more than
    `train`, so that no row is trained on by mistake.
    """
    alone: set[str] = set()
    among: set[str] = set()
    for step in name.lower().split("/"):
        stem = SHARD.sub("", step.split(".")[0])
        words = {split for split, form in WORDS.items() if form.search(step)}
        alone |= {split for split, form in WORDS.items() if form.fullmatch(stem)}
        among |= set() if _is_both(words) else words
    found = alone or among
    return next((split for split in NAMES if split in found), None)


def _is_both(words: set[str]) -> bool:
    return "train" in words and len(words) > 1


# -------------------------------------------------------------------------------------------------
# files


def _walk(folder: pathlib.Path, unread: list[tuple[str, str]]) -> Iterator[pathlib.Path]:
    """Yield the files of a folder that can be read, in order of their names."""
    readable = []
    for root, folders, names in os.walk(folder):
        here = pathlib.Path(root)
        for name in list(folders):
            why = _why_not_entered(here / name)
            if why:
                folders.remove(name)
                unread.append((files.format_path(here / name), why))
        for name in names:
            why = _why_not_read(here / name)
            if why:
                unread.append((files.format_path(here / name), why))
            else:
                readable.append(here / name)
    unread.sort()
    yield from sorted(readable)


def _why_not_entered(folder: pathlib.Path) -> str:
    if folder.is_symlink():
        return "a link to a folder: name it as a source of its own"
    return "hidden" if folder.name.startswith((".", "__")) else ""


def _why_not_read(path: pathlib.Path) -> str:
    if not path.is_file():
        return "a broken link" if path.is_symlink() else "no file"
    if path.name.startswith("."):
        return "hidden"
    if path.name in NOT_DATA or path.name.startswith("cache-"):
        return "no rows: `datasets` writes it beside them"
    return "" if formats.is_known(path) else "unknown ending"


def _list_inside(
    path: pathlib.Path, columns: dict[str, str], unread: list[tuple[str, str]]
) -> Sequence[str]:
    """Return the parts of an archive or workbook that are read; [""] for any other file."""
    if formats.suffix_of(path) == ".zip":
        return _list_members(path, unread)
    if formats.suffix_of(path) == ".xlsx":
        return _list_sheets(path, columns, unread)
    return [""]


def _list_members(path: pathlib.Path, unread: list[tuple[str, str]]) -> list[str]:
    members = []
    for name in sorted(formats.list_members(path)):
        pure = pathlib.PurePosixPath(name)
        if any(step.startswith((".", "__")) for step in pure.parts):
            why = "hidden"
        elif pure.name in NOT_DATA:
            why = "no rows: `datasets` writes it beside them"
        elif formats.suffix_of(pure) in (".zip", ".xlsx"):
            why = "unpack the archive to read it"
        else:
            why = "" if formats.is_known(pure) else "unknown ending"
        if why:
            unread.append((formats.name_part(path, name), why))
        else:
            members.append(name)
    return members


def _list_sheets(
    path: pathlib.Path, columns: dict[str, str], unread: list[tuple[str, str]]
) -> list[str]:
    """Return the sheets whose header is known; if there is none, the first, which then says so."""
    stamp = path.stat()
    listed = _list_sheets_once(path, stamp.st_mtime_ns, stamp.st_size)
    shown = [sheet for sheet in listed if not sheet.is_hidden]
    known = [sheet for sheet in shown if csv_rows.names_a_shape(sheet.header, columns)]
    known = known or shown[:1]
    for sheet in listed:
        if sheet not in known:
            why = "hidden" if sheet.is_hidden else "its first row names no known columns"
            unread.append((formats.name_part(path, sheet.title), why))
    return [sheet.title for sheet in known]


@functools.lru_cache
def _list_sheets_once(path: pathlib.Path, changed: int, size: int) -> list[sheets.Sheet]:
    """Return a workbook's sheets, which takes a second for a large one; again once it changed."""
    return sheets.list_sheets(path)


# -------------------------------------------------------------------------------------------------
# splits

Named = list[tuple[pathlib.Path, str, str | None]]


def _choose(
    path: pathlib.Path, named: Named, unread: list[tuple[str, str]], wanted: str, what: str
) -> Found:
    """Return the parts of the splits that are wanted."""
    if wanted == "all":
        return Found([Part(file, inside, "train") for file, inside, _ in named], unread)
    present = {split for _, _, split in named}
    # where no file names `train`, those that name no split are trained on
    trained = "train" if "train" in present else None
    asked = [step.strip() for step in wanted.split("+")] if wanted else ["train"]
    parts = []
    for file, inside, split in named:
        own = "train" if split == trained else split
        if own in asked:
            parts.append(Part(file, inside, "train"))
        elif not wanted and own in ("validation", "test"):
            parts.append(Part(file, inside, own))
        else:
            why = f"of split {own}" if own else "it names no split, and others are named train"
            unread.append((formats.name_part(file, inside), f"{why}: see `split`"))
    if not any(part.split == "train" for part in parts):
        there = sorted(f"{split or '(none)'}" for split in present)
        use = "train on" if what == "dataset" else "read"
        raise UserError(
            f"{what} `{files.format_path(path)}` has no files of split `{wanted or 'train'}`, "
            f"only of {', '.join(there)}. Name what to {use}: {what}: {{dataset: "
            f"{files.format_path(path)}, split: {there[0] if there[0] in SPLITS else 'all'}}}; "
            f"`all` takes every file."
        )
    # held-out rows come first: of two that are the same, the later is dropped
    return Found(sorted(parts, key=lambda part: -SPLITS.index(part.split)), unread)


def _choose_exam(named: Named, unread: list[tuple[str, str]]) -> Found:
    """Return the parts of an exam: those of the test split, else of validation, else all."""
    present = {split for _, _, split in named}
    wanted = next((split for split in ("test", "validation") if split in present), None)
    parts = [Part(f, inside, "test") for f, inside, split in named if split == wanted or not wanted]
    return Found(parts, unread)
