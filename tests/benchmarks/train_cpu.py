"""Training speed on this machine: transformers.Trainer + PEFT beside our loop, same rows, model, LoRA and effective batch.

    python tests/benchmarks/train_cpu.py [rounds]       # 3 rounds, about 6 minutes on 2 cores

The two take turns, so a drifting machine hurts both; the ratio is taken round by round. The baseline is given both of its
usual forms: adapter in float32 under autocast (PEFT's default with bf16=True), and everything in bfloat16.
"""

import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import numpy as np
import torch
import transformers

from lib import params
from lib.common import machine
from lib.data import prepare as data
from lib.data import splits
from lib.model import adapter, base, device, load
from lib.training import loop, plan
from lib.training.masters import Masters
from lib.training.step import run_step
from lib.training.stops import StopRequests

NO_REQUEST = StopRequests(False, False, False)
STEPS = 3


def prepare(job, folder, top):
    rows = data.begin(job, top)
    data.read_and_clean(rows)
    data.measure(rows, folder)
    data.deduplicate(rows)
    data.decontaminate(rows)
    data.tokenise(rows, folder, top / "data")
    return splits.load_split(top / "data", "train")


def ours(net, rows, job, seed):
    masters, job = Masters(net, job), job.model_copy(update={"seed": seed})
    loader = loop.load_steps(rows, plan.read_sizes(rows), 0, job, None)
    take = loop.build_accumulate(net, masters, job.packing)
    begun, count = time.monotonic(), 0
    for step in range(STEPS):
        current = next(loader)
        done = run_step(take, masters, step, current, job.seed, lambda: NO_REQUEST)
        masters.step(done.norm, plan.learning_rate(step, 46, job), job.max_grad_norm)
        count += len(current["rows"])
    loader.close()
    return count / (time.monotonic() - begun)


def trainer(net, rows, job, seed, autocast, tokenizer):
    args = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.per_device_train_batch_size,
        max_steps=STEPS,
        seed=seed,
        data_seed=seed,
        gradient_accumulation_steps=job.gradient_accumulation_steps,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        optim="adamw_torch",
        warmup_steps=job.warmup_steps,
        logging_steps=STEPS,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=autocast,
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    collate = transformers.DataCollatorForSeq2Seq(tokenizer, padding=True)
    run = transformers.Trainer(
        net, args, train_dataset=rows.select_columns(["input_ids", "labels"]), data_collator=collate
    )
    begun = time.monotonic()
    run.train()
    return (
        STEPS
        * job.per_device_train_batch_size
        * job.gradient_accumulation_steps
        / (time.monotonic() - begun)
    )


def main(rounds):
    job = params.load_job("params/cpu.yaml")
    cores = device.set_threads()
    folder = base.fetch(job.base_model, job.base_revision)
    tokenizer = load.load_tokenizer(folder)
    tokenizer.padding_side = "right"
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as scratch:
        rows = prepare(job, folder, pathlib.Path(scratch))
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=job.lora_r,
            lora_alpha=job.lora_alpha,
            target_modules=adapter.target_pattern(
                job.finetune_attention_modules, job.finetune_mlp_modules
            ),
            task_type="CAUSAL_LM",
        )
        kinds = {
            "ours": (
                load.load_for_training(folder, job),
                lambda net, seed: ours(net, rows, job, seed),
            ),
            "Trainer, bf16=True": (
                get_peft_model(load.load_base(folder, job), config),
                lambda net, seed: trainer(net, rows, job, seed, True, tokenizer),
            ),
            "Trainer, all bfloat16": (
                get_peft_model(load.load_base(folder, job), config, autocast_adapter_dtype=False),
                lambda net, seed: trainer(net, rows, job, seed, False, tokenizer),
            ),
        }
        rates = {kind: [] for kind in kinds}
        for n in range(rounds + 1):  # the first round warms up and is not counted
            for kind, (net, call) in kinds.items():
                net.train()
                rate = call(net, n)
                if n:
                    rates[kind].append(rate)
                print(
                    f"round {n} {kind}: {rate:.2f} samples/s{'' if n else ' (warm-up)'}", flush=True
                )
    lengths = rows["length"][:]
    print(
        f"\n{machine.hardware()['cpu']}, {cores} cores; torch {torch.__version__}, transformers {transformers.__version__}; "
        f"{len(lengths)} rows, mean {np.mean(lengths):.0f} tokens; {STEPS} steps of 16 rows a round, {rounds} rounds"
    )
    for kind, values in rates.items():
        ratios = [a / b for a, b in zip(rates["ours"], values, strict=True)]
        print(
            f"{kind:24} {statistics.median(values):5.2f} samples/s ({min(values):.2f}-{max(values):.2f}); ours / this {statistics.median(ratios):.2f}"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
