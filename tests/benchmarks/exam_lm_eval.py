"""Our exam beside lm-evaluation-harness on the same model and items: agreement to the item, and time.

    python tests/benchmarks/exam_lm_eval.py .cache/gemma-3-270m bundled:exam              # in an environment that also has lm-eval
    python tests/benchmarks/exam_lm_eval.py .cache/gemma-3-270m FILE.jsonl.gz --items 200 --dtype bfloat16

Both in this process, on the same threads, one after the other and in turns; loading the model and reading the items are not counted.
"""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import torch
import yaml

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from lib.common.errors import ROOT
from lib.data.reading import exam_items
from lib.exam import choices
from lib.model import load


def task(items, folder):
    """Write the bundled exam's task file with another exam's items, options by their number."""
    folder = pathlib.Path(folder)
    (folder / "exam.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "question": choices.write_question(i, list(i["options"])),
                    "options": list(choices.LETTERS[: len(i["options"])]),
                    "answer": list(i["options"]).index(i["answer_letter"]),
                }
            )
            + "\n"
            for i in items
        )
    )
    config = yaml.safe_load((ROOT / "lib/medical/lm_eval/first_aid_exam.yaml").read_text())
    config |= {
        "task": "some_exam",
        "dataset_kwargs": {"data_files": {"test": str(folder / "exam.jsonl")}},
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{options}}",
        "doc_to_target": "answer",
    }
    (folder / "some_exam.yaml").write_text(yaml.safe_dump(config))
    return str(folder), "some_exam"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("exam")
    parser.add_argument("--items", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", default="8", help="lm-eval's batch_size")
    parser.add_argument("--turns", type=int, default=1)
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
    with tempfile.TemporaryDirectory() as folder:
        whole = options.exam == "bundled:exam" and not options.items
        where, name = (
            (str(ROOT / "lib/medical/lm_eval"), "first_aid_exam") if whole else task(items, folder)
        )
        harness, tasks = (
            HFLM(pretrained=net, tokenizer=tokenizer, batch_size=options.batch),
            TaskManager(include_path=where),
        )
        for _ in range(options.turns):
            begun = [(time.perf_counter(), time.process_time())]
            ours = choices.ask_items(
                items, tokenizer, lambda *asked: choices.score_by_model(net, *asked), shuffles=0
            )
            begun.append((time.perf_counter(), time.process_time()))
            theirs = lm_eval.simple_evaluate(
                harness,
                tasks=[name],
                task_manager=tasks,
                apply_chat_template=True,
                log_samples=True,
                bootstrap_iters=0,
            )
            begun.append((time.perf_counter(), time.process_time()))
            seconds = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(begun, begun[1:], strict=False)]
            print(
                f"seconds, ours and lm-eval's: {seconds[0][0]:.1f} and {seconds[1][0]:.1f} ({seconds[1][0] / seconds[0][0]:.2f} times); "
                f"of processor time {seconds[0][1]:.1f} and {seconds[1][1]:.1f} ({seconds[1][1] / seconds[0][1]:.2f} times)"
            )
    samples = sorted(theirs["samples"][name], key=lambda s: s["doc_id"])
    right = [bool(s["acc"]) for s in samples]
    likelihoods = [[float(r[0]) for r in s["filtered_resps"]] for s in samples]
    apart = []
    for mine, row in zip(ours, likelihoods, strict=True):
        own = list(mine["scores"].values())
        apart += [abs((a - own[0]) - (b - row[0])) for a, b in zip(own, row, strict=True)]
    print(
        f"accuracy, ours and lm-eval's: {sum(r['right'] for r in ours)} and {sum(right)} of {len(items)}, "
        f"{theirs['results'][name]['acc,none']:.4f} by its own table"
    )
    print(
        f"items judged otherwise: {sum(a['right'] != b for a, b in zip(ours, right, strict=True))}; "
        f"options' distance to the first, largest difference: {max(apart):.5f} nats"
    )


if __name__ == "__main__":
    main()
