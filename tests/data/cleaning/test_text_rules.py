"""Rules that change a text: what each must change, similar texts that must stay, and properties of all rules.

python -m pytest tests/data/cleaning/test_text_rules.py
"""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import cleaned, reason
from helpers.odd_texts import any_of, any_text, subsets
from lib.data.cleaning import lists, text_rules
from lib.data.cleaning.links import is_link_list
from lib.data.cleaning.markup_tags import UnclearMarkup

RULE = dict(text_rules.TEXT_RULES)


CHANGES = [
    (
        "mojibake",
        "MÃ©niÃ¨re donâ€™t, 37 Â°C, Â½ cup, 10 Âµg, â‰¥ 5 mg",
        "Ménière don’t, 37 °C, ½ cup, 10 µg, ≥ 5 mg",
    ),
    ("mojibake", "\x93quoted\x94, \u00e9", "“quoted”, \u00e9"),
    ("html", "Wash.<br>Dry.<BR />Cover.", "Wash.\nDry.\nCover."),
    ("html", '<p>Sit.</p><div class="x">Rest.</div>', "Sit.\n\nRest."),
    (
        "html",
        'H<sub>2</sub>O, <b>now</b>, <a href="https://x.org?a=1&b=2">here</a>',
        "H2O, now, here",
    ),
    ("html", "<tr><td>5 mg</td><td>daily</td></tr>", "| 5 mg | daily |"),
    (
        "html",
        "10<sup>9</sup>/L and 10<sup>-3</sup>, 1<sup>st</sup>, m<sup>2</sup>",
        "10^9/L and 10^-3, 1st, m2",
    ),
    ("html", "p &lt; 0.05 &amp; q &#62; 1 &#x2265; &eacute;", "p < 0.05 & q > 1 ≥ é"),
    ("html", "a &amp;amp;lt; b", "a < b"),
    ("html", 'x<!-- <b>hidden</b> -->y <script type="a">if (1 < 2) go()</script>z', "xy  z"),
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
    "A: alert\nV: voice\nP: pain\nU: unresponsive",
    "A: appearance, P: pulse, G: grimace, A: activity, R: respiration",
    "A: age; T: time; M: mechanism; I: injuries; S: signs; T: treatment",
    "a: alert, v: voice",
    "Q: quality, R: region, S: severity, T: time",
    "Patient: Ann Example\nAge: 40\nBP: 120/80",
    "300 450 1200 ng/mL and 200 260 1000",
    "platelets (250) 300-1000, 250-500-1000, 300–450–1200",
    "225-300-1500 ng/mL, 312-455-1280 pg/mL, 220-340-1150 mmHg",
    "150-50-1200 and 4000 4500 5000 5500",
    "rates 300-150-100-75-60-50",
    "WBC 4000 5200 6100 5700",
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


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # nested lists keep their nesting, and a list's own text its place
        (
            "1. Call 112\n   - say where\n   - say what\n2. Help\n   a. airway\n      - look",
            "1. Call 112\n   - say where\n   - say what\n2. Help\n   a. airway\n      - look",
        ),
        ("- a\n\t- b\n\t\t- c\n- d", "- a\n  - b\n    - c\n- d"),
        ("- a\n     more  of a\n- b\n\n   text", "- a\n  more of a\n- b\n\ntext"),
        ("  - a\n  - b\n", "- a\n- b"),
        ("- a\n                    Heading\n                    - b", "- a\nHeading\n- b"),
        # ranges and readings are no lists
        (
            "Infants 5  - 10 mL; adults 20  - 40 mL, 1  - 2 g",
            "Infants 5 - 10 mL; adults 20 - 40 mL, 1 - 2 g",
        ),
        ("BP 120  - 80, 130  - 90, 140  - 95", "BP 120 - 80, 130 - 90, 140 - 95"),
        (
            "5 mg  - 10 mg, 10%  - 20%, 0.5 mg/kg  - 1 mg/kg",
            "5 mg - 10 mg, 10% - 20%, 0.5 mg/kg - 1 mg/kg",
        ),
        ("2  * 3 or 4  * 5", "2 * 3 or 4 * 5"),
        ("2 • 3 • 4", "2 • 3 • 4"),
        # tables of tabs and blanks keep their empty cells
        (
            "Drug\tAdult\tChild\nIbuprofen\t400 mg\t\nParacetamol\t\t15 mg/kg",
            "| Drug | Adult | Child |\n| --- | --- | --- |\n| Ibuprofen | 400 mg | |\n| Paracetamol | | 15 mg/kg |",
        ),
        (
            "Drug          Adult     Child\nIbuprofen     400 mg\nParacetamol             15 mg/kg",
            "| Drug | Adult | Child |\n| --- | --- | --- |\n| Ibuprofen | 400 mg | |\n| Paracetamol | | 15 mg/kg |",
        ),
        ("\tAdult\tChild\nX\t\t5 mg", "| | Adult | Child |\n| --- | --- | --- |\n| X | | 5 mg |"),
        ("Dose:\t5 mg\nRoute:\tmouth", "Dose: 5 mg\nRoute: mouth"),
        # what shows nothing does not join two numbers
        ("5\u00ad10 mg, 5\x1310 mg, 5\u200b10 mg", "5-10 mg, 5 10 mg, 5 10 mg"),
        ("1\u20600 mg, re\u00adst", "10 mg, rest"),
    ],
)
def test_numbers_columns_and_levels_stay_apart(before, after):
    assert cleaned(before)[0] == after


def test_a_range_is_not_a_list():
    assert cleaned("Take 10  - 20 mg.")[0] == "Take 10 - 20 mg."
    assert cleaned("BP 120  - 80 or 130  - 90")[0] == "BP 120 - 80 or 130 - 90"


@pytest.mark.parametrize(
    ("before", "after", "rules"),
    [
        ("&amp;lt;br&gt;x", "x", {"html"}),
        ("&#60;think&#62;a&lt;/think&gt;b", "b", {"html", "reasoning"}),
        ("&Atilde;&copy;", "é", {"html", "mojibake"}),
        ("<p>Doctor: Rest .</p>", "Rest .", {"html", "leaked_turns"}),
        ("What is it\u00a0?", "What is it?", {"blanks", "question_mark"}),
        ("<think>Patient: a</think> Doctor: b", "b", {"reasoning", "leaked_turns"}),
        ("Call me: 212<b></b>-555-0123", "Call me: [phone]", {"html", "personal_data"}),
        ("Rest.<end_of<b>_turn>", "Rest.", {"html", "control_tokens"}),
        ("<end_of<b>_turn> Rest.", "Rest.", {"html", "control_tokens"}),
        ("&lt;start_of_turn&gt;user\nRest.", "Rest.", {"html", "control_tokens"}),
        ("Rest.<end\u200b_of_turn><eos>", "Rest.", {"control_characters", "control_tokens"}),
        ("a<end_of<b>_turn>b", "a< end_of_turn>b", {"html", "control_token_broken_up"}),
        (
            "a<end\u200b_of_turn><eos>b",
            "a< end_of_turn>< eos>b",
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
# what holds for any text


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


def within(short, long):
    """Tell whether the letters and digits of one text are, in order, among those of another."""
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
        changed.pop("unclear_markup", None)  # it stays as it is
        assert (once == text) == (not changed)
        if "nested_markup" not in changed:
            again, changed = cleaned(once, **values)
            changed.pop("unclear_markup", None)
            assert (again, changed) == (once, {})
    assert "nested_markup" not in cleaned(text)[1] or text.count("<") + text.count("&") > 3, (
        "plain text always settles"
    )


@any_of
@given(any_text)
def test_no_rule_invents_text(text):
    for name, rule in text_rules.TEXT_RULES:
        try:
            after = rule(text)
        except UnclearMarkup:
            continue
        if name == "personal_data":
            after = re.sub(r"\[(?:e-mail|phone|card number|record number)\]", "", after)
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
            decoded = [text.translate(text_rules.SYMBOLS)]
        assert name == "mojibake" or any(within(after, source) for source in decoded), name
    plain, _ = cleaned(
        text, skip_rules=["mojibake", "html", "control_characters"], personal_data="keep"
    )
    assert within(plain, text)


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
    "<sup>1</sup>",
    "<td>",
    "<tr><td rowspan=9999>x",
    "<li>a",
    "<span>a</span>",
    "<del>",
    "<![CDATA[",
    '<p a="',
    "<s>",
    "<|im_end|>",
    "<start_of_turn>user\n",
    "5\u00ad",
    "5  - 10 ",
    "a\tb\tc\n",
    "a   b   c\n",
    "1. a\n    1. b\n",
    "Patient: x\n",
    "call 404 639 1075 ",
    lists.TABLE_HEAD + " ",
    "- 5% ",
]


# a rule that backtracks needs hours for so long a text, one that does not a fraction of a second
@pytest.mark.timeout(60)
@pytest.mark.parametrize("sign", SIGNS)
def test_no_text_takes_more_than_linear_time(sign):
    text = sign * (150_000 // len(sign))
    sources = "https://x.org " * 20 + "one two three four five six seven eight - resources about "
    for work in (
        lambda: cleaned(text),
        lambda: is_link_list("Where?", sources + text),
        lambda: reason(
            "x", f"Patient: <think> MRN &{text}y", skip_rules=["blanks", "control_characters"]
        ),
    ):
        work()
    assert reason("What?", text + "x" * (1_010_000 - len(text))) == "too_long"
