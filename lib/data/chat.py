"""The base model's tokenizer and chat template, as the prepare stage and its workers use them.

    chat = load_chat(folder)
    chat.render(messages)

transformers' tokenizer classes import torch; without them a worker takes a third of the memory.
`compare_with_transformers` proves that both give the same text and the same ids.
"""

import hashlib
import importlib.metadata
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from lib.common import files
from lib.common.chat_template import TURN_END, read_chat_template
from lib.common.errors import UserError
from lib.data.tokenising.word_tokens import Pieces, WordTokens

TURN_START = "<start_of_turn>"

# a text that contains one of these could fake a turn, a picture or a sound
CONTROL = re.compile(
    r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad|unk|mask|start_of_image|end_of_image|"
    r"image_soft_token|start_of_audio|end_of_audio|audio_soft_token|unused\d+)>)"
)
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Chat(NamedTuple):
    """A `tokenizers.Tokenizer`, the chat template's text and the special tokens it may name.

    `words` and `pieces` are faster ways to encode and decode, where they give the same.
    """

    tokenizer: Any
    template: str
    specials: dict[str, str]
    words: WordTokens | None = None
    pieces: Pieces | None = None

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        """Return a conversation as the text the model reads."""
        from transformers.utils.chat_template_utils import render_jinja_template  # 2 s to import

        rendered, _ = render_jinja_template(
            [messages],
            chat_template=self.template,
            add_generation_prompt=add_generation_prompt,
            **self.specials,
        )
        return rendered[0]

    def decode(self, ids: list[int]) -> str:
        """Return token ids as text, control tokens included."""
        if self.pieces is not None:
            texts = [self.pieces[token] for token in ids]
            if None not in texts:
                return "".join(texts)  # type: ignore[arg-type]
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def token_id(self, token: str) -> int:
        """Return the id of a token; -1, which no text has, for an unknown token."""
        token_id = self.tokenizer.token_to_id(token)
        return -1 if token_id is None else token_id


def load_chat(folder: pathlib.Path) -> Chat:
    """Read tokenizer and template of a model folder.

    Raise UserError when one of them is missing, or the turns are not Gemma's.
    """
    import tokenizers  # a command that tokenises nothing starts without it

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"`{files.format_path(folder)}` has no tokenizer.json; expected a model folder with a "
            f"fast tokenizer."
        )
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = files.read_json(folder / "tokenizer_config.json", "tokenizer configuration")
    chat = Chat(
        tokenizer,
        read_chat_template(folder),
        _special_tokens(config),
        WordTokens.of(tokenizer),
        Pieces.of(tokenizer),
    )
    _require_gemma_turns(chat, folder)
    return chat


def _require_gemma_turns(chat: Chat, folder: pathlib.Path) -> None:
    """Raise UserError unless template and tokenizer have the turns that the label mask looks for.

    ChatML, for example, would be trained with other stop tokens than the export's servers use. A
    template that cannot be rendered is an error of the rows that it refuses.
    """
    import jinja2

    turns = [("user", "Burnt?"), ("assistant", "Cool it."), ("user", "And?"), ("assistant", "112.")]
    try:
        text = chat.render([{"role": role, "content": content} for role, content in turns])
    except jinja2.TemplateError:
        return
    names = {"user": "user", "assistant": "model"}
    wanted = [f"{TURN_START}{names[role]}\n{content}{TURN_END}" for role, content in turns]
    unknown = [token for token in (TURN_START, TURN_END) if chat.token_id(token) < 0]
    if all(turn in text for turn in wanted) and not unknown:
        return
    where = files.format_path(folder)
    if unknown:
        fault = f"the tokenizer of `{where}` has no token {' and no token '.join(unknown)}."
    else:
        fault = (
            f"the chat template of `{where}` does not write Gemma's turns. Expected an answer as "
            f"{wanted[1]!r}; a short conversation is {text[:160]!r}."
        )
    raise UserError(
        f"{fault}\nOnly on Gemma's turns can it be proven which tokens are trained, and only these "
        f"are exported. Use a Gemma 3 or Gemma 3n base with its own chat_template."
    )


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Return {"bos_token": "<bos>", ...} from a tokenizer's configuration."""
    texts = {name: token_text(config, name) for name in config if name.endswith("_token")}
    return {name: text for name, text in texts.items() if text}


def token_text(config: dict[str, Any], name: str) -> str:
    """Return the text of a token that tokenizer_config.json names; "" if it names none."""
    token = config.get(name)
    text = token["content"] if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""  # add_bos_token is true or false


def tokenizer_identity(folder: pathlib.Path) -> str:
    """Return 16 hex digits that change with anything that decides ids and labels.

    They cover the tokenizer's files, its libraries, and the code of lib/common and lib/data.
    """
    versions = [importlib.metadata.version(p) for p in ("tokenizers", "transformers", "jinja2")]
    hashes = [
        name + files.sha256(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()
    ]
    parts = [*versions, files.code_hash("common", "data"), *hashes]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def compare_with_transformers(
    chat: Chat, folder: pathlib.Path, rows: Iterable[tuple[list[dict[str, str]], list[int]]]
) -> int:
    """Compare text and ids of (messages, stored ids) with those of transformers' own tokenizer.

    Return the number of rows compared; raise UserError at the first difference, or without rows.
    """
    from transformers import AutoTokenizer  # takes seconds, and imports torch

    theirs = AutoTokenizer.from_pretrained(folder)
    count = 0
    for messages, ids in rows:
        text = theirs.apply_chat_template(messages, tokenize=False)
        same_text = text == chat.render(messages)
        if not same_text or theirs(text, add_special_tokens=False)["input_ids"] != ids:
            raise UserError(
                f"tokenizer.json and transformers' tokenizer of `{files.format_path(folder)}` "
                f"disagree on {messages[0]['content'][:80]!r}.\n"
                f"Files of one release belong together: fetch the base model again."
            )
        count += 1
    if not count:
        raise UserError("no row is left to compare with transformers' tokenizer.")
    return count
