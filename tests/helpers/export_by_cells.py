"""Export a run as its notebook does, cell by cell in this process, on the tiny Gemma 3n.

run = export_by_cells.make_trained(folder, base, adapter)
export_by_cells.export(run, gguf_types=["q4_0"])
"""

import shutil

import nbformat

from helpers import export_runs
from lib import params
from lib.common import files
from lib.common.errors import ROOT
from lib.data import chat
from lib.export import footprint
from lib.export.parity import reference
from lib.model import base_record
from lib.record import notebook
from lib.record.run_record import STAGES, timestamp

SETTINGS = {
    "dataset": "bundled:first-aid",
    "load_in_4bit": False,
    "optim": "adamw_torch",
    "exam": [],
    "safety_tokens": 0,
    "sample_tokens": 2,
    "lora_gguf": False,
}


EDGE = {
    "bytes": 1,
    "threads": 1,
    "load_seconds": 0.1,
    "memory_bytes": 1,
    "private_bytes": 1,
    "repeats": 1,
    "other_cores": 0.0,
    "prompt_tokens_per_second": 1.0,
    "decode_tokens_per_second": 1.0,
    "fits_gb": 2,
}


def make_less(monkeypatch):
    """Compare few rows and texts, and measure no speed, which no test of a record needs."""
    for name, value in (("ROWS", 4), ("POSITIONS", 16), ("TEXTS", 40)):
        monkeypatch.setattr(reference, name, value)
    monkeypatch.setattr(
        footprint, "measure_files", lambda ggufs: [EDGE | {"format": k} for k in ggufs]
    )


def make_trained(folder, base, adapter, **settings):
    """Make a run whose prepare and train are recorded as finished, with two held-out rows."""
    tokenizer = chat.load_chat(base)
    for name, count in (("train", 2), ("validation", 3), ("test", 2)):
        rows = [(f"What about {name} {n}?", f"{n}. {export_runs.ANSWER}") for n in range(count)]
        export_runs.write_split(folder / "data", name, rows, tokenizer)
    files.write_json(folder / "data" / "data_card.json", {"sources": []})
    job = params.check_values({**SETTINGS, "base_model": str(base), **settings}, "test")
    (folder / "params.yaml").write_text(params.to_yaml(job))
    entry = {"status": "pending", "attempts": [], "artifacts": [], "inputs": {}}
    record = {
        "run": folder.name,
        "created": timestamp(),
        "fingerprints": {"data": "rows", "prepared_base": base_record.describe_prepared(base)},
        "stages": {stage: dict(entry, attempts=[]) for stage in STAGES},
    }
    files.write_json(folder / "run.json", record)
    _, run = begin(folder, "prepare")
    notebook.finish_stage(run, "prepare", {}, ["data"], "rows")
    train(folder, base, adapter)
    return folder


def begin(folder, stage, **changes):
    return notebook.begin_stage(stage, {"run_name": folder.name, **changes})


def train(folder, base, adapter):
    """Put another adapter into the run, as its train notebook does."""
    _, run = begin(folder, "train")
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    shutil.copytree(adapter, folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    run.data["fingerprints"].update(base_record.describe_trained(base))
    digest = notebook.hash_artifact(folder, "adapter")
    notebook.finish_stage(run, "train", {"steps": 4}, ["adapter"], digest)


def export(folder, **changes):
    """Run all code cells of the export notebook with changed parameters; return their names."""
    book = nbformat.read(ROOT / "notebooks" / "export.ipynb", as_version=4)
    names = {}
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            recorded = params.load_recorded(folder).model_dump()
            names.update({**recorded, **changes, "params_file": "", "run_name": folder.name})
        else:
            exec(compile(cell.source, cell.id, "exec"), names)  # noqa: S102 - the cells are ours
    return names


def record(folder):
    return files.read_json(folder / "run.json", "run record")


def results(folder):
    return files.read_json(folder / "results.json", "results")["export"]


def listed(folder):
    """Return the paths of the GGUF files that the record and results.json of an export name."""
    of_record = {a["path"] for a in record(folder)["stages"]["export"]["artifacts"]}
    of_results = {a["path"] for a in results(folder)["artifacts"]}
    assert not of_results - of_record - {f"adapter/{n}" for n in ADAPTER}
    return sorted(path.removeprefix("gguf/") for path in of_record if path.endswith(".gguf"))


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
