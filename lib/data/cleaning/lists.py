r"""Lists in a text: flattened ones get their lines back, and nested ones keep their nesting.

break_lists("Bring:  - gauze  - tape")  # "Bring:\n- gauze\n- tape"
"""

import re

# the lookbehind lets a match begin only at the first space of a run
BULLET = re.compile(r" (?<=\S )[ \t]+([-*•·])[ \t]+(?=\S)")
LOOSE_BULLET = re.compile(r"(?<=\S)[ \t]+([•●▪])[ \t]*(?=\S)")
AFTER_LIST = re.compile(r" (?<=[^\s*•·-] )[ \t]{2,}(?=[\"“(]?[A-Z])")
TABLE_HEAD = "Signs and Symptoms Approximate number of patients (when available)"
TABLE_TAIL = " The Human Phenotype Ontology"
CELL = re.compile(r" (-|<?(?:\d+(?:\.\d+)?)?%|\d+/\d+|\d+ of \d+)(?: |$)")
NUMBER = r"(\d{1,9}(?:[.,]\d{1,6})?)"
UNIT = r" ?([^\W\d_]{1,8}(?:/[a-z]{1,5})?|[%°]C?)"
# an amount on either side of a dash: "5", "5 mL", "0.5 mg/kg", "20%"
AMOUNT_BEFORE = re.compile(rf"(?<![\d.,]){NUMBER}(?:{UNIT})?\Z")
AMOUNT = re.compile(rf"{NUMBER}(?:{UNIT})?")
MOST_BEFORE = 40  # characters: longer than an amount and its unit


def break_lists(text: str) -> str:
    """Put each item of a list that was flattened into one line on a line of its own.

    Such lists are bullets after two spaces, and the symptom tables of MedQuAD. What may be a range,
    as in "5  - 10 mL", stays.
    """
    if TABLE_HEAD in text:
        text = _break_symptom_table(text)
    if "  " in text and BULLET.search(text):
        text = _break_bullets(text)
    has_bullet = "•" in text or "●" in text or "▪" in text
    # a single bullet may be a multiplication
    if has_bullet and len(LOOSE_BULLET.findall(text)) > 1:
        text = LOOSE_BULLET.sub(_break_loose_bullet, text)
    return text


def _break_symptom_table(text: str) -> str:
    before, head, rest = text.partition(TABLE_HEAD + " ")
    table, tail, after = rest.partition(TABLE_TAIL)
    if not tail:
        return text
    lines = CELL.sub(r" \1\n", table).rstrip()
    return f"{before}{head[:-1]}\n{lines}\n{tail[1:]}{after}"


def _break_bullets(text: str) -> str:
    found = list(BULLET.finditer(text))
    # readings such as "120  - 80" are descending; a list has at most one number before its dashes
    are_readings = 2 * sum(map(_is_between_digits, found)) >= len(found)

    def put_on_own_line(match: re.Match[str]) -> str:
        is_amount = _is_range(match) if match[1] == "-" else False
        if is_amount or (_is_between_digits(match) and (are_readings or match[1] != "-")):
            return match[0]
        return f"\n{match[1]} "

    text = BULLET.sub(put_on_own_line, text)
    # three spaces before a capital letter end the list, or its last item would run on
    return AFTER_LIST.sub("\n", text)


def _break_loose_bullet(match: re.Match[str]) -> str:
    return match[0] if _is_between_digits(match) else f"\n{match[1]} "


def _is_between_digits(match: re.Match[str]) -> bool:
    text = match.string
    return text[match.start() - 1].isdigit() and text[match.end()].isdigit()


def _is_range(match: re.Match[str]) -> bool:
    """Tell whether a dash is between two amounts, and the second is the larger.

    A list may have "30 percent  - 40" too: a range has its unit at the end, or at both.
    """
    text = match.string
    start = AMOUNT_BEFORE.search(text[max(0, match.start() - MOST_BEFORE) : match.start()])
    end = AMOUNT.match(text, match.end())
    if not start or not end or (start[2] and not end[2]):
        return False
    return _value(start[1]) < _value(end[1])


def _value(number: str) -> float:
    return float(number.replace(",", "."))


# -------------------------------------------------------------------------------------------------
# nested lists

ITEM = re.compile(r"(?:[-*•·●▪]|\d{1,3}[.)]|[a-zA-Z][.)]|[ivx]{2,5}[.)])(?= )")


DEEPEST_STEP = 8  # blanks: what is further to the right was set there by a page's layout


def indent_items(lines: list[str]) -> list[str]:
    """Return lines with single blanks, and within a list with the indentation of its levels.

    An item is indented as far as the text of the item that it belongs to, as Markdown demands.
    """
    levels: list[tuple[int, int]] = []  # (indentation in the source, and of its text in ours)
    written: list[str] = []
    for line in lines:
        text = " ".join(line.split())
        if not text:
            written.append(text)
            continue
        marker = ITEM.match(text)
        expanded = line.expandtabs(4)
        indent = len(expanded) - len(expanded.lstrip())
        while levels and levels[-1][0] >= indent:
            levels.pop()
        # text belongs to an item only without an empty line between them
        if levels and (indent > levels[-1][0] + DEEPEST_STEP or not (marker or written[-1])):
            levels.clear()
        ours = levels[-1][1] if levels else 0
        written.append(" " * ours + text)
        if marker:
            levels.append((indent, ours + len(marker[0]) + 1))
    return written
