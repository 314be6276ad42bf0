"""Measure how much memory a GGUF needs and how fast it is on this processor, with llama.cpp.

    rows = footprint.measure_files({"q8_0": run.folder / "gguf" / "model-q8_0.gguf"})
    show.table(show.edge_table(rows))
    python -m lib.export.footprint FILE THREADS REPEATS          # one measurement, as JSON

Each file is measured in a process of its own.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from lib.common import files, interrupts, machine
from lib.common.errors import ROOT, UserError
from lib.model import llama

CONTEXT, PROMPT, DECODED = 1024, 256, 48  # tokens
REPEATS = 3
# seconds after which a file is not measured again; `repeats` in its row tells how often it was
PATIENCE = 120
GIB = 2**30
DEVICES = (2, 4, 8, 16)  # GiB: common memory sizes of phones, small computers and laptops
# An assumption, not a measurement: roughly what a desktop Linux without a browser, or an idle
# Android, keeps for itself. A board without a screen needs less, a phone full of apps more.
RESERVE = GIB
RULE = (
    f"fits in: the smallest of {', '.join(map(str, DEVICES))} GB that holds the memory measured "
    f"and {RESERVE / GIB:g} GB for the system"
)
TEXT = (
    "Press firmly on the wound with a clean cloth. Call your local emergency number. "
    "Keep the person warm and watch the breathing. "
)


class Memory(NamedTuple):
    """Memory of this process, in bytes."""

    peak: int  # the most that was ever resident
    # resident now, without pages of mapped files; None where the system does not report it
    private: int | None


def measure_files(
    ggufs: dict[str, Path], threads: tuple[int, ...] = (), repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """Measure each file {type: path} with each number of threads, and return a row for each.

    An empty `threads` stands for 1 and for all that this process may use. A row has:

    - bytes: of the file.
    - load_seconds: from the page cache, as the file has just been read.
    - memory_bytes: the resident peak, less what the Python process held before loading. It includes
      the file's mapped pages, a context of CONTEXT tokens and llama.cpp's own buffers.
    - private_bytes: the part that stays when the system reclaims mapped pages (None if unknown).
    - prompt_, decode_tokens_per_second: medians of `repeats` times PROMPT tokens in, DECODED out.
    - other_cores: how many were busy with other work meanwhile. A single one can make all threads
      wait, and the measurement several times slower.
    - fits_gb: by RULE; None above the largest device.

    Raise UserError when a file cannot be measured.
    """
    rows = []
    for file_type, path in ggufs.items():
        for count in threads or sorted({1, machine.cores()}):
            plural = "" if count == 1 else "s"
            print(
                f"{file_type}, {count} thread{plural}: load, {PROMPT} tokens in, {DECODED} out, "
                f"{repeats} times",
                flush=True,
            )
            measured = _measure_alone(path, count, repeats)
            rows.append(
                {
                    "format": file_type,
                    "bytes": path.stat().st_size,
                    "threads": count,
                    **measured,
                    "fits_gb": smallest_device(measured["memory_bytes"]),
                }
            )
    return rows


def _measure_alone(path: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Run `measure_here` in a new process, since this one's peak is that of the 16-bit model."""
    command = [sys.executable, "-P", "-m", "lib.export.footprint"]
    command += [str(path.resolve()), str(threads), str(repeats)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if done.returncode:
        raise UserError(
            f"{files.format_path(path)} could not be measured with {threads} threads "
            f"(exit status {done.returncode}): {done.stderr.strip()[-300:]} "
            "Expected a complete GGUF and enough memory: export again, or close other programs."
        )
    return json.loads(done.stdout.splitlines()[-1])


def smallest_device(memory: int) -> int | None:
    """Return the GiB of the smallest device that holds these bytes and RESERVE, or None."""
    for size in DEVICES:
        if memory + RESERVE <= size * GIB:
            return size
    return None


def measure_here(path: Path, threads: int, repeats: int) -> dict[str, Any]:
    """Measure one file in this process, which should be new."""
    before = read_memory()
    with llama.load_gguf(path, n_ctx=CONTEXT, n_threads=threads) as engine:
        ids = engine.tokenize(TEXT * 20, add_special=True)[:PROMPT]
        if len(ids) < PROMPT:
            raise UserError(
                f"this file's tokenizer makes {len(ids)} tokens of the prompt; expected {PROMPT}."
            )
        replies: list[llama.Completion] = []
        begin = time.monotonic()
        others_before = read_other_work()
        while len(replies) < repeats and (not replies or time.monotonic() - begin < PATIENCE):
            replies.append(engine.complete(ids, max_tokens=DECODED, ignore_eos=True))
        others = (read_other_work() - others_before) / (time.monotonic() - begin)
        after = read_memory()
        private = None
        if after.private is not None and before.private is not None:
            private = after.private - before.private
        return {
            "load_seconds": round(engine.load_seconds, 3),
            "memory_bytes": after.peak - before.peak,
            "private_bytes": private,
            "repeats": len(replies),
            "other_cores": round(max(0.0, others), 2),
            "prompt_tokens_per_second": _median(
                [reply["prompt_tokens_per_second"] for reply in replies]
            ),
            "decode_tokens_per_second": _median([reply["tokens_per_second"] for reply in replies]),
        }


def _median(speeds: list[float]) -> float:
    return round(statistics.median(speeds), 2)


def read_memory() -> Memory:
    """Return this process's resident memory.

    On Linux, getrusage does not serve: its peak survives exec, so a child would report that of the
    process it was forked from.
    """
    if sys.platform != "linux":
        unit = 1 if sys.platform == "darwin" else 1024
        return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, None)
    status = Path("/proc/self/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    peak, private = (int(lines[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon"))
    return Memory(peak, private)


def read_other_work() -> float:
    """Return the seconds that all cores have worked since the start, without this process's."""
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0)
    counted_twice = getattr(times, "guest", 0.0)  # it is in `user` too
    return sum(times) - waiting - counted_twice - time.process_time()


if __name__ == "__main__":
    interrupts.end_at_once()
    try:
        print(json.dumps(measure_here(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
    except UserError as error:
        sys.exit(str(error))
