"""Mark the failed cell in an executed notebook whose kernel or runner died."""

from typing import Any


def mark_failed(notebook: dict[str, Any], name: str, reason: str) -> int | None:
    """Put an error into the first code cell that did not complete; return its number from 1.

    Return None if all cells completed. This is for ends that papermill itself does not notice: a
    kernel or a runner that died, a timeout, a signal.
    """
    import nbformat  # slow to import, and needed only when something died

    error = nbformat.v4.new_output(
        "error", ename=name, evalue=reason, traceback=[f"{name}: {reason}"]
    )
    for number, cell in enumerate(notebook["cells"], 1):
        # the banners that papermill adds have no state
        state = cell["metadata"].get("papermill", {"status": "completed"})
        if state["status"] in ("pending", "running") and cell["cell_type"] == "code":
            state.update(status="failed", exception=True)
            notebook["metadata"]["papermill"]["exception"] = True
            # an existing error is nbclient's KeyboardInterrupt, from shutting down
            outputs = [o for o in cell["outputs"] if o["output_type"] != "error"]
            cell["outputs"] = [*outputs, error]
        if state["status"] == "failed":
            return number
        state["status"] = "completed"  # a text cell, which cannot fail
    return None
