"""Prepare rows: clean, split by question, render through the chat template, tokenise, and prove the label mask."""

import hashlib
import pathlib
import re
import shutil
import unicodedata
from collections import Counter
from typing import Any

import numpy as np

from lib import files
from lib.params import Params, UserError

SPLITS = ("train", "validation", "test")
IGNORED = -100  # the label transformers' loss skips
TURN_END = "<end_of_turn>"
MODEL_TURN = "<start_of_turn>model\n"
CONTROL = re.compile(r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad|unk)>)")


def normalised(text: str) -> str:
    """Text for comparing: NFKC, case folded, runs of white space as one blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def question_of(row: dict[str, Any]) -> str:
    return next((m["content"] for m in row["messages"] if m["role"] == "user"), "")


def answer_of(row: dict[str, Any]) -> str:
    return next((m["content"] for m in reversed(row["messages"]) if m["role"] == "assistant"), "")


# ---------------------------------------------------------------------------------------------------------------------
# clean, split


def clean(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, list[str]], Counter]:
    """Kept rows, ids dropped under each reason, and how many rows were changed under each reason.

    Text that spells a control token is broken up with a blank, so that data cannot fake a turn.
    """
    kept, dropped, changed, seen = [], {"empty": [], "turns_out_of_order": [], "exact_duplicate": []}, Counter(), set()
    for row in rows:
        messages = [{"role": m["role"], "content": CONTROL.sub("< ", m["content"]).strip()} for m in row["messages"]]
        if any(CONTROL.search(m["content"]) for m in row["messages"]):
            changed["control_token_broken_up"] += 1
        key = tuple((m["role"], normalised(m["content"])) for m in messages)
        if not messages or any(not m["content"] for m in messages):
            dropped["empty"].append(row["id"])
        elif not _alternating([m["role"] for m in messages]):
            dropped["turns_out_of_order"].append(row["id"])
        elif key in seen:
            dropped["exact_duplicate"].append(row["id"])
        else:
            seen.add(key)
            kept.append({**row, "messages": messages})
    return kept, dropped, changed


def _alternating(roles: list[str]) -> bool:
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) >= 2 and len(turns) % 2 == 0 and all(r == ("user", "assistant")[n % 2] for n, r in enumerate(turns))


def split_of(question: str, job: Params) -> str:
    """The side a question falls on: a seeded hash of its normalised text, so that equal questions stay together
    and appended rows move nothing."""
    digest = hashlib.sha256(f"{job.seed}\n{normalised(question)}".encode()).digest()
    u = int.from_bytes(digest[:8], "big") / 2**64
    return "test" if u < job.test_size else "validation" if u < job.test_size + job.validation_size else "train"


# ---------------------------------------------------------------------------------------------------------------------
# tokens and mask


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; labels are on assistant text and its <end_of_turn>, IGNORED elsewhere.

    The spans are those by which the template's rendering grows with each assistant turn, so any template whose
    rendering of a prefix is a prefix of the rendering works; ValueError when it is not, or a token straddles a span.
    """
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    spans = []
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            start = tokenizer.apply_chat_template(messages[:n], tokenize=False, add_generation_prompt=True)
            if not text.startswith(start):
                raise ValueError("the chat template renders the same turns differently when more follow")
            spans.append((len(start), text.index(TURN_END, len(start)) + len(TURN_END)))
    out = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    labels = []
    for token, (start, end) in zip(out["input_ids"], out["offset_mapping"], strict=True):
        span = next(((a, b) for a, b in spans if start < b and end > a), None)
        if span and (start < span[0] or end > span[1]):
            raise ValueError(f"a token straddles the edge of an answer: {text[start:end]!r}")
        labels.append(token if span else IGNORED)
    return out["input_ids"], labels


def prove(tokenizer: Any, ids: list[int], labels: list[int], messages: list[dict[str, str]]) -> str:
    """What is wrong with a tokenised row, or an empty string: the checks every row must pass.

    Exactly one <bos>, first; at least one trained token; as many trained <end_of_turn> as answers; trained text is
    exactly the answers; nothing of a user's turn is trained.
    """
    bos, end = tokenizer.convert_tokens_to_ids(["<bos>", TURN_END])
    trained = [t for t, label in zip(ids, labels, strict=True) if label != IGNORED]
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    if ids.count(bos) != 1 or ids[0] != bos:
        return f"{ids.count(bos)} <bos> tokens, expected one, first"
    if any(label not in (IGNORED, token) for token, label in zip(ids, labels, strict=True)):
        return "a label differs from its token"
    if trained.count(end) != len(answers):
        return f"{trained.count(end)} trained {TURN_END}, expected {len(answers)}"
    decoded = tokenizer.decode(trained, clean_up_tokenization_spaces=False)
    if decoded != "".join(answer + TURN_END for answer in answers).replace("\u2581", " "):  # the tokenizer writes blanks as U+2581
        return "the trained tokens do not decode to the answers"
    return ""


def tokenise(rows: list[dict[str, Any]], tokenizer: Any, job: Params, bar: Any) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows with input_ids, labels, length and their split, each proven; ids of those over max_seq_length, left out."""
    kept, too_long = [], []
    for row in bar(rows):
        ids, labels = encode(tokenizer, row["messages"])
        if trouble := prove(tokenizer, ids, labels, row["messages"]):
            raise UserError(f"row {row['id']}: {trouble}.\n"
                            f"The tokenizer or chat template of `{job.base_model}` cannot be used for training as it is.")
        if len(ids) > job.max_seq_length:
            too_long.append(row["id"])
            continue
        question, answer = question_of(row), answer_of(row)
        kept.append({"id": row["id"], "topic": row["topic"], "question": question, "answer": answer, "input_ids": ids,
                     "labels": labels, "length": len(ids), "split": split_of(question, job)})
    return kept, too_long


# ---------------------------------------------------------------------------------------------------------------------
# on disk


def save(rows: list[dict[str, Any]], folder: pathlib.Path) -> None:
    """Write the splits as Arrow under folder/{train,validation,test}; the folder appears when it is complete."""
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({
        "id": datasets.Value("string"), "topic": datasets.Value("string"), "question": datasets.Value("large_string"),
        "answer": datasets.Value("large_string"), "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")), "length": datasets.Value("int32")})
    temporary = folder.with_name(".data.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for split in SPLITS:
        part = [{k: r[k] for k in features} for r in rows if r["split"] == split]
        datasets.Dataset.from_list(part, features=features).save_to_disk(str(temporary / split))
        # a hash of the moment of writing: without it the same rows give the same bytes
        state = temporary / split / "state.json"
        files.write_json(state, {**files.read_json(state, "Arrow state"), "_fingerprint": fingerprint(part)[:16]})
    files.replace_folder(temporary, folder)


def load(folder: pathlib.Path, split: str) -> Any:
    """One split as a datasets.Dataset; UserError when prepare has not left it."""
    import datasets

    if not (folder / split).is_dir():
        raise UserError(f"`{files.shown(folder / split)}` is missing: run prepare first.")
    return datasets.load_from_disk(str(folder / split))


def fingerprint(rows: list[dict[str, Any]]) -> str:
    """sha256 over ids, tokens, labels and split of all rows, in order: the identity of what is trained on."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row['id']}\n{row.get('split')}\n".encode())
        digest.update(np.asarray(row["input_ids"], np.int32).tobytes() + np.asarray(row["labels"], np.int32).tobytes())
    return digest.hexdigest()


def summary(rows_read: int, rows: list[dict[str, Any]], dropped: dict[str, list[str]], seconds: float) -> dict[str, Any]:
    """The `prepare` section of results.json; raises when the rows do not add up."""
    counts = Counter(r["split"] for r in rows)
    gone = {reason: len(ids) for reason, ids in dropped.items()}
    assert rows_read - sum(gone.values()) == len(rows) == sum(counts.values()), (rows_read, gone, counts)
    return {"rows_read": rows_read, "rows_kept": len(rows), "dropped": gone, **{s: counts[s] for s in SPLITS},
            "tokens_total": sum(r["length"] for r in rows), "truncated": 0,
            "tokens_trained": sum(sum(label != IGNORED for label in r["labels"]) for r in rows), "seconds": round(seconds, 1)}


def card(job: Params, results: dict[str, Any], dropped: dict[str, list[str]], changed: Counter, source_hash: str) -> dict[str, Any]:
    """data_card.json: where the rows came from, what was dropped or changed, and the counts."""
    return {"dataset": job.dataset, "revision": job.dataset_revision or None, "source_sha256": source_hash, "seed": job.seed,
            "counts": {k: v for k, v in results.items() if k not in ("dropped", "seconds")},
            "dropped": {reason: {"rows": len(ids), "examples": ids[:3]} for reason, ids in dropped.items()}, "changed": dict(changed),
            "checked_on_every_row": ["one <bos>, first", "at least one trained token", "each answer's <end_of_turn> trained",
                                     "trained tokens decode to the answers alone"]}
