"""Several GPUs or machines: one process a device, the micro-batches of a step shared out, gradients summed, rank 0 writes.

    torchrun --nproc_per_node=2 -m lib.parallel runs/NAME          # what the train notebook does for num_gpus: 2

On machines that share the run's folder, the same command on each, with --nnodes=2 --node_rank=0 (then 1) --master_addr=HOST.
"""

import contextlib
import datetime
import os
import pathlib
import signal
import subprocess
import sys
from typing import Any

import torch
import torch.distributed as dist

from lib import files
from lib.params import ROOT, Params, UserError

PATIENCE = datetime.timedelta(hours=12)  # of a rank for the others: rank 0 may save to a slow disk, one may compile longer
# in the run's folder: the job with its micro-batch settled, for the ranks, and how they ended, for the process that started them
JOB, END = ".job.yaml", ".end"


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def add(*tensors: torch.Tensor) -> None:
    """Sum each tensor over the ranks, in place."""
    if world() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def agree(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gpus(job: Params) -> int:
    """How many devices of this machine the job trains on; 1 without a GPU. UserError when it asks for more than there are."""
    there = max(1, torch.cuda.device_count())
    if job.num_gpus == "auto":  # a step's micro-batches must share out evenly
        return next(n for n in range(there, 0, -1) if job.gradient_accumulation_steps % n == 0)
    if job.num_gpus > there:
        raise UserError(f"num_gpus is {job.num_gpus}, and torch sees {torch.cuda.device_count()} here. "
                        f"Set num_gpus: auto, or check CUDA_VISIBLE_DEVICES.")
    return job.num_gpus


def train(model: Any, data: Any, validation: Any, job: Params, folder: pathlib.Path, identity: dict[str, Any]) -> Any:
    """lib.train.train here, or under torchrun on the job's GPUs; either way the weights end up in `model`."""
    from lib import checkpoint, train

    if (devices := gpus(job)) == 1:
        return train.train(model, data, validation, job, folder, identity)
    device = model.device
    model.to("cpu")  # the ranks need the card
    torch.cuda.empty_cache()
    launch(folder, job, devices)
    masters = checkpoint.Masters(model.to(device), job)
    checkpoint.resume(folder / ("checkpoints/best" if job.early_stopping_patience else "checkpoints"), masters, identity)
    return masters


def launch(folder: pathlib.Path, job: Params, processes: int) -> None:
    """Train the run of a folder in `processes` processes under torchrun, their output in ours.

    An interruption is passed on and waited for; what ended the ranks is raised here.
    """
    from lib import params, train

    (folder / END).unlink(missing_ok=True)
    files.atomic_write(folder / JOB, params.dump(job))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m", "lib.parallel", str(folder)]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    # a session of its own: Ctrl-C in a terminal must reach the ranks once, through us
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1, start_new_session=True,
                               env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": threads})
    try:
        while process.poll() is None:
            try:
                for line in process.stdout:
                    if not (folder / END).exists():  # what follows is torchrun's report of ranks that said themselves why they ended
                        print(line, end="", flush=True)
                process.wait()
            except KeyboardInterrupt:
                for pid in _ranks(process.pid):
                    os.kill(pid, signal.SIGINT)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    kind, _, message = (folder / END).read_text().partition("\n") if (folder / END).exists() else ("", "", "")
    for name in (END, JOB):
        (folder / name).unlink(missing_ok=True)
    kinds = {"KeyboardInterrupt": KeyboardInterrupt, "SessionOver": train.SessionOver, "Diverged": train.Diverged, "UserError": UserError}
    if kind in kinds:
        raise kinds[kind](message)
    if process.returncode:
        raise UserError(f"training on {processes} devices ended with exit code {process.returncode}; what it printed is above. "
                        f"The same command continues from the last checkpoint.")


def _ranks(launcher: int) -> list[int]:
    """The ranks' process numbers: torchrun itself, told to stop, would kill them before they have saved."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def main() -> None:
    """One rank: load the run's job, model and data, train, and leave the result in its last checkpoint."""
    from lib import base, model, params, prepared, record, train

    folder, cuda = pathlib.Path(sys.argv[1]).resolve(), torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        job = params.load(folder / JOB if (folder / JOB).exists() else folder / "params.yaml")
        data, validation = prepared.load(folder / "data", "train"), prepared.load(folder / "data", "validation")
        place = base.folder(job)
        net = model.load(place, job)
        recorded = record.read_record(folder / "run.json")["fingerprints"]["data"]
        train.train(net, data, validation, job, folder, train.identity(job, recorded, base.fingerprint(place), model.count(net)[0]))
    except (UserError, train.SessionOver, train.Diverged, KeyboardInterrupt) as error:
        with contextlib.suppress(FileExistsError), open(folder / END, "x") as file:  # all ranks end alike; the first one says so
            file.write(f"{type(error).__name__}\n{error}")
        sys.exit(isinstance(error, UserError | train.Diverged))  # not 0: torchrun ends the others, should they wait for this one
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
