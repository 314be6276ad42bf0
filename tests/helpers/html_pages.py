"""Draw pages of HTML with hypothesis, each with the words that its reader sees, in order."""

from hypothesis import strategies as st

NUMBERS = st.sampled_from(["5", "10", "250", "0.5", "1,000", "37.5", "120/80", "2-3", "<90", ">5"])
UNITS = st.sampled_from(["mg", "mg/kg", "mL", "%", "mmHg", "hours", "µg", "°C"])
WORDS = st.sampled_from(
    ["not", "never", "no", "without", "Give", "adults", "children", "Do", "unless"]
)
words = st.lists(st.one_of(NUMBERS, UNITS, WORDS), min_size=1, max_size=4)
INLINE = st.sampled_from(["b", "i", "em", "span", "a", "mark", "ins", "o:p", "font", "abbr", "u"])
ATTRIBUTES = st.sampled_from(["", ' class="x"', " style='color: red'", ' title="a > b"'])
GONE = st.sampled_from(
    [
        "<del>{}</del>",
        "<s>{}</s>",
        "<strike>{}</strike>",
        "<span hidden>{}</span>",
        '<span style="text-decoration: line-through">{}</span>',
        "<p style='display:none'>{}</p>",
        "<!-- {} -->",
        "<style>.a {{ x: {} }}</style>",
    ]
)
Page = tuple[str, list[str]]  # HTML and the words seen


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


@st.composite
def phrases(draw):
    """Words, some within inline elements that touch each other, some deleted."""
    pieces = []
    seen = []
    for _ in range(draw(st.integers(1, 3))):
        own = draw(words)
        seen += own
        text = escape(" ".join(own)) if draw(st.booleans()) else " ".join(own)
        if draw(st.booleans()):
            name = draw(INLINE)
            pieces.append(f"<{name}{draw(ATTRIBUTES)}>{text}</{name}>")
        else:
            pieces.append(f" {text} ")
        if draw(st.integers(0, 3)) == 0:
            pieces.append(draw(GONE).format(draw(NUMBERS)))
            pieces.append(" ")
    return "".join(pieces), seen


def wrap(kind, parts):
    """Return parts as a list, a table, paragraphs, or lines."""
    close = kind.isupper()  # capital letters: with their end tags
    name = kind.lower()
    if name in ("ul", "ol"):
        items = "".join(f"<li>{text}{'</li>' * close}" for text, _ in parts)
        return f"<{name}>{items}</{name}>"
    if name == "table":
        cells = [f"<td>{text}{'</td>' * close}" for text, _ in parts]
        rows = [cells[n : n + 2] for n in range(0, len(cells), 2)]
        return "<table>" + "".join(f"<tr>{''.join(r)}{'</tr>' * close}" for r in rows) + "</table>"
    if name == "br":
        return "<br>".join(text for text, _ in parts)
    return "".join(f"<{name}>{text}{f'</{name}>' * close}" for text, _ in parts)


def blocks(inner):
    """Blocks of blocks: nested lists, tables with paragraphs in their cells."""

    @st.composite
    def draw_block(draw):
        parts = draw(st.lists(inner, min_size=1, max_size=4))
        kind = draw(st.sampled_from(["ul", "UL", "OL", "ol", "TABLE", "table", "P", "DIV", "br"]))
        return wrap(kind, parts), [word for _, seen in parts for word in seen]

    return draw_block()


pages = st.recursive(phrases(), blocks, max_leaves=12)
