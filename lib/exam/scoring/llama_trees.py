"""Score trees of tokens with llama.cpp, each shared beginning computed once.

    with llama_trees.load_scorer(path, trees) as score:
        score(tree)     # the log-likelihood of each continuation, in nats

The server of xllamacpp returns probabilities only after a prompt's last token, and those of the
whole vocabulary take seconds. So this calls the C functions of the llama.cpp inside xllamacpp. Its
two structs of parameters are taken from llama.cpp as bytes, of which six values are changed; the
context then says whether it understood them.
"""

import contextlib
import ctypes
import functools
import math
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
import xllamacpp

from lib.common.errors import UserError
from lib.exam.scoring.token_tree import TokenTree, leaf_sequences, scored_nodes
from lib.model import device
from lib.model.llama_probe import require_loadable

TOKENS_AT_ONCE = 512
# logits of 262,144 words in float32 take 1 MiB, and llama.cpp reserves room for all of a batch
SCORED_AT_ONCE = 128
# where the context's parameters are changed, and what llama.cpp itself puts there
N_CTX, N_BATCH, N_UBATCH, N_SEQ_MAX, N_OUTPUTS, N_THREADS, N_THREADS_BATCH = 0, 4, 8, 12, 20, 28, 32
DEFAULTS = {N_CTX: 512, N_BATCH: 2048, N_UBATCH: 512, N_SEQ_MAX: 1, N_OUTPUTS: 0, N_THREADS: 4}
KV_UNIFIED = 141  # one byte: all sequences share the cells of one cache

Score = Callable[[TokenTree], list[float]]


class _Params(ctypes.Structure):
    """Room for either struct of parameters; llama.cpp writes and reads only as much as it has."""

    _fields_ = (("bytes", ctypes.c_ubyte * 512),)


class _Batch(ctypes.Structure):
    """`llama_batch`: pointers to one value for each token."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.c_void_p),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.c_void_p),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    """Open llama.cpp inside xllamacpp, and declare the functions that are called."""
    library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    signatures = {
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits_ith": (pointer, [pointer, number]),
        "llama_get_memory": (pointer, [pointer]),
        "llama_memory_clear": (None, [pointer, ctypes.c_bool]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_free": (None, [pointer]),
        "llama_model_free": (None, [pointer]),
        "llama_log_get": (None, [pointer, pointer]),
        "llama_log_set": (None, [pointer, pointer]),
    }
    asked = ("n_ctx", "n_ctx_seq", "n_batch", "n_ubatch", "n_seq_max", "n_threads")
    signatures |= {f"llama_{name}": (number, [pointer]) for name in asked}
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
        defaults = bytes(library.llama_context_default_params().bytes)
    except AttributeError as error:
        raise _other_build(str(error)) from None
    found = {at: int.from_bytes(defaults[at : at + 4], "little") for at in DEFAULTS}
    if found != DEFAULTS:
        raise _other_build(f"its parameters begin with {list(found.values())}")
    return library


def _other_build(fault: str) -> UserError:
    return UserError(
        f"This build of xllamacpp cannot be asked for likelihoods: {fault}. "
        "Install the version pinned in requirements-cpu.txt."
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
_no_log = _LOG(lambda level, text, data: None)  # it would go to file descriptor 2


@contextlib.contextmanager
def _silence(library: ctypes.CDLL) -> Iterator[None]:
    before, data = ctypes.c_void_p(), ctypes.c_void_p()
    library.llama_log_get(ctypes.byref(before), ctypes.byref(data))
    library.llama_log_set(ctypes.cast(_no_log, ctypes.c_void_p), None)
    try:
        yield
    finally:
        library.llama_log_set(before, data)


@contextlib.contextmanager
def load_scorer(path: str | pathlib.Path, trees: list[TokenTree]) -> Iterator[Score]:
    """Load a GGUF with room for each of the trees, and yield a function that scores one of them.

    Raise UserError, with llama.cpp's reason, for a file that it refuses or crashes on, when there
    is too little memory, and for a build of xllamacpp that differs from the pinned one.
    """
    path = pathlib.Path(path)
    library = _library()
    require_loadable([path])
    nodes = max(len(tree.ids) for tree in trees)
    sequences = max(len(set(range(len(tree.ids))) - set(tree.parents)) for tree in trees)
    with contextlib.ExitStack() as cleanup:
        cleanup.enter_context(_silence(library))
        model = library.llama_model_load_from_file(
            str(path).encode(), library.llama_model_default_params()
        )
        if not model:
            raise UserError(f"llama.cpp loaded {path} once, but not again: expected free memory.")
        cleanup.callback(library.llama_model_free, model)
        context = _make_context(library, model, nodes, sequences)
        if not context:
            raise UserError(
                f"llama.cpp has no memory for {nodes:,} tokens of context with {path}. "
                f"Close other programs, or examine it on a machine with more memory."
            )
        cleanup.callback(library.llama_free, context)
        words = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))
        yield functools.partial(_score_tree, library, context, words)


def _make_context(library: ctypes.CDLL, model: int, nodes: int, sequences: int) -> int | None:
    """Return a context whose sequences share one cache, or None when llama.cpp makes none."""
    threads = device.set_threads()
    cells = 256 * math.ceil(nodes / 256)  # as llama.cpp rounds it
    tokens = min(TOKENS_AT_ONCE, cells)
    params = library.llama_context_default_params()
    for at, value in (
        (N_CTX, cells),
        (N_BATCH, tokens),
        (N_UBATCH, tokens),
        (N_SEQ_MAX, sequences),
        (N_OUTPUTS, min(SCORED_AT_ONCE, tokens)),
        (N_THREADS, threads),
        (N_THREADS_BATCH, threads),
    ):
        params.bytes[at : at + 4] = value.to_bytes(4, "little")
    params.bytes[KV_UNIFIED] = 1
    context = library.llama_init_from_model(model, params)
    if not context:
        return None
    expected = {
        "n_ctx": cells,
        "n_ctx_seq": cells,  # a share of n_ctx, if each sequence had a cache of its own
        "n_batch": tokens,
        "n_ubatch": tokens,
        "n_seq_max": sequences,
        "n_threads": threads,
    }
    found = {name: getattr(library, f"llama_{name}")(context) for name in expected}
    if found != expected:
        library.llama_free(context)
        raise _other_build(f"a context for {expected} has {found}")
    return int(context)


def _score_tree(library: ctypes.CDLL, context: int, words: int, tree: TokenTree) -> list[float]:
    """Return each continuation's log-likelihood in nats; nan where the model gives no number."""
    library.llama_memory_clear(library.llama_get_memory(context), True)
    wanted: dict[int, list[int]] = {node: [] for node in scored_nodes(tree)}
    for asked in tree.asked:
        for node, token in asked:
            wanted[node].append(token)
    sequences = leaf_sequences(tree)
    likelihoods: dict[tuple[int, int], float] = {}
    for nodes in _batches(tree, wanted):
        _decode(library, context, tree, nodes, sequences, wanted)
        for place, node in enumerate(nodes):
            if node not in wanted:
                continue
            address = library.llama_get_logits_ith(context, place)
            logits = torch.from_numpy(
                np.ctypeslib.as_array(
                    ctypes.cast(address, ctypes.POINTER(ctypes.c_float)), (words,)
                )
            )
            total = float(torch.logsumexp(logits, 0))
            for token in wanted[node]:
                likelihoods[node, token] = float(logits[token]) - total
    return [sum(likelihoods[pair] for pair in asked) for asked in tree.asked]


def _batches(tree: TokenTree, wanted: dict[int, list[int]]) -> Iterator[list[int]]:
    """Yield the nodes in their order, in batches of no more than llama.cpp has room for."""
    batch: list[int] = []
    scored = 0
    for node in range(len(tree.ids)):
        scores = node in wanted
        if len(batch) == TOKENS_AT_ONCE or scored + scores > SCORED_AT_ONCE:
            yield batch
            batch, scored = [], 0
        batch.append(node)
        scored += scores
    yield batch


def _decode(
    library: ctypes.CDLL,
    context: int,
    tree: TokenTree,
    nodes: list[int],
    sequences: list[list[int]],
    wanted: dict[int, list[int]],
) -> None:
    """Compute some nodes of a tree, each in the sequences of all leaves below it."""
    count = len(nodes)
    ids = (ctypes.c_int32 * count)(*(tree.ids[node] for node in nodes))
    positions = (ctypes.c_int32 * count)(*(tree.depths[node] for node in nodes))
    members = [(ctypes.c_int32 * len(sequences[n]))(*sequences[n]) for n in nodes]
    counts = (ctypes.c_int32 * count)(*map(len, members))
    lists = (ctypes.c_void_p * count)(*map(ctypes.addressof, members))
    outputs = (ctypes.c_int8 * count)(*(node in wanted for node in nodes))
    pointers = [ctypes.addressof(values) for values in (ids, positions, counts, lists, outputs)]
    batch = _Batch(count, pointers[0], None, *pointers[1:])
    if status := library.llama_decode(context, batch):
        raise UserError(
            f"llama.cpp could not compute {count} tokens (status {status}). "
            f"Expected enough free memory for a batch of this size."
        )
