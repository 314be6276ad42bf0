"""Set aside what an earlier export made, under a name that says so.

    earlier.set_export_aside(run.folder)                 # gguf/ and merged/ are now in earlier/
    earlier.drop_remade(run.folder)                      # what has been made again since

Nothing in earlier/ is recorded, shown, asked, examined or pushed.
"""

import os
import pathlib
import shutil

EARLIER = "earlier"
PARTS = ("merged", "gguf")  # folders that export makes
# files that export adds to the adapter, which is the result of train
BESIDE_ADAPTER = ("README.md", "NOTICE", "ask.py", "BASE_SHA256SUMS")
REFUSED = ".refused"  # ends the name of a file that failed a check


def set_export_aside(folder: pathlib.Path) -> list[str]:
    """Move merged/ and gguf/ of a run into earlier/; return the paths of the model files there.

    What is already there is replaced only by files of the same name. Refused files, and the
    export's files in adapter/, which it makes again in no time, are removed.
    """
    for name in BESIDE_ADAPTER:
        (folder / "adapter" / name).unlink(missing_ok=True)
    moved = []
    for part in PARTS:
        for path in _list_files(folder / part):
            aside = folder / EARLIER / path.relative_to(folder)
            if path.name.endswith(REFUSED) or path.name.startswith("."):
                path.unlink()
                continue
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, aside)
            if path.suffix == ".gguf":
                moved.append(aside.relative_to(folder).as_posix())
        shutil.rmtree(folder / part, ignore_errors=True)
    return moved


def drop_remade(folder: pathlib.Path) -> list[str]:
    """Remove from earlier/ every file that has been made again; return the model files left."""
    for path in _list_files(folder / EARLIER):
        if (folder / path.relative_to(folder / EARLIER)).is_file():
            path.unlink()
    if (folder / "merged").is_dir():
        shutil.rmtree(folder / EARLIER / "merged", ignore_errors=True)
    left = _list_files(folder / EARLIER)
    kept = [path.relative_to(folder).as_posix() for path in left if path.suffix == ".gguf"]
    if not kept:  # a Modelfile or a card of files that are gone
        shutil.rmtree(folder / EARLIER, ignore_errors=True)
    return kept


def _list_files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
