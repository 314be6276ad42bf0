"""report.html: one self-contained page a run, made from its records alone, and a page for each executed notebook beside it.

make report RUN=name
"""

import datetime
import pathlib
from typing import Any

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.common.text import format_size, format_value
from lib.data import sources, splits
from lib.exam import tables
from lib.pages import figures, notebook_page, page, show
from lib.pages.cautions import warnings
from lib.pages.headline import examined, headline, not_measured
from lib.params import Params
from lib.record import ledger
from lib.record.run_record import STAGES


def gather(folder: pathlib.Path) -> dict[str, Any]:
    """All records of a run: run, results, job, exams, entries (of the ledger), samples, rerun; empty where there is none."""
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.shown(folder)}` is not a run: it has no run.json. `make runs` lists what there is; RUN= takes a name from there."
        )
    run, results = (
        files.read_json(folder / "run.json", "run record"),
        _optional(folder / "results.json"),
    )
    return {
        "folder": folder,
        "run": run,
        "results": results,
        "job": params.load_recorded(folder),
        "damage": damage(folder, run),
        "exams": examined(folder, results),
        "entries": ledger.read_ledger(folder / "metrics.jsonl"),
        "rerun": _optional(folder / "rerun.json"),
        "samples": [
            s
            for s in (
                _optional(folder / "samples.json"),
                _optional(folder / "gguf" / "samples.json"),
            )
            if s
        ],
    }


def write(folder: pathlib.Path) -> pathlib.Path:
    """Write folder/report.html, and <stage>.html of each executed notebook; returns the report's path."""
    told = gather(folder)
    run, results, job, entries = (told[key] for key in ("run", "results", "job", "entries"))
    notebooks, unreadable = _notebooks(folder)
    lengths = [] if any("data/" in text for text in told["damage"]) else _lengths(folder)
    return page.write(
        folder / "report.html",
        "report.html.jinja",
        **told,
        stages=stages(run),
        notebooks=notebooks,
        dataset=sources.name(job),
        warnings=[
            *told["damage"],
            *unreadable,
            *warnings(run, results, job.base_model, job, entries, told["exams"]),
        ],
        headline=headline(results, told["exams"]),
        not_measured=not_measured(results, told["exams"]),
        funnel=funnel(results.get("prepare", {})),
        lengths=lengths
        and figures.both(
            lambda width: figures.lengths(lengths, job.max_seq_length, width),
            "Histogram of row lengths in tokens",
        ),
        length_words=lengths and figures.length_words(lengths, job.max_seq_length),
        curves=figures.both(
            lambda width: figures.curves(entries, width),
            "Loss, learning rate and memory over optimizer steps",
        )
        if ledger.valid_steps(entries)
        else "",
        answers=answers(told["samples"]),
        sessions=[e for e in entries if e["event"] == "session"],
        exam_tables=tables.exam_tables(told["exams"]),
        differing=tables.differing_answers(told["exams"]),
        artifacts=artifacts(folder, run, results),
        parity=show.parity_table(results.get("export", {}).get("parity", {})),
        edge=show.edge_table(results.get("export", {}).get("edge", [])),
        parameters=parameter_rows(job),
    )


# ---------------------------------------------------------------------------------------------------------------------
# tables


def stages(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "stage": stage,
            "attempts": len(entry["attempts"]),
            "status": entry["status"],
            "seconds": _seconds(entry["attempts"]),
            **{
                key: (entry["attempts"] or [{}])[-1].get(key)
                for key in ("start", "end", "commit", "dirty", "patch")
            },
        }
        for stage, entry in ((stage, run["stages"][stage]) for stage in STAGES)
    ]


def _seconds(attempts: list[dict[str, Any]]) -> int | None:
    """Of all attempts that ended."""
    times = [
        [datetime.datetime.fromisoformat(a[key]) for key in ("start", "end")]
        for a in attempts
        if a.get("start") and a.get("end")
    ]
    return round(sum((end - start).total_seconds() for start, end in times)) if times else None


def funnel(prepare: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows read, dropped by each reason, kept: {step, rows, left, share}; they add up."""
    if not prepare:
        return []
    read = left = prepare["rows_read"]
    rows = [{"step": "read", "rows": read, "left": left}]
    for reason, count in prepare["dropped"].items():
        left -= count
        rows.append({"step": reason.replace("_", " "), "rows": -count, "left": left})
    return [
        {
            **row,
            "share": row["left"] / read if read else 0.0,
            "lost": -row["rows"] / read if read and row["rows"] < 0 else 0.0,
        }
        for row in rows
    ]


def answers(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each prompt {prompt, said: [{name, tokens, text}]}: the models of all samples side by side."""
    found: dict[str, list[dict[str, Any]]] = {}
    for sample in samples:
        for n, prompt in enumerate(sample["prompts"]):
            found.setdefault(prompt, []).extend(
                {"name": name, "tokens": sample["tokens"], "text": texts[n]}
                for name, texts in sample["answers"].items()
            )
    return [{"prompt": prompt, "said": said} for prompt, said in found.items()]


def artifacts(
    folder: pathlib.Path, run: dict[str, Any], results: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every file the run recorded, whether it is here, and of a GGUF what was verified; hashes are not computed again."""
    recorded = {a["path"]: a for stage in STAGES[1:] for a in run["stages"][stage]["artifacts"]}
    recorded = {
        a["path"]: {**a, **recorded.get(a["path"], {})}
        for a in results.get("export", {}).get("artifacts", [])
    } | recorded
    parity = results.get("export", {}).get("parity", {})
    rows = []
    for path, one in sorted(recorded.items()):
        there = folder / path
        state = f"pruned {one['pruned'][:10]}" if one.get("pruned") else "not here"
        if there.is_file():
            state = "here" if there.stat().st_size == one["bytes"] else "another size than recorded"
        kind = next((kind for kind in parity if path.endswith(f"-{kind}.gguf")), None)
        told = parity.get(kind, {})
        verdict = told.get("verdict", "not measured") + (
            f" (KL {format_value(told['kl_mean'])})" if "kl_mean" in told else ""
        )
        rows.append(
            {
                "path": path,
                "size": format_size(one["bytes"]),
                "sha256": one["sha256"][:16],
                "state": state,
                "verdict": verdict if path.endswith(".gguf") else "",
                "large": one["bytes"] >= 2**20,
            }
        )
    return rows


def parameter_rows(job: Params) -> list[dict[str, Any]]:
    """Every parameter, those that differ from the defaults first: {parameter, value, default, meaning, changed}."""
    changed, values = params.find_changed(job), job.model_dump()
    return [
        {
            "parameter": key,
            "value": page.brief(values[key]),
            "default": page.brief(params.FIELDS[key].get_default(call_default_factory=True)),
            "meaning": params.FIELDS[key].description,
            "changed": key in changed,
        }
        for key in [*changed, *(k for k in values if k not in changed)]
    ]


def _notebooks(folder: pathlib.Path) -> tuple[dict[str, str], list[str]]:
    """{stage: its page} of the executed notebooks, and which are not readable."""
    made, wrong = {}, []
    for stage in [s for s in STAGES if (folder / f"{s}.ipynb").is_file()]:
        try:
            made[stage] = notebook_page.write(folder, stage).name
        except UserError as error:
            wrong.append(str(error))
    return made, wrong


def damage(folder: pathlib.Path, run: dict[str, Any]) -> list[str]:
    """Which of the files that numbers, figures and answers are read from are not as recorded."""
    found = [
        f"{stage}.ipynb is not as it was when it was executed: damaged, or saved again since; results.json has the numbers"
        for stage in STAGES
        if (path := folder / f"{stage}.ipynb").is_file()
        and run["stages"][stage].get("notebook", recorded := files.sha256(path)) != recorded
    ]
    read = [
        a
        for stage in STAGES
        for a in run["stages"][stage]["artifacts"]
        if a["path"].startswith("data/") or a["path"].endswith(("samples.json", "metrics.jsonl"))
    ]
    if trouble := files.find_damage(folder, [a for a in read if (folder / a["path"]).exists()]):
        found.append(f"{trouble}: what is read from it cannot be trusted; run its stage again")
    return found


def _optional(path: pathlib.Path) -> Any:
    return files.read_json(path, "record") if path.is_file() else {}


def _lengths(folder: pathlib.Path) -> list[int]:
    if not (folder / "data" / "train").is_dir():
        return []
    return [
        n for split in splits.SPLITS for n in splits.load_split(folder / "data", split)["length"][:]
    ]
