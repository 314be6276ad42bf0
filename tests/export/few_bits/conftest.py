"""A tiny Gemma 3 with its data, and the same tuned by an adapter."""

import pytest

from helpers import adapters, export_runs, tiny_gemma3
from lib.common import files
from lib.data import chat
from lib.export import merge


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """Return a run folder with data/ and merged/, and its base; read only."""
    base = tiny_gemma3.build(tmp_path_factory.mktemp("few") / "base")
    run = base.with_name("few")
    adapters.save_random(base, run / "adapter")
    merge.make_merged(base, run / "adapter", run / "merged")
    tokenizer = chat.load_chat(base)
    for name, count in (("train", 6), ("validation", 2), ("test", 2)):
        rows = [(f"What about {name} {n}?", f"{n}. {export_runs.ANSWER}") for n in range(count)]
        if name == "train":  # a text that is held out too, and may not be read
            rows.append(("What about test 1?", f"1. {export_runs.ANSWER}"))
        export_runs.write_split(run / "data", name, rows, tokenizer)
    files.write_json(
        run / "data" / "data_card.json", {"sources": [{"dataset": "bundled:first-aid"}]}
    )
    return run, base
