"""SIGTERM and Ctrl-C at random moments of all three stages: exit code 143 or 130 within 10 s and one optimizer step, a record that says
interrupted, the same command ends with the same bits."""

import random
import signal
import time

import drill_kill
import tiny

from lib.record.run_record import STAGES

TRIALS = 40
WITHIN_SECONDS = 10


def drill(folder, trials):
    params = tiny.job(folder / "job")
    seconds = tiny.undisturbed(params, folder / "reference")
    wanted = tiny.outcome(folder / "reference")
    step = max(
        e["seconds"]
        for e in tiny.ledger.valid_steps(
            tiny.ledger.read_ledger(folder / "reference/tiny/metrics.jsonl")
        )
    )
    draw = random.Random(7)
    moments = [
        (
            STAGES[n % 3],
            draw.uniform(0, seconds[STAGES[n % 3]]),
            (signal.SIGTERM, signal.SIGINT)[n // 3 % 2],
        )
        for n in range(trials + trials // 3)
    ]
    plan = drill_kill.parts(moments)
    lost, took = [], []
    for number, (times, wrong) in enumerate(
        tiny.side_by_side(
            lambda core, n, part: _one(core, params, folder / f"run-{n}", part, wanted, step), plan
        ),
        1,
    ):
        took, lost = took + times, lost + wrong
        print(f"  run {number} of {len(plan)}: {len(times)} signals, {len(wrong)} lost", flush=True)
    print(
        f"  seconds from signal to exit: median {sorted(took)[len(took) // 2]:.1f}, most {max(took):.1f}; a step takes {step:.2f}"
    )
    return len(took), lost


def _one(core, params, runs, moments, wanted, step):
    times, lost = [], []
    for stage, moment, number in moments:
        if tiny.finished(runs, stage):
            continue
        process, before = tiny.start(params, runs, core=core), len(tiny.attempts(runs, stage))
        if not tiny.running(runs, stage, process, before):
            process.wait(tiny.LIMIT_SECONDS)
            continue
        time.sleep(moment)
        if process.poll() is not None:
            continue
        process.send_signal(number)
        sent = time.monotonic()
        code = process.wait(tiny.LIMIT_SECONDS)
        times.append(time.monotonic() - sent)
        where = f"{runs.name}: {number.name} {moment:.1f} s into {stage}"
        if times[-1] > WITHIN_SECONDS + step:
            lost.append(f"{where}: it took {times[-1]:.1f} s")
        states = [entry["status"] for entry in tiny.record(runs)["stages"].values()]
        if code == 0 and states == ["finished"] * 3:  # it came after the last cell
            continue
        if code != 128 + number:
            lost.append(f"{where}: exit code {code}: {tiny.terminal(runs)[-300:]}")
        if set(states) - {"finished", "interrupted", "pending"}:
            lost.append(f"{where}: the record says {states}")
    return times, lost + tiny.ending(params, runs, core, wanted)
