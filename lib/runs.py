"""Run a job: notebooks executed through papermill into a run folder, with a record that tells the truth.

    python -m lib.runs run|prepare|train|export --params params/cpu.yaml [--run NAME] [--set "k=v k=v"] [--force]
    python -m lib.runs report --params params/cpu.yaml [--run NAME]

Exit codes: 0, 1 a stage failed, 2 wrong usage, 130 / 143 interrupted by Ctrl-C / SIGTERM.
"""

import argparse
import os
import pathlib
import shutil
import signal
import sys
from typing import Any

from lib import files, params, record
from lib.params import ROOT, Params, UserError
from lib.record import STAGES, Run

GRACE_SECONDS = 60  # how long an interrupted kernel may take to save its checkpoint before it is killed


class StageFailed(Exception):
    """A notebook did not reach its end: `cell` is its number from 1, the text is for the terminal."""

    def __init__(self, reason: str, cell: int | None, interrupted: bool = False):
        super().__init__(reason)
        self.cell, self.interrupted = cell, interrupted


# ---------------------------------------------------------------------------------------------------------------------
# one notebook


def _engine():
    """papermill's engine, made truthful: a dead, timed-out or interrupted kernel is marked in its cell.

    papermill itself marks such a cell, and every cell after it, as completed.
    """
    from nbclient.exceptions import CellExecutionError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine

    class Client(PapermillNotebookClient):
        def papermill_execute_cells(self) -> None:
            _Stopper.kernel = self.km.provisioner.process
            for index, cell in enumerate(self.nb.cells):
                try:
                    self.nb_man.cell_start(cell, index)
                    self.execute_cell(cell, index)
                except CellExecutionError as error:
                    self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                    return
                except BaseException as error:
                    name, text = _cause(error, self.km)
                    self.nb_man.cell_exception(cell, cell_index=index, exception=error)
                    if cell.cell_type == "code":
                        cell.outputs.append({"output_type": "error", "ename": name, "evalue": text, "traceback": [f"{name}: {text}"]})
                    raise StageFailed(f"{name}: {text}", index + 1, _Stopper.signal is not None) from None
                finally:
                    self.nb_man.cell_complete(cell, cell_index=index)

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, start_timeout: int = 60, stdout_file: Any = None,
                                     stderr_file: Any = None, run_fd: int, timeout: int | None = None, **kwargs: Any) -> None:
            client = Client(nb_man, kernel_name=kernel_name, startup_timeout=start_timeout, timeout=timeout, stdout_file=stdout_file,
                            stderr_file=stderr_file, coalesce_streams=True, iopub_timeout=60, store_widget_state=False,
                            extra_arguments=["--log-level=40"])  # no warning about local TCP, which is signed
            paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            try:
                client.execute(env={**os.environ, record.FD_VARIABLE: str(run_fd), "PYTHONPATH": paths}, cwd=str(ROOT), pass_fds=(run_fd,))
            except BaseException as error:
                started = [c for c in nb_man.nb.cells if c.metadata.papermill["status"] != nb_man.PENDING]
                if not started:  # the kernel never came up: without this papermill marks every cell as completed
                    nb_man.cell_exception(nb_man.nb.cells[0])
                if isinstance(error, StageFailed):
                    raise
                raise StageFailed(f"{type(error).__name__}: {error}", len(started) or 1, _Stopper.signal is not None) from error
            finally:
                _Stopper.kernel = None

    return Engine


def _cause(error: BaseException, manager: Any) -> tuple[str, str]:
    """Name and text of what ended a cell without an exception of its own."""
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    if _Stopper.signal is not None:
        return "Interrupted", f"the run was stopped by {signal.Signals(_Stopper.signal).name}"
    if isinstance(error, CellTimeoutError):
        return "TimedOut", str(error).splitlines()[0]
    if isinstance(error, DeadKernelError):
        code = manager.provisioner.process.poll() if manager.provisioner and manager.provisioner.process else _Stopper.exit_code()
        if code == -signal.SIGKILL:
            return "KernelDied", "the kernel was killed (signal 9): by hand, or by the system because memory ran out" + _oom_killed()
        if code is not None and code < 0:
            return "KernelDied", f"the kernel crashed ({signal.Signals(-code).name})"
        return "KernelDied", f"the kernel exited{'' if code is None else f' with code {code}'}"
    return type(error).__name__, str(error)


def _oom_kills() -> int:
    try:
        words = pathlib.Path("/proc/vmstat").read_text().split()
        return int(words[words.index("oom_kill") + 1])
    except (OSError, ValueError):  # not Linux, or an old kernel: then nobody counts
        return 0


def _oom_killed() -> str:
    return "; the system's out-of-memory killer did act during this run" if _oom_kills() > _Stopper.oom_before else ""


class _Stopper:
    """What a signal handler needs to know: the live kernel process and the signal that came."""

    kernel: Any = None
    signal: int | None = None
    oom_before = 0

    @classmethod
    def exit_code(cls) -> int | None:
        return cls.kernel.poll() if cls.kernel else None

    @classmethod
    def handle(cls, number: int, frame: Any) -> None:
        # The kernel has a process group of its own, so the terminal's Ctrl-C never reaches it: pass it on, let the
        # training loop save its checkpoint, and wait. A second signal, or the alarm, does not wait.
        if cls.kernel is None or number == signal.SIGALRM or cls.signal is not None:
            cls.signal = cls.signal or number
            raise SystemExit(128 + cls.signal)
        cls.signal = number
        print(f"\n{signal.Signals(number).name}: stopping at the next safe point (once more stops at once)", flush=True)
        cls.kernel.send_signal(signal.SIGINT)
        signal.alarm(GRACE_SECONDS)

    @classmethod
    def install(cls) -> None:
        cls.signal, cls.oom_before = None, _oom_kills()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, cls.handle)


def execute(source: pathlib.Path, target: pathlib.Path, values: dict[str, Any], run_fd: int, timeout: int | None = None) -> None:
    """Execute a notebook into `target`; StageFailed says in which cell and why it did not end well."""
    # a python3 kernel someone installed for their user must not win over this environment's
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    import papermill
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import LocalHandler, papermill_io

    class AtomicHandler(LocalHandler):
        def write(self, buf: str, path: str) -> None:
            files.atomic_write(pathlib.Path(path), buf)

    papermill_io.register(str(target.parent), AtomicHandler())  # papermill's own write can leave half a notebook
    papermill_engines.register("truthful", _engine())
    try:
        papermill.execute_notebook(str(source), str(target), values, engine_name="truthful", kernel_name="python3", language="python",
                                   progress_bar=False, stdout_file=sys.stdout, stderr_file=sys.stderr, run_fd=run_fd, timeout=timeout)
    except PapermillExecutionError as error:
        interrupted = _Stopper.signal is not None or error.ename == "KeyboardInterrupt"
        raise StageFailed(f"{error.ename}: {error.evalue}", error.cell_index + 1, interrupted) from None


# ---------------------------------------------------------------------------------------------------------------------
# one stage


def check_machine(stage: str, job: Params, folder: pathlib.Path) -> None:
    """UserError when this machine cannot run the stage: no GPU for a job that needs one, too little disk."""
    if stage == "train" and not record.gpus():
        needs = [k for k, v in (("load_in_4bit", True), ("optim", "adamw_8bit")) if getattr(job, k) == v]
        if needs:
            raise UserError(
                f"This job trains with {' and '.join(f'{k}={getattr(job, k)}'.lower() for k in needs)}, which needs an NVIDIA GPU; "
                f"none answers here (nvidia-smi).\nWithout one use PARAMS=params/cpu.yaml. `make prepare` works here with any params file.")
    files.require_disk(folder, disk_needed(stage, job), f"{stage} of {job.base_model}")


def disk_needed(stage: str, job: Params) -> int:
    """Bytes a stage may write, from the base's size where it is known before anything is downloaded [estimate]."""
    bundled = job.base_model.startswith("bundled:")
    local = ROOT / job.base_model
    base = 575 * 2**20 if bundled else files.size_of(local) if local.is_dir() else 16 * 2**30
    fixed = 256 * 2**20  # executed notebook, tokens, adapter and optimizer state of a few million numbers
    if stage == "prepare":
        return fixed + (base + 260 * 2**20 if bundled else 0)  # the 16-bit folder and the GGUF it is made from
    if stage == "train":
        return fixed * (job.save_total_limit + 1)
    shares = {"f16": 1.0, "bf16": 1.0, "q8_0": 0.54}
    return fixed + int(base * (1 + sum(shares[t] for t in job.gguf_types) + max(shares[t] for t in job.gguf_types)))


def start_over(run: Run, stage: str) -> None:
    """Set aside what an earlier attempt of a stage left, so that nothing is resumed or mistaken for the new one."""
    number = len(run.stage(stage)["attempts"])
    if stage == "train":
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        if (run.folder / "metrics.jsonl").exists():
            os.replace(run.folder / "metrics.jsonl", run.folder / f"metrics.attempt{number}.jsonl")
    run.stage(stage).pop("started_from", None)


def run_stage(run: Run, stage: str, job: Params, params_file: str, force: bool) -> None:
    entry = run.stage(stage)
    done, trouble = run.finished(stage)
    if done and not force:
        print(f"{stage}: finished {entry['attempts'][-1]['end']}, nothing to do")
        return
    if trouble:
        print(f"{stage}: was finished, but {trouble}; running it again")
    check_machine(stage, job, run.folder)
    before = {e: run.stage(e).get("output") for e in STAGES[:STAGES.index(stage)]}
    if force or entry.get("started_from", before) != before:
        start_over(run, stage)
    entry["started_from"] = before
    target = run.folder / f"{stage}.ipynb"
    if target.exists():
        os.replace(target, run.folder / f"{stage}.attempt{len(entry['attempts'])}.ipynb")
    run.begin(stage, "make")
    print(f"{stage}: {files.shown(target)}", flush=True)
    values = {k: v for k, v in job.model_dump().items() if k in notebook_parameters(stage)}
    try:
        execute(ROOT / "notebooks" / f"{stage}.ipynb", target,
                {"params_file": files.shown(run.folder / "params.yaml"), "run_name": run.folder.name, **values}, record._lock(run.folder))
    except StageFailed as error:
        run.data = record._read_record(run.folder / "run.json")
        run.end(stage, "interrupted" if error.interrupted else "failed", str(error), error.cell)
        raise
    run.data = record._read_record(run.folder / "run.json")  # the kernel wrote artefacts and hashes into it
    if not run.stage(stage)["artifacts"]:
        run.end(stage, "failed", "the notebook reached its end without recording a result")
        raise StageFailed("the notebook reached its end without recording a result", None)
    run.end(stage, "finished", "ok")


def notebook_parameters(stage: str) -> list[str]:
    """Names declared in a notebook's parameters cell."""
    import papermill

    return list(papermill.inspect_notebook(str(ROOT / "notebooks" / f"{stage}.ipynb")))


# ---------------------------------------------------------------------------------------------------------------------
# the command


def check_source(run: Run, job: Params) -> None:
    """A run whose data file changed since it was prepared is not continued in silence."""
    from lib import sources

    recorded = run.data["fingerprints"].get("dataset")
    if recorded and run.stage("prepare")["status"] == "finished" and recorded != (present := sources.fingerprint(job)):
        raise UserError(f"`{job.dataset}` has changed since run `{run.folder.name}` was prepared (sha256 {recorded[:12]}, now {present[:12]}).\n"
                        f"Choose a new name with RUN=, or start this run over with FORCE=1.")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", *STAGES, "report"])
    parser.add_argument("--params", default="params/cpu.yaml", metavar="FILE")
    parser.add_argument("--run", default="", metavar="NAME")
    parser.add_argument("--set", default="", metavar='"K=V K=V"', dest="overrides")
    parser.add_argument("--force", action="store_true")
    options = parser.parse_args(argv)
    _Stopper.install()
    folder = None
    try:
        job = params.load(options.params, options.overrides)
        folder = record.folder_for(job, options.params, options.run)
        if options.command == "report":
            return _report(folder)
        for key, value in params.parse_overrides(options.overrides).items():
            print(f"override: {key} = {value!r}")
        wanted = STAGES if options.command == "run" else STAGES[:STAGES.index(options.command) + 1]
        if "train" in wanted and not folder.exists():
            check_machine("train", job, _existing(folder))
        run = record.open_run(folder, job, force_from=(wanted[0] if options.command == "run" else wanted[-1]) if options.force else "")
        if not options.force:
            check_source(run, job)
        print(f"run: {files.shown(folder)}")
        for stage in wanted:
            run_stage(run, stage, job, options.params, options.force and options.command in ("run", stage))
        return _report(folder)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except StageFailed as error:
        where = f" in cell {error.cell} of {files.shown(folder)}" if error.cell else f" in {files.shown(folder)}"
        print(f"\nstopped{where}: {error}" if error.interrupted else f"\nfailed{where}: {error}", file=sys.stderr)
        if error.interrupted:
            print("The same command continues from the last good checkpoint.", file=sys.stderr)
        return 128 + _Stopper.signal if _Stopper.signal else 130 if error.interrupted else 1
    except (KeyboardInterrupt, SystemExit):
        return 128 + (_Stopper.signal or signal.SIGINT)
    finally:
        signal.alarm(0)
        if folder:
            record.unlock(folder)


def _existing(folder: pathlib.Path) -> pathlib.Path:
    return folder if folder.exists() else _existing(folder.parent)


def _report(folder: pathlib.Path) -> int:
    from lib import report

    print(f"report: {files.shown(report.write(folder))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
