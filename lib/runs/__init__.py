import sys

if sys.hexversion < 0x030B0000:  # in words, before the imports of other modules fail
    found = sys.version.split()[0]
    raise SystemExit(f"Python 3.11 or newer is needed, {found} found; try PYTHON=python3.12")

# nbformat imports jsonschema, which builds a grammar of international addresses if this package is
# there: most of a command's start, and no notebook's schema has such an address
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]  # None: not importable
