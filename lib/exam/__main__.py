"""python -m lib.exam RUN [EXAM]: see lib/exam/take.py."""

import sys

from lib.common.redact import redacted_terminal

with redacted_terminal():
    # imported here, so that an error of an import is told as others are
    from lib.exam.take import main

    sys.exit(main())
