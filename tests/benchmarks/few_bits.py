"""Measure what few bits cost a finished run, packed with and without an importance matrix.

    python tests/benchmarks/few_bits.py runs/demo .cache/gemma-3-270m q4_0 q4_k_m [--weights]

For each type and both ways: bytes, the share of the tuning, the rounding beside it, and parity at the
export's held-out positions, on one thread. The matrix is the one that the export would make. With
--weights, nothing is predicted: a minute less for each file. Nothing is written into the run.
"""

import argparse
import functools
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from lib.export import gguf_export, gguf_weights
from lib.export.few_bits import imatrix, importance
from lib.export.parity import compare, reference
from lib.model import llama
from lib.model.load import load_merged
from lib.params import load_recorded
from lib.training import evaluate

SHOWN = (
    "bytes",
    "share_of_tuning",
    "share_by_tensor_type",
    "rounding_to_tuning",
    "layers_as_base",
    "kl_mean",
    "kl_mean_ci95",
    "perplexity_ratio",
    "perplexity_ratio_ci95",
    "greedy_agreement",
    "own_numbers_kl",
)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("types", nargs="+")
    parser.add_argument("--weights", action="store_true")
    chosen = parser.parse_args()
    run = chosen.run.resolve()
    data, merged, seed = run / "data", run / "merged", load_recorded(run).seed
    # cores that other work has taken would be waited for at every token
    llama.load_gguf = functools.partial(llama.load_gguf, n_threads=1)
    truth = None
    if not chosen.weights:
        truth = reference.predict_reference(data, merged, load_merged(merged), seed)
    with tempfile.TemporaryDirectory(dir=run.parent) as scratch:  # not /tmp, which may be in memory
        path = Path(scratch) / "measured.imatrix"
        imatrix.write(path, importance.measure(data, merged, seed, path.name))
        for name, matrix in (("none", None), ("auto", imatrix.read(path))):
            ggufs = {kind: Path(scratch) / f"{name}-{kind}.gguf" for kind in chosen.types}
            gguf_export.write_ggufs(merged, ggufs, matrix=matrix)
            origin = importance.Origin(merged, chosen.base, matrix)
            for kind, gguf in ggufs.items():
                found = {"bytes": gguf.stat().st_size, **measure(gguf, kind, origin, truth)}
                shown = {key: found[key] for key in SHOWN if key in found}
                print(f"{kind}, imatrix {name}: {json.dumps(shown)}", flush=True)
                gguf.unlink()


def measure(gguf, kind, origin, truth):
    """Return the figures of one file: those of its weights, or with a reference all of parity."""
    if truth is None:
        found = gguf_weights.compare_weights(gguf, kind, origin.merged, origin.base, origin.matrix)
        return found["tuning"]
    return compare.check_parity(gguf, kind, origin, truth, evaluate.PROMPTS[:1], 8)[0]


if __name__ == "__main__":
    main()
