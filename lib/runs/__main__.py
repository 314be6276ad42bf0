"""python -m lib.runs: run a job (lib/runs/run_job.py), manage runs (lib/runs/manage.py), or look
at the machine (lib/runs/doctor/command.py).
"""

import sys

from lib.common.redact import redacted_terminal

COMMAND = sys.argv[1] if sys.argv[1:] else ""

with redacted_terminal():
    # imported here, so that a job starts without matplotlib, and a list without papermill
    if COMMAND in ("list", "prune", "compare", "diff", "rerun", "review"):
        from lib.runs.manage import main
    elif COMMAND == "doctor":  # needs no package
        from lib.runs.doctor.command import main
    else:
        from lib.runs.run_job import main
    sys.exit(main())
