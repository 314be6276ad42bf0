"""What people run the exported files with: Ollama, LocalAI, llama.cpp, and Python for the adapter; held against the tokenizer.

    deploy.write(run.folder, run.folder / "gguf" / "first-aid-q8_0.gguf", job)

Nothing is written before lib/turns.py has found that each server would send the model what the tokenizer's template says.
"""

import json
import pathlib
import shlex

import yaml

from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.data.chat import TURN_END
from lib.export import turns
from lib.medical.disclaimer import DISCLAIMER
from lib.params import Params

SYSTEM = "You are a first-aid assistant that works offline. " + DISCLAIMER
SNIPPET = pathlib.Path(__file__).with_name("adapter_ask.py")

# Gemma has no system turn: its own template puts the system text before the first user message, and so do these.
# No <bos>: Ollama, LocalAI and llama.cpp put it first themselves. Ollama has no function that trims.
OLLAMA = """{{- $system := .System }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<start_of_turn>user
{{ if $system }}{{ $system }}

{{ $system = "" }}{{ end }}{{ .Content }}<end_of_turn>
{{ if $last }}<start_of_turn>model
{{ end }}
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}{{ if not $last }}<end_of_turn>
{{ end }}
{{- end }}
{{- end }}"""

# LocalAI renders each message by itself, then `chat` the whole. So a system message opens the user's turn and leaves a mark,
# and `chat` takes the mark out with the opening that the user's own message brings.
LOCALAI = {
    "chat_message": """{{ if eq .RoleName "system" }}<start_of_turn>user
{{ .Content }}

<system_ends>{{ else if eq .RoleName "assistant" }}<start_of_turn>model
{{ trim .Content }}{{ if not .LastMessage }}<end_of_turn>
{{ end }}{{ else }}<start_of_turn>user
{{ if and .SystemPrompt (eq .MessageIndex 0) }}{{ .SystemPrompt }}

{{ end }}{{ trim .Content }}<end_of_turn>
{{ if .LastMessage }}<start_of_turn>model
{{ end }}{{ end }}""",
    "chat": r'{{ replace "<system_ends><start_of_turn>user\n" "" .Input }}',
    "completion": """<start_of_turn>user
{{ if .SystemPrompt }}{{ .SystemPrompt }}

{{ end }}{{ trim .Input }}<end_of_turn>
<start_of_turn>model
""",
    "join_chat_messages_by_character": "",
}


def write(folder: pathlib.Path, gguf: pathlib.Path, job: Params) -> dict[str, int]:
    """Write gguf/Modelfile, gguf/localai.yaml, adapter/ask.py and the licence notices of a run; how many conversations each server got right.

    `gguf` lies in the run's gguf/, merged/ has its tokenizer. UserError, and nothing is written, when a server would not send
    what the tokenizer's template says.
    """
    folder, gguf = pathlib.Path(folder), pathlib.Path(gguf)
    ollama, localai = modelfile(gguf.name, job), localai_yaml(gguf.name, job, folder.name)
    compared = turns.check(folder / "merged", ollama, localai, gguf)
    files.atomic_write(gguf.parent / "Modelfile", ollama)
    files.atomic_write(gguf.parent / "localai.yaml", localai)
    files.atomic_write(folder / "adapter" / "ask.py", SNIPPET.read_text(encoding="utf-8"))
    for part in ("adapter", "merged", "gguf"):
        if (
            part != "merged" or not (folder / part / "NOTICE").exists()
        ):  # a base's own notice, copied there, says more
            files.atomic_write(folder / part / "NOTICE", notice(job))
    return compared


def base_name(job: Params) -> str:
    """The base as others know it; the bundled file was quantised from the hub's google/gemma-3-270m."""
    return (
        "google/gemma-3-270m"
        if job.base_model == "bundled:gemma-3-270m"
        else shared_name(job.base_model)
    )


def shared_name(name: str) -> str:
    """A hub id or bundled name as it is; of a path only the last part, as the files are read elsewhere."""
    return (
        pathlib.Path(name).name
        if not name.startswith("bundled:") and (ROOT / name).exists()
        else name
    )


def notice(job: Params) -> str:
    """What Gemma's terms ask to be passed on with a derived model."""
    return (
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms\n"
        f"Modified: a model derived from {base_name(job)} by LoRA fine-tuning. {DISCLAIMER}\n"
    )


def limits(job: Params) -> tuple[int, int]:
    """Tokens of context and of the longest answer: no longer one was trained, and a model in a loop must end."""
    return max(2048, 4 * job.max_seq_length), job.max_seq_length


# ---------------------------------------------------------------------------------------------------------------------
# the files


def modelfile(gguf_name: str, job: Params, system: str = SYSTEM) -> str:
    """An Ollama Modelfile: the turn format, its stop, the disclaimer as system text, and greedy answers as they were checked."""
    context, answer = limits(job)
    texts = {"TEMPLATE": OLLAMA, "SYSTEM": system, "LICENSE": notice(job)}
    if any('"""' in text for text in texts.values()):
        raise UserError(
            'The system text holds """, which ends a text of a Modelfile. Write it without.'
        )
    settings = {
        "stop": f'"{TURN_END}"',
        "temperature": 0,
        "repeat_penalty": 1,
        "num_ctx": context,
        "num_predict": answer,
    }
    return "\n".join(
        [
            "# ollama create NAME -f Modelfile; for another GGUF file of this folder change the next line",
            f"FROM ./{gguf_name}",
            f'TEMPLATE """{texts["TEMPLATE"]}"""',
            *(f"PARAMETER {key} {value}" for key, value in settings.items()),
            *(f'{key} """{texts[key]}"""' for key in ("SYSTEM", "LICENSE")),
            "",
        ]
    )


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks."""


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


def localai_yaml(gguf_name: str, job: Params, name: str, system: str = SYSTEM) -> str:
    """A LocalAI model file, of documented fields only; it goes into LocalAI's models folder with the GGUF beside it."""
    context, answer = limits(job)
    fields = {
        "name": name,
        "description": f"First aid, from {base_name(job)}. {DISCLAIMER}",
        "backend": "llama-cpp",
        "parameters": {
            "model": gguf_name,
            "temperature": 0.0,
            "repeat_penalty": 1.0,
            "max_tokens": answer,
        },
        "context_size": context,
        "stopwords": [TURN_END],
        "system_prompt": system,
        "template": LOCALAI,
    }
    return yaml.dump(fields, Dumper=_Readable, sort_keys=False, allow_unicode=True, width=10000)


def commands(gguf_name: str, job: Params, lora: str = "") -> str:
    """llama.cpp command lines for a GGUF, for a GGUF adapter `lora` on its base's GGUF, or for both, as a block for a shell."""
    context, answer = limits(job)
    options, question = (
        f"--ctx-size {context} --predict {answer} --temp 0",
        turns.CONVERSATIONS[0][0]["content"],
    )
    told, body = (
        f'--system-prompt "$SYSTEM" {options}',
        {"messages": turns.with_system(turns.CONVERSATIONS[0], SYSTEM)},
    )
    lines = [f"SYSTEM={shlex.quote(SYSTEM)}"]
    if gguf_name:
        lines += [
            "# a conversation, one answer, a server",
            f"llama-cli --model {gguf_name} {told}",
            f"llama-cli --model {gguf_name} {told} --single-turn --prompt {shlex.quote(question)}",
            f"llama-server --model {gguf_name} {options} --port 8080",
            f"curl -s localhost:8080/v1/chat/completions -H 'Content-Type: application/json' -d {shlex.quote(json.dumps(body))}",
        ]
    if lora:
        lines += [
            f"# the adapter on a GGUF of {base_name(job)} itself",
            f"llama-cli --model BASE.gguf --lora {lora} {told}",
        ]
    return "\n".join(lines)
