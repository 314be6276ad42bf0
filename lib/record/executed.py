"""An executed notebook whose kernel or runner died: made to say so."""

from typing import Any


def mark_failed(notebook: dict[str, Any], name: str, reason: str) -> int | None:
    """Put an error into the first code cell that did not complete; returns its number from 1, None if all did.

    For an end that papermill itself does not see: a kernel or a runner that died, a timeout, a signal.
    """
    import nbformat

    error = nbformat.v4.new_output(
        "error", ename=name, evalue=reason, traceback=[f"{name}: {reason}"]
    )
    for number, cell in enumerate(notebook["cells"], 1):
        state = cell["metadata"].get("papermill", {"status": "completed"})  # its banners have none
        if state["status"] in ("pending", "running") and cell["cell_type"] == "code":
            state.update(status="failed", exception=True)
            notebook["metadata"]["papermill"]["exception"] = True
            # another error there is the KeyboardInterrupt of nbclient shutting the kernel down
            cell["outputs"] = [o for o in cell["outputs"] if o["output_type"] != "error"] + [error]
        if state["status"] == "failed":
            return number
        state["status"] = "completed"  # text before that cell: it cannot fail
    return None
