"""Personal data: what is masked, and which numbers stay.

python -m pytest tests/data/cleaning/test_personal.py
"""

import pytest

from helpers.cleaning import cleaned, job, reason, row
from lib.data.cleaning import clean
from lib.data.cleaning.personal import mask_personal_data


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Write to jane.doe+er@mail.example.co.uk today.", "Write to [e-mail] today."),
        ("a_b@x.org, c@y.de;", "[e-mail], [e-mail];"),
        ("Call +1 212 555 0123.", "Call [phone]."),
        ("Call +1-212-555-0123 or +12125550123.", "Call [phone] or [phone]."),
        ("Call +44 20 7946 0958 or +44 (0)20 7946 0958.", "Call [phone] or [phone]."),
        ("Llama al +34 612 34 56 78 y al 112.", "Llama al [phone] y al 112."),
        ("Appelez +33 6 12 34 56 78 2 fois.", "Appelez [phone] 2 fois."),
        ("Ruf +49 (0) 151 23456789 an, oder +49-30-123456.", "Ruf [phone] an, oder [phone]."),
        ("WhatsApp:+91 98765 43210", "WhatsApp:[phone]"),
        ("Call +376 312 345.", "Call [phone]."),
        (
            "(555) 123-4567, (212)555-0123, 555-123-4567, 1-212-555-0123, 212.555.0123",
            "[phone], [phone], [phone], [phone], [phone]",
        ),
        ("212-555-0123 ext. 45 before 9", "[phone] before 9"),
        ("Zip 20892-1190 301-435-8528 http://x.org", "Zip 20892-1190 [phone] http://x.org"),
        ("please call 404 639 1075 at night", "please call [phone] at night"),
        ("Tel. 404 639 1075", "Tel. [phone]"),
        ("my cell number is 404 639 1075.", "my cell number is [phone]."),
        ("Reach us at the clinic: (404) 639 1075", "Reach us at the clinic: [phone]"),
        ("call 250-500-1000", "call [phone]"),
        (
            "Card 4111 1111 1111 1111, 5500-0000-0000-0004, 378282246310005.",
            "Card [card number], [card number], [card number].",
        ),
        ("MRN: 00123456 was seen in clinic 5", "MRN: [record number] was seen in clinic 5"),
        (
            "medical record no. AB-123456, patient ID 8812345",
            "medical record no. [record number], patient ID [record number]",
        ),
        ("SSN 123-45-6789 and 078-05-1120", "SSN [record number] and [record number]"),
        ("NHS number is 943 476 5919 2 days ago", "NHS number is [record number] 2 days ago"),
        ("Aadhaar number 1234 5678 9012", "Aadhaar number [record number]"),
    ],
)
def test_personal_data_is_masked(before, after):
    assert mask_personal_data(before) == after
    assert cleaned(before) == (after, {"personal_data": (before, after)})


@pytest.mark.parametrize(
    "text",
    [
        "Call 911, 112, 999, 000, 111 or 988.",
        "Ruf 116 117 oder 112.",
        "US poison control: 1-800-222-1222, 1 (800) 222-1222, 800.222.1222, +1 800 222 1222, 1-800-222-1222 24 hours",
        "Poisons: 13 11 26 in Australia, 0800 764 766 in New Zealand",
        "NHS 111; Childline 0800 1111; 0800 028 0285",
        "1-800-4-CANCER (1-800-422-6237)",
        "1-888-463-6332",
        "+44 800 028 0285",
        "+61 13 11 26",
        "Giftnotruf +49 30 19240, +49 89 19240, +49 361 730730",
        "Toxicología +34 91 562 04 20",
        "Antipoison +33 1 40 05 48 48",
        "+41 44 251 51 51",
        "CDC 770-488-7100",
        "Card 4111 1111 1111 1112",
        "values of 404 639 1075 in May",
        "Call if the ferritin is 404 639 1075",
        "a cell count of 404 639 1075",
        "number of cells 250 300 1200",
        "4000 4500 5000 55",
        "SpO2 95-100, pulse 60-100",
        "born 1985, 3 times 2024",
        "123-45-678",
        "1234-56-78901",
        "MRN unknown",
        "SSN 12",
        "NHS 111 number 5",
        "LOINC 12345-6, SNOMED 22298006",
        "RefSeq NM_000546.6, rs1234567890",
        "2125550123 is no number written as one",
        "+10 mmHg or +5 to +10",
        "(+) 5551234567",
        "+999 123 456 789",
        "K+34 612 34 56 78",
    ],
)
def test_what_anybody_may_call_and_what_is_no_personal_number_stays(text):
    assert mask_personal_data(text) == text


def test_personal_data_is_masked_dropped_or_kept_as_told():
    messages = row("Who?", "Write to jane@example.org, she answers.")
    assert clean.clean_row(messages, job())[0][1]["content"] == "Write to [e-mail], she answers."
    assert clean.clean_row(messages, job(personal_data="drop"))[1:] == ("personal_data", {})
    assert clean.clean_row(messages, job(personal_data="keep")) == (messages, "", {})
    assert (
        reason("I am jane@example.org, help!", "Call 911.", personal_data="drop") == "personal_data"
    )
