"""One notebook executed by papermill, made truthful: whatever ends it is an error in the cell where it happened."""

import contextlib
import os
import pathlib
import re
import signal
import sys
import tempfile
from typing import Any, BinaryIO

import papermill
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import LocalHandler, papermill_io

from lib.common import files
from lib.common.errors import ROOT
from lib.common.redact import redacted, redacted_json
from lib.record import executed

GRACE_SECONDS = (
    60  # how long an interrupted kernel may take to save its checkpoint before it is killed
)
BANNERS = 2  # cells papermill puts into the executed copy of a failed notebook, before the cell that failed


class StageFailed(Exception):
    """A notebook did not reach its end: `cell` is its number from 1 in the executed copy, the text is for the terminal."""

    def __init__(self, reason: str, cell: int | None):
        super().__init__(
            f"stopped by {_Stopper.name()}: {reason}"
            if _Stopper.signal and _Stopper.name() not in reason
            else reason
        )
        self.cell, self.interrupted = (
            cell,
            _Stopper.signal is not None or reason.startswith("SessionOver"),
        )


class _Stopper:
    """What the signal handler knows: the live kernel's process, the signal that came, what became of it."""

    kernel: Any = None
    in_cell = False  # whether we wait for a cell's reply
    signal: int | None = None
    heard = False
    waited = idle = 0
    ending = False
    oom_before = 0

    @classmethod
    def handle(cls, number: int, frame: Any) -> None:
        # The kernel has a process group of its own, so the terminal's Ctrl-C never reaches it: pass it on, let the
        # training loop save its checkpoint, and wait. A second signal does not wait.
        if (
            number == signal.SIGALRM
            and cls.kernel is not None
            and cls.signal is not None
            and cls.waited < GRACE_SECONDS
            and not cls.ending
        ):
            cls._look_again()
            return
        if cls.kernel is None or cls.signal is not None:
            cls.signal = cls.signal or number
            cls._end()
        cls.signal, cls.heard = number, not cls._ignored()
        cls.kernel.send_signal(signal.SIGINT)
        signal.setitimer(signal.ITIMER_REAL, 1, 1)
        # not print: the handler may have come in the middle of one, and Python refuses to enter its buffer twice
        os.write(
            2,
            f"\n{cls.name()}: stopping at the next safe point (once more stops at once)\n".encode(),
        )

    @classmethod
    def _look_again(cls) -> None:
        """A second later: between cells ipykernel ignores an interruption, and one that meets its own code loses the cell's reply."""
        ignored = cls._ignored()
        cls.waited, cls.idle = cls.waited + 1, cls.idle + 1 if ignored and cls.in_cell else 0
        if cls.idle == 3:
            cls._end()
        if not ignored and not cls.heard:
            cls.heard = True
            cls.kernel.send_signal(signal.SIGINT)

    @classmethod
    def _end(cls) -> None:
        signal.setitimer(
            signal.ITIMER_REAL, 0
        )  # once: another would meet the code that writes down how it ended
        cls.ending = True
        raise SystemExit(128 + cls.signal)

    @classmethod
    def _swallowed(cls, what: Any) -> None:
        """Where a signal meets a weak reference's callback, Python prints the exception and goes on: end a moment later instead."""
        if cls.ending and isinstance(what.exc_value, SystemExit):
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            sys.__unraisablehook__(what)

    @classmethod
    def _ignored(cls) -> bool:
        """Whether the kernel ignores SIGINT now, as it does while no cell runs; False where the system does not say."""
        with contextlib.suppress(OSError):
            ignored = re.search(
                r"^SigIgn:\s*(\w+)$",
                pathlib.Path(f"/proc/{cls.kernel.pid}/status").read_text(),
                re.M,
            )
            return bool(ignored and int(ignored[1], 16) >> (signal.SIGINT - 1) & 1)
        return False

    @classmethod
    def name(cls) -> str:
        return signal.Signals(cls.signal).name

    @classmethod
    def install(cls) -> None:
        cls.kernel, cls.signal, cls.waited, cls.idle, cls.ending, cls.oom_before = (
            None,
            None,
            0,
            0,
            False,
            _oom_kills(),
        )
        sys.unraisablehook = cls._swallowed
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                signal.signal(number, cls.handle)


def _oom_kills() -> int:
    path = pathlib.Path("/proc/vmstat")  # absent where nobody counts
    return (
        int((re.findall(r"^oom_kill (\d+)$", path.read_text(), re.M) or [0])[0])
        if path.exists()
        else 0
    )


def _cause(error: BaseException, said: BinaryIO) -> tuple[str, str]:
    """Name and text of what ended a notebook without an exception of its own; `said`: what its kernel wrote past us."""
    if _Stopper.signal is not None:
        return "Interrupted", f"the run was stopped by {_Stopper.name()}"
    if _Stopper.kernel is None:
        return "KernelNotStarted", f"{str(error) or type(error).__name__}{_last(said)}"
    if isinstance(error, CellTimeoutError):
        return "TimedOut", str(error).splitlines()[0]
    if not isinstance(error, DeadKernelError):
        return type(error).__name__, str(error)
    code = _Stopper.kernel.poll()
    if code == -signal.SIGKILL:
        memory = (
            "; the system's out-of-memory killer did act during this run"
            if _oom_kills() > _Stopper.oom_before
            else ""
        )
        return (
            "KernelDied",
            f"the kernel was killed (signal 9): by hand, or by the system because memory ran out{memory}",
        )
    if code is not None and code < 0:
        return "KernelDied", f"the kernel crashed ({signal.Signals(-code).name}){_last(said)}"
    return "KernelDied", "the kernel exited" + ("" if code is None else f" with code {code}")


def _last(said: BinaryIO) -> str:
    """The last line a kernel wrote, where there is one."""
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return f"; its last line was: {redacted(lines[-1])[:300]}" if lines else ""


def _engine(source: pathlib.Path, target: pathlib.Path, run_fd: int, timeout: int | None) -> type:
    """papermill's engine, made truthful: a dead, timed-out, interrupted or unborn kernel is an error in its cell.

    papermill itself marks such a cell, and every cell after it, as completed.
    """

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            _Stopper.kernel = self.km.provisioner.process
            for index, cell in enumerate(self.nb.cells):
                if (
                    _Stopper.signal is not None
                ):  # the signal came between two cells, or the last one lived through it
                    raise KeyboardInterrupt
                self.nb_man.cell_start(cell, index)
                _Stopper.in_cell = True
                try:
                    self.execute_cell(cell, index)
                except CellExecutionError:
                    self.nb_man.cell_exception(cell, index)
                finally:
                    _Stopper.in_cell = False
                self.nb_man.cell_complete(cell, index)
                if cell.metadata.papermill["exception"]:
                    return

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> None:
            nb_man.nb.metadata.papermill.update(
                input_path=files.shown(source), output_path=target.name
            )  # not this machine's paths
            client = Client(
                nb_man,
                kernel_name=kernel_name,
                startup_timeout=60,
                timeout=timeout,
                iopub_timeout=60,
                coalesce_streams=True,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
                store_widget_state=False,
                shutdown_kernel="immediate",  # all is on disk by then, and ipykernel's own end now and then prints a traceback
                extra_arguments=["--log-level=50"],
            )  # not what ipykernel says about local TCP, or of being stopped
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            # the kernel's own output, beside what it sends us, may hold a token: not onto the terminal, and into no named file
            with tempfile.TemporaryFile() as said:
                try:
                    client.execute(
                        env={**os.environ, files.FD_VARIABLE: str(run_fd), "PYTHONPATH": paths},
                        cwd=str(ROOT),
                        pass_fds=(run_fd,),
                        stdout=said,
                        stderr=said,
                    )
                except BaseException as error:
                    if number := executed.mark_failed(nb_man.nb, *_cause(error, said)):
                        nb_man.cell_complete(nb_man.nb.cells[number - 1])
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    _Stopper.kernel = None
                    if client.km:  # stopped while it started: nbclient leaves it running
                        client._cleanup_kernel()

    return Engine


def execute(
    source: pathlib.Path,
    target: pathlib.Path,
    values: dict[str, Any],
    run_fd: int,
    timeout: int | None = None,
) -> None:
    """Execute a notebook into `target`, with those of `values` it declares; `timeout` is seconds a cell.

    StageFailed says in which cell and why it did not end well.
    """
    # a python3 kernel someone installed for their user must not win over this environment's
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")

    class AtomicHandler(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            files.atomic_write(
                pathlib.Path(path), redacted_json(buf)
            )  # what a cell printed or raised may hold a token

    papermill_io.register(
        str(target.parent), AtomicHandler()
    )  # papermill's own write can leave half a notebook
    papermill_engines.register("truthful", _engine(source, target, run_fd, timeout))
    try:
        declared = papermill.inspect_notebook(str(source))
        papermill.execute_notebook(
            str(source),
            str(target),
            {k: v for k, v in values.items() if k in declared},
            engine_name="truthful",
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        if (
            error.ename == "KeyboardInterrupt"
        ):  # without a signal to us, somebody interrupted the kernel alone
            _Stopper.signal = _Stopper.signal or signal.SIGINT
        raise StageFailed(
            f"{error.ename}: {error.evalue}", error.cell_index + 1 + BANNERS
        ) from None
    except (
        Exception,
        KeyboardInterrupt,
        SystemExit,
    ) as error:  # not a notebook, a full disk, a signal outside the kernel's time
        raise StageFailed(f"{type(error).__name__}: {error}", None) from None
