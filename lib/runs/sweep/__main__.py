"""python -m lib.runs.sweep: see lib/runs/sweep/command.py."""

import sys

from lib.common.redact import redacted_terminal
from lib.runs.sweep.command import main

with redacted_terminal():
    sys.exit(main())
