"""Ask base + adapter one question; this file is copied into the adapter's folder.

The base must be the one that the adapter was trained on: its files are compared with
BASE_SHA256SUMS next to this file. The first question reads all of the base for that; later ones
compare the sizes and times of its files.

    pip install torch transformers peft accelerate     # for a Gemma 3n base also: timm torchvision
    python ask.py "My hand is burnt. What do I do first?"
    python ask.py --base FOLDER "..."                     # with a base that you have as a folder

Educational use only; not medical advice; it may be wrong. In an emergency, call your local
emergency number first.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import signal
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
DISCLAIMER = (
    "Educational use only. This is not medical advice, it may be wrong, and it does not replace "
    "a professional. In an emergency, call your local emergency number first."
)
SYSTEM = "You are a first-aid assistant that works offline. " + DISCLAIMER


def find_base(named: str | None, config: dict[str, Any]) -> pathlib.Path:
    """Return the base's folder: as named, near the adapter's folder, or from the hub."""
    base = named or config["base_model_name_or_path"]
    name = base.removeprefix("bundled:")
    places = [pathlib.Path(base).expanduser()]
    if base.startswith("bundled:"):
        caches = [os.environ.get("MEDRESCUE_CACHE"), *(top / ".cache" for top in HERE.parents)]
        places = [pathlib.Path(cache) / name for cache in caches if cache]
    elif not named:  # a path of the training is relative to the pipeline's folder
        places += [top / base for top in HERE.parents]
    for folder in places:
        if (folder / "config.json").is_file():
            return folder
    if base.startswith("bundled:"):
        raise SystemExit(
            f"The base of this adapter is {base}, which is on no hub: pass its folder with --base. "
            f"In the pipeline's own folder, after one run, that is .cache/{name}"
        )
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise SystemExit(
            f"The base `{base}` is not here: expected a model folder with a config.json. "
            f"Pass it with --base FOLDER, or a hub id with --base owner/name."
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.model", "*.jinja", "*.safetensors"]
    revision = None if named else config.get("revision")
    try:
        return pathlib.Path(snapshot_download(base, revision=revision, allow_patterns=patterns))
    except Exception as error:  # of the network, the hub or its client: all end here
        raise SystemExit(
            f"The base `{base}` could not be fetched: {(str(error).splitlines() or ['?'])[0]}\n"
            f"Check the network, and HF_TOKEN for a gated model; or pass its folder with --base."
        ) from None


def find_note() -> pathlib.Path | None:
    """Return the file that notes which bases were hashed; None for an account without a home."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        return None
    return pathlib.Path(cache) / "medrescue" / "hashed_bases.json"


def require_recorded(folder: pathlib.Path, sums: str) -> None:
    """End unless the base's files have the recorded hashes.

    Files that were hashed before, and whose size, times and inode are still the same, are not read
    again: whoever writes into a file changes its ctime.
    """
    note = find_note()
    known: dict[str, str] = {}
    if note:
        with contextlib.suppress(OSError, ValueError, TypeError):  # none yet, or damaged
            known = dict(json.loads(note.read_text(encoding="utf-8")))
    found = {}
    for line in sums.splitlines():
        recorded, name = line.split("  ", 1)
        path = (folder / name).resolve()
        state = "is missing"
        if path.is_file():
            stat = path.stat()
            identity = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
            digest = known.get(f"{path} {identity}")
            if digest is None:
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            found[f"{path} {identity}"] = digest
            if digest == recorded:
                continue
            state = "differs"
        raise SystemExit(
            f"{folder} is not the base that this adapter was trained on: {name} {state}. Its "
            f"answers would be another, untested model's. Pass the recorded base's folder with "
            f"--base."
        )
    if note and found.keys() - known.keys():
        with contextlib.suppress(OSError):  # then they are hashed again next time
            note.parent.mkdir(parents=True, exist_ok=True)
            draft = note.with_suffix(f".{os.getpid()}.tmp")
            draft.write_text(json.dumps({**known, **found}), encoding="utf-8")
            os.replace(draft, note)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument(
        "--base", help="the base model's folder or hub id (default: the one in adapter_config.json)"
    )
    parser.add_argument("--tokens", type=int, default=512, help="longest answer, in tokens")
    options = parser.parse_args()
    if not options.question.strip() or options.tokens < 1:
        parser.error("expected a question, and --tokens of at least 1")

    try:
        config = json.loads((HERE / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"no readable adapter_config.json in {HERE} ({error}). This script belongs in the "
            f"adapter's folder: run it there by its path, from wherever you are."
        ) from None
    try:  # here, since torch takes seconds to import and mistakes above are told at once
        import torch
        from peft import PeftModel
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise SystemExit(
            f"{error}: pip install torch transformers peft accelerate (a Gemma 3n base also needs "
            f"timm torchvision), or start this script with the pipeline's .venv/bin/python."
        ) from None

    base = find_base(options.base, config)
    sums = HERE / "BASE_SHA256SUMS"
    if sums.is_file():
        require_recorded(base, sums.read_text(encoding="utf-8"))

    tokenizer = AutoTokenizer.from_pretrained(base)
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": options.question},
    ]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    limits = AutoConfig.from_pretrained(base).get_text_config()
    room = limits.max_position_embeddings - options.tokens
    length = prompt["input_ids"].shape[1]
    if length > room:
        raise SystemExit(
            f"The question has {length:,} tokens with the system text ({len(options.question):,} "
            f"characters); at most {room:,} fit before an answer of {options.tokens:,}. "
            f"Ask in fewer words."
        )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map="auto")
    model = PeftModel.from_pretrained(model, HERE).eval()
    for layer in [m for m in model.modules() if hasattr(m, "trainable_tokens_delta")]:
        layer.merge()  # else peft copies the whole table for every token of the answer
    prompt = prompt.to(model.device)
    stop = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<end_of_turn>")]
    with torch.inference_mode():
        out = model.generate(
            **prompt,
            max_new_tokens=options.tokens,
            do_sample=False,
            top_k=None,
            top_p=None,
            eos_token_id=stop,
        )
    print(
        tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    )
    print(f"\n{DISCLAIMER}")
