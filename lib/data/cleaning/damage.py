r"""Find texts that lost characters, or that stop in the middle.

Nobody can tell what stood there ("5 \ufffdg" may be mg or µg), so nothing is mended: the job's
`damaged_text` drops such rows, or keeps and counts them.
"""

import re

TAIL = 300  # characters at an answer's end that are looked at, so that long texts take linear time
SHOWN = 100  # characters of that end which are shown

# What stands where a character was lost. U+FFFD: a decoder could not read it. U+FFFC: an object,
# such as a picture. (cid:7): a PDF's glyph without a name. "don?t", "37 ?C": an encoder without
# that character. A private character has a meaning in one font only.
LOST = re.compile(
    "[\ufffc\ufffd\ue000-\uf8ff]|\\(cid:\\d{1,6}\\)|"
    r"[A-Za-z]\?(?:s|t|re|ve|ll)\b(?![=&])|\d ?\?[CF]\b"
)

# the note that a program leaves where it cuts
NOTE = re.compile(
    r"[\[(<]\W*(?:(?:text |message |output |answer )?truncated|cut off|clipped|snip(?:ped)?|"
    r"cont(?:inued|'?d)?\.?|more|\.\.\.|…)\W*[\])>][\s.]*\Z|"
    r"(?:\.\.\.|[…!?.\n])\s*(?:read|show|view|see|load) (?:more|full \w+)[\s.…»>]*\Z|"
    r"\bto be continued\W*\Z",
    re.I,
)
# HealthCareMagic as ChatDoctor prepared it has this name at the end of each text that was cut
BRAND = re.compile(r"\s*\bChat ?Doctor\b[\s.]*\Z")
# before that name, a whole text has the end of a sentence, a farewell, or a word that needs a name
BEFORE_BRAND = re.compile(
    r"(?:[.!?:,;)\]*\n-]|\b(?:regards?|wishes|thanks|thank you|sincerely|truly|yours?|luck|health|"
    r"best|care|day|love|bye|dear|dr|doctor|team|the|an?|our|from|to|at|on|in|by|with|via|for|of|"
    r"and|or|is|am|are|was|using|use|ask|contact|visit|consult|choosing|called|named|through|hi|"
    r"hello|welcome|here|again|now))\s*\Z",
    re.I,
)
OPEN_END = re.compile(
    r"(?:[,;(\[{&:–—]|(?<!=)=)\Z|"
    r"[a-z] [a-z]{3,}-\Z|"  # "use a mild anti-", but not "HCO3-"
    r"\([^()\n]{1,80}\Z"
)
SMILEY = re.compile(r"[:;]-?\(\Z")
URL_END = re.compile(r"(?:https?://|www\.)\S+\Z", re.I)
# English words that need another after them; "/" and quotes: "and/or", the word "and"
NEEDS_MORE = re.compile(
    r"(?<![/\"'“‘])\b(?:the|an|and|or|but|because|than|your|their|its|my|our|into|whose|every)\Z"
)

MARKS = ".!?…。！？।॥؟۔։"
SENTENCE = re.compile(rf"\w{{3}}[)\"”']?[{MARKS}](?=\s)|[。！？]")
LIST_ITEM = re.compile(r"\s*(?:[-*+•·●▪–|#>]|\(?\w{1,3}[.)]\s)")


def find_lost_characters(text: str) -> str:
    """Return the first place where a character was lost, and what is around it; empty if none."""
    # each needs one of these, which a quick look finds
    if text.isascii() and "?" not in text and "(cid:" not in text:
        return ""
    found = LOST.search(text)
    return text[max(0, found.start() - 40) : found.end() + 40] if found else ""


def find_cut(answer: str, language: str) -> str:
    """Return the end of an answer that stops in the middle; empty for any other.

    English words that need another after them count only where `language` is en.
    """
    end = answer.rstrip()[-TAIL:]
    is_cut = (
        NOTE.search(end)
        or _ends_in_brand(end)
        or (OPEN_END.search(end) and not SMILEY.search(end) and not URL_END.search(end))
        or (language == "en" and NEEDS_MORE.search(end))
    )
    return end[-SHOWN:] if is_cut and len(end) > 1 else ""


def _ends_in_brand(end: str) -> bool:
    brand = BRAND.search(end)
    if not brand or not brand.start():
        return False
    return not BEFORE_BRAND.search(end[: brand.start()])


def find_missing_end(answer: str) -> str:
    """Return the end of an answer of sentences whose last one has no end mark; empty for any other.

    A list item, a heading, a link or a single phrase needs none.
    """
    text = answer.rstrip()
    line = text[text.rfind("\n") + 1 :]
    if not text or not text[-1].isalnum() or LIST_ITEM.match(line) or URL_END.search(text[-TAIL:]):
        return ""
    last = re.split(f"[{MARKS}]", line)[-1].split()
    is_phrase = len(last) < 4 or sum(word.endswith(",") for word in last) * 3 >= len(last)
    return "" if is_phrase or not SENTENCE.search(text) else text[-SHOWN:]
