"""A small copy of the pipeline for the tests of the run machinery: the real lib with stand-in notebooks of five cells.

The fourth cell of a stage executes <tree>/<stage>.py, so that a test can let it raise, die or wait.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[2]
WORK = 4  # the cell that does the work, from 1, in an executed copy (papermill puts the injected parameters before it)
KEYS = {
    "prepare": 'dataset: str = ""',
    "train": "learning_rate: float = 0.0",
    "export": "gguf_types: list = []",
}
# code that a runner is started with where a test waits longer than the grace
PATIENT = "from lib.runs import stopper\nstopper.GRACE_SECONDS = 600"
# a cell that tells its process id, and goes on until something ends it
WAIT = "pathlib.Path('there').write_text(str(os.getpid()))\nwhile True: time.sleep(0.02)\n"
RESULT = {"prepare": "data", "train": "adapter", "export": "gguf"}


def cells(stage):
    """Return a notebook's cells: title, parameters, begin, work, finish."""
    name = RESULT[stage]
    return [
        f"# {stage}",
        f'params_file: str = ""\nrun_name: str = ""\n{KEYS[stage]}',
        f"import json, os, pathlib, signal, sys, time\nfrom lib.record import notebook as record\njob, run = record.begin_stage({stage!r}, globals())",
        f"exec(pathlib.Path('{stage}.py').read_text())",
        f"(run.folder / {name!r}).mkdir(exist_ok=True)\n(run.folder / {name!r} / 'result.txt').write_text(result)\n"
        f"run.data['fingerprints'].update(fingerprints)\n"
        f"record.finish_stage(run, {stage!r}, {{'value': result}}, [{name!r}], result)",
    ]


def notebook(sources):
    entries = [
        {
            "cell_type": "code",
            "id": f"c{n}",
            "metadata": {"tags": ["parameters"]} if s.startswith("params_file") else {},
            "execution_count": None,
            "outputs": [],
            "source": s,
        }
        for n, s in enumerate(sources)
    ]
    if sources[0].startswith("# "):
        entries[0] = {"cell_type": "markdown", "id": "c0", "metadata": {}, "source": sources[0]}
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "cells": entries,
            "metadata": {
                "kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}
            },
        }
    )


class Tree:
    """A copy of the pipeline at `root`; `run` is its folder runs/job."""

    def __init__(self, root):
        self.root, self.run, self.started = root, root / "runs" / "job", []

    @classmethod
    def make(cls, root):
        shutil.copytree(
            ROOT / "lib", root / "lib", ignore=shutil.ignore_patterns("*.jsonl", "*.pyc.*")
        )  # with Python's compiled files, else each process here would compile again
        for name in ("exam.jsonl", "safety.jsonl"):  # compared with a job's data
            shutil.copy(ROOT / "lib/medical" / name, root / "lib/medical")
        # the page is another module's concern, and slow to draw
        (root / "lib/pages/report.py").write_text(
            "def write_report(folder):\n    return folder / 'report.html'\n"
        )
        (root / "params").mkdir()
        (root / "params/job.yaml").write_text(
            'dataset: rows.jsonl\nbase_model: "bundled:gemma-3-270m"\nload_in_4bit: false\noptim: adamw_torch\n'
        )
        (root / "params/gpu.yaml").write_text(
            'dataset: rows.jsonl\nbase_model: "bundled:gemma-3-270m"\n'
        )
        (root / "params/cpu.yaml").write_text("dataset: rows.jsonl\n")
        (root / "rows.jsonl").write_text('{"question": "q", "answer": "a"}\n')
        (root / "notebooks").mkdir()
        for stage in KEYS:
            (root / f"notebooks/{stage}.ipynb").write_text(notebook(cells(stage)))
        (root / "prepare.py").write_text(
            "from lib.data.reading import sources\nresult, fingerprints = 'rows', {'dataset': sources.hash_sources(job)}\n"
        )
        (root / "train.py").write_text(
            "result, fingerprints = f'adapter at {job.learning_rate}', {}\n"
        )
        (root / "export.py").write_text("result, fingerprints = ' '.join(job.gguf_types), {}\n")
        return cls(root)

    def copy(self, root):
        shutil.copytree(self.root, root)
        return Tree(root)

    def start(self, *words, before="", params="params/job.yaml", name="job", **env):
        """Start the runner as a process of its own; `before` is code that it executes first."""
        code = f"import sys\n{before}\nfrom lib.runs import run_job\nsys.exit(run_job.main())"
        self.started.append(
            subprocess.Popen(
                [
                    *(sys.executable, "-c", code, *words),
                    *(["--params", params] if params else []),
                    *("--run", name),
                ],
                cwd=self.root,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(self.root), "MEDRESCUE_RUNS": "", **env},
            )
        )
        return self.started[-1]

    def stop(self):
        """End a process that a failed test left running; a kernel ends after its runner by itself."""
        for process in self.started:
            process.kill()

    def make_run(self, *words, **options):
        """Run to the end; return exit code, stdout and stderr."""
        process = self.start(*words, **options)
        out, err = process.communicate(timeout=120)
        assert "Traceback" not in out + err, out + err
        return process.returncode, out, err

    def record(self):
        return json.loads((self.run / "run.json").read_text())

    def stage(self, stage):
        return self.record()["stages"][stage]

    def executed(self, name):
        return json.loads((self.run / name).read_text())


def cell_states(notebook):
    """Return papermill's status of each cell, without the banners that it adds."""
    return [
        c["metadata"]["papermill"]["status"]
        for c in notebook["cells"]
        if "papermill" in c["metadata"]
    ]


def assert_ended(tree, stage, status, words, cell=WORK + 1):
    """Check that record and executed copy agree on status, cell and reason.

    `cell` counts the injected parameters, but no banners.
    """
    entry, notebook = tree.stage(stage), tree.executed(f"{stage}.ipynb")
    last = entry["attempts"][-1]
    assert entry["status"] == status
    assert words in last["exit"]
    assert last["end"] is not None
    left = 6 - cell
    assert cell_states(notebook) == ["completed"] * (cell - 1) + ["failed"] + ["pending"] * left
    assert notebook["metadata"]["papermill"]["exception"] is True
    failed = notebook["cells"][last["cell"] - 1]
    assert failed["metadata"]["papermill"]["status"] == "failed"
    assert failed["metadata"]["papermill"]["exception"] is True
    errors = [o for o in failed["outputs"] if o["output_type"] == "error"]
    assert len(errors) == 1
    assert errors[0]["ename"] + ": " + errors[0]["evalue"] in last["exit"]
    return last


def refused(capsys, *words):
    """Return the message with which the runner, in this process, refuses a command."""
    from lib.runs.run_job import main

    assert main([*words, "--run", "job"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) < 15
    return err


def gone(pid):
    """Tell whether a process has ended, whether or not its parent has waited for it."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def wait_for(condition, what, seconds=60):
    """Poll until condition() is true; return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")
