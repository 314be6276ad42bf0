"""Run llama.cpp in this process (the `xllamacpp` wheel): load a GGUF, tokenise, complete, chat.

    with llama.load_gguf(path) as engine:
        print(engine.complete("The capital of France is", max_tokens=8)["text"])

Completion and chat are function calls. Tokenising and rendering the chat template are only
available as HTTP requests to 127.0.0.1, with a random port and a random key.
"""

import atexit
import concurrent.futures
import contextlib
import functools
import http.client
import json
import mmap
import pathlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypedDict

import xllamacpp

from lib.common import interrupts
from lib.common.errors import UserError
from lib.model.llama_probe import require_loadable

Messages = list[dict[str, str]]  # [{"role": ..., "content": ...}, ...]
Prompt = str | list[int]  # in a str, control tokens are parsed and <bos> is added; ids stay as is

# a cached prefix would change the shapes of the batches, and with them the rounding
GREEDY = {"temperature": 0, "cache_prompt": False}


class Completion(TypedDict):
    """The model's output; the rates are measured by llama.cpp."""

    text: str
    tokens: int  # generated
    prompt_tokens: int
    stop: str  # "stop": an end token or one of the stop texts; "length": max_tokens
    tokens_per_second: float
    prompt_tokens_per_second: float


@contextlib.contextmanager
def load_gguf(
    path: str | pathlib.Path,
    n_ctx: int = 1024,
    n_threads: int | None = None,
    lora: str | pathlib.Path | None = None,
    n_parallel: int = 1,
    lora_scale: float = 1.0,
) -> Iterator["Engine"]:
    """Load a GGUF, with `lora_scale` times a GGUF adapter `lora` if given, and yield an Engine.

    n_ctx: tokens of context for a conversation; llama.cpp rounds up to a multiple of 256
    n_threads: None means the number of physical cores
    n_parallel: conversations that `chat_many` decodes in one batch, each with n_ctx tokens

    UserError, with llama.cpp's reason, for a file that it refuses or crashes on. The first time a
    child process loads the file too, which takes 1.5 s.
    """
    path = pathlib.Path(path)
    adapters = [pathlib.Path(lora)] if lora else []
    require_loadable([path, *adapters])
    params = _server_params(path, adapters, n_ctx * n_parallel, n_threads, n_parallel)
    for each in (loaded := params.lora_adapters):
        each.scale = lora_scale
    params.lora_adapters = loaded  # the list is a copy
    with contextlib.ExitStack() as stack:
        with interrupts.delayed():
            engine = _start(path, params, n_ctx)
            stack.callback(engine.close)
        yield engine


def _start(path: pathlib.Path, params: Any, n_ctx: int) -> "Engine":
    """Load a file, and wait until it can be closed again.

    Closing a server whose loop has not begun would hang, so no signal may come in between.
    """
    try:
        engine = Engine(path, params)
    except RuntimeError as error:
        raise UserError(
            f"llama.cpp loads {path} with 256 tokens of context but not with n_ctx={n_ctx}: "
            f"{error} Expected enough free memory: lower n_ctx."
        ) from error
    engine._request("/slots")  # the server's loop answers this
    return engine


def _server_params(
    path: pathlib.Path,
    adapters: list[pathlib.Path],
    n_ctx: int,
    n_threads: int | None,
    n_parallel: int,
) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path=str(lora)) for lora in adapters]
    params.n_ctx = n_ctx
    params.n_parallel = n_parallel
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads or -1
    params.verbosity = -1  # no log: it would go to file descriptor 2, past sys.stderr
    params.ui = False
    params.fit_params = False
    params.cache_ram_mib = 0
    params.api_keys = [secrets.token_hex(16)]
    return params


class Engine:
    """A loaded GGUF, made by `load_gguf`.

    It decodes greedily and caches nothing between calls, so the same prompt gives the same text.
    """

    def __init__(self, path: pathlib.Path, params: Any) -> None:
        begin = time.monotonic()
        self.server = xllamacpp.Server(params)
        self.load_seconds = time.monotonic() - begin
        self.path = path
        self.key = params.api_keys[0]
        self.parallel = params.n_parallel  # conversations in one batch
        atexit.register(self.close)  # an interpreter that is half gone cannot close it

    def close(self) -> None:
        """Free the model and close the port."""
        self.server = None  # the last reference
        atexit.unregister(self.close)

    def tokenize(
        self, text: str, add_special: bool = False, parse_special: bool = True
    ) -> list[int]:
        """Return the text's token ids.

        `add_special` puts <bos> first; `parse_special` reads "<end_of_turn>" as one token.
        """
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return _accepted(self._request("/tokenize", body), self.path)["tokens"]

    def render(self, messages: Messages) -> str:
        """Return the messages as a prompt, by the GGUF's chat template.

        If it begins with <bos>, tokenising it must not add another.
        """
        self._require_template()
        answer = self._request("/apply-template", {"messages": messages})
        return _accepted(answer, self.path)["prompt"]

    def complete(
        self,
        prompt: Prompt,
        max_tokens: int = 128,
        stop: Sequence[str] = (),
        ignore_eos: bool = False,
    ) -> Completion:
        """Continue a prompt up to an end token, a text in `stop`, or max_tokens.

        `ignore_eos` continues past end tokens to max_tokens.
        """
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stop": list(stop),
            "ignore_eos": ignore_eos,
            **GREEDY,
        }
        return _summarize(self._call("handle_completions", body))

    def next_token_logprobs(
        self, prompt: Prompt, count: int = 1000, reuse: bool = False
    ) -> dict[int, float]:
        """Return {token id: log-probability} of the token after a prompt, the likeliest first.

        These are the model's own, before temperature or sampling. `reuse` keeps what the previous
        call computed for the same beginning. That is several times faster, but rounds differently,
        since a batch of one takes another kernel: mean KL 2e-6 in F16, 1e-3 in Q8_0 on Gemma 3
        270M. Either way, the same calls in the same order give the same numbers.
        """
        body = {
            "prompt": prompt,
            "max_tokens": 1,
            "n_probs": count,
            **GREEDY,
            "cache_prompt": reuse,
            # llama.cpp returns no probabilities when its chosen token ends inside a UTF-8
            # character, so the bias makes it choose a letter
            "logit_bias": [[self._letter, 1e3]],
        }
        answer = self._call("handle_completions", body)
        likeliest = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {token["id"]: token["logprob"] for token in likeliest}

    @functools.cached_property
    def _letter(self) -> int:
        return self.tokenize("a")[0]

    def chat(self, messages: Messages, max_tokens: int = 128) -> Completion:
        """Answer a conversation by the GGUF's chat template."""
        self._require_template()
        body = {"messages": messages, "max_tokens": max_tokens, **GREEDY}
        return _summarize(self._call("handle_chat_completions", body))

    def chat_many(
        self,
        conversations: Iterable[Messages],
        max_tokens: int = 128,
        tick: Callable[[int], object] = lambda count: None,
    ) -> list[Completion]:
        """Answer each conversation, `n_parallel` of them at a time.

        `tick(1)` is called after each. Decoding is bound by reading the weights, which a batch does
        once. So this is several times faster than single calls of `chat`, but rounds differently.
        """

        def answer(messages: Messages) -> Completion:
            completion = self.chat(messages, max_tokens)
            tick(1)
            return completion

        with concurrent.futures.ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(answer, conversations))

    def stream_chat(
        self, messages: Messages, write: Callable[[str], object], max_tokens: int = 128
    ) -> str:
        """Answer like `chat`, but pass each piece of text to `write` as it is generated.

        Return "stop" when the answer ended by itself, otherwise "length".
        """
        self._require_template()
        errors: list[BaseException] = []
        ends: list[str] = []

        def take(chunk: dict[str, Any]) -> bool:
            # An exception raised here, Ctrl-C included, would be lost in llama.cpp. So it is kept,
            # and returning True ends the generation.
            try:
                _accepted(chunk, self.path)
                for choice in chunk["choices"]:
                    write(choice["delta"].get("content") or "")
                    ends.append(choice["finish_reason"])
            except BaseException as error:
                errors.append(error)
            return bool(errors)

        body = {"messages": messages, "max_tokens": max_tokens, "stream": True, **GREEDY}
        self._call("handle_chat_completions", body, take)
        if errors:
            raise errors[0]
        return ends[-1]

    def _require_template(self) -> None:
        with (
            open(self.path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            has_template = view.find(b"tokenizer.chat_template", 0, 1 << 26) >= 0
        if not has_template:  # llama.cpp would silently use ChatML
            raise UserError(
                f"{self.path} has no chat template. Expected tokenizer.chat_template in the GGUF: "
                "export from a folder whose tokenizer has one, or use complete()."
            )

    def _request(self, route: str, body: dict[str, Any] | None = None) -> Any:
        """Send a request to the server: GET without a body, otherwise POST."""
        address = self.server.listening_address.removeprefix("http://")
        # http.client, unlike urllib, never uses a proxy
        connection = http.client.HTTPConnection(address, timeout=60)
        with contextlib.closing(connection):
            connection.request(
                "POST" if body else "GET",
                route,
                json.dumps(body) if body else None,
                {"Authorization": f"Bearer {self.key}"},
            )
            return json.load(connection.getresponse())

    def _call(self, name: str, *arguments: Any) -> dict[str, Any]:
        """Call a function of llama.cpp by its name; raise UserError with its message if it refuses.

        By its name, since a function kept in a traceback would keep the file loaded.
        """
        try:
            answer = getattr(self.server, name)(*arguments)
        except RuntimeError as error:  # for example a lone surrogate in the text
            answer = {"error": {"message": str(error)}}
        return _accepted(answer or {}, self.path)  # None when the answer was streamed


def _accepted(answer: dict[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """Return an answer of llama.cpp; raise UserError with its message if it is a refusal."""
    if "error" in answer:
        raise UserError(f"llama.cpp refused the request on {path}: {answer['error']['message']}")
    return answer


def _summarize(answer: dict[str, Any]) -> Completion:
    choice, timings, usage = answer["choices"][0], answer["timings"], answer["usage"]
    if "message" in choice:  # a chat, in which null is an empty answer
        text = choice["message"]["content"] or ""
    else:
        text = choice["text"]
    return {
        "text": text,
        "tokens": usage["completion_tokens"],
        "prompt_tokens": usage["prompt_tokens"],
        "stop": choice["finish_reason"],
        "tokens_per_second": timings["predicted_per_second"],
        "prompt_tokens_per_second": timings["prompt_per_second"],
    }
