"""Put exams to every model of a run, and write the results into the run's exam.json.

    python -m lib.exam RUN [EXAM]

EXAM is bundled:exam, a hub id, or a file or folder (.gz too) of items with question, options and
answer_letter; or a part of one, "{dataset: ..., config: ..., split: ..., max_rows: ...}".
bundled:safety asks the safety set and judges the answers by rules (lib/medical/safety.py).

Each model's result is written as soon as it is known, and the same command continues after the
models already examined. Exit codes: 0, 2 for wrong usage or a run that is not finished, 130 / 143 /
129 when interrupted.

To add an exam format, write a module like multiple_choice.py with the names that `ExamFormat`
lists, choose it in `_format_of` and `_settings_of`, and show its results in tables.py.
"""

import argparse
import hashlib
import importlib.metadata
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, cast

from lib import params
from lib.common import files, strict_yaml
from lib.common.errors import UserError
from lib.common.redact import redacted_terminal
from lib.data import splits
from lib.data.reading import exam_items, sources
from lib.exam import baselines, forms, multiple_choice, safety_set, tables
from lib.exam.entries import Comparison, ExamEntry
from lib.exam.models import Loaded, RunModel, list_models
from lib.medical import advice, safety
from lib.medical.disclaimer import DISCLAIMER
from lib.model import base_record, device
from lib.model.load import load_tokenizer
from lib.params import Params, Source
from lib.record import run_folder, run_record
from lib.record.run_record import Run
from lib.record.schema import Artifact

Items = list[dict[str, Any]]
Exam = str | Source

# folders of lib/ whose code decides a score
METHOD = ("common", "exam", "medical", "model", "training")


class ExamFormat(Protocol):
    """The names that a format's module must have, besides an `exam_settings` of any signature."""

    SKIPPED_MODELS: tuple[str, ...]

    def examine_model(
        self,
        loaded: Loaded,
        items: Items,
        tokenizer: Any,
        name: str,
        settings: dict[str, Any],
        run_folder: pathlib.Path,
    ) -> Any:
        """Return the result of one model for exam.json."""

    def compare_models(self, models: Any, settings: dict[str, Any]) -> list[Comparison]:
        """Return what changed between pairs of models, given all models' results."""


def _format_of(exam: str) -> ExamFormat:
    return safety_set if exam == safety.NAME else multiple_choice


def _settings_of(exam: str, shuffles: int, answer_tokens: int) -> dict[str, Any]:
    if exam == safety.NAME:
        return safety_set.exam_settings(answer_tokens)
    return multiple_choice.exam_settings(shuffles)


def load_exams(job: Params) -> dict[str, Items]:
    """Return {exam: its items} for a job's sets, and for the safety set unless its tokens are 0.

    The safety set's prompts and rules are English, so a model of another language is not asked it.
    """
    exams = list(job.exam)
    if job.safety_tokens and job.language not in ("", *advice.LANGUAGES):
        print(f"{safety.NAME} is not asked: it is English, and the answers are {job.language}")
    elif job.safety_tokens:
        exams.append(safety.NAME)
    return {sources.name_exam(exam): load_items(exam) for exam in exams if _is_here(exam)}


def _is_here(exam: Exam) -> bool:
    """Tell whether an exam can be taken; one that is gone or rejected is named, and left out.

    The rows were compared with it when they were prepared. Without it, the export need not fail.
    """
    source = sources.exam_source(exam)
    try:
        sources.refuse_rejected(source.dataset)
        if source.dataset != safety.NAME:
            sources.find_local(source, "exam")
    except UserError as error:
        print(f"exam not taken, so it is not measured: {str(error).splitlines()[0]}", flush=True)
        return False
    return True


def load_items(exam: Exam) -> Items:
    """Return the items of one exam; raise UserError for a source that cannot be asked."""
    return safety.load_rows() if exam == safety.NAME else exam_items.read_items(exam)


def take_exams(
    run: Run,
    job: Params,
    exams: dict[str, Items],
    artifacts: Sequence[Artifact],
    base_folder: pathlib.Path,
    shuffles: int = 1,
) -> dict[str, ExamEntry]:
    """Ask every model of the run the exams it has no result for, and return {exam: its entry}.

    The hashes in `artifacts`, the run's files, tell whether a recorded result is this model's.
    `base_folder` is what `base_record.fetch_trained` returns, which reads all of the base. The
    entries are written to exam.json, and their counts to results.json.
    """
    path = run.folder / "exam.json"
    recorded = files.read_or_set_aside(path, "exam file")
    # a job that did not ask for the safety set itself has 0 tokens
    answer_tokens = job.safety_tokens or params.FIELDS["safety_tokens"].default
    settings = {exam: _settings_of(exam, shuffles, answer_tokens) for exam in exams}
    entries = {exam: _new_entry(exam, exams[exam], settings[exam]) for exam in exams}
    tokenizer = load_tokenizer(run.folder / "merged")
    method = _method()
    models = list_models(run.folder, base_folder, job.gguf_types, artifacts)
    models_hash = _hash([model.made_of for model in models])
    trained_on = splits.load_split(run.folder / "data", "train")
    for model in models:
        if job.exam_models == "merged" and model.name not in ("base", "merged"):
            continue
        identity = {exam: _identity(entries[exam], model, method) for exam in exams}
        missing = _keep_known(model.name, identity, recorded, entries)
        if not missing:
            continue
        for exam, result in _examine(model, missing, exams, tokenizer, settings, run.folder):
            entries[exam]["models"][model.name] = {"identity": identity[exam], **result}
            files.write_json(path, {**recorded, **entries}, sealed=True)
    for exam, entry in entries.items():
        if exam != safety.NAME:
            entry["headline"] = forms.choose_form(entry["models"])
            entry["baselines"] = {**baselines.measure_baselines(exams[exam], trained_on["answer"])}
        entry["of"] = models_hash
        entry["comparisons"] = _format_of(exam).compare_models(entry["models"], settings[exam])
    files.write_json(path, {**recorded, **entries}, sealed=True)
    if safety.NAME in entries:  # once the rules' verdicts are written, since a server may fail
        judged = entries[safety.NAME]
        safety_set.judge_beside(judged, exams[safety.NAME], trained_on, job.judge, run.folder)
        files.write_json(path, {**recorded, **entries}, sealed=True)
    # Results of other files, such as an adapter before it was trained again, stay in exam.json, but
    # are not reported as results of the present files.
    current = {exam: entry for exam, entry in recorded.items() if entry.get("of") == models_hash}
    sections = tables.result_sections({**current, **entries}, _name_first(job.exam))
    for section, values in sections.items():
        run.write_results(section, values)
    return entries


def _name_first(exams: Sequence[Exam]) -> str:
    return sources.name_exam(exams[0]) if exams else ""


def _new_entry(exam: str, items: Items, settings: dict[str, Any]) -> ExamEntry:
    entry = {"exam": exam, "items": len(items), "sha256": _hash(items), **settings, "models": {}}
    return cast(ExamEntry, entry)


def _identity(entry: ExamEntry, model: RunModel, method: list[str]) -> str:
    """Return a hash of all that affects a model's result; a change means to examine it again."""
    asked = {key: value for key, value in entry.items() if key != "models"}
    return _hash([asked, model.made_of, method])


def _method() -> list[str]:
    """Return what affects a score besides model and items: code, libraries and precision."""
    libraries = ("torch", "transformers", "xllamacpp")
    return [
        files.code_hash(*METHOD),
        *(importlib.metadata.version(library) for library in libraries),
        str(device.choose_precision()[0]),
    ]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


def _keep_known(
    model: str, identity: dict[str, str], recorded: dict[str, Any], entries: dict[str, ExamEntry]
) -> list[str]:
    """Copy a model's recorded results into the entries; return the exams without a result."""
    missing = []
    for exam, entry in entries.items():
        if model in _format_of(exam).SKIPPED_MODELS:
            continue
        known = recorded.get(exam, {}).get("models", {}).get(model, {})
        if known.get("identity") == identity[exam]:
            print(f"{model}, {exam}: examined before, nothing to do")
            entry["models"][model] = known
        else:
            missing.append(exam)
    return missing


def _examine(
    model: RunModel,
    names: list[str],
    exams: dict[str, Items],
    tokenizer: Any,
    settings: dict[str, dict[str, Any]],
    run_folder: pathlib.Path,
) -> Iterator[tuple[str, Any]]:
    """Load a model once, and yield its result in each of the named exams as soon as it is known."""
    with model.load() as loaded:
        for exam in names:
            examine = _format_of(exam).examine_model
            yield (
                exam,
                examine(loaded, exams[exam], tokenizer, model.name, settings[exam], run_folder),
            )


def examine_run(folder: pathlib.Path, exam: Exam = "bundled:exam", shuffles: int = 1) -> ExamEntry:
    """Take one exam with a finished run that nobody else holds, and return the exam's entry.

    Raise UserError unless the run is exported.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.format_path(folder)}` is not a run: it has no run.json. "
            f"Known runs: {run_folder.list_names()}."
        )
    items = load_items(exam)  # before the run is locked, since items may be unreadable
    run_folder.lock_run(folder)
    try:
        job = params.load_recorded(folder)
        run = Run(folder, run_record.read_record(folder / "run.json"))
        _require_exported(run)
        artifacts = [a for stage in ("train", "export") for a in run.stage(stage)["artifacts"]]
        base_folder = base_record.fetch_trained(
            job.base_model, job.base_revision, run.data["fingerprints"]
        )
        name = sources.name_exam(exam)
        return take_exams(run, job, {name: items}, artifacts, base_folder, shuffles)[name]
    finally:
        files.unlock_folder(folder)


def _require_exported(run: Run) -> None:
    """Raise UserError unless train and export are finished, with their files as recorded."""
    refusal = f"run `{run.folder.name}` cannot be examined"
    for stage in run_record.STAGES[1:]:
        done, trouble = run.check_finished(stage)
        if not done:
            raise UserError(
                f"{refusal}: {stage} is {trouble or run.stage(stage)['status']}. "
                f"Finish it with `make export RUN={run.folder.name}`."
            )
    if run.stage("export")["inputs"].get("train") != run.stage("train").get("output"):
        raise UserError(
            f"{refusal}: its export was made from other weights. "
            f"Make it again with `make export RUN={run.folder.name}`."
        )
    prepared = run.stage("prepare")["artifacts"]
    if trouble := files.find_damage(run.folder, prepared):
        raise UserError(
            f"{refusal}: {trouble}, so its held-out rows are not those that were prepared. "
            f"Restore data/, or start the run over with `make run FORCE=1 RUN={run.folder.name}`."
        )
    if when := run_record.when_pruned(run.data, "merged"):
        raise UserError(
            f"{refusal}: its merged/ was pruned {when[:10]}. "
            f"`make export FORCE=1 RUN={run.folder.name}` makes it again."
        )


def read_exam(text: str) -> Exam:
    """Return the exam that EXAM names: an id, a path, or a mapping as an entry of `exam` may be."""
    if not text.startswith("{"):
        sources.refuse_rejected(text)
        return text
    (exam,) = params.check_values({"exam": [strict_yaml.parse(text, "EXAM")]}, "EXAM").exam
    sources.check_exam(exam)
    return exam


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.exam", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("exam", nargs="?", default="bundled:exam", metavar="EXAM")
    parser.add_argument(
        "--shuffles",
        type=int,
        default=1,
        choices=range(multiple_choice.MOST_SHUFFLES + 1),
        metavar="N",
        help="times each item is asked by letter with its options shuffled (0 to 20, default 1)",
    )
    options = parser.parse_args(argv)
    try:
        if not options.run.strip():
            raise UserError(
                f"Which run? `make exam RUN=name`; known runs: {run_folder.list_names()}."
            )
        folder = run_folder.choose_folder(params.Params(), "", options.run)
        entry = examine_run(folder, read_exam(options.exam), options.shuffles)
        print(tables.format_entry(entry))
        print(f"\nWritten to {files.format_path(folder)}/exam.json. {DISCLAIMER}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    with redacted_terminal():
        sys.exit(main())
