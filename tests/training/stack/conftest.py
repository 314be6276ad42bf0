"""What the tests of the kernels share."""

import importlib.util
import os

from helpers import interpreter

if importlib.util.find_spec("triton") and os.environ.get("TRITON_INTERPRET"):
    interpreter.hasten()
