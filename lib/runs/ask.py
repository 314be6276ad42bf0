"""Ask the first GGUF of a finished run a question in llama.cpp, with its Modelfile's system text.

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
from lib.params import Params
from lib.record.run_record import read_record

STAND_IN = (
    "This is the small Gemma 3 270M, a stand-in that shows the pipeline. "
    "Its answers are often wrong: do not follow them."
)
MODELFILE = "gguf/Modelfile"


def answer_question(folder: pathlib.Path, question: str, write: Callable[[str], None]) -> None:
    """Pass the answer to `write` as it is generated, then the disclaimer.

    Raise UserError without a question, a run, or a verified GGUF, and for too long a question.
    """
    if not question.strip():
        raise UserError(
            "The question is empty. Give one with Q=, for example "
            'make ask RUN=name Q="My hand is burnt. What do I do first?"'
        )
    _require_text(question)
    job, gguf = find_gguf(folder)
    modelfile = (folder / MODELFILE).read_text(encoding="utf-8")
    system = servers.parse_modelfile(modelfile)["system"]
    messages = turns.prepend_system([{"role": "user", "content": question}], system)
    context, longest = servers.answer_limits(job.max_seq_length)
    write(f"{files.format_path(gguf)}\n")
    if job.base_model.startswith("bundled:"):
        write(f"{STAND_IN}\n")
    write("\n")
    with llama.load_gguf(gguf, n_ctx=context) as engine:
        tokens = len(engine.tokenize(engine.render(messages)))
        _require_room(question, tokens, context - longest)
        ended = engine.stream_chat(messages, write, longest)
    if ended == "length":
        write(f"\n[cut after {longest} tokens: the answer did not end by itself]")
    write(f"\n\n{DISCLAIMER}\n")


def _require_text(question: str) -> None:
    """Raise UserError for bytes of the command line that are no text."""
    try:
        question.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"The question is not UTF-8 text: character {error.start + 1} is a byte that no text "
            f"has. Type it in a UTF-8 terminal."
        ) from None


def _require_room(question: str, tokens: int, room: int) -> None:
    """Raise UserError if a question, with what the template adds, leaves no room for the answer."""
    if tokens > room:
        raise UserError(
            f"The question is too long: {len(question):,} characters, with the system text "
            f"{tokens:,} tokens; at most {room:,} tokens fit before the answer, about "
            f"{len(question) * room // tokens:,} characters of such text. Ask in fewer words."
        )


def find_gguf(folder: pathlib.Path) -> tuple[Params, pathlib.Path]:
    """Return a run's parameters and its first GGUF, as the finished export recorded it.

    Raise UserError if there is none.
    """
    if not (folder / "run.json").is_file():
        raise UserError(
            f"`{files.format_path(folder)}` is not a run: it has no run.json. `make runs` lists "
            f"the runs; RUN= takes a name from that list."
        )
    job = params.load_recorded(folder)
    stages = read_record(folder / "run.json")["stages"]
    export = stages["export"]
    way_out = f"Run `make export RUN={folder.name}` first."
    if export["status"] != "finished":
        raise UserError(
            f"The export of run `{folder.name}` is {export['status']}, so there is no verified "
            f"GGUF to ask. {way_out}"
        )
    if export["inputs"].get("train") != stages["train"].get("output"):
        raise UserError(
            f"Run `{folder.name}` was trained again since its export, so its GGUF is another "
            f"adapter's. {way_out}"
        )
    kind = job.gguf_types[0]
    ggufs = [file for file in export["artifacts"] if file["path"].endswith(f"-{kind}.gguf")]
    modelfiles = [file for file in export["artifacts"] if file["path"] == MODELFILE]
    if len(ggufs) != 1 or len(modelfiles) != 1:
        raise UserError(
            f"The export of run `{folder.name}` recorded no {kind} GGUF with a Modelfile. {way_out}"
        )
    if trouble := files.find_damage(folder, [*ggufs, *modelfiles]):
        raise UserError(
            f"{trouble} in run `{folder.name}`, so the file is not the one that was verified. "
            f"{way_out}"
        )
    return job, folder / ggufs[0]["path"]
