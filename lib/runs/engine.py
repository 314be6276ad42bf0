"""One notebook executed by papermill, made truthful: what ends it is an error in its cell.

papermill itself marks a cell whose kernel died, timed out or was interrupted, and every cell after
it, as completed.
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

BANNERS = 2  # cells that papermill puts into a failed notebook, before the cell that failed


class StageFailed(Exception):
    """A notebook did not reach its end; the text is for the terminal.

    `cell` is its number from 1 in the executed copy. `interrupted` tells a run that was stopped
    from one that failed.
    """

    def __init__(self, reason: str, cell: int | None, stopper: Stopper) -> None:
        name = stopper.name()
        named = name and name not in reason
        super().__init__(f"stopped by {name}: {reason}" if named else reason)
        self.cell = cell
        self.interrupted = bool(name) or reason.startswith("SessionOver")


@dataclasses.dataclass
class Execution:
    """What the engine needs to know of one notebook."""

    source: pathlib.Path
    target: pathlib.Path
    run_fd: int  # the descriptor that holds the run's lock, handed to the kernel
    stopper: Stopper
    timeout: int | None  # seconds a cell
    oom_kills: int  # that the system had counted before


def execute_notebook(
    source: pathlib.Path,
    target: pathlib.Path,
    values: dict[str, Any],
    run_fd: int,
    stopper: Stopper,
    timeout: int | None = None,
) -> None:
    """Execute a notebook into `target`, with those of `values` that it declares.

    `timeout` is in seconds a cell. StageFailed says in which cell and why it did not end well.
    """
    # a python3 kernel someone installed for their user must not win over this environment's
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
        # not a notebook, a full disk, or a signal while there was no kernel
        raise StageFailed(f"{type(error).__name__}: {error}", None, stopper) from None


class AtomicHandler(LocalHandler):
    """Writes whole notebooks, redacted: papermill's own write can leave half of one."""

    def write(self, buf: str, path: str) -> None:
        # what a cell printed or raised may hold a token
        files.atomic_write(pathlib.Path(path), redacted_json(buf))


class TruthfulEngine(NBClientEngine):
    """papermill's engine, for kernels that die, time out, are interrupted or never start."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man: Any, kernel_name: str, execution: Execution, **_: Any
    ) -> None:
        nb_man.nb.metadata.papermill.update(  # not this machine's paths
            input_path=files.format_path(execution.source), output_path=execution.target.name
        )
        client = _make_client(nb_man, kernel_name, execution)
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            files.FD_VARIABLE: str(execution.run_fd),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        # what the kernel writes past us may hold a token: not onto the terminal, nor into a file
        # with a name
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
                if client.km:  # stopped while it started: nbclient leaves it running
                    client._cleanup_kernel()


class InterruptibleClient(PapermillNotebookClient):
    """papermill's client, which tells the stopper of its kernel and cells."""

    stopper: Stopper

    def papermill_execute_cells(self) -> None:
        self.stopper.kernel = self.km.provisioner.process
        for index, cell in enumerate(self.nb.cells):
            if self.stopper.signal is not None:
                # it came between two cells, or the last cell lived through it
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
        # all is on disk by then, and ipykernel's own end now and then prints a traceback
        shutdown_kernel="immediate",
        # without what ipykernel says about local TCP, or of being stopped
        extra_arguments=["--log-level=50"],
    )
    client.stopper = execution.stopper
    return client


# --------------------------------------------------------------------------------------------------
# why a notebook ended


def _find_cause(error: BaseException, execution: Execution, output: BinaryIO) -> tuple[str, str]:
    """Name and text of what ended a notebook without an exception of its own."""
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
        reason += "; the system's out-of-memory killer did act during this run"
    return reason


def _last_line(output: BinaryIO) -> str:
    """The last line that a kernel wrote past us, where there is one."""
    output.seek(0)
    lines = output.read().decode(errors="replace").strip().splitlines()
    return f"; its last line was: {redacted(lines[-1])[:300]}" if lines else ""


def _count_oom_kills() -> int:
    """Processes that the system has killed for memory since it started; 0 where nobody counts."""
    path = pathlib.Path("/proc/vmstat")
    counter = re.search(r"^oom_kill (\d+)$", path.read_text(), re.M) if path.exists() else None
    return int(counter[1]) if counter else 0
