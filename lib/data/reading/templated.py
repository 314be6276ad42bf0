r"""Read a text that a chat template made back into its turns, where that is unambiguous.

read_turns("<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n")
# [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]

The templates are those of Gemma, ChatML, Llama 2, 3 and 4, Mistral, Phi, Zephyr, DeepSeek, Granite,
gpt-oss; and, without control tokens, Alpaca, Vicuna, "### Human:" and "Human:".
"""

import re
from typing import NamedTuple

from lib.data.cleaning.control_tokens import has_control_token, strip_control_tokens

Messages = list[dict[str, str]]
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "model": "assistant",
    "gpt": "assistant",
}


class Template(NamedTuple):
    """How a template writes turns: the head of each, with a group `role`, and the end of each."""

    head: re.Pattern[str]
    end: str  # "" for a template whose turns end where the next begins
    # what may come before the first turn
    before: re.Pattern[str] = re.compile(
        r"\s*(?:<bos>|<s>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>)*\s*"
    )


def _head(opener: str, closer: str) -> re.Pattern[str]:
    return re.compile(rf"{opener}[ \t]*(?P<role>\w+)[ \t]*{closer}")


# each turn is <opener>role<closer>text<end>
MARKED = (
    Template(_head("<start_of_turn>", r"\n"), "<end_of_turn>"),
    Template(_head(r"<\|turn>", r"\n"), "<turn|>"),
    Template(_head(r"<\|im_start\|>", r"\n"), "<|im_end|>"),
    Template(_head(r"<\|start_header_id\|>", r"<\|end_header_id\|>"), "<|eot_id|>"),
    Template(_head(r"<\|header_start\|>", r"<\|header_end\|>"), "<|eot|>"),
    Template(_head(r"<\|start_of_role\|>", r"<\|end_of_role\|>"), "<|end_of_text|>"),
    # Phi and Zephyr
    Template(re.compile(r"<\|(?P<role>system|user|assistant)\|>[ \t]*\n"), "<|end|>"),
    Template(re.compile(r"<\|(?P<role>system|user|assistant)\|>[ \t]*\n"), "</s>"),
)
DEEPSEEK = re.compile(r"<｜(?P<role>User|Assistant)｜>")
LLAMA_2 = re.compile(
    r"\s*(?:<s>)?\s*\[INST\](?P<user>[^<\[]*(?:(?:<(?!/?s>)|\[(?!/?INST\]))[^<\[]*)*)\[/INST\]"
    r"(?P<assistant>[^<\[]*(?:(?:<(?!/?s>)|\[(?!/?INST\]))[^<\[]*)*)(?P<end></s>)?"
)
LLAMA_2_SYSTEM = re.compile(r"\s*<<SYS>>(?P<system>[^<]*)<</SYS>>(?P<user>[\s\S]*)")
# a text may end without its end token, but not in the middle of a sentence
FINISHED = re.compile(r"[.!?。！？…)\]\"”'’*|`:]\s*\Z|\A\s*\S{1,40}\s*\Z")


def read_turns(text: str) -> Messages | None:
    """Return the turns of a templated text, or None when it is none or can be read in two ways."""
    readings = [_read_marked(text, template) for template in MARKED]
    readings += [_read_deepseek(text), _read_llama_2(text), _read_labelled(text)]
    found = [turns for turns in readings if turns]
    if not found or any(turns != found[0] for turns in found):
        return None
    turns = found[0]
    # a prompt for the model to go on from
    if not turns[-1]["content"] and turns[-1]["role"] == "assistant":
        turns = turns[:-1]
    texts = [turn["content"] for turn in turns]
    has_both = {"user", "assistant"} <= {turn["role"] for turn in turns}
    if not has_both or not all(texts) or any(map(has_control_token, texts)):
        return None
    return turns


def is_templated(text: str) -> bool:
    """Tell whether a text has the marks of a chat template, whether or not it can be read."""
    return has_control_token(text) or bool(LABELLED.search(text))


def asks_to_go_on(text: str) -> bool:
    """Tell whether a text without control tokens ends where a template has the answer begin."""
    return bool(GOES_ON.search(text))


def ends_open(text: str) -> bool:
    """Tell whether a text ends with a label such as "Answer:", which may be part of a template."""
    return bool(OPEN_END.search(text))


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text.strip()}


def _read_marked(text: str, template: Template) -> Messages:
    """Return the turns of a text with an opener and an end for each; empty when it has another."""
    heads = list(template.head.finditer(text))
    if not heads or not template.before.fullmatch(text, 0, heads[0].start()):
        return []
    turns = []
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=True):
        role = ROLES.get(head["role"].lower())
        body, mark, rest = text[head.end() : end].partition(template.end)
        is_last = end == len(text)
        if not mark and is_last:
            body = strip_control_tokens(body)
            if body.strip() and not FINISHED.search(body):
                return []
        elif not mark or strip_control_tokens(rest).strip():
            return []
        if role is None:
            return []
        turns.append(_turn(role, body))
    return turns


def _read_deepseek(text: str) -> Messages:
    heads = list(DEEPSEEK.finditer(text))
    if not heads:
        return []
    before = strip_control_tokens(text[: heads[0].start()])
    turns = [_turn("system", before)] if before.strip() else []
    ends = [head.start() for head in heads[1:]] + [len(text)]
    for head, end in zip(heads, ends, strict=True):
        turns.append(
            _turn(ROLES[head["role"].lower()], strip_control_tokens(text[head.end() : end]))
        )
    return turns


def _read_llama_2(text: str) -> Messages:
    turns: Messages = []
    position = 0
    while match := LLAMA_2.match(text, position):
        asked = match["user"]
        system = LLAMA_2_SYSTEM.fullmatch(asked)
        if system and turns:
            return []
        if system:
            turns.append(_turn("system", system["system"]))
            asked = system["user"]
        turns += [_turn("user", asked), _turn("assistant", match["assistant"])]
        position = match.end()
    return turns if turns and not text[position:].strip() else []


# -------------------------------------------------------------------------------------------------
# templates without control tokens

ALPACA_PREAMBLE = r"(?:Below is an instruction[^\n]*(?:\n[^\n#]+)*\n+)?"
ALPACA = re.compile(
    rf"\s*{ALPACA_PREAMBLE}### ?Instruction:[ \t]*\n?(?P<instruction>(?:(?!\n###)[\s\S])*)"
    r"(?:\n### ?Input:[ \t]*\n?(?P<input>(?:(?!\n###)[\s\S])*))?"
    r"\n### ?Response:[ \t]*\n?(?P<response>(?:(?!\n###)[\s\S])*)\Z"
)
# (the labels of user and assistant, each at a line's start)
LABELS = (
    ("### Human:", "### Assistant:"),
    ("### User:", "### Assistant:"),
    ("Human:", "Assistant:"),
    ("User:", "Assistant:"),
    ("Question:", "Answer:"),
    ("Q:", "A:"),
)
LABELLED = re.compile(
    r"^[ \t]*(?:### ?(?:Instruction|Response|Human|Assistant|User)|Human|Assistant)[ \t]*:|"
    r"\b(?:USER|ASSISTANT):",
    re.M,
)
_OPEN = r"### ?(?:Response|Assistant|Answer|Output)[ \t]*:?|Assistant:"
GOES_ON = re.compile(rf"(?:^[ \t]*(?:{_OPEN})|\bASSISTANT:)\s*\Z", re.M)
OPEN_END = re.compile(r"^[ \t]*(?:Answer|A):\s*\Z", re.M)
VICUNA = re.compile(
    r"(?P<system>A chat between[^\n]*?\.)?\s*"
    r"USER: (?P<user>(?:(?! ?\bASSISTANT:)[\s\S])*)\s\bASSISTANT:"
    r"(?P<assistant>(?:(?!</s>|\bUSER:)[\s\S])*)(?:</s>)?"
)


def _read_labelled(text: str) -> Messages:
    """Return the turns of a text whose template has words for labels; empty unless it fits one."""
    text = strip_control_tokens(text)
    match = ALPACA.match(text)
    if match:
        asked = "\n\n".join(
            part.strip() for part in (match["instruction"], match["input"]) if part and part.strip()
        )
        return [_turn("user", asked), _turn("assistant", match["response"])]
    if "ASSISTANT:" in text:
        return _read_vicuna(text)
    for asking, answering in LABELS:
        turns = _read_lines(text, asking, answering)
        if turns:
            return turns
    return []


def _read_vicuna(text: str) -> Messages:
    turns: Messages = []
    position = 0
    while match := VICUNA.match(text, position):
        if match["system"]:
            turns.append(_turn("system", match["system"]))
        turns += [_turn("user", match["user"]), _turn("assistant", match["assistant"])]
        position = match.end()
    return turns if not text[position:].strip() else []


def _read_lines(text: str, asking: str, answering: str) -> Messages:
    """Return turns that begin with two labels in turn, the first of them at the text's start."""
    labels = {asking: "user", answering: "assistant"}
    parts = re.split(rf"(?m)^[ \t]*({'|'.join(map(re.escape, labels))})", text)
    if parts[0].strip() or len(parts) < 5:
        return []
    turns = [
        _turn(labels[label], body) for label, body in zip(parts[1::2], parts[2::2], strict=True)
    ]
    pairs = len(turns) // 2
    alternate = [turn["role"] for turn in turns] == ["user", "assistant"] * pairs
    # one question and its answer: more of them may be a list of questions in one text
    return turns if alternate and (asking not in ("Question:", "Q:") or pairs == 1) else []
