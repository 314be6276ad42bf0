r"""Find where an answer may end without a change of what the rest of it advises.

list(find_endings("Sit. Rest. But not if you feel sick.", 20))  # []: "not if" limits both

What a cut takes away may be the other half of a contrast, an exception, a warning or the next step;
then what is left advises something else. English words tell, in what goes and in what stays:

- advice stays only without what limits advice anywhere in what goes: not, but, if, only, children;
- what advises nothing may lose more, but not what takes it up (however, ...) or denies it (myth);
- nothing ends in a list, before or within a section headed "Never ...", or after "There are three".
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from lib.data.cleaning.lists import ITEM
from lib.medical.wording import either

# -------------------------------------------------------------------------------------------------
# words


def _words(phrases: str) -> re.Pattern[str]:
    return re.compile(rf"\b{either(phrases)}\b", re.I)


ADVICE = _words(r"""
    you | your | should | must | ought | need | needs | have to | has to | can be | may be | let
    try | take | takes | taking | taken | give | gives | giving | given | use | uses | used
    using | apply | applied | applying | put | place | press | hold | keep | call | seek | see
    go | rest | drink | eat | avoid | do | stop | start | begin | wait | wash | clean | rinse
    cool | warm | cover | wrap | remove | lay | lie | sit | stand | raise | lift | loosen | open
    check | ask | tell | bring | move | turn | tilt | pinch | push | pull | inject | insert
    swallow | chew | repeat | continue | increase | reduce | recommend\w* | advi[sc]\w*
    suggest\w* | treat\w* | therap\w* | dos(?:e|es|age|ing) | mg | mcg | g | ml | tablets?
    capsules? | drops? | daily | hourly | safe\w* | help\w* | reliev\w* | cur(?:e|es|ed|ing)
    prevent\w* | effective | medic\w* | drugs? | surgery | procedure | exercise\w* | important
    best | first aid | steps?
""")
LIMITS = _words(r"""
    not | \w+n't | \w+n’t | cannot | never | no | nor | neither | none | nothing | nobody
    without | avoid\w* | stop\w* | except\w* | unless | until | but | however | although | though
    yet | while | whereas | nevertheless | nonetheless | despite | instead | rather | otherwise
    only | just | if | when | whenever | whether | in case | provided | depend\w* | before
    other than | too | contraindicat\w* | caution\w* | careful\w* | warn\w* | danger\w* | harm\w*
    risk\w* | unsafe | toxic\w* | poison\w* | overdos\w* | allerg\w* | pregnan\w*
    breast-?feed\w* | child\w* | infants? | bab(?:y|ies) | newborns? | toddlers? | adults?
    elderly | older | younger | kidneys? | liver | emergenc\w* | ambulance | immediate\w*
    urgent\w* | doctors? | physicians? | hospitals? | seek | call\w* | \d{3} | side effects?
    adverse | maximum | minimum | max | min | exceed\w* | more than | less than | at least
    at most | up to | limit\w* | must | should | always | then | next | finally | lastly | second
    secondly | third | thirdly | fourth | steps? | afterwards? | follow\w* | correct\w*
    important\w* | note | remember | especially | particular\w* | hours? | minutes? | days?
    times | mg | mcg | ml | worse\w* | severe\w* | serious\w* | die | dies | death | fatal
    unlike
""")
# these deny what was said, whatever it was
DENIALS = _words(r"""
    myths? | misconceptions? | wrong\w* | false\w* | incorrect\w* | mistake\w* | mistaken | untrue
    not true | no evidence | outdated | obsolete | disproved | disproven | unproven | refuted
    sorry | apolog\w* | in fact | in reality | actually | contrary
""")
TAKES_UP = _words(r"""
    but | however | yet | still | nevertheless | nonetheless | although | though | even | except
    unless | only | otherwise | instead | rather | conversely | in contrast | by contrast
    on the other hand | on the contrary | whereas | while | or | nor | and | then | next | second
    secondly | third | thirdly | finally | lastly | after that | afterwards | if so | if not | if
    when | not | no | never | without | this is (?:not|no|because) | that is | these are not
    for example | other | others | another | none | few | some | less (?:commonly|often) | rarely
    sometimes | unlike | in other | in some | in rare | for others | as well | as a result
    because
""")
# what is not finished at the end of the sentence
_SEVERAL = either(
    "\\d+ | one | two | three | four | five | six | seven | eight | ten | several | many"
)
_PARTS = either("""
    steps | ways | things | rules | measures | stages | options | types | kinds | forms | groups
    signs | points | parts | phases | methods | reasons
""")
PROMISE = _words(rf"""
    on the one hand | firstly | the following | as follows | here (?:is|are) (?:how|what|some)
    there (?:is|are) (?:some|{_SEVERAL})
    {_SEVERAL} (?:\w+ )?{_PARTS}
""")
NEGATIVE = re.compile(
    r"\b(?:not|never|no|don['’]?ts?|avoid\w*|without|stop|myths?|wrong|warnings?)\b", re.I
)


# -------------------------------------------------------------------------------------------------
# sentences

WHOLE = re.compile(r"[.!。！][\"”’')\]]*(?:\[\d{1,3}(?:[,–-]\d{1,3})*\])?\Z")
# the last word of what only looks like a sentence: "e.g.", "p.o.", "max.", and "etc.", to be sure
ABBREVIATION = re.compile(
    r"(?:^|[\s(\[/])(?:\d+|[^\W\d_](?:\.[^\W\d_])*|approx|incl|excl|etc|resp|esp|max|min|dept|nos?|"
    r"figs?|tabs?|caps?|inj|susp|sol|oint|vol|refs?|eq|ch|sec|pp?|eds?|vit|temp|wt|ht|hrs?|mins?|wks?|"
    r"mos?|yrs?|secs?|drs?|mrs?|ms|prof|st|mt|sr|jr|inc|ltd|co|corp|tbsp|tsp|oz|lbs?|sq|ft|in|ca|cf|"
    r"vs|viz|al|eg|ie|spp?|var|conc|dil|freq|avg|dx|tx|rx|hx|sx|fx|pt|pts|bid|tid|qid|prn|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.[\"”’')\]]*\Z",
    re.I,
)
HEADING = re.compile(r"#{1,6} |\*\*[^*]*\*\*:?\Z|__[^_]*__:?\Z|.*[:：]\Z")
AHEAD = 4000  # characters after the last place for an end, where its list or section may go on
PAIRS = (("(", ")"), ("[", "]"), ("“", "”"), ("«", "»"))


class Line(NamedTuple):
    """A line of an answer, and what it is."""

    start: int
    end: int
    kind: str  # "" for an empty line, "item" (of a list or a table), "heading", or "text"


def find_endings(answer: str, room: int) -> Iterator[int]:
    """Yield where an English answer may end, among its first `room` characters, from the last.

    Each is the end of a whole sentence, or of a whole list.
    """
    limits = [match.start() for match in LIMITS.finditer(answer)]
    denials = [match.start() for match in DENIALS.finditer(answer)]
    advice, promise = (
        match.start() if match else len(answer)
        for match in (ADVICE.search(answer), PROMISE.search(answer))
    )
    # no limit may come after advice, no denial after anything, and no end after a promise
    last_limit = limits[-1] if limits else -1
    first = 1 + (denials[-1] if denials else -1)
    for end in reversed(_list_sentence_ends(answer[: room + AHEAD], room)):
        limited = advice < end <= last_limit
        follows = TAKES_UP.match(answer, _skip_marks(answer, end))
        if first <= end <= promise and not limited and not follows and _is_closed(answer[:end]):
            yield end


def _list_sentence_ends(answer: str, room: int) -> list[int]:
    """Return the ends of whole sentences and lists outside of sections like "Never ..."."""
    import sentencex  # only for answers that are too long

    lines = _read_lines(answer)
    below = _kinds_below(lines)
    sections = iter([*_list_negative_sections(answer, lines, below), (len(answer) + 1, 0)])
    start, stop = next(sections)
    ends = []
    for line, next_kind in zip(lines, below, strict=True):
        own = []
        end = line.start
        if line.kind == "item" and next_kind != "item":
            own.append(line.start + len(answer[line.start : line.end].rstrip()))
        for sentence in sentencex.segment("en", answer[line.start : line.end]):
            end += len(sentence)
            leads_on = next_kind == "item" and not answer[end : line.end].strip()
            if line.kind == "text" and not leads_on and _is_whole(sentence):
                own.append(end - (len(sentence) - len(sentence.rstrip())))
        while stop and stop <= line.start:
            start, stop = next(sections)
        ends += [end for end in own if end <= room and not start <= end < stop]
    return ends


def _is_whole(sentence: str) -> bool:
    text = sentence.strip()
    return bool(WHOLE.search(text)) and not ABBREVIATION.search(text)


def _read_lines(answer: str) -> list[Line]:
    lines: list[Line] = []
    start = 0
    for text in answer.split("\n"):
        lines.append(Line(start, start + len(text), _find_kind(text, lines)))
        start += len(text) + 1
    return lines


def _find_kind(text: str, before: list[Line]) -> str:
    bare = text.strip()
    if not bare:
        return ""
    if ITEM.match(bare) or bare.startswith("|"):
        return "item"
    # the further text of an item
    if text.startswith(" ") and before and before[-1].kind == "item":
        return "item"
    if HEADING.match(bare) or not re.search(r"[.!?。！？][\"”’')\]*_]*(?:\[[\d,–-]+\])?\Z", bare):
        return "heading"
    return "text"


def _kinds_below(lines: list[Line]) -> list[str]:
    """Return for each line the kind of the next one that is not empty; "" for the last."""
    kinds = []
    kind = ""
    for line in reversed(lines):
        kinds.append(kind)
        kind = line.kind or kind
    return kinds[::-1]


def _list_negative_sections(
    answer: str, lines: list[Line], below: list[str]
) -> list[tuple[int, int]]:
    """Return (start, end) of what is under a heading, or led in by a sentence, such as "Never:".

    It ends at the next heading; without one, it takes in the rest of the answer.
    """
    sections: list[tuple[int, int]] = []
    is_open = False
    for line, next_kind in zip(lines, below, strict=True):
        leads_in = line.kind == "text" and next_kind == "item"
        if is_open and line.kind == "heading":
            sections[-1] = (sections[-1][0], line.start)
            is_open = False
        is_head = line.kind == "heading" or leads_in
        if is_head and not is_open and NEGATIVE.search(answer[line.start : line.end]):
            sections.append((line.start, len(answer) + 1))
            is_open = True
    return sections


def _is_closed(text: str) -> bool:
    """Tell whether brackets, quotation marks, bold text and code are closed in a text."""
    return (
        all(text.count(opener) == text.count(closer) for opener, closer in PAIRS)
        and text.count('"') % 2 == 0
        and text.count("**") % 2 == 0
        and text.count("```") % 2 == 0
    )


def _skip_marks(answer: str, end: int) -> int:
    """Return where the next words begin, after blanks, bullets and the like."""
    match = re.compile(r"[\W_]*").match(answer, end)
    return match.end() if match else end
