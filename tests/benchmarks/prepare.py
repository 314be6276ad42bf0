"""The prepare stage at 10 thousand, 86,667 and 1 million rows: wall time and peak resident memory of the whole process tree.

    python tests/benchmarks/prepare.py FOLDER [rows ...]      # FOLDER holds *.jsonl.gz of {"question", "answer"}; about 20 minutes

The rows are made from those in FOLDER, so that every step has work: three in four have every sixth word replaced (not a duplicate of
anything), one in six has one word replaced (a near duplicate), one in twelve is a copy. Each job is `make prepare` of rows no cache knows, then
the same command again, then, under a million rows, with a changed rule, which re-uses what it can. Runs and made data are removed.
"""

import gzip
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import psutil

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
SCRATCH = ROOT / ".cache" / "benchmark"


def make(source, rows, path):
    """Write `rows` rows made from the sets in `source`, with a new prefix for each id, so that no cache has them."""
    rng, prefix, texts = random.Random(7), time.time_ns(), []
    for name in sorted(source.glob("*.jsonl.gz")):
        with gzip.open(name, "rt", encoding="utf-8") as file:
            texts += map(json.loads, file)
    texts = [t for t in texts if "answer" in t]
    vocabulary = sorted({w for t in texts[::20] for w in t["answer"].split() if w.isalpha()})
    with open(path, "w", encoding="utf-8") as file:
        for n in range(rows):
            row, kind = rng.choice(texts), rng.random()
            question, answer = row["question"], row["answer"]
            if kind < 11 / 12:
                words = answer.split(" ")
                spots = (
                    [rng.randrange(len(words))]
                    if kind > 9 / 12
                    else [k for k in range(len(words)) if rng.random() < 1 / 6]
                )
                for spot in spots:
                    if words[spot]:
                        words[spot] = rng.choice(vocabulary)
                answer = " ".join(words)
                if kind < 9 / 12:
                    question = f"{question.rstrip(' ?')} {rng.choice(vocabulary)} {rng.choice(vocabulary)} ?"
            file.write(
                json.dumps(
                    {"id": f"{prefix}-{n}", "question": question, "answer": answer},
                    ensure_ascii=False,
                )
                + "\n"
            )


def memory(process):
    """Return a process tree's resident bytes, counting shared pages once (PSS), and their plain sum (RSS)."""
    pss = rss = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_full_info()
            pss, rss = pss + info.pss, rss + info.rss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return pss, rss


def command(path, name, *more):
    begun, peaks = time.monotonic(), (0, 0)
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "lib.runs",
            "prepare",
            "--params",
            "params/cpu.yaml",
            "--run",
            name,
            "--set",
            " ".join(
                [
                    f"dataset={path}",
                    "max_seq_length=1024",
                    "validation_size=0.02",
                    "test_size=0.02",
                    *more,
                ]
            ),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )
    tree = psutil.Process(run.pid)
    while run.poll() is None:
        peaks = tuple(map(max, peaks, memory(tree)))
        time.sleep(0.5)
    if run.returncode:
        sys.exit(f"prepare failed, exit code {run.returncode}")
    return time.monotonic() - begun, *peaks


def main(source, sizes):
    from lib.common import machine
    from lib.data import chunk_cache

    print(
        f"{machine.hardware()['cpu']}, {len(os.sched_getaffinity(0))} cores; "
        + ", ".join(
            f"{k} {v}"
            for k, v in machine.packages().items()
            if k in ("python", "datasets", "tokenizers", "numpy")
        )
    )
    SCRATCH.mkdir(parents=True, exist_ok=True)
    for rows in sizes:
        path, name = SCRATCH / f"{rows}.jsonl", f"benchmark-{rows}"
        make(source, rows, path)
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
        cached = set(chunk_cache.CACHE.glob("*"))
        wall, pss, rss = command(path, name)
        results = json.loads((ROOT / "runs" / name / "results.json").read_text())["prepare"]
        print(
            f"\n{rows:,} rows, {path.stat().st_size / 2**20:,.0f} MiB: {wall:.0f} s, peak {pss / 2**30:.2f} GiB (sum of RSS {rss / 2**30:.2f}); "
            f"kept {results['rows_kept']:,}, dropped {results['dropped']}; seconds {results['step_seconds']}",
            flush=True,
        )
        print(f"  again: {command(path, name)[0]:.1f} s", flush=True)
        shutil.rmtree(ROOT / "runs" / name)
        for change in (
            ("near_duplicate_threshold=0.9", "skip_rules=[link_list]") if rows < 1_000_000 else ()
        ):
            print(f"  with {change}: {command(path, name, change)[0]:.0f} s", flush=True)
            shutil.rmtree(ROOT / "runs" / name)
        for made in {path, *chunk_cache.CACHE.glob("*")} - cached:
            made.unlink()


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), [int(n) for n in sys.argv[2:]] or [10_000, 86_667, 1_000_000])
