"""Tokens in the environment, printed by a cell, raised in a traceback, put into a parameter or a tracked file: none in any file of the
run, none on the terminal."""

import html
import json
import os

import tiny  # noqa: F401  (the path of lib and of the stand-in)

from helpers.standin import Tree

PLANTED = {
    "HF_TOKEN": "hf_" + "Planted" * 5,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MY_PASSWORD": 'correct horse "battery"',
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "GITHUB_TOKEN": "ghp_" + "a1B2" * 9,
}
UNNAMED = "glpat-" + "x9Y8" * 6  # of no variable: known by its form
EVERYTHING = f"' '.join(os.environ[k] for k in {sorted(PLANTED)}) + ' {UNNAMED}'"
WAYS = {
    "printed": f"print({EVERYTHING})",
    "printed to stderr": f"print({EVERYTHING}, file=sys.stderr)",
    "written past Python": f"os.write(1, ({EVERYTHING}).encode())",
    "printed in two pieces": "print(os.environ['HF_TOKEN'][:9], end=''); print(os.environ['HF_TOKEN'][9:])",
    "after a line's end, a tab, a colour": "print('x\\n' + os.environ['HF_TOKEN'] + '\\t' + os.environ['GITHUB_TOKEN'] + '\\x1b[31m' + "
    + repr(UNNAMED)
    + ")",
    "shown": f"from IPython.display import HTML, display; display({EVERYTHING}, HTML('<b>' + {EVERYTHING} + '</b>'))",
    "raised": f"raise RuntimeError({EVERYTHING})",
    "raised with a cause": f"try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    raise ValueError({EVERYTHING}) from error",
    "a mistake of the user": f"from lib.common.errors import UserError; raise UserError({EVERYTHING})",
    "warned": f"import warnings; warnings.warn({EVERYTHING})",
    "logged": f"import logging; logging.error('%s', {EVERYTHING})",
    "exit": f"sys.exit({EVERYTHING})",
    "killed after it": f"print({EVERYTHING}, flush=True); time.sleep(1); os.kill(os.getpid(), 9)",
}
CASES = [(way, stage) for way in WAYS for stage in ("prepare", "train")] + [
    (name, key) for name in PLANTED for key in ("base_model", "dataset")
]
TRIALS = len(CASES)


def drill(folder, trials):
    lost, every = [], CASES[:: max(1, len(CASES) // trials)]
    for number, (what, where) in enumerate(every):
        tree = Tree.make(folder / f"case-{number}")
        if what in WAYS:
            source = tree.root / f"{where}.py"
            source.write_text(f"{WAYS[what]}\n{source.read_text()}")
            code, out, err = _run(tree, where)
        else:
            code, out, err = _run(tree, "run", "--set", f"{where}='{PLANTED[what]}'")
            lost += [f"{what} as {where}: it was not refused ({code})"] * (
                code != 2 or tree.run.exists()
            )
        lost += [f"{what}, {where}: {text}" for text in _found(tree, out + err)]
    return len(every), lost


def _run(tree, *words):
    process = tree.start(*words, **PLANTED)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _found(tree, said):
    """Return where one of the tokens, or a long part of one, is."""
    parts = [
        value
        for whole in [*PLANTED.values(), UNNAMED]
        for value in (
            whole,
            json.dumps(whole)[1:-1],
            json.dumps(json.dumps(whole))[1:-1],
            html.escape(whole),
            whole[5:25],
        )
    ]
    found = ["on the terminal"] if any(part in said for part in parts) else []
    for path in (p for p in tree.root.glob("runs/**/*") if p.is_file()):
        content = path.read_bytes()
        found += (
            [f"in {os.path.relpath(path, tree.root)}"]
            if any(part.encode() in content for part in parts)
            else []
        )
    return found
