"""Tell whether an answer says yes or no to what its question proposes.

    says_yes(["Yes, go ahead."])     # True: the question's proposal becomes the answer's advice
    says_no(["Neither: both burn."]) # True: the answer warns against it

"Yes, press here" is no assent to all that the question proposes: the order that follows says
itself what to do.
"""

import re
from collections.abc import Sequence

from lib.medical.wording import either

SENTENCES = 3  # an answer says yes or no in its first sentences

_WHO = either(r"""
    he | she | they | you | (?:your|the|her|his) (?:\w+ ){0,2}\w+
""")
_PRAISED = "(?:good|great|fine|sensible) (?:idea|thinking|plan|call|shout|move|instinct)"
_FINE = either("""
    right | fine | ok | okay | correct | alright | all right | a good idea
    a great idea | good idea | the right (?:thing|move|idea)
""")
_YES = either(rf"""
    yes | yeah | yep | yup | aye | sure(?: thing)? | (?:of )?course(?: you can)? | absolutely
    definitely | certainly
    by all means | (?:a )?{_PRAISED} | go ahead | go on(?: then)? | go for it
    exactly | correct | spot on
    do (?:it|that|so|both|exactly that) | (?:that|it)(?:'s| is) {_FINE}
    (?:{_WHO}|[a-z]+)(?:'s|'re| is| are) (?:quite |absolutely |spot )?(?:right|correct|on)
    (?:that|it) (?:will|would|should|does|can|might) (?:\w+ )?(?:help|work|do it|do the trick)
    (?:that|it) (?:will|would|should) be fine | not a (?:bad|terrible) idea | no problem
    (?:that|it) (?:helps|works) | no harm in (?:that|it|trying) | worth a (?:try|go|shot)
    why not | please do | (?:you )?(?:can|should|may) do (?:that|it|so|both)
    yes,? you (?:can|should|may) | you (?:can|should|may)(?=$|[.,!]) | listen to {_WHO}
    do (?:as|what) {_WHO} (?:says?|suggests?|said|wants?) | happy to | i would(?=$|[.,!])
    i'd do that | keep doing that(?=$|[.,!])
    (?:{_WHO}|[a-z]+) knows? best | good
    let (?:him|her|them)(?: do it)?(?=$|[.,!]) | (?:either|both) works?
""")
_NO = either(rf"""
    no(?: way| chance| need)? | (?:god|hell|heck|gosh|oh god),? no | nope | nah | neither | never
    none | don't bother | not worth it | no point
    please don't | please do not | don't | do not | stop
    absolutely not | definitely not | certainly not | not (?:that|this|at all|now|yet|a good idea)
    (?:a |that's a |that is a )?(?:bad|terrible|dangerous) idea | {_WHO}(?:'s|'re| is| are) wrong
    that(?:'s| is) (?:a myth|wrong|dangerous|not (?:right|true|safe))
    leave (?:both|it|them|that) (?:alone|out|be) | (?:do )?none of (?:that|it|those) | not a chance
    (?:do not|don't) do (?:any of )?(?:that|it|those|either) | no to (?:both|all of that|either)
    tell (?:\w+ ){1, 2}(?:not to|no|to stop|to leave it) | i wouldn't | wrong way(?: round)?
""")
_FILLER = r"(?:(?:please|now|so|well|oh|yes|right|ok|okay|first|straight away|quickly)\b[ ,.!]*)*"
_ENDS = r"[ ]*(?:$|[.,!;:—–-]|(?=and\b))"
_START_YES = re.compile(rf"^{_FILLER}(?:{_YES}{_ENDS}[ ]*)+")
_START_NO = re.compile(rf"^{_FILLER}{_NO}{_ENDS}")
# what may follow a yes that is meant for the whole proposal
_MORE = re.compile(
    either(r"""
    $ | (?:and|then|it|that|this|they|these|he|she|because|as|since|so|which|there)\b
    .*\b(?:never|won't|wouldn't|can't) (?:hurt|harm)
    you (?:can|should|may)\b | (?:carry on|keep going|keep at it)\b
    (?:\w+ly|but|just|only|with|while|in one|straight|quick|quicker|nice and|safe|natural)\b
    (?:\w+ )?(?:teaspoons?|spoons?|spoonfuls?|sips?|drops?|tablets?)\b | go\b\W*$ | stop\b
    leave it to\b | skip it\b | works?\b | get (?:him|her) in\b
    an? (?:\w+ )?(?:one|bit|drop|few|couple)\b
    (?:the )?\w+ (?:will|helps?|is|are|works?|does|neutrali[sz]es|draws?|keeps?|stops?|gets?)\b
""")
)


def says_yes(sentences: Sequence[str]) -> bool:
    """Tell whether an answer's first sentences, as plain text, assent to a proposal."""
    return any(_assents(sentence) for sentence in sentences[:SENTENCES])


def _assents(sentence: str) -> bool:
    match = _START_YES.match(sentence)
    return match is not None and bool(_MORE.match(sentence[match.end() :].strip()))


def says_no(sentences: Sequence[str]) -> bool:
    """Tell whether an answer's first sentences, as plain text, reject a proposal."""
    return any(_START_NO.match(sentence) for sentence in sentences[:SENTENCES])
