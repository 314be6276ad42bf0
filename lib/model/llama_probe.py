"""Try a GGUF in a child process before llama.cpp loads it in this one.

require_loadable([gguf_path, adapter_path])
"""

import functools
import os
import pathlib
import re
import subprocess
import sys

from lib.common.errors import UserError

# llama.cpp gives its reason for refusing a file only in its log, and a failed GGML_ASSERT kills the
# process (a block count of 0 is enough). So a child process loads an unknown file first and
# generates one token; its log has the reason. A signal of the terminal ends it at once, and it ends
# without closing the server: that can hang.
PROBE = """
import os, signal, sys
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.verbosity = sys.argv[1], 256, 1, 1
params.ui = params.fit_params = params.warmup = False
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=path) for path in sys.argv[2:]]
server = xllamacpp.Server(params)
answer = server.handle_completions({"prompt": "a", "max_tokens": 1})
if "error" in answer:
    print(answer["error"]["message"], file=sys.stderr, flush=True)
os._exit("error" in answer)
"""


def require_loadable(paths: list[pathlib.Path]) -> None:
    """Raise UserError unless llama.cpp loads the GGUF, the first path, with the adapters on it."""
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"No GGUF file at {path}. Expected the path of a .gguf file: run the export first."
            )
    states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    reason = _probe(*states)
    if reason:
        names = " with ".join(f"{name} ({size:,} bytes)" for name, size, _ in states)
        raise UserError(
            f"llama.cpp does not load {names}: {reason}. "
            "Expected a complete GGUF of a known architecture: export or copy it again."
        )


@functools.cache
def _probe(*states: tuple[str, int, int]) -> str | None:
    """Load a GGUF, with any adapter, in a child process, and decode a token.

    Return None when that works, otherwise llama.cpp's reason. Each state is (path, bytes, mtime in
    ns), so that a changed file is tried again.
    """
    child = subprocess.run(
        [sys.executable, "-c", PROBE, *(path for path, _, _ in states)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if child.returncode == 0:
        return None
    lines = re.findall(r"(?m)^[\d.]+ E (.+)$|(GGML_ASSERT\(.*\) failed)", child.stderr)
    # One or two lines name the cause; the others repeat "failed to load model" up the call stack.
    causes = [
        logged or assertion
        for logged, assertion in lines
        if "failed to load" not in logged and "exiting" not in logged
    ]
    last_words = f"exit status {child.returncode}: {child.stderr.strip()[-300:]}"
    return "; ".join(dict.fromkeys(causes)) or last_words
