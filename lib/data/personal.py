"""Personal data, found by its form: e-mail addresses, phone, card and record numbers."""

import re

EMAIL = re.compile(r"\b[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
# nine digits close together, or five in one number: without either there is nothing to mask
DIGITS = re.compile(r"[0-9](?:[ ().+‐-–-]{0,2}[0-9]){8}|[0-9](?:-?[0-9]){4}")
RECORD = re.compile(
    r"\b((?:MRN|SSN|(?:medical|health|patient|hospital) (?:record )?(?:id|number|no\b\.?)|(?:NHS|social security|insurance|medicare|aadhaar) "
    r"(?:number|no\b\.?))[ \t]*+(?:(?:is|was|:|#)[ \t]*+)*)(?:\d{3}[ -]\d{3}[ -]\d{4}|\d{3}[ -]\d{2}[ -]\d{4}|\d{4}[ -]\d{4}[ -]\d{4}|"
    r"(?=(?:[A-Z-]*\d){5})[A-Z]{0,4}-?\d[\dA-Z]*(?:-[\dA-Z]+)*)\b",
    re.I | re.A,
)
BEFORE, AFTER = r"(?<![\w.,/+-])", r"(?![\w-]|[.,]\d)"
SSN = re.compile(rf"{BEFORE}\d{{3}}-\d{{2}}-\d{{4}}{AFTER}", re.A)
# only the groups in which cards are printed: a row of a table has others
CARD = re.compile(
    BEFORE
    + r"(?:3[47]\d\d([ -]?)\d{6}\1\d{5}|(?:4\d|5[0-8]|6\d|2[2-7])\d\d(?:\d{9,15}|([ -])\d{4}\2\d{4}\2\d{4}))"
    + AFTER,
    re.A,
)
UNIT = r"(?!\s?(?:(?:[mkµμ]?g|mcg|[mdµμ]?[lL]|I?U|units?|mmol|mEq|cells|k?cal|steps)\b|[%°]))"
US_PHONE = re.compile(
    BEFORE
    + r"(?:(?:\+?1[-. ]?)?(?:\([2-9]\d\d\)[ -]?\d{3}[-. ‐-–]\d{4}|[2-9]\d\d[-.‐-–]\d{3}[-.‐-–]\d{4})|(?<!\d )(?:\+?1 )?[2-9]\d\d [2-9]\d\d "
    r"\d{4}(?! \d))(?:,? ?(?:x|ext\.?|extension) ?\d{1,5})?" + AFTER + UNIT,
    re.A,
)
FOREIGN_PHONE = re.compile(r"(?<![\w+])\+\(?[1-9](?:[ ().-]{0,2}[0-9]){6,14}(?![0-9])")
US_PUBLIC = {"800", "822", "833", "844", "855", "866", "877", "888", "900"}
# poison centres without a toll-free number (ES, FR, CH, IT, IE, AT, DE), emergency line of the CDC
HELP_LINES = re.compile(
    r"34915620420|33140054848|41442515151|390266101029|35318092166|4314064343|49361730730|49\d+19240|17704887100"
)


def masked(text: str) -> str:
    """E-mail addresses, phone, card and record numbers as [e-mail], [phone], [card number], [record number].

    A phone number is written as in the United States, or has its country code and is valid (phonenumbers). One that anybody may call is
    not personal: emergency numbers, poison centres, help lines (toll-free, premium, shared cost, UAN).
    """
    if "@" in text:
        text = EMAIL.sub("[e-mail]", text)
    if not DIGITS.search(text):
        return text
    text = SSN.sub("[record number]", RECORD.sub(r"\1[record number]", text))
    text = CARD.sub(lambda m: "[card number]" if _luhn(m[0]) else m[0], text)
    return FOREIGN_PHONE.sub(_foreign_phone, US_PHONE.sub(_us_phone, text))


def _luhn(text: str) -> bool:
    digits = [int(c) for c in text if c.isdigit()]
    return (
        len(set(digits)) > 1
        and sum(d if n % 2 == 0 else sum(divmod(2 * d, 10)) for n, d in enumerate(reversed(digits)))
        % 10
        == 0
    )


def _us_phone(match: re.Match[str]) -> str:
    digits = re.sub(r"\D", "", match[0]).removeprefix("1")
    return (
        match[0]
        if digits[:3] in US_PUBLIC or HELP_LINES.fullmatch("1" + digits[:10])
        else "[phone]"
    )


def _foreign_phone(match: re.Match[str]) -> str:
    import phonenumbers
    from phonenumbers import PhoneNumberType as Kind

    for group in reversed(
        list(re.finditer("[0-9]+", match[0]))
    ):  # another number may follow: again without the last group of digits
        try:
            parsed = phonenumbers.parse(match[0][: group.end()], None)
        except phonenumbers.NumberParseException:
            break
        if phonenumbers.is_valid_number(parsed):
            digits = phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164)[1:]
            public = phonenumbers.number_type(parsed) in (
                Kind.TOLL_FREE,
                Kind.PREMIUM_RATE,
                Kind.SHARED_COST,
                Kind.UAN,
                Kind.VOICEMAIL,
            )
            return (
                match[0]
                if public or HELP_LINES.fullmatch(digits)
                else "[phone]" + match[0][group.end() :]
            )
    return match[0]
