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

PROMPT = [2, *range(2000, 2024)]
CONTINUATIONS = [
    (PROMPT, [600, 601, 602, 603]),
    (PROMPT, [600, 700]),
    (PROMPT[:9], [9, 8, 7, 6, 5]),
    ([2, 30], [31]),
]
TREE = token_tree.build_tree(CONTINUATIONS)


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setattr(device, "set_threads", lambda: 1)


@pytest.fixture(scope="module")
def gguf(bundled_base):
    return bundled_base.with_suffix(".gguf")


def alone(tree, number):
    """Return a tree of one of a tree's continuations."""
    nodes = [tree.asked[number][-1][0]]
    while tree.parents[nodes[0]] >= 0:
        nodes.insert(0, tree.parents[nodes[0]])
    answer = [token for _, token in tree.asked[number]]
    ids = [*(tree.ids[node] for node in nodes), answer[-1]]
    return token_tree.build_tree([(ids[: -len(answer)], answer)])


@pytest.mark.slow  # test_take.py compares such scores with the merged folder's
def test_a_tree_gives_what_the_server_gives_and_each_continuation_alone(gguf, monkeypatch, capfd):
    """Four-bit weights round by the size of a batch; a wrong mask or position is off by nats."""
    with llama.load_gguf(gguf, n_ctx=256, n_threads=1) as engine:
        likely = engine.next_token_logprobs(PROMPT)
    first, *_, last = likely
    letters = [(PROMPT, [first]), (PROMPT, [last])]
    tree = token_tree.build_tree([*CONTINUATIONS, *letters])
    with llama_trees.load_scorer(gguf, [tree]) as score:
        found = score(tree)
        single = [score(alone(tree, number))[0] for number in range(len(found))]
        assert score(tree) == found, "nothing of an earlier tree stays in the cache"
        monkeypatch.setattr(llama_trees, "SCORED_AT_ONCE", 2)
        monkeypatch.setattr(llama_trees, "TOKENS_AT_ONCE", 16)
        assert score(tree) == pytest.approx(found, abs=0.5)
    assert capfd.readouterr() == ("", "")
    assert found == pytest.approx(single, abs=0.5)
    assert found[-2:] == pytest.approx([likely[first], likely[last]], abs=0.3)


@pytest.fixture(scope="module")
def float16(tmp_path_factory):
    folder = tiny_gemma3.build(tmp_path_factory.mktemp("tiny") / "gemma3")
    gguf_export.write_gguf(folder, folder / "tiny.gguf", "f16")
    return folder


@pytest.mark.slow
def test_a_tree_gives_what_transformers_gives(float16, monkeypatch):
    """In one batch and in many, with a window of 512 that has left the beginning behind."""
    long = [2, *range(20, 560)]
    tree = token_tree.build_tree(
        [
            (long, [600, 601, 602, 603]),
            (long, [600, 700]),
            (long, [800]),
            (long[:300], [9, 8, 7, 6, 5]),
            ([2, 30], [31]),
        ]
    )
    net = AutoModelForCausalLM.from_pretrained(float16, dtype=torch.float32).eval()
    expected = []
    for number, asked in enumerate(tree.asked):
        ids = torch.tensor([alone(tree, number).ids])
        with torch.no_grad():
            after = torch.log_softmax(net(input_ids=ids).logits[0].float(), 1)[-len(asked) :]
        expected.append(
            sum(row[token].item() for row, (_, token) in zip(after, asked, strict=True))
        )
    with llama_trees.load_scorer(float16 / "tiny.gguf", [tree]) as score:
        assert score(tree) == pytest.approx(expected, abs=0.02)
        monkeypatch.setattr(llama_trees, "SCORED_AT_ONCE", 3)
        monkeypatch.setattr(llama_trees, "TOKENS_AT_ONCE", 100)
        assert score(tree) == pytest.approx(expected, abs=0.02)


def test_a_damaged_file_and_another_build_are_told(gguf, tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(gguf.read_bytes()[:5000])
    refused = pytest.raises(UserError, match=r"llama\.cpp does not load")
    with refused, llama_trees.load_scorer(damaged, [TREE]):
        pass
    monkeypatch.setitem(llama_trees.DEFAULTS, llama_trees.N_CTX, 4096)
    llama_trees._library.cache_clear()
    with pytest.raises(UserError, match="Install the version pinned"):
        llama_trees._library()


@pytest.mark.slow
def test_a_context_that_did_not_understand_is_refused(gguf, monkeypatch):
    """As if another build had the flag of the shared cache elsewhere."""
    monkeypatch.setattr(llama_trees, "KV_UNIFIED", 300)
    refused = pytest.raises(UserError, match="n_ctx_seq")
    with refused, llama_trees.load_scorer(gguf, [TREE]):
        pass
