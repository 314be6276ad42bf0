"""The files for Ollama, LocalAI, llama.cpp and Python: their contents, and the turns that each server sends.

python -m pytest tests/export/test_servers.py
"""

import json
import mmap
import re
import shlex
import shutil

import pytest
import xllamacpp
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from helpers import server_prompts
from lib import params
from lib.common.errors import UserError
from lib.export import servers, turns
from lib.medical.disclaimer import DISCLAIMER
from lib.model import llama

JOB = params.load_job("params/cpu.yaml")
BASE = (JOB.base_model, JOB.max_seq_length)
TURN, STOP = "<start_of_turn>", "<end_of_turn>"


@pytest.fixture(scope="module")
def tokenizer(tiny_run):
    return AutoTokenizer.from_pretrained(tiny_run / "merged")


@pytest.fixture(scope="module")
def engine(tiny_run):
    with llama.load_gguf(tiny_run / "gguf" / "tiny-q8_0.gguf") as loaded:
        yield loaded


def talk(*contents):
    return [
        {"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)
    ]


def written(tiny_run):
    """Return the texts of Modelfile and localai.yaml."""
    names = ("Modelfile", "localai.yaml")
    return [(tiny_run / "gguf" / name).read_text(encoding="utf-8") for name in names]


def base_with(tiny_run, folder, change):
    """Copy the tokenizer, with its chat template passed through `change`."""
    shutil.copytree(tiny_run / "merged", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert change(config["chat_template"]) != config["chat_template"]
    (folder / "tokenizer_config.json").write_text(
        json.dumps(config | {"chat_template": change(config["chat_template"])})
    )
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# what each server sends


@pytest.mark.parametrize("number", range(len(turns.CONVERSATIONS) + 1))
def test_every_server_sends_the_ids_of_transformers_own_template(
    tiny_run, tokenizer, engine, number
):
    messages = [*turns.CONVERSATIONS, turns.PADDED][number]
    ollama, localai = written(tiny_run)
    ids = tokenizer.apply_chat_template(
        turns.prepend_system(messages, servers.SYSTEM), add_generation_prompt=True, return_dict=True
    )["input_ids"]
    sent = {
        "LocalAI": server_prompts.localai_prompt(localai, messages),
        "llama.cpp": engine.render(turns.prepend_system(messages, servers.SYSTEM)),
        "Ollama": server_prompts.ollama_prompt(ollama, messages),
    }
    if (
        messages is turns.PADDED
    ):  # Ollama's language cannot trim: the blanks around a message stay, and nothing else differs
        blanks = sent.pop("Ollama")
        assert re.sub(r"\s+", "", blanks) == re.sub(r"\s+", "", tokenizer.decode(ids[1:]))
        assert "  Help!\n" in blanks
    for server, text in sent.items():
        assert engine.tokenize(text, add_special=True) == ids, (
            server
        )  # llama.cpp, which all three have inside, puts <bos> first


WORDS = st.text(min_size=1, max_size=30).map(str.strip).filter(bool)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(pairs=st.lists(st.tuples(WORDS, WORDS), max_size=2), last=WORDS, system=st.none() | WORDS)
def test_the_templates_of_both_files_give_the_turns_that_an_export_compares(
    tiny_run, pairs, last, system
):
    messages = talk(*(text for pair in pairs for text in pair), last)
    if system:
        messages = turns.prepend_system(messages, system)
    ollama, localai = written(tiny_run)
    joined = turns.join_turns(turns.prepend_system(messages, servers.SYSTEM))
    assert server_prompts.ollama_prompt(ollama, messages) == joined
    padded = [
        m if m["role"] == "system" else {**m, "content": f" \n{m['content']}\t"} for m in messages
    ]
    assert server_prompts.localai_prompt(localai, padded) == joined
    if len(messages) == 1:
        assert server_prompts.localai_completion(localai, f" {last}\n") == joined


def test_the_disclaimer_is_in_the_first_turn_once_and_an_applications_own_system_text_replaces_it(
    tiny_run,
):
    ollama, localai = written(tiny_run)
    for prompt in (
        lambda m: server_prompts.ollama_prompt(ollama, m),
        lambda m: server_prompts.localai_prompt(localai, m),
    ):
        text = prompt(talk("One?", "Two.", "Three?"))
        assert text.startswith(f"{TURN}user\n{servers.SYSTEM}\n\nOne?{STOP}")
        assert text.count(DISCLAIMER) == 1
        assert text.endswith(f"Three?{STOP}\n{TURN}model\n")
        own = prompt([{"role": "system", "content": "Own."}, *talk("One?")])
        assert own == f"{TURN}user\nOwn.\n\nOne?{STOP}\n{TURN}model\n"
        assert prompt(talk("One?", "Two, and")).endswith(f"{TURN}model\nTwo, and"), (
            "an answer that was begun goes on"
        )
    two = [{"role": "system", "content": "A."}, {"role": "system", "content": "B."}, *talk("One?")]
    assert (
        server_prompts.ollama_prompt(ollama, two)
        == server_prompts.localai_prompt(localai, two)
        == f"{TURN}user\nA.\n\nB.\n\nOne?{STOP}\n{TURN}model\n"
    )
    assert (
        server_prompts.localai_completion(localai, " One? ")
        == f"{TURN}user\n{servers.SYSTEM}\n\nOne?{STOP}\n{TURN}model\n"
    )


def test_two_user_messages_in_a_row_both_stay_the_users(tiny_run):
    messages = [*talk("One?"), *talk("Two?")]
    ollama, localai = written(tiny_run)
    assert server_prompts.ollama_prompt(ollama, messages).endswith(
        f"One?\n\nTwo?{STOP}\n{TURN}model\n"
    )
    assert server_prompts.localai_prompt(localai, messages).endswith(
        f"One?{STOP}\n{TURN}user\nTwo?{STOP}\n{TURN}model\n"
    )


# ---------------------------------------------------------------------------------------------------------------------
# the check at export


def test_the_comparison_counts_conversations(tiny_run):
    compared = turns.compare_turns(
        tiny_run / "merged", tiny_run / "gguf" / "tiny-q8_0.gguf", servers.SYSTEM
    )
    assert compared == {"Ollama": 5, "LocalAI": 6, "LocalAI, completion": 1, "llama.cpp": 6}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda t: t.replace("else turn['role']", "else 'human'"),
            "does not write Gemma's turns.*<start_of_turn>human",
        ),
        (
            lambda t: t.replace("<end_of_turn>", "</s>"),
            "does not write Gemma's turns.*Expected an answer as .*<end_of_turn>.*</s>",
        ),
        (
            lambda t: t.replace("+ '\n' }}", "+ ' ' }}"),
            "does not write Gemma's turns.*<start_of_turn>user Burnt",
        ),
        (lambda t: t.replace("| trim", ""), "(?s)Ollama and LocalAI would not send.*Help"),
        (
            lambda t: (
                "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no system role') }}{%- endif -%}"
                + t
            ),
            "no system role",
        ),
        (lambda t: t.replace("+ '\n\n' -%}", "+ '\n' -%}"), "LocalAI would not send"),
    ],
)
def test_a_base_with_other_turns_gets_no_files(tiny_run, tmp_path, change, said):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "gguf").mkdir()
    (run / "gguf" / "tiny-q8_0.gguf").symlink_to(tiny_run / "gguf" / "tiny-q8_0.gguf")
    base_with(tiny_run, run / "merged", change)
    with pytest.raises(UserError, match=said) as error:
        servers.write_server_files(
            run, run / "gguf" / "tiny-q8_0.gguf", JOB.base_model, JOB.max_seq_length
        )
    assert re.search(r"Expected a base with Gemma's turns|Use a Gemma 3 or", str(error.value))
    assert sorted(path.name for part in ("adapter", "gguf") for path in (run / part).iterdir()) == [
        "tiny-q8_0.gguf"
    ]


def test_a_gguf_with_another_template_than_the_tokenizers_gets_no_files(tiny_run, monkeypatch):
    def render(engine, messages):
        return turns.join_turns(messages).replace("Fièvre", "Fievre")

    monkeypatch.setattr(llama.Engine, "render", render)
    with pytest.raises(UserError, match=r"(?s)^llama.cpp would not send.*Fièvre.*Fievre"):
        turns.compare_turns(
            tiny_run / "merged", tiny_run / "gguf" / "tiny-q8_0.gguf", servers.SYSTEM
        )


# ---------------------------------------------------------------------------------------------------------------------
# what the files say


def test_modelfile(tiny_run):
    text = (tiny_run / "gguf" / "Modelfile").read_text(encoding="utf-8")
    said = servers.parse_modelfile(text)
    assert (tiny_run / "gguf" / said["from"]).resolve() == (
        tiny_run / "gguf" / "tiny-q8_0.gguf"
    ).resolve()
    assert said["system"].endswith(DISCLAIMER)
    assert "<bos>" not in text, "Ollama puts it first itself"
    assert "Gemma Terms of Use" in said["license"]
    # greedy and no longer than what was trained, as the GGUF was checked; Ollama's own defaults are neither
    assert {k: v for k, v in said.items() if k.startswith("parameter")} == {
        "parameter stop": STOP,
        "parameter temperature": "0",
        "parameter repeat_penalty": "1",
        "parameter num_ctx": "2048",
        "parameter num_predict": "64",
    }
    with pytest.raises(UserError, match='"""'):
        servers.format_modelfile("a.gguf", *BASE, system='a """ b')


def test_localai_file_has_documented_fields_only_and_survives_yaml(tiny_run):
    fields = yaml.safe_load((tiny_run / "gguf" / "localai.yaml").read_text(encoding="utf-8"))
    # the tables of LocalAI's page on model configuration
    assert fields.keys() <= {
        "name",
        "description",
        "usage",
        "backend",
        "parameters",
        "context_size",
        "stopwords",
        "system_prompt",
        "template",
    }
    assert fields["parameters"].keys() <= {
        "model",
        "temperature",
        "top_p",
        "top_k",
        "max_tokens",
        "repeat_penalty",
        "seed",
    }
    assert fields["template"] == servers.LOCALAI, (
        "blanks and line ends of the templates must come back as they are"
    )
    assert (tiny_run / "gguf" / fields["parameters"]["model"]).is_file()
    assert fields["stopwords"] == [STOP]
    assert DISCLAIMER in fields["system_prompt"]


def test_notices_pass_on_gemmas_terms_and_keep_a_bases_own(tiny_run, tmp_path):
    for part in ("adapter", "gguf", "merged"):
        assert "ai.google.dev/gemma/terms" in (tiny_run / part / "NOTICE").read_text()
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "merged" / "NOTICE").write_text("of the base")
    servers.write_server_files(
        run, run / "gguf" / "tiny-q8_0.gguf", JOB.base_model, JOB.max_seq_length
    )
    assert (run / "merged" / "NOTICE").read_text() == "of the base"


def test_a_path_of_this_machine_is_in_no_file(tmp_path):
    (tmp_path / "my-base").mkdir()
    base = str(tmp_path / "my-base")
    for text in (
        servers.format_modelfile("a.gguf", base, 64),
        servers.format_localai("a.gguf", "a", base, 64),
        servers.format_notice(base),
        servers.format_commands("a.gguf", base, 64, "l.gguf"),
    ):
        assert str(tmp_path) not in text
    assert "my-base" in servers.format_notice(base)
    assert "google/gemma-3-270m" in servers.format_notice(JOB.base_model)


def test_options_of_the_llama_cpp_commands_are_llama_cpps():
    block = servers.format_commands("a.gguf", *BASE, "lora.gguf")
    lines = [shlex.split(line, comments=True) for line in block.splitlines() if line[0] != "#"]
    assert [line[0].partition("=")[0] for line in lines] == [
        "SYSTEM",
        "llama-cli",
        "llama-cli",
        "llama-server",
        "curl",
        "llama-cli",
    ]
    options = {
        word
        for line in lines
        if line[0].startswith("llama-")
        for word in line
        if word.startswith("--")
    }
    assert {"--model", "--lora", "--system-prompt"} <= options
    with (
        open(xllamacpp.xllamacpp.__file__, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as binary,
    ):
        unknown = [
            o for o in [*options, "--no-such-option"] if binary.find(b"\0" + o.encode() + b"\0") < 0
        ]
    assert unknown == ["--no-such-option"]
    body = json.loads(lines[4][lines[4].index("-d") + 1])
    assert (
        body["messages"][0]
        == {"role": "system", "content": servers.SYSTEM}
        == {"role": "system", "content": lines[0][0].partition("=")[2]}
    )
    assert "--lora" not in servers.format_commands("a.gguf", *BASE)
    assert servers.format_commands("", *BASE, "l.gguf").count("\nllama-") == 1
