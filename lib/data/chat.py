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
from lib.params import UserError

IGNORED = -100  # the label transformers' loss skips
TURN_END = "<end_of_turn>"
MODEL_TURN = "<start_of_turn>model\n"
# text that spells one of these could fake a turn, a picture or a sound
CONTROL = re.compile(r"<(?=(?:start_of_turn|end_of_turn|bos|eos|pad|unk|mask|start_of_image|end_of_image|image_soft_token|start_of_audio|"
                     r"end_of_audio|audio_soft_token|unused\d+)>)")
SENTENCE_END = re.compile(r"(?<=[^\s\d])[.!?][\"')\]]*(?=\s|$)|\n")  # not the "3." of a list


class Chat(NamedTuple):
    """A `tokenizers.Tokenizer`, the chat template's text and the special tokens it may name."""

    tokenizer: Any
    template: str
    specials: dict[str, str]

    def render(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template

        return render_jinja_template([messages], chat_template=self.template, add_generation_prompt=add_generation_prompt, **self.specials)[0][0]

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def id(self, token: str) -> int:
        return self.tokenizer.token_to_id(token)


def load(folder: pathlib.Path) -> Chat:
    """Tokenizer and template of a model folder; UserError when it has no fast tokenizer or no template."""
    import tokenizers

    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"`{files.shown(folder)}` has no tokenizer.json; expected a model folder with a fast tokenizer.")
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = files.read_json(folder / "tokenizer_config.json", "tokenizer configuration")
    path = folder / "chat_template.jinja"
    template = path.read_text(encoding="utf-8") if path.is_file() else config.get("chat_template")
    if isinstance(template, list):  # several named ones
        template = next((t["template"] for t in template if t["name"] == "default"), None)
    if not template:
        raise UserError(f"the tokenizer of `{files.shown(folder)}` has no chat template; use an instruction-tuned base, or add one.")
    named = {k: v["content"] if isinstance(v, dict) else v for k, v in config.items() if k.endswith("_token") and v}
    return Chat(tokenizer, template, {k: v for k, v in named.items() if isinstance(v, str)})


def identity(folder: pathlib.Path) -> str:
    """16 hex digits of what turns text into ids: tokenizer, template, the libraries and this code."""
    names = [n for n in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja") if (folder / n).is_file()]
    versions = [importlib.metadata.version(p) for p in ("tokenizers", "transformers", "jinja2")]
    hashes = [n + files.sha256(path) for n, path in [("code", pathlib.Path(__file__)), *((n, folder / n) for n in names)]]
    return hashlib.sha256(" ".join(versions + hashes).encode()).hexdigest()[:16]


# ---------------------------------------------------------------------------------------------------------------------
# ids and labels


def spans(chat: Chat, messages: list[dict[str, str]]) -> tuple[str, list[tuple[int, int]]]:
    """The rendered conversation, and from where to where in it each answer and its <end_of_turn> stand.

    The spans are those by which the rendering grows with each assistant turn, so any template whose rendering of a prefix is
    a prefix of the rendering works; ValueError when it is not.
    """
    text, found = chat.render(messages), []
    for n, message in enumerate(messages):
        if message["role"] == "assistant":
            start = chat.render(messages[:n], add_generation_prompt=True)
            if not text.startswith(start):
                raise ValueError("the chat template renders the same turns differently when more follow")
            found.append((len(start), text.index(TURN_END, len(start)) + len(TURN_END)))
    return text, found


def label(encoding: Any, found: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Ids and labels of an encoded text: labels are its ids inside the spans, IGNORED elsewhere; ValueError when a token straddles an edge."""
    ids = encoding.ids
    labels = [IGNORED] * len(ids)
    for start, end in found:
        first, last = encoding.char_to_token(start), encoding.char_to_token(end - 1)
        if first is None or last is None or encoding.token_to_chars(first)[0] != start or encoding.token_to_chars(last)[1] != end:
            raise ValueError("a token straddles the edge of an answer")
        # one emoji may be several tokens that all claim the same character
        while first and encoding.token_to_chars(first - 1) == encoding.token_to_chars(first):
            first -= 1
        labels[first:last + 1] = ids[first:last + 1]
    return ids, labels


def encode(chat: Chat, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one conversation; labels are on assistant text and its <end_of_turn>, IGNORED elsewhere."""
    text, found = spans(chat, messages)
    return label(chat.tokenizer.encode(text, add_special_tokens=False), found)


def encode_all(chat: Chat, rows: Iterable[list[dict[str, str]]]) -> list[tuple[list[int], list[int]]]:
    """`encode` of many conversations at once; UserError when tokenizer or template cannot be used for training."""
    import jinja2

    try:
        rendered = [spans(chat, messages) for messages in rows]
        encoded = chat.tokenizer.encode_batch([text for text, _ in rendered], add_special_tokens=False)
        return [label(encoding, found) for encoding, (_, found) in zip(encoded, rendered, strict=True)]
    except (ValueError, jinja2.TemplateError) as error:
        raise UserError(f"{error}.\nThe tokenizer or chat template of the base model cannot be used for training on these rows as it is.") from None


def prove(chat: Chat, ids: list[int], labels: list[int], messages: list[dict[str, str]]) -> str:
    """What is wrong with a tokenised row, or an empty string: the checks every row must pass.

    Exactly one <bos>, first; every label its token; as many trained runs as answers, each right after the model's turn begins, and
    each decoding to that answer, whole, and its <end_of_turn>: so at least one token is trained, the stop token is, no token of a
    user is, and no answer is cut away. The whole decodes to the template's rendering, so that questions are whole too.
    """
    bos, head = chat.id("<bos>"), chat.tokenizer.encode(MODEL_TURN, add_special_tokens=False).ids
    if ids.count(bos) != 1 or ids[0] != bos:
        return f"{ids.count(bos)} <bos> tokens, expected one, first"
    if len(ids) != len(labels) or any(lab not in (IGNORED, token) for token, lab in zip(ids, labels, strict=True)):
        return "a label differs from its token"
    answers = [m["content"].strip() for m in messages if m["role"] == "assistant"]
    edges = [n for n in range(len(ids) + 1) if (n < len(ids) and labels[n] != IGNORED) != (n > 0 and labels[n - 1] != IGNORED)]
    runs = list(zip(edges[::2], edges[1::2], strict=True))
    if len(runs) != len(answers):
        return f"{len(runs)} trained runs of tokens, expected {len(answers)}, one an answer"
    for (start, end), answer in zip(runs, answers, strict=True):
        if ids[start - len(head):start] != head:
            return f"a trained run does not start where the model's turn begins, but after {chat.decode(ids[max(0, start - 4):start])!r}"
        if ids[end - 1] != chat.id(TURN_END):
            return f"an answer's {TURN_END} is not trained"
        if chat.decode(ids[start:end]) != (answer + TURN_END).replace("\u2581", " "):  # the tokenizer writes blanks as U+2581
            return "the trained tokens do not decode to the answer"
    if chat.decode(ids) != chat.render(messages).replace("\u2581", " "):
        return "the tokens do not decode to the rendered conversation"
    return ""


def cut(chat: Chat, messages: list[dict[str, str]], most: int) -> list[dict[str, str]] | None:
    """The conversation within `most` tokens: last exchanges left out, then the last answer cut after a whole sentence; None when nothing fits.

    The answer still ends in a trained <end_of_turn>, so it must end as an answer does, not in the middle of a sentence.
    """
    while len(messages) > 3 and len(encode(chat, messages[:-1] + [{"role": "assistant", "content": "."}])[0]) > most:
        messages = messages[:-2]
    text, found = spans(chat, messages)
    if len(chat.tokenizer.encode(text, add_special_tokens=False)) <= most:
        return messages
    answer, start = messages[-1]["content"].strip(), found[-1][0]
    offsets = chat.tokenizer.encode(text, add_special_tokens=False).offsets
    room = offsets[max(0, most - 3)][0] - start  # the end token and the line end after it need their place
    for end in reversed([m.end() for m in SENTENCE_END.finditer(answer[:max(0, room)])]):
        shorter = [*messages[:-1], {"role": "assistant", "content": answer[:end].strip()}]
        if re.search(r"\w", answer[:end]) and not answer[:end].rstrip().endswith(":") and len(encode(chat, shorter)[0]) <= most:
            return shorter
    return None


def same_as_transformers(chat: Chat, folder: pathlib.Path, rows: Iterable[tuple[list[dict[str, str]], list[int]]]) -> int:
    """How many (messages, stored ids) were compared; UserError when transformers' own tokenizer renders or tokenises one otherwise, or none came."""
    from transformers import AutoTokenizer

    theirs, count = AutoTokenizer.from_pretrained(folder), 0
    for messages, ids in rows:
        text, count = theirs.apply_chat_template(messages, tokenize=False), count + 1
        if text != chat.render(messages) or theirs(text, add_special_tokens=False)["input_ids"] != ids:
            raise UserError(f"tokenizer.json and transformers' tokenizer of `{files.shown(folder)}` disagree on {messages[0]['content'][:80]!r}.\n"
                            f"Files of one release belong together: fetch the base model again.")
    if not count:
        raise UserError("no row was left to compare with transformers' tokenizer.")
    return count
