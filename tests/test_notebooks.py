"""The notebooks stay thin stage reports, and their parameters cells equal the schema.

python -m pytest tests/test_notebooks.py
"""

import ast
import pathlib
import types
import typing

import nbformat
import papermill
import pytest

from lib import params
from lib.common import errors
from lib.record.run_record import STAGES

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
STAGE_KEYS = {"prepare": ("prepare",), "train": ("train",), "export": ("export",)}


@pytest.fixture(params=STAGES)
def notebook(request):
    return request.param, nbformat.read(NOTEBOOKS / f"{request.param}.ipynb", as_version=4)


def code(cells):
    return [c for c in cells if c.cell_type == "code"]


def test_there_is_one_notebook_a_stage():
    assert sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")) == sorted(STAGES)


def test_thin_without_functions_or_outputs(notebook):
    name, content = notebook
    nbformat.validate(content)
    cells = [
        c for c in code(content.cells) if "parameters" not in c.metadata.get("tags", [])
    ]  # one line a key of the schema
    lines = [
        line
        for c in cells
        for line in c.source.splitlines()
        if line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) <= 50, f"{name}: {len(lines)} code lines"
    assert (
        max(
            len(c.source.splitlines())
            for c in code(content.cells)
            if "parameters" not in c.metadata.get("tags", [])
        )
        <= 25
    )
    for cell in code(content.cells):
        assert not cell.outputs
        assert cell.execution_count is None
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef), (
                f"{name}: a definition belongs in lib/"
            )


def test_every_step_has_a_heading_and_something_to_look_at(notebook):
    name, content = notebook
    assert content.cells[0].source.startswith("# ")
    assert sum(c.cell_type == "markdown" for c in content.cells) >= 6
    shown = [
        c
        for c in code(content.cells)
        if ast.unparse(ast.parse(c.source).body[-1]).startswith(("show.", "print("))
    ]
    assert len(shown) >= 6, f"{name}: only {len(shown)} cells end in something to look at"


def test_parameters_cell_is_literal_annotated_and_equal_to_the_schema(notebook):
    name, content = notebook
    tagged = [c for c in content.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    found = {}
    for node in ast.parse(tagged[0].source).body:
        assert isinstance(node, ast.AnnAssign), ast.unparse(node)
        found[node.target.id] = (ast.literal_eval(node.value), ast.unparse(node.annotation))
    assert list(found)[:2] == ["params_file", "run_name"], "params_file is the first"
    assert found.pop("params_file") == ("", "str")
    assert found.pop("run_name") == ("", "str")
    assert list(found) == [k for k in params.FIELDS if params.stage_of(k) == name], (
        "keys, in the schema's order"
    )
    for key, (value, annotation) in found.items():
        field = params.FIELDS[key]
        default = field.get_default(call_default_factory=True)
        assert (type(value), value) == (type(default), default), key
        base = typing.get_origin(field.annotation) or field.annotation
        if typing.get_origin(field.annotation) in (types.UnionType, typing.Union):
            # quoted: papermill overlooks a parameter whose annotation has a bar in it
            base = (
                "'int or str'" if isinstance(default, int) or default == "auto" else "'str or list'"
            )
        assert (
            annotation == base
            if isinstance(base, str)
            else annotation == {typing.Literal: "str"}.get(base, getattr(base, "__name__", ""))
        ), key


def test_papermill_sees_every_parameter(notebook):
    """What it does not see is not among those recorded in the executed copy."""
    name, _ = notebook
    seen = papermill.inspect_notebook(str(errors.ROOT / "notebooks" / f"{name}.ipynb"))
    assert set(seen) == {
        "params_file",
        "run_name",
        *(k for k in params.FIELDS if params.stage_of(k) == name),
    }


def test_first_code_cell_touches_nothing_outside_colab(notebook, monkeypatch, tmp_path):
    import os
    import sys

    cell = code(notebook[1].cells)[0]
    monkeypatch.chdir(tmp_path)
    before, modules = dict(os.environ), set(sys.modules)
    exec(compile(cell.source, "first cell", "exec"), {})  # noqa: S102 - the cell is ours
    assert dict(os.environ) == before
    assert list(tmp_path.iterdir()) == []
    assert not {m for m in set(sys.modules) - modules if m.startswith("google")}


def test_first_code_cell_does_what_colab_needs(notebook, monkeypatch, tmp_path):
    import os
    import subprocess
    import sys
    import types

    ran, mounted = [], []
    colab = types.ModuleType("google.colab")

    class Missing(Exception):
        pass

    colab.drive = types.SimpleNamespace(mount=mounted.append)
    colab.userdata = types.SimpleNamespace(
        get=lambda name: "hf_secret", SecretNotFoundError=Missing, NotebookAccessError=Missing
    )
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append((command, check)))
    monkeypatch.setattr(os, "chdir", ran.append)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("MEDRESCUE_RUNS", "")
    exec(compile(code(notebook[1].cells)[0].source, "first cell", "exec"), {})  # noqa: S102 - the cell is ours
    assert mounted == ["/content/drive"]
    assert [c[0][:2] if isinstance(c, tuple) else c for c in ran] == [
        ["git", "clone"],
        [sys.executable, "-m"],
        "/content/medrescue-tuning",
    ]
    assert all(c[1] for c in ran if isinstance(c, tuple)), (
        "a failing clone or install must stop the cell"
    )
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert os.environ["MEDRESCUE_RUNS"].startswith("/content/drive/")
