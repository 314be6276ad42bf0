"""python -m lib.exam RUN [EXAM]: see lib/exam/take.py."""

import sys

from lib.common.redact import terminal
from lib.exam.take import main

with terminal():
    sys.exit(main())
