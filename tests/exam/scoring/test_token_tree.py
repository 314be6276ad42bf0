"""Trees of tokens: every continuation is found in them whole, and nothing stands twice.

python -m pytest tests/exam/scoring/test_token_tree.py
"""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.exam.scoring import token_tree

IDS = st.lists(st.integers(0, 3), min_size=1, max_size=6)
CONTINUATIONS = st.lists(st.tuples(IDS, IDS), min_size=1, max_size=8)


def path(tree, node):
    """Return the nodes from the root to a node."""
    return [*path(tree, tree.parents[node]), node] if node >= 0 else []


@settings(max_examples=40)
@given(CONTINUATIONS)
def test_each_continuation_stands_in_the_tree_once_and_whole(continuations):
    tree = token_tree.build_tree(continuations)
    for (prompt, answer), asked in zip(continuations, tree.asked, strict=True):
        assert [token for _, token in asked] == answer
        for number, (node, _) in enumerate(asked):
            nodes = path(tree, node)
            assert [tree.ids[n] for n in nodes] == [*prompt, *answer[:number]]
            assert [tree.depths[n] for n in nodes] == list(range(len(nodes)))
    beginnings = {
        tuple([*prompt, *answer][:length])
        for prompt, answer in continuations
        for length in range(1, len(prompt) + len(answer))
    }
    assert len(tree.ids) == len(beginnings), "each beginning once, and no more"
    assert all(parent < node for node, parent in enumerate(tree.parents))


@settings(max_examples=40)
@given(CONTINUATIONS, st.integers(0, 4))
def test_a_node_sees_its_ancestors_within_the_window(continuations, window):
    tree = token_tree.build_tree(continuations)
    expected = np.zeros((len(tree.ids),) * 2, bool)
    for node in range(len(tree.ids)):
        expected[node, path(tree, node)[-window:]] = True
    assert (token_tree.ancestor_mask(tree, window) == expected).all()


@settings(max_examples=40)
@given(CONTINUATIONS)
def test_a_node_is_in_the_sequence_of_each_leaf_below_it(continuations):
    tree = token_tree.build_tree(continuations)
    leaves = [node for node in range(len(tree.ids)) if node not in tree.parents]
    sequences = token_tree.leaf_sequences(tree)
    for number, leaf in enumerate(leaves):
        assert [n for n, found in enumerate(sequences) if number in found] == path(tree, leaf)


def test_what_is_asked_after_one_node_is_asked_once():
    tree = token_tree.build_tree([([2, 7], [4]), ([2, 7], [5]), ([2, 7], [4, 6])])
    assert token_tree.scored_nodes(tree) == [1, 2]
    assert tree.asked == [[(1, 4)], [(1, 5)], [(1, 4), (2, 6)]]
