"""metrics.jsonl: the append-only ledger of training, and every headline number computed from it.

Each line is a JSON object; `event` is session, compiled, step, eval, forgetting or best.
transformers' TrainOutput is never used: after a resume it divides the loss of a few steps by all
steps, and all samples by the last session's seconds.
"""

import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from lib.common.errors import UserError
from lib.record.schema import Lengthening, TrainResults

Entry = dict[str, Any]  # one line


class Ledger:
    """The open ledger of a session; a line is on disk when `write` returns."""

    def __init__(self, path: pathlib.Path) -> None:
        _cut_torn_line(path)
        self.path = path
        self.session = max((entry["session"] for entry in read_ledger(path)), default=0) + 1

    def write(self, event: str, **values: Any) -> None:
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_format_line({"event": event, "session": self.session, **values}))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"the ledger `{self.path.name}` cannot be written: {error.strerror}. Training "
                f"stops, since its numbers would be lost. Free some disk space; the same command "
                f"then continues from the last checkpoint."
            ) from None

    def eval_losses(self, step: int, event: str = "eval") -> dict[tuple[str, int], float]:
        """Return the losses of an event by (when, step) up to `step`, where a session resumes."""
        evals = keep_valid(self._resumed_at(step), event)
        return {(entry["when"], entry["step"]): entry["eval_loss"] for entry in evals}

    def require_steps(self, step: int) -> None:
        """Raise UserError unless every step up to `step`, where a session resumes, has its line.

        A file that was cut off at the end of a line looks complete.
        """
        recorded = sum(entry["steps"] for entry in valid_steps(self._resumed_at(step)))
        if recorded != step:
            raise UserError(
                f"ledger `{self.path.name}` has only {recorded} of the {step} steps up to the "
                f"checkpoint: lines are lost, and a mean over the others would be wrong. Restore "
                f"the file from a copy, or train again with FORCE=1."
            )

    def step_losses(self) -> list[float]:
        """Return the loss of each step that led to the present weights."""
        entries = valid_steps(read_ledger(self.path))
        return [entry["loss"] for entry in entries for _ in range(entry["steps"])]

    def planned_steps(self) -> int:
        """Return the steps of the whole training, as the session with the last steps planned it."""
        entries = read_ledger(self.path)
        starts = {e["session"]: e for e in entries if e["event"] == "session"}
        steps = valid_steps(entries)
        return starts[steps[-1]["session"]].get("total_steps", 0) if steps else 0

    def _resumed_at(self, step: int) -> list[Entry]:
        """Return all lines, and the start of a session that resumes at `step`."""
        return [*read_ledger(self.path), {"event": "session", "start_step": step}]


# --------------------------------------------------------------------------------------------------
# lines on disk


def _format_line(entry: Entry) -> str:
    """Return an entry as a line that ends in a checksum of the entry.

    Without one, a flipped digit would still be valid JSON with another loss.
    """
    checksum = zlib.crc32(json.dumps(entry).encode())
    return json.dumps({**entry, "crc": f"{checksum:08x}"}, allow_nan=False) + "\n"


def _cut_torn_line(path: pathlib.Path) -> None:
    """Cut off a last line without a newline, whose writing was interrupted."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def read_ledger(path: pathlib.Path) -> list[Entry]:
    """Return all entries of a ledger, or [] if there is no file.

    A torn last line is skipped; raise UserError with the line's number on any other damage.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise UserError(f"ledger `{path}` is a folder; expected a file. Move it away.")
    lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is torn or empty
    return [_parse_line(line, number, path.name) for number, line in enumerate(lines, 1)]


def _parse_line(line: bytes, number: int, name: str) -> Entry:
    try:
        entry = json.loads(line)
        checksum = entry.pop("crc", None)  # lines of an earlier version have none
        is_complete = "session" in entry and "event" in entry
        if is_complete and (not checksum or _format_line(entry) == f"{line.decode()}\n"):
            return entry
    except (ValueError, AttributeError, TypeError):  # not JSON, or not an object
        pass
    raise UserError(
        f"ledger `{name}`, line {number} is damaged: {line[:80]!r}. Its numbers cannot be "
        f"trusted; train again with FORCE=1."
    )


# --------------------------------------------------------------------------------------------------
# which lines count


def keep_valid(entries: Iterable[Entry], event: str) -> list[Entry]:
    """Return the entries of one kind that led to the present weights, in order.

    Entries of a session after the step from which a later session resumed are left out, whether or
    not the later session repeated those steps.
    """
    valid: list[Entry] = []
    for entry in entries:
        if entry["event"] == "session":
            valid = [earlier for earlier in valid if earlier["step"] <= entry["start_step"]]
        elif entry["event"] == event:
            valid.append(entry)
    return valid


def valid_steps(entries: Iterable[Entry]) -> list[Entry]:
    """Return the logged steps that led to the present weights."""
    return keep_valid(entries, "step")


def _all_steps(entries: Iterable[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry["event"] == "step"]


def _without_warm_up(entries: Iterable[Entry]) -> list[Entry]:
    """Return the step entries without the first of each session, or all if that leaves none.

    A session's first step loads kernels and allocates memory for the first time.
    """
    steps = _all_steps(entries)
    sessions: set[int] = set()
    warm = []
    for entry in steps:
        if entry["session"] in sessions:
            warm.append(entry)
        sessions.add(entry["session"])
    return warm or steps


def _on_last_machine(entries: list[Entry]) -> tuple[Entry, list[Entry], list[str]]:
    """Return the last machine's session, its entries, and the names of the other machines.

    The session is the last that trained, or that began if none did. The entries are those of all
    sessions on the same number of cards of the same kind.
    """
    starts = {entry["session"]: entry for entry in entries if entry["event"] == "session"}
    trained = {entry["session"] for entry in _all_steps(entries)}
    machines = {
        session: (start.get("devices"), start.get("device"))
        for session, start in starts.items()
        if session in trained or not trained
    }
    if not machines:
        return {}, entries, []
    last_session = max(machines)
    last = machines[last_session]
    others = {f"{count} x {name}" for count, name in machines.values() if (count, name) != last}
    alike = [entry for entry in entries if machines.get(entry["session"]) == last]
    return starts[last_session], alike, sorted(others)


def list_lengthenings(entries: Sequence[Entry]) -> list[Lengthening]:
    """List where a training went on to more steps than it was planned for, with its rates there.

    The learning rate follows the schedule of the steps planned at the time, so it has a bend there.
    """
    planned = {
        entry["session"]: entry["total_steps"]
        for entry in entries
        if entry["event"] == "session" and "total_steps" in entry
    }
    found: list[Lengthening] = []
    steps = valid_steps(entries)
    for before, after in itertools.pairwise(steps):
        old, new = (planned.get(entry["session"]) for entry in (before, after))
        if old is not None and new is not None and new > old:
            found.append(
                {
                    "after_step": before["step"],
                    "planned": old,
                    "then_planned": new,
                    "rate_before": before["lr"],
                    "rate_after": after["lr"],
                }
            )
    return found


# --------------------------------------------------------------------------------------------------
# numbers


def flops_utilisation(entries: Sequence[Entry]) -> float | None:
    """Return model FLOPs utilisation: operations needed over those possible in the same time.

    (real tokens x flops_per_token + trained tokens x flops_per_trained_token)
    / (seconds x devices x peak_flops), over the steps after warm-up, each with the constants of its
    session (lib/training/checks.py says what they count). Return None without a known peak.
    """
    needed = possible = 0.0
    sessions = {entry["session"]: entry for entry in entries if entry["event"] == "session"}
    for step in _without_warm_up(entries):
        session = sessions[step["session"]]
        read = step["tokens"] * session.get("flops_per_token", 0)
        trained = step["trained"] * session.get("flops_per_trained_token", 0)
        needed += read + trained
        possible += step["seconds"] * session.get("devices", 1) * session.get("peak_flops", 0)
    return needed / possible if possible else None


def summarise(entries: list[Entry]) -> TrainResults:
    """Return the `train` section of results.json.

    Losses are in nats per trained token. loss_mean weighs each step once; loss_first and loss_last
    are means over the first and last tenth (at least one logged line), since one step is noisy.

    Rates count real tokens, not padding, and the time inside the steps that ran, without the first
    logged line of a session. Rates `_with_warm_up` include that line and the time of compiling.
    Rates and memory are those of sessions on the machine of the last step: a mean over a T4 and an
    H100 would describe neither.

    The 95 % intervals of held-out losses are over the held-out rows. best_step is the step whose
    weights early stopping kept, earlier_devices are the other machines, and lengthened is where the
    training was given more steps; all are optional.
    """
    ran = _all_steps(entries)
    valid = valid_steps(entries)
    best = keep_valid(entries, "best")
    tenth = max(1, len(valid) // 10)
    session, alike, other_machines = _on_last_machine(entries)
    ran_here, warm = _all_steps(alike), _without_warm_up(alike)
    compiling, compiling_here = _compile_seconds(entries), _compile_seconds(alike)
    lengthened = list_lengthenings(entries)
    padding = 1 - _sum(ran, "tokens") / _sum(ran, "padded") if ran else None
    begun = [entry for entry in entries if entry["event"] == "session" and not entry["start_step"]]
    start_from = begun[-1].get("start_from") if begun else None
    return {
        "steps": valid[-1]["step"] if valid else 0,
        "epochs": valid[-1]["epoch"] if valid else 0.0,
        "sessions": len({entry["session"] for entry in entries if entry["event"] == "session"}),
        "steps_repeated": _sum(ran, "steps") - _sum(valid, "steps"),
        "loss_first": _mean_loss(valid[:tenth]),
        "loss_last": _mean_loss(valid[-tenth:]),
        "loss_mean": _mean_loss(valid),
        "eval_loss_before": None,
        "eval_loss_after": None,
        **_held_out_losses(entries, "eval", "eval_loss"),  # type: ignore[typeddict-item]  # f-strings
        **_held_out_losses(entries, "forgetting", "forgetting_loss"),
        "samples_per_second": _rate(warm, "rows"),
        "tokens_per_second": _rate(warm, "tokens"),
        "samples_per_second_with_warm_up": _rate(ran_here, "rows", compiling_here),
        "tokens_per_second_with_warm_up": _rate(ran_here, "tokens", compiling_here),
        "compile_seconds": round(compiling, 3),
        "padding_share": padding,
        "flops_utilisation": flops_utilisation(alike),
        "device": session.get("device"),
        "devices": session.get("devices"),
        **({"earlier_devices": other_machines} if other_machines else {}),
        "trainable_parameters": session.get("trainable_parameters"),
        "total_parameters": session.get("total_parameters"),
        "peak_memory_gib": max((entry["memory_gib"] for entry in ran_here), default=None),
        "memory_of": session.get("memory_of"),
        **({"best_step": best[-1]["step"]} if best else {}),
        **({"lengthened": lengthened} if lengthened else {}),
        **({"start_from": start_from} if start_from else {}),
        "seconds": round(_sum(ran, "seconds"), 3),
    }


def _held_out_losses(entries: list[Entry], event: str, name: str) -> dict[str, Any]:
    """Return {name_before, name_after} and their intervals, as far as they were measured."""
    values = {}
    for entry in keep_valid(entries, event):
        if entry["when"] != "during":
            values[f"{name}_{entry['when']}"] = entry["eval_loss"]
            if "ci95" in entry:
                values[f"{name}_{entry['when']}_ci95"] = entry["ci95"]
    return values


def _sum(entries: Iterable[Entry], key: str) -> Any:
    return sum(entry[key] for entry in entries)


def _compile_seconds(entries: Iterable[Entry]) -> float:
    return sum(entry["seconds"] for entry in entries if entry["event"] == "compiled")


def _mean_loss(steps: list[Entry]) -> float | None:
    """Return the mean loss over steps; a logged line may stand for several."""
    if not steps:
        return None
    return sum(entry["loss"] * entry["steps"] for entry in steps) / _sum(steps, "steps")


def _rate(steps: list[Entry], what: str, more_seconds: float = 0.0) -> float | None:
    seconds = _sum(steps, "seconds") + more_seconds
    return _sum(steps, what) / seconds if seconds else None
