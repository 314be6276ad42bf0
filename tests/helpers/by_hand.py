"""Notebooks as somebody runs them by hand: a copy of the tree, parameters typed into the cell, a kernel."""

import json
import queue
import re
import shutil
import time

import nbformat
from jupyter_client.manager import KernelManager

from lib.common.errors import ROOT

# what a user types, for a job of seconds on the tiny base
PREPARE = {"max_seq_length": 512, "validation_size": 0.2, "exam": [], "run_name": "mine"}
TRAIN = {
    "run_name": "mine",
    "load_in_4bit": False,
    "optim": "adamw_torch",
    "max_steps": 40,
    "warmup_steps": 1,
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "sample_tokens": 2,
}
EVIL = "<script>document.title = 'run'</script><img src=x onerror=\"document.title = 'run'\">"


def copy_tree(folder):
    """Copy what the notebooks need, since an editor saves outputs into them."""
    for name in ("lib", "notebooks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def write_rows(path):
    """Write 30 short rows, one of which tries to be markup."""
    texts = (ROOT / "lib" / "medical" / "first_aid.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in sorted(texts.splitlines(), key=len)[:30]]
    rows = [{k: v for k, v in row.items() if k != "source"} for row in rows]
    rows[0]["answer"] = f"Nobody should open {EVIL}. {rows[0]['answer']}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def type_values(source, values):
    """Return a parameters cell with these values typed over the defaults, comments kept."""
    for name, value in values.items():
        line = re.compile(rf"^({name}: .*?) = .*?(  #.*)$", re.MULTILINE)
        assert line.search(source), name
        source = line.sub(lambda m, v=value: f"{m[1]} = {v!r}{m[2]}", source)
    return source


def read_cells(path, values):
    """Return a notebook's code cells by their ids, with these values in its parameters cell."""
    book = nbformat.read(path, as_version=4)
    return {
        cell.id: type_values(cell.source, values)
        if "parameters" in cell.metadata.get("tags", [])
        else cell.source
        for cell in book.cells
        if cell.cell_type == "code"
    }


class Kernel:
    """A kernel in some folder, as an editor starts it."""

    def __init__(self, folder, **environment):
        self.manager = KernelManager(kernel_name="python3")
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    def run(self, source, when=None, kill=False):
        """Run a cell; return (its printed text, its error's lines or []).

        As soon as `when()` is true, it is interrupted, or its kernel restarted with `kill`.
        """
        number = self.client.execute(source)
        text, error, end = "", [], time.monotonic() + 240
        while time.monotonic() < end:
            if when and when():
                if kill:
                    self.manager.restart_kernel(now=True)
                    self.client.wait_for_ready(timeout=60)
                    return text, ["restarted"]
                self.manager.interrupt_kernel()
                when = None
            try:
                message = self.client.get_iopub_msg(timeout=0.2)
            except queue.Empty:
                continue
            if message["parent_header"].get("msg_id") != number:
                continue
            content = message["content"]
            text += content.get("text", "")
            if message["msg_type"] == "error":
                error = "\n".join(content["traceback"]).splitlines()
            if message["msg_type"] == "status" and content["execution_state"] == "idle":
                return text, error
        raise AssertionError("the cell has not ended after 240 s")

    def run_all(self, cells, at="", **how):
        """Run cells until one fails, as editors do; return (all texts, the error's lines).

        `how` is handed to `run` for the cell named `at`.
        """
        texts = ""
        for name, source in cells.items():
            text, error = self.run(source, **(how if name == at else {}))
            texts += text
            if error:
                return texts, error
        return texts, []
