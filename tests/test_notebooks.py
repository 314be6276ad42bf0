"""The notebooks stay thin stage reports, and their parameters cells equal the schema.

python -m pytest tests/test_notebooks.py
"""

import ast
import os
import pathlib
import re
import subprocess
import sys
import types
import typing

import nbformat
import papermill
import pytest

from lib import params
from lib.common import address, errors
from lib.record.run_record import STAGES
from lib.runs import colab

NOTEBOOKS = pathlib.Path(__file__).parents[1] / "notebooks"
GROUPS = {  # comment lines of the parameters cell
    "prepare": ["model", "data", "lengths", "cleaning", "duplicates", "split"],
    "train": ["model", "adapter", "batch", "schedule", "saving"],
    "export": ["files", "exam", "hub"],
}


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
    assert len(lines) <= 75, f"{name}: {len(lines)} code lines"
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
    assert max(len(line) for line in tagged[0].source.splitlines()) <= 100, "one line a parameter"
    groups = re.findall(r"^# (\w+)$", tagged[0].source, re.MULTILINE)
    assert groups == GROUPS[name]
    for key, (value, annotation) in found.items():
        field = params.FIELDS[key]
        default = field.get_default(call_default_factory=True)
        assert (type(value), value) == (type(default), default), key
        base = typing.get_origin(field.annotation) or field.annotation
        if typing.get_origin(field.annotation) in (types.UnionType, typing.Union):
            # quoted: papermill overlooks a parameter whose annotation has a bar in it
            has_list = any("list" in str(kind) for kind in typing.get_args(field.annotation))
            base = "'str or list'" if has_list else "'str or dict'"
            if isinstance(default, int) or default == "auto":
                base = (
                    "'bool or str'" if bool in typing.get_args(field.annotation) else "'int or str'"
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
    cell = code(notebook[1].cells)[0]
    monkeypatch.chdir(tmp_path)
    before, modules, path = dict(os.environ), set(sys.modules), list(sys.path)
    exec(compile(cell.source, "first cell", "exec"), {})  # noqa: S102 - the cell is ours
    assert dict(os.environ) == before
    assert sys.path == path
    assert list(tmp_path.iterdir()) == []
    assert not {m for m in set(sys.modules) - modules if m.startswith(("google", "lib.runs.colab"))}


class NoSecret(Exception):
    pass


@pytest.fixture
def in_colab(monkeypatch):
    """Colab's own modules, a machine on which nothing is run, and the list of what was done there, in order."""
    done = []

    def secret(name):
        done.append(("secret", name))
        return "hf_secret"

    fake = types.ModuleType("google.colab")
    fake.drive = types.SimpleNamespace(mount=lambda path: done.append(("mount", path)))
    fake.userdata = types.SimpleNamespace(
        get=secret, SecretNotFoundError=NoSecret, NotebookAccessError=NoSecret
    )
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", fake)
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: done.append(("run", command, check))
    )
    monkeypatch.setattr(os, "chdir", lambda path: done.append(("chdir", str(path))))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("MEDRESCUE_RUNS", "")
    return done


def test_first_code_cell_does_what_colab_needs(notebook, in_colab, monkeypatch):
    exec(compile(code(notebook[1].cells)[0].source, "first cell", "exec"), {})  # noqa: S102 - the cell is ours
    clone, *rest = in_colab
    home = "/content/medrescue-tuning"
    assert clone[1][:2] == ["git", "clone"]
    assert clone[1][-2:] == [address.read_address(), home]
    assert sys.path[0] == home, "lib is imported from the clone"
    assert rest == [
        ("mount", "/content/drive"),
        ("secret", "HF_TOKEN"),
        (
            "run",
            [sys.executable, "-m", "pip", "install", "-q", "-r", f"{errors.ROOT}/requirements.txt"],
            True,
        ),
        ("chdir", str(errors.ROOT)),
    ]
    assert clone[2] is True, "a clone that fails must stop the cell"
    assert os.environ["HF_TOKEN"] == "hf_secret"
    assert os.environ["MEDRESCUE_RUNS"].startswith("/content/drive/")


def test_first_code_cell_again_does_not_clone_again(notebook, in_colab, monkeypatch):
    monkeypatch.setattr(os.path, "exists", lambda path: True)
    exec(compile(code(notebook[1].cells)[0].source, "first cell", "exec"), {})  # noqa: S102 - the cell is ours
    assert [entry[0] for entry in in_colab] == ["mount", "secret", "run", "chdir"]


def test_first_code_cell_is_the_same_in_every_notebook():
    books = [nbformat.read(path, as_version=4) for path in NOTEBOOKS.glob("*.ipynb")]
    assert len({code(book.cells)[0].source for book in books}) == 1


def test_colab_without_a_token_says_what_is_left(in_colab, monkeypatch, capsys):
    def refuse(name):
        raise NoSecret

    sys.modules["google.colab"].userdata.get = refuse
    colab.prepare_session()
    assert os.environ["HF_TOKEN"] == ""
    assert "only public models and data" in capsys.readouterr().out


def test_preparing_colab_needs_the_standard_library_alone():
    """The first cell imports it before anything is installed."""
    program = (
        "import sys; from lib.runs import colab; "
        "imported = {m.split('.')[0] for m, module in sys.modules.items() if module}; "
        "outside = imported - set(sys.stdlib_module_names) - {'lib'}; "
        "print(*sorted(m for m in outside if not m.startswith('__')))"
    )
    names = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=errors.ROOT, capture_output=True, text=True
    )
    assert names.returncode == 0, names.stderr
    assert names.stdout.split() == []


def locate(notebook):
    """Run the lines of a notebook that find the repository."""
    cell = next(c for c in code(notebook.cells) if "places = " in c.source)
    lines = cell.source.split("\n\n")[0]
    assert "sys.path.insert(0, found[0]" in lines.splitlines()[-1]
    exec(compile(lines, "the cell", "exec"), {"pathlib": pathlib, "sys": sys})  # noqa: S102 - the cell is ours


@pytest.mark.parametrize("below", [".", "notebooks", "lib/data/cleaning"])
def test_the_repository_is_found_at_or_above_the_working_folder(notebook, below, monkeypatch):
    monkeypatch.chdir(errors.ROOT / below)
    monkeypatch.setattr(sys, "prefix", "/usr")
    monkeypatch.setattr(sys, "path", [])
    locate(notebook[1])
    assert sys.path == [str(errors.ROOT)]


def test_from_elsewhere_it_is_that_of_the_kernels_environment(notebook, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()  # another project's
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(errors.ROOT / ".venv"))
    monkeypatch.setattr(sys, "path", [])
    locate(notebook[1])
    assert sys.path == [str(errors.ROOT)]
    monkeypatch.setattr(sys, "prefix", "/usr")
    with pytest.raises(SystemExit, match="start this in MedRescue Tuning's folder"):
        locate(notebook[1])
