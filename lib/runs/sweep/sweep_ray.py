"""Run a sweep's trials in Ray: workers that follow ordinary runs, early stopping, retries."""

import contextlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

# set before Ray is imported: it must send no statistics, print no table, write no log files, and
# leave the check of the results to us
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # otherwise a worker that ends would kill -9 the runner, which is about to save
        "RAY_kill_child_processes_on_worker_exit": "0",
        "RAY_worker_niceness": "0",
    }
)

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from lib.common import files, machine
from lib.common.errors import ROOT, UserError
from lib.record import ledger, run_record
from lib.runs.sweep import states
from lib.runs.sweep.sweep_file import Sweep, Trial, format_values
from lib.training import stops

POLL_SECONDS = 0.5
STOP_SECONDS = 120  # for a trial that is stopped early to end its step and save
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_EVAL = 10**9  # ASHA's own limit, set so high that no trial reaches it


class Follower(tune.Trainable):
    """A trial in a Ray worker: starts the runner and reports each held-out loss of its ledger.

    The losses of a trial that is over are only reported again, so that ASHA knows them after the
    driver was killed.
    """

    def setup(self, config: dict[str, Any]) -> None:
        trial = config["trial"]
        self.folder = pathlib.Path(trial["folder"])
        self.eval_steps = trial["eval_steps"]
        self.reported = 0  # the step of the last held-out loss reported to Ray
        self.process: subprocess.Popen[bytes] | None = None
        if trial["over"]:
            return
        # a file, since a pipe that nobody reads fills up; no `with`, as it must outlive this call
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        env = {
            **os.environ,
            "MEDRESCUE_RUNS": str(self.folder.parent),
            "OMP_NUM_THREADS": str(trial["cores"]),
            "PYTHONUNBUFFERED": "1",
        }
        # a session of its own, so that signals to the worker's process group do not reach it
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lib.runs.sweep.trial", *trial["words"]],
            cwd=ROOT,
            env=env,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
        )

    def step(self) -> dict[str, Any]:
        """Wait for the next held-out loss, or for the end, and report it."""
        while True:
            # checked before the ledger is read, so that no later line can be missed
            ended = self.process is None or self.process.poll() is not None
            entries = ledger.read_ledger(self.folder / "metrics.jsonl")
            for entry in ledger.keep_valid(entries, "eval"):
                if entry["when"] == "during" and entry["step"] > self.reported:
                    self.reported = entry["step"]
                    return {
                        "eval_loss": entry["eval_loss"],
                        "at_step": entry["step"],
                        "evals": entry["step"] // self.eval_steps,
                        "done": False,
                    }
            if ended:
                return self._end()
            time.sleep(POLL_SECONDS)

    def _end(self) -> dict[str, Any]:
        """Report the end, or raise RuntimeError if the runner was killed, so that Ray retries.

        A failure of the run itself would only happen again.
        """
        code = self.process.returncode if self.process else 0
        if code == 2:  # the runner refused, with a message that is not in the record
            self.errors.seek(0)
            message = self.errors.read().decode(errors="replace")[-2000:].strip()
            return {"done": True, "refused": message}
        was_killed = code < 0 or code >= 128
        if was_killed or (code and self._lost_kernel()):
            raise RuntimeError(f"exit code {code}")
        return {"done": True}

    def _lost_kernel(self) -> bool:
        """Tell whether the last attempt ended because its kernel died or never started."""
        stages = run_record.read_record(self.folder / "run.json")["stages"]
        attempts = [a for stage in run_record.STAGES for a in stages[stage]["attempts"]]
        reason = attempts[-1]["exit"] if attempts else ""
        return (reason or "").startswith(("KernelDied", "KernelNotStarted"))

    def cleanup(self) -> None:
        """Stop the runner early by the run's stop file, or by SIGTERM if that takes too long.

        Either way it saves, and records how it ended.
        """
        if self.process is None or self.process.poll() is not None:
            return
        (self.folder / stops.STOP_FILE).touch()
        for seconds in (STOP_SECONDS, STOP_SECONDS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
            assert self.process.stdin is not None
            self.process.stdin.close()  # trial.py then stops, as if this process had ended
        (self.folder / stops.STOP_FILE).unlink(missing_ok=True)  # left if it was in its last step


class Asha(ASHAScheduler):
    """Ray's ASHA on the held-out loss; a decision to stop is recorded before it is carried out."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(
            time_attr="evals",
            metric="eval_loss",
            mode="min",
            max_t=LAST_EVAL,
            grace_period=sweep.grace_evals,
            reduction_factor=sweep.reduction_factor,
        )

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(controller, trial, result)
        if decision == TrialScheduler.STOP and not trial.config["trial"]["over"]:
            why = {k: result[k] for k in ("at_step", "evals", "eval_loss")}
            files.write_json(
                pathlib.Path(trial.config["trial"]["folder"]) / states.RECORD,
                {"stopped_early": {**why, "time": run_record.timestamp()}},
            )
        return decision


def _last_line(trial: Any) -> str:
    return str(trial.get_error() or "its worker is gone").strip().splitlines()[-1][:150]


class Lines(tune.Callback):
    """Prints a line for each event of a trial."""

    def _print(self, trial: Any, what: str) -> None:
        if not trial.config["trial"]["over"]:
            print(f"{pathlib.PurePath(trial.config['trial']['folder']).name}: {what}", flush=True)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._print(trial, f"started ({trial.config['trial']['text']})")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        if "eval_loss" in result and not result["done"]:
            self._print(trial, f"step {result['at_step']}, held-out loss {result['eval_loss']:.4f}")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._print(
            trial, f"was killed ({_last_line(trial)}); it continues from its last checkpoint"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._print(trial, f"was killed once more than `retries` ({_last_line(trial)})")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **_: Any) -> None:
        self._print(trial, (trial.last_result or {}).get("refused") or "ended")


def _start_ray(temporary: str, sweep: Sweep) -> None:
    """Start Ray on this machine, or join the cluster at RAY_ADDRESS.

    Raise UserError if there is none, or if a trial would wait for ever.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    local: dict[str, Any] = {
        "include_dashboard": False,
        "_temp_dir": temporary,
        "num_cpus": machine.cores(),
        "object_store_memory": 80 * 2**20,
    }
    # `Lines` prints a line about a killed trial, so Ray must not print a traceback
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=True,
            **({} if address else local),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f" at RAY_ADDRESS={address}" if address else ""
        raise UserError(f"no Ray answers{where}: {str(error).splitlines()[0]}") from None
    _require_resource("CPU", "cores_per_trial", sweep.cores_per_trial)
    _require_resource("GPU", "gpus_per_trial", sweep.gpus_per_trial)


def _require_resource(resource: str, key: str, wanted: float) -> None:
    """Raise UserError unless one machine of the sweep has as much as a trial needs."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    most = max((node["Resources"].get(resource, 0) for node in alive), default=0)
    if wanted > most:
        raise UserError(
            f"{key} is {wanted:g}, but no machine of the sweep has more than {most:g}. "
            f"Set it to {most:g} or less."
        )


def run_trials(sweep: Sweep, trials: list[Trial]) -> int:
    """Run the trials that are not over yet; return the signal that stopped them, or 0."""
    signals: list[int] = []

    def note(number: int, frame: Any) -> None:
        signals.append(number)
        if len(signals) > 1:
            raise SystemExit(128 + number)
        # Tune ends the experiment at this signal; before Tune handles it, `leave` does
        signal.raise_signal(signal.SIGUSR1)

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # for the workers
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    # Ray's socket paths are 62 characters longer than its folder's, and may have 107 at most
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
    with tempfile.TemporaryDirectory(
        prefix="sweep-", dir=place, ignore_cleanup_errors=True
    ) as temporary:
        try:
            _start_ray(temporary, sweep)
            signal.signal(signal.SIGUSR1, leave)
            for number in STOPPERS:  # after ray.init, which sets a handler of its own
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                    signal.signal(number, note)
            _make_tuner(sweep, trials, temporary).fit()
        except KeyboardInterrupt:
            signals = signals or [signal.SIGINT]
        finally:
            _restore_handlers(note)
            ray.shutdown()
    return signals[0] if signals else 0


def _make_tuner(sweep: Sweep, trials: list[Trial], temporary: str) -> tune.Tuner:
    configs = [
        {
            "folder": str(trial.folder),
            "words": trial.words,
            "text": format_values(trial.values),
            "eval_steps": trial.job.eval_steps,
            "cores": sweep.cores_per_trial,
            "over": states.read_state(trial.folder, sweep).word in states.OVER,
        }
        for trial in trials
    ]
    resources = {"cpu": sweep.cores_per_trial, "gpu": sweep.gpus_per_trial}
    return tune.Tuner(
        tune.with_resources(Follower, resources),
        param_space={"trial": tune.grid_search(configs)},
        tune_config=tune.TuneConfig(
            scheduler=Asha(sweep) if sweep.early_stop else FIFOScheduler(),
            time_budget_s=sweep.max_minutes * 60 or None,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=temporary,
            verbose=0,
            callbacks=[Lines()],
            # the run folder is the checkpoint
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=sweep.retries),
        ),
    )


def _restore_handlers(ours: Callable[[int, Any], None]) -> None:
    """Restore the default handlers of the signals that `ours` handles."""
    for number in STOPPERS:
        if signal.getsignal(number) == ours:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
