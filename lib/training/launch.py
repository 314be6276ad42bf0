"""Train on several GPUs or machines with torchrun, one process per device.

The micro-batches of a step are divided among the processes, gradients are summed, and rank 0
writes. For num_gpus: 2, the train notebook starts

    torchrun --nproc_per_node=2 -m lib.training.launch runs/NAME

On several machines that share the run's folder, start it by hand: the same command on each, with
--nnodes=2 --node_rank=0 (then 1) --master_addr=HOST. It leaves checkpoints; `make train` with the
run's parameters then finds all steps done and writes the adapter.
"""

import codecs
import contextlib
import datetime
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from lib import params
from lib.common import files, machine
from lib.common.errors import ROOT, UserError
from lib.data import splits
from lib.model import adapter, base, base_record, placement, ranks
from lib.model.load import load_for_training
from lib.params import Params
from lib.record import run_folder, run_record
from lib.training import checkpoint, loop, loss, stops
from lib.training.masters import Masters

# how long a rank waits for the others: rank 0 may save to a slow disk, another may compile longer
PATIENCE = datetime.timedelta(hours=12)

# files in the run's folder by which the ranks and the process that started them communicate
JOB = ".job.yaml"  # the job, with its final micro-batch
END = ".end"  # how the ranks ended: the error's name in the first line, then its message
TRAINED = ".trained.safetensors"  # the weights

# environment variable with the id of the process that started torchrun; not set by hand
LAUNCHER = "MEDRESCUE_LAUNCHER"

# expected ends of the ranks, by their names in END
ENDS = {
    error.__name__: error
    for error in (stops.Interrupted, stops.SessionOver, stops.Diverged, UserError)
}


def train(
    model: Any,
    data: Any,
    validation: Any,
    job: Params,
    folder: pathlib.Path,
    identity: dict[str, Any],
) -> Masters:
    """Train in this process with `loop.train`, or on several GPUs; leave the weights in `model`."""
    devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    if devices == 1:
        return loop.train(model, data, validation, job, folder, identity)
    loss.free_buffers()
    with placement.in_main_memory(model):  # the ranks need the cards
        run_ranks(folder, job, devices)
    masters = Masters(model, job)
    for name, weight in load_file(folder / TRAINED).items():
        masters.weights[name].copy_(weight)
    masters.publish()
    (folder / TRAINED).unlink()
    return masters


# --------------------------------------------------------------------------------------------------
# the process that starts the ranks


def run_ranks(folder: pathlib.Path, job: Params, processes: int) -> None:
    """Train the run of a folder in `processes` processes, which leave their weights in TRAINED.

    Print their output. Pass on an interruption and wait for the ranks. Raise the error that ended
    them.
    """
    for name in (END, stops.INTERRUPT, TRAINED):
        (folder / name).unlink(missing_ok=True)
    files.atomic_write(folder / JOB, params.to_yaml(job))
    process = _start_torchrun(folder, processes)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while process.poll() is None:
            try:
                _pass_on_output(process, decoder, folder)
                process.wait()
            except KeyboardInterrupt:
                (folder / stops.INTERRUPT).touch()
    finally:
        if process.poll() is None:
            process.kill()  # the ranks notice this and end
        end = (folder / END).read_text() if (folder / END).exists() else ""
        for name in (END, JOB, stops.INTERRUPT):
            (folder / name).unlink(missing_ok=True)
    kind, _, message = end.partition("\n")
    if kind in ENDS:
        raise ENDS[kind](message)
    if process.returncode:
        raise UserError(
            f"training on {processes} devices ended with exit code {process.returncode}; its "
            f"output is above. The same command continues from the last checkpoint."
        )


def _start_torchrun(folder: pathlib.Path, processes: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run"]
    command += ["--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "lib.training.launch", str(folder)]
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        LAUNCHER: str(os.getpid()),
    }
    # a session of its own, since torchrun would kill the ranks at Ctrl-C before they have saved
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=environment,
    )


def _pass_on_output(
    process: subprocess.Popen[bytes], decoder: codecs.IncrementalDecoder, folder: pathlib.Path
) -> None:
    """Print the ranks' output until they have ended or this process is interrupted.

    It is not buffered by lines: a progress bar ends its lines with \\r, to be overwritten.
    """
    assert process.stdout is not None, "torchrun is started with a pipe"
    while part := process.stdout.read1():  # type: ignore[attr-defined]  # a pipe's reader has it
        # once the ranks have written END, torchrun would print its own report of their end
        if not (folder / END).exists():
            print(decoder.decode(part), end="", flush=True)


# --------------------------------------------------------------------------------------------------
# one rank


def main() -> None:
    """Run one rank: train the run's job, and leave the result in its last checkpoint."""
    folder = pathlib.Path(sys.argv[1]).resolve()
    cuda = torch.cuda.is_available()
    launched = LAUNCHER in os.environ
    _end_with_parents()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        _train_rank(folder, launched)
    except (UserError, stops.SessionOver, stops.Diverged, KeyboardInterrupt) as error:
        _report_end(folder, launched, error)
        # 0 only if all ranks agreed to end; otherwise torchrun must end those that wait for this
        interrupted = isinstance(error, KeyboardInterrupt) and error.args
        agreed = isinstance(error, stops.SessionOver) or interrupted
        sys.exit(0 if agreed else 1)
    dist.barrier()
    sys.stdout.flush()
    # everything is written; in an ordinary exit, a remaining thread of gloo's sometimes aborts the
    # process
    os._exit(0)


def _train_rank(folder: pathlib.Path, launched: bool) -> None:
    if not launched and ranks.rank() == 0:
        run_folder.lock_run(folder)  # otherwise the launching process holds the lock
    job = params.load_job(folder / (JOB if launched else "params.yaml"))
    if job.per_device_train_batch_size == "auto":
        raise UserError(
            "per_device_train_batch_size: auto is resolved by the train notebook. Ranks that are "
            "started by hand need a number."
        )
    if job.train_end_token == "auto" and not job.full_finetuning:
        raise UserError(
            "train_end_token: auto is decided by the train notebook. Ranks that are started by "
            "hand need true (a pretrained base) or false (an instruction-tuned one)."
        )
    data = splits.load_split(folder / "data", "train")
    validation = splits.load_split(folder / "data", "validation")
    fingerprints = run_record.read_record(folder / "run.json")["fingerprints"]
    # the notebook has just compared the files; a rank must not meanwhile fetch a newer commit
    revision = base_record.pin_revision(job.base_revision, fingerprints)
    base_folder = base.fetch(job.base_model, revision)
    model = load_for_training(base_folder, job)
    trainable, _ = adapter.count_parameters(model)
    identity = checkpoint.describe_identity(
        job, fingerprints["data"], base.fingerprint(base_folder), trainable
    )
    masters = loop.train(model, data, validation, job, folder, identity)
    if launched and ranks.rank() == 0:
        weights = {name: weight.contiguous() for name, weight in masters.weights.items()}
        save_file(weights, folder / TRAINED)


def _report_end(folder: pathlib.Path, launched: bool, error: BaseException) -> None:
    """Report why this rank ends, to the process that started it or on the terminal."""
    report = f"{type(error).__name__}\n{error}"
    if launched:
        # all ranks end for the same reason, so the first one writes it
        with contextlib.suppress(FileExistsError), open(folder / END, "x") as file:
            file.write(report)
    elif ranks.rank() == 0:
        print(report, flush=True)


def _end_with_parents() -> None:
    """End this rank once torchrun, or the process that started torchrun, has ended.

    Otherwise it would keep the card and continue to write.
    """
    parents = [os.getppid()]
    if LAUNCHER in os.environ:
        parents.append(int(os.environ[LAUNCHER]))

    def watch() -> None:
        while all(map(machine.is_alive, parents)):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
