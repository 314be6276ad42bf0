"""Conversations for tests of the chat template and the label mask."""

from lib import params
from lib.data.reading import source_rows


def row(question="Q?", answer="A."):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def bundled_messages():
    return [
        r["messages"]
        for r in source_rows.read_rows(
            params.check_values({"dataset": "bundled:first-aid"}, "test"), lambda *a: None
        )
    ]
