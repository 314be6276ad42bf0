"""The chat template of a model folder, read in one place for data, model and export.

    read_chat_template(folder)  # the template's text

If two rooms looked in different places, a run could train on one template and ship another.
"""

import pathlib

from lib.common import files
from lib.common.errors import UserError

TURN_END = "<end_of_turn>"


def read_chat_template(folder: pathlib.Path) -> str:
    """Return a model folder's chat template; raise UserError when it has none.

    As in transformers, the file chat_template.jinja wins over `chat_template` in
    tokenizer_config.json; if that is a list of templates, the one named `default` counts.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        template = path.read_text(encoding="utf-8")
    else:
        config = files.read_json(folder / "tokenizer_config.json", "tokenizer configuration")
        template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if not template:
        raise UserError(
            f"the tokenizer of `{files.format_path(folder)}` has no chat template, neither in "
            f"chat_template.jinja nor in tokenizer_config.json; use an instruction-tuned base, "
            f"or add a template."
        )
    return template
