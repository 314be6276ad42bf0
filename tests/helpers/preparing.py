"""Run the data stage on made-up rows: a job, its file, all its steps, and what they leave on disk."""

import json
import random

from lib import params
from lib.data import prepare as data
from lib.data import splits

WORDS = (
    "the quiet river runs past an old stone bridge where children watch boats drift slowly toward distant mountains while evening light "
    "turns every window golden and farmers bring their horses home across wide fields of ripe corn before another long winter begins with heavy "
    "snow over small villages along this valley"
).split()


def job(path, **values):
    return params.check_values(
        {
            "dataset": str(path),
            "max_seq_length": 256,
            "validation_size": 0.1,
            "test_size": 0.1,
            "exam": [],
            **values,
        },
        "test",
    )


def jsonl(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def made_up(count, seed=1, start=0):
    rng = random.Random(seed)
    rows = [
        {
            "id": f"r{n}",
            "question": "What about " + " ".join(rng.choices(WORDS, k=8)) + "?",
            "answer": "Then " + " ".join(rng.choices(WORDS, k=25)) + ".",
        }
        for n in range(start + count)
    ]
    return rows[start:]


def prepare(job_, base, folder):
    """Run all steps; return (Rows, results)."""
    folder.mkdir(exist_ok=True)
    rows = data.begin(job_, folder)
    data.read_and_clean(rows)
    data.measure(rows, base)
    data.deduplicate(rows)
    data.decontaminate(rows)
    return rows, data.tokenise(rows, base, folder / "data")


def stored(folder):
    return {
        r["id"]: {**r, "split": s}
        for s in splits.SPLITS
        for r in splits.load_split(folder / "data", s).to_list()
    }


def mixed():
    rows = made_up(60)
    return [
        *rows,
        rows[3],
        {**rows[4], "id": "caps", "question": rows[4]["question"].upper()},
        {"id": "null", "question": "What now?", "answer": None},
        {"id": "none", "question": "What then?", "answer": "N/A"},
        {"id": "echo", "question": "Is it so?", "answer": "is it so ?"},
        {
            "id": "mail",
            "question": "Whom do I ask about this?",
            "answer": "You can always write to jane.doe@example.org about that.",
        },
        {
            "id": "long",
            "question": "Why is that?",
            "answer": ("It is because of this. " * 80).strip(),
        },
        {
            "id": "spaces",
            "question": "What is the reason ?",
            "answer": "There   is no   particular reason for it.",
        },
    ]
