"""python -m lib.runs.sweep: see lib/runs/sweep/command.py."""

import sys

from lib.common.redact import redacted_terminal

with redacted_terminal():
    # imported here, so that an error of an import is told as others are
    from lib.runs.sweep.command import main

    sys.exit(main())
