"""Cleaning rules, one function each: text in, text out; and the reasons for which a row is dropped.

No rule writes words of its own, save the four words that stand for masked personal data.
"""

import html
import re
from collections.abc import Callable

from lib.common.errors import UserError
from lib.common.words import WORDS, normalised, words_of
from lib.data.chat import CONTROL
from lib.data.personal import masked
from lib.medical import advice
from lib.params import Params

PLACEHOLDERS = set(
    "none|null|nil|nan|na|n/a|n.a|no answer|no response|not available|not applicable|not provided|no data|tbd|tba|todo|"
    "to be determined|[deleted]|[removed]|undefined|no output|nooutput|<nooutput>|<noinput>".split(
        "|"
    )
)
MOST_CHARACTERS = (
    1_000_000  # a row of more is over-long for any model this tunes, and is not worked on
)
LANGUAGE_CHARACTERS = 200  # measured: of 13,950 English answers one is misread at 200, 300 and 400 alike; the time is that of the length
TOO_SHORT_TO_TELL = 20  # "CPR", "Ibuprofen" are in no language
MOST_PASSES = (
    10  # real texts settle in two; one that does not is markup within markup within markup
)


# ---------------------------------------------------------------------------------------------------------------------
# rules that change a text; none may take more than linear time, as a row can be a million times one sign. So what repeats in a regular
# expression is possessive (`*+`), begins at a place of its own, or stops at the next opening of its kind


def mojibake(text: str) -> str:
    """UTF-8 that was read as another encoding, put right (ftfy); quotes, widths and ligatures are left as they are."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


# an attribute has "=", so that "a <b and c> d" is no tag
TAG = re.compile(
    r"</?(?:(p|br|div|ul|ol|li|dl|dt|dd|table|caption|tr|h[1-6]|hr|blockquote|pre|section|article|figure)|(td|th)|span|b|i|u|em|strong|"
    r"small|sup|sub|a|thead|tbody|tfoot|img|font|center|code|iframe|del|ins|tt|script|style)"
    r"(?:\s+[a-z][\w:-]*\s*=[^<>]*|\s*)/?>",
    re.I,
)
UNSEEN = re.compile(
    r"<!--(?:[^<-]|<(?!!--)|-(?!->))*+-->|<(script|style)\b[^<>]*>[^<]*+(?:<(?!/?\1\b)[^<]*+)*+</\1\s*>",
    re.I,
)
POWER = re.compile(
    r"(?<=\d)<sup>\s*(?=[-+−–]?\d)", re.I
)  # without a sign 10<sup>9</sup> would be a hundred and nine
ENTITY = re.compile(r"&(?:amp;)*(#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.I)


def untagged(text: str) -> str:
    """HTML entities as their characters and HTML tags out, a block tag as a line end; 10<sup>9</sup> as 10^9. "p < 0.05 and q > 1" stays."""
    if "&" in text:  # html.unescape would take "&notit;" for "¬it;"
        text = ENTITY.sub(
            lambda m: (
                html.unescape(f"&{m[1]};")
                if m[1][0] == "#"
                else html.entities.html5.get(m[1] + ";", f"&{m[1]};")
            ),
            text,
        )
    if "<" in text:
        text = TAG.sub(
            lambda m: "\n" if m[1] else " " if m[2] else "", POWER.sub("^", UNSEEN.sub(" ", text))
        )
    return text


# C0 and C1 controls, zero-width and bidirectional marks; not the joiners that emoji and Persian need
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ufffe\uffff]"
)
LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# what the fonts Symbol and Wingdings leave behind in text out of PDF and Word; any other private character stays, as nobody knows what it said
SYMBOLS = str.maketrans(
    "\uf0b7\uf0a7\uf0d8\uf06d\uf061\uf062\uf067\uf044\uf0b0\uf0b1\uf0a3\uf0b3\uf0b4",
    "•••µαβγΔ°±≤≥×",
)


def visible(text: str) -> str:
    """Without control characters and zero-width ones; every line end as one; the known signs of symbol fonts as themselves."""
    if (
        text.replace("\n", "").replace("\t", "").isprintable()
    ):  # the cheap test: it holds for nearly every text
        return text
    return INVISIBLE.sub(
        "", LINE_ENDS.sub("\n", text if text.isascii() else text.translate(SYMBOLS))
    )


def blanks(text: str) -> str:
    """Runs of blanks as one, at most one empty line, none at the ends of lines."""
    if "\n" not in text:
        return " ".join(text.split())
    text = "\n".join([" ".join(line.split()) for line in text.split("\n")]).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text


def question_mark(text: str) -> str:
    """ "What is asthma ?" without the blank, "What is asthma? ?" without the second mark; "5 + ?" stays."""
    return (
        re.sub(r"(?<![\s+*/=<>(\[-]) +\?(?!\w)", "?", re.sub(r"\?(?: ++\?)+", "?", text))
        if " ?" in text
        else text
    )


# a run of blanks is met at its first one only, hence the look behind
BULLET = re.compile(r" (?<=\S )[ \t]+([-*•·])[ \t]+(?=\S)")
LOOSE_BULLET = re.compile(r"(?<=\S)[ \t]+([•●▪])[ \t]*(?=\S)")
AFTER_LIST = re.compile(r" (?<=[^\s*•·-] )[ \t]{2,}(?=[\"“(]?[A-Z])")
TABLE_HEAD, TABLE_TAIL = (
    "Signs and Symptoms Approximate number of patients (when available)",
    " The Human Phenotype Ontology",
)
CELL = re.compile(r" (-|<?(?:\d+(?:\.\d+)?)?%|\d+/\d+|\d+ of \d+)(?: |$)")


def lists(text: str) -> str:
    """A list that runs on in its line gets a line an item: bullets after two blanks, and the symptom tables of MedQuAD."""
    if TABLE_HEAD in text:
        before, head, rest = text.partition(TABLE_HEAD + " ")
        table, tail, rest = rest.partition(TABLE_TAIL)
        if tail:
            text = (
                before
                + head[:-1]
                + "\n"
                + CELL.sub(r" \1\n", table).rstrip()
                + "\n"
                + tail[1:]
                + rest
            )
    if "  " in text and (count := len(BULLET.findall(text))):
        # "10  - 20 mg" is a range unless there are more; three blanks before a capital ended the list, or its last item would run on
        text = BULLET.sub(
            lambda m: (
                m[0]
                if count < 3 and (m.string[m.start() - 1] + m.string[m.end()]).isdigit()
                else f"\n{m[1]} "
            ),
            text,
        )
        text = AFTER_LIST.sub("\n", text)
    if ("•" in text or "●" in text or "▪" in text) and len(
        LOOSE_BULLET.findall(text)
    ) > 1:  # one alone may be a multiplication
        text = LOOSE_BULLET.sub(r"\n\1 ", text)
    return text


NAMES = r"patient|human|user|customer|question|q|doctor|(?-i:[Dd]r)|assistant|gpt|chatbot|bot|model|answer"
HEADING = r"### ?(?:instruction|input|question|response|answer|output)s?"
LABEL, NOT_LETTERED = (
    re.compile(rf"\A(?:\s*+(?:(?:{NAMES}|{more})[ \t]*+:|{HEADING}[ \t]*+\n))+", re.I)
    for more in (f"{HEADING}|a", HEADING)
)
# headings such as "### Instructions" are no leak: what trainers write is singular and has a colon
IN_ANSWER = re.compile(
    r"^[ \t]*+(?:patient|human|user|doctor|assistant|### ?(?:instruction|input|response))[ \t]*+:",
    re.I | re.M,
)
IN_QUESTION = re.compile(r"^[ \t]*+(?:doctor|assistant|### ?response)[ \t]*+:", re.I | re.M)
ASKED = re.compile(r"\s*(?:patient|human|user|customer)[ \t]*:", re.I)


def unlabelled(text: str) -> str:
    """Without "Patient:", "Doctor:", "### Response:" and the like at its start; "A: airway, B: breathing" stays."""
    if (label := LABEL.match(text)) and re.search(r"\bB[ \t]*+:", text):
        label = NOT_LETTERED.match(text)
    return text[label.end() :].lstrip() if label else text


REASONING = re.compile(
    r"<(reasoning|think|thinking)>[^<]*+(?:<(?!/?(?:reasoning|think|thinking)>)[^<]*+)*+</\1>\s*",
    re.I,
)


REASONING_EDGE = re.compile(r"</?(?:reasoning|think|thinking)>", re.I)


def without_reasoning(text: str) -> str:
    return REASONING.sub("", text) if "</" in text else text


# ---------------------------------------------------------------------------------------------------------------------
# rules that drop a row


URL = re.compile(r"(?:https?://|www\.)\S+", re.I)
RESOURCES = re.compile(
    r"\b(?:resources (?:address|offer|about|from)|links|web ?(?:site|page)s|see also|further reading|more information)\b",
    re.I,
)


def link_list(answer: str) -> bool:
    """Whether an answer only points elsewhere: links, or lists of resources under headings, and no sentence that says something."""
    if ("://" in answer or "www." in answer) and (links := len(URL.findall(answer))):
        rest = URL.sub(" ", answer)
        words = [w for w in WORDS.findall(rest) if not w.isdigit()]
        if len(words) < 8 or (
            len(words) < 4 * links and not re.search(r"\w{3}[.!?](?:\s|$)", rest)
        ):
            return True
    if "- " not in answer and "* " not in answer:
        return False
    pieces = [p.strip() for p in re.split(r"\n|[^\S\n]{2,}", answer) if p.strip()]
    heads = [p for p in pieces if not p.startswith(("- ", "* "))]
    return (
        0 < len(heads) < len(pieces)
        and all(h.endswith(":") for h in heads)
        and any(RESOURCES.search(h) for h in heads)
    )


def other_language(question: str, answer: str, wanted: str) -> bool:
    """Whether an answer, with its question where it is short, is in another language than `wanted` (py3langid)."""
    import py3langid

    text = answer if len(answer) >= 80 else f"{question}\n{answer}"
    return (
        len(text) >= TOO_SHORT_TO_TELL
        and py3langid.classify(text[:LANGUAGE_CHARACTERS])[0] != wanted
    )


def alternating(roles: list[str]) -> bool:
    """Whether turns are user, assistant, user, assistant, ... after an optional system message."""
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) >= 2 and turns == ["user", "assistant"] * (len(turns) // 2)


TEXT_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("mojibake", mojibake),
    ("html", untagged),
    ("control_characters", visible),
    ("leaked_turns", unlabelled),
    ("reasoning", without_reasoning),
    ("flattened_lists", lists),
    ("question_mark", question_mark),
    ("blanks", blanks),
    ("personal_data", masked),
)
CHANGES = (
    *(name for name, _ in TEXT_RULES),
    "control_token_broken_up",
    "empty_system_message",
    "dangerous_advice_flagged",
)
REASONS = (
    "turns_out_of_order",
    "empty",
    "nested_markup",
    "placeholder",
    "answer_is_question",
    "link_list",
    "leaked_turns",
    "reasoning_without_end",
    "personal_data",
    "other_language",
    "dangerous_advice",
    "too_long",
)


def text_rules(job: Params) -> list[tuple[str, Callable[[str], str]]]:
    """The rules that change texts, those switched off left out; a rule of a policy is off unless the policy asks for a change."""
    # French sets a blank before its question marks
    policies = {
        "reasoning": job.reasoning == "strip",
        "personal_data": job.personal_data == "mask",
        "question_mark": job.language != "fr",
    }
    return [
        (name, rule)
        for name, rule in TEXT_RULES
        if name not in job.skip_rules and policies.get(name, True)
    ]


def clean_text(
    text: str, rules: list[tuple[str, Callable[[str], str]]]
) -> tuple[str, dict[str, tuple[str, str]]]:
    """The text under the rules until none has work (one uncovers some for another), before and after of each; `nested_markup` if that has no end."""
    changed: dict[str, tuple[str, str]] = {}
    idle, start = 0, text
    for name, rule in rules * MOST_PASSES:
        if (plain := rule(text)) != text:
            changed.setdefault(name, (text, plain))
            text, idle = plain, 0
        elif (idle := idle + 1) == len(rules):
            break
    if idle < len(rules):
        changed["nested_markup"] = (start, text)
    # last, whatever is switched off: no rule before it may build a control token out of its parts
    if (plain := CONTROL.sub("< ", text)) != text:
        changed["control_token_broken_up"] = (text, plain)
    return plain, changed


def clean_row(
    messages: list[dict[str, str]], job: Params
) -> tuple[list[dict[str, str]], str, dict[str, tuple[str, str]]]:
    """Cleaned messages, the reason to drop the row (empty to keep it), before and after by rule; advice found is there too."""
    if sum(len(m["content"]) for m in messages) > MOST_CHARACTERS:
        return messages, "too_long", {}
    on, rules, changed, cleaned = set(job.skip_rules).isdisjoint, text_rules(job), {}, []
    raw_answers = [
        m["content"] for m in messages if m["role"] == "assistant"
    ]  # flattened lists tell a list of links, labels a leaked turn
    for message in messages:
        mine = (
            rules if message["role"] == "assistant" else [r for r in rules if r[0] != "reasoning"]
        )
        text, found = clean_text(message["content"], mine)
        changed = found | changed
        if text.strip() or message["role"] != "system":
            cleaned.append({"role": message["role"], "content": text})
        else:
            changed.setdefault("empty_system_message", (message["content"], ""))
    questions, answers = (
        [m["content"] for m in cleaned if m["role"] == role] for role in ("user", "assistant")
    )
    nested = changed.pop("nested_markup", None)
    if not alternating([m["role"] for m in cleaned]):
        reason = "turns_out_of_order" if cleaned else "empty"
    elif any(not m["content"].strip() for m in cleaned):
        reason = "empty"
    elif nested:
        reason = "nested_markup"
    elif on(["placeholder"]) and any(
        len(a) < 40 and normalised(a).rstrip(".") in PLACEHOLDERS or not WORDS.search(a)
        for a in answers
    ):
        reason = "placeholder"
    elif on(["answer_is_question"]) and any(
        words_of(q) == words_of(a) for q, a in zip(questions, answers, strict=True)
    ):
        reason = "answer_is_question"
    elif on(["link_list"]) and link_list(raw_answers[-1]):
        reason = "link_list"
    elif on(["leaked_turns"]) and any(
        [
            *map(ASKED.match, raw_answers),
            *map(IN_ANSWER.search, answers),
            *map(IN_QUESTION.search, questions),
        ]
    ):
        reason = "leaked_turns"
    elif job.reasoning == "strip" and any(map(REASONING_EDGE.search, answers)):
        reason = "reasoning_without_end"
    elif job.personal_data == "drop" and any(masked(m["content"]) != m["content"] for m in cleaned):
        reason = "personal_data"
    elif job.language and any(
        other_language(q, a, job.language) for q, a in zip(questions, answers, strict=True)
    ):
        reason = "other_language"
    else:
        found = (
            []
            if job.dangerous_advice == "ignore"
            else [
                hit for q, a in zip(questions, answers, strict=True) for hit in advice.find_harmful(a, q)
            ]
        )
        reason = "dangerous_advice" if found and job.dangerous_advice == "drop" else ""
        if found:
            changed[reason or "dangerous_advice_flagged"] = (found[0][1], f"rule {found[0][0]}")
    return cleaned, reason, changed


def check_language(wanted: str) -> None:
    """UserError for a language the detector does not know."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = sorted(LanguageIdentifier.from_model_file(MODEL_FILE).labels) if wanted else []
    if wanted and wanted not in known:
        raise UserError(
            f"language `{wanted}` is not one the detector knows; expected one of {', '.join(known)}, or empty for any."
        )
