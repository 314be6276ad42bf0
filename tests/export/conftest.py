"""Exports of the tiny Gemma 3n, each made once for the session: copy before changing."""

import random
import shutil

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import adapters, export_runs, hub_upload
from helpers.hub_upload import TOKEN
from helpers.push_case import CARDS, SIZES, TO
from lib.common import files
from lib.common.errors import UserError
from lib.data import chat
from lib.export import gguf_export, merge, push
from lib.export.parity import reference
from lib.model.load import load_merged


@pytest.fixture(scope="session")
def trained(tiny_gemma3n, tmp_path_factory):
    """Return (adapter folder, losses) of six LoRA steps on one sentence."""
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(tiny_gemma3n, dtype=torch.float32)
    model = get_peft_model(net, adapters.lora_config())
    tokenizer = AutoTokenizer.from_pretrained(tiny_gemma3n)
    ids = tokenizer(export_runs.TEXT, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for _ in range(6):
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    folder = tmp_path_factory.mktemp("trained") / "adapter"
    model.save_pretrained(folder)
    return folder, losses


@pytest.fixture(scope="session")
def exported(tiny_gemma3n, trained, tmp_path_factory):
    """Return a run folder with adapter/, merged/ and gguf/tiny-q8_0.gguf, and the result of each step."""
    folder = tmp_path_factory.mktemp("exported")
    shutil.copytree(trained[0], folder / "adapter")
    path = folder / "gguf" / "tiny-q8_0.gguf"
    metadata = {"name": "Tiny", "license.name": "gemma"}
    steps = {
        "merge": merge.merge_adapter(tiny_gemma3n, folder / "adapter", folder / "merged"),
        "kv": merge.add_missing_shared_kv(folder / "merged", tiny_gemma3n),
        "gguf": gguf_export.write_gguf(folder / "merged", path, "q8_0", metadata),
    }
    return folder, steps


@pytest.fixture(scope="session")
def base(tiny_gemma3n, tmp_path_factory):
    """Return the tiny model's folder with every tensor that llama.cpp requires: K/V in all its layers."""
    folder = tmp_path_factory.mktemp("base") / "tiny"
    shutil.copytree(tiny_gemma3n, folder)
    merge.add_missing_shared_kv(folder)
    return folder


@pytest.fixture(scope="session")
def made(base, tmp_path_factory):
    """Return {type: result of write_ggufs} for `base`, each with its path, from one conversion."""
    folder = tmp_path_factory.mktemp("made")
    kinds = ("bf16", "q8_0", "q4_k_m", "q4_0")
    ggufs = {kind: folder / f"tiny-{kind}.gguf" for kind in kinds}
    fields = {
        "name": "Tiny",
        "license.name": "Gemma Terms of Use",
        "base_model.count": 1,
        "base_model.0.name": "tiny",
    }
    results = gguf_export.write_ggufs(base, ggufs, fields)
    return {result["type"]: result | {"path": ggufs[result["type"]]} for result in results}


@pytest.fixture(scope="session")
def whole(made):
    """Return the 16-bit GGUF of `base`."""
    return made["bf16"]["path"]


def _patch_sizes(patch):
    for name, value in (("ROWS", 4), ("POSITIONS", 16), ("TEXTS", 60)):
        patch.setattr(reference, name, value)


@pytest.fixture
def small(monkeypatch):
    """Draw fewer rows, positions and texts than a run, but enough to tell a random model from a damaged one."""
    _patch_sizes(monkeypatch)


@pytest.fixture(scope="session")
def parity_run(base, made, tmp_path_factory):
    """Return (16-bit folder, its Q8_0 file, a small reference, the data folder it is drawn from)."""
    data = tmp_path_factory.mktemp("parity") / "data"
    tokenizer = chat.load_chat(base)
    for name, count in (("train", 0), ("validation", 3), ("test", 4)):
        rows = [(f"What about {name} {n}?", f"{n}. {export_runs.ANSWER}") for n in range(count)]
        export_runs.write_split(data, name, rows, tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        _patch_sizes(patch)
        truth = reference.predict_reference(data, base, load_merged(base), seed=1)
    return base, made["q8_0"]["path"], truth, data


# --------------------------------------------------------------------------------------------------
# a run to push, and a hub that takes it


@pytest.fixture
def run(tmp_path):
    """Return a run folder whose weights are random bytes, different in every test."""
    source = random.Random(str(tmp_path))
    for path, size in SIZES.items():
        (tmp_path / "run" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / path).write_bytes(source.randbytes(size))
    return tmp_path / "run"


@pytest.fixture
def served(monkeypatch, tmp_path):
    with hub_upload.serving(monkeypatch, tmp_path / "token") as hub:
        hub.part_size = 10000
        yield hub


@pytest.fixture
def send(served, run, caplog, capfd):
    """Call push.push_run, and check that no line logged, printed, warned or raised has the token or a signed address."""
    lines = []

    def call(to=TO, artifacts=None, cards=CARDS, log=lines.append, **more):
        said = ""
        try:
            return push.push_run(
                run,
                to,
                files.describe_files(run, ["adapter", "merged", "gguf"])
                if artifacts is None
                else artifacts,
                cards,
                log=log,
                **more,
            )
        except UserError as error:
            said = str(error)
            raise
        finally:
            told = capfd.readouterr()
            shown = "\n".join([said, *lines, caplog.text, told.out, told.err])
            assert TOKEN not in shown, "the token is shown"
            assert "SIGNED" not in shown, "a signed address is shown"

    call.lines = lines
    return call
