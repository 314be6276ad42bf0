"""Our exam beside lm-evaluation-harness on the same model and items: agreement to the item, and time.

    python tests/benchmarks/exam_lm_eval.py .cache/gemma-3-270m bundled:exam              # in an environment that also has lm-eval
    python tests/benchmarks/exam_lm_eval.py .cache/gemma-3-270m FILE.jsonl.gz --items 200 --dtype bfloat16

Both in this process, on the same threads, one after the other; loading the model and reading the items are not counted. Ours asks both
forms at once, lm-eval one task after the other.
"""

import argparse
import functools
import json
import pathlib
import shutil
import sys
import tempfile
import time

import torch
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from lib.common.errors import ROOT
from lib.data.reading import exam_items
from lib.exam import choices, multiple_choice
from lib.exam.scoring import likelihood
from lib.model import load

TASKS = {"letters": "first_aid_exam", "completion": "first_aid_exam_completion"}


def write_task(form, items, folder):
    """Write a task of the bundled exam for another exam's items, and return its name."""
    is_letters = form == "letters"
    rows = [
        {
            "question": choices.write_question(item, list(item["options"]))
            if is_letters
            else item["question"],
            "options": list(choices.LETTERS[: len(item["options"])])
            if is_letters
            else list(item["options"].values()),
            "answer": list(item["options"]).index(item["answer_letter"]),
        }
        for item in items
    ]
    data = folder / f"{form}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours = ROOT / "lib/medical/lm_eval"
    text = (ours / f"{TASKS[form]}.yaml").read_text()
    # lm-eval's own tag, which a YAML reader does not know
    tagged = "".join(line for line in text.splitlines(keepends=True) if "!function" in line)
    config = yaml.safe_load(text.replace(tagged, ""))
    config |= {
        "task": f"some_{form}",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
    }
    (folder / f"{form}.yaml").write_text(tagged + yaml.safe_dump(config))
    shutil.copy(ours / "completion.py", folder)
    return config["task"]


def compare_letters(ours, samples):
    """Print how many verdicts differ, and how far the options' likelihoods are from each other."""
    differ = sum(a["right"] != bool(b["acc"]) for a, b in zip(ours, samples, strict=True))
    own = [list(result["scores"].values()) for result in ours]
    print(
        f"letters: {sum(r['right'] for r in ours)} and {sum(bool(s['acc']) for s in samples)} right, "
        f"{differ} items judged otherwise, distances to the first option apart by up to {farthest(own, samples):.5f} nats"
    )


def compare_texts(ours, samples):
    """The same by the options' text, per character (acc_norm) and for the whole text (acc)."""
    own = [list(result["completion"]["scores"].values()) for result in ours]
    for name, metric in (("character", "acc_norm"), ("sum", "acc")):
        right = [r["completion"]["chosen_by"][name] == r["answer"] for r in ours]
        theirs = [bool(sample[metric]) for sample in samples]
        differ = sum(a != b for a, b in zip(right, theirs, strict=True))
        print(
            f"completion by {name}: {sum(right)} and {sum(theirs)} right, {differ} items judged "
            f"otherwise, distances to the first option apart by up to {farthest(own, samples):.5f} nats"
        )


def farthest(own, samples):
    """Return how far the options' distances to the first are from each other.

    lm-eval moves the newline at the prompt's end into each option, so its likelihoods have that of the newline in them, the same for all
    options of an item.
    """
    theirs = [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]
    pairs = zip(own, theirs, strict=True)
    return max(
        abs((a - mine[0]) - (b - row[0]))
        for mine, row in pairs
        for a, b in zip(mine, row, strict=False)  # the last one measures what stands before all
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("exam")
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", default="8", help="lm-eval's batch_size")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM

    items = exam_items.read_items(options.exam)[: options.items or None]
    tokenizer = load.load_tokenizer(options.model.resolve())
    net = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype)
    ).eval()
    begin = time.perf_counter(), time.process_time()
    score = functools.partial(likelihood.score_by_model, net)
    ours = multiple_choice.ask_items(items, tokenizer, score, shuffles=0)
    print_time("ours, both forms", begin)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole = options.exam == "bundled:exam" and not options.items
        tasks = TASKS if whole else {form: write_task(form, items, folder) for form in TASKS}
        where = str(ROOT / "lib/medical/lm_eval") if whole else name
        harness = HFLM(pretrained=net, tokenizer=tokenizer, batch_size=options.batch)
        for form, task in tasks.items():
            begin = time.perf_counter(), time.process_time()
            found = lm_eval.simple_evaluate(
                harness,
                tasks=[task],
                task_manager=TaskManager(include_path=where),
                apply_chat_template=True,
                log_samples=True,
                bootstrap_iters=0,
            )
            print_time(f"lm-eval, {form}", begin)
            samples = [s for s in found["samples"][task] if s["filter"] == "none"]
            samples.sort(key=lambda sample: sample["doc_id"])
            {"letters": compare_letters, "completion": compare_texts}[form](ours, samples)


def print_time(what, begin):
    seconds = time.perf_counter() - begin[0], time.process_time() - begin[1]
    print(f"{what}: {seconds[0]:.1f} s, of processor time {seconds[1]:.1f} s")


if __name__ == "__main__":
    main()
