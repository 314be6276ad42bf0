"""llama.cpp inside this process (the `xllamacpp` wheel): load a GGUF, count tokens, complete, chat.

    with llama.load("model.gguf") as engine:
        print(engine.complete("The capital of France is", max_tokens=8)["text"])

Completion and chat are in-process calls; tokenising and rendering the template exist only on the server's address,
127.0.0.1 with a random port and a random key.
"""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import mmap
import os
import pathlib
import re
import secrets
import subprocess
import sys
import time

import xllamacpp

from lib.common.errors import UserError

GREEDY = {
    "temperature": 0,
    "cache_prompt": False,
}  # a cached prefix changes the batch shapes, so the rounding

# llama.cpp says why it refuses a file only in its log, and a failed GGML_ASSERT kills the process (a block count of 0
# is enough). So an unknown file is first loaded, and asked for one token, in a child process: its log is the reason.
PROBE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.verbosity = sys.argv[1], 256, 1, 1
params.ui = params.fit_params = params.warmup = False
params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=path) for path in sys.argv[2:]]
answer = xllamacpp.Server(params).handle_completions({"prompt": "a", "max_tokens": 1})
sys.exit(answer["error"]["message"] if "error" in answer else 0)
"""


@functools.cache
def probe(*stats):
    """None if llama.cpp loads a GGUF, and an adapter on it, and decodes a token; else its reason. (path, size, mtime) of each."""
    child = subprocess.run(
        [sys.executable, "-c", PROBE, *(path for path, *_ in stats)],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, "GGML_NO_BACKTRACE": "1"},
    )
    if child.returncode == 0:
        return None
    lines = re.findall(r"(?m)^[\d.]+ E (.+)$|(GGML_ASSERT\(.*\) failed)", child.stderr)
    # One line or two name the cause; the others repeat "failed to load model" up the call stack.
    causes = [
        error or failed
        for error, failed in lines
        if "failed to load" not in error and "exiting" not in error
    ]
    return (
        "; ".join(dict.fromkeys(causes))
        or f"exit status {child.returncode}: {child.stderr.strip()[-300:]}"
    )


@contextlib.contextmanager
def load(gguf_path, n_ctx=1024, n_threads=None, lora=None, n_parallel=1):
    """Yield an Engine; n_ctx in tokens (llama.cpp rounds up to 256), n_threads None = physical cores, lora: a GGUF adapter.

    n_parallel: conversations that `chats` decodes in one batch, each with n_ctx tokens of room.

    UserError, with llama.cpp's reason, for a file it refuses or crashes on. The first time a child loads it too: 1.5 s.
    """
    path, paths = (
        pathlib.Path(gguf_path),
        [pathlib.Path(given) for given in (gguf_path, lora) if given],
    )
    if missing := [given for given in paths if not given.is_file()]:
        raise UserError(
            f"No GGUF file at {missing[0]}. Expected the path of a .gguf file: run the export first."
        )
    stats = [(str(given), given.stat().st_size, given.stat().st_mtime_ns) for given in paths]
    if reason := probe(*stats):
        raise UserError(
            f"llama.cpp does not load {' with '.join(f'{name} ({size:,} bytes)' for name, size, _ in stats)}: {reason}. "
            "Expected a complete GGUF of a known architecture: export or copy it again."
        )
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(path), n_ctx * n_parallel, n_parallel
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=str(given)) for given in paths[1:]]
    params.verbosity = -1  # silence: it logs to file descriptor 2, past sys.stderr
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads or -1
    params.ui, params.fit_params, params.cache_ram_mib = False, False, 0
    params.api_keys = [secrets.token_hex(16)]
    begin = time.monotonic()
    try:
        engine = Engine(xllamacpp.Server(params), path, params.api_keys[0])
        engine.load_seconds, engine.parallel = time.monotonic() - begin, n_parallel
        engine._http(
            "/slots"
        )  # answered from its loop: a server that is closed before its loop has begun never closes
    except RuntimeError as error:
        raise UserError(
            f"llama.cpp loads {path} with 256 tokens of context but not with n_ctx={n_ctx}: {error} "
            "Expected enough free memory: lower n_ctx."
        ) from error
    try:
        yield engine
    finally:
        engine.server = None  # the last reference: frees the model and closes the port


class Engine:
    """A loaded GGUF. Greedy, and nothing is cached between calls, so the same prompt gives the same text."""

    def __init__(self, server, path, key):
        self.server, self.path, self.key, self.load_seconds = server, path, key, None

    def tokenize(self, text, add_special=False, parse_special=True):
        """Token ids (list of int); add_special puts <bos> first, parse_special reads "<end_of_turn>" as one token."""
        options = {"add_special": add_special, "parse_special": parse_special}
        return self._call(self._http, "/tokenize", {"content": text, **options})["tokens"]

    def template(self, messages):
        """The prompt (str) by the GGUF's chat template; tokenising it must not add another <bos> if it has one."""
        self._require_template()
        return self._call(self._http, "/apply-template", {"messages": messages})["prompt"]

    def complete(self, prompt, max_tokens=128, stop=(), ignore_eos=False):
        """Continue a str (<bos> is put first, control tokens are read) or a list of ids (taken as it is); ignore_eos: to max_tokens.

        Returns text, tokens (generated), prompt_tokens, stop ("stop": end token or one of `stop`; "length"),
        tokens_per_second and prompt_tokens_per_second (llama.cpp's own clock).
        """
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stop": list(stop),
            "ignore_eos": ignore_eos,
            **GREEDY,
        }
        return _summary(self._call(self.server.handle_completions, body))

    def next_tokens(self, prompt, count=1000, reuse=False):
        """{token id: log-probability}, the likeliest first, of what follows a prompt (as `complete` takes it).

        They are the model's own, before temperature or sampling. `reuse` keeps what the call before computed of the same
        beginning: several times faster, and other roundings (a batch of one is another kernel): mean KL 2e-6 in F16,
        1e-3 in Q8_0 on Gemma 3 270M. The same calls in the same order give the same numbers either way.
        """
        # llama.cpp tells no probabilities when the token it chose ends inside a UTF-8 character, so it must choose a letter
        body = {
            "prompt": prompt,
            "max_tokens": 1,
            "n_probs": count,
            **GREEDY,
            "cache_prompt": reuse,
            "logit_bias": [[self._letter, 1e3]],
        }
        answer = self._call(self.server.handle_completions, body)
        return {
            token["id"]: token["logprob"]
            for token in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        }

    @functools.cached_property
    def _letter(self):
        return self.tokenize("a")[0]

    def chat(self, messages, max_tokens=128):
        """Answer [{"role", "content"}, ...] by the GGUF's chat template; returns what `complete` returns."""
        self._require_template()
        body = {"messages": messages, "max_tokens": max_tokens, **GREEDY}
        return _summary(self._call(self.server.handle_chat_completions, body))

    def chats(self, conversations, max_tokens=128, tick=lambda count: None):
        """[`chat` of each], as many at a time as the engine was loaded for; `tick(1)` after each.

        Decoding is bound by reading the weights, which a batch does once: several times faster. The rounding is another.
        """

        def one(messages):
            said = self.chat(messages, max_tokens)
            tick(1)
            return said

        with concurrent.futures.ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(one, conversations))

    def stream(self, messages, write, max_tokens=128):
        """`chat`, with each piece of text given to `write` as it comes; returns "stop" (it ended by itself) or "length"."""
        self._require_template()
        failed, ended = [], []

        def take(
            chunk,
        ):  # what is raised in here, a Ctrl-C too, would be lost: it is kept, and True ends the generation
            try:
                self._call(lambda: chunk)
                for choice in chunk["choices"]:
                    write(choice["delta"].get("content") or "")
                    ended.append(choice["finish_reason"])
            except BaseException as error:
                failed.append(error)
            return bool(failed)

        body = {"messages": messages, "max_tokens": max_tokens, "stream": True, **GREEDY}
        self._call(lambda: self.server.handle_chat_completions(body, take) or {})
        if failed:
            raise failed[0]
        return ended[-1]

    def _require_template(self):
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            if (
                view.find(b"tokenizer.chat_template", 0, 1 << 26) < 0
            ):  # llama.cpp would silently use ChatML
                raise UserError(
                    f"{self.path} has no chat template. Expected tokenizer.chat_template in the GGUF: "
                    "export from a folder whose tokenizer has one, or use complete()."
                )

    def _http(self, route, body=None):
        connection = http.client.HTTPConnection(
            self.server.listening_address.removeprefix("http://"), timeout=60
        )
        with contextlib.closing(
            connection
        ):  # http.client, unlike urllib, never goes through a proxy
            connection.request(
                "POST" if body else "GET",
                route,
                json.dumps(body) if body else None,
                {"Authorization": f"Bearer {self.key}"},
            )
            return json.load(connection.getresponse())

    def _call(self, function, *arguments):
        try:
            answer = function(*arguments)
        except RuntimeError as error:  # a lone surrogate in the text, for one
            answer = {"error": {"message": str(error)}}
        if "error" in answer:
            raise UserError(
                f"llama.cpp refused the request on {self.path}: {answer['error']['message']}"
            )
        return answer


def _summary(answer):
    choice, times, usage = answer["choices"][0], answer["timings"], answer["usage"]
    text = choice["message"]["content"] or "" if "message" in choice else choice["text"]
    return {
        "text": text,
        "tokens": usage["completion_tokens"],
        "prompt_tokens": usage["prompt_tokens"],
        "stop": choice["finish_reason"],
        "tokens_per_second": times["predicted_per_second"],
        "prompt_tokens_per_second": times["prompt_per_second"],
    }
