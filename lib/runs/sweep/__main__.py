"""python -m lib.runs.sweep: see lib/runs/sweep/states.py."""

import sys

from lib.runs.sweep.states import main

sys.exit(main())
