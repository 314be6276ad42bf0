"""Mask personal data by its form: e-mail addresses, phone, card and record numbers.

mask_personal_data("call 212-555-0187")  # "call [phone]"

tests/benchmarks/personal_data.py compares these rules with Presidio's.
"""

import re

EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
# nine digits close together, or five in one number: a text without either needs no further search
DIGITS = re.compile(r"[0-9](?:[ ().+‐-–-]{0,2}[0-9]){8}|[0-9](?:-?[0-9]){4}")
RECORD = re.compile(
    r"\b((?:MRN|SSN|(?:medical|health|patient|hospital) (?:record )?(?:id|number|no\b\.?)|"
    r"(?:NHS|social security|insurance|medicare|aadhaar) "
    r"(?:number|no\b\.?))[ \t]*+(?:(?:is|was|:|#)[ \t]*+)*)"
    r"(?:\d{3}[ -]\d{3}[ -]\d{4}|\d{3}[ -]\d{2}[ -]\d{4}|\d{4}[ -]\d{4}[ -]\d{4}|"
    r"(?=(?:[A-Z-]*\d){5})[A-Z]{0,4}-?\d[\dA-Z]*(?:-[\dA-Z]+)*)\b",
    re.I | re.A,
)
BEFORE = r"(?<![\w.,/+-])"
AFTER = r"(?![\w-]|[.,]\d)"
# only the groups in which cards are printed: numbers in a row of a table are grouped otherwise
CARD = re.compile(
    BEFORE + r"(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|"
    r"(?:4\d|5[0-8]|6\d|2[2-7])\d\d(?:\d{9,15}|([ -])\d{4}\2\d{4}\2\d{4}))" + AFTER,
    re.A,
)
# a number followed by one of these is an amount
UNIT = (
    r"(?!\s?(?:(?:[mknpfµμ]?g|mcg|[mdfnµμ]?[lL]|[mnµμp]?mol|I?U|units?|m?Eq|cells|k?cal|steps|[mkc]?m|mmHg|"
    r"k?Pa|bpm|[mk]?Hz|msec|ms|mOsm|copies|[a-zµμ]{1,6}/[a-zA-Zµμ]\w{0,4}|"
    r"(?:x ?)?10\^\d+(?:/\w{1,4})?)(?![\w])|[%°/]))"
)
SSN = re.compile(rf"{BEFORE}\d{{3}}-\d{{2}}-\d{{4}}{AFTER}{UNIT}", re.A)
US_PHONE = re.compile(
    BEFORE + r"(?:(?:\+?1[-. ]?)?"
    r"(?:\([2-9]\d\d\)[ -]?\d{3}[-. ‐-–]\d{4}|[2-9]\d\d[-.‐-–]\d{3}[-.‐-–]\d{4})|"
    r"(?<!\d )(?:\+?1 )?(?P<spaced>[2-9]\d\d [2-9]\d\d "
    r"\d{4})(?! \d))(?:,? ?(?:x|ext\.?|extension) ?\d{1,5})?" + AFTER + UNIT,
    re.A,
)
# Three numbers in a row are more often values than a telephone number, so that such a one needs
# the word for it: "call me at 404 639 1075"
CUE = re.compile(
    r"\b(?:call|calling|phone|phones|telephone|tel|fax|dial|ring|text|sms|contact|reach|cell|mobile|"
    r"whatsapp|hotline|pager|number)(?:[ .:,(]+(?:at|on|us|me|him|her|them|the|my|your|our|his|"
    r"their|clinic|office|hospital|home|work|day|night|number|no|is|was|to|for|this|line|doctor|"
    r"nurse|dr|mobile|phone|or|and|cell))*+[ .:,(+]*+\Z",
    re.I,
)
CUE_LENGTH = 60  # characters before a number in which its word is looked for
FOREIGN_PHONE = re.compile(r"(?<![\w+])\+\(?[1-9](?:[ ().-]{0,2}[0-9]){6,14}(?![0-9])" + UNIT)
# toll-free area codes, and 900 for paid services: anybody may call them
US_PUBLIC = {"800", "822", "833", "844", "855", "866", "877", "888", "900"}
# poison centres without a toll-free number (ES, FR, CH, IT, IE, AT, DE), emergency line of the CDC
HELP_LINES = re.compile(
    r"34915620420|33140054848|41442515151|390266101029|35318092166|4314064343|"
    r"49361730730|49\d+19240|17704887100"
)


def mask_personal_data(text: str) -> str:
    """Replace personal data by [e-mail], [phone], [card number] or [record number].

    A phone number has the form used in the United States, or a country code and is valid according
    to phonenumbers. Numbers that anybody may call are not personal: emergency numbers, poison
    centres, help lines (toll-free, premium, shared cost, UAN).
    """
    if "@" in text:
        text = EMAIL.sub("[e-mail]", text)
    if not DIGITS.search(text):
        return text
    text = RECORD.sub(r"\1[record number]", text)
    text = SSN.sub(lambda match: match[0] if _is_series(match[0]) else "[record number]", text)
    text = CARD.sub(_mask_card, text)
    text = US_PHONE.sub(_mask_us_phone, text)
    return FOREIGN_PHONE.sub(_mask_foreign_phone, text)


def _mask_card(match: re.Match[str]) -> str:
    is_card = _passes_luhn(match[0]) and not (_is_series(match[0]) and " " in match[0])
    return "[card number]" if is_card else match[0]


def _passes_luhn(text: str) -> bool:
    """Tell whether the digits pass the check of card numbers (ISO/IEC 7812, Luhn 1960)."""
    digits = [int(character) for character in text if character.isdigit()]
    total = 0
    for n, digit in enumerate(reversed(digits)):
        if n % 2 == 1:
            digit = sum(divmod(2 * digit, 10))  # the sum of the digits of twice the digit
        total += digit
    # a single repeated digit passes the check, but is a filler
    return total % 10 == 0 and len(set(digits)) > 1


def _mask_us_phone(match: re.Match[str]) -> str:
    text = match.string
    before = text[max(0, match.start() - CUE_LENGTH) : match.start()]
    if (match["spaced"] or _is_series(match[0])) and not CUE.search(before):
        return match[0]
    digits = re.sub(r"\D", "", match[0]).removeprefix("1")
    is_public = digits[:3] in US_PUBLIC or HELP_LINES.fullmatch("1" + digits[:10])
    return match[0] if is_public else "[phone]"


def _is_series(text: str) -> bool:
    """Tell whether round numbers follow each other, as in "250-500-1000": doses, or a range."""
    return all(int(number) % 10 == 0 for number in re.findall("[0-9]+", text))


def _mask_foreign_phone(match: re.Match[str]) -> str:
    import phonenumbers  # its tables take 0.3 s, and few texts have such a number
    from phonenumbers import PhoneNumberType

    public_types = (
        PhoneNumberType.TOLL_FREE,
        PhoneNumberType.PREMIUM_RATE,
        PhoneNumberType.SHARED_COST,
        PhoneNumberType.UAN,
        PhoneNumberType.VOICEMAIL,
    )
    text = match[0]
    groups = list(re.finditer("[0-9]+", text))
    # another number may follow this one: try again without the last group of digits
    for group in reversed(groups):
        try:
            number = phonenumbers.parse(text[: group.end()], None)
        except phonenumbers.NumberParseException:
            break
        if not phonenumbers.is_valid_number(number):
            continue
        digits = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)[1:]
        is_public = phonenumbers.number_type(number) in public_types
        if is_public or HELP_LINES.fullmatch(digits):
            return text
        return "[phone]" + text[group.end() :]
    return text
