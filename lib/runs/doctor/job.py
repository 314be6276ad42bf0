"""What `make doctor` says of a job: what it needs of this machine, and what would refuse it."""

import contextlib
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from huggingface_hub import constants

from lib import params
from lib.common import files, limits, locations
from lib.common.errors import UserError
from lib.data.reading import sources
from lib.export import push
from lib.export.base_needs import exportable
from lib.model import base, bundled, device, model_folder, options, ranks
from lib.params import Params, packages
from lib.record.run_record import STAGES, read_record
from lib.runs import needs, run_job
from lib.runs.doctor import card
from lib.runs.doctor.asking import ask
from lib.runs.doctor.screen import Line
from lib.training import trackers

GIB = 2**30


def describe_job(params_file: str, overrides: str, name: str) -> Iterator[Line]:
    """Yield what a job needs, what is there, and everything that would refuse it.

    Raise UserError when the parameters themselves are wrong.
    """
    job, folder = run_job.choose_job(params_file, overrides, name)
    done = _finished_stages(folder)
    stages = [stage for stage in STAGES if stage not in done]
    state = f"{', '.join(done)} finished" if done else "not begun"
    keeps_own = name and not params_file and (folder / "params.yaml").is_file()
    given = "the run's own" if keeps_own else params_file or run_job.DEFAULT
    more = f" with {overrides}" if overrides else ""
    yield Line("ok", "job", f"{given}{more} = run {folder.name}, {state}")
    questions: list[tuple[str, Callable[[], Iterable[Line]]]] = [
        ("data", partial(_describe_data, job, "prepare" in done)),
        ("base", partial(_describe_base, job)),
        ("needs", partial(_describe_needs, job, stages, folder)),
        ("precision", partial(card.describe_precision, job.precision, job.load_in_4bit)),
        ("training", partial(_describe_training, job)),
        ("measured", partial(_describe_measured, job, folder)),
        ("refused", partial(_list_refusals, job, stages, folder)),
    ]
    said: set[str] = set()
    for what, question in questions:
        for line in ask(what, "missing", question):
            if line.text not in said:  # several checks may find the same
                yield line
            said.add(line.text)


def _finished_stages(folder: pathlib.Path) -> list[str]:
    if not (folder / "run.json").is_file():
        return []
    stages = read_record(folder / "run.json")["stages"]
    return [stage for stage in STAGES if stages[stage]["status"] == "finished"]


def _describe_data(job: Params, is_prepared: bool) -> Iterator[Line]:
    """Yield each source of rows: whether it is here, and how large."""
    if is_prepared:
        yield Line("ok", "data", "its rows are prepared already")
        return
    here, hub = [], []
    for source, what in sources.list_read(job):
        try:
            paths = sources.list_paths(source, what)
        except UserError as error:
            yield Line("missing", "data", str(error))
            continue
        size = sum(path.stat().st_size for path in paths)
        count = f"{len(paths)} files, " if len(paths) > 1 else ""
        if paths:
            here.append(f"{source.dataset} ({count}{size / 1e6:,.1f} MB)")
        else:
            hub.append(source.dataset)
    if here:
        yield Line("ok", "data", f"here: {', '.join(here)}")
    if hub:
        yield _describe_hub(f"on the hub, read at prepare: {', '.join(hub)}", "data")


def _describe_hub(text: str, what: str) -> Line:
    """Return a line on what comes from the hub, which was not asked."""
    if constants.HF_HUB_OFFLINE:
        return Line(
            "note", what, f"{text}. HF_HUB_OFFLINE is set: only what was loaded before is there"
        )
    return Line("note", what, f"{text} (the hub was not asked)")


def _describe_base(job: Params) -> Iterator[Line]:
    """Yield whether the base is here and whole, or has to be made or downloaded."""
    if needs.is_bundled(job.base_model):
        if job.base_model != base.BUNDLED:
            base.fetch(job.base_model)  # says which ones there are
        made = bundled.is_complete(base.CACHE / bundled.NAME)
        state = "made already" if made else f"made at first ({needs.BUNDLED_BYTES / 1e9:.1f} GB)"
        yield Line("ok", "base", f"{job.base_model}, {state}")
        return
    folder = base.find_folder(job.base_model)
    if folder:
        model_folder.check_folder(folder)
        size = files.size_of(folder) / 1e9
        yield Line("ok", "base", f"{job.base_model}: {size:.1f} GB, with every weight")
        return
    folder = base.find_downloaded(job.base_model, job.base_revision)
    trouble = "not downloaded yet"
    if folder:
        try:
            model_folder.check_folder(folder)
        except UserError:
            trouble = "only a part is downloaded"
        else:
            size = files.size_of(folder) / 1e9
            yield Line("ok", "base", f"{job.base_model}: downloaded, {size:.1f} GB, whole")
            exportable.require_exportable(folder)
            return
    size = needs.HUB_BASE_BYTES / 1e9
    text = f"{job.base_model}: {trouble}; its size is not known here, {size:.0f} GB are assumed"
    if constants.HF_HUB_OFFLINE:
        yield Line(
            "missing",
            "base",
            f"{text}. HF_HUB_OFFLINE forbids the download: unset it, or name a local folder.",
        )
        return
    yield Line("note", "base", f"{text}. Train downloads it; a gated one needs HF_TOKEN")


def _describe_needs(job: Params, stages: Sequence[str], folder: pathlib.Path) -> Iterator[Line]:
    """Yield the disk and the main memory that the stages take, against what is free."""
    size = needs.measure_base(job.base_model)
    memory = f"{limits.free_memory() / GIB:.1f} GiB are free"
    loads = f"{size / GIB:.1f} GiB" if size else "not known before it is here"
    yield Line("ok", "needs", f"main memory: to load the base {loads}; {memory}")
    if job.full_finetuning and "train" in stages:
        full = needs.estimate_full_training(job)
        amount = f"{full / GIB:.1f} GiB" if full else "not known before the base is here"
        where = "on each card" if device.card().name else "in main memory"
        yield Line(
            "ok",
            "needs",
            f"full fine-tuning: {amount} {where} for weights, gradients and optimizer, and "
            f"activations besides",
        )
    # last: it cannot be told while a source is missing
    disk = sum(needs.estimate_disk(stage, job) for stage in stages)
    free = files.free_disk(locations.existing_parent(folder))
    what = ", ".join(stages) or "nothing more"
    text = f"disk: about {disk / GIB:.1f} GiB for {what}; {free / GIB:.1f} GiB are free"
    yield Line("ok" if disk <= free else "missing", "needs", text)


def _describe_training(job: Params) -> Iterator[Line]:
    """Yield the library, the devices and the rows of a step."""
    engine, why = options.choose_backend(job)
    count = ranks.count_gpus(job.num_gpus, job.gradient_accumulation_steps)
    where = f"{count} x {device.card().name}" if device.card().name else "the processor"
    rows, times = job.per_device_train_batch_size, job.gradient_accumulation_steps
    if rows == "auto":
        batch = "micro-batch: train tries which is the largest that fits"
    else:
        batch = f"{times} x {rows} rows a step"
    yield Line("ok", "training", f"{engine} ({why}) on {where}; {batch}")


def _describe_measured(job: Params, folder: pathlib.Path) -> Iterator[Line]:
    """Yield time and memory of a run of the same job on this disk; no number is made up."""
    for run in [folder, *sorted(locations.runs_folder().glob("*"))]:
        with contextlib.suppress(Exception):  # a damaged run is not this command's business
            train = files.read_results(run).get("train")
            if train and params.fingerprint(params.load_recorded(run)) == params.fingerprint(job):
                yield Line(
                    "ok",
                    "measured",
                    f"in run {run.name} on {train['device']}: training {train['seconds']:.0f} s, "
                    f"peak {train['peak_memory_gib']:.1f} GiB ({train['memory_of']})",
                )
                return
    yield Line(
        "note",
        "measured",
        "training's time and memory: not measured; train probes both before its first step",
    )


def _list_refusals(job: Params, stages: Sequence[str], folder: pathlib.Path) -> Iterator[Line]:
    """Yield everything that the stages' own checks refuse, not only the first."""
    checks = needs.list_checks(stages, job, locations.existing_parent(folder))
    if "prepare" in stages:
        checks.append(partial(sources.check_sources, job))
    if "train" not in stages:  # otherwise told below, one by one
        checks.append(partial(params.require_consistent, job))
    if job.push_to:
        checks.append(partial(push.name_repositories, job.push_to))
    if "train" in stages and job.report_to != "none" and packages.is_installed(job.report_to):
        checks.append(partial(trackers.import_package, job.report_to))
    messages = options.list_refusals(job) if "train" in stages else []
    for check in checks:
        try:
            check()
        except UserError as error:
            messages.append(str(error))
    for message in dict.fromkeys(messages):
        yield Line("missing", "refused", message)
    if not messages:
        yield Line("ok", "refused", "nothing: each check before the start passes")
