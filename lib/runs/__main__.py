"""python -m lib.runs: a job (lib/runs/run_job.py), or the runs there are (lib/runs/manage.py)."""

import sys

from lib.common.redact import redacted_terminal

COMMAND = sys.argv[1] if sys.argv[1:] else ""

with redacted_terminal():
    # each imports what the other does not need: a job starts without matplotlib, a list without
    # papermill
    if COMMAND in ("list", "prune", "compare", "rerun"):
        from lib.runs.manage import main
    else:
        from lib.runs.run_job import main
    sys.exit(main())
