"""Compare our quantised files with those of llama.cpp's own quantiser: the type of every tensor, and every byte.

    cd LLAMA_CPP && cmake -B build -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF && cmake --build build --target llama-quantize
    python tests/benchmarks/quantisers.py LLAMA_CPP/build/bin/llama-quantize

LLAMA_CPP: llama.cpp's sources, b11434 when it was last run. It is built for this comparison alone: the pipeline itself compiles nothing.
Models: the bundled Gemma 3 270M and the tests' tiny Gemma 3n with E4B's 35 layers, in both halves, without an importance matrix and with a made-up one,
which llama.cpp reads from the file that lib/export/few_bits/imatrix.py writes. Ends with an error when a tensor has another type, or bytes or metadata
that differ.
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import subprocess

import gguf
import numpy as np

from helpers import tiny_gemma3n
from lib.common.gguf_types import FILE_TYPES
from lib.export import gguf_export, gguf_file, gguf_plan, merge, quantise
from lib.export.few_bits import imatrix
from lib.model import bundled


def compare(ours, theirs):
    """Return {tensors, same type, same bytes, largest difference of a number} of two GGUF files, tensors in any order."""
    one, two = (
        ({t.name: t for t in gguf_file.read_header(path).tensors}, np.memmap(path, mode="r"))
        for path in (ours, theirs)
    )
    assert one[0].keys() == two[0].keys()
    kinds, equal, largest = 0, 0, 0.0
    for name in one[0]:
        a, b = (
            (file[1][t.offset : t.offset + t.rows * t.row_bytes], t)
            for file in (one, two)
            for t in (file[0][name],)
        )
        kinds += a[1].kind == b[1].kind
        equal += a[1].kind == b[1].kind and np.array_equal(a[0], b[0])
        if a[1].kind == b[1].kind and not np.array_equal(a[0], b[0]):
            numbers = [
                gguf.dequantize(np.array(x[0]), gguf.GGMLQuantizationType[x[1].kind]).view(
                    np.float32
                )
                for x in (a, b)
            ]
            largest = max(largest, float(np.abs(numbers[0] - numbers[1]).max()))
    return {
        "tensors": len(one[0]),
        "same type": kinds,
        "same bytes": equal,
        "largest difference": largest,
    }


def make_up_matrix(source, path):
    """Write an importance over some decades for each layer's weights of a GGUF, and read it again."""
    random = np.random.default_rng(0)
    sums = {
        t.name: np.exp(random.normal(0, 2, t.shape[0])).astype(np.float32)
        for t in gguf_file.read_header(source).tensors
        if t.name.startswith("blk.") and gguf_plan.is_packable(t)
    }
    counts = dict.fromkeys(sums, 1000.0)
    imatrix.write(path, imatrix.Imatrix(sums, counts, "made up", 5, 200, path.name))
    return imatrix.read(path)


def compare_quantisers(llama_quantize, source, kind, matrix=None):
    """Pack a GGUF with both, with a matrix that lies beside it, and return how alike they are."""
    folder = source.parent
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    quantise.quantise(source, ours, kind, matrix=matrix)
    given = ["--imatrix", matrix.name] if matrix else []
    subprocess.run(
        [llama_quantize, *given, source, theirs, kind.upper()],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,  # the name of the matrix is noted as it is given
    )
    metadata = [gguf_file.read_header(path).metadata for path in (ours, theirs)]
    return compare(ours, theirs) | {
        "same metadata": metadata[0] == metadata[1],
        "bytes": [p.stat().st_size for p in (ours, theirs)],
    }


def main(llama_quantize):
    llama_quantize = Path(llama_quantize).resolve()
    alike = True
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        # as many layers as E4B has, since a tensor's type depends on that
        tiny = tiny_gemma3n.build(scratch / "tiny", sharing=15)
        merge.add_missing_shared_kv(tiny)
        for name, folder in (
            ("Gemma 3 270M", bundled.materialize(ROOT / ".cache")),
            ("tiny Gemma 3n", tiny),
        ):
            for half in (name for name, row in FILE_TYPES.items() if not row.is_packed):
                source = scratch / f"{folder.name}-{half}.gguf"
                gguf_export.write_gguf(folder, source, half)
                matrix = make_up_matrix(source, scratch / "made-up.imatrix")
                for kind in (name for name, row in FILE_TYPES.items() if row.is_packed):
                    for used in (None, matrix):
                        found = compare_quantisers(llama_quantize, source, kind, used)
                        how = "with importance" if used else "plain"
                        print(f"{name}, {half} -> {kind}, {how}: {found}", flush=True)
                        alike &= (
                            found["tensors"] == found["same type"] == found["same bytes"]
                            and found["same metadata"]
                        )
    sys.exit(0 if alike else "not alike")


if __name__ == "__main__":
    main(sys.argv[1])
