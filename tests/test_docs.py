"""README, Makefile and CI say what the code does: commands parse, the table is generated, the tree exists.

python -m pytest tests/test_docs.py
"""

import itertools
import pathlib
import re
import shlex
import subprocess

import pytest

from lib import params
from lib.runs.run_job import main
from lib.runs.sweep import sweep_file

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TARGETS = (
    "run",
    "prepare",
    "train",
    "export",
    "report",
    "runs",
    "compare",
    "rerun",
    "prune",
    "ask",
    "sweep",
    "test",
    "drills",
    "lint",
    "setup",
    "clean",
    "help",
)


def commands():
    """Every `make ...` line of the README, alternatives a|b spelled out, comments cut."""
    found = []
    for line in re.findall(r"^    (make .*)$", README, re.MULTILINE):
        words = line.split("#")[0].strip()
        options = re.match(r"make (\S+)(.*)", words)
        found += [f"make {target}{options[2]}" for target in options[1].split("|")]
    return found


def test_the_readme_names_every_kind_of_command():
    assert {c.split()[1] for c in commands()} >= {
        "run",
        "prepare",
        "train",
        "export",
        "report",
        "runs",
        "compare",
        "rerun",
        "prune",
        "test",
        "lint",
        "clean",
        "help",
    }


@pytest.mark.parametrize("command", commands())
def test_each_command_of_the_readme_is_one_make_accepts_with_parameters_that_exist(command):
    dry = subprocess.run(
        ["make", "-n", "-o", "setup", *shlex.split(command)[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert dry.returncode == 0, dry.stderr
    if "lib.runs.sweep" in dry.stdout:
        given = shlex.split(
            next(text for text in dry.stdout.splitlines() if "lib.runs.sweep" in text)
        )  # a make under make says more
        assert sweep_file.trials(
            sweep_file.read(given[given.index("--params") + 1]), "params/sweep.yaml"
        )
    line = next((text for text in dry.stdout.splitlines() if "lib.runs" in text), "")
    if line:
        words = shlex.split(line)
        given = dict(itertools.pairwise(words))
        params.load_job(given["--params"], given.get("--set", ""))
        assert words[words.index("lib.runs") + 1] in (
            "run",
            "prepare",
            "train",
            "export",
            "report",
            "ask",
        )


def test_parameter_table_is_generated():
    shown = re.search(r"<!-- parameters: .*? -->\n(.*?)\n<!-- end -->", README, re.DOTALL)[1]
    assert shown == params.markdown_table(), (
        "run `.venv/bin/python -m lib.params` and paste its output"
    )


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_help_lists_every_target_and_is_the_default():
    text = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in TARGETS:
        assert f"make {target}" in text
    makefile = (ROOT / "Makefile").read_text()
    assert len(makefile.splitlines()) <= 80
    assert "runs" not in re.search(r"^clean:.*\n\t(.*)", makefile, re.MULTILINE)[1], (
        "make clean must never touch runs"
    )


def test_ci_runs_the_readmes_commands():
    script = (ROOT / ".ci" / "run").read_text()
    assert "\nmake lint\n" in script
    assert "\nmake test\n" in script


def test_requirements_are_pinned_and_the_cpu_set_needs_no_gpu():
    pins = {}
    for name in ("requirements.txt", "requirements-cpu.txt"):
        lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
        pins[name] = [line for line in lines if line and not line.startswith("-r")]
        for line in pins[name]:
            assert re.fullmatch(r"[\w.\-]+==[\w.]+", line), f"{name}: {line} is not pinned"
    gpu_only = {"unsloth", "torchvision", "timm", "bitsandbytes", "triton", "xformers"}
    assert not {line.split("==")[0] for line in pins["requirements-cpu.txt"]} & gpu_only
    assert "-r requirements-cpu.txt" in (ROOT / "requirements.txt").read_text()


def test_exit_codes_and_usage_are_in_the_runners_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "prepare" in capsys.readouterr().out
