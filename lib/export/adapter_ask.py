"""Ask base + adapter one question; this file is copied into the adapter's folder.

The base must be the one that the adapter was trained on: its files are compared with
BASE_SHA256SUMS next to this file.

    pip install torch transformers peft accelerate     # for a Gemma 3n base also: timm torchvision
    python ask.py "My hand is burnt. What do I do first?"
    python ask.py --base FOLDER "..."                     # with a base that you have as a folder

Educational use only; not medical advice; it may be wrong. In an emergency, call your local
emergency number first.
"""

import argparse
import hashlib
import json
import pathlib

import torch
from huggingface_hub import snapshot_download
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = pathlib.Path(__file__).resolve().parent
DISCLAIMER = (
    "Educational use only. This is not medical advice, it may be wrong, and it does not replace "
    "a professional. In an emergency, call your local emergency number first."
)
SYSTEM = "You are a first-aid assistant that works offline. " + DISCLAIMER

parser = argparse.ArgumentParser()
parser.add_argument("question")
parser.add_argument(
    "--base", help="the base model's folder or hub id (default: the one in adapter_config.json)"
)
parser.add_argument("--tokens", type=int, default=512, help="longest answer, in tokens")
options = parser.parse_args()

config = json.loads((HERE / "adapter_config.json").read_text(encoding="utf-8"))
base = options.base or config["base_model_name_or_path"]
revision = None if options.base else config.get("revision")
if base.startswith("bundled:"):
    raise SystemExit(
        f"The base of this adapter is {base}, which is on no hub: pass its folder with --base. "
        f"In the pipeline's own folder, after one run, "
        f"that is .cache/{base.removeprefix('bundled:')}"
    )

folder = pathlib.Path(base)
if not folder.is_dir():
    patterns = ["*.json", "*.model", "*.jinja", "*.safetensors"]
    folder = pathlib.Path(snapshot_download(base, revision=revision, allow_patterns=patterns))
sums = HERE / "BASE_SHA256SUMS"
for line in sums.read_text(encoding="utf-8").splitlines() if sums.is_file() else []:
    recorded, name = line.split("  ", 1)
    path = folder / name
    state = "is missing"
    if path.is_file():
        with open(path, "rb") as file:
            state = "differs"
            if hashlib.file_digest(file, "sha256").hexdigest() == recorded:
                continue
    raise SystemExit(
        f"{folder} is not the base that this adapter was trained on: {name} {state}. Its answers "
        f"would be another, untested model's. Pass the recorded base's folder with --base."
    )

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="auto")
model = PeftModel.from_pretrained(model, HERE).eval()

messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": options.question}]
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
).to(model.device)
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
print(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip())
print(f"\n{DISCLAIMER}")
