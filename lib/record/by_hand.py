"""What a notebook's kernel knows besides its variables when somebody runs the cells by hand."""

import ast
import functools
import gc
import sys
from collections.abc import Collection, Sequence
from typing import Any

from lib import params
from lib.common.errors import UserError
from lib.common.redact import redacted
from lib.record.run_record import Run

LIBRARIES = ("datasets", "lib", "peft", "torch", "transformers", "unsloth")
# what Python keeps of the last error: its frames hold the model and the batch
LAST_ERROR = ("last_exc", "last_traceback", "last_type", "last_value")


def forget_earlier_pass(namespace: dict[str, Any]) -> None:
    """Drop the model, rows and run that an earlier pass through the cells left in the variables.

    Otherwise two models are in memory as soon as the next is loaded, and a later cell could use the
    earlier run. Variables with other values stay.
    """
    for name, value in list(namespace.items()):
        if type(value).__module__.partition(".")[0] in LIBRARIES:
            del namespace[name]
    for name in LAST_ERROR:
        vars(sys).pop(name, None)
    gc.collect()


def note_errors(run: Run, stage: str) -> None:
    """Record a cell's error in the stage's attempt, until that cell succeeds or the attempt ends.

    The attempt stays open, since its cells can be run again. Outside IPython nothing is noted.
    """
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None:
        return
    for earlier in [note for note in shell.events.callbacks["post_run_cell"] if _is_note(note)]:
        shell.events.unregister("post_run_cell", earlier)
    shell.events.register("post_run_cell", functools.partial(_note_error, run, stage, []))


def _is_note(callback: Any) -> bool:
    return getattr(callback, "func", None) is _note_error


def _note_error(run: Run, stage: str, failed: list[str], result: Any) -> None:
    """Note what a cell's `result` means for the attempt; `failed` has the cell that failed."""
    entry = run.stage(stage)
    cell = getattr(result.info, "cell_id", None) or result.info.raw_cell
    if entry["status"] != "running":
        return
    attempt, error = entry["attempts"][-1], result.error_in_exec
    if error is not None:
        failed[:] = [cell]
        attempt["stopped"] = redacted(f"{type(error).__name__}: {error}")
        run.save()
    elif cell in failed and attempt.pop("stopped", ""):
        run.save()


def read_given(namespace: dict[str, Any], own: Collection[str]) -> dict[str, Any]:
    """Return the parameters that the parameters cell, or a cell run after it, sets.

    A parameter whose line was removed from the cell keeps its variable in the kernel, and is not
    among them. `own` are further names that the cell may set. Raise UserError for any other name
    there, unless the cell itself uses it: a misspelt parameter would change nothing.
    """
    cells = [_parse(source) for source in namespace.get("In", [])]
    begins = [n for n, cell in enumerate(cells) if "params_file" in _names(cell, ast.Store)]
    if not begins:  # not in a kernel, or without its history
        return {key: _as_flag(key, namespace[key]) for key in params.FIELDS if key in namespace}
    since = cells[begins[-1] :]
    injected = [
        cell
        for cell, text in zip(since, namespace["In"][begins[-1] :], strict=True)
        if text.startswith("# Parameters\n")
    ]  # by papermill, from -p and -f
    _refuse_unknown([since[0], *injected], own)
    names = {name for cell in since for name in _names(cell, ast.Store)}
    set_here = [key for key in params.FIELDS if key in names and key in namespace]
    return {key: _as_flag(key, namespace[key]) for key in set_here}


def _as_flag(key: str, value: Any) -> Any:
    """Return `true` and `false` of papermill's -p, which are texts, as flags."""
    is_flag = params.FIELDS[key].annotation is bool and isinstance(value, str)
    return {"true": True, "false": False}.get(value, value) if is_flag else value


def _refuse_unknown(cells: Sequence[ast.Module], own: Collection[str]) -> None:
    used = {name for cell in cells for name in _names(cell, ast.Load)}
    known = {*params.FIELDS, *own, *used}
    unknown = sorted({name for cell in cells for name in _names(cell, ast.Store)} - known)
    if unknown:
        lines = [
            f"  - unknown parameter `{name}`; {params.suggest_name(name, params.FIELDS)}"
            for name in unknown
        ]
        raise UserError("\n".join(["the notebook's parameters cell:", *lines]))


def _parse(source: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError:  # a cell with an error, or with magics
        return ast.Module(body=[], type_ignores=[])


def _names(cell: ast.Module, context: type[ast.expr_context]) -> set[str]:
    """Return the names that a cell sets (ast.Store) or uses (ast.Load)."""
    return {
        node.id
        for node in ast.walk(cell)
        if isinstance(node, ast.Name) and isinstance(node.ctx, context)
    }
