"""The hand-written layers on one NVIDIA GPU: how exact they are, how fast each kernel, each product and a whole micro-batch is.

    python tests/benchmarks/stack.py [--rows 16] [--no-reference] [--out FILE]       # about two minutes

Gemma 3n E4B's structure with random weights, built on the card; rows as in train_gpu.py. Loss and adapter gradients are
compared with a float32 run of the same weights, beside those of transformers' own layers in bfloat16. A kernel's share is of
the card's copy rate, by the bytes that it must move at least. --out adds the results to a file, as lines of JSON.
"""

import argparse
import json
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

import torch
import train_gpu
from transformers import AttentionInterface, Gemma3nConfig, Gemma3nForCausalLM

from lib import params
from lib.model import adapter
from lib.training import batches, compiled, loss, packed, plan
from lib.training.masters import Masters
from lib.training.stack import fits
from lib.training.stack.stack import Stack

ROOT = pathlib.Path(__file__).parents[2]
BEGUN = time.monotonic()


def say(*words):
    print(f"{time.monotonic() - BEGUN:6.1f} s ", *words, flush=True)


def build(job):
    """Return E4B's language model with random weights and an adapter whose B is not zero."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        net = Gemma3nForCausalLM(Gemma3nConfig().get_text_config())
    torch.set_default_dtype(torch.float32)
    draw = torch.Generator("cuda").manual_seed(0)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.ndim < 2:  # small branches keep a random model smooth
                p.fill_(
                    0.35 if "q_norm" in name or "k_norm" in name else 0.4 if ".post_" in name else 1
                )
            else:
                size = 0.1 if "_coefs" in name else 0.02 if "embed" in name else p.shape[1] ** -0.5
                p.normal_(0, size, generator=draw)
    net.config.use_cache = False
    net = adapter.add(net.requires_grad_(False), job)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.01, generator=draw)
    return net.train()


# --------------------------------------------------------------------------------------------------
# how exact


def by_transformers(net, batch):
    with packed.attend_within_rows(net):
        value = compiled.forward_backward(net, batch)
    gradients = {n: p.grad.float() for n, p in net.named_parameters() if p.requires_grad}
    net.zero_grad(set_to_none=True)
    loss.free_buffers()
    torch.cuda.empty_cache()
    return float(value), gradients


def attention_in_float32(
    module, q, k, v, mask, scaling=None, sliding_window=None, bounds=None, **_
):
    """Plain attention under the mask: FlashAttention knows no float32."""
    mask = packed.same_row_mask(bounds, q.shape[2], sliding_window or 0)
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return out.transpose(1, 2), None


def in_float32(net, batch):
    """Return loss and gradients with the same weights in float32; the model is in bfloat16 again afterwards."""
    AttentionInterface.register(packed.NAME, attention_in_float32)
    for p in net.parameters():
        p.data = p.data.float()
    result = by_transformers(net, batch)
    for p in net.parameters():
        p.data = p.data.bfloat16()
    AttentionInterface.register(packed.NAME, packed.attention)
    torch.cuda.empty_cache()
    return result


def compare(found, truth):
    """Return how far loss and gradients are off: of all together, and of each kind of factor the relative norm."""
    (value, gradients), (true_value, true) = found, truth
    off, size, along, ours = {}, {}, 0.0, 0.0
    for name, gradient in true.items():
        kind = ".".join(name.split(".")[-4:-2])  # q_proj.lora_A
        mine = gradients[name].float()
        off[kind] = off.get(kind, 0) + float((mine - gradient).square().sum())
        size[kind] = size.get(kind, 0) + float(gradient.square().sum())
        along += float((mine * gradient).sum())
        ours += float(mine.square().sum())
    return {
        "loss": value,
        "loss_off": abs(value - true_value) / true_value,
        "gradient_off": (sum(off.values()) / sum(size.values())) ** 0.5,
        "cosine": along / (ours * sum(size.values())) ** 0.5,
        "off_by_factor": {kind: round((off[kind] / size[kind]) ** 0.5, 4) for kind in off},
    }


# --------------------------------------------------------------------------------------------------
# how fast


def milliseconds(run, times):
    """Return the mean time of a call on the card."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(times):
        run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / times


def copy_rate():
    """Return the bytes a second, read and written, of a copy of 2 GiB."""
    source = torch.empty(2**30, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    milliseconds(lambda: target.copy_(source), 3)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), 10) * 1e3


def record(run):
    """Return a CUDA graph of a function, which runs twice before."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(), run()
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.graph(graph):
        run()
    return graph


def profile(graph):
    """Return each kernel's number of launches and microseconds in all of one replay."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        graph.replay()
        torch.cuda.synchronize()
    found = {}
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            count, sum_us = found.get(event.name, (0, 0.0))
            found[event.name] = count + 1, sum_us + event.time_range.elapsed_us()
    return found


def bytes_moved(stack):
    """Return the fewest bytes that each kernel moves for a token in all its launches; README.md has the same table."""
    layers = stack.layers.layers
    own = sum(layer.owns_keys for layer in layers)
    h, q, d = stack.layers.width, stack.layers.part_width, stack.layers.size
    n = sum(layer.inner for layer in layers)
    sparse = sum(layer.inner for layer in layers if layer.factor is not None)
    turned = len(layers) * stack.layers.queries * d + own * 2 * stack.layers.keys * d
    count = len(layers)
    numbers = {
        "enter_kernel": (11 * count + 8) * h,
        "enter_back_kernel": 18 * (count - 1) * h,
        "leave_back_kernel": 5 * h,
        "exit_kernel": 5 * count * h,
        "exit_back_kernel": 11 * count * h,
        "middle_kernel": 6 * count * h,
        "middle_back_kernel": 10 * count * h,
        "activate_kernel": 3 * n + sparse,
        "activate_back_kernel": 5 * n + 3 * sparse,
        "rotate_kernel": 2 * turned + 2 * count * d,
        "rotate_back_kernel": 3 * turned + 2 * count * d,
        "gate_kernel": 3 * count * q,
        "gate_back_kernel": 4 * count * q,
    }
    return {name: 2 * number for name, number in numbers.items()}


def time_products(stack, tokens):
    """Return the TFLOP/s of a layer's large products, each with the spare columns."""
    layer, width = stack.layers.layers[0], stack.layers.width
    wide, joined = layer.qkv[:, : width + layer.low], layer.gate_up[:, : width + 2 * layer.rank]
    found = {}
    for name, weight in (("qkv", wide), ("o", layer.o), ("gate_up", joined), ("down", layer.down)):
        for way, other in (("forward", weight.T), ("back", weight)):
            x = torch.randn(tokens, len(other), dtype=weight.dtype, device="cuda")
            milliseconds(lambda x=x, other=other: x @ other, 5)
            ms = milliseconds(lambda x=x, other=other: x @ other, 20)
            found[f"{name} {way}"] = 2 * tokens * weight.numel() / ms / 1e9
    return found


def print_kernels(times, moved, tokens, rate):
    """Print the kernels' table; return its rows, and the sums of what are not ours."""
    rows, others = [], {"products": 0.0, "attention": 0.0, "other": 0.0}
    for name, (count, us) in times.items():
        if name not in moved and name != "exchange_kernel":
            kind = "attention" if "flash" in name else "products"
            if kind == "products" and not any(
                word in name for word in ("gemm", "nvjet", "cutlass")
            ):
                kind = "other"
            others[kind] += us / 1e3
            continue
        share = moved[name] * tokens / (us * 1e-6) / rate if name in moved else None
        rows.append(
            {"kernel": name, "launches": count, "us": us / count, "share_of_copy_rate": share}
        )
    print(f"{'kernel':22} {'launches':>8} {'us each':>8} {'of the copy rate':>17}")
    for row in sorted(rows, key=lambda row: -row["us"] * row["launches"]):
        share = row["share_of_copy_rate"]
        print(
            f"{row['kernel']:22} {row['launches']:8} {row['us']:8.1f} {'' if share is None else f'{share:17.0%}'}"
        )
    print("the others, ms:", {kind: round(ms, 2) for kind, ms in others.items()}, flush=True)
    return {"kernels": rows, "others_ms": others}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=16, help="rows of the micro-batch")
    parser.add_argument("--no-reference", action="store_true", help="only speed")
    parser.add_argument("--out", type=pathlib.Path, help="file to add lines of JSON to")
    args = parser.parse_args()

    job = params.load_job(
        str(ROOT / "params/h100.yaml"), f"per_device_train_batch_size={args.rows}"
    )
    rows = train_gpu.make_rows(8 * args.rows)
    sizes = plan.read_sizes(rows)
    shape = plan.find_shape(sizes, job.model_copy(update={"max_steps": 8}))
    _, step = next(plan.iterate_steps(sizes.lengths, 0, job))
    batch = batches.make_batch(rows[step[0]], shape, 1 / sum(sizes.trained[step[0]]))
    longest = shape.longest
    net, batch = build(job), batch.to("cuda")
    say("built", shape, "the longest row has", longest)
    assert not fits.find_hindrance(net, job), fits.find_hindrance(net, job)
    results = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "rows": args.rows,
        "tokens": shape.tokens,
    }

    truth = None
    if not args.no_reference:
        plain = by_transformers(net, batch)
        truth = in_float32(net, batch)
        results["transformers"] = compare(plain, truth)
        say("transformers in bfloat16, beside float32:", json.dumps(results["transformers"]))
        del plain

    torch.cuda.reset_peak_memory_stats()
    stack = Stack(net, longest)
    masters = Masters(net, job)
    stack.bind(masters)
    torch.cuda.empty_cache()
    say(
        "weights joined, GiB",
        round(torch.cuda.memory_allocated() / 2**30, 2),
        "at most",
        round(torch.cuda.max_memory_allocated() / 2**30, 2),
    )
    value = float(stack(batch))
    results["first_pass_s"] = time.monotonic() - BEGUN
    say("first pass, loss", value)
    if truth:
        results["stack"] = compare((value, masters.gradients), truth)
        say("the hand-written layers, beside float32:", json.dumps(results["stack"]))
        del truth

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    graph, publish = record(lambda: stack(batch)), record(masters.publish)
    milliseconds(graph.replay, 3)
    results["replay_ms"] = [milliseconds(graph.replay, 10) for _ in range(3)]
    results["publish_ms"] = milliseconds(publish.replay, 10)
    results["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    say(
        "a replay, ms",
        results["replay_ms"],
        "publishing",
        results["publish_ms"],
        "peak GiB",
        round(results["peak_gib"], 2),
    )
    rate = copy_rate()
    results["copy_tb_s"] = rate / 1e12
    say("copy rate, TB/s", round(rate / 1e12, 2))
    results |= print_kernels(profile(graph), bytes_moved(stack), shape.tokens, rate)
    results["products_tflop_s"] = time_products(stack, shape.tokens)
    say("TFLOP/s", {name: round(rate) for name, rate in results["products_tflop_s"].items()})
    if args.out:
        with args.out.open("a") as file:
            file.write(json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
