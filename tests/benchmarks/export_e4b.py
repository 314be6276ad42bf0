"""Memory, time and sizes of exporting Gemma 3n E4B: its exact structure with random 16-bit weights, merged, converted and packed on a CPU.

    python tests/benchmarks/export_e4b.py FOLDER                 # 45 GB free there; a quarter of an hour on 2 cores; empties it again

Text weights under the names of the hub's repository, K/V of the sharing layers included; the picture and audio towers as numbers of about
their size. Each stage runs in a process of its own (with the converter's), whose memory is read from /proc 20 times a second: anonymous is what it
must have, resident also counts pages of files it maps. The merge also runs under `ulimit -d`, so that it would die above LIMIT anonymous bytes.
Some merged weights are then computed again in float32 from base and adapter, and a base tensor that has no adapter is compared.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Gemma3nConfig, Gemma3nForCausalLM

from lib import params
from lib.common import files, machine
from lib.export import gguf_plan, merge
from lib.model import adapter, bundled
from lib.model.shards import locate_tensors

ROOT = pathlib.Path(__file__).parents[2]
PUBLISHED = 7_353_292_256  # bytes of the Q8_0 on the hub, whose embeddings have 262,144 rows; today's converter writes 262,400
TOWERS = {
    "model.vision_tower.timm_model.all": (293_000, 1024),
    "model.audio_tower.all": (666_000, 1024),
}
SHARD, PIECE, LIMIT = 4_900_000_000, 1 << 24, 2 << 30


def make_base(folder):
    """Write the base in the hub's layout, tensor by tensor in pieces, so that it needs little memory."""
    config = Gemma3nConfig(architectures=["Gemma3nForConditionalGeneration"], dtype="bfloat16")
    with torch.device("meta"):
        net = Gemma3nForCausalLM(config.text_config)
    shapes = {
        name: tuple(weight.shape)
        for name, weight in net.named_parameters()
        if name != "lm_head.weight"
    }
    for layer in range(
        config.text_config.num_hidden_layers - config.text_config.num_kv_shared_layers,
        config.text_config.num_hidden_layers,
    ):
        shapes |= {
            f"model.layers.{layer}.self_attn.{part}.weight": shapes[
                f"model.layers.0.self_attn.{part}.weight"
            ]
            for part in merge.SHARED_KV
        }
    shapes = {
        name.replace("model.", "model.language_model.", 1): shape for name, shape in shapes.items()
    } | TOWERS
    shards, size = [{}], 0
    for name, shape in shapes.items():
        new = 2 * torch.Size(shape).numel()
        if shards[-1] and size + new > SHARD:
            shards, size = [*shards, {}], 0
        shards[-1][name], size = shape, size + new
    generator, index = torch.Generator().manual_seed(0), {}
    pool = (
        0.02 * torch.randn(2 * PIECE, generator=generator)
    ).bfloat16()  # a piece is some stretch of it: 8e9 draws would take minutes
    for n, shard in enumerate(shards, 1):
        path, header, end = (
            folder / f"model-{n:05}-of-{len(shards):05}.safetensors",
            {"__metadata__": {"format": "pt"}},
            0,
        )
        for name, shape in shard.items():
            header[name] = {
                "dtype": "BF16",
                "shape": shape,
                "data_offsets": [end, end := end + 2 * torch.Size(shape).numel()],
            }
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with open(path, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for shape in shard.values():
                numbers = torch.Size(shape).numel()
                for start in range(0, numbers, PIECE):
                    at = int(torch.randint(PIECE, (), generator=generator))
                    piece = pool[at : at + min(PIECE, numbers - start)] + float(len(shape) == 1)
                    file.write(piece.view(torch.uint8).numpy())
        index |= dict.fromkeys(shard, path.name)
    files.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})
    config.save_pretrained(folder)
    for name in (
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ):  # Gemma's vocabulary, with the control tokens
        shutil.copyfile(bundled.materialize(ROOT / ".cache") / name, folder / name)
    return config


def make_adapter(folder, config):
    """Write an adapter like `adapter.save`, with r=8 on the language layers and B not zero."""
    job = params.Params(load_in_4bit=False, optim="adamw_torch")
    with torch.device("meta"):
        net = adapter.add(Gemma3nForCausalLM(config.text_config).requires_grad_(False), job)
    net.peft_config["default"].save_pretrained(str(folder))
    generator = torch.Generator().manual_seed(1)
    save_file(
        {
            name.replace(".default.", ".").replace(
                "base_model.model.model.", "base_model.model.model.language_model.", 1
            ): 0.05 * torch.randn(p.shape, generator=generator)
            for name, p in adapter.trainable(net).items()
        },
        folder / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    print(
        f"adapter: {adapter.count_parameters(net)[0]:,} parameters in {adapter.check_size(net, job)} modules"
    )


def measured(call, limit=None):
    """(what `call`, an expression over lib.export, gave as JSON) of a fresh process and its children."""
    allow = (
        functools.partial(resource.setrlimit, resource.RLIMIT_DATA, (limit, limit))
        if limit
        else None
    )
    begin, most, before = time.monotonic(), [0, 0], resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import json; from pathlib import Path; from lib.export import gguf_export, merge; found = {call}; print(json.dumps(found))"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=allow
    ) as run:
        tree = psutil.Process(run.pid)
        while run.poll() is None:
            texts = []
            for one in [tree, *tree.children(recursive=True)]:
                with contextlib.suppress(OSError):  # it has ended
                    texts.append(pathlib.Path(f"/proc/{one.pid}/status").read_text())
            most = [
                max(
                    before,
                    sum(
                        int(size) for text in texts for size in re.findall(rf"{key}:\s+(\d+)", text)
                    ),
                )
                for before, key in zip(most, ("RssAnon", "VmRSS"), strict=True)
            ]
            time.sleep(0.05)
        seconds, said = time.monotonic() - begin, run.stdout.read().splitlines()
    if run.returncode:
        sys.exit(f"{call} failed, exit status {run.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"  {seconds:.0f} s, {busy:.0f} s of processor time; at most {most[0] / 2**20:.2f} GiB anonymous, {most[1] / 2**20:.2f} GiB resident",
        flush=True,
    )
    return json.loads(said[-1])


def compare(base, tuned, out):
    """Compare merged weights with W + scale * B @ A in float32, rounded, and a layer's others with the base."""
    pairs, scale, _ = merge.read_adapter(tuned)
    ours, theirs = locate_tensors(out), locate_tensors(base)
    checked = 0
    for name in ours:
        module = f"{name.removesuffix('.weight')}"
        if not any(f".layers.{n}." in name for n in (0, 19, 34)) and "altup_proj" not in name:
            continue
        with safe_open(ours[name], "pt") as one, safe_open(theirs[name], "pt") as two:
            merged, weight = one.get_tensor(name), two.get_tensor(name)
        if module in pairs:
            a, b = pairs[module]
            assert not torch.equal(merged, weight), name
            weight = (weight.double() + scale * b.double() @ a.double()).float()
            assert (merged.float() - weight).abs().max() <= 2**-8 * weight.abs().max(), name
            assert ((merged.float() - weight).abs() <= 2**-8 * weight.abs() + 1e-6).all(), name
        else:
            assert torch.equal(merged, weight), name
        checked += 1
    print(
        f"  {checked} tensors compared, {sum(f'.layers.{n}.' in m for m in pairs for n in (0, 19, 34))} of them with an adapter: as computed"
    )


def main(scratch):
    base, tuned, out, gguf = (scratch / name for name in ("base", "adapter", "merged", "gguf"))
    for folder in (base, tuned):
        folder.mkdir(parents=True)
    print(
        f"{machine.hardware()['cpu']}, {machine.cores()} cores; torch {torch.__version__}, transformers {transformers.__version__}"
    )
    config = make_base(base)
    make_adapter(tuned, config)
    print(
        f"merging into {files.size_of(base) / 1e9:.2f} GB, with at most {LIMIT / 2**30:g} GiB of data"
    )
    print(
        " ",
        measured(
            f"merge.merge_adapter(*map(Path, ({str(base)!r}, {str(tuned)!r}, {str(out)!r})))", LIMIT
        ),
    )
    compare(base, tuned, out)
    print(" ", measured(f"merge.add_missing_shared_kv(Path({str(out)!r}), Path({str(base)!r}))"))
    shutil.rmtree(base)
    print("converting, Q8_0 and Q4_K_M")
    for made in measured(
        f"gguf_export.write_ggufs(Path({str(out)!r}), {{kind: Path(f'{gguf}/e4b-{{kind}}.gguf') for kind in ('q8_0', 'q4_k_m')}})"
    ):
        print(
            f"  {made['type']}: {made['bytes']:,} bytes, predicted {made['predicted_bytes']:,} ({made['predicted_bytes'] / made['bytes'] - 1:+.5%}); {made['types']}"
        )
    text = config.text_config
    for rows in (text.vocab_size, 262_144):
        text.vocab_size = rows
        size = gguf_plan.predict_bytes(text, "q8_0")
        print(
            f"  predicted with {rows:,} tokens {size:,}: {size / PUBLISHED - 1:+.5%} of the published {PUBLISHED:,}"
        )
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]).resolve() / "e4b-export")
