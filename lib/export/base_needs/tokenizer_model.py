"""Make the tokenizer.model that llama.cpp's converter reads, from a folder's tokenizer.json.

    (staged / "tokenizer.model").write_bytes(tokenizer_model.make(folder))

transformers 5 saves no tokenizer.model. A byte-fallback BPE such as Gemma's says the same in both
files, if a piece's place among the merges is its score, and each way to split it in two is there.
What is made is compared with tokenizer.json on hard texts before anything uses it.
"""

import collections
import re
from pathlib import Path
from typing import Any

import numpy as np

from lib.common import files
from lib.data import chat
from lib.export.base_needs import odd_texts

TEXTS = 300  # made-up texts on which both tokenizers must agree
SEED = 3407
SPACE = "\u2581"  # how sentencepiece writes a space
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPACES_ONLY = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# it does nothing, since no space is left to split at
NO_SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}
PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
NAMED = {"pad_id": "pad_token", "eos_id": "eos_token", "bos_id": "bos_token", "unk_id": "unk_token"}


class CannotMake(Exception):
    """Why no tokenizer.model with the same ids can be made, in words."""


def make(folder: Path) -> bytes:
    """Return a tokenizer.model that gives the ids of a folder's tokenizer.json.

    Raise CannotMake unless tokenizer.json is a BPE that sentencepiece can express, and both give
    the same ids for every text that is compared.
    """
    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    settings = files.read_json(folder / "tokenizer_config.json", "The tokenizer's configuration")
    _require_expressible(tokenizer)
    pieces = _order_pieces(tokenizer)
    scores = _score_pieces(tokenizer["model"])
    compared = _encode_model(tokenizer, pieces, scores, settings, parse_control=True)
    _require_same_ids(compared, folder / "tokenizer.json")
    return _encode_model(tokenizer, pieces, scores, settings)


def find_strangers(folder: Path) -> list[str]:
    """Return the pieces of a folder's tokenizer.model that tokenizer.json has not at their ids.

    Added tokens do not count: the converter takes their names from tokenizer.json. Nor do bytes:
    transformers names one of Gemma's by the tab that it stands for.
    """
    from sentencepiece import SentencePieceProcessor  # 20 MB that only these checks need

    tokenizer = files.read_json(folder / "tokenizer.json", "The tokenizer")
    added = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = tokenizer["model"].get("vocab", {})
    try:
        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except (RuntimeError, OSError) as error:
        return [f"none can be read ({str(error)[:100]})"]
    known = {number: piece for piece, number in vocabulary.items()}
    return [
        f"{pieces.id_to_piece(number)!r} at {number}"
        for number in range(pieces.get_piece_size())
        if not (number in added or pieces.is_byte(number))
        and known.get(number) != pieces.id_to_piece(number)
    ]


# --------------------------------------------------------------------------------------------------
# what sentencepiece can express


def _require_expressible(tokenizer: dict[str, Any]) -> None:
    """Raise CannotMake for a tokenizer that does more than merge characters and bytes."""
    model = tokenizer["model"]
    if model.get("type") != "BPE" or not model.get("byte_fallback"):
        raise CannotMake(f"its model is {model.get('type')} without byte fallback, not Gemma's BPE")
    if odd := [name for name in PLAIN if model.get(name)]:
        raise CannotMake(f"its model sets {', '.join(odd)}")
    if model.get("unk_token") not in model["vocab"]:
        raise CannotMake("it has no unknown token")
    if tokenizer.get("normalizer") != SPACES_ONLY:
        raise CannotMake("its normaliser does more than write spaces as U+2581")
    split = tokenizer.get("pre_tokenizer")
    if split and {key: split.get(key) for key in NO_SPLIT} != NO_SPLIT:
        raise CannotMake(f"it splits texts before merging ({split.get('type')})")
    for token in tokenizer["added_tokens"]:
        if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
            raise CannotMake(f"its added token {token['content']!r} takes the spaces around it")


def _order_pieces(tokenizer: dict[str, Any]) -> list[str]:
    """Return all tokens by id; raise CannotMake where an id is missing, or has two tokens."""
    tokens = {number: piece for piece, number in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens |= added
    if sorted(tokens) != list(range(len(tokens))):
        raise CannotMake(f"its {len(tokens)} ids are not 0 to {len(tokens) - 1}")
    pieces = [tokens[number].replace(" ", SPACE) for number in range(len(tokens))]
    [(likeliest, count)] = collections.Counter(pieces).most_common(1)
    if count > 1:
        raise CannotMake(f"it has the token {likeliest!r} twice")
    return pieces


def _score_pieces(model: dict[str, Any]) -> dict[str, float]:
    """Return {piece: score}, higher for what is merged earlier.

    sentencepiece merges two neighbours into the best piece, however that is split. So all splits of
    a piece must be among the merges, one after the other; otherwise raise CannotMake.
    """
    vocabulary = model["vocab"]
    scores: dict[str, float] = {}
    splits: dict[str, int] = {}
    last = ""
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        piece = left + right
        if piece != last and piece in scores:
            raise CannotMake(f"its merges into {piece!r} do not follow each other")
        scores.setdefault(piece, -float(len(scores)))
        splits[piece] = splits.get(piece, 0) + 1
        last = piece
    for piece, count in splits.items():
        cuts = range(1, len(piece))
        known = sum(piece[:cut] in vocabulary and piece[cut:] in vocabulary for cut in cuts)
        if piece not in vocabulary or known != count:
            raise CannotMake(f"its merges into {piece!r} are {count} of {known} possible ones")
    return scores


# --------------------------------------------------------------------------------------------------
# the file


def _encode_model(
    tokenizer: dict[str, Any],
    pieces: list[str],
    scores: dict[str, float],
    settings: dict[str, Any],
    parse_control: bool = False,
) -> bytes:
    """Return a sentencepiece model; `parse_control` makes it find control tokens in texts too."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined] # made at its import
    kinds = proto.SentencePiece
    special = {token["id"]: token["special"] for token in tokenizer["added_tokens"]}
    unknown = tokenizer["model"]["unk_token"]
    for number, piece in enumerate(pieces):
        if piece == unknown:
            kind = kinds.UNKNOWN
        elif number in special:
            control = special[number] and not parse_control
            kind = kinds.CONTROL if control else kinds.USER_DEFINED
        else:
            kind = kinds.BYTE if BYTE.fullmatch(piece) else kinds.NORMAL
        # a piece that no merge makes is a character, whose score is never compared
        score = scores.get(piece, -float(len(scores) + number)) if kind == kinds.NORMAL else 0.0
        proto.pieces.add(piece=piece, score=score, type=kind)
    ids = {piece: number for number, piece in enumerate(pieces)}
    trainer = proto.trainer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(pieces)
    trainer.byte_fallback = True
    for field, name in NAMED.items():
        setattr(trainer, field, ids.get(chat.token_text(settings, name), -1))
    trainer.unk_id, trainer.unk_piece = ids[unknown], unknown
    normalizer = proto.normalizer_spec
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = False
    normalizer.remove_extra_whitespaces = False
    return bytes(proto.SerializeToString())


def _require_same_ids(model: bytes, tokenizer_file: Path) -> None:
    """Raise CannotMake at the first text for which the two tokenizers give other ids."""
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer

    try:
        made = SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise CannotMake(f"sentencepiece refuses its pieces ({error})") from None
    fast = Tokenizer.from_file(str(tokenizer_file))
    random = np.random.default_rng(SEED)
    texts = [*odd_texts.HARD, *(odd_texts.make_up_text(random) for _ in range(TEXTS))]
    for text in texts:
        # sentencepiece takes it for a space even inside a token of spaces; llama.cpp, with which
        # parity/compare.py compares the same texts, does not
        text = text.replace(SPACE, "")
        if made.encode(text) != fast.encode(text, add_special_tokens=False).ids:
            raise CannotMake(f"what is made of it gives other ids for {text[:60]!r}")
