"""Write the weights of full fine-tuning into a copy of the base, and read them back.

full_weights.write(base, run.folder / "weights", draft)
full_weights.verify(run.folder / "weights", base, run.folder / "merged")
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from lib.common import files
from lib.common.errors import UserError
from lib.export.merging import base_copy
from lib.model.shards import (
    EXTRA_SHARD,
    canonical_name,
    is_language,
    locate_tensors,
    read_header,
    read_text_config,
)
from lib.model.start import FULL_FILE
from lib.model.trained import OUTPUT

EMBEDDING = "embed_tokens.weight"
READ_AT_ONCE = 1 << 26  # bytes


class Place(NamedTuple):
    """Where a weight is in a file: its type, its shape, and its first and last byte."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def write(base: Path, weights: Path, out: Path) -> dict[str, Any]:
    """Copy the base with the trained weights in place of its own, each rounded once to its type.

    What was not trained (towers, K/V that transformers drops) is kept bit for bit. `out` gets its
    name once it is complete. Return counts, bytes and the largest change of a weight.
    """
    sources = _find_sources(base, weights)
    shards = locate_tensors(base)
    temporary = base_copy.begin(base, out, f"writing {len(sources)} trained weights into")
    path = weights / FULL_FILE
    shapes = {name: tuple(source.shape) for name, source in _read_places(path).items()}
    wanted = {name: shapes[source] for name, source in sources.items()}
    changes = []
    with safe_open(path, "pt") as file:

        def replace(name: str, rows: slice, weight: torch.Tensor) -> torch.Tensor:
            return file.get_slice(sources[name])[rows].float()

        for shard in sorted(set(shards.values())):
            copy = temporary / shard.name
            shutil.copyfile(shard, copy)
            changes += base_copy.change_weights(copy, wanted, replace)
    if not any(changes):
        shutil.rmtree(temporary)
        raise UserError(
            "The trained weights are exactly the base's once they are rounded to its precision. "
            "Train for more steps, or with a higher learning_rate."
        )
    files.replace_folder(temporary, out)
    return {
        "merged": len(changes),
        "tensors": len(shards),
        "largest_change": max(changes),
        "bytes": files.size_of(out),
    }


def _find_sources(base: Path, weights: Path) -> dict[str, str]:
    """Return {name in the base: name in the trained weights}; raise UserError where one is missing.

    Some files of a model with one table for embedding and output have that table twice; both become
    the trained one.
    """
    trained = _read_places(weights / FULL_FILE)
    sources = {name: canonical_name(name) for name in locate_tensors(base) if is_language(name)}
    if OUTPUT not in trained and read_text_config(base).get("tie_word_embeddings", True):
        sources |= {name: EMBEDDING for name, source in sources.items() if source == OUTPUT}
    sources = {name: source for name, source in sources.items() if source in trained}
    if lost := sorted(trained.keys() - set(sources.values())):
        raise UserError(
            f"The trained weights {files.format_path(weights)} do not belong to the base "
            f"{files.format_path(base)}, which lacks {len(lost)} of their {len(trained)} tensors, "
            f"for example {', '.join(lost[:3])}. Set base_model to the one that was trained."
        )
    return sources


def verify(weights: Path, base: Path, merged: Path) -> dict[str, int]:
    """Compare every tensor of merged/ with the trained weights, and all others with the base's.

    A trained one must be the float32 number rounded once, to the bit. Return how many tensors were
    compared with each. Raise UserError where one differs.
    """
    sources = _find_sources(base, weights)
    present = {
        name: place
        for path in sorted(set(locate_tensors(merged).values()))
        if path.name != EXTRA_SHARD
        for name, place in _read_places(path).items()
    }
    in_base = {
        name: place
        for path in sorted(set(locate_tensors(base).values()))
        for name, place in _read_places(path).items()
    }
    trained = _read_places(weights / FULL_FILE)
    wrong = sorted(in_base.keys() ^ present.keys())
    for name in in_base.keys() & present.keys():
        expected = trained[sources[name]] if name in sources else in_base[name]
        if not _is_rounded(present[name], expected, in_base[name].dtype):
            wrong.append(name)
    if wrong:
        raise UserError(
            f"{files.format_path(merged)} is not what was trained: {len(wrong)} of {len(in_base)} "
            f"tensors differ, for example {', '.join(wrong[:3])}. Look at the disk, and run the "
            f"export again."
        )
    return {"as trained": len(sources), "as in the base": len(in_base) - len(sources)}


def _is_rounded(place: Place, expected: Place, dtype: str) -> bool:
    """Tell whether a tensor has the expected numbers, rounded to `dtype`, and their shape."""
    if (place.dtype, place.shape) != (dtype, expected.shape):
        return False
    numbers = READ_AT_ONCE // 4
    return all(
        torch.equal(ours.view(torch.uint8), theirs.to(ours.dtype).view(torch.uint8))
        for ours, theirs in zip(_pieces(place, numbers), _pieces(expected, numbers), strict=True)
    )


def _pieces(place: Place, numbers: int) -> Iterator[torch.Tensor]:
    """Yield a tensor's numbers, so many at a time."""
    dtype = base_copy.DTYPES.get(place.dtype, torch.uint8)  # others are only compared
    with open(place.path, "rb") as file:
        file.seek(place.begin)
        left = place.end - place.begin
        while left:
            data = bytearray(file.read(min(left, numbers * dtype.itemsize)))
            left -= len(data)
            yield torch.frombuffer(data, dtype=dtype)


def _read_places(path: Path) -> dict[str, Place]:
    """Return where each tensor of a safetensors file is."""
    with open(path, "rb") as file:
        start, header = read_header(file)
    return {
        name: Place(
            path,
            entry["dtype"],
            tuple(entry["shape"]),
            *(start + offset for offset in entry["data_offsets"]),
        )
        for name, entry in header.items()
    }
