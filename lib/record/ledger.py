"""metrics.jsonl: the append-only ledger, and every headline number computed from it.

One JSON object a line, `event` is session, compiled, step or eval. transformers' TrainOutput is never a source: after a
resume it divides a few steps' loss by all steps, and all samples by the last session's seconds.
"""

import json
import os
import pathlib
import zlib
from typing import Any

from lib.common.errors import UserError


class Ledger:
    """The open ledger of a session; every line is on disk when `write` returns."""

    def __init__(self, path: pathlib.Path):
        _end_torn_line(path)
        self.session = max((e["session"] for e in read(path)), default=0) + 1
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line({"event": event, "session": self.session, **values}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"the ledger `{self.path.name}` cannot be written: {error.strerror}. Training stops, since its numbers would be lost. "
                f"Free some disk space; the same command continues from the last checkpoint."
            ) from None

    def evals(self, step: int) -> dict[tuple[str, int], float]:
        """Held-out losses by (when, step) that a session resuming at `step` builds on."""
        entries = [*read(self.path), {"event": "session", "start_step": step}]
        return {(e["when"], e["step"]): e["eval_loss"] for e in kept(entries, "eval")}

    def check(self, step: int) -> None:
        """UserError unless the lines of all steps up to `step`, where a session resumes, are there: a file cut off at a line's end looks whole."""
        noted = sum(
            e["steps"] for e in steps([*read(self.path), {"event": "session", "start_step": step}])
        )
        if noted != step:
            raise UserError(
                f"ledger `{self.path.name}` has the numbers of {noted} of the {step} steps behind the checkpoint: lines of it "
                f"are lost, and no mean over the rest would be true. Put it back from a copy, or train again with FORCE=1."
            )

    def losses(self) -> list[float]:
        """Of each step the weights went through."""
        return [e["loss"] for e in steps(read(self.path)) for _ in range(e["steps"])]


def _line(entry: dict[str, Any]) -> str:
    """An entry as its line, a checksum of the rest at its end: a flipped digit would be another loss, and still JSON."""
    return (
        json.dumps(
            {**entry, "crc": f"{zlib.crc32(json.dumps(entry).encode()):08x}"}, allow_nan=False
        )
        + "\n"
    )


def _end_torn_line(path: pathlib.Path) -> None:
    """Cut off a last line whose writing was cut off: it has no newline, so it never was a line."""
    if path.exists() and not (data := path.read_bytes()).endswith(b"\n") and data:
        os.truncate(path, data.rfind(b"\n") + 1)


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """All lines; a torn last one is left out, any other damage is an error with its line number."""
    if not path.exists():
        return []
    entries = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], 1):  # what follows the last newline is torn or empty
        try:
            entry = json.loads(line)
            crc = entry.pop("crc", None)  # lines of an earlier version have none
            entry["session"], entry["event"]
            if crc and _line(entry) != f"{line.decode()}\n":
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"ledger `{path.name}`, line {number} is damaged: {line[:80]!r}. Its numbers cannot be trusted; "
                f"train again with FORCE=1."
            ) from None
        entries.append(entry)
    return entries


def kept(entries: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """The lines of a kind that belong to the weights as they are, in order: what a session ran past the point from which a
    later one resumed is left out, whichever steps the later lines fall on."""
    found: list[dict[str, Any]] = []
    for entry in entries:
        if entry["event"] == "session":
            found = [e for e in found if e["step"] <= entry["start_step"]]
        elif entry["event"] == event:
            found.append(entry)
    return found


def steps(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The logged steps the weights went through."""
    return kept(entries, "step")


def _warm(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step lines without the first of each session, in which kernels are loaded and memory is first taken; all, where that leaves none."""
    every = [e for e in entries if e["event"] == "step"]
    seen: set[int] = set()
    warm = [e for e in every if e["session"] in seen or seen.add(e["session"])]
    return warm or every


def utilisation(entries: list[dict[str, Any]]) -> float | None:
    """Model FLOPs utilisation: operations the model asks for, over what the cards could do in the same seconds.

    (real tokens x flops_per_token + trained tokens x flops_per_trained_token) / (seconds x devices x peak_flops), of the
    warm steps, each with the constants of its session (lib.model.flops says what they count). None without a known peak.
    """
    asked = possible = 0.0
    sessions = {e["session"]: e for e in entries if e["event"] == "session"}
    for line in _warm(entries):
        of = sessions[line["session"]]
        asked += line["tokens"] * of.get("flops_per_token", 0) + line["trained"] * of.get(
            "flops_per_trained_token", 0
        )
        possible += line["seconds"] * of.get("devices", 1) * of.get("peak_flops", 0)
    return asked / possible if possible else None


def _of_last_machine(
    entries: list[dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]], list[str]]:
    """The last session that trained, or began; the lines of all sessions on as many cards of that kind; the names of other machines."""
    starts = {e["session"]: e for e in entries if e["event"] == "session"}
    trained = {e["session"] for e in entries if e["event"] == "step"}
    machine = {
        n: (s.get("devices"), s.get("device"))
        for n, s in starts.items()
        if n in trained or not trained
    }
    if not machine:
        return {}, entries, []
    last = machine[max(machine)]
    others = sorted(
        {f"{devices} x {name}" for devices, name in machine.values() if (devices, name) != last}
    )
    return starts[max(machine)], [e for e in entries if machine.get(e["session"]) == last], others


def summary(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The `train` section of results.json: losses in nats a trained token, rates over the steps that really ran.

    loss_mean weighs each step once; loss_first and loss_last are means over the first and last tenth (at least one
    logged line), since one step of 16 rows is noisy. Rates count real tokens, not padding, and time inside steps, without
    the first logged line of a session; those `_with_warm_up` count that line too, and what compiling took. Rates and memory
    are of the sessions on the machine that the last step ran on: a mean over a T4 and an H100 belongs to neither.
    The held-out losses' 95 % intervals are over its rows. best_step is the one whose weights early stopping kept, earlier_devices are
    the other machines; each only where there is one.
    """
    passed, best, every = (
        steps(entries),
        kept(entries, "best"),
        [e for e in entries if e["event"] == "step"],
    )
    evals = {e["when"]: e["eval_loss"] for e in kept(entries, "eval")}
    tenth = max(1, len(passed) // 10)
    start, alike, others = _of_last_machine(entries)
    here, warm = [e for e in alike if e["event"] == "step"], _warm(alike)
    compiling, compiling_here = (
        sum(e["seconds"] for e in part if e["event"] == "compiled") for part in (entries, alike)
    )

    def mean(part: list[dict[str, Any]]) -> float | None:
        return (
            sum(e["loss"] * e["steps"] for e in part) / sum(e["steps"] for e in part)
            if part
            else None
        )

    def rate(part: list[dict[str, Any]], what: str, more: float = 0.0) -> float | None:
        time = sum(e["seconds"] for e in part) + more
        return sum(e[what] for e in part) / time if time else None

    return {
        "steps": passed[-1]["step"] if passed else 0,
        "epochs": passed[-1]["epoch"] if passed else 0.0,
        "sessions": len({e["session"] for e in entries if e["event"] == "session"}),
        "steps_repeated": sum(e["steps"] for e in every) - sum(e["steps"] for e in passed),
        "loss_first": mean(passed[:tenth]),
        "loss_last": mean(passed[-tenth:]),
        "loss_mean": mean(passed),
        "eval_loss_before": evals.get("before"),
        "eval_loss_after": evals.get("after"),
        **{
            f"eval_loss_{e['when']}_ci95": e["ci95"]
            for e in kept(entries, "eval")
            if e["when"] != "during" and "ci95" in e
        },
        "samples_per_second": rate(warm, "rows"),
        "tokens_per_second": rate(warm, "tokens"),
        "samples_per_second_with_warm_up": rate(here, "rows", compiling_here),
        "tokens_per_second_with_warm_up": rate(here, "tokens", compiling_here),
        "compile_seconds": round(compiling, 3),
        "padding_share": 1 - sum(e["tokens"] for e in every) / sum(e["padded"] for e in every)
        if every
        else None,
        "flops_utilisation": utilisation(alike),
        "device": start.get("device"),
        "devices": start.get("devices"),
        **({"earlier_devices": others} if others else {}),
        "trainable_parameters": start.get("trainable_parameters"),
        "total_parameters": start.get("total_parameters"),
        "peak_memory_gib": max((e["memory_gib"] for e in here), default=None),
        "memory_of": start.get("memory_of"),
        **({"best_step": best[-1]["step"]} if best else {}),
        "seconds": round(sum(e["seconds"] for e in every), 3),
    }
