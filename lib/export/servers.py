"""Write the files with which people run the export in Ollama, LocalAI, llama.cpp and Python.

    gguf = run.folder / "gguf" / "first-aid-q8_0.gguf"
    servers.write_server_files(run.folder, gguf, job.base_model, job.max_seq_length)

Nothing is written before turns.py has checked that each server would send the model exactly the
text of the tokenizer's template.
"""

import json
import pathlib
import re
import shlex

import yaml

from lib.common import files, locations
from lib.common.chat_template import TURN_END
from lib.common.errors import UserError
from lib.data.reading import formats
from lib.export import turns
from lib.medical.disclaimer import DISCLAIMER
from lib.model import base_record, start

SYSTEM = "You are a first-aid assistant that works offline. " + DISCLAIMER
ASK_SCRIPT = pathlib.Path(__file__).with_name("adapter_ask.py")

# Gemma has no system turn: its own template puts the system text before the first user message,
# and so do these. They have no <bos>, since Ollama, LocalAI and llama.cpp add it themselves.
# Ollama's template language has no function that trims.
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

# LocalAI renders each message by itself, then all of them by `chat`. So a system message opens the
# user's turn and leaves a mark; `chat` removes the mark and the second opening that the user's own
# message adds.
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


def write_server_files(
    folder: pathlib.Path,
    gguf: pathlib.Path,
    base_model: str,
    max_seq_length: int,
    base_files: dict[str, str] | None = None,
) -> dict[str, int]:
    """Write the files that `list_server_files` names, and the licence notice of merged/.

    `gguf` is in the run's gguf/; merged/ has its tokenizer. `base_files` are the recorded hashes
    with which ask.py compares the base. Return how many conversations were compared for each
    server. Raise UserError, and write nothing, when a server would not send the text of the
    tokenizer's template.
    """
    has_adapter = (folder / start.ADAPTER).is_dir()
    method = "LoRA fine-tuning" if has_adapter else "full fine-tuning"
    modelfile = format_modelfile(gguf.name, base_model, max_seq_length, method=method)
    localai = format_localai(gguf.name, folder.name, base_model, max_seq_length)
    compared = turns.compare_turns(folder / "merged", gguf, SYSTEM)
    files.atomic_write(gguf.parent / "Modelfile", modelfile)
    files.atomic_write(gguf.parent / "localai.yaml", localai)
    if has_adapter:
        _write_ask_script(folder / start.ADAPTER, base_files)
    for part in (*([start.ADAPTER] if has_adapter else []), "merged", "gguf"):
        # keep a base's own notice that was copied to merged/, which says more
        if part != "merged" or not (folder / part / "NOTICE").exists():
            files.atomic_write(folder / part / "NOTICE", format_notice(base_model, method))
    return compared


def _write_ask_script(adapter: pathlib.Path, base_files: dict[str, str] | None) -> None:
    files.atomic_write(adapter / "ask.py", ASK_SCRIPT.read_text(encoding="utf-8"))
    if base_files:
        files.atomic_write(adapter / base_record.SUMS, base_record.format_sums(base_files))


def list_server_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the files that `write_server_files` has written beside weights."""
    names = ["gguf/Modelfile", "gguf/localai.yaml", "gguf/NOTICE"]
    if (folder / start.ADAPTER).is_dir():
        names += ["adapter/NOTICE", "adapter/ask.py"]
    paths = [folder / name for name in names]
    sums = folder / start.ADAPTER / base_record.SUMS
    return [*paths, sums] if sums.is_file() else paths


def base_name(base_model: str) -> str:
    """Return the public name of a base; the bundled file was quantised from google/gemma-3-270m."""
    if base_model == "bundled:gemma-3-270m":
        return "google/gemma-3-270m"
    return shared_name(base_model)


def shared_name(name: str) -> str:
    """Return a hub id or bundled name, but only the last part of a path, for readers elsewhere."""
    if name.startswith("bundled:"):
        return name
    # a file that is gone by now was a path too
    cannot_be_id = name.count("/") > 1 or name.startswith((".", "/", "~"))
    is_data = formats.suffix_of(pathlib.Path(name)) in formats.SUFFIXES
    is_path = cannot_be_id or is_data or locations.local_path(name).exists()
    return pathlib.Path(name).name if is_path else name


def format_notice(base_model: str, method: str = "LoRA fine-tuning") -> str:
    """Return the notice that Gemma's terms require with a derived model."""
    return (
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms\n"
        f"Modified: a model derived from {base_name(base_model)} by {method}. "
        f"{DISCLAIMER}\n"
    )


def answer_limits(max_seq_length: int) -> tuple[int, int]:
    """Return the tokens of context and of the longest answer.

    Longer answers were not trained, and a model in a loop must be stopped.
    """
    return max(2048, 4 * max_seq_length), max_seq_length


# -------------------------------------------------------------------------------------------------
# the files


def format_modelfile(
    gguf_name: str,
    base_model: str,
    max_seq_length: int,
    system: str = SYSTEM,
    method: str = "LoRA fine-tuning",
) -> str:
    """Format an Ollama Modelfile: turns, stop, disclaimer, and greedy answers as in the checks."""
    context, longest = answer_limits(max_seq_length)
    notice = format_notice(base_model, method)
    if any('"""' in text for text in (OLLAMA, system, notice)):
        raise UserError(
            'The system text contains """, which ends a text in a Modelfile. Remove it.'
        )
    lines = [
        "# ollama create NAME -f Modelfile; "
        "for another GGUF file of this folder change the next line",
        f"FROM ./{gguf_name}",
        f'TEMPLATE """{OLLAMA}"""',
        f'PARAMETER stop "{TURN_END}"',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context}",
        f"PARAMETER num_predict {longest}",
        f'SYSTEM """{system}"""',
        f'LICENSE """{notice}"""',
        "",
    ]
    return "\n".join(lines)


def parse_modelfile(text: str) -> dict[str, str]:
    """Parse our own Modelfile into from, template, system, license, `parameter stop`, ..."""
    instructions = re.findall(
        r'^(FROM|TEMPLATE|SYSTEM|LICENSE|PARAMETER \w+) (?:"""(.*?)"""|"?([^\n]*?)"?)$',
        text,
        re.MULTILINE | re.DOTALL,
    )
    return {keyword.lower(): block or line for keyword, block, line in instructions}


class _BlockDumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_BlockDumper.add_representer(str, _represent_text)


def format_localai(
    gguf_name: str, name: str, base_model: str, max_seq_length: int, system: str = SYSTEM
) -> str:
    """Format a LocalAI model file, with documented fields only.

    It belongs in LocalAI's models folder, next to the GGUF.
    """
    context, longest = answer_limits(max_seq_length)
    fields = {
        "name": name,
        "description": f"First aid, from {base_name(base_model)}. {DISCLAIMER}",
        "backend": "llama-cpp",
        "parameters": {
            "model": gguf_name,
            "temperature": 0.0,
            "repeat_penalty": 1.0,
            "max_tokens": longest,
        },
        "context_size": context,
        "stopwords": [TURN_END],
        "system_prompt": system,
        "template": LOCALAI,
    }
    return yaml.dump(fields, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=10000)


def _warn_of(lora: str) -> str:
    return "; without the end token's row, its answers may not end" if "without-end" in lora else ""


def format_commands(gguf_name: str, base_model: str, max_seq_length: int, lora: str = "") -> str:
    """Format llama.cpp commands for a shell.

    They run a GGUF, a GGUF adapter `lora` on a GGUF of its base, or both.
    """
    context, longest = answer_limits(max_seq_length)
    options = f"--ctx-size {context} --predict {longest} --temp 0"
    with_system = f'--system-prompt "$SYSTEM" {options}'
    lines = [f"SYSTEM={shlex.quote(SYSTEM)}"]
    if gguf_name:
        messages = turns.prepend_system(turns.CONVERSATIONS[0], SYSTEM)
        body = shlex.quote(json.dumps({"messages": messages}))
        question = shlex.quote(turns.CONVERSATIONS[0][0]["content"])
        lines += [
            "# a conversation, one answer, a server",
            f"llama-cli --model {gguf_name} {with_system}",
            f"llama-cli --model {gguf_name} {with_system} --single-turn --prompt {question}",
            f"llama-server --model {gguf_name} {options} --port 8080",
            "curl -s localhost:8080/v1/chat/completions "
            f"-H 'Content-Type: application/json' -d {body}",
        ]
    if lora:
        lines += [
            f"# the adapter on a GGUF of {base_name(base_model)} itself{_warn_of(lora)}",
            f"llama-cli --model BASE.gguf --lora {lora} {with_system}",
        ]
    return "\n".join(lines)
