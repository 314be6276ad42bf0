"""Continuations of prompts as a tree of tokens, in which a common beginning stands only once.

    tree = token_tree.build_tree([([2, 7, 9], [4, 5]), ([2, 7, 9], [4, 6, 1])])
    len(tree.ids)     # 5: 2, 7, 9, 4 and 6; the last token of a continuation is only predicted
    tree.asked[1]     # [(2, 4), (3, 6), (4, 1)]: after node 2 token 4, after node 3 token 6, ...

A token sees only its ancestors, at its depth as its position. So its hidden state is the one it has
in its own sequence alone, whatever else is in the tree. Both engines compute such trees in one
pass: transformers with a mask, llama.cpp with one sequence for each leaf.
"""

from typing import NamedTuple

import numpy as np

# the token ids of a prompt, and those of a continuation whose likelihood is asked
Continuation = tuple[list[int], list[int]]


class TokenTree(NamedTuple):
    """Tokens whose parents come before them, and what is asked after them.

    `ids`, `parents` (-1 for a root) and `depths` (a root's is 0) have a value for each node.
    `asked` has a list for each continuation: (node, token whose likelihood after it is wanted).
    """

    ids: list[int]
    parents: list[int]
    depths: list[int]
    asked: list[list[tuple[int, int]]]


def build_tree(continuations: list[Continuation]) -> TokenTree:
    """Return the tree of all prompts and continuations; each continuation has a token or more."""
    ids: list[int] = []
    parents: list[int] = []
    depths: list[int] = []
    asked: list[list[tuple[int, int]]] = []
    children: dict[tuple[int, int], int] = {}  # (parent, token id): node
    for prompt, answer in continuations:
        node, wanted = -1, []
        for depth, token in enumerate([*prompt, *answer]):
            if depth >= len(prompt):
                wanted.append((node, token))
            if depth == len(prompt) + len(answer) - 1:
                break  # nothing is asked after the last token
            if (node, token) not in children:
                children[node, token] = len(ids)
                ids.append(token)
                parents.append(node)
                depths.append(depth)
            node = children[node, token]
        asked.append(wanted)
    return TokenTree(ids, parents, depths, asked)


def scored_nodes(tree: TokenTree) -> list[int]:
    """Return the nodes after which something is asked, each once, in the tree's order."""
    return sorted({node for wanted in tree.asked for node, _ in wanted})


def ancestor_mask(tree: TokenTree, window: int = 0) -> np.ndarray:
    """Return (nodes, nodes), true where a node (row) sees another (column): an ancestor or itself.

    With a window, it sees at most `window - 1` tokens back, as a sliding layer does.
    """
    count = len(tree.ids)
    seen = np.zeros((count, count), bool)
    for node, parent in enumerate(tree.parents):
        if parent >= 0:
            seen[node] = seen[parent]
        seen[node, node] = True
    if window:
        depths = np.array(tree.depths)
        seen &= depths[:, None] - depths[None] < window
    return seen


def leaf_sequences(tree: TokenTree) -> list[list[int]]:
    """Return for each node the numbers of the leaves below it (its own, if it is one)."""
    inner = set(tree.parents)
    leaves: list[list[int]] = [[] for _ in tree.ids]
    number = 0
    for node in range(len(tree.ids)):
        if node in inner:
            continue
        above = node
        while above >= 0:
            leaves[above].append(number)
            above = tree.parents[above]
        number += 1
    return leaves
