"""report.html: one self-contained page a run, made from its records alone.

    make report RUN=name
"""

import json
import pathlib
from typing import Any

import jinja2

from lib import DISCLAIMER, exam_tables, files, ledger, params, safety, show, sources
from lib.params import UserError
from lib.record import STAGES


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write folder/report.html from run.json, results.json, metrics.jsonl and samples; returns its path."""
    if not (folder / "run.json").is_file():
        raise UserError(f"`{files.shown(folder)}` is not a run: it has no run.json. `ls runs` shows what there is; RUN= takes a name from there.")
    run = files.read_json(folder / "run.json", "run record")
    results = _optional(folder / "results.json") or {}
    job, exams = params.load(folder / "params.yaml"), _optional(folder / "exam.json") or {}
    entries = ledger.read(folder / "metrics.jsonl")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True,
                                     loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / "assets"))
    environment.filters.update(form=show.form, size=show.size)
    page = environment.get_template("report.html.jinja").render(
        run=run, results=results, stages=STAGES, disclaimer=DISCLAIMER,
        tables=tables(results, exams), not_measured=not_measured(results, exams),
        warnings=warnings(run, results, job.base_model),
        headline=headline(results), parameters=parameter_rows(job), lengths=_figure(_lengths(folder, job.max_seq_length)),
        loss=_figure(show.loss_figure(entries) if ledger.steps(entries) else None), base_model=job.base_model, dataset=sources.name(job),
        samples=[s for s in (_optional(folder / "samples.json"), _optional(folder / "gguf" / "samples.json")) if s])
    files.atomic_write(folder / "report.html", page)
    return folder / "report.html"


def headline(results: dict[str, Any]) -> dict[str, Any]:
    """The few numbers a reviewer asks for first; None where nothing was measured."""
    train, prepare = results.get("train", {}), results.get("prepare", {})
    before, after = train.get("eval_loss_before"), train.get("eval_loss_after")
    change = None if before is None or after is None else f"{(after - before) / before:+.1%}"
    return {"held-out response loss before": before, "held-out response loss after": after, "change": change,
            "training rows": prepare.get("train"), "steps": train.get("steps"), "samples/s": train.get("samples_per_second"),
            "tokens/s": train.get("tokens_per_second"), "peak memory, GiB": train.get("peak_memory_gib")}


def tables(results: dict[str, Any], exams: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """What the export and the exams measured, as rows of {column: value}; empty where nothing was."""
    export = results.get("export", {})
    found = {"Held against the 16-bit model": [
        {"format": kind, "predicts": c.get("verdict"), "mean KL, nats": c.get("kl_mean"), "perplexity": c.get("perplexity"),
         "16-bit model's": c.get("perplexity_16bit"), "same likeliest token": c.get("greedy_agreement"), "positions": c.get("positions"),
         "texts tokenised alike": c.get("texts"), "tensors alike": c.get("tensors")} for kind, c in export.get("parity", {}).items()]}
    found["On the machine that exported it"] = [
        {"format": row["format"], "threads": row["threads"], "file": show.size(row["bytes"]), "load, s": row["load_seconds"],
         "memory": show.size(row["memory_bytes"]), "prompt tokens/s": row["prompt_tokens_per_second"],
         "decoded tokens/s": row["decode_tokens_per_second"], "fits in, GB": row["fits_gb"]} for row in export.get("edge", [])]
    return {**found, **dict(exam_tables.shown(exams))}


def not_measured(results: dict[str, Any], exams: dict[str, Any]) -> list[str]:
    """What a reviewer might take for granted."""
    parity = results.get("export", {}).get("parity", {})
    return [text for text, missing in (("an exam before and after (make exam)", not set(exams) - {safety.NAME}),
                                       ("safety of the answers (make exam EXAM=bundled:safety)", safety.NAME not in exams),
                                       ("distribution parity of the GGUF with the 16-bit model", not any("kl_mean" in c for c in parity.values())))
            if missing]


def warnings(run: dict[str, Any], results: dict[str, Any], base_model: str) -> list[str]:
    """What a reviewer must know before believing a number."""
    found, train = [], results.get("train", {})
    for stage in STAGES:
        entry = run["stages"][stage]
        if entry["status"] != "finished":
            last = entry["attempts"][-1] if entry["attempts"] else {}
            found.append(f"{stage} is {entry['status']}" + (f": {last['exit']}" if last.get("exit") else ""))
        elif len(entry["attempts"]) > 1:
            found.append(f"{stage} took {len(entry['attempts'])} attempts")
        if entry["attempts"] and entry["attempts"][-1].get("dirty"):
            found.append(f"{stage} ran from a checkout with uncommitted changes")
    if base_model.startswith("bundled:"):
        found.append("the base is the small Gemma 3 270M, dequantised from a Q4_K_M file, not Gemma 3n: the run shows the pipeline; its "
                     "answers are often wrong and must not be followed")
    prepare = results.get("prepare", {})
    if flagged := prepare.get("changed", {}).get("dangerous_advice_flagged", 0) - prepare.get("dropped", {}).get("dangerous_advice", 0):
        found.append(f"{flagged} rows of the data give outdated or harmful first-aid advice and were kept (dangerous_advice: flag)")
    if cut := prepare.get("truncated"):
        found.append(f"{cut} answers were cut to fit max_seq_length")
    if train.get("sessions", 1) > 1:
        found.append(f"training was resumed: {train['sessions']} sessions, {train['steps_repeated']} steps were run again after an interruption")
    if (train.get("eval_loss_after") or 0) > (train.get("eval_loss_before") or float("inf")):
        found.append("the held-out loss is higher after training than before")
    return found


def parameter_rows(job: params.Params) -> list[dict[str, Any]]:
    changed = params.changed(job)
    values = job.model_dump()
    return [{"key": k, "value": json.dumps(values[k]), "default": json.dumps(params.FIELDS[k].default), "changed": k in changed}
            for k in [*changed, *(k for k in values if k not in changed)]]


def _optional(path: pathlib.Path) -> Any:
    return files.read_json(path, "record") if path.is_file() else None


def _lengths(folder: pathlib.Path, cut: int) -> Any:
    from lib import prepared

    if not (folder / "data" / "train").is_dir():
        return None
    lengths = [n for split in prepared.SPLITS for n in prepared.load(folder / "data", split)["length"][:]]
    return show.lengths_figure(lengths, cut) if lengths else None


def _figure(figure: Any) -> Any:
    import markupsafe

    return markupsafe.Markup(show.svg(figure)) if figure is not None else None
