"""The tokenizer and chat template of a model folder, and their comparison with transformers.

python -m pytest tests/data/test_chat.py
"""

import json
import shutil

import pytest

from helpers.conversations import bundled_messages, row
from lib.common.errors import UserError
from lib.data import chat, label_mask


@pytest.fixture(scope="module")
def gemma(bundled_base):
    return chat.load_chat(bundled_base)


def test_transformers_tokenizer_agrees_and_a_foreign_one_is_refused(
    gemma, bundled_base, tiny_gemma3n
):
    rows = [
        (messages, label_mask.encode(gemma, messages)[0]) for messages in bundled_messages()[:50]
    ]
    assert chat.compare_with_transformers(gemma, bundled_base, rows) == 50
    with pytest.raises(UserError, match="disagree on"):
        chat.compare_with_transformers(gemma, tiny_gemma3n, rows)
    rows[40] = (rows[40][0], [*rows[40][1][:-1], 5])
    with pytest.raises(UserError, match="disagree on"):
        chat.compare_with_transformers(gemma, bundled_base, rows)
    with pytest.raises(UserError, match="no row is left"):
        chat.compare_with_transformers(gemma, bundled_base, [])


def test_system_message_begins_the_first_users_turn(gemma):
    text = gemma.render([{"role": "system", "content": "Be brief."}, *row("Why?", "So.")])
    assert (
        text
        == "<bos><start_of_turn>user\nBe brief.\n\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
    )


CHATML = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda t: CHATML, "<|im_start|>user"),
        (lambda t: LLAMA, "<|start_header_id|>user"),
        (lambda t: "{% for m in messages %}{{ m.content }}{% endfor %}", "Burnt?Cool it."),
        (lambda t: t.replace("<end_of_turn>", "<eos>"), "Cool it.<eos>"),
        (lambda t: t.replace("<start_of_turn>", "<start>"), "<start>model"),
        (lambda t: t.replace("'model' if", "'assistant' if"), "<start_of_turn>assistant"),
        (lambda t: t.replace("<end_of_turn>", "<end_of_turn><end_of_turn>"), None),
        (lambda t: "{{ raise_exception('never') }}", None),
        (lambda t: t, None),
    ],
)
def test_a_template_with_other_turns_is_refused_with_what_it_writes(
    tiny_gemma3n, tmp_path, change, shown
):
    base = shutil.copytree(tiny_gemma3n, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    (base / "chat_template.jinja").write_text(change(config["chat_template"]))
    if shown is None:  # right, or refused later with the row
        chat.load_chat(base)
        return
    with pytest.raises(UserError, match="does not write Gemma's turns") as error:
        chat.load_chat(base)
    said = str(error.value)
    assert shown in said
    assert "<start_of_turn>model\\nCool it.<end_of_turn>" in said, "what is expected"
    assert "Use a Gemma 3 or Gemma 3n base" in said


def test_a_tokenizer_without_the_turns_tokens_is_refused(tiny_gemma3n, tmp_path):
    base = shutil.copytree(tiny_gemma3n, tmp_path / "base")
    path = base / "tokenizer.json"
    path.write_text(path.read_text().replace("<end_of_turn>", "<end>"))
    with pytest.raises(UserError, match="has no token <end_of_turn>"):
        chat.load_chat(base)


def test_a_folder_without_tokenizer_or_template_says_so(tmp_path, bundled_base):
    with pytest.raises(UserError, match=r"no tokenizer.json"):
        chat.load_chat(tmp_path)
    shutil.copy(bundled_base / "tokenizer.json", tmp_path)
    config = json.loads((bundled_base / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k != "chat_template"})
    )
    with pytest.raises(UserError, match="no chat template"):
        chat.load_chat(tmp_path)
    before = chat.tokenizer_identity(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(config["chat_template"])
    assert chat.load_chat(tmp_path).template == config["chat_template"]
    assert chat.tokenizer_identity(tmp_path) != before
