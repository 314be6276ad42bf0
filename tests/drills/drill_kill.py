"""kill -9 of the kernel, the runner or both at random moments of all three stages: the record tells the truth, the same command
ends with the same bits."""

import random
import time

import tiny

from lib.record.run_record import STAGES

TRIALS = 100
A_RUN = 6  # moments a run; now and then a stage ends before its moment comes


def drill(folder, trials):
    params = tiny.job(folder / "job")
    seconds = tiny.undisturbed(params, folder / "reference")
    wanted = tiny.outcome(folder / "reference")
    plan = parts(_moments(trials + trials // 3, seconds))
    lost, counts = [], {}
    each = tiny.side_by_side(
        lambda core, n, part: _one(core, params, folder / f"run-{n}", part, wanted), plan
    )
    for number, (killed, wrong) in enumerate(each, 1):
        for pair in killed:
            counts[pair] = counts.get(pair, 0) + 1
        lost += wrong
        print(f"  run {number} of {len(plan)}: {len(killed)} kills, {len(wrong)} lost", flush=True)
    print("  " + ", ".join(f"{what} in {stage} {n}" for (stage, what), n in sorted(counts.items())))
    return sum(counts.values()), lost


def parts(moments):
    """Return a few moments for each run, in the order of the stages."""
    return [
        sorted(moments[n : n + A_RUN], key=lambda m: STAGES.index(m[0]))
        for n in range(0, len(moments), A_RUN)
    ]


def _moments(trials, seconds):
    """Return (stage, seconds into it, what is killed) of each trial."""
    draw = random.Random(5)
    return [
        (
            STAGES[n % 3],
            draw.uniform(0, seconds[STAGES[n % 3]]),
            ("kernel", "runner", "both")[n // 3 % 3],
        )
        for n in range(trials)
    ]


def _one(core, params, runs, moments, wanted):
    """Kill a run at `moments`, then let it finish; return (what was killed where, what was lost)."""
    killed, lost = [], []
    for stage, moment, what in moments:
        if tiny.finished(runs, stage):
            continue
        process, before = tiny.start(params, runs, core=core), len(tiny.attempts(runs, stage))
        if tiny.running(runs, stage, process, before):
            time.sleep(moment)
            if process.poll() is None:
                tiny.kill(process, what)
                killed.append((stage, what))
                continue
        if code := process.wait(tiny.LIMIT_SECONDS):
            lost.append(
                f"{runs.name}: left alone before {stage}, it ended with {code}: {tiny.terminal(runs)[-300:]}"
            )
    lost += tiny.ending(params, runs, core, wanted)
    cut = [a for a in tiny.attempts(runs) if a["exit"] != "ok"]
    if len(cut) > len(killed):
        lost.append(
            f"{runs.name}: {len(cut)} attempts on record as cut off, {len(killed)} were killed"
        )
    return killed, lost
