import sys

if sys.hexversion < 0x030B0000:  # in words, before the imports of other modules fail
    found = sys.version.split()[0]
    raise SystemExit(f"Python 3.11 or newer is needed, {found} found; try PYTHON=python3.12")
