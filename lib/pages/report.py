"""Write report.html: one self-contained page for a run, made from its records only.

    make report RUN=name

A page for each executed notebook is written next to it.
"""

import datetime
import pathlib
from typing import Any

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.common.text import format_size, format_value
from lib.data import splits
from lib.data.reading import sources
from lib.exam import tables
from lib.pages import figures, notebook_page, page, show
from lib.pages.cautions import list_warnings
from lib.pages.headline import LORA, headline_numbers, list_unmeasured, load_exams
from lib.params import Params
from lib.record import ledger
from lib.record.run_record import STAGES, read_record
from lib.record.schema import Attempt, RunRecord

Row = dict[str, Any]


def gather_records(folder: pathlib.Path) -> dict[str, Any]:
    """Read all records of a run; a missing record gives an empty value.

    Return {folder, run, results, job, damage, exams, entries (of the ledger), rerun, samples}.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.format_path(folder)}` is not a run: it has no run.json. "
            f"`make runs` lists the runs; RUN= takes a name from that list."
        )
    run = read_record(folder / "run.json")
    run["run"] = folder.name  # a folder that was renamed is the same run
    results = files.read_results(folder)
    samples = (
        _read_record(folder / "samples.json"),
        _read_record(folder / "gguf" / "samples.json"),
    )
    return {
        "folder": folder,
        "run": run,
        "results": results,
        "job": params.load_recorded(folder),
        "damage": find_damage(folder, run),
        "exams": load_exams(folder, results),
        "entries": ledger.read_ledger(folder / "metrics.jsonl"),
        "rerun": _read_record(folder / "rerun.json"),
        "samples": [sample for sample in samples if sample],
    }


def _read_record(path: pathlib.Path) -> Any:
    return files.read_json(path, "record") if path.is_file() else {}


def write_report(folder: pathlib.Path) -> pathlib.Path:
    """Write report.html and a page for each executed notebook; return the report's path."""
    records = gather_records(folder)
    run, results, job, entries = (records[key] for key in ("run", "results", "job", "entries"))
    exams, damage = records["exams"], records["damage"]
    export = results.get("export", {})
    notebooks, unreadable = _write_notebook_pages(folder)
    warnings = list_warnings(run, results, job.base_model, job, entries, exams)
    return page.write_page(
        folder / "report.html",
        "report.html.jinja",
        **records,
        **_figures(folder, job.max_seq_length, entries, damage),
        stages=stage_rows(run),
        notebooks=notebooks,
        dataset=sources.describe(job.dataset),
        warnings=[*damage, *unreadable, *warnings],
        headline=headline_numbers(results, exams),
        not_measured=list_unmeasured(results, exams),
        funnel=funnel_rows(results.get("prepare", {})),
        answers=answers_by_prompt(records["samples"]),
        sessions=[e for e in entries if e["event"] == "session"],
        exam_tables=tables.exam_tables(exams),
        differing=tables.differing_answers(exams),
        artifacts=artifact_rows(folder, run, export),
        parity=show.parity_table(export.get("parity", {})),
        imatrix=[export["imatrix"]] if "types" in export.get("imatrix", {}) else [],
        edge=show.edge_table(export.get("edge", [])),
        parameters=parameter_rows(job),
    )


def _write_notebook_pages(folder: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """Write a page for each executed notebook; return {stage: page}, and errors of the others."""
    pages: dict[str, str] = {}
    unreadable = []
    for stage in STAGES:
        if not (folder / f"{stage}.ipynb").is_file():
            continue
        try:
            pages[stage] = notebook_page.write_notebook_page(folder, stage).name
        except UserError as error:
            unreadable.append(str(error))
    return pages, unreadable


def find_damage(folder: pathlib.Path, run: RunRecord) -> list[str]:
    """List the files behind numbers, figures and answers that differ from their records."""
    trouble = []
    for stage in STAGES:
        path, entry = folder / f"{stage}.ipynb", run["stages"][stage]
        if path.is_file() and "notebook" in entry and entry["notebook"] != files.sha256(path):
            trouble.append(
                f"{stage}.ipynb has changed since it was executed: it is damaged, or was saved "
                f"again; results.json has the numbers"
            )
    read = [
        item
        for stage in STAGES
        for item in run["stages"][stage]["artifacts"]
        if item["path"].startswith("data/")
        or item["path"].endswith(("samples.json", "metrics.jsonl"))
    ]
    here = [item for item in read if (folder / item["path"]).exists()]
    if damaged := files.find_damage(folder, here):
        trouble.append(f"{damaged}: its contents cannot be trusted; run its stage again")
    return trouble


# -------------------------------------------------------------------------------------------------
# figures


def _figures(
    folder: pathlib.Path, max_seq_length: int, entries: list[Row], damage: list[str]
) -> dict[str, Any]:
    """Draw the row lengths and the ledger's curves; a figure without its records is empty."""
    data_damaged = any("data/" in text for text in damage)
    row_lengths = [] if data_damaged else _read_lengths(folder)
    lengths: Any = ""
    length_words = ""
    if row_lengths:
        lengths = figures.both_widths(
            lambda width: figures.lengths(row_lengths, max_seq_length, width),
            "Histogram of row lengths in tokens",
        )
        length_words = figures.length_words(row_lengths, max_seq_length)
    curves: Any = ""
    if ledger.valid_steps(entries):
        curves = figures.both_widths(
            lambda width: figures.curves(entries, width),
            "Loss, learning rate and memory over optimizer steps",
        )
    return {"lengths": lengths, "length_words": length_words, "curves": curves}


def _read_lengths(folder: pathlib.Path) -> list[int]:
    """Read the lengths of all prepared rows, in tokens."""
    if not (folder / "data" / "train").is_dir():
        return []
    return [
        length
        for split in splits.SPLITS
        for length in splits.load_split(folder / "data", split)["length"][:]
    ]


# -------------------------------------------------------------------------------------------------
# tables


def stage_rows(run: RunRecord) -> list[Row]:
    rows = []
    for stage in STAGES:
        entry = run["stages"][stage]
        last: Any = entry["attempts"][-1] if entry["attempts"] else {}
        rows.append(
            {
                "stage": stage,
                "attempts": len(entry["attempts"]),
                "status": entry["status"],
                "seconds": _sum_seconds(entry["attempts"]),
                **{key: last.get(key) for key in ("start", "end", "commit", "dirty", "patch")},
            }
        )
    return rows


def _sum_seconds(attempts: list[Attempt]) -> int | None:
    """Return the total seconds of all attempts that ended; None if none did."""
    spans = []
    for attempt in attempts:
        start, end = attempt.get("start"), attempt.get("end")
        if start and end:
            parse = datetime.datetime.fromisoformat
            spans.append(parse(end) - parse(start))
    return round(sum(span.total_seconds() for span in spans)) if spans else None


def funnel_rows(prepare: Row) -> list[Row]:
    """Add the shares of rows left and dropped to each step of the funnel."""
    if not prepare:
        return []
    read = prepare["rows_read"]
    rows = []
    for step in show.funnel_steps(prepare):
        share = step["left"] / read if read else 0.0
        lost = -step["rows"] / read if read and step["rows"] < 0 else 0.0
        name = step["step"].replace("_", " ")
        rows.append({**step, "step": name, "share": share, "lost": lost})
    return rows


def answers_by_prompt(samples: list[Row]) -> list[Row]:
    """Group the answers of all samples by prompt: [{prompt, said: [{name, tokens, text}]}]."""
    by_prompt: dict[str, list[Row]] = {}
    for sample in samples:
        for n, prompt in enumerate(sample["prompts"]):
            for name, texts in sample["answers"].items():
                answer = {"name": name, "tokens": sample["tokens"], "text": texts[n]}
                by_prompt.setdefault(prompt, []).append(answer)
    return [{"prompt": prompt, "said": answers} for prompt, answers in by_prompt.items()]


def artifact_rows(folder: pathlib.Path, run: RunRecord, export: Row) -> list[Row]:
    """List every recorded file, whether it still exists, and the verdict on each GGUF.

    Hashes are not computed again.
    """
    recorded: dict[str, Any] = {item["path"]: item for item in export.get("artifacts", [])}
    for stage in STAGES[1:]:
        for item in run["stages"][stage]["artifacts"]:
            recorded[item["path"]] = item
    return [
        {
            "path": path,
            "size": format_size(item["bytes"]),
            "sha256": item["sha256"][:16],
            "state": _describe_state(folder / path, item),
            "verdict": _describe_check(path, export) if path.endswith(".gguf") else "",
            "large": item["bytes"] >= 2**20,
        }
        for path, item in sorted(recorded.items())
    ]


def _describe_state(path: pathlib.Path, item: Row) -> str:
    if path.is_file():
        same_size = path.stat().st_size == item["bytes"]
        return "here" if same_size else "another size than recorded"
    return f"pruned {item['pruned'][:10]}" if item.get("pruned") else "not here"


def _describe_check(path: str, export: Row) -> str:
    """Describe how a GGUF compared with the 16-bit model, or an adapter's with the merged GGUF."""
    if path.endswith(LORA):
        lora = export.get("lora", {})
        if "verdict" in lora:
            return str(lora["verdict"])
        apart = lora.get("apart")  # all that an earlier version recorded
        return "not measured" if apart is None else f"{format_value(apart)} nats from merged"
    checks = export.get("parity", {})
    kind = next((kind for kind in checks if path.endswith(f"-{kind}.gguf")), "")
    check = checks.get(kind, {})
    verdict = check.get("verdict", "not measured")
    return f"{verdict} (KL {format_value(check['kl_mean'])})" if "kl_mean" in check else verdict


def parameter_rows(job: Params) -> list[Row]:
    """List every parameter; those that differ from their defaults come first."""
    changed, values = params.find_changed(job), job.model_dump()
    rows = []
    for name in [*changed, *(name for name in values if name not in changed)]:
        field = params.FIELDS[name]
        rows.append(
            {
                "parameter": name,
                "value": page.format_parameter(values[name]),
                "default": page.format_parameter(field.get_default(call_default_factory=True)),
                "meaning": field.description,
                "changed": name in changed,
            }
        )
    return rows
