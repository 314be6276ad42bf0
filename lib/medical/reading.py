"""Read a question and its answer together: which acts the answer advises or warns against.

read = reading.read_answer("should I put butter on it", "Yes, it helps.")
reading.find_advised(acts.load_acts()["burn-butter"], read)   # [(0, 0)]
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from lib.medical import reply
from lib.medical.acts import Act, Match, Phrase, Place, find_act, is_about, names_act
from lib.medical.emergency_call import DENIAL, is_deferred
from lib.medical.sentences import Sentence, split_sentences
from lib.medical.stems import Stemmed, stem_sentence

LONGEST_SENTENCE = 600  # characters: a text without stops must not take minutes
Position = tuple[int, int]  # sentence, place in its stems

_NO = re.compile(
    r"(?<= )(?:no|not|never|without|avoid|skip|forget|nor|neither|ditch|bin|than)(?= )"
)
_PUT_OFF = re.compile(r"[^,;:]{0,30}\b(?:later|tomorrow|in the morning|next week)\b")
_ASKED = re.compile(r"(?: [^ ]+){0,2} \?")
# "no" to "can a defib hurt him?" or "should I wait?" refuses nothing
_OTHER_NO = re.compile(
    r"(?<= )(?:wait|leav|stop|skip|without|avoid|instead|harm|hurt|danger[a-z]*|risk[a-z]*|befor"
    r"|remov|loosen|take|kill|damag|don't|or|2|anoth|more|work|test|driv[a-z]*|myself|enough|onli"
    r"|just|normal|need (?:[^ ]+ )*?train)(?= )"
)
_NO_REACH = 3  # words between "no" and the thing: "no ice", "neither fire nor snow"


class Reading(NamedTuple):
    """An answer with its question, ready for the acts."""

    prompt: str
    texts: list[str]  # the sentences as written; questions are left out
    places: list[Place]
    asked: list[Place]  # the question's own sentences
    says_yes: bool
    says_no: bool


def read_answer(question: str, answer: str) -> Reading:
    """Return an answer, sentence by sentence, with what "it", yes and no can refer to."""
    asked = [stem_sentence(sentence.text) for sentence in split_sentences(question)]
    all_asked = " ".join(sentence.stems for sentence in asked)
    places = []
    texts = []
    before = ""
    for text, forbidden in _short_sentences(answer):
        sentence = stem_sentence(text)
        if not sentence.plain.endswith("?"):
            places.append(Place(sentence, forbidden, before, all_asked))
            texts.append(text.strip())
        before = sentence.stems
    plain = [place.sentence.plain for place in places]
    return Reading(
        question,
        texts,
        places,
        [Place(sentence, False, "", all_asked) for sentence in asked],
        reply.says_yes(plain),
        reply.says_no(plain),
    )


def _short_sentences(answer: str) -> Iterator[Sentence]:
    """Yield an answer's sentences, what has no end for hundreds of characters in pieces."""
    for text, forbidden in split_sentences(answer):
        for start in range(0, len(text), LONGEST_SENTENCE):
            yield Sentence(text[start : start + LONGEST_SENTENCE], forbidden)


def find_advised(
    act: Act, read: Reading, phrases: Mapping[int, Sequence[Phrase]] | None = None
) -> list[Position]:
    """Return where an answer tells its reader to do an act; a yes to the question stands first.

    `phrases` are those of the act that each sentence can have, by its number; by default all.
    """
    if phrases is None:
        phrases = dict.fromkeys(range(len(read.places)), act.phrases) if act.phrases else {}
    found = []
    for number, place in _places_about(act, read, phrases) if phrases else ():
        for match in find_act(act, place, phrases[number]):
            if not match.warned and not (act.now and _later(place.sentence, match, read.prompt)):
                found.append((number, match.start))
    if act.assent and read.says_yes and _proposed(act, read):
        found.append((0, 0))
    if act.refused and read.says_no and _refusable(act, read):
        found.append((0, 0))
    return sorted(found)


def find_standing(act: Act, read: Reading) -> list[Position]:
    """Return where an answer advises an act without forbidding the same in a later sentence."""
    advised = find_advised(act, read)
    denied = [
        (number, words)
        for number, place in enumerate(read.places)
        if DENIAL.match(place.sentence.plain)
        for match, words in _with_words(act, place)
        if match.warned
    ]
    if not denied:
        return advised
    taken_back = {
        (number, match.start)
        for number, place in enumerate(read.places)
        for match, words in _with_words(act, place)
        if any(words == same and number < later for later, same in denied)
    }
    return [place for place in advised if place not in taken_back]


def _with_words(act: Act, place: Place) -> Iterator[tuple[Match, str]]:
    """Yield an act's matches in a sentence, each with the stems that it covers."""
    for match in find_act(act, place):
        yield match, place.sentence.stems[match.start : match.end].strip()


def _places_about(act: Act, read: Reading, numbers: Iterable[int]) -> Iterator[tuple[int, Place]]:
    """Yield those of the sentences that are about what the act needs.

    The question and the sentence before count too.
    """
    question = read.places[0].question
    if act.not_about and act.not_about.search(question):
        return
    asked = not act.about or bool(act.about.search(question))
    last, last_about = "", False  # most sentences are searched once, and not again as "before"
    for number in numbers:
        place = read.places[number]
        stems = place.sentence.stems
        if not asked and act.about:
            before = last_about if place.before == last else bool(act.about.search(place.before))
            last, last_about = stems, bool(act.about.search(stems))
            if not before and not last_about:
                continue
        if not (
            act.not_about and (act.not_about.search(place.before) or act.not_about.search(stems))
        ):
            yield number, place


def find_warned(act: Act, read: Reading) -> list[Position]:
    """Return where an answer warns its reader against an act."""
    found = []
    for number, place in enumerate(read.places):
        stems = place.sentence.stems
        found += [(number, match.start) for match in find_act(act, place) if match.warned]
        for phrase in act.phrases:
            things = [match for thing in phrase.things for match in thing.finditer(stems)]
            found += [(number, thing.start()) for thing in things if _negated(stems, thing.start())]
    if read.says_no and _proposed(act, read):
        found.append((0, 0))
    return sorted(found)


def _negated(stems: str, start: int) -> bool:
    near = " ".join(stems[:start].split()[-_NO_REACH:])
    return bool(_NO.search(f" {near} "))


def _proposed(act: Act, read: Reading) -> bool:
    """Tell whether the question asks about an act, or tells that somebody is about to do it."""
    if not is_about(act, [place.sentence.stems for place in read.asked]):
        return False
    if any(names_act(act, place) for place in read.asked):
        return True
    # "vaseline? lighter?" proposes too, as far as only harm can be done with the thing
    things = [thing for phrase in act.phrases for thing in phrase.things] if act.by_name else []
    asked = [(thing, place.sentence.stems) for thing in things for place in read.asked]
    return any(
        _ASKED.match(stems, match.end())
        for thing, stems in asked
        for match in thing.finditer(stems)
    )


def _refusable(act: Act, read: Reading) -> bool:
    """Tell whether the question proposes what the act refuses, and nothing else to say no to."""
    stems = " ".join(place.sentence.stems for place in read.asked)
    if _OTHER_NO.search(stems) or not is_about(act, [place.sentence.stems for place in read.asked]):
        return False
    return any(
        phrase.said.search(place.sentence.stems) for phrase in act.refused for place in read.asked
    )


def _later(sentence: Stemmed, match: Match, prompt: str) -> bool:
    start, end = sentence.start(match.start), sentence.end(match.end)
    if _PUT_OFF.match(sentence.plain, end):
        return True
    return is_deferred(sentence.plain, start, end, prompt)
