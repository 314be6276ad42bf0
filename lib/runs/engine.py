"""Execute a notebook with papermill, and show whatever ended it as an error in its cell.

If a kernel dies, times out or is interrupted, papermill itself marks that cell and all later ones
as completed.
"""

import dataclasses
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
from lib.runs.stopper import Stopper

BANNERS = 2  # cells that papermill inserts into a failed notebook before the cell that failed


class StageFailed(Exception):
    """A notebook did not reach its end; the text is for the terminal.

    `cell` is the number of its last cell, from 1, in the executed copy. `interrupted` is true for a
    run that was stopped, and false for one that failed.
    """

    def __init__(self, reason: str, cell: int | None, stopper: Stopper) -> None:
        name = stopper.name()
        named = name and name not in reason
        super().__init__(f"stopped by {name}: {reason}" if named else reason)
        self.cell = cell
        self.interrupted = bool(name) or reason.startswith("SessionOver")


@dataclasses.dataclass
class Execution:
    """What the engine needs to know about one notebook."""

    source: pathlib.Path
    target: pathlib.Path
    run_fd: int  # the descriptor that holds the run's lock, handed to the kernel
    stopper: Stopper
    timeout: int | None  # seconds per cell
    oom_kills: int  # the system's count before the notebook


def execute_notebook(
    source: pathlib.Path,
    target: pathlib.Path,
    values: dict[str, Any],
    run_fd: int,
    stopper: Stopper,
    timeout: int | None = None,
) -> None:
    """Execute a notebook into `target`, with those of `values` that it declares.

    `timeout` is in seconds per cell. Raise StageFailed with cell and reason if it fails.
    """
    # a python3 kernel that the user installed must not win over this environment's
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    papermill_io.register(str(target.parent), AtomicHandler())
    papermill_engines.register("truthful", TruthfulEngine)
    try:
        declared = papermill.inspect_notebook(str(source))
        papermill.execute_notebook(
            str(source),
            str(target),
            {key: value for key, value in values.items() if key in declared},
            engine_name="truthful",
            kernel_name="python3",
            language="python",
            progress_bar=False,
            execution=Execution(source, target, run_fd, stopper, timeout, _count_oom_kills()),
        )
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            stopper.note_interrupted_kernel()
        reason = f"{error.ename}: {error.evalue}"
        raise StageFailed(reason, error.cell_index + 1 + BANNERS, stopper) from None
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # not a notebook, a full disk, or a signal when no kernel was running
        raise StageFailed(f"{type(error).__name__}: {error}", None, stopper) from None


class AtomicHandler(LocalHandler):
    """Writes redacted notebooks atomically; papermill's own write can leave half a file."""

    def write(self, buf: str, path: str) -> None:
        # a cell's output or error may contain a token
        files.atomic_write(pathlib.Path(path), redacted_json(buf))


class TruthfulEngine(NBClientEngine):
    """papermill's engine, which also handles kernels that die, time out, or never start."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, execution: Execution, **_: Any
    ) -> None:
        nb_man.nb.metadata.papermill.update(  # paths that mean something on other machines
            input_path=files.format_path(execution.source), output_path=execution.target.name
        )
        client = _make_client(nb_man, kernel_name, execution)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            files.FD_VARIABLE: str(execution.run_fd),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        # The kernel's own stdout and stderr may contain a token, so they go neither to the
        # terminal nor to a named file.
        with tempfile.TemporaryFile() as output:
            try:
                client.execute(
                    env=environment,
                    cwd=str(ROOT),
                    pass_fds=(execution.run_fd,),
                    stdout=output,
                    stderr=output,
                )
            except BaseException as error:
                name, reason = _find_cause(error, execution, output)
                if number := executed.mark_failed(nb_man.nb, name, reason):
                    nb_man.cell_complete(nb_man.nb.cells[number - 1])
            finally:
                execution.stopper.forget_kernel()
                if client.km:  # nbclient leaves a kernel running that was stopped at its start
                    client._cleanup_kernel()


class InterruptibleClient(PapermillNotebookClient):
    """papermill's client, which reports its kernel and cells to the stopper."""

    stopper: Stopper

    def papermill_execute_cells(self) -> None:
        self.stopper.kernel = self.km.provisioner.process
        for index, cell in enumerate(self.nb.cells):
            if self.stopper.signal is not None:
                # the signal came between two cells, or the last cell ignored it
                raise KeyboardInterrupt
            self.nb_man.cell_start(cell, index)
            self.stopper.in_cell = True
            try:
                self.execute_cell(cell, index)
            except CellExecutionError:
                self.nb_man.cell_exception(cell, index)
            finally:
                self.stopper.in_cell = False
            self.nb_man.cell_complete(cell, index)
            if cell.metadata.papermill["exception"]:
                return


def _make_client(nb_man: Any, kernel_name: str, execution: Execution) -> InterruptibleClient:
    client = InterruptibleClient(
        nb_man,
        kernel_name=kernel_name,
        startup_timeout=60,
        timeout=execution.timeout,
        iopub_timeout=60,
        coalesce_streams=True,
        stdout_file=sys.stdout,
        stderr_file=sys.stderr,
        store_widget_state=False,
        # everything is on disk by then, and ipykernel's own shutdown sometimes prints a traceback
        shutdown_kernel="immediate",
        # silences ipykernel's messages about local TCP and about being stopped
        extra_arguments=["--log-level=50"],
    )
    client.stopper = execution.stopper
    return client


# --------------------------------------------------------------------------------------------------
# why a notebook ended


def _find_cause(error: BaseException, execution: Execution, output: BinaryIO) -> tuple[str, str]:
    """Return name and text of the error for a notebook that ended without an exception."""
    stopper = execution.stopper
    if stopper.signal is not None:
        return "Interrupted", f"the run was stopped by {stopper.name()}"
    if stopper.kernel is None:
        return "KernelNotStarted", f"{str(error) or type(error).__name__}{_last_line(output)}"
    if isinstance(error, CellTimeoutError):
        return "TimedOut", str(error).splitlines()[0]
    if isinstance(error, DeadKernelError):
        return "KernelDied", _describe_death(execution, output)
    return type(error).__name__, str(error)


def _describe_death(execution: Execution, output: BinaryIO) -> str:
    code = execution.stopper.kernel.poll()
    if code is None:
        return "the kernel exited"
    if code >= 0:
        return f"the kernel exited with code {code}"
    if code != -signal.SIGKILL:
        return f"the kernel crashed ({signal.Signals(-code).name}){_last_line(output)}"
    reason = "the kernel was killed (signal 9): by hand, or by the system because memory ran out"
    if _count_oom_kills() > execution.oom_kills:
        reason += "; the system's out-of-memory killer was active during this run"
    return reason


def _last_line(output: BinaryIO) -> str:
    """Return the last line that a kernel wrote to its own stdout or stderr, if any."""
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return f"; its last line was: {redacted(lines[-1])[:300]}" if lines else ""


def _count_oom_kills() -> int:
    """Return how many processes the system has killed for memory; 0 if it does not count."""
    path = pathlib.Path("/proc/vmstat")
    counter = re.search(r"^oom_kill (\d+)$", path.read_text(), re.M) if path.exists() else None
    return int(counter[1]) if counter else 0
