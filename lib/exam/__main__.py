"""python -m lib.exam RUN [EXAM]: see lib/exam/take.py."""

import sys

from lib.common.redact import redacted_terminal
from lib.exam.take import main

with redacted_terminal():
    sys.exit(main())
