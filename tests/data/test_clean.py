"""Cleaning rules: what each must change or drop, what looks alike and must stay, and what holds for any text at all.

python -m pytest tests/test_clean.py
"""

import gzip
import html
import json
import re
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib import params
from lib.common import errors, words
from lib.common.errors import UserError
from lib.common.words import words_of
from lib.data import clean
from lib.data.personal import masked
from lib.medical import advice

RULE = dict(clean.TEXT_RULES)
ANY = {"language": "", "dangerous_advice": "ignore"}
DATA = errors.ROOT.parent / "shared" / "data"


def job(**values):
    return params.check_values(ANY | values, "test")


def cleaned(text, **values):
    return clean.clean_text(text, clean.text_rules(job(**values)))


def row(*texts):
    """Turns of user and assistant; a first text in brackets is the system message."""
    system = [{"role": "system", "content": texts[0][0]}] if isinstance(texts[0], list) else []
    return system + [
        {"role": ("user", "assistant")[n % 2], "content": text}
        for n, text in enumerate(texts[len(system) :])
    ]


def reason(*texts, **values):
    return clean.clean_row(row(*texts), job(**values))[1]


# ---------------------------------------------------------------------------------------------------------------------
# rules that change a text


CHANGES = [
    (
        "mojibake",
        "MÃ©niÃ¨re donâ€™t, 37 Â°C, Â½ cup, 10 Âµg, â‰¥ 5 mg",
        "Ménière don’t, 37 °C, ½ cup, 10 µg, ≥ 5 mg",
    ),
    ("mojibake", "\x93quoted\x94, \u00e9", "“quoted”, \u00e9"),
    ("html", "Wash.<br>Dry.<BR />Cover.", "Wash.\nDry.\nCover."),
    ("html", '<p>Sit.</p><div class="x">Rest.</div>', "\nSit.\n\nRest.\n"),
    (
        "html",
        'H<sub>2</sub>O, <b>now</b>, <a href="https://x.org?a=1&b=2">here</a>',
        "H2O, now, here",
    ),
    ("html", "<tr><td>5 mg</td><td>daily</td></tr>", "\n 5 mg  daily \n"),
    (
        "html",
        "10<sup>9</sup>/L and 10<sup>-3</sup>, 1<sup>st</sup>, m<sup>2</sup>",
        "10^9/L and 10^-3, 1st, m2",
    ),
    ("html", "p &lt; 0.05 &amp; q &#62; 1 &#x2265; &eacute;", "p < 0.05 & q > 1 ≥ é"),
    ("html", "a &amp;amp;lt; b", "a < b"),
    ("html", 'x<!-- <b>hidden</b> -->y <script type="a">if (1 < 2) go()</script>z', "x y  z"),
    ("control_characters", "a\x00b\x07c\x1b\x7f\u200bd\ufeffe\u00adf\u202eg\u2060h", "abcdefgh"),
    ("control_characters", "a\r\nb\rc\u2028d\x0ce\x0bf\x85g", "a\nb\nc\nd\ne\nf\ng"),
    (
        "control_characters",
        "10 \uf06dg, 38 \uf0b0C, \uf0b3 5, \uf0b7 rest",
        "10 µg, 38 °C, ≥ 5, • rest",
    ),
    ("leaked_turns", "Patient: Doctor, I fell.", "Doctor, I fell."),
    ("leaked_turns", " Doctor : Sit down.", "Sit down."),
    ("leaked_turns", "### Response:\nAnswer: Press.", "Press."),
    ("leaked_turns", "### Answer\n\nPress.", "Press."),
    ("leaked_turns", "Q: What is shock?", "What is shock?"),
    ("leaked_turns", "A: Press on it.", "Press on it."),
    ("leaked_turns", "Dr: Rest.", "Rest."),
    ("leaked_turns", "Answer: A: airway, B: breathing", "A: airway, B: breathing"),
    ("leaked_turns", "Question: Which? A: ice B: heat", "Which? A: ice B: heat"),
    ("reasoning", "<think>burn?\n<b></think>\n\nCool it.", "Cool it."),
    ("reasoning", "Cool <Reasoning>why</Reasoning> it. <thinking></thinking>", "Cool it. "),
    ("flattened_lists", "Bring:  - gauze   -  tape    * water", "Bring:\n- gauze\n- tape\n* water"),
    (
        "flattened_lists",
        "Ask:  - pain    - fever       Treatment is rest.",
        "Ask:\n- pain\n- fever\nTreatment is rest.",
    ),
    (
        "flattened_lists",
        "men younger than 60  - 22 percent of men  - 30 percent  - 40",
        "men younger than 60\n- 22 percent of men\n- 30 percent\n- 40",
    ),
    ("flattened_lists", "Signs • pallor •sweat ● thirst", "Signs\n• pallor\n• sweat\n● thirst"),
    (
        "flattened_lists",
        "Signs and Symptoms Approximate number of patients (when available) Mild ataxia 7.5% 2-3 toe syndactyly - Fits <1% Coma 3/9 Rash 1 of 4 Cough % The Human Phenotype Ontology (HPO)",
        "Signs and Symptoms Approximate number of patients (when available)\nMild ataxia 7.5%\n2-3 toe syndactyly -\nFits <1%\nComa 3/9\nRash 1 of 4\nCough %\nThe Human Phenotype Ontology (HPO)",
    ),
    ("question_mark", "What is asthma ?", "What is asthma?"),
    ("question_mark", "Is it bad  ? Who is at risk? ?", "Is it bad? Who is at risk?"),
    ("blanks", "  a\u00a0 b\t c \n\n\n\n d \n", "a b c\n\nd"),
    ("blanks", "10\u00a0mg", "10 mg"),
]

# what no rule may touch, with all of them on
LEFT_ALONE = [
    "p < 0.05 and q > 1",
    "if a <b and c> d",
    "BP 120 / 80 and 120/80 mmHg",
    "10 - 20 mg",
    "Take 10-20 mg, 2x/day.",
    "Options: A: rest, B: ice.",
    "A: airway, B: breathing, C: circulation",
    "A: Airway\nB: Breathing",
    "Tell the Doctor: he needs to know.",
    "A good Doctor: kind and quick.",
    "Model 3: use it.",
    "DR: diabetic retinopathy",
    "Patient information: read it.",
    "PMID: 31452104",
    "PMID 3145210412",
    "doi:10.1016/S0140-6736(20)30183-5",
    "https://doi.org/10.1056/NEJMoa2034577",
    "10.1234/212-555-0123",
    "NCT04280705",
    "Vitamin B12, COVID-19, IL-6, H1N1",
    "Na+ < 135 and K+ > 5.5",
    "Na+ 140 404 639 1075",
    "R&D and AT&T; Q&A;",
    "https://x.org/?a=1&copy=2&lt=3",
    "&notit; &foo; &",
    "Salt &pepper;",
    "5 < 6 > 4",
    "I <3 you",
    "x<y",
    "</3",
    "👩‍⚕️ 👨‍👩‍👧‍👦 ❤️ 🏳️‍🌈",
    "می‌خواهم",
    "क्‍ष",
    "São Paulo, L'ÉCOLE À PARIS, DÉJÀ VU, Übergrößenträger, Ångström, Łódź, Ñandú",
    "37 °C, 10 µg, 10 μg, α β γ Δ, ≥ ≤ ±",
    "“quotes” — dashes – and … ½ ligatures ﬁ",
    "ICD-10 J45.909, E11.9, ISBN 978-3-16-148410-0, ISBN 0-306-40615-2",
    "2024-01-31 12:30, 31/01/2024, 1985-2020",
    "1, 2, 3 - 4",
    "250-500-1000 mg",
    "400 500 1000 mg",
    "doses of 250-500-1000 units",
    "2 500 000 IU",
    "100 200 300 4000",
    "Is 5 + ? = 10",
    "Really?! Yes??",
    "Is it (?)",
    "a ?b",
    "https://x.org/ ?q=1",
    "CO • 2",
    "a·b",
    "1. one\n2. two\n\n- three\n* four",
    "# Heading\n\n### Instructions\n1. Press.",
    "Step 1: press. Step 2: hold.",
    "Time: 10:30",
    "pH 7.35-7.45; HR 60-100/min.",
    "GTIN 4006381333931",
    "50-78-2 is aspirin",
    "20-25-30-35-40-45",
    "14 19 300 15 21 325 16 23 350",
    "2001 2002 2003 2004",
    "MD 20892-3655",
    "user@home said",
    "5@10 mg",
    "5@10.5 mg",
    "root@10.0.0.1",
    "@doctor",
    "212 555 0123 4500",
    "a record number of 25,000 people",
    "patient no. 3 of 12345",
    "\uf03c private, unknown",
    "Don't <name> it",
    "<unused>",
    "use <end of turn>",
    "Arnold–Chiari",
    "a\n\nb",
    "Signs and Symptoms Approximate number of patients (when available) were not given.",
    "I think> so",
    "水を飲む。",
    "Wasser? Ja.",
    "5’ 6” tall",
    "the 5-HT2A receptor",
]


@pytest.mark.parametrize(("rule", "before", "after"), CHANGES)
def test_each_rule_changes_what_it_is_for_is_named_and_is_done_after_once(rule, before, after):
    assert RULE[rule](before) == after
    assert RULE[rule](after) == after
    assert cleaned(before)[1][rule]


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_like_a_defect_is_left_alone(text):
    assert cleaned(text) == (text, {})


def test_a_range_is_not_a_list():
    assert cleaned("Take 10  - 20 mg.")[0] == "Take 10 - 20 mg."
    assert cleaned("BP 120  - 80 or 130  - 90")[0] == "BP 120 - 80 or 130 - 90"


@pytest.mark.parametrize(
    ("before", "after", "rules"),
    [
        ("&amp;lt;br&gt;x", "x", {"html", "blanks"}),
        ("&#60;think&#62;a&lt;/think&gt;b", "b", {"html", "reasoning"}),
        ("&Atilde;&copy;", "é", {"html", "mojibake"}),
        ("<p>Doctor: Rest .</p>", "Rest .", {"html", "leaked_turns", "blanks"}),
        ("What is it\u00a0?", "What is it?", {"blanks", "question_mark"}),
        ("<think>Patient: a</think> Doctor: b", "b", {"reasoning", "leaked_turns"}),
        ("Call me: 212<b></b>-555-0123", "Call me: [phone]", {"html", "personal_data"}),
        ("<end_of<b>_turn>", "< end_of_turn>", {"html", "control_token_broken_up"}),
        ("&lt;start_of_turn&gt;user", "< start_of_turn>user", {"html", "control_token_broken_up"}),
        (
            "<end\u200b_of_turn><eos>",
            "< end_of_turn>< eos>",
            {"control_characters", "control_token_broken_up"},
        ),
    ],
)
def test_what_one_rule_uncovers_another_cleans(before, after, rules):
    text, changed = cleaned(before)
    assert (text, set(changed)) == (after, rules)


def test_before_and_after_are_those_of_the_named_rule():
    _, changed = cleaned("<b>What</b> is  it ?")
    assert changed["html"] == ("<b>What</b> is  it ?", "What is  it ?")
    assert changed["question_mark"] == ("What is  it ?", "What is  it?")
    assert changed["blanks"] == ("What is  it?", "What is it?")


def test_markup_within_markup_within_markup_drops_the_row_instead_of_running_on():
    text = "<b" * 300 + ">" * 300
    assert "nested_markup" in cleaned(text)[1]
    assert reason("What?", text) == "nested_markup"


# ---------------------------------------------------------------------------------------------------------------------
# personal data


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
    assert masked(before) == after
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
    assert masked(text) == text


def test_personal_data_is_masked_dropped_or_kept_as_told():
    messages = row("Who?", "Write to jane@example.org, she answers.")
    assert clean.clean_row(messages, job())[0][1]["content"] == "Write to [e-mail], she answers."
    assert clean.clean_row(messages, job(personal_data="drop"))[1:] == ("personal_data", {})
    assert clean.clean_row(messages, job(personal_data="keep")) == (messages, "", {})
    assert (
        reason("I am jane@example.org, help!", "Call 911.", personal_data="drop") == "personal_data"
    )


# ---------------------------------------------------------------------------------------------------------------------
# rows


@pytest.mark.parametrize(
    ("expected", "question", "answer"),
    [
        ("empty", "What?", " \n"),
        ("empty", "<br>", "Rest."),
        ("empty", "\u200b", "Rest."),
        ("empty", "What?", "<think>x</think>"),
        ("placeholder", "What?", "N/A."),
        ("placeholder", "What?", "n.a."),
        ("placeholder", "What?", "None"),
        ("placeholder", "What?", "[Deleted]"),
        ("placeholder", "What?", "..."),
        ("placeholder", "What?", "<nooutput>"),
        ("placeholder", "What?", "Answer: TBD"),
        ("answer_is_question", "What is it ?", "what is IT?"),
        ("link_list", "Where?", "See https://a.org/x and www.b.org."),
        ("link_list", "Where?", "See <a href='https://a.org'>here</a>."),
        ("link_list", "Where?", "Resources about burns:  - Red Cross  - WHO   See also:  - NHS"),
        ("leaked_turns", "What?", "Rest.\nPatient: thanks\nDoctor: bye"),
        ("leaked_turns", "What?", "Rest.\n### Instruction:\nNext"),
        ("leaked_turns", "It hurts.\nDoctor: where?", "Here."),
        ("leaked_turns", "What?", "Patient: I fell."),
        ("reasoning_without_end", "What?", "<think>I wonder"),
        ("reasoning_without_end", "What?", "so.</reasoning> Rest."),
        ("reasoning_without_end", "What?", "<think>a<think>b</think>c"),
        ("too_long", "What?", "x" * 1_000_001),
    ],
)
def test_rows_are_dropped_with_their_reason(expected, question, answer):
    assert reason(question, answer) == expected


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Is it none?", "None of these."),
        ("NA?", "Na is sodium."),
        ("What?", "No."),
        ("What?", "5"),
        ("What?", "Yes: N/A applies."),
        ("Is aspirin safe?", "Aspirin is safe?"),
        ("Press?", "Press, press."),
        (
            "Where?",
            "Cool the burn for 20 minutes, then cover it loosely and see https://a.org for more.",
        ),
        ("Kit?", "Resources you need in a kit:\n- gauze\n- tape"),
        (
            "More information?",
            "Steps:\n- press\n- hold\nMore information is at the clinic, but call 911 first.",
        ),
        ("Roles?", "Call the doctor: he decides. The patient: lies down."),
        ("How?", "### Instructions\n1. Press.\n\n### Response to shock\nLie down."),
        ("Patient: I fell.\nPatient: It hurts.", "Rest."),
        ("What is <think>?", "I think so."),
    ],
)
def test_rows_that_only_look_bad_are_kept(question, answer):
    assert reason(question, answer) == ""


@pytest.mark.parametrize(
    ("rule", "question", "answer"),
    [
        ("mojibake", "What?", "37 Â°C is fine."),
        ("html", "What?", "10 &lt; 20 <b>mg</b>"),
        ("control_characters", "What?", "Re\u200bst."),
        ("blanks", "What?", " Rest  now.\n\n\n\nYes.\u00a0"),
        ("question_mark", "What is it ?", "A burn."),
        ("flattened_lists", "What?", "Bring • gauze • tape"),
        ("leaked_turns", "Patient: What?", "Doctor: Rest."),
        ("leaked_turns", "What?", "Rest.\nPatient: thanks"),
        ("placeholder", "What?", "N/A"),
        ("answer_is_question", "What is it?", "What is it?"),
        ("link_list", "Where?", "See https://a.org"),
    ],
)
def test_a_rule_switched_off_leaves_the_text_and_keeps_the_row(rule, question, answer):
    messages = row(question, answer)
    assert clean.clean_row(messages, job())[0] != messages or reason(question, answer)
    assert clean.clean_row(messages, job(skip_rules=[rule])) == (messages, "", {})


def test_every_cleaning_rule_is_switched_off_above():
    marks = test_a_rule_switched_off_leaves_the_text_and_keeps_the_row.pytestmark[0].args[1]
    assert {m[0] for m in marks} == set(params.RULES) - {"exact_duplicate"}
    assert set(RULE) - set(params.RULES) == {"reasoning", "personal_data"}, (
        "a rule without a switch and without a policy"
    )
    assert (
        clean.text_rules(job(skip_rules=list(params.RULES), reasoning="keep", personal_data="keep"))
        == []
    )


def test_french_keeps_the_blank_before_its_question_marks():
    assert cleaned("Que faire ?", language="fr") == ("Que faire ?", {})
    assert cleaned("What now ?", language="en")[0] == "What now?"


def test_reasoning_is_kept_when_told_and_is_never_looked_for_in_questions():
    messages = row("Does <think>a</think> help?", "<think>b</think>Yes.")
    assert clean.clean_row(messages, job(reasoning="keep")) == (messages, "", {})
    assert [m["content"] for m in clean.clean_row(messages, job())[0]] == [
        "Does <think>a</think> help?",
        "Yes.",
    ]


def test_conversations_and_system_messages():
    messages = row(["You  help."], "It  bleeds.", "Press .", "And ?", "Hold.")
    out, why, changed = clean.clean_row(messages, job())
    assert [m["role"] for m in out] == ["system", "user", "assistant", "user", "assistant"]
    assert [m["content"] for m in out] == ["You help.", "It bleeds.", "Press .", "And?", "Hold."]
    assert why == ""
    assert changed["blanks"] == ("You  help.", "You help."), (
        "the first change of a rule is the one shown"
    )
    assert clean.clean_row(row([" "], "It bleeds.", "Press."), job()) == (
        row("It bleeds.", "Press."),
        "",
        {"blanks": (" ", ""), "empty_system_message": (" ", "")},
    )
    assert reason("Hi.", "Hello.", "What is it?", "What is it?") == "answer_is_question"
    assert reason("Hi.", "N/A", "What is it?", "A burn.") == "placeholder"


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ([], "empty"),
        (["system"], "turns_out_of_order"),
        (["user"], "turns_out_of_order"),
        (["assistant", "user"], "turns_out_of_order"),
        (["user", "user"], "turns_out_of_order"),
        (["user", "assistant", "user"], "turns_out_of_order"),
        (["user", "system", "assistant"], "turns_out_of_order"),
        (["system", "system", "user", "assistant"], "turns_out_of_order"),
        (["user", "assistant"], ""),
        (["system", "user", "assistant", "user", "assistant"], ""),
    ],
)
def test_turns_must_alternate(roles, expected):
    messages = [{"role": role, "content": f"Text {n}."} for n, role in enumerate(roles)]
    assert clean.clean_row(messages, job())[1] == expected


def test_dangerous_advice_is_dropped_flagged_or_ignored_as_told(monkeypatch):
    monkeypatch.setattr(
        advice,
        "find_harmful",
        lambda text, question="": [("ice", "Put ice on it.")] if "ice" in text else [],
    )
    messages = row("Burn?", "Put ice on it.")
    shown = {"dangerous_advice_flagged": ("Put ice on it.", "rule ice")}
    assert clean.clean_row(messages, job(dangerous_advice="drop")) == (
        messages,
        "dangerous_advice",
        {"dangerous_advice": shown["dangerous_advice_flagged"]},
    )
    assert clean.clean_row(messages, job(dangerous_advice="flag")) == (messages, "", shown)
    assert clean.clean_row(messages, job(dangerous_advice="ignore")) == (messages, "", {})
    assert reason("May I put ice on it?", "Cool it with water.", dangerous_advice="drop") == "", (
        "a question gives no advice"
    )


SENTENCES = {
    "en": "Press firmly on the wound with a clean cloth and call an ambulance if the bleeding does not stop.",
    "es": "Presione la herida con un paño limpio y llame a una ambulancia si la hemorragia no se detiene.",
    "fr": "Appuyez fermement sur la plaie avec un linge propre et appelez les secours si le saignement ne s'arrête pas.",
    "de": "Drücken Sie fest mit einem sauberen Tuch auf die Wunde und rufen Sie den Notarzt, wenn die Blutung nicht aufhört.",
    "it": "Premere con forza sulla ferita con un panno pulito e chiamare un'ambulanza se il sanguinamento non si ferma.",
    "pt": "Pressione a ferida com um pano limpo e chame uma ambulância se o sangramento não parar em poucos minutos.",
    "nl": "Druk stevig op de wond met een schone doek en bel een ambulance als het bloeden niet stopt.",
    "pl": "Mocno uciskaj ranę czystą szmatką i wezwij pogotowie, jeśli krwawienie nie ustaje po kilku minutach.",
    "ru": "Крепко прижмите рану чистой тканью и вызовите скорую помощь, если кровотечение не останавливается.",
    "tr": "Temiz bir bezle yaraya sıkıca bastırın ve kanama durmazsa hemen ambulans çağırın.",
    "ar": "اضغط بقوة على الجرح بقطعة قماش نظيفة واتصل بالإسعاف إذا لم يتوقف النزيف.",
    "hi": "घाव पर साफ कपड़े से जोर से दबाएं और अगर खून बहना बंद न हो तो एम्बुलेंस बुलाएं।",
    "zh": "用干净的布用力按住伤口,如果出血不止,请立即呼叫救护车并让伤者平躺。",
    "ja": "清潔な布で傷口をしっかり押さえ、出血が止まらない場合は救急車を呼んでください。",
}


@pytest.mark.parametrize("spoken", SENTENCES)
def test_answers_in_another_language_are_dropped(spoken):
    text = SENTENCES[spoken]
    assert reason(text[:20], text) == "", "an empty `language` takes any"
    for wanted in ("en", "es", "ja", spoken):
        assert reason(text[:20], text, language=wanted) == (
            "" if wanted == spoken else "other_language"
        )


@pytest.mark.parametrize(
    "answer", ["CPR", "Ibuprofen 400 mg", "Yes.", "112", "Aspirin, 325 mg, chewed.", "Call 911."]
)
def test_an_answer_too_short_to_tell_is_judged_with_its_question(answer):
    assert (
        reason(
            "What should I do first when somebody has a heart attack at home?",
            answer,
            language="en",
        )
        == ""
    )


def test_a_language_nobody_knows_is_refused():
    clean.check_language("")
    clean.check_language("en")
    with pytest.raises(
        UserError, match="`xx` is not one the detector knows; expected one of .*af, am"
    ):
        clean.check_language("xx")


# ---------------------------------------------------------------------------------------------------------------------
# what holds for any text


PIECES = [
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n\n",
    "\t",
    "\u00a0",
    "\r",
    "\x0c",
    "\x00",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u2028",
    "<",
    ">",
    "</",
    "/>",
    "&",
    ";",
    "#",
    "-",
    "- ",
    "  - ",
    "*",
    "•",
    " • ",
    "·",
    "?",
    " ?",
    '"',
    "0",
    "1",
    "2",
    "555",
    "1234",
    "212-555-0123",
    "+44 20 7946 0958",
    "4111 1111 1111 1111",
    "123-45-6789",
    "MRN",
    "SSN: ",
    "90%",
    "(",
    ")",
    ".",
    ",",
    "@",
    "a@b.co",
    "a@",
    "+",
    "=",
    "^",
    ":",
    "|",
    "a",
    "B",
    "A:",
    "B:",
    "é",
    "Ã",
    "Ã©",
    "Â",
    "â€™",
    "µ",
    "ß",
    "İ",
    "水",
    "\uf06d",
    "\uf0b7",
    "👍🏽",
    "Patient:",
    "Doctor: ",
    "### Response:\n",
    "### Answer",
    "Q:",
    "<reasoning>",
    "</reasoning>",
    "<think>",
    "</think>",
    "<br>",
    "<b>",
    "</b>",
    "<b",
    "<p class=",
    "<td>",
    "<sup>",
    "<script>",
    "</script>",
    "<!--",
    "-->",
    "&amp;",
    "&lt;",
    "&gt;",
    "&#60;",
    "&#38;",
    "&nbsp;",
    "&am",
    "amp;",
    "lt;",
    "&amp;lt;br&gt;",
    "&Atilde;",
    "<end_of<b>_turn>",
    "<end_of_turn>",
    "<start_of_turn>",
    "<bos>",
    "end_of_turn>",
    "unused7>",
    "word",
    "Word",
    "not",
    clean.TABLE_HEAD + " ",
    clean.TABLE_TAIL,
    "http://x.org",
    "$",
    "\\",
    "'",
]
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=14).map("".join)
lines = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            "1",
            "?",
            "-",
            "•",
            " ",
            "  ",
            "\n",
            "<",
            ">",
            "b>",
            "&",
            "amp;",
            "lt;",
            ":",
            "Q",
        ]
    ),
    max_size=24,
).map("".join)
any_text = st.one_of(texts, lines)
subsets = st.sets(st.sampled_from(sorted(set(params.RULES)))).map(sorted)
TOKENS = (
    "<end_of_turn>",
    "<start_of_turn>",
    "<bos>",
    "<eos>",
    "<pad>",
    "<unk>",
    "<mask>",
    "<start_of_image>",
    "<image_soft_token>",
    "<audio_soft_token>",
    "<unused7>",
)
any_of = settings(
    derandomize=True, deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow]
)


def within(short, long):
    """Whether the letters and digits of one text are, in order, among those of another."""
    rest = iter(re.findall(r"\w", long))
    return all(letter in rest for letter in re.findall(r"\w", short))


@any_of
@given(any_text, subsets, st.sampled_from(["mask", "keep"]), st.sampled_from(["strip", "keep"]))
def test_cleaning_twice_is_cleaning_once_and_no_control_token_is_left(
    text, off, personal, reasoning
):
    for values in ({}, {"skip_rules": off, "personal_data": personal, "reasoning": reasoning}):
        once, changed = cleaned(text, **values)
        assert not any(token in once for token in TOKENS)
        assert (once == text) == (not changed)
        if "nested_markup" not in changed:
            assert cleaned(once, **values) == (once, {})
    assert "nested_markup" not in cleaned(text)[1] or text.count("<") + text.count("&") > 3, (
        "plain text always settles"
    )


@any_of
@given(any_text)
def test_no_rule_invents_text(text):
    for name, rule in clean.TEXT_RULES:
        after = (
            re.sub(r"\[(?:e-mail|phone|card number|record number)\]", "", rule(text))
            if name == "personal_data"
            else rule(text)
        )
        decoded = [text]
        while name == "html" and len(decoded) < 9:
            decoded.append(
                re.sub(
                    r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|\w{2,31});",
                    lambda m: html.unescape(m[0]),
                    decoded[-1],
                )
            )
        if name == "control_characters":
            decoded = [text.translate(clean.SYMBOLS)]
        assert name == "mojibake" or any(within(after, source) for source in decoded), name
    plain, _ = cleaned(
        text, skip_rules=["mojibake", "html", "control_characters"], personal_data="keep"
    )
    assert within(plain, text)


@any_of
@given(st.lists(any_text, min_size=1, max_size=5), subsets, st.booleans())
def test_a_row_is_unchanged_exactly_when_no_rule_is_named(contents, off, with_system):
    messages = row([contents[0]], *contents[1:]) if with_system else row(*contents)
    out, why, changed = clean.clean_row(messages, job(skip_rules=off))
    assert (out == messages) == (not changed)
    assert set(changed) <= set(clean.CHANGES)
    assert why in ("", *clean.REASONS)
    assert (
        all(m["role"] in ("system", "user", "assistant") and m["content"].strip() for m in out)
        or why
    )
    if not why:
        assert clean.clean_row(out, job(skip_rules=off))[0] == out


@any_of
@given(st.one_of(any_text, st.text()))
def test_normalised_texts_are_equal_for_variants_and_stay_as_they_are(text):
    plain = words.normalised(text)
    assert words.normalised(plain) == plain
    assert plain == plain.strip()
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert words.normalised(unicodedata.normalize(form, text)) == plain, form
    assert words.normalised(text.casefold()) == plain
    assert words.normalised("\n " + text.replace(" ", " \t\u00a0") + " ") == plain


def test_normalised_settles_every_character():
    for n in range(0x110000):
        once = words.normalised(chr(n))
        assert words.normalised(once) == once, hex(n)
    assert words.normalised("ᾳ\u0308") == words.normalised(words.normalised("ᾳ\u0308")), (
        "what folding case takes apart, NFKC puts together again"
    )
    assert (
        words.normalised("ＡＢＣ\u00a0Straße ﬁ №")
        == words.normalised("abc  STRASSE FI no")
        == "abc strasse fi no"
    )
    assert words_of("BP: 120/80, O₂!") == ["bp", "120", "80", "o2"]


SIGNS = [
    "a",
    "<",
    "&",
    " ",
    "\n",
    "- ",
    "  - ",
    "?",
    " ?",
    "1",
    "1 ",
    "12-",
    "+1 ",
    "a@",
    "a.",
    "Patient: ",
    "A: ",
    "### Input ",
    "<b",
    "<a ",
    "<b>",
    "&amp;",
    "amp;",
    "&#38;",
    "<think>",
    "</think>",
    "<!--",
    "<script>",
    "<p a=",
    "• ",
    "\t",
    "\u00a0",
    "é",
    "Ã©",
    "\x00",
    "\r",
    "MRN ",
    "MRN: 1 ",
    "212-555-0123 ",
    "4111 1111 1111 1111 ",
    "+44 20 ",
    "<sup>1",
    clean.TABLE_HEAD + " ",
    "- 5% ",
]


@pytest.mark.timeout(
    120
)  # a rule that backtracks needs hours for a million characters, one that does not a second or two
@pytest.mark.parametrize("sign", SIGNS)
def test_no_text_takes_more_than_linear_time(sign):
    text = sign * (990_000 // len(sign))
    sources = "https://x.org " * 20 + "one two three four five six seven eight - resources about "
    for work in (
        lambda: cleaned(text),
        lambda: clean.link_list(sources + text),
        lambda: reason(
            "x", f"Patient: <think> MRN &{text}y", skip_rules=["blanks", "control_characters"]
        ),
    ):
        work()
    assert reason("What?", text + "x" * 20_000) == "too_long"


# ---------------------------------------------------------------------------------------------------------------------
# real data


@pytest.mark.skipif(not DATA.is_dir(), reason="no ../shared/data with real questions and answers")
def test_the_known_defects_of_medquad_are_found():
    with gzip.open(DATA / "medquad.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    alike = [r for r in rows if words_of(r["question"]) == words_of(r["answer"])]
    assert len(alike) == 5
    assert {reason(r["question"], r["answer"]) for r in alike} == {"answer_is_question"}
    links = [r for r in rows if clean.link_list(r["answer"])]
    assert 1_080 <= len(links) <= 1_095
    assert all("resources" in r["answer"] for r in links)
    tables = [clean.lists(r["answer"]) for r in rows if clean.TABLE_HEAD in r["answer"]]
    assert len(tables) == 2_243
    table_lines = [
        line
        for text in tables
        for line in text.split(clean.TABLE_HEAD)[1]
        .split(clean.TABLE_TAIL[1:])[0]
        .strip()
        .split("\n")
    ]
    assert (
        sum(
            not re.fullmatch(r"[^%]+ (?:-|<?[\d.]*%|\d+/\d+|\d of \d+)", line)
            for line in table_lines
        )
        < 5
    )
    questions = [clean.question_mark(r["question"]) for r in rows]
    assert (
        sum(before["question"] != after for before, after in zip(rows, questions, strict=True))
        > 16_000
    )
    assert not any(" ?" in question for question in questions)
