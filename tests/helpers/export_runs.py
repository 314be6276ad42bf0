"""Helpers shared by the tests of the export."""

import pyarrow as pa

from lib.data import label_mask, splits

TEXT = "Press firmly on the wound with a clean cloth and call an ambulance now."


PROMPTS = ["What should I do first for a deep cut?", "Press firmly on the", "Call an ambulance"]


ANSWER = "Press firmly on the wound with a clean cloth, call an ambulance and keep the person warm until help comes."


def write_split(folder, name, conversations, tokenizer):
    """Write one split as the prepare stage does."""
    rows = [
        {
            "id": str(n),
            "topic": "",
            "question": q,
            "answer": a,
            "input_ids": ids,
            "labels": labels,
            "length": len(ids),
        }
        for n, ((q, a), (ids, labels)) in enumerate(
            zip(
                conversations,
                label_mask.encode_all(
                    tokenizer,
                    [
                        [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
                        for q, a in conversations
                    ],
                ),
                strict=True,
            )
        )
    ]
    out = splits.SplitWriter(folder / name)
    if rows:
        out.write(pa.Table.from_pylist(rows, splits.SCHEMA))
    out.close()
