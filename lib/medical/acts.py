"""Recognise acts of first aid in a sentence, by the word lists of acts.yaml.

An act of acts.yaml has phrases such as

    @put / smear .. {butter / margarine} .. burn

`/` separates alternatives, `..` stands for up to seven words within a clause, and @put names a list
at the head of the file. A phrase matches any form of its words ("putting", "smeared"), because both
sides are stems (stems.py); `*` at a word's end stands for any ending. A thing in braces may also be
said as "it", if the sentence before or the question names it.

A match is a warning if the sentence negates it (negation.py) or a heading forbids it. What others
will do ("the doctors may open it") is neither.
"""

import functools
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import yaml

from lib.medical.negation import is_warning
from lib.medical.stems import Stemmed, stem
from lib.medical.wording import either

ACTS_FILE = pathlib.Path(__file__).with_name("acts.yaml")
GAP_WORDS = 7
# things that "it" may mean and that no act has in braces
OTHER_THINGS = "glucagon / kit / narcan / inhaler / spacer / defib / cling film / blanket"
# "put it", "rub a bit of it": the verb is near its pronoun, unlike "run water over it"
_PARTICLES = """up on in out off down back him her a bit little of all lot just into get to do with
have""".split()
_TIGHT = f"(?: (?:{'|'.join(_PARTICLES)})){{0,3}}"
# "cover it" means the wound, and not what covers it
_COVERING = frozenset("cover wrap coat pack press hold massag plaster".split())
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
# "that" and its like mean a thing only at the end of a clause: "put that on", not "that way"
_AT_ONCE = ("it", "them")
_AT_THE_END = ("that", "this", "those", "these", "both", "some", "one")
PRONOUNS = (*_AT_ONCE, *_AT_THE_END)
_PRONOUNS = (
    f"(?:{'|'.join(_AT_ONCE)}|(?:{'|'.join(_AT_THE_END)})"
    "(?= (?:[.,;:!?)—-]|and|on|out|in|off|up|down|away|back|now|first|straight)))"
)
# the gap between two parts of a phrase ends here: "put butter, not ice on the burn"
_GAP_ENDS = """but then not non less no noth nor neither never delay stop hesit forget wait can
could may might instead rather until because which when if unless while don't won't can't shouldn't
without avoid befor after""".split()
_GAP = rf"(?: (?!(?:{'|'.join(_GAP_ENDS)}) )[^ .,;:!?—…()-]+){{0,{GAP_WORDS}}}?"

_NEGATIVES = """stop | skip | forget | ditch | hold off | never mind | no | not | don't | do not
never | noth | nil | without | avoid | neither | must not | leave out | leave off
instead of | rather than | needn't | shouldn't | can't | mustn't | withhold | refrain from"""
_NEGATIVE = re.compile(f"{either(_NEGATIVES)} ")
# "do not skip the back blows" leaves nothing out (stems, after a phrase's own negative)
_UNDONE = re.compile(r" (?:skip|withhold|omit|leav out|miss out|delay|refus|keep|hesit|forget) ")

_OTHERS = either(r"""
    paramedics? | crews? | ambulance(?: crew| staff)? | doctors? | surgeons? | nurses? | hospitals?
    staff | professionals? | experts? | dentists? | vets? | clinics? | medics | dispatchers?
    call (?:taker|handler)s? | responders? | specialists? | team
""")
_WILL = r"(?:will|'ll|can|may|might|could|would|should)"
_BY_OTHERS = re.compile(rf"\b{_OTHERS},? (?:(?:there )?{_WILL}\b[^,;]{{0,40}})?$")
# what is told of and not ordered: "ice can burn", "people who drink", "if you turn it", "has taken"
_TOLD = re.compile(
    either(r"""
    (?<!you )\b(?:can|may|might|could|would)
    \b(?:that|which|who)(?: (?:you|he|she|they|it))?
    \b(?:if|when|whether) (?:you|he|she|they|it|someone|somebody)
    \b(?:has|had|have already|before|after)
""")
    + r"(?: \w+ly| already| just| also)* $"
)


class Pattern:
    """A regular expression that is compiled when it is first used: most of the acts' never are."""

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern

    def __getattr__(self, name: str) -> Any:
        compiled = re.compile(self.pattern)
        self.search, self.match, self.finditer = compiled.search, compiled.match, compiled.finditer
        return getattr(compiled, name)


class Phrase(NamedTuple):
    """A phrase of an act, for stems; `things` has the nouns of its braces."""

    said: Pattern  # with the things named
    pointed: Pattern | None  # with "it" for a thing
    things: tuple[Pattern, ...]


class Act(NamedTuple):
    """An act of acts.yaml."""

    id: str
    phrases: tuple[Phrase, ...]
    about: Pattern | None  # what question or answer must be about
    not_about: Pattern | None
    unless: Pattern | None  # not in the sentence
    warns_against: tuple[str, ...]
    any_of: tuple[str, ...]  # done if one of these is
    harm: bool  # harmful whoever asks
    assent: bool  # whether "yes" to a question that names the act advises it
    refused: tuple[Phrase, ...]  # "no" to a question that proposes one of these is this act
    by_name: bool  # whether to ask about one of its things is to propose it
    now: bool  # a later time or a change still to come does not count
    entry: dict[str, Any]  # as it stands in the file


class Match(NamedTuple):
    """Where an act stands in a sentence, and whether it is warned against there."""

    start: int  # in the sentence's stems
    end: int
    warned: bool


@functools.cache
def load_acts() -> dict[str, Act]:
    """Return the acts by their ids."""
    file = read_file()
    lists = file["lists"]
    return {entry["id"]: _compile_act(entry, lists) for entry in file["acts"]}


@functools.cache
def read_file() -> dict[str, Any]:
    """Return acts.yaml as it stands: its lists, and its acts."""
    file: dict[str, Any] = yaml.load(ACTS_FILE.read_bytes(), Loader=_LOADER)
    return file


def _compile_act(entry: dict[str, Any], lists: dict[str, str]) -> Act:
    def words(key: str) -> Pattern | None:
        return _compile(_slot(entry[key], lists)) if key in entry else None

    return Act(
        id=entry["id"],
        phrases=tuple(_compile_phrase(phrase, lists) for phrase in entry.get("said", [])),
        about=words("about"),
        not_about=words("not_about"),
        unless=words("unless"),
        warns_against=tuple(entry.get("warns_against", [])),
        any_of=tuple(entry.get("any_of", [])),
        harm=entry.get("harm", False),
        assent=entry.get("assent", True),
        refused=tuple(_compile_phrase(phrase, lists) for phrase in entry.get("no_to", [])),
        by_name=entry.get("by_name", False),
        now=entry.get("now", False),
        entry=entry,
    )


def _compile_phrase(phrase: str, lists: dict[str, str]) -> Phrase:
    said: list[str] = []
    things: list[Pattern] = []
    pointed = ""
    slots = [slot.strip() for slot in phrase.split("..")]
    for number, slot in enumerate(slots):
        pattern = _slot(slot.strip("{} "), lists)
        last = "?P<last>" if number == len(slots) - 1 else "?:"
        said.append(f"({last}{pattern})")
        gap = f"{_GAP} " if number else ""
        if slot.startswith("{"):
            near = f"{_TIGHT} " if number else ""
            it = f"(?P<thing{len(things)}>{_PRONOUNS})"
            things.append(_compile(pattern))
            pointed += f"({last}{gap}{pattern}|{near}{it})"
        else:
            pointed += f"{gap}({last}{pattern})"
    return Phrase(
        _compile(f"{_GAP} ".join(said)),
        _compile(pointed) if things else None,
        tuple(things),
    )


def _compile(pattern: str) -> Pattern:
    return Pattern(rf"(?<= ){pattern}(?= )")


def _slot(text: str, lists: dict[str, str]) -> str:
    """Return a pattern for alternatives such as `@put / smear on`."""
    return f"(?:{'|'.join(_stemmed(option) for option in options_of(text, lists))})"


def options_of(text: str, lists: dict[str, str]) -> Iterator[str]:
    """Yield the alternatives of a slot, with its lists unfolded."""
    for option in text.split("/"):
        name = option.strip()
        if name.startswith("@"):
            yield from options_of(lists[name[1:]], lists)
        else:
            yield name


def _stemmed(option: str) -> str:
    return " ".join(_stemmed_word(word) for word in option.replace("-", " ").split())


def _stemmed_word(word: str) -> str:
    if word == "_":
        return "[^ ]+"
    return rf"{re.escape(word[:-1])}[^ ]*" if word.endswith("*") else re.escape(stem(word))


# --------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """A sentence with what was said before it, as far as "it" can point there."""

    sentence: Stemmed
    forbidden: bool  # listed under a heading such as "Do not:"
    before: str  # stems of the sentence before, empty for the first
    question: str  # stems of the question


def find_act(act: Act, place: Place, phrases: Iterable[Phrase] | None = None) -> list[Match]:
    """Return where an act is named in a sentence, advised or warned against.

    What lifts a match as advice (`unless`) does not lift it as a warning. `phrases` are those of
    the act that are looked for, by default all.
    """
    stems = place.sentence.stems
    found: list[Match | None] = []
    for phrase in act.phrases if phrases is None else phrases:
        if phrase.said.search(stems):
            found += [_judged(place, match, act.harm) for match in _overlapping(phrase.said, stems)]
        if phrase.pointed and phrase.pointed.search(stems):
            for match in _overlapping(phrase.pointed, stems):
                if _points_at_thing(phrase, match, place):
                    found.append(_judged(place, match, act.harm))
    lifted = bool(found and act.unless and act.unless.search(stems))
    return [match for match in found if match and (match.warned or not lifted)]


def names_act(act: Act, place: Place) -> bool:
    """Tell whether a sentence names an act, in whatever sense."""
    stems = place.sentence.stems
    return any(
        phrase.said.search(stems)
        or any(
            _points_at_thing(phrase, match, place)
            for match in (_overlapping(phrase.pointed, stems) if phrase.pointed else ())
        )
        for phrase in act.phrases
    )


def _overlapping(pattern: Pattern, stems: str) -> Iterator[re.Match[str]]:
    match = pattern.search(stems)
    while match:
        yield match
        match = pattern.search(stems, match.start() + 1)


def _judged(place: Place, match: re.Match[str], harm: bool) -> Match | None:
    sentence = place.sentence
    start, end = sentence.start(match.start()), sentence.end(match.end())
    before = sentence.plain[:start]
    if _BY_OTHERS.search(before) or _TOLD.search(before):
        return None
    # a phrase that begins with "no" or "leave" is itself the warning
    negative = _NEGATIVE.match(match[0])
    if negative and harm and _UNDONE.search(match[0], negative.end() - 1):
        return None
    bad = start if negative else sentence.start(match.start("last"))
    warned = place.forbidden or is_warning(sentence.plain, start, end, bad)
    return Match(match.start(), match.end(), warned)


def _points_at_thing(phrase: Phrase, match: re.Match[str], place: Place) -> bool:
    """Tell whether each "it" of a match stands for the phrase's thing.

    It stands for the last thing named before it, which is looked for in the sentence, in the one
    before and in the question.
    """
    if match[0].split(" ", 1)[0] in _COVERING:
        return False
    for number, thing in enumerate(phrase.things):
        if match[f"thing{number}"] is None:
            continue
        near = f"{place.before}{place.sentence.stems[: match.start()]} "
        last = max((m.start() for m in _all_things().finditer(near)), default=None)
        if last is None:
            if not thing.search(place.question):
                return False
        elif not thing.match(near, last):
            return False
    return True


@functools.cache
def _all_things() -> Pattern:
    """Return a pattern for every thing in braces of any act."""
    patterns = {
        thing.pattern[len("(?<= )") : -len("(?= )")]
        for act in load_acts().values()
        for phrase in act.phrases
        for thing in phrase.things
    }
    patterns.add(_slot(OTHER_THINGS, {}))
    return _compile(f"(?:{'|'.join(sorted(patterns))})")


def is_about(act: Act, texts: Sequence[str]) -> bool:
    """Tell whether texts, as stems, are about what the act needs them to be about."""
    if act.about and not any(act.about.search(text) for text in texts):
        return False
    return not (act.not_about and any(act.not_about.search(text) for text in texts))
