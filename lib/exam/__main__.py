"""python -m lib.exam RUN [EXAM]: see lib/exam/take.py."""

import sys

from lib.common.interrupts import end_at_once
from lib.common.redact import redacted_terminal

# each model's result is written as soon as it is known, so there is nothing to save
end_at_once("stopped; the same command continues after the models already examined")
with redacted_terminal():
    # imported here, so that an error of an import is told as others are
    from lib.exam.take import main

    sys.exit(main())
