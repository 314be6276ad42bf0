"""Exams of a run: the base, the adapter on it, the merged folder and each GGUF on the same items, into the run's exam.json.

    python -m lib.exam RUN [EXAM]     # EXAM: bundled:exam, a file or folder of question/options/answer_letter (.gz too), or a hub id;
                                      # bundled:safety asks the safety set, and judges the answers by rules (lib/safety.py)

Each model's result is written as soon as it is there, and the same command goes on after those already examined. Exit codes: 0, 2 wrong
usage or a run that is not finished, 130 / 143 interrupted.
"""

import argparse
import hashlib
import importlib.metadata
import json
import pathlib
import signal
import sys
from typing import Any

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.common.redact import terminal
from lib.data import exam_items
from lib.exam import models as exam_models
from lib.exam import multiple_choice, safety_set, tables
from lib.medical import safety
from lib.medical.disclaimer import DISCLAIMER
from lib.model import device
from lib.model import load as model
from lib.params import Params
from lib.record import run_record
from lib.record.run_record import Run

METHOD = ("exam", "medical", "model", "training")  # folders of lib/ whose code decides a score


def of(job: Params) -> dict[str, list[dict[str, Any]]]:
    """{exam: its items} a job asks for: its multiple-choice sets and, unless switched off, the safety set."""
    return {exam: read(exam) for exam in [*job.exam, *([safety.NAME] if job.safety_tokens else [])]}


def read(exam: str) -> list[dict[str, Any]]:
    """The items of one exam; UserError for a file, folder or hub set that cannot be asked."""
    return safety.load() if exam == safety.NAME else exam_items.read(exam)


def take(
    run: Run,
    job: Params,
    exams: dict[str, list[dict[str, Any]]],
    artifacts: list[dict[str, Any]],
    shuffles: int = 1,
) -> dict[str, dict[str, Any]]:
    """{exam: its entry in exam.json}, after asking every model of the run that has no result in it yet; one model is loaded at a time.

    `artifacts`: {path, sha256} of the run's files, by which a result is known to be of this very model. results.json gets the counts.
    """
    path = run.folder / "exam.json"
    every = files.read_or_set_aside(path, "exam file")
    tokens = (
        job.safety_tokens or params.FIELDS["safety_tokens"].default
    )  # of a job that asked for no safety set itself
    how = {
        exam: safety_set.settings(tokens)
        if exam == safety.NAME
        else multiple_choice.settings(shuffles)
        for exam in exams
    }
    entries = {
        exam: {"exam": exam, "items": len(items), "sha256": _hash(items), **how[exam], "models": {}}
        for exam, items in exams.items()
    }
    tokenizer, method = model.load_tokenizer(run.folder / "merged"), _method()
    models = list(exam_models.of(run, job, artifacts))
    of_these = _hash([made_of for _, made_of, _ in models])
    for name, made_of, load in models:
        identity = {
            exam: _hash([{k: v for k, v in entry.items() if k != "models"}, made_of, method])
            for exam, entry in entries.items()
        }
        known = {exam: every.get(exam, {}).get("models", {}).get(name, {}) for exam in exams}
        wanted = [exam for exam in exams if name not in _harness(exam).SKIPPED]
        todo = [exam for exam in wanted if known[exam].get("identity") != identity[exam]]
        for exam in wanted:
            if exam not in todo:
                print(f"{name}, {exam}: examined before, nothing to do")
                entries[exam]["models"][name] = known[exam]
        if todo:
            with load() as loaded:
                for exam in todo:
                    found = _harness(exam).sit(
                        loaded, exams[exam], tokenizer, name, how[exam], run.folder
                    )
                    entries[exam]["models"][name] = {"identity": identity[exam], **found}
                    files.write_json(path, {**every, **entries}, sealed=True)
    for exam, entry in entries.items():
        entry["of"] = of_these
        entry["comparisons"] = _harness(exam).compare(entry["models"], how[exam])
    files.write_json(path, {**every, **entries}, sealed=True)
    # results of other files, as of an adapter that was trained over since, stay in exam.json and are not shown as of these
    current = {exam: entry for exam, entry in every.items() if entry.get("of") == of_these}
    for section, values in tables.sections(
        {**current, **entries}, next(iter(job.exam), "")
    ).items():
        run.results(section, values)
    return entries


def _harness(exam: str) -> Any:
    return safety_set if exam == safety.NAME else multiple_choice


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()[:16]


def _method() -> list[str]:
    """What decides a score besides the model and the items: our code, the libraries that compute, and in what precision."""
    return [
        files.code_hash(*METHOD),
        *(importlib.metadata.version(p) for p in ("torch", "transformers", "xllamacpp")),
        str(device.choose_precision()[0]),
    ]


def examine(folder: pathlib.Path, exam: str = "bundled:exam", shuffles: int = 1) -> dict[str, Any]:
    """`take` of one exam, of a finished run that nobody else holds; UserError unless it is exported."""
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.shown(folder)}` is not a run: it has no run.json. Runs there: {run_record.names()}."
        )
    items = read(exam)  # what cannot be asked is an error before the run is touched
    run_record.lock(folder)
    try:
        job, run = (
            params.load_recorded(folder),
            Run(folder, run_record.read_record(folder / "run.json")),
        )
        for stage in run_record.STAGES[1:]:
            done, trouble = run.finished(stage)
            if not done:
                raise UserError(
                    f"run `{folder.name}` cannot be examined: {stage} is {trouble or run.stage(stage)['status']}. "
                    f"Finish it with `make export` and its PARAMS and RUN."
                )
        if when := run_record.pruned(run.data, "merged"):
            raise UserError(
                f"run `{folder.name}` cannot be examined: its merged/ was pruned {when[:10]}. `make export FORCE=1` with its PARAMS "
                f"and RUN makes it again."
            )
        artifacts = [a for stage in ("train", "export") for a in run.stage(stage)["artifacts"]]
        return take(run, job, {exam: items}, artifacts, shuffles)[exam]
    finally:
        files.unlock(folder)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lib.exam", description=__doc__.splitlines()[0])
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("exam", nargs="?", default="bundled:exam", metavar="EXAM")
    parser.add_argument(
        "--shuffles",
        type=int,
        default=1,
        metavar="N",
        help="times each item is asked with its options shuffled (default 1)",
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        folder = run_record.folder_for(params.Params(), "", options.run)
        print(
            f"{tables.text(examine(folder, options.exam, max(0, options.shuffles)))}\n\nin {files.shown(folder)}/exam.json. {DISCLAIMER}"
        )
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nstopped; the same command goes on after the models already examined", file=sys.stderr
        )
        return 130


if __name__ == "__main__":
    with terminal():
        sys.exit(main())
