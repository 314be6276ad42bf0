"""python -m lib.runs: run a job (lib/runs/run_job.py) or manage runs (lib/runs/manage.py)."""

import sys

from lib.common.redact import redacted_terminal

COMMAND = sys.argv[1] if sys.argv[1:] else ""

with redacted_terminal():
    # imported here, so that a job starts without matplotlib, and a list without papermill
    if COMMAND in ("list", "prune", "compare", "diff", "rerun"):
        from lib.runs.manage import main
    else:
        from lib.runs.run_job import main
    sys.exit(main())
