"""Which changed parameters a training that has begun can continue with."""

from lib.params.schema import FIELDS, Params

MICRO_BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps")
LENGTH = ("num_train_epochs", "max_steps")


def find_continuable(old: Params, new: Params) -> set[str]:
    """Return the changed parameters of training with which it can go on from its checkpoint.

    They are those of the micro-batch, if a step keeps its rows and nothing else depends on them,
    and those of the length, if the training becomes longer.
    """
    continuable: set[str] = set()
    if is_same_step(old, new):
        continuable.update(MICRO_BATCH)
    if is_longer(old.num_train_epochs, old.max_steps, new.num_train_epochs, new.max_steps):
        continuable.update(LENGTH)
    changed = {key for key in continuable if getattr(old, key) != getattr(new, key)}
    return changed


def count_rows(job: Params) -> int:
    """Return the rows of an optimizer step; `auto` keeps those of the default micro-batch."""
    rows = job.per_device_train_batch_size
    if rows == "auto":
        rows = FIELDS["per_device_train_batch_size"].default
    assert isinstance(rows, int)
    return rows * job.gradient_accumulation_steps


def is_same_step(old: Params, new: Params) -> bool:
    """Tell whether another micro-batch changes only the rounding of a step."""
    return count_rows(old) == count_rows(new) and not depends_on_micro_batch(new)


def depends_on_micro_batch(job: Params) -> bool:
    """Tell whether the order of rows, or the random numbers, depend on the micro-batch."""
    return bool(job.packing or job.lora_dropout or job.neftune_noise_alpha)


def is_longer(old_epochs: float, old_steps: int, epochs: float, steps: int) -> bool:
    """Tell whether a training becomes longer, by num_train_epochs or by max_steps.

    From one of them to the other, the rows would have to be counted, so that is not said here.
    """
    if old_steps > 0 and steps > 0:
        return steps > old_steps
    return old_steps <= 0 and steps <= 0 and epochs > old_epochs
