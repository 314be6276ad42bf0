"""llama.cpp in process: completion, tokens, and files it refuses or would crash on.

python -m pytest tests/model/test_llama.py
"""

import os
import signal
import socket
import subprocess
import sys

import pytest

from lib.common.errors import ROOT, UserError
from lib.model import llama, llama_probe


@pytest.fixture(scope="module")
def gguf_path(bundled_base):
    return bundled_base.with_suffix(".gguf")


def test_complete_is_greedy_repeatable_and_silent(gguf_path, capfd):
    with llama.load_gguf(gguf_path, n_threads=2) as engine:
        first, second = (
            engine.complete("The capital of France is", max_tokens=8) for _ in range(2)
        )
        ids = engine.complete(
            engine.tokenize("The capital of France is", add_special=True), max_tokens=8
        )
        stopped = engine.complete("The capital of France is", max_tokens=8, stop=[" country"])
    assert (
        first["text"] == second["text"] == ids["text"] == " the capital of the country of France."
    )
    assert (first["tokens"], first["prompt_tokens"], first["stop"]) == (8, 6, "length")
    assert (stopped["text"], stopped["stop"]) == (" the capital of the", "stop")
    assert first["tokens_per_second"] > 0
    assert first["prompt_tokens_per_second"] > 0
    assert capfd.readouterr() == ("", "")


@pytest.mark.timeout(60)  # it used to wait for ever
def test_a_file_that_is_loaded_and_not_used_is_closed_again(gguf_path):
    with llama.load_gguf(gguf_path, n_ctx=256):
        pass
    with pytest.raises(ZeroDivisionError), llama.load_gguf(gguf_path, n_ctx=256):
        raise ZeroDivisionError


STOPPED = """
import os, signal, sys
from lib.model import llama
make = llama.xllamacpp.Server
def make_and_stop(params):
    server = make(params)
    os.kill(os.getpid(), signal.SIGTERM)
    return server
llama.xllamacpp.Server = make_and_stop
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with llama.load_gguf(sys.argv[1], n_ctx=256):
    print("loaded")
"""
LEFT_OPEN = """
import sys
from lib.model import llama
manager = llama.load_gguf(sys.argv[1], n_ctx=256)
engine = manager.__enter__()
call = engine.server.handle_completions
sys.exit(7)
"""


@pytest.mark.parametrize(("code", "ends"), [(STOPPED, 143), (LEFT_OPEN, 7)])
def test_a_signal_while_loading_and_an_exit_with_a_loaded_file_end_the_process(
    gguf_path, code, ends
):
    done = subprocess.run(
        [sys.executable, "-c", code, gguf_path], cwd=ROOT, timeout=60, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (ends, b"", b"")


def test_the_probe_ends_at_ctrl_c_even_while_llama_cpp_reads(tmp_path):
    os.mkfifo(path := tmp_path / "endless.gguf")
    probe = subprocess.Popen([sys.executable, "-c", llama_probe.PROBE, path])
    try:
        with open(path, "wb"):  # waits until llama.cpp opens it
            probe.send_signal(signal.SIGINT)
            assert probe.wait(20) == -signal.SIGINT
    finally:
        probe.kill()


def test_a_kept_traceback_does_not_keep_the_file_loaded(gguf_path):
    with (  # noqa: PT012 - the last line is where it must come
        pytest.raises(UserError) as kept,
        llama.load_gguf(gguf_path, n_ctx=256) as engine,
    ):
        host, port = engine.server.listening_address.removeprefix("http://").split(":")
        engine.complete("\ud800")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)
    assert kept.traceback


def test_stream_gives_the_text_of_chat_as_it_comes_and_keeps_what_is_raised(tiny_run):
    messages, pieces = [{"role": "user", "content": "Cool a burn?"}], []
    with llama.load_gguf(tiny_run / "gguf" / "tiny-q8_0.gguf", n_ctx=256) as engine:
        whole = engine.chat(messages, max_tokens=12)
        assert engine.stream_chat(messages, pieces.append, max_tokens=12) == whole["stop"]
        assert len([piece for piece in pieces if piece]) > 3
        assert "".join(pieces) == whole["text"]
        with pytest.raises(KeyboardInterrupt):
            engine.stream_chat(
                messages, lambda text: (_ for _ in ()).throw(KeyboardInterrupt), max_tokens=12
            )
        with pytest.raises(UserError, match="exceeds the available context size"):
            engine.stream_chat([{"role": "user", "content": "wound " * 400}], pieces.append)
        assert engine.chat(messages, max_tokens=12)["text"] == whole["text"], (
            "it works on after that"
        )


def test_many_conversations_at_once_are_each_answered_in_their_place(tiny_run):
    turns, ticks = [[{"role": "user", "content": "Cool a burn" + " now" * n}] for n in range(5)], []
    with llama.load_gguf(tiny_run / "gguf" / "tiny-q8_0.gguf", n_ctx=256, n_parallel=3) as engine:
        together = engine.chat_many(turns, 4, ticks.append)
        assert [one["prompt_tokens"] for one in together] == [
            engine.chat(turn, 1)["prompt_tokens"] for turn in turns
        ]
        assert ticks == [1] * 5
        assert all(one["tokens"] == 4 or one["stop"] == "stop" for one in together)
        long = [{"role": "user", "content": "wound " * 230}]
        assert engine.chat_many([long] * 3, 1)[2]["prompt_tokens"] > 230, (
            "each has n_ctx tokens of room"
        )
        with pytest.raises(UserError, match="exceeds the available context size"):
            engine.chat_many([turns[0], [{"role": "user", "content": "wound " * 400}]])


def test_requests_llama_cpp_refuses_are_user_errors(gguf_path):
    with llama.load_gguf(gguf_path, n_ctx=256) as engine:
        with pytest.raises(UserError, match="no chat template"):
            engine.chat([{"role": "user", "content": "Hi"}])
        with pytest.raises(UserError, match="exceeds the available context size"):
            engine.complete("word " * 400)
        with pytest.raises(UserError, match="surrogate"):
            engine.complete("a\ud800")


def blocks(data, count):
    at = data.index(b"gemma3.block_count") + len(b"gemma3.block_count") + 4
    return data[:at] + count.to_bytes(4, "little") + data[at + 4 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"hello", "invalid magic"),
        (lambda data: b"", "failed to read magic"),
        (lambda data: data[:20_000], "failed to read key-value pairs"),
        (lambda data: data[:100_000_000], "not within the file bounds"),
        pytest.param(
            lambda data: data.replace(b"blk.5.attn_k.weight", b"blk.5.attn_z.weight"),
            "'blk.5.attn_k.weight' not found",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda data: data.replace(b"gemma3", b"gemmaX"),
            "unknown model architecture: 'gemmaX'",
            marks=pytest.mark.slow,
        ),
        (
            lambda data: blocks(data, 0),
            "GGML_ASSERT",
        ),  # without the child this would end the tests' own process
    ],
)
def test_bad_files_are_user_errors_with_the_reason(gguf_path, tmp_path, capfd, damage, reason):
    path = tmp_path / "bad.gguf"
    path.write_bytes(damage(gguf_path.read_bytes()))
    with pytest.raises(UserError) as error, llama.load_gguf(path):
        pass
    assert str(path) in str(error.value)
    assert reason in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_missing_file(tmp_path):
    with (
        pytest.raises(UserError, match="No GGUF file at .*none.gguf"),
        llama.load_gguf(tmp_path / "none.gguf"),
    ):
        pass
