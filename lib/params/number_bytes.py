"""How many bytes the numbers that a job trains take, on the disk and while they are trained."""

MASTER = 4  # a weight or a gradient in float32
# what a process on a processor takes besides: libraries, logits, the output layer's gradient,
# activations; 2.5 GiB were measured with the demo's base (params/cpu-full.yaml)
WORKING = 5 * 2**29


def moments(optim: str) -> int:
    """Return the bytes that AdamW's two moments take per number."""
    return 2 if optim == "adamw_8bit" else 8


def checkpoint(numbers: int, optim: str) -> int:
    """Return the size of a checkpoint: float32 weights and the optimizer's moments."""
    return numbers * (MASTER + moments(optim))


def masters(numbers: int, optim: str) -> int:
    """Return the memory of float32 weights and gradients with the optimizer's moments."""
    return numbers * (2 * MASTER + moments(optim))


def full_training(numbers: int, optim: str, live_bytes: int = 2) -> int:
    """Return the memory that full fine-tuning takes, without activations.

    Besides the masters, the model has its own weights and gradients, of `live_bytes` each.
    """
    return masters(numbers, optim) + numbers * 2 * live_bytes
