r"""Find HTML tags in a text, and write them as the few plain tags that `markup.py` knows.

number_texts("Take <B>5 mg</B>")  # ("0;<span>1;</span>", ["Take ", "5 mg"])
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

HIDDEN = " hidden"
MOST_NESTED = 40  # elements: far more than any page has, and few enough for functions that recur
GONE = "x-gone"  # our own element, for deleted text


class UnclearMarkup(Exception):
    """What the markup means for its text cannot be told, so that the row must be dropped."""


class Tag(NamedTuple):
    """A tag of the text, and how it is written for the parser."""

    start: int
    end: int
    plain: str
    is_end: bool
    attributes: str = ""  # of a picture: the sign that it stands for


# {our plain tag: the tags of HTML that are written as it}
PLAIN = {
    "p": "p h1 h2 h3 h4 h5 h6 blockquote pre title",
    "div": "div section article aside header footer nav main figure figcaption center address form "
    "fieldset legend details summary option optgroup select textarea dl dt dd body html head "
    "noscript template iframe",
    "span": "span b i u em strong small big a font tt code kbd samp var cite q dfn abbr acronym "
    "mark ins label button time data bdi bdo nobr ruby rt rp rb picture video audio object map "
    "blink marquee output meter progress",
    "br": "br hr",
    "img": "img input",
    "sup": "sup",
    "sub": "sub",
    "ul": "ul menu dir",
    "ol": "ol",
    "li": "li",
    "table": "table",
    "caption": "caption",
    "tr": "tr",
    "td": "td",
    "th": "th",
    GONE: "del s strike",
    # without a text or a meaning of their own
    "": "thead tbody tfoot colgroup col wbr meta link base area source track param embed xml",
    # they set numbers above and beside others, where no line of text shows it
    "unclear": "math svg canvas",
}
PLAIN_NAMES = {name: plain for plain, names in PLAIN.items() for name in names.split()}
WITHOUT_END = {"br", "img"}
END_IS_IMPLIED = {"p", "li", "tr", "td", "th"}  # by the next one, or by the end of their parent
INLINE = {"span", "sup", "sub", GONE}
# without an end they would take in all the text that follows
NEEDS_END = {"sup", "sub", GONE}

BOOLEAN = (
    "nowrap|hidden|disabled|checked|selected|reversed|noshade|compact|open|async|defer|controls"
)
# An attribute needs "=" or a known name, so that "a <b and c> d" does not count as a tag. No part
# reaches across a "<", so that the search stays linear.
TAG = re.compile(
    rf"<(/?)({'|'.join(sorted(PLAIN_NAMES, key=len, reverse=True))}|[a-z]\w{{0,8}}:[a-z]\w{{0,20}})"
    r"(?![\w:-])"
    rf"((?:\s++(?:{BOOLEAN})(?=[\s/>])(?!\s*+=))*+"
    r"(?:\s++[a-z][\w:-]*+\s*+=(?:[^<>\"']|\"[^\"<]*+\"|'[^'<]*+'|[\"'](?=[^<>]*+>))*+)?+)"
    r"\s*+/?>",
    re.I,
)
UNSEEN_STYLE = re.compile(
    r"\bhidden\b(?!\s*=\s*[\"']?(?:false|until-found))|\bline-through\b|"
    r"\bdisplay\s*:\s*none\b|\bvisibility\s*:\s*hidden\b",
    re.I,
)
NUMBER = re.compile(r"\b(colspan|rowspan|start|value)\s*=\s*[\"']?\s*(-?\d{1,4})(?!\d)", re.I)
# a picture that stands for a sign, such as one of "½" or "≥"
SIGN = re.compile(
    r"\balt\s*=\s*(?:\"([^\"a-z]{1,5})\"|'([^'a-z]{1,5})'|([^\s\"'<>a-z]{1,5}))", re.I
)
LETTERED = re.compile(r"\btype\s*=\s*[\"']?(a)\b", re.I)


def number_texts(text: str) -> tuple[str, list[str]]:
    """Return a text as plain tags and numbers, and the texts for which the numbers stand.

    So the parser sees no text, which it would change: controls, "<", line ends. Without a tag, both
    are empty. Raise UnclearMarkup when a tag's reach is not clear.
    """
    pieces: list[str] = []
    texts: list[str] = []
    position = 0
    for tag in _balance(_read_tags(text)):
        if tag.start > position:
            pieces.append(f"{len(texts)};")
            texts.append(text[position : tag.start])
        if tag.plain == "img":
            pieces.append(f"{len(texts)};")
            texts.append(tag.attributes)
        elif tag.plain:
            pieces.append(f"</{tag.plain}>" if tag.is_end else f"<{tag.plain}{tag.attributes}>")
        position = tag.end
    if position and position < len(text):
        pieces.append(f"{len(texts)};")
        texts.append(text[position:])
    return "".join(pieces), texts


def _read_tags(text: str) -> list[Tag]:
    found = list(TAG.finditer(text))
    strikes = [bool(match[1]) for match in found if match[2] in "sS"]
    # <s> and </s> that are no pair begin and end a text for Llama
    paired = strikes == [False, True] * (len(strikes) // 2)
    return [_read_tag(match) for match in found if paired or match[2] not in "sS"]


def _read_tag(match: re.Match[str]) -> Tag:
    slash, name, given = match.groups()
    plain = PLAIN_NAMES.get(name.lower(), "span")  # <o:p> and the like
    if plain == "unclear":
        raise UnclearMarkup
    attributes = ""
    if plain == "img":
        sign = SIGN.search(given or "")
        attributes = next(filter(None, sign.groups()), "") if sign else " "
    elif given and not slash and plain not in WITHOUT_END:
        if UNSEEN_STYLE.search(given):
            attributes = HIDDEN
        else:
            attributes = "".join(f' {a.lower()}="{n}"' for a, n in NUMBER.findall(given))
            lettered = LETTERED.search(given) if plain == "ol" else None
            attributes += f' type="{lettered[1]}"' if lettered else ""
    return Tag(match.start(), match.end(), plain, bool(slash), attributes)


def _balance(tags: list[Tag]) -> Iterator[Tag]:
    """Yield the tags, but a line end for an end tag of a block that was not open.

    Raise UnclearMarkup for markup that is nested too deeply. Deleted, hidden, raised and lowered
    text must be well-formed, or its end could be anywhere.
    """
    stack: list[str] = []  # the open elements that need an end tag
    strict = 0  # as many of them, from the last, are deleted, hidden, raised, lowered, or within
    for tag in tags:
        if tag.plain in WITHOUT_END or not tag.plain:
            yield tag._replace(is_end=False)
        elif strict or (tag.plain in NEEDS_END and not tag.is_end) or tag.attributes == HIDDEN:
            strict += _step_strictly(tag, stack)
            yield tag
        elif tag.plain in END_IS_IMPLIED:
            yield tag
        elif not tag.is_end:
            stack.append(tag.plain)
            yield tag
        elif _close(tag.plain, stack):
            yield tag
        else:
            yield tag._replace(plain="" if tag.plain in INLINE else "br", is_end=False)
        if len(stack) > MOST_NESTED:
            raise UnclearMarkup
    if strict:
        raise UnclearMarkup


def _step_strictly(tag: Tag, stack: list[str]) -> int:
    """Put an element on the stack, or take it off; return by how many the stack has grown.

    Raise UnclearMarkup for an end tag that does not close the last element.
    """
    if not tag.is_end:
        stack.append(tag.plain)
        return 1
    if stack.pop() != tag.plain:
        raise UnclearMarkup
    return -1


def _close(plain: str, stack: list[str]) -> bool:
    """Remove an element from the stack, with those within it that have no end; tell whether it was.

    The end of an inline element does not end a block within it.
    """
    if plain not in stack:
        return False
    place = len(stack) - 1 - stack[::-1].index(plain)
    if plain in INLINE and any(name not in INLINE for name in stack[place:]):
        return False
    del stack[place:]
    return True
