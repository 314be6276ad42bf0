"""Our packed, compiled path beside the plain recipe: same batches step by step, and each in its own order to the end.

    make prepare PARAMS=params/h100.yaml SET="base_model=bundled:gemma-3-270m dataset=..." RUN=agreement
    python tests/benchmarks/agreement.py runs/agreement [steps]       # on a CPU with torch_compile=false: packed, not compiled

Plain is transformers' own forward with labels and attention mask, PEFT's float32 adapter under bfloat16 autocast,
torch.optim.AdamW; in the last comparison transformers.Trainer, which shuffles as it likes. Prints the largest relative
difference of a step's loss, and the held-out response losses.
"""

import pathlib
import sys
import tempfile

sys.path[:0] = [str(folder) for folder in pathlib.Path(__file__).parents[1:3]]

import torch
import transformers
from peft import LoraConfig, get_peft_model

from helpers.held_out_loss import measure_loss
from lib import params
from lib.data import splits
from lib.model import adapter, base, device, load
from lib.record import ledger
from lib.training import batches, checkpoint, loop, plan


def plain_model(folder, job):
    torch.manual_seed(job.seed)
    config = LoraConfig(
        r=job.lora_r,
        lora_alpha=job.lora_alpha,
        target_modules=adapter.target_pattern(
            job.finetune_attention_modules, job.finetune_mlp_modules
        ),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(load.load_base(folder, job), config)


def plain_steps(net, rows, job, steps):
    """Return the plain recipe's losses on the micro-batches of our plan."""
    net.train()
    trained = list(adapter.trainable(net).values())
    optimizer = torch.optim.AdamW(trained, lr=job.learning_rate, weight_decay=job.weight_decay)
    losses, order = [], plan.iterate_steps(plan.read_sizes(rows).lengths, 0, job)
    for step in range(steps):
        _, (one,) = next(order)
        found = rows[one]
        padded = batches.make_batch({k: found[k] for k in ("input_ids", "labels")})
        width = padded.input_ids.shape[1]
        labels = torch.tensor(
            [r + [-100] * (width - len(r)) for r in found["labels"]], device=net.device
        )
        mask = torch.tensor(
            [[1] * len(r) + [0] * (width - len(r)) for r in found["input_ids"]], device=net.device
        )
        with torch.autocast(net.device.type, torch.bfloat16):
            loss = net(
                input_ids=padded.input_ids.to(net.device), attention_mask=mask, labels=labels
            ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, job.max_grad_norm)
        optimizer.param_groups[0]["lr"] = plan.learning_rate(step, steps, job)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def trainer(net, rows, job, steps):
    args = transformers.TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=job.per_device_train_batch_size,
        max_steps=steps,
        seed=job.seed,
        gradient_accumulation_steps=job.gradient_accumulation_steps,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        optim="adamw_torch",
        warmup_steps=job.warmup_steps,
        lr_scheduler_type=job.lr_scheduler_type,
        max_grad_norm=job.max_grad_norm,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    collate = transformers.DataCollatorForSeq2Seq(
        transformers.AutoTokenizer.from_pretrained(base.fetch(job.base_model, job.base_revision)),
        padding=True,
    )
    transformers.Trainer(
        net, args, train_dataset=rows.select_columns(["input_ids", "labels"]), data_collator=collate
    ).train()


def main(run, steps):
    job = params.load_job(run / "params.yaml").model_copy(
        update={"max_steps": steps, "num_gpus": 1}
    )
    rows, held_out = (
        splits.load_split(run / "data", "train"),
        splits.load_split(run / "data", "validation"),
    )
    folder = base.fetch(job.base_model, job.base_revision)
    net = load.load_for_training(folder, job)
    with tempfile.TemporaryDirectory() as scratch:
        loop.train(
            net,
            rows,
            held_out,
            job,
            pathlib.Path(scratch),
            checkpoint.describe_identity(job, "data", "base", adapter.count_parameters(net)[0]),
        )
        entries = ledger.read_ledger(pathlib.Path(scratch) / "metrics.jsonl")
    results, ours = ledger.summarise(entries), [e["loss"] for e in ledger.valid_steps(entries)]
    del net
    net = plain_model(folder, job)
    theirs = plain_steps(net, rows, job, steps)
    same, tokens = measure_loss(net, held_out)
    del net
    net = plain_model(folder, job)
    trainer(net, rows, job, steps)
    shuffled, _ = measure_loss(net, held_out)
    apart = [abs(a - b) / b for a, b in zip(ours, theirs, strict=True)]
    print(
        f"\n{device.name()}, torch {torch.__version__}, transformers {transformers.__version__}; {job.base_model}, real weights, "
        f"{len(rows):,} rows, {steps} steps of {plan.rows_per_step(job)}, learning rate {job.learning_rate:g}"
    )
    print("step    ours    plain   apart")
    for n in sorted({0, 1, 2, *range(9, steps, max(1, steps // 10)), steps - 1}):
        print(f"{n + 1:4}  {ours[n]:.4f}  {theirs[n]:.4f}  {apart[n]:.3%}")
    print(f"largest difference of a step {max(apart):.3%}, mean {sum(apart) / len(apart):.3%}")
    print(
        f"held-out response loss, {tokens:,} tokens: before {results['eval_loss_before']:.4f}; ours {results['eval_loss_after']:.4f}; plain on the same "
        f"batches {same:.4f}; transformers.Trainer in its own order {shuffled:.4f}"
    )
    print(
        f"ours {results['samples_per_second']:.1f} samples/s, padding {results['padding_share']:.1%}, compiled in {results['compile_seconds']:.0f} s"
    )


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200)
