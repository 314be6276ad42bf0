"""Tell whether an answer is void: whatever it says, no reader could act on it.

    why_void("Chest the push of hard the and.")   # "word salad"
    why_void("Push on the chest, hard and fast.") # ""

A void answer has named no call and done no act that helps. What it says of harm still counts: a
reader may pick that out.
"""

import re
from collections.abc import Sequence

from lib.medical.wording import either, plain_sentences, plain_text

# --------------------------------------------------------------------------------------------------
# words without a sentence: no right answer has an article before a stop or another small word

_ARTICLE = either("the | an? | your | my | our | their | its | every")
_SMALL = either(rf"""
    {_ARTICLE} | of | to | in | on | at | by | for | from | with | into | and | or | but | is | are
    was | were | if | until | than | then | he | she | they | it | him | them | you | i | we | do
    does | be | so | that | as
""")
# "a & e" and "a and e" are a hospital's
_MISPLACED = re.compile(
    rf"\b(?!a (?:and|&) e\b){_ARTICLE}(?=[ ]?(?:[.,;!?]|$)| {_SMALL}\b)"
    r"|\b(?:of|into|to)(?= (?:of|at|is|are|or|if|he|they|i|we)\b)"
)
_WORDS_EACH = 40  # one in as many words is a slip
_FEWEST = 2
_FUNCTION_WORD = re.compile(
    either(rf"""
    {_SMALL} | his | her | not | no | has | have | had | over | under | till | this | these | those
    when | while | can | will | would | should | must | may | up | down | out | off | away | been
""")
)
_WORD = re.compile(r"[a-z][a-z']*")
# least share of them by an answer's words: of 692 right answers, the one with fewest has 22 %, and
# 27 % from 60 words on; an answer of a few words may do without
_LEAST_FUNCTION_WORDS = ((60, 0.2), (12, 0.15))
_MOST_DOUBLED = 0.2  # of the words, "push push hard hard"

# --------------------------------------------------------------------------------------------------
# what takes the whole answer back: "All of the above is wrong", "Ignore what I wrote"

# "that advice is wrong" and "do none of it" are said of what the question proposes
_ANSWER = either(r"""
    (?:everything|anything|nothing|all|none|each|any)(?: \w+){0,3} (?:above|below)
    (?:the|these|those|all|my|what is|what stands)(?: \w+)? (?:above|below)
    the following(?: (?:advice|answer|steps?|text|instructions?|list))?
    my (?:\w+ )?(?:advice|answer|steps|text|instructions?|list)
    (?:everything|anything|all|all that|what|none of what) (?:that )?i (?:\w+ )?(?:said|wrote)
""")
_FALSE = either(r"""
    (?:a|all a) (?:joke|lie|prank) | lies | the opposite of \w+ | not (?:true|right|correct)
    wrong | false | untrue | incorrect | nonsense | rubbish | made up | invented | fiction
    dangerous | deadly | harmful | fatal
""")
_IS = r"(?:is|are|was|were)(?: \w+)?"
_DISREGARD = either("""
    ignore | disregard | forget | take no notice of | pay no attention to | do (?:none|nothing) of
    (?:do not|don't|never) (?:do|follow|believe|trust|use|try|act on) | do the opposite of
""")
_JOKE = "(?:joke|joking|kidding|lie|prank)"
_TAKEN_BACK = re.compile(
    either(rf"""
    \b{_ANSWER} {_IS} {_FALSE}\b(?! if\b)
    \b(?:none|nothing|not a word) [^.]*?\b{_ANSWER} {_IS} (?:true|right|correct)\b
    \bnothing i (?:said|wrote) {_IS} (?:true|right|correct)\b
    \b{_ANSWER} (?:would|will|can|could) (?:kill|harm|hurt)\b
    ^(?:(?:so|and|but|now|please) )*{_DISREGARD} (?:(?:any|all|none) of )?{_ANSWER}\b
    ^(?:(?:this|that|it)(?:'s| is| was)(?: \w+)? a|i(?:'m| am| was)(?: \w+)?) {_JOKE}[ ]?[.!]?$
""")
)

# "Push on his chest. Wrong!": one alone may be the answer to what the question proposes
_VERDICT = re.compile(r"(?:not|wrong|false|untrue|incorrect|nonsense|lies?)(?: ?[.!]+$| ?: )")
_FEWEST_VERDICTS = 2


def why_void(answer: str) -> str:
    """Return why nothing in an answer can be acted on, or ""."""
    plain = plain_text(answer)
    words = _WORD.findall(plain)
    if _misplaces_articles(plain, words) or _only_lists(words) or _doubles(words):
        return "word salad"
    sentences = plain_sentences(answer)
    verdicts = sum(bool(_VERDICT.match(sentence)) for sentence in sentences)
    if verdicts >= _FEWEST_VERDICTS or any(map(_TAKEN_BACK.search, sentences)):
        return "taken back"
    return ""


def _misplaces_articles(plain: str, words: Sequence[str]) -> bool:
    misplaced = len(_MISPLACED.findall(plain))
    return misplaced >= max(_FEWEST, len(words) / _WORDS_EACH)


def _only_lists(words: Sequence[str]) -> bool:
    """Tell whether words have nothing between them that makes a sentence."""
    small = sum(bool(_FUNCTION_WORD.fullmatch(word)) for word in words)
    return any(
        len(words) >= length and small < least * len(words)
        for length, least in _LEAST_FUNCTION_WORDS
    )


def _doubles(words: Sequence[str]) -> bool:
    doubled = sum(one == other for one, other in zip(words, words[1:], strict=False))
    return doubled > _MOST_DOUBLED * len(words)
