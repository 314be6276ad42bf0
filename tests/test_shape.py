"""The shape of lib/: files short enough to keep in mind, folders that fit on a screen.

    python -m pytest tests/test_shape.py

What a function may hold, and which way the imports point, `make lint` says.
"""

import pathlib

import pytest

LIB = pathlib.Path(__file__).parents[1] / "lib"
FOLDERS = sorted({path.parent for path in LIB.rglob("*.py")})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(LIB.parent)))
def test_no_file_is_long_and_no_folder_full(folder):
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) <= 16
    assert {p.name: n for p in modules if (n := len(p.read_text().splitlines())) > 350} == {}
