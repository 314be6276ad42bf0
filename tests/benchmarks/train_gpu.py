"""Training speed and memory on one NVIDIA GPU: TRL + PEFT, Unsloth and ours side by side, on Gemma 3n E4B's exact structure.

    python tests/benchmarks/train_gpu.py KIND...            # trl, trl-16, unsloth, unsloth-eager, or a params file: params/h100.yaml
    python tests/benchmarks/train_gpu.py --cap 14.7 trl params/t4.yaml       # as on a card of 14.7 GiB
    python tests/benchmarks/train_gpu.py --cap 14.7 --length 1024 params/t4.yaml       # every row as long as a row may be

Random weights, 16 GB, written to .cache/e4b-random once (40 s); rows of random tokens, lognormal lengths, mean 137, up to
1,024, about 3/4 of them trained. Speed and memory are real, loss is meaningless. Each kind runs in a process of its own;
steps after warm-up count. `trl-16` has a micro-batch of 16 rows, `unsloth-eager` is Unsloth with its compiler off. Needs
timm and torchvision for the multimodal class that TRL and Unsloth load.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
BASE = ROOT / ".cache/e4b-random"
WARM_UP = 5
STEP = 16  # rows of TRL's and Unsloth's steps, as the seed recipe's 4 x 4


def make_base(folder):
    """Write the multimodal E4B with random weights in the layout of its hub repository."""
    import torch
    from transformers import Gemma3nConfig, Gemma3nForConditionalGeneration

    if (folder / "model.safetensors.index.json").exists():
        return
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("meta"):
        config = Gemma3nConfig()
        net = Gemma3nForConditionalGeneration(config)
    net = net.to_empty(device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if not tensor.is_floating_point():
                tensor.zero_()
            elif (
                tensor.ndim < 2
            ):  # small branches keep a random model smooth: its cached and uncached logits then agree
                tensor.fill_(
                    0.35
                    if "q_norm" in name or "k_norm" in name
                    else 0.4
                    if ".post_" in name
                    else 1.0
                )
            else:
                tensor.normal_(
                    0,
                    0.1
                    if "_coefs" in name
                    else 0.02
                    if "embed" in name
                    else tensor.shape[1] ** -0.5,
                    generator=generator,
                )
        net.tie_weights()
        # the word table is longer than the per-layer one; what only it has must never be generated
        net.get_input_embeddings().weight[config.text_config.vocab_size_per_layer_input :] = 0
    config.pad_token_id, config.bos_token_id, config.eos_token_id, config.dtype = (
        0,
        2,
        1,
        "bfloat16",
    )
    net.config = config
    net.save_pretrained(folder, max_shard_size="4GB")


def make_rows(count, longest=1024, seed=0, length=0):
    import datasets

    draw = np.random.default_rng(seed)
    lengths = np.clip(draw.lognormal(np.log(137) - 0.32, 0.8, count).astype(int), 16, longest)
    if length:
        lengths[:] = length
    rows = []
    for n, length in enumerate(lengths):
        ids = [2, *draw.integers(1000, 200_000, length - 1).tolist()]
        start = max(8, length // 4)
        rows.append(
            {
                "id": str(n),
                "input_ids": ids,
                "labels": [-100] * start + ids[start:],
                "length": int(length),
            }
        )
    return datasets.Dataset.from_list(rows)


def ours(params_file, steps, overrides, length):
    import torch

    from lib import params
    from lib.model import adapter, load
    from lib.record import ledger
    from lib.training import checkpoint, loop

    job = params.load_job(params_file, overrides)
    job = job.model_copy(
        update={"base_model": str(BASE), "max_steps": steps, "warmup_steps": 0, "num_gpus": 1}
    )
    rows = make_rows(
        steps * job.per_device_train_batch_size * job.gradient_accumulation_steps, length=length
    )
    loaded = time.monotonic()
    net = load.load_for_training(BASE, job)
    loaded = time.monotonic() - loaded
    torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as scratch:
        loop.train(
            net,
            rows,
            rows.select([]),
            job,
            pathlib.Path(scratch),
            checkpoint.describe_identity(job, "random", "random", adapter.count_parameters(net)[0]),
        )
        entries = ledger.read_ledger(pathlib.Path(scratch) / "metrics.jsonl")
    lines = [e for e in entries if e["event"] == "step"][WARM_UP:]
    results = ledger.summarise(entries)
    return {
        "step seconds": [e["seconds"] for e in lines],
        "rows": job.per_device_train_batch_size * job.gradient_accumulation_steps,
        "samples/s": sum(e["rows"] for e in lines) / sum(e["seconds"] for e in lines),
        "tokens/s": sum(e["tokens"] for e in lines) / sum(e["seconds"] for e in lines),
        "compile s": results["compile_seconds"],
        "load s": loaded,
        "padding": results["padding_share"],
        "MFU": results["flops_utilisation"],
    }


def theirs(kind, steps, length):
    """Train the original recipe (NF4, r=8, 8-bit AdamW, checkpointing, response-only loss) in TRL + PEFT, or in Unsloth."""
    import torch

    size = next((int(word) for word in kind.split("-") if word.isdigit()), 4)
    batch, accumulation = size, STEP // size
    if kind.startswith("unsloth"):
        eager = "eager" in kind
        os.environ |= {
            "UNSLOTH_COMPILE_DISABLE": str(int(eager)),
            "UNSLOTH_BLOCK_COMPILE": str(int(not eager)),
        }
        import unsloth  # noqa: F401 - must come before transformers

    import tokenizers
    import transformers
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    from lib import params
    from lib.model import adapter, load

    job = params.Params()
    loaded = time.monotonic()
    if kind.startswith("unsloth"):
        net = load._load_by_unsloth(
            BASE, job.model_copy(update={"backend": "unsloth", "offload_embedding": False})
        )
    else:
        net = transformers.AutoModelForCausalLM.from_pretrained(
            BASE,
            dtype=torch.bfloat16,
            device_map={"": 0},
            quantization_config=load.quantization_config(job.load_in_4bit, job.precision),
        )
        net = get_peft_model(
            net,
            LoraConfig(
                r=8,
                lora_alpha=8,
                target_modules=adapter.target_pattern(
                    job.finetune_attention_modules, job.finetune_mlp_modules
                ),
                task_type="CAUSAL_LM",
            ),
        )
    loaded = time.monotonic() - loaded
    word = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}, unk_token="<unk>"
        )
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=word, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    rows = make_rows(steps * batch * accumulation, length=length)
    tokens = sum(rows["length"]) / len(rows)
    times = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *_, **__):
            torch.cuda.synchronize()
            times.append(time.monotonic())

    args = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        warmup_steps=5,
        learning_rate=2e-5,
        optim="adamw_8bit",
        weight_decay=0.01,
        lr_scheduler_type="linear",
        seed=3407,
        report_to="none",
        save_strategy="no",
        max_length=1024,
        bf16=True,
        logging_steps=1,
        gradient_checkpointing=not kind.startswith("unsloth"),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        dataset_kwargs={"skip_prepare_dataset": True},
        packing=False,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model=net,
        args=args,
        train_dataset=rows.select_columns(["input_ids", "labels"]),
        processing_class=tokenizer,
        callbacks=[Clock()],
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    seconds = [b - a for a, b in zip(times, times[1:], strict=False)][WARM_UP - 1 :]
    return {
        "step seconds": seconds,
        "rows": STEP,
        "samples/s": STEP * len(seconds) / sum(seconds),
        "tokens/s": STEP * tokens * len(seconds) / sum(seconds),
        "load s": loaded,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="+")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument(
        "--cap", type=float, default=0.0, help="GiB of memory to pretend the card has"
    )
    parser.add_argument(
        "--length",
        type=int,
        default=0,
        help="tokens of every row, instead of the lognormal lengths",
    )
    parser.add_argument("--set", default="", help="overrides of a params file")
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds after which a kind is given up"
    )
    parser.add_argument("--child", action="store_true")
    args = parser.parse_args()
    if args.child:
        import torch

        if args.cap:
            torch.cuda.set_per_process_memory_fraction(
                args.cap * 2**30 / torch.cuda.get_device_properties(0).total_memory
            )
        kind = args.kinds[0]
        result = (
            ours(kind, args.steps, args.set, args.length)
            if kind.endswith(".yaml")
            else theirs(kind, args.steps, args.length)
        )
        result |= {
            "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
            "reserved GiB": torch.cuda.max_memory_reserved() / 2**30,
        }
        print("RESULT " + json.dumps(result))
        return
    import torch
    import transformers

    subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
            "import train_gpu; train_gpu.make_base(train_gpu.BASE)",
        ],
        check=True,
    )
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, transformers {transformers.__version__}; Gemma 3n E4B structure, random weights"
        + (f"; capped to {args.cap} GiB" if args.cap else ""),
        flush=True,
    )
    print(
        f"{'kind':18} {'samples/s':>9} {'tokens/s':>9} {'step s':>7} {'peak GiB':>8} {'reserved':>8} {'compile s':>9} {'padding':>7} {'MFU':>6}",
        flush=True,
    )
    for kind in args.kinds:
        begun = time.monotonic()
        command = [
            sys.executable,
            __file__,
            "--child",
            "--steps",
            str(args.steps),
            "--cap",
            str(args.cap),
            "--length",
            str(args.length),
            "--set",
            args.set,
            kind,
        ]
        with tempfile.TemporaryFile("w+", errors="replace") as log:
            try:
                subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=args.limit)
                ended = "failed"
            except subprocess.TimeoutExpired:
                ended = "given up"
            log.seek(0)
            said = log.read()
        if out := os.environ.get("OUT"):
            (pathlib.Path(out) / f"{pathlib.Path(kind).stem}.txt").write_text(said[-40000:])
        line = next((line for line in said.splitlines() if line.startswith("RESULT ")), None)
        if not line:
            reason = [t for t in said.strip().splitlines() if t.strip()][-1:]
            print(
                f"{kind:18} {ended} after {time.monotonic() - begun:.0f} s: {reason[0][:200] if reason else 'it said nothing'}",
                flush=True,
            )
            continue
        r = json.loads(line[7:])
        print(
            f"{kind:18} {r['samples/s']:9.1f} {r['tokens/s']:9,.0f} {statistics.median(r['step seconds']):7.3f} {r['peak GiB']:8.1f} {r['reserved GiB']:8.1f} "
            f"{r.get('compile s', 0):9.0f} {r.get('padding') or 0:7.1%} {r.get('MFU') or 0:6.1%}   load {r['load s']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
