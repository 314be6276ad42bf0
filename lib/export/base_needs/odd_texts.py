"""Texts that tell tokenizers apart: hard ones, and made-up ones that nobody would write."""

import numpy as np

HARD = (
    "Call 112 now; press firmly for 15 minutes.",
    "  two  spaces\n\n\nlines\tand a tab\n",
    "Fièvre à 39,5 °C – 漢字 😀",
    "<start_of_turn>user\nMy hand is burnt.<end_of_turn>\n<start_of_turn>model\n",
    "* **Cool** the burn: `20 min`",
)
# parts of made-up texts: pieces that tokenizers treat specially, and code points of many scripts
PIECES = (
    *(" ", "  ", "     ", "\n", "\n\n\n\n", "\t\t", "\r\n"),
    *("0", "12", "3.5", "1,000", "...", "====="),
    *("<b>", "</h1>", "<table>", "<bos>", "<eos>", "<end_of_turn>", "<unused5>", "<mask>"),
    *("\u2581", "\u200b", "\u200d", "\u00a0", "\ufeff", "\x00"),
    *("the", "CALL", " 112", "don't", "<0x41>", "\\n", "{{x}}", "http://a.b/c?d=1"),
)
ALPHABETS = (
    *((0x20, 0x7F), (0xA0, 0x250), (0x300, 0x400), (0x400, 0x530)),
    *((0x590, 0x700), (0x900, 0x980), (0xE00, 0xE80), (0x2000, 0x2070)),
    *((0x20A0, 0x20D0), (0x2190, 0x2400), (0x3040, 0x3100), (0x4E00, 0x9FFF)),
    *((0xAC00, 0xD7A4), (0x1F300, 0x1F700), (0x10000, 0x10100), (1, 0x20)),
)


def make_up_text(random: np.random.Generator) -> str:
    """Return a text that nobody would write."""
    parts = []
    for _ in range(random.integers(1, 40)):
        low, high = ALPHABETS[random.integers(len(ALPHABETS))]
        if random.random() < 0.5:
            parts.append(PIECES[random.integers(len(PIECES))])
        else:
            length = random.integers(1, 6)
            parts.append("".join(map(chr, random.integers(low, high, length))))
    return "".join(parts)
