"""JupyterLab in headless Chromium: open a notebook, type parameters, run, interrupt, save."""

import contextlib
import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request

from helpers import by_hand

SKIP = "no JupyterLab here: .venv/bin/pip install jupyterlab"
HERE = importlib.util.find_spec("jupyterlab") is not None
PANEL = 'Array.from(jupyterapp.shell.widgets("main")).find(w => w.content && w.content.widgets)'


@contextlib.contextmanager
def start(root, scratch, environment):
    """Serve JupyterLab from a folder; yield its address."""
    own = {
        f"JUPYTER_{kind}_DIR": str(scratch / f"jupyter-{kind.lower()}")
        for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=",
        "--LabApp.expose_app_in_browser=True",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *options],
        cwd=root,
        env={**environment, **own, "JUPYTER_PREFER_ENV_PATH": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(address), 60)
        yield address
    finally:
        process.terminate()  # it shuts its kernels down
        process.wait(30)


def _answers(address):
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=2):
        return True
    return False


def _wait(condition, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.3)
    raise AssertionError(f"not within {seconds} s")


class Lab:
    """One open notebook."""

    def __init__(self, chromium, address):
        self.chromium, self.address = chromium, address

    def js(self, expression):
        answer = self.chromium.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def open(self, path):
        page, self.chromium.address = self.chromium, self.address
        page.loaded = False
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        workspace = path.replace("/", "-").removesuffix(".ipynb")
        page.call("Page.navigate", url=f"{self.address}/lab/workspaces/{workspace}/tree/{path}")
        while not page.loaded:
            page._note(page._read())
        _wait(lambda: self.js(f"!!(window.jupyterapp && {PANEL} && {PANEL}.context.isReady)"), 60)
        _wait(lambda: self._kernel() == "idle", 60)

    def _kernel(self):
        session = f"{PANEL}.sessionContext"
        return self.js(f"{session}.session && {session}.session.kernel.status")

    def command(self, name):
        self.js(
            f"jupyterapp.shell.activateById({PANEL}.id);"
            f"jupyterapp.commands.execute({json.dumps(name)}); 0"
        )

    def type_values(self, values):
        find = f"{PANEL}.content.widgets.find(w => (w.model.getMetadata('tags') || []).includes('parameters')).model.sharedModel"
        source = by_hand.type_values(self.js(f"{find}.getSource()"), values)
        self.js(f"{find}.setSource({json.dumps(source)}); 0")

    def run_all(self, interrupt_when=None):
        """Run all cells, and wait until none runs or waits."""
        self.command("runmenu:run-all")
        _wait(lambda: self._kernel() == "busy", 20)
        if interrupt_when:
            _wait(interrupt_when, 240)
            self.command("notebook:interrupt-kernel")
        quiet = f"{PANEL}.content.widgets.every(w => w.model.type != 'code' || w.model.executionState == 'idle')"
        _wait(lambda: self._kernel() == "idle" and self.js(quiet), 240)

    def cells(self):
        return json.loads(self.js(f"JSON.stringify({PANEL}.content.model.toJSON())"))["cells"]

    def errors(self):
        outputs = [o for cell in self.cells() for o in cell.get("outputs", [])]
        return [o for o in outputs if o["output_type"] == "error"]

    def text(self, cell_id):
        outputs = next(cell["outputs"] for cell in self.cells() if cell["id"] == cell_id)
        return "".join("".join(o["text"]) for o in outputs if o["output_type"] == "stream")

    def save(self):
        self.js(f"{PANEL}.context.save()")
