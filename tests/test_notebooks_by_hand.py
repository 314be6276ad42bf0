"""The notebooks as people run them: in JupyterLab, in VS Code's way, by papermill, cells twice, interrupted, two at once.

VS Code itself is not run: its kernel's folder and its variable are imitated.

.venv/bin/python -m pytest tests/test_notebooks_by_hand.py
"""

import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest

from helpers import browser, by_hand, jupyterlab
from helpers.by_hand import PREPARE, TRAIN, Kernel, read_cells
from lib.record.run_record import STAGES
from lib.runs import listing

COUNT = "import gc\nprint(sum(type(o).__name__ == 'Gemma3nForCausalLM' for o in gc.get_objects()))"


def test_expected_ends_are_one_screen_in_a_kernel(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(by_hand.ROOT)}
    with Kernel(tmp_path, **environment) as kernel:
        kernel.run("from lib.training import stops")
        for stop in ("interrupted", "time", "file"):
            _, error = kernel.run(f"raise stops.explain_stop('{stop}', 3, 9, 3, 5.0)")
            assert len(error) == 2, error
            assert error[0].startswith(("KeyboardInterrupt: stopped after", "SessionOver: "))
            assert error[1].startswith("In this notebook, run all cells again")
        _, error = kernel.run("raise stops.explain_divergence(3, 9.0, 1.0, ['a'])")
        assert len(error) == 1, error
        kernel.run("import os; os.environ['MEDRESCUE_RUN_FD'] = '3'")
        _, error = kernel.run("raise stops.explain_stop('time', 3, 9, 3, 5.0)")
        assert len(error) == 1, "under make the command says how to go on"


@pytest.mark.parametrize("stage", STAGES)
def test_an_editor_that_saves_a_notebook_adds_the_version_alone(stage):
    """JupyterLab and VS Code write these values of the kernel; pre-commit drops the version."""
    metadata = nbformat.read(by_hand.ROOT / "notebooks" / f"{stage}.ipynb", as_version=4).metadata
    assert metadata.kernelspec.display_name == "Python 3 (ipykernel)"
    assert sorted(metadata.language_info) == [
        "codemirror_mode",
        "file_extension",
        "mimetype",
        "name",
        "nbconvert_exporter",
        "pygments_lexer",
    ]


@pytest.fixture(scope="module")
def place(tiny_gemma3n, tmp_path_factory):
    """Return (a copy of the tree, the environment of a kernel, prepare's values), one for the file."""
    folder = tmp_path_factory.mktemp("by_hand")
    tree = by_hand.copy_tree(folder / "tree")
    values = {
        **PREPARE,
        "base_model": str(tiny_gemma3n),
        "dataset": str(by_hand.write_rows(folder / "rows.jsonl")),
    }
    environment = {
        **os.environ,
        "MEDRESCUE_RUNS": str(folder / "runs"),
        "MEDRESCUE_CACHE": str(folder / "cache"),
    }
    return tree, environment, values


@pytest.fixture(scope="module")
def prepared(place):
    """Prepare as VS Code does with the workspace's folder; return the folder of the run."""
    tree, environment, values = place
    with Kernel(tree, **environment) as kernel:
        kernel.run(f"__vsc_ipynb_file__ = {str(tree / 'notebooks' / 'prepare.ipynb')!r}")
        texts, error = kernel.run_all(read_cells(tree / "notebooks" / "prepare.ipynb", values))
        assert error == [], error
        assert "30 left" in texts
    return tree.parent / "runs" / "mine"


@pytest.fixture
def run(prepared, place, tmp_path):
    """Return (the environment, a copy of the prepared run that a test may train)."""
    shutil.copytree(prepared, tmp_path / "mine")
    return {**place[1], "MEDRESCUE_RUNS": str(tmp_path)}, tmp_path / "mine"


def read_record(folder):
    return json.loads((folder / "run.json").read_text())


def after_step(folder, step):
    ledger = folder / "metrics.jsonl"
    return lambda: (
        ledger.exists() and f'"event": "step", "session": 1, "step": {step},' in ledger.read_text()
    )


@pytest.mark.slow
def test_interrupted_and_run_again_in_the_same_kernel(place, run):
    environment, folder = run
    notebooks = place[0] / "notebooks"
    cells = read_cells(notebooks / "train.ipynb", TRAIN)
    with Kernel(notebooks, **environment) as kernel:
        _, error = kernel.run_all(cells, "train-12", when=after_step(folder, 2))
        assert len(error) == 2, error
        step = int(error[0].split("stopped after step ")[1].split()[0])
        assert "of 40; its checkpoint is saved" in error[0]
        assert (folder / "checkpoints" / f"step-{step:06}").is_dir()

        assert listing.describe_state(read_record(folder)) == "train stopped, its notebook is open"

        # another editor on the same run, while this kernel is open
        with Kernel(place[0], **environment) as second:
            _, refused = second.run_all(
                read_cells(notebooks / "export.ipynb", {"run_name": "mine"})
            )
        assert "the kernel of an open train.ipynb: run its last cells, or shut" in refused[0]

        # a few steps to go, in the same kernel; a changed number of steps alone is no new job
        (folder / "stop").touch()
        texts, error = kernel.run_all(cells)
        assert f"continuing after step {step} of 40" in texts
        assert error[0].startswith("SessionOver: a stop file was found"), error
        attempts = read_record(folder)["stages"]["train"]["attempts"]
        assert attempts[0]["exit"].startswith(f"KeyboardInterrupt: stopped after step {step}")
        assert [a["stopped"][:11] for a in attempts if "stopped" in a] == ["SessionOver"]
        kernel.run_all(dict(list(cells.items())[:4]))  # up to the loaded model
        assert kernel.run(COUNT) == ("1\n", []), "the models of earlier passes are gone"
        handler = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
        assert kernel.run(handler) == ("default_int_handler\n", []), "the stop button works again"


@pytest.mark.slow
def test_a_kernel_that_is_restarted_in_the_middle_goes_on(place, run):
    environment, folder = run
    cells = read_cells(place[0] / "notebooks" / "train.ipynb", {**TRAIN, "save_steps": 2})
    with Kernel(place[0] / "notebooks", **environment) as kernel:
        _, error = kernel.run_all(cells, "train-12", when=after_step(folder, 5), kill=True)
        assert error == ["restarted"]
        (folder / "stop").touch()
        texts, _ = kernel.run_all(cells)
    assert "the last attempt was cut off" in texts
    assert "continuing after step 4 of 40" in texts


@pytest.mark.slow
@pytest.mark.skipif(not browser.CHROMIUM, reason=browser.SKIP)
@pytest.mark.skipif(not jupyterlab.HERE, reason=jupyterlab.SKIP)
@pytest.mark.parametrize("root", ["", "notebooks"])
def test_jupyterlab_runs_shows_stops_and_saves(place, tmp_path, root):
    """Started in the repository and in notebooks/: prepare as a whole, then train until it is interrupted, twice."""
    tree, environment, values = place
    environment = {**environment, "MEDRESCUE_RUNS": str(tmp_path / "runs")}
    where = "" if root else "notebooks/"
    with (
        jupyterlab.start(tree / root, tmp_path, environment) as address,
        browser.start() as chromium,
    ):
        page = jupyterlab.Lab(chromium, address)
        page.open(where + "prepare.ipynb")
        page.type_values(values)
        page.run_all()
        assert page.errors() == []
        assert page.js("document.title").startswith("prepare.ipynb"), "a row's markup ran"
        assert "Error displaying widget" not in page.js("document.body.innerText")
        page.save()
        saved = nbformat.read(tree / "notebooks" / "prepare.ipynb", as_version=4)
        ours = nbformat.read(by_hand.ROOT / "notebooks" / "prepare.ipynb", as_version=4)
        del saved.metadata.language_info["version"]
        assert saved.metadata == ours.metadata
        assert [(c.id, c.metadata) for c in saved.cells] == [(c.id, c.metadata) for c in ours.cells]
        changed = [
            c.id for c, o in zip(saved.cells, ours.cells, strict=True) if c.source != o.source
        ]
        assert changed == ["prepare-03"], "the parameters cell alone"
        outputs = [o for c in saved.cells for o in c.get("outputs", [])]
        assert not [o for o in outputs if o.get("name") == "stderr"]
        assert max(o["text"].count("\n") for o in outputs if o.output_type == "stream") <= 5

        page.open(where + "train.ipynb")
        page.type_values(TRAIN)
        folder = tmp_path / "runs" / "mine"
        page.run_all(interrupt_when=after_step(folder, 2))
        assert [e["ename"] for e in page.errors()] == ["KeyboardInterrupt"]
        assert "run all cells again" in page.js(
            "document.querySelector('.jp-RenderedText[data-mime-type*=\"stderr\"]').innerText"
        )
        (folder / "stop").touch()
        page.run_all()
        assert [e["ename"] for e in page.errors()] == ["SessionOver"]
        assert "continuing after step" in page.text("train-12")


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["papermill", "nbconvert", "jupyter-execute"])
def test_other_tools_run_the_notebook(place, tmp_path, tool):
    tree, environment, values = place
    notebook, out = tree / "notebooks" / "prepare.ipynb", tmp_path / "out.ipynb"
    environment = {**environment, "MEDRESCUE_RUNS": str(tmp_path / "runs")}
    if tool == "papermill":
        (tmp_path / "mine.yaml").write_text(json.dumps(values))
        command = ["papermill", str(notebook), str(out), "-f", str(tmp_path / "mine.yaml")]
        command += ["-p", "max_rows", "20"]
    else:
        book = nbformat.read(notebook, as_version=4)
        for cell in book.cells:
            if "parameters" in cell.metadata.get("tags", []):
                source = read_cells(by_hand.ROOT / "notebooks" / "prepare.ipynb", values)[cell.id]
                cell.source = source.replace("max_rows: int = 0", "max_rows: int = 20")
        notebook = tree / "notebooks" / "edited.ipynb"
        nbformat.write(book, notebook)
        command = (
            ["nbconvert", "--to", "notebook", "--execute", "--output", str(out), str(notebook)]
            if tool == "nbconvert"
            else ["jupyter_core", "execute", "--output", str(out), str(notebook)]
        )
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=tree / "notebooks",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = read_record(tmp_path / "runs" / "mine")
    assert record["stages"]["prepare"]["status"] == "finished"
    assert (
        json.loads((tmp_path / "runs" / "mine" / "results.json").read_text())["prepare"][
            "rows_read"
        ]
        == 20
    )


@pytest.mark.slow
def test_a_misspelt_parameter_of_papermill_is_refused(place, tmp_path):
    tree, environment, values = place
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "papermill", "prepare.ipynb", str(out), "-p", "max_row", "20"],
        cwd=tree / "notebooks",
        env={**environment, "MEDRESCUE_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
    )
    assert "unknown parameter `max_row`; did you mean `max_rows`?" in done.stderr
    assert not (tmp_path / "runs").exists()
