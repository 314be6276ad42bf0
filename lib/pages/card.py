"""Model cards: README.md of the adapter, the merged folder and the GGUF files.

    card.render_cards(run.folder, push.name_repositories("owner/name"))     # {"adapter": ..., ...}
    card.write_cards(run.folder)                                            # next to the weights

A card is made from a run's records only: a value that is not in run.json, results.json, params.yaml
or data_card.json reads "not measured" or "not recorded".
"""

import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from lib import params
from lib.common import address, files, locations
from lib.common.errors import UserError
from lib.common.text import format_size, format_value
from lib.data.reading import sources
from lib.exam import forms
from lib.exam.choice_tables import FORMS
from lib.export import servers, turns
from lib.medical.disclaimer import DISCLAIMER
from lib.medical.texts import bundled
from lib.pages import card_tables, page
from lib.pages.cautions import list_warnings
from lib.pages.headline import LORA, load_exams
from lib.params import Params
from lib.record import run_record
from lib.record.schema import RunRecord

PARTS = {
    "adapter": "LoRA adapter",
    "merged": "merged weights",
    "gguf": "GGUF files for llama.cpp, Ollama and LocalAI",
}
LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf"}
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
OUR_LICENCE = "Apache-2.0, written for this pipeline"


def render_cards(folder: pathlib.Path, repos: dict[str, str] | None = None) -> dict[str, str]:
    """Render the card of each part of the run; with `repos`, the cards link to each other."""
    cards = {part: render_card(folder, part, repos) for part in PARTS if (folder / part).is_dir()}
    if not cards:
        raise UserError(
            f"`{files.format_path(folder)}` has no adapter/, merged/ or gguf/ to describe. "
            f"Run `make export RUN={folder.name}` first."
        )
    return cards


def write_cards(folder: pathlib.Path, repos: dict[str, str] | None = None) -> list[pathlib.Path]:
    """Write each part's card as README.md next to its weights; return the paths."""
    paths = []
    for part, text in render_cards(folder, repos).items():
        files.atomic_write(folder / part / "README.md", text)
        paths.append(folder / part / "README.md")
    return paths


def render_card(folder: pathlib.Path, part: str, repos: dict[str, str] | None = None) -> str:
    """Render README.md of one part (adapter, merged or gguf): the hub's header, then the text.

    Raise UserError if the run has no records.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.format_path(folder)}` is not a run: it has no run.json. "
            f"A card is made from a run's records."
        )
    repos = repos or {}
    run = run_record.read_record(folder / "run.json")
    run["run"] = folder.name  # a folder that was renamed is the same run
    job = params.load_recorded(folder)
    results = files.read_results(folder)
    data = _read_record(folder / "data" / "data_card.json")
    export = results.get("export", {})
    artifacts = [
        item
        for item in export.get("artifacts", [])
        if item["path"].startswith(f"{part}/") and item["path"] != f"{part}/README.md"
    ]
    names = [item["path"].removeprefix(f"{part}/") for item in artifacts]
    gguf, lora = _find_ggufs(names, job.gguf_types)
    text = (
        _environment()
        .get_template("model_card.md.jinja")
        .render(
            part=part,
            what=PARTS[part],
            parts=PARTS,
            run=run,
            job=job,
            prepare=results.get("prepare", {}),
            base=servers.base_name(job.base_model),
            stand_in=job.base_model.startswith("bundled:"),
            warnings=_list_warnings(run, results, job, load_exams(folder, results)),
            sources=_list_sources(data),
            reviewed={
                name: bundled.describe_states(counts)
                for name, counts in results.get("prepare", {}).get("review", {}).items()
            },
            safety_set="safety_prompts" in data,
            recipe=card_tables.describe_recipe(job, results.get("train", {}), run),
            sections=card_tables.list_sections(results),
            artifacts=artifacts,
            names=names,
            gguf=gguf,
            compared=export.get("turns", {}),
            commands=_format_commands(gguf, lora, job.base_model, job.max_seq_length),
            repos={other: repo for other, repo in repos.items() if other != part},
            disclaimer=DISCLAIMER,
            system=servers.SYSTEM,
            question=turns.CONVERSATIONS[0][0]["content"],
            address=_read_address(),
        )
    )
    # a data file may be gone by now, and its path must not be taken for a hub id
    local = [source["dataset"] for source in data.get("sources", []) if source.get("local")]
    header = _format_header(job, part, run["run"], repos, results, local)
    return f"---\n{header}\n---\n\n{text}"


def _read_address() -> str:
    # a mistake in CITATION.cff must not make an export of hours fail at its card
    try:
        return address.read_address()
    except UserError:
        return "not recorded"


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    return files.read_json(path, "record") if path.is_file() else {}


def _find_ggufs(names: list[str], gguf_types: Sequence[str]) -> tuple[str, str]:
    """Return the names of the first type's GGUF and of the adapter's GGUF; "" if missing."""
    lora = next((name for name in names if name.endswith(LORA)), "")
    for kind in gguf_types:
        for name in names:
            if name != lora and name.endswith(f"-{kind}.gguf"):
                return name, lora
    return "", lora


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FileSystemLoader(page.TEMPLATES),
    )
    environment.filters.update(cell=_format_cell, size=format_size)
    return environment


def _list_warnings(
    run: RunRecord, results: dict[str, Any], job: Params, exams: dict[str, Any]
) -> list[str]:
    warnings = list_warnings(run, results, job.base_model, job, exams=exams)
    # the export writes the card after recording its results, while it is still running
    return [text for text in warnings if text != "export is running"]


def _format_commands(gguf: str, lora: str, base_model: str, max_seq_length: int) -> str:
    if not gguf and not lora:
        return ""
    return servers.format_commands(gguf, base_model, max_seq_length, lora)


def _format_header(
    job: Params,
    part: str,
    name: str,
    repos: dict[str, str],
    results: dict[str, Any],
    local_sources: Sequence[str],
) -> str:
    """Format the YAML header for the hub, without bases and data sets that are not on the hub.

    The hub rejects a header that names them.
    """
    merged_repo = repos.get("merged") if part == "gguf" else None
    base = merged_repo or servers.base_name(job.base_model)
    relations = {"adapter": "adapter", "merged": "finetune", "gguf": "finetune"}
    relation = "quantized" if merged_repo else relations[part]
    datasets = [
        source.dataset
        for source in sources.list_sources(job)
        if HUB_ID.fullmatch(source.dataset)
        and source.dataset not in local_sources
        and not locations.local_path(source.dataset).exists()
    ]
    tags = ["first-aid", "medical", "gemma", "full-fine-tuning" if job.full_finetuning else "lora"]
    if part == "gguf":
        tags += ["llama-cpp", "ollama"]
    optional: dict[str, Any] = {}
    if HUB_ID.fullmatch(base):
        optional |= {"base_model": base, "base_model_relation": relation}
    exam_name = ", ".join(servers.shared_name(sources.name_exam(item)) for item in job.exam)
    gguf_types = job.gguf_types if part == "gguf" else None
    if scores := _exam_scores(results.get("exam", {}), exam_name, gguf_types):
        optional |= {"model_name": name, "eval_results": scores}
    return ModelCardData(
        license="gemma",
        language=[job.language] if job.language else None,
        library_name=LIBRARY[part],
        pipeline_tag="text-generation",
        datasets=datasets or None,
        tags=tags,
        **optional,
    ).to_yaml()


def _exam_scores(
    exam: dict[str, Any], name: str, gguf_types: Sequence[str] | None
) -> list[EvalResult]:
    """List exam scores for the hub's table; a GGUF is credited only with its own answers.

    They are those of the form that comes first.
    """
    formats = exam.get("formats", exam)
    entries = {"": exam} if gguf_types is None else {kind: formats.get(kind) for kind in gguf_types}
    form = exam.get("headline", "letters")
    scores = []
    for kind, found in entries.items():
        if not found:
            continue
        entry = forms.part_of_form(found, form)
        correct = entry.get("tuned_correct", entry.get("correct"))
        items = entry.get("items")
        if correct is None or not items:
            continue
        scores.append(
            EvalResult(
                task_type="multiple-choice",
                dataset_type="exam",
                dataset_name=f"{name} {kind}".strip(),
                metric_type="accuracy",
                metric_name=f"accuracy {FORMS[form]}" if "headline" in exam else None,
                metric_value=round(correct / items, 4),
            )
        )
    return scores


def _list_sources(data: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for source in data.get("sources", []):
        dataset = source["dataset"]
        ours = dataset.startswith("bundled:")
        unknown = OUR_LICENCE if ours else "not recorded: see the data set's own page"
        rows.append(
            {
                "dataset": servers.shared_name(dataset),
                "commit": source.get("commit") or source.get("revision") or "not recorded",
                "licence": source.get("licence") or unknown,
            }
        )
    return rows


def _format_cell(value: Any) -> str:
    """Format a value for a Markdown table: on one line, without bars and tags."""
    return " ".join(format_value(value).split()).replace("|", "\\|").replace("<", "&lt;")
