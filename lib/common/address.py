"""The repository's address stands in CITATION.cff; every other place is written from it.

    python -m lib.common.address            # says which places differ, exit code 1 if any
    python -m lib.common.address --write    # `make address`: writes them

It needs the standard library alone, so a fork can run it before anything is installed.
"""

import pathlib
import re
import sys

from lib.common.errors import ROOT, UserError
from lib.common.files import atomic_write

SOURCE = "CITATION.cff"
PAGES = ("README.md", "notebooks/prepare.ipynb", "notebooks/train.ipynb", "notebooks/export.ipynb")
# links to Colab, which opens notebooks from GitHub only: owner and name of the repository
COLAB_LINK = re.compile(r"(?<=colab\.research\.google\.com/github/)[^/\s()]+/[^/\s()]+(?=/blob/)")
# what the notebooks' first cell clones; inside a notebook's JSON the quotes are escaped
CLONED = re.compile(r'(?<=home, source = \\"/content/medrescue-tuning\\", \\")[^"\\]*(?=\\")')


def read_address(root: pathlib.Path = ROOT) -> str:
    """Return `repository-code` of CITATION.cff, without a slash or .git at its end.

    Raise UserError unless there is one such line, with an address that git and a browser can open.
    """
    path = root / SOURCE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    values = re.findall(r"^repository-code:[ \t]*(.*?)[ \t]*(?:[ \t]#.*)?$", text, re.MULTILINE)
    address = values[0].strip("\"'").rstrip("/").removesuffix(".git") if values else ""
    if len(values) != 1 or not re.fullmatch(r"https://[\w.:-]+(/[\w.~-]+){2,}", address):
        raise UserError(
            f"{SOURCE} needs one line `repository-code:` with the repository's address; it has "
            f"{' and '.join(f'`{value}`' for value in values) or 'none'}.\n"
            f"Expected: https://github.com/OWNER/NAME. Then run `make address`."
        )
    return address


def find_outdated(root: pathlib.Path = ROOT) -> dict[str, str]:
    """Return {page: its text with today's address} for the pages that have another one.

    Raise UserError if a page links to Colab although the address is not on GitHub.
    """
    address = read_address(root)
    on_github = re.fullmatch(r"https://github\.com/([\w-]+/[\w.-]+)", address)
    outdated = {}
    for page in PAGES:
        text = (root / page).read_bytes().decode()
        if not on_github and COLAB_LINK.search(text):
            raise UserError(
                f"{page} links to Colab, which opens notebooks from github.com only, but the "
                f"address in {SOURCE} is {address}.\n"
                f"Remove the badge *Open In Colab* from {' and '.join(PAGES)}, then run "
                f"`make address`."
            )
        new = COLAB_LINK.sub(on_github[1], text) if on_github else text
        new = CLONED.sub(address, new)
        if new != text:
            outdated[page] = new
    return outdated


def main(arguments: list[str] | None = None) -> int:
    """Check or write the pages; return the exit code."""
    write = "--write" in (sys.argv[1:] if arguments is None else arguments)
    try:
        outdated = find_outdated()
        address = read_address()
        for page, text in outdated.items():
            if write:
                atomic_write(ROOT / page, text)
            print(f"{page}: {'now has' if write else 'does not have'} {address}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not outdated:
        print(f"every place has {address}")
    elif not write:
        print(f"The address in {SOURCE} counts. Run `make address`.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
