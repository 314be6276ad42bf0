"""A run to push, and what a complete push looks like on the stand-in."""

import hashlib

TO = "maria/first-aid"
LORA, MERGED, GGUF = "maria/first-aid-lora", "maria/first-aid", "maria/first-aid-lora-gguf"
CARD = "---\nlicense: gemma\n---\n# First aid\nEducational use only.\n"
CARDS = {part: CARD.replace("First aid", part) for part in ("adapter", "merged", "gguf")}
SIZES = {
    "adapter/adapter_model.safetensors": 9000,
    "adapter/adapter_config.json": 300,
    "merged/model-00001-of-00002.safetensors": 25000,
    "merged/model-00002-of-00002.safetensors": 12000,
    "merged/config.json": 200,
    "merged/tokenizer/tokenizer.json": 4000,
    "gguf/model-q8_0.gguf": 20000,
    "gguf/Modelfile": 100,
    "gguf/notes.json": 0,
}


def content(run, part):
    return {
        path.relative_to(run / part).as_posix(): path.read_bytes()
        for path in (run / part).rglob("*")
        if path.is_file()
    }


def assert_complete(served, run, private=True):
    assert set(served.repos) == {LORA, MERGED, GGUF}
    for repo, part in ((LORA, "adapter"), (MERGED, "merged"), (GGUF, "gguf")):
        held, own = dict(served.repos[repo].files), content(run, part)
        assert held.pop("README.md").decode() == CARDS[part]
        sums = dict(
            reversed(line.split("  ")) for line in held.pop("SHA256SUMS").decode().splitlines()
        )
        assert held == own
        assert sums == {path: hashlib.sha256(data).hexdigest() for path, data in own.items()}
        assert served.repos[repo].private is private
