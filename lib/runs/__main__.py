"""python -m lib.runs: see lib/runs/stages.py."""

import sys

from lib.runs.stages import main

sys.exit(main())
