"""The ledger: numbers stay right after kills and resumes, where transformers' own are off by orders of magnitude.

python -m pytest tests/record/test_ledger.py
"""

import json

import pytest

from lib.common.errors import UserError
from lib.record import ledger


def line(session, step, loss=2.0, seconds=1.0, **more):
    return {
        "event": "step",
        "session": session,
        "step": step,
        "steps": 1,
        "epoch": step / 100,
        "loss": loss,
        "tokens": 100,
        "padded": 125,
        "trained": 60,
        "rows": 16,
        "seconds": seconds,
        "lr": 1e-4,
        "grad_norm": 1.0,
        "memory_gib": 1.5,
        **more,
    }


def start(session, step=0):
    return {
        "event": "session",
        "session": session,
        "start_step": step,
        "trainable_parameters": 10,
        "total_parameters": 100,
        "memory_of": "process",
    }


def test_a_run_resumed_near_its_end_keeps_true_numbers():
    entries = [
        start(1),
        *(line(1, n) for n in range(1, 97)),
        start(2, 96),
        *(line(2, n) for n in range(97, 101)),
    ]
    found = ledger.summarise(entries)
    assert (found["steps"], found["sessions"], found["steps_repeated"]) == (100, 2, 0)
    assert found["loss_mean"] == pytest.approx(2.0)
    assert found["samples_per_second"] == pytest.approx(16.0)
    assert found["padding_share"] == pytest.approx(0.2)
    # the arithmetic of transformers 5.17's TrainOutput on the same resume: last session's loss over all steps, all samples over its seconds
    assert found["loss_mean"] / 20 > 4 * 2.0 / 100
    assert found["samples_per_second"] * 20 < 1600 / 4.0


def test_a_flipped_bit_in_any_byte_of_a_line_is_seen_or_changes_no_number(tmp_path):
    path = tmp_path / "metrics.jsonl"
    ledger.Ledger(path).write("step", step=1, steps=1, loss=2.0625, lr=1e-4)
    sound, (entry,) = path.read_bytes(), ledger.read_ledger(path)
    for at in range(len(sound) - 1):
        for bit in range(8):
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :])
            try:
                found = ledger.read_ledger(path)
            except UserError:
                continue
            numbers = [{k: v for k, v in e.items() if k in entry} for e in found]
            assert numbers in ([entry], []), f"byte {at}, bit {bit}"
    assert entry == {
        "event": "step",
        "session": 1,
        "step": 1,
        "steps": 1,
        "loss": 2.0625,
        "lr": 1e-4,
    }


def test_lines_lost_at_a_lines_end_are_seen_when_a_session_resumes(tmp_path):
    path = tmp_path / "metrics.jsonl"
    book = ledger.Ledger(path)
    book.write("session", start_step=0)
    for n in range(1, 6):
        book.write("step", step=n, steps=1, loss=2.0)
    book.require_steps(3)
    book.require_steps(5)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    ledger.Ledger(path).require_steps(3)
    with pytest.raises(UserError, match="only 3 of the 5 steps"):
        ledger.Ledger(path).require_steps(5)


def test_steps_run_twice_after_a_kill_count_once_and_the_last_value_wins():
    entries = [
        start(1),
        line(1, 1, 5.0),
        line(1, 2, 4.0),
        line(1, 3, 3.0),
        start(2, 1),
        line(2, 2, 40.0),
        line(2, 3, 30.0),
    ]
    found = ledger.summarise(entries)
    assert found["steps_repeated"] == 2
    assert found["loss_mean"] == pytest.approx((5 + 40 + 30) / 3)
    assert found["seconds"] == 5.0, "the time of repeated steps was spent all the same"


def test_a_run_continued_on_another_machine_names_the_last_and_its_rates():
    """Losses are over all steps, but rates and memory over a T4 and an H100 together would describe neither."""

    def on(session, step, devices, device, rate):
        return {
            **start(session, step),
            "devices": devices,
            "device": device,
            "flops_per_token": 1e9,
            "flops_per_trained_token": 0.0,
            "peak_flops": rate,
        }

    entries = [
        on(1, 0, 1, "T4", 1e12),
        *(line(1, n, seconds=8.0, memory_gib=9.0) for n in range(1, 5)),
        {"event": "compiled", "session": 2, "seconds": 90.0},
        on(2, 4, 1, "H100", 1e13),
        *(line(2, n) for n in range(5, 9)),
        on(3, 8, 2, "H100", 1e13),
        *(line(3, n, seconds=0.5) for n in range(9, 11)),
        on(4, 10, 1, "H100", 1e13),
        *(line(4, n) for n in range(11, 13)),
    ]
    found = ledger.summarise(entries)
    assert (found["device"], found["devices"], found["earlier_devices"]) == (
        "H100",
        1,
        ["1 x T4", "2 x H100"],
    )
    assert found["samples_per_second"] == pytest.approx(16.0)
    assert found["samples_per_second_with_warm_up"] == pytest.approx(6 * 16 / (6 + 90))
    assert (found["peak_memory_gib"], found["flops_utilisation"]) == (
        1.5,
        pytest.approx(100 * 1e9 / 1e13),
    )
    assert (found["steps"], found["sessions"], found["seconds"], found["compile_seconds"]) == (
        12,
        4,
        4 * 8 + 4 + 1 + 2,
        90.0,
    )
    nothing_left = ledger.summarise([*entries, on(5, 12, 8, "B200", 1e15)])
    assert nothing_left == {**found, "sessions": 5}, (
        "a session that found all steps done has no rates"
    )


def test_a_line_of_several_steps_weighs_as_many():
    found = ledger.summarise(
        [start(1), line(1, 10, loss=1.0, steps=10), line(1, 12, loss=4.0, steps=2)]
    )
    assert found["loss_mean"] == pytest.approx((10 * 1.0 + 2 * 4.0) / 12)


def test_lines_past_the_point_of_resume_are_replaced_even_on_other_steps():
    entries = [
        start(1),
        line(1, 10, loss=1.0, steps=10),
        line(1, 13, loss=9.0, steps=3),
        start(2, 10),
        line(2, 20, loss=2.0, steps=10),
    ]
    found = ledger.summarise(entries)
    assert found["loss_mean"] == pytest.approx(1.5)
    assert found["steps_repeated"] == 3


def test_evals_past_the_point_of_resume_are_not_built_on(tmp_path):
    """This holds for any later steps: the earlier ones did not lead to the present weights."""
    book = ledger.Ledger(tmp_path / "metrics.jsonl")
    for event, step, loss in (
        ("session", 0, 0),
        ("before", 0, 5.0),
        ("during", 2, 4.0),
        ("during", 4, 3.0),
        ("during", 6, 2.0),
        ("session", 3, 0),
        ("during", 5, 3.5),
        ("during", 7, 3.2),
    ):
        if event == "session":
            book.write("session", start_step=step)
        else:
            book.write("eval", when=event, step=step, eval_loss=loss)
    assert list(book.eval_losses(7).items()) == [
        (("before", 0), 5.0),
        (("during", 2), 4.0),
        (("during", 5), 3.5),
        (("during", 7), 3.2),
    ]
    assert list(book.eval_losses(5)) == [("before", 0), ("during", 2), ("during", 5)]


def test_an_eval_measured_again_has_its_last_value(tmp_path):
    book = ledger.Ledger(tmp_path / "metrics.jsonl")
    for step, loss in ((2, 4.0), (4, 3.0)):
        book.write("eval", when="during", step=step, eval_loss=loss)
    book.write("session", start_step=2)
    book.write("eval", when="during", step=4, eval_loss=3.5)
    assert book.eval_losses(4) == {("during", 2): 4.0, ("during", 4): 3.5}


def test_nothing_measured_is_none_not_zero():
    found = ledger.summarise([start(1)])
    assert found["loss_mean"] is None
    assert found["samples_per_second"] is None
    assert found["eval_loss_before"] is None


def test_write_read_and_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    book = ledger.Ledger(path)
    book.write("step", step=1)
    with path.open("a") as file:
        file.write('{"event": "step", "sess')
    assert [e["step"] for e in ledger.read_ledger(path)] == [1], "a torn line is no line"
    again = ledger.Ledger(path)
    again.write("step", step=2)
    assert [(e["session"], e["step"]) for e in ledger.read_ledger(path)] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("bad", ["{broken", "[1]", '{"event": "step"}', "\x00\x00"])
def test_damage_inside_is_an_error_with_its_line(tmp_path, bad):
    path = tmp_path / "metrics.jsonl"
    good = json.dumps({"event": "step", "session": 1, "step": 1})
    path.write_text(f"{good}\n{bad}\n{good}\n")
    with pytest.raises(UserError, match="line 2 is damaged"):
        ledger.read_ledger(path)


def test_not_a_number_never_gets_in(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        ledger.Ledger(tmp_path / "m.jsonl").write("step", loss=float("nan"))
