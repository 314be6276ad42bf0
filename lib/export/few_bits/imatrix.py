"""Importance matrices, as llama.cpp's imatrix files hold them: read, check and write one.

    matrix = imatrix.read(Path("mine.imatrix"))
    imatrix.require_own(matrix, Path("merged"))
    quantise.quantise(source, out, "q4_0", matrix=matrix)

For a tensor's columns it has the sum of the squared inputs, and the count of tokens. What few bits
lose is then put where the inputs are small.
"""

import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lib.common import files, locations
from lib.common.errors import UserError
from lib.export import gguf_file, gguf_plan
from lib.export.gguf_file import Header, Tensor
from lib.model import shards
from lib.params import Params

AUTO, NONE = "auto", "none"  # values of the parameter that name no file
SUMS, COUNTS = ".in_sum2", ".counts"  # end the names of a tensor's two entries in the file
DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
ROWS = "medrescue.rows"  # the rows that were read, by hash; llama.cpp's own files lack it
LONGEST = 127  # bytes of a text that llama.cpp copies into a GGUF's metadata
HOW = "Set imatrix: auto to have one made of this run's training rows, or none to pack without one."


class Imatrix(NamedTuple):
    """The content of an imatrix file; its name is for the metadata of the GGUFs made with it."""

    sums: dict[str, np.ndarray]  # float32, by tensor
    counts: dict[str, float]
    dataset: str
    chunks: int
    chunk_size: int
    name: str
    rows: list[str] = []

    @property
    def importance(self) -> dict[str, np.ndarray]:
        """The mean square of each column's input, by tensor, as llama-quantize computes it."""
        return {
            name: sums / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(sums)
            for name, sums in self.sums.items()
        }

    @property
    def metadata(self) -> dict[str, str | int]:
        """What llama-quantize notes in a GGUF that was packed with this matrix."""
        noted: dict[str, str | int] = {gguf_plan.IMATRIX_FILE: _shorten(self.name)}
        if self.dataset:
            noted["quantize.imatrix.dataset"] = _shorten(self.dataset)
        noted["quantize.imatrix.entries_count"] = len(self.sums)
        if self.chunks > 0:
            noted["quantize.imatrix.chunks_count"] = self.chunks
        return noted


def _shorten(text: str) -> str:
    return text.encode()[:LONGEST].decode(errors="ignore")


# --------------------------------------------------------------------------------------------------
# files


def require_readable(job: Params) -> None:
    """Raise UserError unless a job's imatrix file, if it names one, can be read."""
    if job.imatrix not in (AUTO, NONE):
        read(locations.local_path(job.imatrix))


def read(path: Path) -> Imatrix:
    """Read an imatrix file, a GGUF or the older kind; raise UserError if it is neither."""
    try:
        with open(path, "rb") as file:
            is_gguf = file.read(len(gguf_file.MAGIC)) == gguf_file.MAGIC
        matrix = _read_gguf(path) if is_gguf else _read_legacy(path)
    except OSError as error:
        raise UserError(
            f"imatrix: `{files.format_path(path)}` cannot be read: {error.strerror}. Expected a "
            f"file that llama-imatrix made. {HOW}"
        ) from None
    except (ValueError, KeyError, struct.error) as error:
        raise UserError(
            f"imatrix: `{files.format_path(path)}` is no imatrix file ({error}). Expected one that "
            f"llama-imatrix made, as a GGUF or in its older form. {HOW}"
        ) from None
    for name, sums in matrix.sums.items():
        if not (np.isfinite(sums).all() and (sums >= 0).all()):
            raise UserError(
                f"imatrix: `{files.format_path(path)}` has sums of squares for {name} that are "
                f"negative or not finite. Make it again with llama-imatrix. {HOW}"
            )
    return matrix


def _read_gguf(path: Path) -> Imatrix:
    header = gguf_file.read_header(path)
    missing = [key for key in (DATASETS, CHUNKS, CHUNK_SIZE) if key not in header.metadata]
    if missing:
        raise ValueError(f"it has no {missing[0]}")
    found = {tensor.name: tensor for tensor in header.tensors}
    sums, counts = {}, {}
    for name in sorted(name.removesuffix(SUMS) for name in found if name.endswith(SUMS)):
        sums[name] = _read_numbers(path, found[name + SUMS])
        count = _read_numbers(path, found[name + COUNTS])
        if len(count) > 1:
            raise ValueError(f"{name} has counts for {len(count)} experts, expected one count")
        counts[name] = float(np.rint(count[0]))
    if not sums:
        raise ValueError("it has no sums of squares")
    return _from_header(header, path.name, sums, counts)


def _from_header(
    header: Header, name: str, sums: dict[str, np.ndarray], counts: dict[str, float]
) -> Imatrix:
    fields = header.metadata
    datasets = fields[DATASETS]
    return Imatrix(
        sums,
        counts,
        dataset=datasets[0] if datasets else "",
        chunks=fields[CHUNKS],
        chunk_size=fields[CHUNK_SIZE],
        name=name,
        rows=fields.get(ROWS, []),
    )


def _read_numbers(path: Path, tensor: Tensor) -> np.ndarray:
    if tensor.kind != "F32":
        raise ValueError(f"{tensor.name} is {tensor.kind}, expected F32")
    count = tensor.shape[0] * tensor.rows
    return np.fromfile(path, "<f4", count, offset=tensor.offset)


def _read_legacy(path: Path) -> Imatrix:
    """Read the form before llama.cpp's imatrix files were GGUFs: means, each times its calls."""
    data = path.read_bytes()
    (entries,) = struct.unpack_from("<i", data)
    if entries < 1:
        raise ValueError("it does not begin with GGUF or a count of entries")
    position = 4
    sums, counts = {}, {}
    for _ in range(entries):
        name, position = _read_text(data, position)
        calls, length = struct.unpack_from("<ii", data, position)
        if length < 1:
            raise ValueError(f"{name} has {length} numbers")
        sums[name] = np.frombuffer(data, "<f4", length, position + 8).copy()
        counts[name] = float(calls) if calls > 0 else 1.0
        position += 8 + sums[name].nbytes
    chunks, dataset = 0, ""
    if position < len(data):
        (chunks,) = struct.unpack_from("<i", data, position)
        if position + 4 < len(data):
            dataset, _ = _read_text(data, position + 4)
    return Imatrix(sums, counts, dataset, chunks, 0, path.name)


def _read_text(data: bytes, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<i", data, position)
    end = position + 4 + length
    if length < 0 or end > len(data):
        raise ValueError("it ends inside an entry")
    return data[position + 4 : end].decode(), end


def write(path: Path, matrix: Imatrix) -> None:
    """Write a matrix as the GGUF that llama-quantize reads with --imatrix."""
    fields: dict[str, Any] = {
        "general.type": "imatrix",
        DATASETS: [matrix.dataset],
        CHUNKS: matrix.chunks,
        CHUNK_SIZE: matrix.chunk_size,
        ROWS: matrix.rows,
    }
    numbers = {}
    for name, sums in sorted(matrix.sums.items()):
        numbers[name + SUMS] = np.asarray(sums, "<f4")
        numbers[name + COUNTS] = np.array([matrix.counts[name]], "<f4")
    tensors = [Tensor(name, (len(array), 1), "F32") for name, array in numbers.items()]
    pairs = {key: gguf_file.encode_pair(key, value) for key, value in fields.items()}
    head, placed = gguf_file.build_header(pairs, tensors)
    data = bytearray(head)
    for tensor in placed:
        data += bytes(tensor.offset - len(data)) + numbers[tensor.name].tobytes()
    files.atomic_write(path, bytes(data.ljust(gguf_file.pad(len(data)), b"\0")))


# --------------------------------------------------------------------------------------------------
# the model that it is of


def require_own(matrix: Imatrix, folder: Path) -> None:
    """Raise UserError unless a matrix is of a folder's model.

    It must have an entry of the right width for each tensor that few bits pack, but for the
    embeddings and for layers that take keys and values from others, and no entry besides the
    model's tensors.
    """
    config = shards.read_text_config(folder)
    layers = config["num_hidden_layers"]
    tensors = _list_tensors(folder, config)
    wanted = {
        name for name, tensor in tensors.items() if name not in gguf_plan.EMBEDDINGS
    } - _shared_names(config)
    wanted = {name for name in wanted if gguf_plan.is_packable(tensors[name])} - {"output.weight"}
    known = set(tensors) | gguf_plan.expect_names(folder, config)
    strangers = sorted(set(matrix.sums) - known)
    missing = sorted(wanted - set(matrix.sums))
    odd = sorted(
        name
        for name, sums in matrix.sums.items()
        if name in tensors and gguf_plan.is_packable(tensors[name])
        if len(sums) != tensors[name].shape[0]
    )
    faults = []
    if strangers:
        faults.append(f"{len(strangers)} entries are of no tensor, such as {strangers[0]}")
    if missing:
        faults.append(f"{len(missing)} tensors have no entry, such as {missing[0]}")
    if odd:
        width = tensors[odd[0]].shape[0]
        faults.append(
            f"{len(odd)} entries have another width, such as {odd[0]}: {len(matrix.sums[odd[0]])} "
            f"columns, expected {width}"
        )
    if faults:
        raise UserError(
            f"The imatrix file {matrix.name}, with {len(matrix.sums)} entries, does not belong to "
            f"{files.format_path(folder)} of {layers} layers: {'; '.join(faults)}. Expected one "
            f"that llama-imatrix made with a GGUF of this model or of its base. {HOW}"
        )


def _list_tensors(folder: Path, config: dict[str, Any]) -> dict[str, Tensor]:
    """Return a folder's tensors by their GGUF names, as they would be before they are packed."""
    entries = shards.read_entries(folder)
    architecture = gguf_plan.architecture_of(config["model_type"])
    names = gguf_plan.map_names(entries, config["num_hidden_layers"], architecture)
    return {
        new: Tensor(new, tuple(entries[name]["shape"][::-1]), "BF16") for name, new in names.items()
    }


def _shared_names(config: dict[str, Any]) -> set[str]:
    layers, sharing = config["num_hidden_layers"], config.get("num_kv_shared_layers", 0)
    return {
        name
        for layer in range(layers - sharing, layers)
        for name in gguf_plan.shared_kv_names(layer)
    }
