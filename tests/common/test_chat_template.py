"""The chat template of a model folder: found in transformers' order, and refused if missing.

python -m pytest tests/common/test_chat_template.py
"""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from lib.common.chat_template import read_chat_template
from lib.common.errors import UserError


@pytest.fixture
def folder(bundled_base, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(bundled_base / name, tmp_path)
    return tmp_path


def set_template(folder, template):
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps(config))


def test_the_file_wins_over_the_configuration_as_in_transformers(folder):
    in_configuration = read_chat_template(folder)
    assert AutoTokenizer.from_pretrained(folder).chat_template == in_configuration
    (folder / "chat_template.jinja").write_text("another")
    assert read_chat_template(folder) == "another"
    assert AutoTokenizer.from_pretrained(folder).chat_template == "another"


def test_of_several_templates_the_default_is_meant(folder):
    named = [{"name": "tools", "template": "a"}, {"name": "default", "template": "b"}]
    set_template(folder, named)
    assert read_chat_template(folder) == "b"
    assert AutoTokenizer.from_pretrained(folder).get_chat_template() == "b"


@pytest.mark.parametrize("template", [None, "", [], [{"name": "tools", "template": "a"}]])
def test_a_folder_without_a_template_is_refused(folder, template):
    set_template(folder, template)
    with pytest.raises(UserError, match="no chat template.*chat_template.jinja"):
        read_chat_template(folder)
    (folder / "chat_template.jinja").write_text("")
    with pytest.raises(UserError, match="no chat template"):
        read_chat_template(folder)
