"""Write raised and lowered text (<sup>, <sub>) in a line without changing a number.

write_raised("9", before="10", after="/L")  # "^9": without "^", 10<sup>9</sup> would become 109
"""

import re

# 1<sup>1</sup>/<sub>2</sub>
UPPER_OF_FRACTION = re.compile(r"\d{1,3}\0[/⁄]\d")
FRACTION = re.compile(r"\d{1,3}\s*[/⁄]\s*\d{1,3}")
DEGREE = re.compile(r"\d\s?\0[oº°0]\0\s?[CF]\b")
POWER = re.compile(r"\d\s?\0[-+−–]?\d")
POWER_OF_UNIT = re.compile(r"[^\W\d_]\0[-+−–]\d")
ORDINAL = re.compile(r"\d\0(?:st|nd|rd|th|er|re|e|ème|o|a|º|ª)\Z", re.I)
CHARGE = re.compile(r"(?:[^\W\d_]|[)\]])\0\d?[-+−–]+\Z|\d\0[-+−–]+\Z")
# m<sup>2</sup>, x<sup>2</sup>, M<sup>lle</sup>, but not mg<sup>2</sup>, whose 2 is a footnote
BASE = re.compile(r"(?:(?<![^\W\d_])(?:[^\W\d_]|[cmkdµμn]m|ft|yd|(?<=\d)in|(?<=\d )in))\Z")
# the mass number of an element: <sup>131</sup>I
ISOTOPE = re.compile(r"(?:^|.*[\s(\[/-])\0\d{1,3}m?\0[A-Z][a-z]?(?![a-z])")


def write_raised(content: str, before: str, after: str) -> str:
    """Return what stands for raised text between the texts before and after it."""
    if not content:
        return ""
    around = f"{before[-3:]}\0{content}\0{after[:4]}"
    joined = f"{before[-3:]}\0{content}"
    is_fraction = UPPER_OF_FRACTION.match(f"{content}\0{after[:2]}")
    # 10<sup>9</sup>/2 is none
    if (is_fraction and (before[-2:] != "10" or after[0] == "⁄")) or FRACTION.fullmatch(content):
        return f" {content}" if before[-1:].isdigit() else content
    if DEGREE.search(around):
        return "°"
    if ORDINAL.search(joined) or CHARGE.search(joined):
        return content
    if POWER.search(joined) or POWER_OF_UNIT.search(joined):
        return _apart(f"^{content}", after)
    if not re.search(r"[^\W_]", content):
        return content  # a sign such as ® or *
    if (BASE.search(before) and content.isalnum()) or ISOTOPE.match(around):
        return _apart(content, after)
    # as footnotes are written where nothing can be raised
    return f"[{content}]" + (" " if after[:1].isalnum() else "")


def write_lowered(content: str, before: str, after: str) -> str:
    """Return what stands for lowered text between the texts before and after it."""
    if before[-1:].isdigit() and content[:1].isdigit():
        content = f"_{content}"
    return _apart(content, after)


def _apart(written: str, after: str) -> str:
    """Return a text, with a blank if it and the next would make one number."""
    return f"{written} " if written[-1:].isdigit() and after[:1].isdigit() else written
