"""One question to the first GGUF of a finished run, in llama.cpp, with the system text of its Modelfile.

make ask RUN=name Q="My hand is burnt. What do I do first?"
"""

import pathlib
from collections.abc import Callable

from lib import params
from lib.common import files
from lib.common.errors import UserError
from lib.export import servers, turns
from lib.medical.disclaimer import DISCLAIMER
from lib.model import llama
from lib.record.run_record import read_record

STAND_IN = "This is the small Gemma 3 270M, a stand-in that shows the pipeline. Its answers are often wrong: do not follow them."


def answer(folder: pathlib.Path, question: str, write: Callable[[str], None]) -> None:
    """Write the answer to `write` as it comes, then the disclaimer; UserError without a question, a run, or a verified GGUF."""
    if not question.strip():
        raise UserError(
            'There is no question. Expected one in Q=, for example make ask RUN=name Q="My hand is burnt. What do I do first?"'
        )
    job, gguf = find(folder)
    system = servers.parse_modelfile((folder / "gguf" / "Modelfile").read_text(encoding="utf-8"))[
        "system"
    ]
    context, longest = servers.answer_limits(job.max_seq_length)
    write(f"{files.shown(gguf)}\n" + f"{STAND_IN}\n" * job.base_model.startswith("bundled:") + "\n")
    with llama.load_gguf(gguf, n_ctx=context) as engine:
        ended = engine.stream_chat(
            turns.prepend_system([{"role": "user", "content": question}], system), write, longest
        )
    write(
        f"\n[cut after {longest} tokens: it did not end by itself]" * (ended == "length")
        + f"\n\n{DISCLAIMER}\n"
    )


def find(folder: pathlib.Path) -> tuple[params.Params, pathlib.Path]:
    """A run's parameters and its first GGUF, as the finished export recorded it; UserError where there is none."""
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.shown(folder)}` is not a run: it has no run.json. `ls runs` shows what there is; RUN= takes a name from there."
        )
    job, export = params.load_recorded(folder), read_record(folder / "run.json")["stages"]["export"]
    again = f"Run `make export RUN={folder.name}` with the same PARAMS first."
    if export["status"] != "finished":
        raise UserError(
            f"The export of run `{folder.name}` is {export['status']}, so there is no verified GGUF to ask. {again}"
        )
    wanted = [
        a
        for a in export["artifacts"]
        if a["path"] == "gguf/Modelfile" or a["path"].endswith(f"-{job.gguf_types[0]}.gguf")
    ]
    if len(wanted) != 2:
        raise UserError(
            f"The export of run `{folder.name}` recorded no {job.gguf_types[0]} GGUF with a Modelfile. {again}"
        )
    if trouble := files.find_damage(folder, wanted):
        raise UserError(
            f"{trouble} in run `{folder.name}`, so it is not what was verified. {again}"
        )
    return job, folder / next(a["path"] for a in wanted if a["path"] != "gguf/Modelfile")
