"""Clean, tokenise and verify a chunk of rows, in the worker processes of the prepare stage.

A cleaned chunk and its tokens are cached in .cache/prepare/ under a hash of the rows and of what
was done to them. So after a changed rule, or rows appended to a file, only those parts are redone.
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from lib.common import files
from lib.common.errors import UserError
from lib.data import chat, chunk_cache, duplicates, label_mask
from lib.data.cleaning import clean
from lib.data.label_mask import IGNORED
from lib.data.splits import SCHEMA, SIDES
from lib.params import Params

EXAMPLES = 3  # examples kept for each rule and reason
SAMPLE = 200  # rows of a chunk handed back with their ids, to compare with transformers' tokenizer
Encoded = tuple[list[int], list[int]]  # ids and labels
CLEANED = pa.schema(
    [
        ("id", pa.string()),
        ("topic", pa.string()),
        ("messages", pa.large_string()),
        ("exact", pa.uint64()),
        ("question", pa.uint64()),
        ("subject", pa.uint64()),
        ("answer", pa.uint64()),
        ("vital", pa.uint64()),
        ("answer_length", pa.int64()),
        ("given_side", pa.int8()),  # of a held-out file or `forgetting`, else 0
        ("later_questions", pa.list_(pa.uint64())),
        ("terms", pa.binary()),
        ("signature", pa.binary(duplicates.SIGNATURE)),
        ("bands", pa.binary(8 * duplicates.BANDS)),
    ]
)
TOKENS = pa.schema(
    [("name", pa.binary(16)), ("ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))]
)


def load_chunk(path: pathlib.Path, columns: list[str] | None = None) -> tuple[Any, dict[str, Any]]:
    """Return the table (all or some columns) and the facts of a cleaned chunk."""
    fields = [CLEANED.get_field_index(column) for column in columns] if columns else None
    table = chunk_cache.read_table(path, fields)
    return table, json.loads(table.schema.metadata[b"facts"])


def load_messages(
    path: pathlib.Path, places: Sequence[int] | np.ndarray
) -> tuple[list[str], list[list[dict[str, str]]]]:
    """Return ids and messages of the rows at these places in a cleaned chunk."""
    table, _ = load_chunk(path, ["id", "messages"])
    table = table.take(np.asarray(places))
    return table["id"].to_pylist(), [json.loads(text) for text in table["messages"].to_pylist()]


# -------------------------------------------------------------------------------------------------
# examples


def _cut(text: str, start: int, length: int) -> str:
    """Return a piece of a text, with "…" where more text comes before or after."""
    end = start + length
    before = "…" if start else ""
    after = "…" if len(text) > end else ""
    return before + text[start:end] + after


def _show_change(before: str, after: str, length: int = 160) -> dict[str, str]:
    """Return excerpts of two versions of a text, from shortly before their first difference."""
    same = len(os.path.commonprefix([before, after]))
    start = max(0, same - 40)
    return {"before": _cut(before, start, length), "after": _cut(after, start, length)}


def shorten(messages: list[dict[str, str]], length: int = 160) -> str:
    """Return the beginnings of the first four messages in one line."""
    return " | ".join(f"{m['role']}: {_cut(m['content'], 0, length)}" for m in messages[:4])


# -------------------------------------------------------------------------------------------------
# clean


def clean_chunk(job: Params, chunk: list[dict[str, Any]]) -> pathlib.Path:
    """Return the file of a cleaned chunk; write it unless the cache has it.

    It holds the kept rows with their comparison keys; its metadata holds what changed or dropped.
    """
    raw = hashlib.sha256(json.dumps(chunk, ensure_ascii=False).encode()).hexdigest()[:32]
    path = chunk_cache.CACHE / f"{raw}-{_rules_identity(job)}.arrow"
    if chunk_cache.find_cached(path) is None:
        chunk_cache.write_table(path, _clean_rows(job, chunk))
    return path


def _clean_rows(job: Params, chunk: list[dict[str, Any]]) -> Any:
    kept: list[dict[str, Any]] = []
    dropped = []
    changed: Counter[str] = Counter()
    examples = []
    for row in chunk:
        messages, reason, changes = clean.clean_row(row["messages"], job)
        # in a dropped row, these are details of the reason and not a change
        details = changes.pop(reason, None) if reason in clean.DETAILED else None
        for rule, (before, after) in changes.items():
            changed[rule] += 1
            if changed[rule] <= EXAMPLES:
                examples.append((rule, {"id": row["id"], **_show_change(before, after)}))
        if details:
            text, by = details
            dropped.append((reason, row["id"], {"text": _cut(text, 0, 320), "by": by}))
        elif reason:
            dropped.append((reason, row["id"], {"text": shorten(row["messages"])}))
        else:
            text = json.dumps(messages, ensure_ascii=False)
            keys = duplicates.comparison_keys(messages)
            side = SIDES.index(row.get("split", "train"))
            kept.append(
                {"id": row["id"], "topic": row["topic"], "messages": text, "given_side": side}
                | keys
            )
    _add_signatures(kept)
    facts = json.dumps({"dropped": dropped, "changed": changed, "examples": examples})
    return pa.Table.from_pylist(kept, CLEANED.with_metadata({"facts": facts}))


def _add_signatures(kept: list[dict[str, Any]]) -> None:
    """Replace the words of each row by its signature and bands."""
    shingles = [duplicates.shingles(row.pop("words")) for row in kept]
    signatures = duplicates.minhash_signatures(shingles)
    low_bits = signatures.astype(np.uint16)
    bands = duplicates.hash_bands(signatures)
    for row, signature, own_bands in zip(kept, low_bits, bands, strict=True):
        row["signature"] = signature.tobytes()
        row["bands"] = own_bands.tobytes()


@functools.cache
def _code_identity() -> str:
    """Return a hash of everything that decides how a row is cleaned, except the parameters."""
    libraries = ("ftfy", "lxml", "py3langid", "phonenumbers", "rensa", "pyarrow")
    versions = " ".join(importlib.metadata.version(library) for library in libraries)
    code = files.code_hash("common", "data", "medical")
    return hashlib.sha256((code + versions).encode()).hexdigest()


def _rules_identity(job: Params) -> str:
    rules = [
        sorted(set(job.skip_rules) - {"exact_duplicate"}),
        job.language,
        job.reasoning,
        job.personal_data,
        job.damaged_text,
        job.dangerous_advice,
    ]
    return hashlib.sha256(json.dumps([rules, _code_identity()]).encode()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------
# tokens


@functools.cache
def _load_chat(base: pathlib.Path, identity: str) -> chat.Chat:
    """Load tokenizer and template once per process, and again for another `identity`."""
    return chat.load_chat(base)


def _encode(
    path: pathlib.Path, texts: list[str], base: pathlib.Path, identity: str
) -> list[Encoded]:
    """Return ids and labels of conversations (JSON) of a chunk; add new ones to the cache."""
    store = chunk_cache.CACHE / f"{path.stem.split('-')[0]}-{identity}.tokens"
    names = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    known = _load_tokens(store)
    missing = {
        name: json.loads(text) for name, text in zip(names, texts, strict=True) if name not in known
    }
    if missing:
        encoded = label_mask.encode_all(_load_chat(base, identity), missing.values())
        known |= dict(zip(missing, encoded, strict=True))
        columns = {
            "name": list(known),
            "ids": [ids for ids, _ in known.values()],
            "labels": [labels for _, labels in known.values()],
        }
        chunk_cache.write_table(store, pa.Table.from_pydict(columns, TOKENS))
    return [known[name] for name in names]


def _load_tokens(store: pathlib.Path) -> dict[bytes, Encoded]:
    table = chunk_cache.find_cached(store)
    if not table:
        return {}
    encoded = zip(table["ids"].to_pylist(), table["labels"].to_pylist(), strict=True)
    return dict(zip(table["name"].to_pylist(), encoded, strict=True))


def measure_chunk(
    path: pathlib.Path, base: pathlib.Path, identity: str, job: Params
) -> tuple[list[int], list[tuple[int, str, str]]]:
    """Return every row's number of tokens, and (place, id, text) of the rows that are too long.

    A row over max_seq_length is too long if the job does not cut rows, or this one cannot be cut.
    """
    table, _ = load_chunk(path, ["id", "messages"])
    texts = table["messages"].to_pylist()
    lengths = [len(ids) for ids, _ in _encode(path, texts, base, identity)]
    too_long = []
    for n, length in enumerate(lengths):
        if length <= job.max_seq_length:
            continue
        messages = json.loads(texts[n])
        tokenizer = _load_chat(base, identity)
        text = f"{length:,} tokens | {shorten(messages)}"
        if job.overlong == "cut":
            if label_mask.cut_to_fit(tokenizer, messages, job.max_seq_length, job.language):
                continue
            text = f"no cut leaves its advice as it is | {text}"
        too_long.append((n, table["id"][n].as_py(), text))
    return lengths, too_long


def tokenise_chunk(
    path: pathlib.Path,
    places: np.ndarray,
    base: pathlib.Path,
    identity: str,
    job: Params,
) -> tuple[Any, dict[str, Any]]:
    """Return a table of the verified rows at these places in a chunk, and counts and examples.

    An over-long answer is cut. Raise UserError at the first row whose mask is wrong.
    """
    tokenizer = _load_chat(base, identity)
    table = load_chunk(path, ["id", "topic", "messages"])[0].take(places)
    ids_of_rows, topics = table["id"].to_pylist(), table["topic"].to_pylist()
    texts = table["messages"].to_pylist()
    encoded = _encode(path, texts, base, identity)
    kept = []
    cuts = []
    sample = []
    counts: Counter[str] = Counter()
    digest = hashlib.sha256()
    for n, (ids, labels) in enumerate(encoded):
        row_id, messages = ids_of_rows[n], json.loads(texts[n])
        if len(ids) > job.max_seq_length:
            before = f"{len(ids):,} tokens, ends: …{messages[-1]['content'][-80:]}"
            shorter = label_mask.cut_to_fit(tokenizer, messages, job.max_seq_length, job.language)
            assert shorter is not None, "measure_chunk leaves no row that cannot be cut"
            after = f"ends: …{shorter[-1]['content'][-80:]}"
            cuts.append({"id": row_id, "before": before, "after": after})
            messages = shorter
            ids, labels = label_mask.encode(tokenizer, messages)
        elif n < SAMPLE:
            sample.append((messages, ids))
        fault = label_mask.find_mask_fault(tokenizer, ids, labels, messages)
        if fault:
            raise UserError(
                f"row {row_id}: {fault}.\nThe tokenizer or chat template of "
                f"`{job.base_model}` cannot be used for training as it is."
            )
        counts["tokens_total"] += len(ids)
        counts["tokens_trained"] += len(labels) - labels.count(IGNORED)
        kept.append(_split_row(row_id, topics[n], messages, ids, labels))
        digest.update(row_id.encode())
        digest.update(np.asarray(ids, np.int32).tobytes())
        digest.update(np.asarray(labels, np.int32).tobytes())
    counts["truncated"] = len(cuts)
    facts: dict[str, Any] = {"counts": counts, "cut": cuts[:EXAMPLES], "sample": sample}
    facts["digest"] = digest.digest()
    return pa.Table.from_pylist(kept, SCHEMA), facts


def _split_row(
    row_id: str, topic: str, messages: list[dict[str, str]], ids: list[int], labels: list[int]
) -> dict[str, Any]:
    """Return a row with the fields of splits.SCHEMA."""
    return {
        "id": row_id,
        "topic": topic,
        "question": next(m["content"] for m in messages if m["role"] == "user"),
        "answer": messages[-1]["content"],
        "input_ids": ids,
        "labels": labels,
        "length": len(ids),
    }
