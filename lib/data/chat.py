"""The model's chat template and tokenizer: token ids, label mask, and the proof of the mask.

Without transformers' tokenizer classes, which bring torch along: a worker of the prepare stage then takes a third of the memory.
`same_as_transformers` holds the two together.
"""

import hashlib
import importlib.metadata
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lib.common import files
from lib.common.errors import UserError

TURN_END = "<end_of_turn>"
# text that spells one of these could fake a turn, a picture or a sound
CONTROL = re.compile(
    r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad|unk|mask|start_of_image|end_of_image|image_soft_token|start_of_audio|"
    r"end_of_audio|audio_soft_token|unused\d+)>)"
)


class Chat(NamedTuple):
    """A `tokenizers.Tokenizer`, the chat template's text and the special tokens it may name."""

    tokenizer: Any
    template: str
    specials: dict[str, str]

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template(
            [messages],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            **self.specials,
        )[0][0]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def id(self, token: str) -> int:
        return self.tokenizer.token_to_id(token)


def load(folder: pathlib.Path) -> Chat:
    """Tokenizer and template of a model folder; UserError when it has no fast tokenizer or no template."""
    import tokenizers

    if not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"`{files.shown(folder)}` has no tokenizer.json; expected a model folder with a fast tokenizer."
        )
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = files.read_json(folder / "tokenizer_config.json", "tokenizer configuration")
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    if not template:
        raise UserError(
            f"the tokenizer of `{files.shown(folder)}` has no chat template; use an instruction-tuned base, or add one."
        )
    named = {
        k: v["content"] if isinstance(v, dict) else v
        for k, v in config.items()
        if k.endswith("_token") and v
    }
    return Chat(tokenizer, template, {k: v for k, v in named.items() if isinstance(v, str)})


def identity(folder: pathlib.Path) -> str:
    """16 hex digits of what turns text into ids: tokenizer, template, the libraries and this code."""
    names = [
        n
        for n in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
        if (folder / n).is_file()
    ]
    versions = [importlib.metadata.version(p) for p in ("tokenizers", "transformers", "jinja2")]
    hashes = [
        n + files.sha256(path)
        for n, path in [("code", pathlib.Path(__file__)), *((n, folder / n) for n in names)]
    ]
    return hashlib.sha256(" ".join(versions + hashes).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# ids and labels


def same_as_transformers(
    chat: Chat, folder: pathlib.Path, rows: Iterable[tuple[list[dict[str, str]], list[int]]]
) -> int:
    """How many (messages, stored ids) were compared; UserError when transformers' own tokenizer renders or tokenises one otherwise, or none came."""
    from transformers import AutoTokenizer

    theirs, count = AutoTokenizer.from_pretrained(folder), 0
    for messages, ids in rows:
        text, count = theirs.apply_chat_template(messages, tokenize=False), count + 1
        if (
            text != chat.render(messages)
            or theirs(text, add_special_tokens=False)["input_ids"] != ids
        ):
            raise UserError(
                f"tokenizer.json and transformers' tokenizer of `{files.shown(folder)}` disagree on {messages[0]['content'][:80]!r}.\n"
                f"Files of one release belong together: fetch the base model again."
            )
    if not count:
        raise UserError("no row was left to compare with transformers' tokenizer.")
    return count
