"""Find out which columns of each weight matter, for the types below 8 bits.

    origin = importance.prepare(run, job, base)
    gguf_export.write_drafts(origin.merged, ggufs, header, origin.matrix)

It is measured as llama.cpp's llama-imatrix does, on the inputs of every layer's weights, but on
rows that this run trains on. A held-out row among them would make the parity of the file look
better than it is, so there is none, and the file of the matrix names its rows by their hashes.
"""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from lib.common import files, locations
from lib.common.errors import UserError
from lib.common.gguf_types import FILE_TYPES
from lib.common.progress import progress_bar
from lib.data import splits
from lib.export import gguf_plan, servers
from lib.export.few_bits import imatrix
from lib.export.few_bits.imatrix import AUTO, NONE, Imatrix
from lib.export.gguf_file import Tensor
from lib.model.load import load_merged
from lib.model.shards import read_text_config
from lib.params import Params
from lib.record.run_record import Run
from lib.training import loss

ROWS, TOKENS = 200, 1 << 15  # how many are read, whichever comes first


class Origin(NamedTuple):
    """What GGUF files are made from."""

    merged: Path
    base: Path | None = None  # that was tuned
    matrix: Imatrix | None = None  # the importance by which types below 8 bits are packed
    note: dict[str, Any] = {}  # the record of that for results.json


def prepare(run: Run, job: Params, base: Path) -> Origin:
    """Return a run's merged/ and base, with the importance matrix that the job asks for.

    There is none if the job wants none, or no file has a type that it changes. `auto` measures one
    and keeps it as gguf/NAME.imatrix. Raise UserError for a file that is not of this model, or that
    was measured on a row that is held out.
    """
    merged = run.folder / "merged"
    types = [kind for kind in job.gguf_types if FILE_TYPES[kind].is_weighted]
    if job.imatrix == NONE:
        return Origin(merged, base, None, {"from": "none: imatrix is none"})
    if not types:
        return Origin(merged, base, None, {"from": "none: no type below 8 bits"})
    begin = time.monotonic()
    data = run.folder / "data"
    path = locations.local_path(job.imatrix)
    if job.imatrix == AUTO:
        path = run.folder / "gguf" / f"{run.folder.name}.imatrix"
        path.parent.mkdir(exist_ok=True)
        imatrix.write(path, measure(data, merged, job.seed, path.name))
    matrix = imatrix.read(path)
    if job.imatrix != AUTO:  # llama-imatrix notes the path of its text, and the GGUF is shared
        matrix = matrix._replace(dataset=servers.shared_name(matrix.dataset))
    imatrix.require_own(matrix, merged)
    require_no_held_out(matrix, data)
    note = {
        "from": "training rows of this run" if job.imatrix == AUTO else matrix.name,
        "types": types,
        "dataset": matrix.dataset,
        "entries": len(matrix.sums),
        "chunks": matrix.chunks,
        "tokens": int(max(matrix.counts.values())),
        "rows_recorded": len(matrix.rows),
        "sha256": files.sha256(path),
        "seconds": round(time.monotonic() - begin, 1),
    }
    return Origin(merged, base, matrix, note)


def require_no_held_out(matrix: Imatrix, data_folder: Path) -> None:
    """Raise UserError if a recorded row of a matrix is a held-out one of this run."""
    shared = set(matrix.rows) & _hash_held_out(data_folder) if matrix.rows else set()
    if shared:
        raise UserError(
            f"The imatrix file {matrix.name} was measured on {len(matrix.rows)} rows, of which "
            f"{len(shared)} are held out in this run: its files would look better than they are. "
            f"Expected training rows only. {imatrix.HOW}"
        )


# --------------------------------------------------------------------------------------------------
# measuring


def measure(data_folder: Path, folder: Path, seed: int, name: str) -> Imatrix:
    """Sum the squared inputs of a folder's weights over some of the run's training rows."""
    rows = draw_rows(data_folder, seed)
    net = load_merged(folder)
    config = read_text_config(folder)
    sums, counts = _sum_squares(net, rows, config)
    numbers = {key: total.cpu().numpy().astype(np.float32) for key, total in sums.items()}
    card = files.read_json(data_folder / "data_card.json", "The data card")
    names = [servers.shared_name(source["dataset"]) for source in card["sources"]]
    return Imatrix(
        numbers,
        counts,
        dataset=f"{len(rows)} training rows of {', '.join(names)}",
        chunks=len(rows),  # a row is a chunk
        chunk_size=max(map(len, rows)),
        name=name,
        rows=[_hash_row(ids) for ids in rows],
    )


def draw_rows(data_folder: Path, seed: int) -> list[list[int]]:
    """Draw ROWS training rows by a seed, or as many as have TOKENS tokens, as token ids.

    A training row whose tokens are those of a held-out one is left out. Raise UserError if there is
    no row.
    """
    held_out = _hash_held_out(data_folder)
    train = splits.load_split(data_folder, "train")
    rows: list[list[int]] = []
    tokens = 0
    for number in np.random.default_rng(seed).permutation(len(train)).tolist():
        ids = train[number]["input_ids"]
        if _hash_row(ids) in held_out:
            continue
        tokens += len(ids)
        if rows and tokens > TOKENS:
            break
        rows.append(ids)
        if len(rows) == ROWS:
            break
    if not rows:
        raise UserError(
            f"{files.format_path(data_folder)} has no training row to measure the importance of "
            f"weights on. Prepare the data again, or set imatrix: none."
        )
    return rows


def _hash_row(ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]


def _hash_held_out(data_folder: Path) -> set[str]:
    sides = [side for side in splits.SIDES if side != "train" and (data_folder / side).is_dir()]
    return {
        _hash_row(ids)
        for side in sides
        for ids in splits.load_split(data_folder, side)["input_ids"][:]
    }


@torch.inference_mode()
def _sum_squares(
    net: Any, rows: list[list[int]], config: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the sum of each input's squares and the count of tokens, by GGUF tensor."""
    body, _, _ = loss.split_model(net)
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, float] = {}
    hooks = [
        module.register_forward_pre_hook(_add_squares(name, sums, counts))
        for name, module in _name_layers(net, config).items()
    ]
    try:
        for ids in progress_bar("importance of columns", rows, unit="row"):
            body(input_ids=torch.tensor([ids], device=net.device), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return sums, counts


def _add_squares(
    name: str, sums: dict[str, torch.Tensor], counts: dict[str, float]
) -> Callable[[Any, Any], None]:
    def add(_: Any, inputs: Any) -> None:
        flat = inputs[0].detach().flatten(0, -2)
        squares = flat.float().square().sum(0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares
        counts[name] = counts.get(name, 0.0) + len(flat)

    return add


def _name_layers(net: Any, config: dict[str, Any]) -> dict[str, Any]:
    """Return the linear layers whose weights are packed, by the GGUF names of these."""
    linear = {
        f"{name}.weight": module
        for name, module in net.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    architecture = gguf_plan.architecture_of(config["model_type"])
    names = gguf_plan.map_names(linear, config["num_hidden_layers"], architecture)
    return {
        new: linear[name]
        for name, new in names.items()
        if new.startswith("blk.")
        and gguf_plan.is_packable(Tensor(new, tuple(linear[name].weight.shape[::-1]), "BF16"))
    }
