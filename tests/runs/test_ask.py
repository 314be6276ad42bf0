"""`make ask`: a run's GGUF answers, with the Modelfile's system text and the disclaimer; a question passes make and shell unharmed.

python -m pytest tests/runs/test_ask.py
"""

import json
import os
import re
import shutil
import subprocess

import pytest

from lib import params
from lib.common import files
from lib.common.errors import ROOT, UserError
from lib.export import servers
from lib.medical.disclaimer import DISCLAIMER
from lib.model import llama
from lib.runs import ask
from lib.runs.run_job import main

QUESTION = "Cool a burn?"


@pytest.fixture
def run(tiny_run, tmp_path, monkeypatch):
    """A copy of the finished run that may be changed, where the commands look for it."""
    monkeypatch.setenv("MEDRESCUE_RUNS", str(tmp_path))
    return shutil.copytree(tiny_run, tmp_path / "tiny")


def change(run, **stage):
    record_ = json.loads((run / "run.json").read_text())
    record_["stages"]["export"].update(stage)
    files.write_json(run / "run.json", record_)


def test_the_answer_is_llama_cpps_with_the_modelfiles_system_text_then_the_disclaimer(run, capsys):
    modelfile = run / "gguf" / "Modelfile"
    modelfile.write_text(
        modelfile.read_text().replace(servers.SYSTEM, "Press firmly on the wound.")
    )
    change(run, artifacts=files.describe_files(run, ["gguf"]))
    before = files.describe_files(run, ["."])
    assert main(["ask", "--run", "tiny", "--question", QUESTION]) == 0
    assert files.describe_files(run, ["."]) == before
    out, err = capsys.readouterr()
    with llama.load_gguf(run / "gguf" / "tiny-q8_0.gguf", n_ctx=2048) as engine:
        said, other = (
            engine.chat(
                [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}],
                max_tokens=64,
            )
            for system in ("Press firmly on the wound.", servers.SYSTEM)
        )
    assert (said["stop"], said["text"] != other["text"]) == ("length", True)
    assert out == (
        f"{files.format_path(run / 'gguf' / 'tiny-q8_0.gguf')}\n{ask.STAND_IN}\n\n{said['text']}\n"
        f"[cut after 64 tokens: the answer did not end by itself]\n\n{DISCLAIMER}\n"
    )
    assert err == ""


def test_only_the_bundled_model_is_called_a_stand_in_and_the_answer_comes_piece_by_piece(run):
    job = params.load_job(run / "params.yaml")
    (run / "params.yaml").write_text(
        params.to_yaml(params.check_values({**job.model_dump(), "base_model": "some/base"}, "test"))
    )
    pieces = []
    ask.answer_question(run, QUESTION, pieces.append)
    assert len(pieces) > 10
    assert "stand-in" not in "".join(pieces)
    assert "".join(pieces).endswith(f"\n\n{DISCLAIMER}\n")


def damage(run):
    with open(run / "gguf" / "tiny-q8_0.gguf", "r+b") as file:
        file.seek(-100, 2)
        file.write(b"\xff")


@pytest.mark.parametrize(
    ("harm", "question", "said"),
    [
        (lambda run: None, "", "The question is empty. Give one with Q="),
        (lambda run: None, " \n ", "The question is empty."),
        (lambda run: shutil.rmtree(run), QUESTION, "is not a run: it has no run.json"),
        (
            lambda run: change(run, status="interrupted"),
            QUESTION,
            "export of run `tiny` is interrupted, so there is no verified GGUF.*make export RUN=tiny",
        ),
        (lambda run: change(run, artifacts=[]), QUESTION, "recorded no q8_0 GGUF with a Modelfile"),
        (
            lambda run: (run / "gguf" / "tiny-q8_0.gguf").unlink(),
            QUESTION,
            "tiny-q8_0.gguf is missing in run `tiny`",
        ),
        (damage, QUESTION, "does not match its recorded sha256"),
        (
            lambda run: (run / "gguf" / "Modelfile").write_text("FROM x"),
            QUESTION,
            "gguf/Modelfile has 6 bytes",
        ),
        (
            lambda run: None,
            "wound " * 3000,
            "too long: 18,000 characters, with the system text 3,.* at most 1,984 tokens fit .*"
            "about 11,.* characters.* Ask in fewer words",
        ),
        (lambda run: None, "Burnt\udcff?", "not UTF-8 text: character 6 is a byte"),
    ],
)
def test_what_cannot_be_asked_is_one_message_and_code_2(run, capsys, harm, question, said):
    harm(run)
    assert main(["ask", "--run", "tiny", "--question", question]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ")
    assert "Traceback" not in err
    with pytest.raises(UserError, match=f"(?s){said}"):
        raise UserError(err)
    assert DISCLAIMER not in out, "nothing was answered"


@pytest.mark.parametrize(
    "question",
    [
        "It's \"bad\", isn't it?",
        "$HOME $(ls) `ls` ${Q} costs $5 $$",
        "a # b; c && d | e > f",
        "--force",
        "50 % \\n * ~ !x",
        "Fièvre à 39,5 °C?",
        'Burnt?\n\nIt\'s "red".\n',
        "\\\n$(shell false)\t'",
        "",
    ],
)
def test_a_question_passes_make_and_shell_unharmed(question):
    command = shown_command("ask", "RUN=demo", f"Q={question}")
    assert command.startswith(".venv/bin/python -m lib.runs ask  --run='demo' ")
    assert words_of(command)[-1] == f"--question={question}"


@pytest.mark.parametrize(
    "value", ["-x", "a\nb", 'it\'s "b"', "a$b $(shell false) $(Q)", "`b` #;\\ x"]
)
@pytest.mark.parametrize(
    ("target", "variable"),
    [
        ("train", "PARAMS"),
        ("train", "RUN"),
        ("train", "SET"),
        ("sweep", "SET"),
        ("exam", "RUN"),
        ("exam", "EXAM"),
        ("prune", "RUNS"),
        ("compare", "METRIC"),
        ("rerun", "RUN"),
    ],
)
def test_every_variable_passes_make_and_shell_unharmed(target, variable, value):
    words = words_of(shown_command(target, f"{variable}={value}"))
    if "--" in words:
        assert value in words[words.index("--") + 1 :]
    else:  # as one word, in which a dash at the beginning is no option's
        assert value in [word.partition("=")[2] for word in words]


def shown_command(target, *variables):
    """Return the command that make would run."""
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", "setup", target, *variables],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert len(shown.strip().splitlines()) == 1, "a line end would end the shell's command"
    return shown.strip()


def words_of(command):
    """Return the words that a shell makes of a command, with the variable that make exports."""
    printed = re.sub(r"^\S+ -m lib\S*", r"printf '%s\\0'", command)
    done = subprocess.run(
        ["sh", "-c", printed], capture_output=True, text=True, env={**os.environ, "newline": "\n"}
    )
    return done.stdout.split("\0")[:-1]
