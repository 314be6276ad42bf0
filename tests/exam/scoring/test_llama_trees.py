"""Trees of tokens in llama.cpp, against transformers in float32 and against llama.cpp's own server.

python -m pytest tests/exam/scoring/test_llama_trees.py
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from helpers import tiny_gemma3
from lib.common.errors import UserError
from lib.exam.scoring import llama_trees, token_tree
from lib.export import gguf_export
from lib.model import device, llama

PROMPT = [2, *range(20, 560)]  # longer than the sliding window of 512 tokens


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_gemma3.build(tmp_path_factory.mktemp("tiny") / "gemma3")
    gguf_export.write_gguf(folder, folder / "tiny.gguf", "f16")
    return folder


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(device, "set_threads", lambda: 1)


TREE = token_tree.build_tree(
    [
        (PROMPT, [600, 601, 602, 603]),
        (PROMPT, [600, 700]),
        (PROMPT, [800]),
        (PROMPT[:300], [9, 8, 7, 6, 5]),
        ([2, 30], [31]),
    ]
)


def test_a_tree_gives_what_transformers_gives(folder, monkeypatch):
    """In one batch and in many, with a window that has left the prompt's beginning behind."""
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for asked in TREE.asked:
        node, nodes = asked[-1][0], []
        while node >= 0:
            nodes.insert(0, node)
            node = TREE.parents[node]
        with torch.no_grad():
            logits = net(input_ids=torch.tensor([[TREE.ids[n] for n in nodes]])).logits[0]
        after = torch.log_softmax(logits.float(), 1)[-len(asked) :]
        expected.append(
            sum(row[token].item() for row, (_, token) in zip(after, asked, strict=True))
        )
    with llama_trees.load_scorer(folder / "tiny.gguf", [TREE]) as score:
        found = score(TREE)
        assert found == pytest.approx(expected, abs=0.02)
        monkeypatch.setattr(llama_trees, "SCORED_AT_ONCE", 3)
        monkeypatch.setattr(llama_trees, "TOKENS_AT_ONCE", 100)
        assert score(TREE) == pytest.approx(expected, abs=0.02)
        monkeypatch.undo()
        assert score(TREE) == found, "nothing of an earlier tree stays in the cache"


def test_the_server_gives_the_same_after_a_prompt(folder):
    with llama.load_gguf(folder / "tiny.gguf", n_ctx=600, n_threads=1) as engine:
        likely = engine.next_token_logprobs(PROMPT, 2**18)
    with llama_trees.load_scorer(folder / "tiny.gguf", [TREE]) as score:
        assert score(TREE)[2] == pytest.approx(likely[800], abs=0.01)


def test_a_damaged_file_and_another_build_are_told(folder, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((folder / "tiny.gguf").read_bytes()[:5000])
    refused = pytest.raises(UserError, match=r"llama\.cpp does not load")
    with refused, llama_trees.load_scorer(damaged, [TREE]):
        pass
    monkeypatch.setitem(llama_trees.DEFAULTS, llama_trees.N_CTX, 4096)
    llama_trees._library.cache_clear()
    with pytest.raises(UserError, match="Install the version pinned"):
        llama_trees._library()


def test_a_context_that_did_not_understand_is_refused(folder, monkeypatch):
    """As if another build had the flag of the shared cache elsewhere."""
    monkeypatch.setattr(llama_trees, "KV_UNIFIED", 300)
    refused = pytest.raises(UserError, match="n_ctx_seq")
    with refused, llama_trees.load_scorer(folder / "tiny.gguf", [TREE]):
        pass


def test_nothing_is_printed(folder, capfd):
    with llama_trees.load_scorer(folder / "tiny.gguf", [TREE]) as score:
        score(TREE)
    assert capfd.readouterr() == ("", "")
