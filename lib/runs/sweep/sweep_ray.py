"""The part of a sweep that is Ray's: trials as actors that follow an ordinary run, ASHA, resources, killed workers and nodes."""

import contextlib
import logging
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

# before Ray is imported: no statistics sent, no table and log files of its own, the results checked here
os.environ.update(
    {
        "RAY_USAGE_STATS_ENABLED": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        # a worker that ends would kill -9 the runner, which is about to save
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
from lib.runs.sweep.sweep_file import Sweep, Trial, text
from lib.training import stops

POLL_SECONDS = 0.5
STOP_SECONDS = 120  # for a trial stopped early to end by its stop file, after the step it is in
STOPPERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LAST_EVAL = 10**9  # no trial gets so far: ASHA's own limit is not ours


class Follower(tune.Trainable):
    """A trial in a Ray worker: starts the runner on its folder, and reports each held-out loss of its ledger.

    What is over is only reported again, so that ASHA knows of it after the driver was killed.
    """

    def setup(self, config: dict[str, Any]) -> None:
        trial = config["trial"]
        self.folder, self.eval_steps = pathlib.Path(trial["folder"]), trial["eval_steps"]
        self.reported, self.process = 0, None
        if trial["over"]:
            return
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the runner; a pipe that nobody reads would fill up
        env = {
            **os.environ,
            "MEDRESCUE_RUNS": str(self.folder.parent),
            "OMP_NUM_THREADS": str(trial["cores"]),
            "PYTHONUNBUFFERED": "1",
        }
        # its own session: what is sent to the worker's process group is not for it
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
        while True:
            ended = (
                self.process is None or self.process.poll() is not None
            )  # asked before the ledger is read: no line comes later
            for entry in ledger.keep_valid(
                ledger.read_ledger(self.folder / "metrics.jsonl"), "eval"
            ):
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
        """Done, unless it was killed: then RuntimeError, and Ray starts it again. A failure of its own would only come again."""
        code = self.process.returncode if self.process else 0
        if code == 2:  # refused by the runner, whose message is not in the record
            self.errors.seek(0)
            return {
                "done": True,
                "refused": self.errors.read().decode(errors="replace")[-2000:].strip(),
            }
        last = [
            a
            for s in run_record.STAGES
            for a in run_record.read_record(self.folder / "run.json")["stages"][s]["attempts"]
        ][-1:]
        if (
            code < 0
            or code >= 128
            or code
            and last
            and (last[0]["exit"] or "").startswith(("KernelDied", "KernelNotStarted"))
        ):
            raise RuntimeError(f"exit code {code}")
        return {"done": True}

    def cleanup(self) -> None:
        """Stopped early: by the run's own stop file, so that it saves and its record says so; by SIGTERM if that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        (self.folder / stops.STOP_FILE).touch()
        for seconds in (STOP_SECONDS, STOP_SECONDS):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                break
            self.process.stdin.close()  # lib/trial.py takes it for the end of this process
        (self.folder / stops.STOP_FILE).unlink(missing_ok=True)  # it was in its last step already


class Asha(ASHAScheduler):
    """Ray's ASHA on the held-out loss; a decision to stop is on disk before it is carried out."""

    def __init__(self, of: Sweep):
        super().__init__(
            time_attr="evals",
            metric="eval_loss",
            mode="min",
            max_t=LAST_EVAL,
            grace_period=of.grace_evals,
            reduction_factor=of.reduction_factor,
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
    """A line in the terminal for each thing that happens to a trial."""

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


def _start(temporary: str, of: Sweep) -> None:
    """Ray on this machine, or the cluster at RAY_ADDRESS; UserError where a trial would wait for ever."""
    address = os.environ.get("RAY_ADDRESS", "")
    here = (
        {}
        if address
        else {
            "include_dashboard": False,
            "_temp_dir": temporary,
            "num_cpus": machine.cores(),
            "object_store_memory": 80 * 2**20,
        }
    )
    logging.getLogger("ray.tune").setLevel(
        logging.CRITICAL
    )  # a killed trial is a line of ours, not a traceback
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=True,
            **here,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"no Ray answers{f' at RAY_ADDRESS={address}' if address else ''}: {str(error).splitlines()[0]}"
        ) from None
    for name, wanted in (("CPU", of.cores_per_trial), ("GPU", of.gpus_per_trial)):
        most = max(
            (node["Resources"].get(name, 0) for node in ray.nodes() if node["Alive"]), default=0
        )
        if wanted > most:
            what = {"CPU": "cores_per_trial", "GPU": "gpus_per_trial"}[name]
            raise UserError(
                f"{what} is {wanted:g}, and no machine of the sweep has more than {most:g}. Set it to {most:g} or less."
            )


def run(of: Sweep, found: list[Trial]) -> int:
    """Run what is not over yet; returns the signal that ended it, 0 without one."""
    got: list[int] = []

    def note(number: int, frame: Any) -> None:
        got.append(number)
        if len(got) > 1:
            raise SystemExit(128 + number)
        signal.raise_signal(
            signal.SIGUSR1
        )  # Tune ends the experiment by it; before Tune listens, `leave` does

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )  # for the workers
    # Ray's sockets lie 62 characters below its folder, and the path of a socket has 107 at most
    place = tempfile.gettempdir() if len(tempfile.gettempdir()) < 30 else "/tmp"
    with tempfile.TemporaryDirectory(
        prefix="sweep-", dir=place, ignore_cleanup_errors=True
    ) as temporary:
        try:
            _start(temporary, of)
            signal.signal(signal.SIGUSR1, leave)
            for number in STOPPERS:  # after Ray, which sets one of its own
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup asked for that
                    signal.signal(number, note)
            configs = [
                {
                    "folder": str(t.folder),
                    "words": t.words,
                    "text": text(t.values),
                    "eval_steps": t.job.eval_steps,
                    "cores": of.cores_per_trial,
                    "over": states.state(t.folder, of).word in ("finished", "stopped early"),
                }
                for t in found
            ]
            tune.Tuner(
                tune.with_resources(
                    Follower, {"cpu": of.cores_per_trial, "gpu": of.gpus_per_trial}
                ),
                param_space={"trial": tune.grid_search(configs)},
                tune_config=tune.TuneConfig(
                    scheduler=Asha(of) if of.early_stop else FIFOScheduler(),
                    time_budget_s=of.max_minutes * 60 or None,
                ),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=temporary,
                    verbose=0,
                    callbacks=[Lines()],
                    checkpoint_config=tune.CheckpointConfig(
                        checkpoint_at_end=False
                    ),  # the run folder is the checkpoint
                    failure_config=tune.FailureConfig(max_failures=of.retries),
                ),
            ).fit()
        except KeyboardInterrupt:
            got = got or [signal.SIGINT]
        finally:
            for number in STOPPERS:
                if signal.getsignal(number) == note:
                    signal.signal(
                        number,
                        signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL,
                    )
            ray.shutdown()
    return got[0] if got else 0
