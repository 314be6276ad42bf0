"""Tell whether a sentence warns against what a rule of harmful_advice.json matched in it.

A warning negates it ("do not put butter on a burn"), keeps away from it ("without rubbing"),
reports it as the belief of others ("people used to put butter on burns"), describes its harm
("rubbing can tear the skin") or rejects it afterwards ("..., but this is not recommended").
"""

import re

from lib.medical.wording import either

# --------------------------------------------------------------------------------------------------
# words before the match that negate it

_BAD = either("""
    unsafe | dangerous | harmful | unwise | wrong | useless | a mistake | fatal | deadly | a crime
    a sin | madness | foolish | stupid | silly | illegal | pointless
""")
CALLED_WRONG = either(rf"""
    (?:is|are|be|was|were|it's) (?:\w+ ){{0,2}}?{_BAD}(?: of you)? to
    only an? (?:fool|idiot|madman|murderer) (?:would|will|could)
""")
# these negate a verb in any form: "do not rub"
_NOT_WORDS = either(rf"""
    not | never | (?:do|ca|wo|should|does|is|must|did|are)nt | cannot | nor | neither | nobody
    no (?:one|longer|need|reason|benefit|time|point|use|hurry)
    {CALLED_WRONG}
    (?:under|in|at|by|on) no \w+  # "under no circumstances"
    nothing | rarely | seldom | forbidden
    resist (?:the |any )?(?:urge|temptation) | (?:worst (?:thing|idea)|mistake) (?:is|would be) to
    stop (?:any(?:one|body)|him|her|them|people) (?:who )?(?:wants?|tries|trying|wanting) to
""")
_NOT = re.compile(rf"\b{_NOT_WORDS}\b|n't\b|[❌🚫✗✘]")

# these keep away from a noun or an -ing form, and reach across commas: "avoid ice, butter or oil"
_FAR = either(r"""
    avoid(?:ing|s|ed)? | refrain(?:ing)? from | against | discourag\w+ | beware of | steer clear of
""")
# these do not reach across a comma: "without rubbing", "instead of ice"
_NEAR = either(r"""
    without | instead of | than | no | stop | far from | skip(?:ping)? | never mind | ditch | scrap
    (?<!n't )(?<!not )forget (?:about|the|that|any|your|his|her) | hold off | keep from
    (?:prevent|keep)(?:s|ing)? (?:\w+ ){1,3}from
    (?:risk|danger|hazard|complication|consequence|effect|harm)s? of
""")
_AVOID = re.compile(rf"\b(?:(?P<far>{_FAR})|{_NEAR})\b")

# the reach of a negation ends here: "do not run about but put butter on it"
_BREAK = re.compile(
    either(r"""
    \b(?:but|instead(?! of)|then|until|before|unless|except|because|so|which|otherwise)\b
    [:—–] | [ ]-[ ] | …
    , and\b(?! (?:never|not|nor)\b)
    \band (?:the|you|it|they|this|a|should)\b
""")
)
# "avoid letting her rub it" keeps away from a verb too
_HELPER = re.compile(r"\b(?:try|attempt|hav|lett|mak|allow|ask|tell|help)ing\b")
_BY = re.compile(r"\bby\b(?! the )")
_DOING = re.compile(r" \w+ing\b")

# a negation of these urges: "do not hesitate to put"
_HARMLESS_NEGATED = either(r"""
    only | just | too late | hesitate | forget | fail | be (?:afraid|scared|shy|alarmed) | worry
    wait(?! to see\b) | panic | delay | neglect | lose | stop
    waste(?! (?:any |your )?time (?:\w+ing|on|with|to)\b)
    breath(?:e|es|ing) | responding | trained
""")
_EMPTY = re.compile(rf" {_HARMLESS_NEGATED}\b(?! or\b)")
# the negation belongs to a condition: "if it does not stop, put"
_CONDITION_OPENER = either("""
    if | when | while | in case | although | though | since | unless | until | where | once | as
""")
_CONDITION_VERB = either(r"""
    (?:is|are|does|did|has|have|can|was|were|will) ?
    (?:you|they|we|there|symptoms) (?:do|are) ?
    if[ ] | can
""")
_CONDITION = re.compile(
    rf"\b(?!as long as)(?<!long ){_CONDITION_OPENER}\b[^,]*?\b{_CONDITION_VERB}$"
)
# ... unless what is negated there is the advice itself: "when it is not safe to put"
_JUDGED = re.compile(
    r" (?:recommended|advi[sc]\w+|safe|necessary|appropriate|a good idea|wise|correct)\b"
)
# "do not cut, suck or ice the bite" negates after the comma too; "do not panic, sit down" does not
_LISTED_VERB = either(r"""
    (?:use|apply|put|give|try|take|rub|massage|suck|cut|induce|tilt|hold|pop|eat)
    \w+ (?:it|them|him|her|the|an?|any\w*|some\w*|your|his|their)
""")
# so does "not give food, drink or aspirin" after a comma
_LIST_WORDS = r"(?: (?!(?:and|but|then|just|instead|it|him|her|them)\b)[\w'-]+){1,5}"
_LIST = re.compile(rf"{_LIST_WORDS}(?:,{_LIST_WORDS})+?,? n?or ")
_LISTED = re.compile(rf"\bn?or (?:to |try to |attempt to |even )*{_LISTED_VERB}\b")

# --------------------------------------------------------------------------------------------------
# what others believe or did in the past

_OTHERS = either(r"""
    people | friends? | grand\w+ | relatives | someone | they | websites? | movies | films | books
""")
_SAY = either(r"""
    says? | said | tells? | told | claims? | suggests? | believed? | thinks? | thought
""")
# "In a film the hero pushes on the chest", "Last year my uncle did this: "
_IN_A_STORY = either(r"""
    ^in (?:an?|the|that|some|my) (?:\w+ )?(?:film|movie|novel|story|dream|game|joke|play)
    ^(?:last|the other) (?:year|month|week|summer|winter|spring|autumn|day)
    in the old days | ^once upon a time | ^i wonder (?:if|whether)
    ^in an?(?:other| different) (?:emergency|case|situation|prompt)(?: (?:than|from) yours)?
""")
# "many people should call": an order to them, no belief of theirs
_NO_MODAL = r"(?! (?:can|should|need|must)\b)"
_ONCE_DONE = either(r"""
    thought | recommended | advised | common | commonly | taught | used | given | kept | told | said
""")
_OLD_TEACHING = either(r"""
    advice | books? | guides? | first aid | remed | practice | method | belief | teaching | idea
""")
_WHO_USED_TO = either(r"""
    people | doctors | parents | we | books | guides | guidelines | first aiders | advice
    it | which | that
""")
BELIEF = re.compile(
    either(rf"""
    \bmyth | \bmisconception | \bold wives
    \b(?:some|many|most|other) (?:people|parents|books|guides|films|sources)\b{_NO_MODAL}
    \bpeople (?:often|sometimes|may|still)\b
    \b{_OTHERS}(?: of \w+)? (?:(?:may|might|will|would|often|still|also|have) )*{_SAY}\b
    \bsome (?:(?:may|might|will|would|even) )*say\b | \b{_IN_A_STORY}\b
    \byou (?:may|might) (?:hear|read|have (?:heard|read|seen))\b
    \bi (?:\w+ ){{0,2}}(?:read|heard|learned)\b
    \btold (?:me|us)\b | \btempt(?:ing|ed)\b
    \b{_WHO_USED_TO} (?:once |long )?used to\b
    \bused to be\b | \bin the past\b | \bhistorical
    \b(?:once|formerly|previously|traditionally|long) {_ONCE_DONE}\b
    \b(?:old|older|outdated|traditional|folk|wrong) {_OLD_TEACHING}
    \bcommon (?:mistake|error) | \b(?:mistake|error)s? (?:is|are|include|people)\b
    \bhealers?\b
    \b(?:was|were|been|always) (?:always |often )?(?:taught|told)\b
    \b(?:decades|(?:many|long|hundred) years) ago\b
""")
)

# --------------------------------------------------------------------------------------------------
# what rejects the match after it

_REJECTING = either(r"""
    not | never | no longer | myths? | dangerous | harmful | outdated | obsolete | unsafe
    no (?:business|place|role|use|good|point) | pointless | legend | nonsense
    unnecessary | unhelpful | useless | ineffective | discouraged | contraindicated | avoided
    rejected | wrong | risky | counterproductive | mistakes? | bad
""")
_VERDICT = either(rf"""
    \b(?:is|are|was|were|be|been|it's|that's|used to be)(?: \w+){{0,3}}? {_REJECTING}\b
    \b(?:is|are|was|were|do|does|did|should|must|can|will|would)(?: not|n't)\b
    \b(?:has|have) no (?:business|place|role)\b
    \bcannot\b | \bno longer\b | \bnever\b | \bmyth\b | \boutdated\b
""")
_JUDGE = either(r"""
    it | this | that | these | those | they | doing | such | experts? | doctors? | modern | current
    guid\w+
""")
_NOT_ADVISED = either(r"""
    not (?:recommended|advised|safe|correct|helpful)
    no longer | myths? | outdated | obsolete | harmful | dangerous | wrong | discouraged
""")
# "press on it, which I would not do"
_WHOEVER = "(?:i|you|we|nobody|no one)"
REFUSED_AFTER = (
    rf"[^,;]{{0,60}}, which {_WHOEVER} (?:would|should|must|may|can)(?: not|n't| never)\b"
)
_REJECTED = re.compile(
    either(rf"""
    {REFUSED_AFTER}
    [^,;]{{0,40}}?,? (?<!even )(?:but|although|though|yet) {_JUDGE}\b.{{0,60}}{_VERDICT}
    [^,;]{{0,40}},? but (?:it )?(?:drops|lowers|cools|makes|actually|harms|causes|does)\b
    (?:[^,;]{{0,40}}, which|[^,]{{0,25}}?)\b (?:is|are|was|were)(?: \w+){{0,2}}? {_NOT_ADVISED}\b
""")
)

# --------------------------------------------------------------------------------------------------
# "rubbing it can tear the skin": an -ing form as subject describes, unless the sentence praises it

_NO_VERB = r"(?!(?:b|f|w|s|c|d)?(?:ring|sling|ling|ting|wing|during|(?:no|any|every|some)thing)\b)"
_GERUND = re.compile(rf"(?:(?!apply)\w+ly )?{_NO_VERB}\w+ing\b(?! (?:should|can|may|must)\b)")
_BEFORE_SUBJECT = either("""
    about | trouble with | problem with | danger of | because | since | that | as | but | why
    although | while | however | and | or | if | when
    yes | no | trying to | attempting to | simply | just | even
""")
# "holding a baby by the feet can injure it": the subject begins before the match
_GERUND_BEFORE = re.compile(
    rf"(?:^|[,:)] ?|\b{_BEFORE_SUBJECT} )(?:\w+ly )?{_NO_VERB}\w+ing\b[^,:;]*$"
)
_SUBJECT = re.compile(rf"(?:^|[,:)] ?|\b{_BEFORE_SUBJECT} )(?:\w+ly )?$")
_NO_SUBJECT_WORDS = either(r"""
    by | includ\w+ | involv\w+ | consist\w* | recommend\w* | suggest\w* | such as | try | consider
    start | begin | keep | worth
""")
_NO_SUBJECT = re.compile(rf"\b{_NO_SUBJECT_WORDS}\b")
_PRAISE_WORDS = either(r"""
    helps? | reliev\w+ | reduc\w+ | restor\w+ | brings? | improv\w+ | works? | sooth\w+
    recommended | best | effective | stops? | prevents? | lowers? | eas(?:es?|ing) | removes?
    gets? | settles? | safe | useful | good | important | essential | necessary | keeps? | saves?
    cures? | heals? | cools? | warms? | should | will | steady | numbs? | cleans? | draws? | sobers?
    neutrali[sz]es? | wakes? (?:him|her|them) | revives? | perks? | does the trick | sorts?
    fix(?:es)? | calms?
""")
_PRAISE = re.compile(rf"\b{_PRAISE_WORDS}\b")
_DOES_HARM = either("""
    worsen | damage | harm | injure | squash | squeeze
    trap | introduce | delay | slow | spread | burn | block | kill
    tear | drive | push
""")
_INCREASED = either("risk | chance | damage | danger | bleed | swell | absor")
_CAUSED = either("""
    damag | harm | injur | infect | death | chok | aspirat | complicat | burn | bleed | wors
    tissue | shock | poison | serious | danger
""")
_HARM = re.compile(
    either(rf"""
    {_VERDICT}
    \b(?:can|could|may|might|will|would|only)\b.{{0,25}}?\b{_DOES_HARM}
    \bmakes? .{{0,25}}worse | \bbad (?:medicine|idea|move|news)\b | \bnever wake
    \b(?:die|death|dead)\b
    \b(?:gets?|does|removes?|brings?) (?:almost |next to |very )?(?:no|nothing|little)\b
    \b(?:stop|cost)\b.{{0,12}}\b(?:heart|life|breathing|leg|arm|limb)
    \b(?:breaks|blocks|worsens|damages|harms|injures|traps|delays|kills|wastes)\b
    \bincreas\w+ .{{0,25}}{_INCREASED}
    \b(?:caus\w+|lead\w*|result\w*|risk\w*)\b.{{0,60}}{_CAUSED}
""")
)


# "no food, drink or tablets": one word each, so that "no pin, put butter on it" is none
_NO_LIST = re.compile(r"\bn(?:o|either|ot) \w+(?:, \w+)*,? (?:or|nor|and no) \w+")


# "pee can make it fire more": a thing as subject, of which no good is said
_THING_FIRST = re.compile(r"(?:^|[,;:] ?)(?:(?:an?|the|any|such|that|this|all)\b[^,;:]*)?$")
_MODAL = re.compile(
    r"(?:(?! (?:if|when|unless|so|because|until|till) )[^,;:.]){0,40}?"
    r"(?<!you )\b(?:can|could|may|might|does|do)\b"
)


def is_warning(sentence: str, start: int, end: int, bad: int) -> bool:
    """Tell whether the sentence negates, rejects or only reports what a rule matched in it.

    `sentence` is `plain_text`, the match reaches from `start` to `end`. At `bad` begins the harmful
    thing itself, so that "use water, not ice" is a warning too.
    """
    if BELIEF.search(sentence, 0, end):
        return True
    if any(listed.start() < start < listed.end() for listed in _NO_LIST.finditer(sentence)):
        return True
    if "more harm than" in sentence:
        return True
    modal = _MODAL.match(sentence, end)
    if modal and _THING_FIRST.search(sentence[:start]) and not _PRAISE.search(sentence, end):
        return True
    gerund = _begins_with_gerund(sentence, start)
    if any(_negates(sentence, cue, start, bad) for cue in _NOT.finditer(sentence, 0, bad)):
        return True
    avoiding = _AVOID.finditer(sentence, 0, bad)
    if any(_keeps_away(sentence, cue, start, bad, gerund) for cue in avoiding):
        return True
    if gerund and _SUBJECT.search(sentence[:start]) and not _NO_SUBJECT.search(sentence[:start]):
        return bool(_HARM.search(sentence, end)) or not _PRAISE.search(sentence, end)
    praised = _PRAISE.search(sentence, end) and " not help" not in sentence[end:]
    if not praised and _GERUND_BEFORE.search(sentence[:start]):
        return True
    return bool(_REJECTED.match(sentence, end))


def _begins_with_gerund(sentence: str, start: int) -> bool:
    trying = sentence.endswith(("trying to ", "attempting to "), 0, start)
    return trying or bool(_GERUND.match(sentence, start))


def _reach(sentence: str, cue: re.Match[str], start: int, bad: int) -> str:
    """Return the words from a cue to the match, or to the harmful thing for a cue in the match."""
    return sentence[cue.end() : start if cue.end() <= start else bad]


def _negates(sentence: str, cue: re.Match[str], start: int, bad: int) -> bool:
    """Tell whether a cue of `_NOT` governs the match that begins at `start`."""
    between = _reach(sentence, cue, start, bad)
    if _BREAK.search(between):
        return False
    urged = _EMPTY.match(sentence, cue.end())
    if urged and urged.end() <= start:
        return False
    in_condition = _CONDITION.search(sentence[: cue.start()])
    if in_condition and not _JUDGED.match(sentence, cue.end()):
        return False
    if "," not in between or between.startswith(",") or " or " in between:
        return True
    listed = _LIST.match(sentence, cue.end())
    if listed and start < listed.end():
        return True
    return bool(_LISTED.search(sentence, cue.end()))


def _keeps_away(sentence: str, cue: re.Match[str], start: int, bad: int, gerund: bool) -> bool:
    """Tell whether a cue of `_AVOID` governs the match that begins at `start`."""
    between = _reach(sentence, cue, start, bad)
    if _BREAK.search(between) or _BY.search(between):
        return False
    if "," in between and not cue["far"]:
        return False
    inside = cue.end() > start  # the cue is within the match, before the harmful thing
    at_once = len(between.split()) <= 1  # "no butter", "without any ice"
    doing = bool(_DOING.match(between))  # "rather than holding it by the feet"
    return gerund or inside or at_once or doing or bool(_HELPER.search(between))
