"""python -m lib.runs.sweep: see lib/runs/sweep/command.py."""

import sys

from lib.common.redact import terminal
from lib.runs.sweep.command import main

with terminal():
    sys.exit(main())
