r"""Control tokens of any model family in a text, as in "Press.</s>" or "<|im_start|>user\n...".

strip_control_tokens("Press firmly.<|im_end|>")  # "Press firmly."

At an end of a text they are what a template added. Within it they part what are several turns, or
stand for text that is lost: `has_control_token` finds them, and the row is dropped.
"""

import re

NAME = r"[A-Za-z0-9_ .-]{1,40}"
OPENERS = {
    # ChatML, Gemma, Gemma 4, and gpt-oss
    r"<\|im_start\|>": "",
    r"<start_of_turn>": "",
    r"<\|turn>": "",
    r"<\|start\|>": r"<\|message\|>",
    # Llama 3 and 4, Granite
    r"<\|start_header_id\|>": r"<\|end_header_id\|>",
    r"<\|header_start\|>": r"<\|header_end\|>",
    r"<\|start_of_role\|>": r"<\|end_of_role\|>",
}
ROLE = r"(?:system|developer|user|human|assistant|model|gpt|tool)"
# the head of a turn, with its role
HEAD = "|".join(
    rf"{opener}[ \t]*{ROLE}[ \t]*" + (f"{closer}" if closer else r"(?=\n|\Z)")
    for opener, closer in OPENERS.items()
)
TOKEN = (
    r"<(?:bos|eos|pad|start_of_turn|end_of_turn|unused\d{1,4}|BOS_TOKEN|EOS_TOKEN|PAD_TOKEN)>|"
    rf"<\|{NAME}\|>|<｜[^｜<>\n]{{1,40}}｜>|<\|turn>|<turn\|>|"
    r"\[/?INST\]|<</?SYS>>|\[/?SYSTEM_PROMPT\]"
)
# these stand for something that was there, so that nothing of it is left at an end either
LOST = r"<(?:unk|mask|extra_id_\d{1,3}|image|audio|video|image_soft_token|audio_soft_token)>"
STRIKE = "</?s>"
AT_START = re.compile(rf"\s*+(?:(?:{HEAD}|{STRIKE}|{TOKEN})\s*+)++")
AT_END = re.compile(rf"(?:{HEAD}|{STRIKE}|{TOKEN})\Z")
# without Llama's <s> and </s>, which are also HTML's
AT_START_OF_HTML = re.compile(rf"\s*+(?:(?:{HEAD}|{TOKEN})\s*+)++")
AT_END_OF_HTML = re.compile(rf"(?:{HEAD}|{TOKEN})\Z")
ANYWHERE = re.compile(rf"{STRIKE}|{TOKEN}|{LOST}")
LONGEST = 120  # characters of a turn's head


def strip_control_tokens(text: str) -> str:
    """Remove control tokens, and the heads of turns, from both ends of a text."""
    if "<" not in text and "INST]" not in text and "PROMPT]" not in text:
        return text
    is_html = _strikes_text(text)
    at_start, at_end = (AT_START_OF_HTML, AT_END_OF_HTML) if is_html else (AT_START, AT_END)
    match = at_start.match(text)
    start = match.end() if match else 0
    end = len(text)
    while end > start:
        # the index moves and not the text, which may be a million tokens
        while end > start and text[end - 1].isspace():
            end -= 1
        found = at_end.search(text[max(start, end - LONGEST) : end])
        if not found:
            break
        end -= len(found[0])
    has_token = start or end < len(text.rstrip())
    return text[start:end] if has_token else text


def _strikes_text(text: str) -> bool:
    """Tell whether a text has <s> and </s> in pairs, but not as its first and last token."""
    tags = re.findall(STRIKE, text)
    if not tags or tags != ["<s>", "</s>"] * (len(tags) // 2) or "[INST]" in text:
        return False
    inner = text.strip()
    return len(tags) > 2 or not (inner.startswith("<s>") and inner.endswith("</s>"))


def has_control_token(text: str) -> bool:
    """Tell whether a control token of any model family is in a text."""
    return ("<" in text or "INST]" in text) and bool(ANYWHERE.search(text))
