r"""Undo escapes that stand in a text as characters: a backslash and an n instead of a line end.

    undo_escapes(r"Cool the burn.\n\n1. Call 112.")     # two real line ends

They are left by text that was escaped twice (JSON in JSON, the repr of a Python string or of bytes)
and by Excel, which writes a carriage return as _x000D_.
"""

import re

# LaTeX commands that begin with n, r or t: \nu is no line end with a "u" after it
NO_COMMAND = (
    r"(?!(?<=n)(?:u|eq?|abla|ot|otin|exists|earrow|mid|leq|geq|less|ewline|ewpage|oindent)"
    r"(?![\w.])|"
    r"(?<=r)(?:ho|m|ef|ight|ightarrow|ightleftharpoons|ceil|floor|angle)(?![\w.])|"
    r"(?<=t)(?:imes|heta|au|o|op|anh?|ilde|ext|extbf|extit|extrm|riangle|herefore|frac|ag|hinspace)"
    r"(?![\w.]))"
)
# each begins at the first of a run of backslashes, so that a long run takes linear time
ESCAPE = re.compile(
    r"(?<!\\)\\++(?:"
    r"(?P<pair>u[dD][89abAB][0-9a-fA-F]{2}\\++u[dD][c-fC-F][0-9a-fA-F]{2})|"
    r"u(?P<unicode>[0-9a-fA-F]{4})|"
    r"(?P<bytes>x[0-9a-fA-F]{2}(?:\\++x[0-9a-fA-F]{2})*+)|"
    rf"(?P<line>r\\++n|[nr]{NO_COMMAND})|"
    rf"(?P<tab>t{NO_COMMAND})|"
    r"(?P<mark>/|(?:(?<![A-Za-z]\\)[\"']|[\"'](?![aeiouyAEIOUY])))"  # Sj\"ogren is LaTeX
    r")|_x(?P<excel>[0-9A-Fa-f]{4})_"
)


def undo_escapes(text: str) -> str:
    r"""Replace written-out escapes by what they stand for: \n, \t, \", \/, \u00b0, _x000D_.

    LaTeX commands such as \nu and \times stay, and so does half a character pair.
    """
    if "\\" in text or "_x" in text:
        return ESCAPE.sub(_replace_escape, text)
    return text


def _replace_escape(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind == "pair":
        units = [int(unit, 16) for unit in re.findall(r"u([0-9a-fA-F]{4})", match[0])]
        return chr(0x10000 + (units[0] - 0xD800) * 0x400 + units[1] - 0xDC00)
    if kind == "bytes":
        raw = bytes.fromhex("".join(re.findall(r"x([0-9a-fA-F]{2})", match[0])))
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return raw.decode("latin-1")
    if kind in ("unicode", "excel"):
        number = int(match[kind], 16)
        is_half = 0xD800 <= number < 0xE000
        return match[0] if is_half else chr(number)
    return {"line": "\n", "tab": "\t"}.get(str(kind)) or match["mark"]
