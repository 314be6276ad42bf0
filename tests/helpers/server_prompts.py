"""Render what Ollama and LocalAI send the model with the files written for them, by Go's template rules."""

import yaml

from helpers import go_template
from lib.export import servers, turns

SPRIG = {"trim": str.strip, "replace": lambda old, new, text: text.replace(old, new)}


def ollama_prompt(modelfile, messages):
    """Return Ollama's prompt: SYSTEM unless the messages have their own, with neighbours of one role joined."""
    fields, joined = servers.parse_modelfile(modelfile), []
    messages = turns.prepend_system(messages, fields["system"])
    for message in messages:
        if joined and joined[-1]["Role"] == message["role"]:
            joined[-1]["Content"] += "\n\n" + message["content"]
        else:
            joined.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return go_template.render(fields["template"], {"System": system, "Messages": joined})


def localai_prompt(model_file, messages):
    """Return LocalAI's prompt: it renders each message by itself, then all together."""
    fields = yaml.safe_load(model_file)
    template, system = fields["template"], fields["system_prompt"]
    parts = [
        go_template.render(
            template["chat_message"],
            {
                "SystemPrompt": system,
                "RoleName": message["role"],
                "Content": message["content"],
                "MessageIndex": n,
                "LastMessage": n == len(messages) - 1,
            },
            SPRIG,
        )
        for n, message in enumerate(messages)
    ]
    text = template["join_chat_messages_by_character"].join(parts)
    return go_template.render(template["chat"], {"SystemPrompt": system, "Input": text}, SPRIG)


def localai_completion(model_file, prompt):
    """Return what LocalAI sends for a bare prompt (/v1/completions)."""
    fields = yaml.safe_load(model_file)
    data = {"SystemPrompt": fields["system_prompt"], "Input": prompt}
    return go_template.render(fields["template"]["completion"], data, SPRIG)
