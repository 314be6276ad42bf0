"""What the processes of the prepare stage do to a chunk of rows: clean it, look for overlaps, tokenise and prove it.

A cleaned chunk and its tokens are kept in .cache/prepare/ under a hash of the rows and of what was done to them, so that a changed
rule, or rows appended to a file, cost only what they change.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa

from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.data import chat, clean, duplicates, label_mask
from lib.data.label_mask import IGNORED
from lib.data.splits import SCHEMA
from lib.params import Params

CACHE, CACHE_LIMIT = (
    ROOT / ".cache" / "prepare",
    2**33,
)  # bytes, beyond which what was not used for a day goes
EXAMPLES = 3  # shown of each rule and reason
SAMPLE = (
    200  # rows of a chunk handed back with their ids, for a comparison with transformers' tokenizer
)
CLEANED = pa.schema(
    [
        ("id", pa.string()),
        ("topic", pa.string()),
        ("messages", pa.large_string()),
        ("exact", pa.uint64()),
        ("question", pa.uint64()),
        ("answer", pa.uint64()),
        ("vital", pa.uint64()),
        ("answer_length", pa.int64()),
        ("later_questions", pa.list_(pa.uint64())),
        ("signature", pa.binary(duplicates.SIGNATURE)),
        ("bands", pa.binary(8 * duplicates.BANDS)),
    ]
)
TOKENS = pa.schema(
    [("name", pa.binary(16)), ("ids", pa.list_(pa.int32())), ("labels", pa.list_(pa.int32()))]
)


def prune() -> None:
    """Keep the cache within its limit: what was used longest ago goes first, nothing of the last day."""
    found = []
    for path in CACHE.iterdir():
        with contextlib.suppress(
            FileNotFoundError
        ):  # another run may just have renamed or removed it
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    over = sum(size for _, size, _ in found) - CACHE_LIMIT
    for used, size, path in sorted(found):
        if over <= 0 or used > time.time() - 86400:
            break
        path.unlink(missing_ok=True)
        over -= size


class Damaged(UserError):
    """A file of the cache that is not as it was written, or gone."""


def load(path: pathlib.Path, columns: list[str] | None = None) -> tuple[Any, dict[str, Any]]:
    """Table (or some columns) and facts of a cleaned chunk."""
    table = _read(path, columns and [CLEANED.get_field_index(c) for c in columns])
    return table, json.loads(table.schema.metadata[b"facts"])


def _read(path: pathlib.Path, fields: list[int] | None = None) -> Any:
    # not a memory map: mapped pages count as memory of ours as long as they stay
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise Damaged(
            f"`{files.shown(path)}` was removed or damaged while prepare ran. Run it again: it makes what is missing."
        )
    return pa.ipc.open_file(
        pa.py_buffer(data)[:-32], options=pa.ipc.IpcReadOptions(included_fields=fields)
    ).read_all()


def _cached(path: pathlib.Path) -> Any:
    """The table of a cache file, None when it has to be made."""
    try:
        table = _read(path)
        os.utime(path)
        return table
    except Damaged:
        return None


def _write(path: pathlib.Path, table: Any) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(
        sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, data + hashlib.sha256(data).digest())


def _around(before: str, after: str, most: int = 160) -> dict[str, str]:
    """Two versions of a text from a little before where they first differ."""
    same = len(os.path.commonprefix([before, after]))
    start = max(0, same - 40)
    return {
        side: ("…" if start else "")
        + text[start : start + most]
        + ("…" if len(text) > start + most else "")
        for side, text in (("before", before), ("after", after))
    }


def short(messages: list[dict[str, str]], most: int = 160) -> str:
    return " | ".join(
        f"{m['role']}: {m['content'][:most]}{'…' if len(m['content']) > most else ''}"
        for m in messages[:4]
    )


# ---------------------------------------------------------------------------------------------------------------------
# clean


def clean_chunk(job: Params, chunk: list[dict[str, Any]]) -> pathlib.Path:
    """The file of a cleaned chunk, made unless the cache has it: kept rows with what they are compared by; in its metadata the rest."""
    raw = hashlib.sha256(json.dumps(chunk, ensure_ascii=False).encode()).hexdigest()[:32]
    path = CACHE / f"{raw}-{_rules_identity(job)}.arrow"
    if _cached(path) is not None:
        return path
    kept, dropped, changed, examples = [], [], Counter(), []
    for row in chunk:
        messages, reason, found = clean.clean_row(row["messages"], job)
        advice = found.pop("dangerous_advice", ("", "")) if reason else ("", "")
        for rule, (before, after) in found.items():
            changed[rule] += 1
            if changed[rule] <= EXAMPLES:
                examples.append((rule, {"id": row["id"], **_around(before, after)}))
        if reason:
            dropped.append(
                (
                    reason,
                    row["id"],
                    {
                        "text": advice[0] or short(row["messages"]),
                        **({"by": advice[1]} if advice[1] else {}),
                    },
                )
            )
        else:
            kept.append(
                {
                    "id": row["id"],
                    "topic": row["topic"],
                    "messages": json.dumps(messages, ensure_ascii=False),
                    **duplicates.keys(messages),
                }
            )
    signature = duplicates.signatures([duplicates.shingles(row.pop("words")) for row in kept])
    schema = CLEANED.with_metadata(
        {"facts": json.dumps({"dropped": dropped, "changed": changed, "examples": examples})}
    )
    for row, line, band in zip(
        kept, signature.astype(np.uint16), duplicates.bands(signature), strict=True
    ):
        row |= {"signature": line.tobytes(), "bands": band.tobytes()}
    _write(path, pa.Table.from_pylist(kept, schema))
    return path


@functools.cache
def _code_identity() -> str:
    """Hash of everything but the parameters that decides what cleaning makes of a row."""
    digest = hashlib.sha256(files.code_hash("data", "medical").encode())
    digest.update(
        " ".join(
            importlib.metadata.version(p)
            for p in ("ftfy", "py3langid", "phonenumbers", "rensa", "pyarrow")
        ).encode()
    )
    return digest.hexdigest()


def _rules_identity(job: Params) -> str:
    rules = [
        sorted(set(job.skip_rules) - {"exact_duplicate"}),
        job.language,
        job.reasoning,
        job.personal_data,
        job.dangerous_advice,
    ]
    return hashlib.sha256(json.dumps([rules, _code_identity()]).encode()).hexdigest()[:16]


def texts_of(path: pathlib.Path, at: np.ndarray) -> tuple[list[str], list[list[dict[str, str]]]]:
    """Ids and messages of some rows of a cleaned chunk."""
    table = load(path, ["id", "messages"])[0].take(at)
    return table["id"].to_pylist(), [json.loads(m) for m in table["messages"].to_pylist()]


# ---------------------------------------------------------------------------------------------------------------------
# tokens


@functools.cache
def _chat(base: pathlib.Path, which: str) -> chat.Chat:
    return chat.load_chat(base)


def _tokens(
    path: pathlib.Path, texts: list[str], base: pathlib.Path, which: str
) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of conversations (as JSON) of a chunk, from the cache where it has them, else made and put there."""
    store = CACHE / f"{path.stem.split('-')[0]}-{which}.tokens"
    names = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
    old = _cached(store)
    known = (
        dict(
            zip(
                old["name"].to_pylist(),
                zip(old["ids"].to_pylist(), old["labels"].to_pylist(), strict=True),
                strict=True,
            )
        )
        if old
        else {}
    )
    if missing := {
        name: json.loads(text) for name, text in zip(names, texts, strict=True) if name not in known
    }:
        known |= dict(
            zip(missing, label_mask.encode_all(_chat(base, which), missing.values()), strict=True)
        )
        ids, labels = ([pair[k] for pair in known.values()] for k in (0, 1))
        _write(
            store, pa.Table.from_pydict({"name": list(known), "ids": ids, "labels": labels}, TOKENS)
        )
    return [known[name] for name in names]


def measure_chunk(
    job: Params, path: pathlib.Path, base: pathlib.Path, which: str
) -> tuple[list[int], list[tuple[int, str, str]]]:
    """Tokens of every row of a chunk, and (row, id, text) of those over max_seq_length that are not to be cut, or cannot be."""
    table, _ = load(path, ["id", "messages"])
    texts = table["messages"].to_pylist()
    lengths = [len(ids) for ids, _ in _tokens(path, texts, base, which)]
    over = [
        (n, json.loads(texts[n])) for n, length in enumerate(lengths) if length > job.max_seq_length
    ]
    return lengths, [
        (n, table["id"][n].as_py(), f"{lengths[n]:,} tokens | {short(messages)}")
        for n, messages in over
        if job.overlong == "drop"
        or label_mask.cut_to_fit(_chat(base, which), messages, job.max_seq_length) is None
    ]


def tokenise_chunk(
    job: Params, path: pathlib.Path, at: np.ndarray, base: pathlib.Path, which: str
) -> tuple[Any, dict[str, Any]]:
    """(table of some rows of a chunk, each proven, counts and examples); an over-long answer is cut."""
    tokenizer, cut_rows, kept = _chat(base, which), [], []
    table = load(path, ["id", "topic", "messages"])[0].take(at)
    texts = table["messages"].to_pylist()
    counts, digest = Counter(), hashlib.sha256()
    tokens = _tokens(path, texts, base, which)
    for row_id, topic, text, (ids, labels) in zip(
        table["id"].to_pylist(), table["topic"].to_pylist(), texts, tokens, strict=True
    ):
        messages = json.loads(text)
        if len(ids) > job.max_seq_length:
            long, messages = (
                messages,
                label_mask.cut_to_fit(tokenizer, messages, job.max_seq_length),
            )
            cut_rows.append(
                {
                    "id": row_id,
                    "before": f"{len(ids):,} tokens, ends: …{long[-1]['content'][-80:]}",
                    "after": f"ends: …{messages[-1]['content'][-80:]}",
                }
            )
            ids, labels = label_mask.encode(tokenizer, messages)
        if trouble := label_mask.find_mask_fault(tokenizer, ids, labels, messages):
            raise UserError(
                f"row {row_id}: {trouble}.\nThe tokenizer or chat template of `{job.base_model}` cannot be used for training as it is."
            )
        counts.update(
            tokens_total=len(ids), tokens_trained=sum(label != IGNORED for label in labels)
        )
        kept.append(
            {
                "id": row_id,
                "topic": topic,
                "question": next(m["content"] for m in messages if m["role"] == "user"),
                "answer": messages[-1]["content"],
                "input_ids": ids,
                "labels": labels,
                "length": len(ids),
            }
        )
        digest.update(
            row_id.encode()
            + np.asarray(ids, np.int32).tobytes()
            + np.asarray(labels, np.int32).tobytes()
        )
    counts["truncated"] = len(cut_rows)
    sample = [
        (json.loads(text), row["input_ids"])
        for text, row in zip(texts[:SAMPLE], kept, strict=False)
        if row["length"] <= job.max_seq_length
    ]
    return pa.Table.from_pylist(kept, SCHEMA), {
        "counts": counts,
        "cut": cut_rows[:EXAMPLES],
        "digest": digest.digest(),
        "sample": sample,
    }
