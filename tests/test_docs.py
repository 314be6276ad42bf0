"""The pages say what the code does: commands run or are checked, links lead somewhere, lists name what exists.

python -m pytest tests/test_docs.py
"""

import functools
import importlib.util
import pathlib
import re
import shlex
import subprocess
import tomllib

import pytest

from lib import params
from lib.runs.run_job import main
from lib.runs.sweep import sweep_file

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "lib/**/*.md", "params/*.md", "tests/**/*.md", "runs/examples/*.md")
    for path in ROOT.glob(pattern)
)
# on a command's line, or in the paragraph before it: nothing here runs this one
MARKS = ("not run", "needs a GPU", "run by hand")
# indented blocks that are no commands begin with one of these
NO_COMMANDS = ("@misc{", "notebooks/ ", "dataset: ", "runs  ", "- id: ")


@functools.cache
def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page):
    """Return (paragraph before, lines) of each indented block."""
    before, lines = "", []
    for paragraph in re.split(r"\n\s*\n", re.sub(r"<!--.*?-->", "", text_of(page))):
        lines = [line.strip() for line in paragraph.strip("\n").split("\n")]
        if re.match(r" {4,}", paragraph.strip("\n")):
            yield before, lines
        else:
            before = paragraph


def commands_of(page):
    """Return (command without its comment, whether it is marked) for each line of the indented blocks."""
    for before, lines in blocks(page):
        if lines[0].startswith(NO_COMMANDS):
            continue
        for line in lines:
            command, _, comment = line.partition("  #") if "  #" in line else (line, "", "")
            yield command.strip(), any(mark in comment or mark in before for mark in MARKS)


def make_commands(page):
    """Return every `make ...`, in a block or in the text, with alternatives a|b spelled out."""
    commands = [command for command, _ in commands_of(page) if command.startswith("make ")]
    commands += re.findall(r"`(make [a-z][^`]*)`", text_of(page))
    for command in commands:
        targets, options = re.match(r"make (\S+)(.*)", command).groups()
        yield from (f"make {target}{options}" for target in targets.split("|"))


MAKE = sorted({command for page in PAGES for command in make_commands(page)})
OTHERS = [
    pytest.param(command, marked, id=f"{page}: {command[:60]}")
    for page in PAGES
    for command, marked in commands_of(page)
    if not command.startswith("make ")
]


# ---------------------------------------------------------------------------------------------
# commands


def targets():
    return re.findall(r"^([a-z-]+):.*##", text_of("Makefile"), re.MULTILINE)


def test_the_pages_name_every_target():
    assert {command.split()[1] for command in MAKE} >= set(targets()) - {"setup"}


def dry_run(*words):
    dry = subprocess.run(
        ["make", "-n", "-o", "setup", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert dry.returncode == 0, dry.stderr
    return dry.stdout


@pytest.mark.parametrize("command", MAKE)
def test_make_accepts_each_command_and_its_parameters_exist(command):
    shown = dry_run(*shlex.split(command)[1:])
    words = shlex.split(shown.splitlines()[-1]) if "lib.runs" in shown else []
    given = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
    if "PARAMS" in command:
        assert "--params" in given
    if "lib.runs.sweep" in words and "--params" in given:
        assert sweep_file.make_trials(sweep_file.read_sweep(given["--params"]), "params/sweep.yaml")
    elif "--params" in given:
        params.load_job(given["--params"], given.get("--set", ""))
        command_word = words[words.index("lib.runs") + 1]
        assert command_word in ("run", "prepare", "train", "export", "report", "ask", "doctor")


@pytest.mark.parametrize(("command", "marked"), OTHERS)
def test_each_other_command_names_what_exists_or_is_marked(command, marked):
    program, *words = shlex.split(command)
    script = text_of(words[0]) if words and words[0].startswith("tests/") else ""
    if program in ("python", ".venv/bin/python") and (script or words[0] == "-m"):
        if words[0] == "-m":
            assert importlib.util.find_spec(words[1]), words[1]
        for option in re.findall(r" (--[a-z-]+)", command):
            assert option in script, f"{words[0]} has no {option}"
    elif program == ".venv/bin/pip":
        assert words[0] == "install"
    else:
        assert marked, f"mark it as one of {MARKS}, or test it here"
    for word in words:
        if re.match(r"(params|requirements|lib/|tests/)[\w./-]*$", word):
            assert (ROOT / word).exists(), word
    for module in re.findall(r"-m (lib\.[\w.]+)", command):
        assert importlib.util.find_spec(module), module


def test_exit_codes_and_usage_are_in_the_runners_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "prepare" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# Makefile, CI, requirements


def test_make_help_lists_every_target_and_is_the_default():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", text_of("Makefile"), re.MULTILINE)[1].split()
    assert sorted(phony) == sorted(targets())
    for target in phony:
        assert f"make {target} " in shown
    assert len(text_of("Makefile").splitlines()) <= 80
    assert "runs" not in re.search(r"^clean:.*\n\t(.*)", text_of("Makefile"), re.MULTILINE)[1], (
        "make clean must never touch runs"
    )


def test_a_variable_that_make_does_not_know_is_refused():
    for wrong in ("Run", "PARAM", "WHEEL"):
        done = subprocess.run(
            ["make", "-n", "run", f"{wrong}=a b"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 2
        assert f"unknown variable {wrong}; expected some of PARAMS RUN" in done.stderr


def test_ci_runs_lint_and_tests_and_the_night_runs_the_slow_ones_too():
    assert "\nmake lint\n" in text_of(".ci/run")
    assert "\nmake test\n" in text_of(".ci/run")
    assert "run: make test-all\n" in text_of(".github/workflows/nightly.yml")
    assert "-m 'not slow'" in dry_run("test")
    assert "slow" not in dry_run("test-all")


def test_requirements_are_pinned_and_the_cpu_set_needs_no_gpu():
    pins = {}
    for name in ("requirements.txt", "requirements-cpu.txt"):
        lines = [line.split("#")[0].strip() for line in text_of(name).splitlines()]
        pins[name] = [line for line in lines if line and not line.startswith("-r")]
        for line in pins[name]:
            assert re.fullmatch(r"[\w.\-]+==[\w.]+", line), f"{name}: {line} is not pinned"
    gpu_only = {"unsloth", "torchvision", "timm", "bitsandbytes", "triton", "xformers"}
    assert not {line.split("==")[0] for line in pins["requirements-cpu.txt"]} & gpu_only
    assert "-r requirements-cpu.txt" in text_of("requirements.txt")


# ---------------------------------------------------------------------------------------------
# what the pages name


def anchors(page):
    """Return the anchors that GitHub makes from a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", text_of(page)):
        name, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / name).resolve() if name else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.relative_to(ROOT)), link


@pytest.mark.parametrize("page", PAGES)
def test_python_files_that_a_page_names_exist(page):
    for name in re.findall(r"(?<![\w./-])[\w./-]+\.py\b", text_of(page)):
        if name.startswith("runs/mine/"):
            continue  # a run's own file
        if "/" in name:
            places = (ROOT, ROOT / "lib", (ROOT / page).parent)
            assert any((place / name).resolve().exists() for place in places), name
        else:
            folders = (ROOT / "lib", ROOT / "tests")
            assert any(next(folder.rglob(name), None) for folder in folders), name


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_a_page_opens_with_what_it_answers(page):
    title, first = text_of(page).split("\n\n")[:2]
    assert title.startswith("# ")
    assert first.startswith("This page answers: ")


# ---------------------------------------------------------------------------------------------
# README


def test_readme_is_read_in_ten_minutes():
    assert len(text_of("README.md").splitlines()) <= 200
    assert len(text_of("README.md").split()) <= 2000


def test_limits_stand_before_the_details():
    headings = re.findall(r"^## (.*)$", text_of("README.md"), re.MULTILINE)
    assert headings.index("Limits and disclaimers") < headings.index("Where things are")
    opening = text_of("README.md").split("## ")[0]
    assert "Nothing these models say is medical advice" in re.sub(r"\n> ", " ", opening)


def test_figures_of_the_machine_table_stand_on_the_pages_that_measured_them():
    pages = ("tests/benchmarks/README.md", "params/README.md", "runs/examples/README.md")
    measured = "".join(text_of(page) for page in pages)
    table = text_of("README.md").split("## Your machine")[1].split("\n\n")[1]
    figures = [
        figure
        for row in table.splitlines()[2:]
        for cell in row.split("|")[3:5]
        for figure in re.findall(r"\d[\d.,]*\d|\d", cell)
    ]
    assert len(figures) > 10
    for figure in figures:
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?![.,]?\d)", measured), figure


def test_the_tree_has_every_folder_of_lib():
    tree = next(lines for _, lines in blocks("README.md") if lines[0].startswith("notebooks/"))
    named = [line.split("/ ")[0].strip() for line in tree]
    assert set(named) == {"notebooks", "params", "lib", "runs", "tests"} | {
        path.name for path in packages() if path.parent == ROOT / "lib"
    }


# ---------------------------------------------------------------------------------------------
# generated and checked lists


def test_parameter_table_is_generated():
    table = re.search(
        r"<!-- parameters: .*? -->\n(.*?)\n<!-- end -->", text_of("params/README.md"), re.DOTALL
    )[1]
    assert table == params.markdown_table(), (
        "run `.venv/bin/python -m lib.params` and paste its output"
    )


def test_params_page_names_every_file():
    for path in [*(ROOT / "params").glob("*.yaml"), *(ROOT / "params" / "launch").iterdir()]:
        assert f"]({path.relative_to(ROOT / 'params')})" in text_of("params/README.md")


def packages():
    """Return the folders of lib/ with modules."""
    return sorted({path.parent for path in (ROOT / "lib").rglob("*.py")} - {ROOT / "lib"})


def test_lib_page_names_every_folder_and_file_and_no_other():
    sections = re.split(r"^### `(.+?)/`.*\n", text_of("lib/README.md"), flags=re.MULTILINE)[1:]
    listed = [
        f"{folder}/{name}"
        for folder, body in zip(sections[::2], sections[1::2], strict=True)
        for name in re.findall(r"^- `(.+?)`: \S", body.split("\n## ")[0], re.MULTILINE)
    ]
    existing = []
    for folder in packages():
        inside = str(folder.relative_to(ROOT / "lib"))
        for path in folder.iterdir():
            if path.suffix == ".py" and path.name != "__init__.py":
                existing.append(f"{inside}/{path.name}")
            elif path.is_dir() and path.name != "__pycache__" and path not in packages():
                existing.append(f"{inside}/{path.name}/")
    assert not set(existing) - set(listed), "lib/README.md says nothing of these"
    assert not set(listed) - set(existing), "lib/README.md names what is not there"
    assert len(listed) == len(existing), "lib/README.md names a file twice"


def test_the_drawing_has_the_rows_of_the_contract():
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    drawing = re.search(
        r"<!-- layers: .*?-->\n(.*?)<!-- end -->", text_of("lib/README.md"), re.DOTALL
    )
    rows = [re.split(r" {2,}", line.strip())[0] for line in drawing[1].splitlines()]
    assert rows == layers


def test_benchmarks_and_drills_are_on_their_pages():
    for path in (ROOT / "tests" / "benchmarks").glob("*.py"):
        assert f"`{path.name}" in text_of("tests/benchmarks/README.md"), path.name
    for path in (ROOT / "tests" / "drills").glob("drill_*.py"):
        assert f"| {path.stem.removeprefix('drill_')} |" in text_of("tests/drills/README.md")


def test_a_value_with_quotes_is_one_word_of_the_shell():
    """And nothing of it is run."""
    evil = "it's ' ; echo x ; '"
    for target, name in (("run", "RUN"), ("run", "PARAMS"), ("compare", "RUNS"), ("exam", "EXAM")):
        words = shlex.split(dry_run(target, "RUN=a", f"{name}={evil}").splitlines()[-1])
        assert [word for word in words if word == evil or word.endswith(f"={evil}")], (target, name)
