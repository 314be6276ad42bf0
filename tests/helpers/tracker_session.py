"""A session's ledger lines, as a tracker is given them."""

from lib.training import trackers

SESSION = {
    "start_step": 0,
    "total_steps": 10,
    "trainable_parameters": 1,
    "total_parameters": 2,
    "memory_of": "GPU",
    "device": "T4",
}


def step(number, loss=2.5, **more):
    return {
        "step": number,
        "epoch": number / 10,
        "lr": 1e-4,
        "grad_norm": 1.25,
        "memory_gib": 3.5,
        "steps": 2,
        "loss": loss,
        "tokens": 300,
        "padded": 400,
        "trained": 100,
        "rows": 32,
        "seconds": 4.0,
        **more,
    }


def measured(number, loss=2.0, when="during"):
    return {"when": when, "step": number, "eval_loss": loss, "tokens": 50, "seconds": 1.0}


def a_session(job, folder, start=0, steps=(1, 2), end=True):
    report = trackers.start_tracker(job, folder)
    report("session", {**SESSION, "start_step": start})
    if not start:
        report("eval", measured(0, 4.0, "before"))
    report("compiled", {"seconds": 60.0})
    for number in steps:
        report("step", step(number))
    report("eval", measured(steps[-1], 2.0, "after"))
    if end:
        report("end", {})
    return report
