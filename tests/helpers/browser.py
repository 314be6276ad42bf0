"""Headless Chromium over its debugging pipe (Debian's package, no driver), to see what a page fetches and logs, how wide it is, and what Tab reaches."""

import base64
import contextlib
import itertools
import json
import os
import select
import signal
import subprocess
import tempfile
import time

from lib.runs.doctor import system

CHROMIUM = system.find_program("chromium")
SKIP = "no Chromium here: apt-get install chromium"


class Browser:
    """One page. `fetched` are the other addresses that it requested, `logged` are errors and warnings on its console."""

    def __init__(self, to, back):
        self.to, self.back, self.rest, self.ids = to, back, b"", itertools.count(1)
        self.session, self.fetched, self.logged, self.loaded = None, [], [], False

    def call(self, method, **values):
        number = next(self.ids)
        message = {"id": number, "method": method, "params": values} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            event = self._read()
            if event.get("id") == number:
                assert "error" not in event, event
                return event["result"]
            self._note(event)

    def _read(self, seconds=60):
        end = time.monotonic() + seconds
        while b"\0" not in self.rest:
            assert select.select([self.back], [], [], max(0, end - time.monotonic()))[0], (
                "Chromium does not answer"
            )
            data = os.read(self.back, 2**20)
            assert data, "Chromium has ended"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\0")
        return json.loads(line)

    def _note(self, event):
        values = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent" and not values["request"][
            "url"
        ].startswith(("data:", self.address)):
            self.fetched.append(values["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown" or (
            event.get("method") == "Log.entryAdded"
            and values["entry"]["level"] in ("error", "warning")
        ):
            self.logged.append(json.dumps(values)[:500])
        if event.get("method") == "Runtime.consoleAPICalled":
            self.logged.append(json.dumps(values["args"])[:500])
        self.loaded |= event.get("method") == "Page.loadEventFired"

    def open(self, path, width, dark=False, media="screen"):
        self.address, self.loaded = path.resolve().as_uri(), False
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            media=media,
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.call("Page.navigate", url=self.address)
        while not self.loaded:
            self._note(self._read())

    def js(self, expression):
        """Return the value of an expression, evaluated despite the page's own policy."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)[
            "result"
        ].get("value")

    def tab(self):
        """Press Tab; mark the element that has the focus as data-seen, and return it as 'TAG text'."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9
            )
        return self.js(
            "(e => (e.dataset.seen = 1, e.tagName) + ' ' + (e.getAttribute('aria-label') || e.getAttribute('href') || e.textContent.slice(0, 60)))(document.activeElement)"
        )

    def screenshot(self, path, full_page=True):
        path.write_bytes(
            base64.b64decode(
                self.call("Page.captureScreenshot", captureBeyondViewport=full_page)["data"]
            )
        )

    def pdf(self, path):
        path.write_bytes(
            base64.b64decode(self.call("Page.printToPDF", printBackground=False)["data"])
        )


@contextlib.contextmanager
def start():
    """Yield a browser with an empty profile, and end it after the block."""
    theirs, to = os.pipe()
    back, answers = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        # the debugging pipe uses descriptors 3 and 4, which a shell can set up
        command = f'exec "$0" "$@" 3<&{theirs} 4>&{answers}'
        process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                CHROMIUM,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--remote-debugging-pipe",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                f"--user-data-dir={home}",
                "about:blank",
            ],
            pass_fds=(theirs, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(theirs)
        os.close(answers)
        try:
            browser = Browser(to, back)
            page = next(
                t for t in browser.call("Target.getTargets")["targetInfos"] if t["type"] == "page"
            )
            browser.session = browser.call(
                "Target.attachToTarget", targetId=page["targetId"], flatten=True
            )["sessionId"]
            yield browser
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its helpers too
            process.wait()
            for end in (to, back):
                os.close(end)
