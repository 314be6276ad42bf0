"""What the notebooks show: escaped, marked, in numbers for people.

python -m pytest tests/pages/test_show.py
"""

from helpers.page import Reader
from lib.pages import figures, show

EVIL = '<script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'


def test_tables_and_tokens_escape_and_mark(bundled_base):
    from lib.data import chat, label_mask

    tokenizer = chat.load_chat(bundled_base)
    messages = [
        {"role": "user", "content": f"Is {EVIL} safe?"},
        {"role": "assistant", "content": f"No: {EVIL}"},
    ]
    ids, labels = label_mask.encode(tokenizer, messages)
    markup = show.tokens_html(tokenizer, ids, labels)
    page = Reader()
    page.feed(markup)
    assert set(page.tags) == {"div", "span", "br"}
    assert markup.count(show.TRAINED) == sum(label != label_mask.IGNORED for label in labels)
    page = Reader()
    page.feed(show.table_html([{EVIL: EVIL, "n": 1}], EVIL))
    assert not {"script", "img"} & set(page.tags)


def test_figures_are_images():
    entries = [
        {"event": "session", "session": 1, "start_step": 0},
        {"event": "session", "session": 2, "start_step": 1},
        *({"event": "step", "session": 1, "step": n, "loss": 3.0 - n} for n in (1, 2)),
        {"event": "eval", "step": 0, "eval_loss": 3.0},
    ]
    image = show.figure(figures.curves(entries, figures.CELL))
    assert image.data.startswith(b"\x89PNG")
    assert show.svg(figures.lengths([5, 9, 9, 12], 512)).startswith("<svg")
    assert show.figure(figures.lengths([7], 512)).data


def test_a_job_shows_what_differs_first_and_escapes_it(tmp_path, capsys):
    import types

    from lib import params

    shown = show.job(
        params.check_values({"dataset": EVIL, "lora_r": 4}, "test"),
        types.SimpleNamespace(folder=tmp_path, data={"fingerprints": {}}),
    ).data
    page = Reader()
    page.feed(shown)
    assert not {"script", "img"} & set(page.tags)
    before, folded = shown.split("<details>")
    assert "lora_r" in before
    assert "lora_alpha" not in before
    assert "lora_alpha" in folded
    assert tmp_path.name in capsys.readouterr().out


def test_counts_with_examples_are_escaped_and_the_funnel_adds_up(capsys):
    import types
    from collections import Counter

    rows = types.SimpleNamespace(
        read=10,
        dropped=Counter(empty=2, near_duplicate=3),
        changed=Counter(html=1),
        examples={
            "empty": [{"id": "a", "text": EVIL}],
            "near_duplicate": [],
            "html": [{"id": "b", "before": EVIL, "after": "x"}],
        },
    )
    for shown in (
        show.dropped(rows, ("empty", "near_duplicate", "too_long")),
        show.dropped(rows, ("near_duplicate",)),
        show.changes(rows, ("html",)),
    ):
        page = Reader()
        page.feed(shown.data)
        assert not {"script", "img"} & set(page.tags)
    assert "5 of 10 rows dropped here, 5 left" in (printed := capsys.readouterr().out)
    assert "3 of 10 rows dropped here, 5 left" in printed
    steps = show.funnel(
        {
            "rows_read": 10,
            "rows_kept": 5,
            "dropped": {"near_duplicate": 3, "empty": 2},
            "train": 3,
            "validation": 1,
            "test": 1,
        }
    ).data
    assert [
        steps.index(t) for t in ("read", "near_duplicate", "empty", "3 train, 1 validation, 1 test")
    ] == sorted(
        steps.index(t) for t in ("read", "near_duplicate", "empty", "3 train, 1 validation, 1 test")
    )


def test_parity_and_edge_of_earlier_versions_have_gaps_and_no_errors():
    [row] = show.parity_table({"q8_0": {"tensors": 236, "texts": 50}})
    assert (row["tensors alike"], row["mean KL, nats"], row["same likeliest token"]) == (
        236,
        None,
        None,
    )
    [row] = show.edge_table([{"format": "q8_0", "bytes": 2**20}])
    assert (row["file, MiB"], row["fits in"], row["memory, MiB"]) == (1.0, None, None)


def test_a_heading_stands_over_its_column():
    """JupyterLab would put the headings of texts on the right, away from them."""
    markup = show.table_html([{"name": "steps", "value": 4}])
    assert '<th style="text-align:left">name</th><th style="text-align:right">value</th>' in markup
