"""Tell whether an answer only points elsewhere: links, or lists of resources, and no advice.

is_link_list("Who helps?", "See https://a.org")                          # True
is_link_list("Antidote?", "Naloxone. Source: https://a.org")             # False
"""

import re

from lib.common.words import WORDS

URL = re.compile(r"(?:https?://|www\.)[^\s<>\"'\])]+", re.I)
# <a href="https://a.org">NHS</a> and [NHS](https://a.org): text with a link behind it
ANCHOR = re.compile(
    r"<a\b[^<>]*?\bhref\s*=\s*[\"']?([^\"'\s<>]+)[^<>]*>([^<]*+(?:<(?!/a\b)[^<]*+)*+)</a\s*>", re.I
)
MARKDOWN_LINK = re.compile(r"\[([^\[\]\n]*+)\]\((https?://[^\s()]+)\)", re.I)
TAG = re.compile(r"</?[a-z][^<>]*>", re.I)
RESOURCES = re.compile(
    r"\b(?:resources (?:address|offer|about|from)|links|web ?(?:site|page)s|see also|"
    r"further reading|more information)\b",
    re.I,
)
SENTENCE = re.compile(r"\w{3}[.!?](?:\s|$)")
# "Press on it. Sources: ...": what comes before it is the answer
CITATION = re.compile(
    r"\b(?:sources?|references?|refs?|citations?|cited|adapted from|according to|from|via)"
    r"\b[^\w\n]*(?:(?:at|on|the)\b[^\w\n]*)*(?=\S{0,20}(?:https?://|www\.))",
    re.I,
)
# words that only lead to a link
POINTING = frozenset(
    "see visit click check read learn go find look here this these link links site sites website "
    "websites webpage page pages web article articles guide guidance guideline guidelines leaflet "
    "pdf homepage more further full additional other useful information info details detail "
    "resource resources source sources reference references ref refs via from available online "
    "please following also for about on at the a an and or of to in is are can you your out us our "
    "it its refer following below above contact http https www com org html".split()
)
POINTER = re.compile(
    r"\W*(?:please\s+)?(?:also\s+)?(?:see|visit|click|check|read more|learn more|go to|refer to|"
    r"for (?:more|further|full|additional|details|information|info)|"
    r"more (?:information|info|details)|further (?:information|reading)|"
    r"(?:more )?information (?:about|on)|you can find|find)\b",
    re.I,
)
MARK = "\0"  # stands where a link was


def is_link_list(question: str, answer: str) -> bool:
    """Tell whether an answer only points elsewhere.

    Such an answer consists of links and words that lead to them, or of lists of resources under
    headings. An answer of few words with its source behind it is none.
    """
    if "://" in answer or "www." in answer:
        return _only_links(question, answer)
    return _only_resources(answer)


def _only_links(question: str, answer: str) -> bool:
    anchored = bool(ANCHOR.search(answer) or MARKDOWN_LINK.search(answer))
    text = ANCHOR.sub(r"\2 \1 ", answer)
    text = TAG.sub(" ", MARKDOWN_LINK.sub(r"\1 \2 ", text))
    cited = CITATION.search(text)
    if cited and _content(text[: cited.start()]) and not URL.search(text[: cited.start()]):
        return False
    text = URL.sub(MARK, text)
    links = text.count(MARK)
    content = _content(text)
    if not links or not content:
        return bool(links)
    before = text[: text.find(MARK)].rstrip()
    asked = set(_words(question))
    after = re.split(r"[.!?](?:\s|$)", text[text.find(MARK) :], maxsplit=1)
    leads_only = (
        bool(POINTER.match(text))
        and len(content) < 8
        and not SENTENCE.search(before)
        and not _content("".join(after[1:]))
    )
    names_the_topic = len(content) < len(_words(text)) and set(content) <= asked
    if links == 1:
        return leads_only or (names_the_topic and before.endswith(":"))
    # several links: their titles are no advice, a text with links behind or within it is
    trails = not _content(text[text.find(MARK) :])
    if trails and not before.endswith(":") and not leads_only:
        return False
    runs_on = anchored and "\n" not in text.strip() and len(content) >= links * 2
    return len(_words(text)) < 4 * links and not SENTENCE.search(text) and not runs_on


def _words(text: str) -> list[str]:
    return [word for word in WORDS.findall(text.lower()) if not word.isdigit()]


def _content(text: str) -> list[str]:
    """Return the words that say something, where other words only lead to a link."""
    return [word for word in WORDS.findall(URL.sub(" ", text).lower()) if word not in POINTING]


def _only_resources(answer: str) -> bool:
    if "- " not in answer and "* " not in answer:
        return False
    pieces = [piece.strip() for piece in re.split(r"\n|[^\S\n]{2,}", answer) if piece.strip()]
    headings = [piece for piece in pieces if not piece.startswith(("- ", "* "))]
    return (
        0 < len(headings) < len(pieces)
        and all(heading.endswith(":") for heading in headings)
        and any(RESOURCES.search(heading) for heading in headings)
    )
