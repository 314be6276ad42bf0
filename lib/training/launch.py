"""Several GPUs or machines: one process a device, the micro-batches of a step shared out, gradients summed, rank 0 writes.

    torchrun --nproc_per_node=2 -m lib.training.launch runs/NAME          # what the train notebook does for num_gpus: 2

On machines that share the run's folder, the same command on each, with --nnodes=2 --node_rank=0 (then 1) --master_addr=HOST.
It leaves checkpoints; `make train` with the run's parameters then finds all steps done and writes the adapter.
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
from lib.model import adapter, base, load, placement, ranks
from lib.params import Params
from lib.record import run_folder, run_record
from lib.training import checkpoint, loop, loss, stops
from lib.training.masters import Masters

PATIENCE = datetime.timedelta(
    hours=12
)  # of a rank for the others: rank 0 may save to a slow disk, one may compile longer
# in the run's folder, between the ranks and the process that started them: the job with its micro-batch settled,
# how the ranks ended, the trained weights
JOB, END, TRAINED = ".job.yaml", ".end", ".trained.safetensors"
LAUNCHER = "MEDRESCUE_LAUNCHER"  # process number of who started torchrun; not set when a person did


def train(
    model: Any,
    data: Any,
    validation: Any,
    job: Params,
    folder: pathlib.Path,
    identity: dict[str, Any],
) -> Any:
    """`loop.train` here, or under torchrun on the job's GPUs; either way the weights end up in `model`."""
    devices = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    if devices == 1:
        return loop.train(model, data, validation, job, folder, identity)
    loss.free_buffers()
    with placement.in_main_memory(model):  # the ranks need the cards
        launch(folder, job, devices)
    masters = Masters(model, job)
    for name, weight in load_file(folder / TRAINED).items():
        masters.weights[name].copy_(weight)
    masters.publish()
    (folder / TRAINED).unlink()
    return masters


def launch(folder: pathlib.Path, job: Params, processes: int) -> None:
    """Train the run of a folder in `processes` processes under torchrun, their output in ours; the weights are left in TRAINED.

    An interruption is passed on and waited for; what ended the ranks is raised here.
    """
    for name in (END, stops.INTERRUPT, TRAINED):
        (folder / name).unlink(missing_ok=True)
    files.atomic_write(folder / JOB, params.to_yaml(job))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        "-m",
        "lib.training.launch",
        str(folder),
    ]
    # a session of its own: Ctrl-C in a terminal would have torchrun kill the ranks before they have saved
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
            LAUNCHER: str(os.getpid()),
        },
    )
    text = codecs.getincrementaldecoder("utf-8")("replace")
    try:
        while process.poll() is None:
            try:
                while (
                    part := process.stdout.read1()
                ):  # as it comes: a progress bar ends its lines with \r, to be written over
                    if not (
                        folder / END
                    ).exists():  # what follows is torchrun's report of ranks that said themselves why they ended
                        print(text.decode(part), end="", flush=True)
                process.wait()
            except KeyboardInterrupt:
                (folder / stops.INTERRUPT).touch()
    finally:
        if process.poll() is None:
            process.kill()  # the ranks see it and end
        end = (folder / END).read_text() if (folder / END).exists() else ""
        for name in (END, JOB, stops.INTERRUPT):
            (folder / name).unlink(missing_ok=True)
    kind, _, message = end.partition("\n")
    kinds = {
        "KeyboardInterrupt": KeyboardInterrupt,
        "SessionOver": stops.SessionOver,
        "Diverged": stops.Diverged,
        "UserError": UserError,
    }
    if kind in kinds:
        raise kinds[kind](message)
    if process.returncode:
        raise UserError(
            f"training on {processes} devices ended with exit code {process.returncode}; what it printed is above. "
            f"The same command continues from the last checkpoint."
        )


def _end_with(parents: list[int]) -> None:
    """End this rank when torchrun, or the process that started it, is gone: it would keep the card and write on."""
    while all(map(machine.is_alive, parents)):
        time.sleep(1)
    os._exit(1)


def main() -> None:
    """One rank: load the run's job, model and data, train, and leave the result in its last checkpoint."""
    folder, cuda, launched = (
        pathlib.Path(sys.argv[1]).resolve(),
        torch.cuda.is_available(),
        LAUNCHER in os.environ,
    )
    threading.Thread(
        target=_end_with,
        args=([os.getppid(), *([int(os.environ[LAUNCHER])] if launched else [])],),
        daemon=True,
    ).start()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        if not launched and ranks.rank() == 0:
            run_folder.lock_run(folder)  # who launched the others holds it
        job = params.load_job(folder / (JOB if launched else "params.yaml"))
        if job.per_device_train_batch_size == "auto":
            raise UserError(
                "per_device_train_batch_size: auto is settled by the train notebook. Started by hand, the ranks need a number."
            )
        data, validation = (
            splits.load_split(folder / "data", "train"),
            splits.load_split(folder / "data", "validation"),
        )
        place = base.fetch(job.base_model, job.base_revision)
        net = load.load_with_adapter(place, job)
        recorded = run_record.read_record(folder / "run.json")["fingerprints"]["data"]
        masters = loop.train(
            net,
            data,
            validation,
            job,
            folder,
            checkpoint.describe_identity(
                job, recorded, base.fingerprint(place), adapter.count_parameters(net)[0]
            ),
        )
        if launched and ranks.rank() == 0:
            save_file({n: w.contiguous() for n, w in masters.weights.items()}, folder / TRAINED)
    except (UserError, stops.SessionOver, stops.Diverged, KeyboardInterrupt) as error:
        told = f"{type(error).__name__}\n{error}"
        if launched:
            with (
                contextlib.suppress(FileExistsError),
                open(folder / END, "x") as file,
            ):  # all ranks end alike; the first one says so
                file.write(told)
        elif ranks.rank() == 0:
            print(told, flush=True)
        # not 0 unless all ranks have agreed to end: torchrun then ends those that wait for this one
        agreed = (
            isinstance(error, stops.SessionOver)
            or isinstance(error, KeyboardInterrupt)
            and error.args
        )
        sys.exit(0 if agreed else 1)
    dist.barrier()
    sys.stdout.flush()
    os._exit(
        0
    )  # all is written; at the interpreter's end a thread of gloo's that is still there now and then aborts the process


if __name__ == "__main__":
    main()
