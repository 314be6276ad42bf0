"""The renderer of Go templates gives the same as Go itself (tests/helpers/go_templates.json, Go 1.27), and refuses unknown constructs.

python -m pytest tests/export/test_go_template.py
"""

import json
import pathlib

import pytest

from helpers import go_template
from helpers.server_prompts import SPRIG
from lib.export import servers

CASES = json.loads(
    (pathlib.Path(__file__).parents[1] / "helpers" / "go_templates.json").read_text(
        encoding="utf-8"
    )
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["template"][:30])
def test_as_go_does(case):
    if case["error"]:
        with pytest.raises(ValueError, match="^Go template: "):
            go_template.render(case["template"], case["data"], SPRIG)
    else:
        assert go_template.render(case["template"], case["data"], SPRIG) == case["output"]


def test_the_shipped_templates_are_among_what_go_rendered():
    rendered = {case["template"] for case in CASES if not case["error"]}
    assert {
        servers.OLLAMA,
        *(servers.LOCALAI[name] for name in ("chat_message", "chat", "completion")),
    } <= rendered, (
        "a template has changed: put it into go_templates.json, and its output by `go run tests/helpers/go_templates.go`"
    )


@pytest.mark.parametrize(
    "template",
    [
        "{{ with .A }}x{{ end }}",
        "{{ .A | len }}",
        "{{/* a */}}x",
        '{{ define "t" }}{{ end }}',
        "{{ break }}",
        "{{ .B }}",
        "{{ printf .A }}",
        "{{ range .A }}x{{ else }}y{{ end }}",
        "{{ if $x := .A }}x{{ end }}",
        "{{ true }}",
        "{{ len .T }}",
        "{{ .A }}",
        "{{ `raw` }}",
        "{{ -1 }}",
    ],
)
def test_what_go_knows_and_this_does_not_is_an_error(template):
    with pytest.raises(ValueError, match="^Go template: "):
        go_template.render(template, {"A": ["a"], "T": "text"})
