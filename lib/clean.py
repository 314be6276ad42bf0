"""Cleaning rules, one function each: text in, text out; and the reasons for which a row is dropped.

No rule writes words of its own, save the four words that stand for masked personal data.
"""

import html
import html.entities
import re
import unicodedata
from collections.abc import Callable

from lib import advice
from lib.chat import CONTROL
from lib.params import Params, UserError

WORDS = re.compile(r"\w+")
PLACEHOLDERS = {"none", "null", "nil", "nan", "na", "n/a", "n.a", "no answer", "no response", "not available", "not applicable", "not provided",
                "no data", "tbd", "tba", "todo", "to be determined", "[deleted]", "[removed]", "undefined",
                "no output", "nooutput", "<nooutput>", "<noinput>"}
MOST_CHARACTERS_A_TOKEN = 200  # more than any tokenizer packs into one: such a row is over-long without tokenising it
LANGUAGE_CHARACTERS = 200  # measured: of 13,950 English answers one is misread at 200, 300 and 400 alike; the time is that of the length
TOO_SHORT_TO_TELL = 20  # "CPR", "Ibuprofen" are in no language
MOST_PASSES = 10  # real texts settle in three; one that does not is markup within markup within markup


def normalised(text: str) -> str:
    """Text for comparing: NFKC, case folded, runs of white space as one blank."""
    if text.isascii():
        return " ".join(text.lower().split())
    before = ""
    while text != before:  # folding case can undo NFKC: three rounds settle every character
        before, text = text, unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split())


# ---------------------------------------------------------------------------------------------------------------------
# rules that change a text
#
# No regular expression here may take more than linear time: a row can be a million characters of one sign. So what may repeat is
# possessive (`*+`), begins at a place of its own, or stops at the next opening of its kind.


def mojibake(text: str) -> str:
    """UTF-8 that was read as another encoding, put right (ftfy); quotes, widths and ligatures are left as they are."""
    import ftfy

    return text if text.isascii() else ftfy.fix_encoding(text)


# an attribute has "=", so that "a <b and c> d" is no tag
TAG = re.compile(r"</?(p|br|div|span|b|i|u|em|strong|small|sup|sub|ul|ol|li|dl|dt|dd|a|table|thead|tbody|tfoot|caption|tr|td|th|h[1-6]|hr|img|font|"
                 r"center|pre|blockquote|code|section|article|figure|iframe|del|ins|tt|html|head|body|script|style)"
                 r"(?:\s+[a-z][\w:-]*\s*=[^<>]*|\s*)/?>", re.I)
UNSEEN = re.compile(r"<!--[^<]*+(?:<(?!!--)[^<]*+)*?-->|<(script|style)\b[^<>]*>[^<]*+(?:<(?!/?\1\b)[^<]*+)*+</\1\s*>", re.I)
POWER = re.compile(r"(?<=\d)<sup>\s*(?=[-+\u2212\u2013]?\d)", re.I)
BREAKING = {"p", "br", "div", "ul", "ol", "li", "dl", "dt", "dd", "table", "caption", "tr", "hr", "blockquote", "pre", "section", "article", "figure",
            *(f"h{n}" for n in range(1, 7))}
ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-f]{1,6}|[a-z][a-z0-9]{1,30});", re.I)


def untagged(text: str) -> str:
    """HTML entities as their characters and HTML tags out, a block tag as a line end; 10<sup>9</sup> as 10^9. "p < 0.05 and q > 1" stays."""
    if "&" in text:
        text = ENTITY.sub(_character, re.sub("&(?:amp;)+", "&amp;", text))
    if "<" in text:
        text = POWER.sub("^", UNSEEN.sub(" ", text))  # without the sign 10<sup>9</sup> would be a hundred and nine
        text = TAG.sub(lambda m: "\n" if m[1].lower() in BREAKING else " " if m[1].lower() in ("td", "th") else "", text)
    return text


def _character(match: re.Match[str]) -> str:
    # html.unescape alone would read "&notit;" as "\u00acit;"
    return html.unescape(match[0]) if match[0][1] == "#" else html.entities.html5.get(match[0][1:], match[0])


# C0 and C1 controls, zero-width and bidirectional marks; not the joiners that emoji and Persian need
INVISIBLE = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff]")
LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# what the fonts Symbol and Wingdings leave behind in text out of PDF and Word; any other private character stays, as nobody knows what it said
SYMBOLS = str.maketrans({0xf0b7: "\u2022", 0xf0a7: "\u2022", 0xf0d8: "\u2022", 0xf06d: "\u00b5", 0xf061: "\u03b1", 0xf062: "\u03b2", 0xf067: "\u03b3",
                         0xf044: "\u0394", 0xf0b0: "\u00b0", 0xf0b1: "\u00b1", 0xf0a3: "\u2264", 0xf0b3: "\u2265", 0xf0b4: "\u00d7"})


def visible(text: str) -> str:
    """Without control characters and zero-width ones; every line end as one; the known signs of symbol fonts as themselves."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # the cheap test: it holds for nearly every text
        return text
    return INVISIBLE.sub("", LINE_ENDS.sub("\n", text if text.isascii() else text.translate(SYMBOLS)))


def blanks(text: str) -> str:
    """Runs of blanks as one, at most one empty line, none at the ends of lines."""
    if "\n" not in text:
        return " ".join(text.split())
    text = "\n".join([" ".join(line.split()) for line in text.split("\n")]).strip("\n")
    return re.sub(r"\n{3,}", "\n\n", text) if "\n\n\n" in text else text


def question_mark(text: str) -> str:
    """"What is asthma ?" without the blank, "What is asthma? ?" without the second mark; "5 + ?" stays."""
    return re.sub(r"(?<![\s+*/=<>(\[-]) +\?(?!\w)", "?", re.sub(r"\?(?: ++\?)+", "?", text)) if " ?" in text else text


# a run of blanks is met at its first one only, hence the look behind
BULLET = re.compile(r" (?<=\S )[ \t]+([-*\u2022\u00b7])[ \t]+(?=\S)")
LOOSE_BULLET = re.compile(r"(?<=\S)[ \t]+([\u2022\u25cf\u25aa])[ \t]*(?=\S)")
AFTER_LIST = re.compile(r" (?<=[^\s*\u2022\u00b7-] )[ \t]{2,}(?=[\"\u201c(]?[A-Z])")
TABLE_HEAD, TABLE_TAIL = "Signs and Symptoms Approximate number of patients (when available) ", " The Human Phenotype Ontology"
CELL = re.compile(r" (-|<?(?:\d+(?:\.\d+)?)?%|\d+/\d+|\d+ of \d+)(?: |$)")


def lists(text: str) -> str:
    """A list that runs on in its line gets a line an item: bullets after two blanks, and the symptom tables of MedQuAD."""
    if TABLE_HEAD in text:
        before, _, rest = text.partition(TABLE_HEAD)
        table, tail, rest = rest.partition(TABLE_TAIL)
        if tail:
            text = f"{before}{TABLE_HEAD[:-1]}\n{CELL.sub(lambda m: f' {m[1]}\n', table).rstrip()}\n{tail[1:]}{rest}"
    if "  " in text and (count := len(BULLET.findall(text))):
        # "10  - 20 mg" alone is a range; three blanks before a capital ended the list, or its last item would run on
        text = BULLET.sub(lambda m: m[0] if count < 3 and text[m.start() - 1].isdigit() and text[m.end()].isdigit() else f"\n{m[1]} ", text)
        text = AFTER_LIST.sub("\n", text)
    if any(sign in text for sign in "\u2022\u25cf\u25aa") and len(LOOSE_BULLET.findall(text)) > 1:  # one alone may be a multiplication
        text = LOOSE_BULLET.sub(r"\n\1 ", text)
    return text


ASKS = r"patient|human|user|customer|### ?(?:instruction|input|question)s?|question|q"
REPLIES = r"doctor|(?-i:[Dd]r)|assistant|gpt|chatbot|bot|model|### ?(?:response|answer|output)s?|answer|a"
LABEL = re.compile(rf"\A(?:\s*+(?:{ASKS}|{REPLIES})[ \t]*+:[ \t]*+)+", re.I)
HASHED = re.compile(r"\A(?:\s*+### ?(?:instruction|input|question|response|answer|output)s?[ \t]*+:?[ \t]*+\n)+", re.I)
LETTERED = re.compile(r"\s*A[ \t]*:")
# headings such as "### Instructions" are no leak: what trainers write is singular and has a colon
NEXT_IN_ANSWER = re.compile(r"^[ \t]*+(?:(?:patient|human|user|doctor|assistant)|### ?(?:instruction|input|response))[ \t]*+:", re.I | re.M)
NEXT_IN_QUESTION = re.compile(r"^[ \t]*+(?:doctor|assistant|### ?response)[ \t]*+:", re.I | re.M)
ASKED = re.compile(r"\s*(?:patient|human|user|customer)[ \t]*:", re.I)


def unlabelled(text: str) -> str:
    """Without "Patient:", "Doctor:", "### Response:" and the like at its start; "A: airway, B: breathing" stays."""
    if not (LABEL.match(text) or HASHED.match(text)) or LETTERED.match(text) and re.search(r"\bB[ \t]*+:", text):
        return text
    return HASHED.sub("", LABEL.sub("", text)).lstrip()


REASONING = re.compile(r"<(reasoning|think|thinking)>[^<]*+(?:<(?!/?(?:reasoning|think|thinking)>)[^<]*+)*+</\1>\s*", re.I)


def without_reasoning(text: str) -> str:
    return REASONING.sub("", text) if "</" in text else text


REASONING_EDGE = re.compile(r"</?(?:reasoning|think|thinking)>", re.I)

EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
# nine digits close together, or five in one number: without either there is nothing to mask
DIGITS = re.compile(r"[0-9](?:[ ().+\u2010-\u2013-]{0,2}[0-9]){8}|[0-9](?:-?[0-9]){4}")
RECORD = re.compile(r"\b((?:MRN|SSN|(?:medical|health|patient|hospital) (?:record )?(?:id|number|no\b\.?)|(?:NHS|social security|insurance|medicare|aadhaar) "
                    r"(?:number|no\b\.?))[ \t]*+(?:(?:is|was|:|#)[ \t]*+)*)"
                    r"(?:\d{3}[ -]\d{3}[ -]\d{4}|\d{3}[ -]\d{2}[ -]\d{4}|\d{4}[ -]\d{4}[ -]\d{4}|(?=(?:[A-Z-]*\d){5})[A-Z]{0,4}-?\d[\dA-Z]*(?:-[\dA-Z]+)*)\b",
                    re.I | re.A)
SSN = re.compile(r"(?<![\w.,/-])[0-9]{3}-[0-9]{2}-[0-9]{4}(?![\w-]|[.,][0-9])")
# the groups in which cards are printed: a row of a table is not one
CARD = re.compile(r"(?<![\w.,/+-])(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|(?:4\d|5[0-8]|6\d|2[2-7])\d\d(?:\d{9,15}|([ -])\d{4}\2\d{4}\2\d{4}))(?![\w-]|[.,]\d)", re.A)
_US_END = (r"(?:,? ?(?:x|ext\.?|extension) ?[0-9]{1,5})?(?![\w-]|[.,][0-9]|\s?(?:[mk\u00b5\u03bc]?g|mcg|m?[lL]|dl|dL|I?U|units?|mmol|mEq|cells|k?cal|steps)\b|\s?[%\u00b0])")
US_PHONE = re.compile(r"(?<![\w.,/+-])(?:(?:\+?1[-. ]?)?(?:\([2-9]\d\d\)[ -]?\d{3}[-. \u2010-\u2013]\d{4}|[2-9]\d\d[-.\u2010-\u2013]\d{3}[-.\u2010-\u2013]\d{4})"
                      r"|(?<!\d )(?:\+?1 )?[2-9]\d\d [2-9]\d\d \d{4}(?! \d))" + _US_END, re.A)
FOREIGN_PHONE = re.compile(r"(?<![\w+])\+\(?[1-9](?:[ ().-]{0,2}[0-9]){6,14}(?![0-9])")
US_PUBLIC = {"800", "822", "833", "844", "855", "866", "877", "888", "900", "911"}
# poison centres that have no toll-free number (ES, FR, CH, IT, IE, AT, DE: Erfurt; the other German ones end in 19240), emergency line of the CDC
HELP_LINES = {"34915620420", "33140054848", "41442515151", "390266101029", "35318092166", "4314064343", "49361730730", "17704887100"}


def masked(text: str) -> str:
    """E-mail addresses, phone, card and record numbers as [e-mail], [phone], [card number], [record number].

    A phone number has its country code and is a valid one (phonenumbers), or it is written as in the United States. A number anybody
    may call is not personal: emergency numbers, poison centres, help lines (toll-free, premium, shared cost, UAN).
    """
    if "@" in text:
        text = EMAIL.sub("[e-mail]", text)
    if not DIGITS.search(text):
        return text
    text = RECORD.sub(r"\1[record number]", text)
    text = SSN.sub("[record number]", text)
    text = CARD.sub(lambda m: "[card number]" if _luhn(m[0]) else m[0], text)
    text = US_PHONE.sub(_us_phone, text)
    return FOREIGN_PHONE.sub(_foreign_phone, text) if "+" in text else text


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    return len(set(digits)) > 1 and sum(d if n % 2 == 0 else sum(divmod(2 * d, 10)) for n, d in enumerate(reversed(digits))) % 10 == 0


def _us_phone(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match[0]).removeprefix("1")
    return match[0] if digits[:3] in US_PUBLIC or f"1{digits[:10]}" in HELP_LINES else "[phone]"


def _foreign_phone(match: re.Match[str]) -> str:
    import phonenumbers
    from phonenumbers import PhoneNumberType as Kind

    number, shorter = match[0], ""
    while number != shorter:  # other numbers may follow: try without the last group
        shorter, parsed = number, phonenumbers.parse(number, None) if len(number) > 7 else None
        if parsed and phonenumbers.is_valid_number(parsed):
            digits = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)[1:]
            public = phonenumbers.number_type(parsed) in (Kind.TOLL_FREE, Kind.PREMIUM_RATE, Kind.SHARED_COST, Kind.UAN, Kind.VOICEMAIL)
            is_help = digits in HELP_LINES or digits.startswith("49") and digits.endswith("19240")
            return match[0] if public or is_help else "[phone]" + match[0][len(number):]
        number = re.sub(r"[ ().-]+[0-9]+$", "", number)
    return match[0]


# ---------------------------------------------------------------------------------------------------------------------
# rules that drop a row


URL = re.compile(r"(?:https?://|www\.)\S+", re.I)
RESOURCES = re.compile(r"\b(?:resources|links|web ?sites|web ?pages|see also|further reading|more information|organizations)\b", re.I)


def link_list(answer: str) -> bool:
    """Whether an answer only points elsewhere: links, or lists of resources under headings, and no sentence that says something."""
    rest = URL.sub(" ", answer)
    if links := len(URL.findall(answer)):
        words = [w for w in WORDS.findall(rest) if not w.isdigit()]
        if len(words) < 8 or (len(words) < 4 * links and not re.search(r"\w{3,}[.!?](?:\s|$)", rest)):
            return True
    if "- " not in answer and "* " not in answer or not RESOURCES.search(answer):
        return False
    pieces = [p.strip() for p in re.split(r"\n|[^\S\n]{2,}", answer) if p.strip()]
    heads = [p for p in pieces if not p.startswith(("- ", "* "))]
    return 0 < len(heads) < len(pieces) and all(h.endswith(":") for h in heads) and any(RESOURCES.search(h) for h in heads)


def language(text: str) -> str:
    """Two-letter language of a text's first 200 characters (py3langid)."""
    import py3langid

    return py3langid.classify(text[:LANGUAGE_CHARACTERS])[0]


def alternating(roles: list[str]) -> bool:
    """Whether turns are user, assistant, user, assistant, ... after an optional system message."""
    turns = roles[1:] if roles[:1] == ["system"] else roles
    return len(turns) >= 2 and len(turns) % 2 == 0 and all(r == ("user", "assistant")[n % 2] for n, r in enumerate(turns))


# ---------------------------------------------------------------------------------------------------------------------
# one row


TEXT_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("mojibake", mojibake), ("html", untagged), ("control_characters", visible), ("leaked_turns", unlabelled), ("reasoning", without_reasoning),
    ("flattened_lists", lists), ("question_mark", question_mark), ("blanks", blanks), ("personal_data", masked))


def text_rules(job: Params) -> list[tuple[str, Callable[[str], str]]]:
    """The rules that change texts, those switched off left out; a rule of a policy is off unless the policy asks for a change."""
    off = {*job.skip_rules, *(["reasoning"] if job.reasoning == "keep" else []), *(["personal_data"] if job.personal_data != "mask" else [])}
    return [(name, rule) for name, rule in TEXT_RULES if name not in off]


def clean_text(text: str, rules: list[tuple[str, Callable[[str], str]]]) -> tuple[str, dict[str, tuple[str, str]]]:
    """The text under the rules, again and again until none changes it (one may uncover work for another), and before and after of each that did."""
    changed: dict[str, tuple[str, str]] = {}
    while True:
        start = text
        for name, rule in rules:
            if (plain := rule(text)) != text:
                changed.setdefault(name, (text, plain))
                text = plain
        if text == start:
            break
    # last, whatever is switched off: no rule before it may build a control token out of its parts
    if (plain := CONTROL.sub("< ", text)) != text:
        changed["control_token_broken_up"] = (text, plain)
    return plain.strip(), changed


def clean_row(messages: list[dict[str, str]], job: Params) -> tuple[list[dict[str, str]], str, dict[str, tuple[str, str]]]:
    """Cleaned messages, the reason to drop the row (empty to keep it), and before and after by the rules that changed it.

    With dangerous_advice=flag a row is kept and has the change `dangerous_advice_flagged`.
    """
    if sum(len(m["content"]) for m in messages) > MOST_CHARACTERS_A_TOKEN * job.max_seq_length:
        return messages, "too_long", {}
    on, rules, changed, cleaned = set(job.skip_rules).isdisjoint, text_rules(job), {}, []
    raw_answers = [m["content"] for m in messages if m["role"] == "assistant"]
    for message in messages:
        mine = rules if message["role"] == "assistant" else [r for r in rules if r[0] != "reasoning"]
        text, found = clean_text(message["content"], mine)
        changed |= {k: v for k, v in found.items() if k not in changed}
        if text or message["role"] != "system":
            cleaned.append({"role": message["role"], "content": text})
    questions, answers = ([m["content"] for m in cleaned if m["role"] == role] for role in ("user", "assistant"))
    if not alternating([m["role"] for m in cleaned]):
        reason = "turns_out_of_order" if cleaned else "empty"
    elif any(not m["content"] for m in cleaned):
        reason = "empty"
    elif on(["placeholder"]) and any(normalised(a).rstrip(".") in PLACEHOLDERS or not WORDS.search(a) for a in answers):
        reason = "placeholder"
    elif on(["answer_is_question"]) and any(words(q) == words(a) for q, a in zip(questions, answers, strict=True)):
        reason = "answer_is_question"
    elif on(["link_list"]) and link_list(raw_answers[-1]):
        reason = "link_list"
    elif on(["leaked_turns"]) and (any(map(NEXT_IN_ANSWER.search, answers)) or any(map(NEXT_IN_QUESTION.search, questions))):
        reason = "leaked_turns"
    elif job.reasoning == "strip" and any(map(REASONING_EDGE.search, answers)):
        reason = "reasoning_without_end"
    elif job.personal_data == "drop" and any(masked(m["content"]) != m["content"] for m in cleaned):
        reason = "personal_data"
    elif job.language and any(other_language(q, a, job.language) for q, a in zip(questions, answers, strict=True)):
        reason = "other_language"
    else:
        reason, found = "", [] if job.dangerous_advice == "ignore" else [hit for a in answers for hit in advice.found(a)]
        if found and job.dangerous_advice == "drop":
            reason = "dangerous_advice"
        if found:
            changed["dangerous_advice_flagged"] = (found[0][1], f"rule {found[0][0]}")
    return cleaned, reason, changed


def words(text: str) -> list[str]:
    """The words of a text for comparing."""
    return WORDS.findall(normalised(text))


def other_language(question: str, answer: str, wanted: str) -> bool:
    """Whether an answer, with its question where it is short, is in another language than `wanted`."""
    text = answer if len(answer) >= 80 else f"{question}\n{answer}"
    return len(text) >= TOO_SHORT_TO_TELL and language(text) != wanted


def check_language(wanted: str) -> None:
    """UserError for a language the detector does not know."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    known = sorted(LanguageIdentifier.from_model_file(MODEL_FILE).labels) if wanted else []
    if wanted and wanted not in known:
        raise UserError(f"language `{wanted}` is not one the detector knows; expected one of {', '.join(known)}, or empty for any.")
