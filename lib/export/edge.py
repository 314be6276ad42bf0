"""What a GGUF needs and how fast it is on this processor, through llama.cpp: each file alone in a fresh process.

rows = edge.measure({"q8_0": run / "gguf" / "model-q8_0.gguf"})
show.table(show.edge_table(rows))
python -m lib.export.edge FILE THREADS REPEATS          # one measurement, as JSON
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from lib.common import files, machine
from lib.common.errors import ROOT, UserError
from lib.model import llama

CONTEXT, PROMPT, DECODED, REPEATS = 1024, 256, 48, 3  # tokens, tokens, tokens, times
PATIENCE = 120  # seconds: a file so slow is not measured again, and `repeats` says so
DEVICES = (2, 4, 8, 16)  # GiB of memory that phones, small computers and laptops are sold with
# An assumption, not a measurement: about what a desktop Linux with a browser closed, or Android with nothing in front, keeps for
# itself. A board without a screen needs less, a phone full of apps more.
RESERVE = 2**30
RULE = f"fits in: the smallest of {', '.join(map(str, DEVICES))} GB that holds the memory measured and {RESERVE / 2**30:g} GB for the system"
TEXT = "Press firmly on the wound with a clean cloth. Call your local emergency number. Keep the person warm and watch the breathing. "


def measure(
    ggufs: dict[str, Path], threads: tuple[int, ...] = (), repeats: int = REPEATS
) -> list[dict[str, Any]]:
    """A row for each file {format: path} and each number of threads: 1 and all this process may use, if `threads` is empty.

    bytes of the file; load_seconds (from the page cache, as the file has just been read); memory_bytes, the most that was
    resident less what the Python process held before loading, so with the file's mapped pages, a context of CONTEXT tokens and
    llama.cpp's own buffers; private_bytes, what of it stays when the system takes back mapped pages (None where not told);
    prompt_ and decode_tokens_per_second, medians of `repeats` times PROMPT tokens in and DECODED out; other_cores, how many were
    busy with other work meanwhile: one is enough to make all threads wait, several times slower; fits_gb, by RULE, None above
    the largest. UserError when a file cannot be measured.
    """
    rows = []
    for kind, path in ggufs.items():
        for count in threads or sorted({1, machine.cores()}):
            print(
                f"{kind}, {count} thread{'s' * (count > 1)}: load, {PROMPT} tokens in, {DECODED} out, {repeats} times",
                flush=True,
            )
            # a process's peak is never forgotten, and this one has held the 16-bit model
            done = subprocess.run(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "lib.export.edge",
                    Path(path).resolve(),
                    str(count),
                    str(repeats),
                ],
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            if done.returncode:
                raise UserError(
                    f"{files.shown(Path(path))} could not be measured with {count} threads (exit status {done.returncode}): "
                    f"{done.stderr.strip()[-300:]} Expected a complete GGUF, and memory for it: export again, or close other programs."
                )
            found = json.loads(done.stdout.splitlines()[-1])
            rows.append(
                {
                    "format": kind,
                    "bytes": Path(path).stat().st_size,
                    "threads": count,
                    **found,
                    "fits_gb": fits(found["memory_bytes"]),
                }
            )
    return rows


def fits(memory: int) -> int | None:
    """The smallest of DEVICES that holds so many bytes beside RESERVE; None when none does."""
    return next((size for size in DEVICES if memory + RESERVE <= size * 2**30), None)


def one(path: str, threads: int, repeats: int) -> dict[str, Any]:
    """Measure one file in this process, which should be fresh."""
    before = memory()
    with llama.load_gguf(path, n_ctx=CONTEXT, n_threads=threads) as engine:
        ids = engine.tokenize(TEXT * 20, add_special=True)[:PROMPT]
        if len(ids) < PROMPT:
            raise UserError(
                f"the prompt is {len(ids)} tokens to this file's tokenizer, expected {PROMPT}."
            )
        answers, begin, others = [], time.monotonic(), other_work()
        while len(answers) < repeats and (not answers or time.monotonic() - begin < PATIENCE):
            answers.append(engine.complete(ids, max_tokens=DECODED, ignore_eos=True))
        others = max(0.0, (other_work() - others) / (time.monotonic() - begin))
        peak, private = (
            None if was is None else now - was for now, was in zip(memory(), before, strict=True)
        )
        return {
            "load_seconds": round(engine.load_seconds, 3),
            "memory_bytes": peak,
            "private_bytes": private,
            "repeats": len(answers),
            "other_cores": round(others, 2),
            **{
                f"{side}_tokens_per_second": round(statistics.median(a[key] for a in answers), 2)
                for side, key in (
                    ("prompt", "prompt_tokens_per_second"),
                    ("decode", "tokens_per_second"),
                )
            },
        }


def memory() -> tuple[int, int | None]:
    """Most bytes this process ever had resident, and how many now are its own, not a mapped file's (None where not told).

    Not getrusage on Linux: its peak survives exec, so a child would report that of the process it was forked from.
    """
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        ), None
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(lines[key].split()[0]) * 1024 for key in ("VmHWM", "RssAnon"))


def other_work() -> float:
    """Seconds that all cores have worked since the machine started, without this process's."""
    times = psutil.cpu_times()
    return (
        sum(times)
        - times.idle
        - getattr(times, "iowait", 0.0)
        - getattr(times, "guest", 0.0)
        - time.process_time()
    )


if __name__ == "__main__":
    try:
        print(json.dumps(one(sys.argv[1], *map(int, sys.argv[2:]))))
    except UserError as error:
        sys.exit(str(error))
