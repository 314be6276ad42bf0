"""The held-out loss as one number."""

from lib.training import evaluate


def measure_loss(net, rows, rows_at_once=8):
    """Return the mean loss in nats per trained token and their number; (None, 0) for no rows."""
    return evaluate.mean_loss(evaluate.measure_row_losses(net, rows, rows_at_once))
