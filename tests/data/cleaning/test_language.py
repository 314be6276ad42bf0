"""Answers in another language: which are dropped, which English lists only look foreign.

python -m pytest tests/data/cleaning/test_language.py
"""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.cleaning import job, reason, row
from helpers.odd_texts import any_of, any_text
from lib.common.errors import UserError
from lib.data.cleaning import clean, language

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


TERSE = [
    ("What is the antidote for opioid overdose?", "Naloxone"),
    ("Diagnosis?", "Acute cholecystitis"),
    ("Diagnosis?", "Sjögren syndrome"),
    ("What is the diagnosis?", "Henoch-Schönlein purpura"),
    ("Which statins are there?", "Atorvastatin, simvastatin, rosuvastatin, pravastatin"),
    ("Which biologics are used?", "Adalimumab, infliximab, etanercept, golimumab, certolizumab"),
    ("Which organism is it?", "Clostridioides difficile"),
    ("Organisms?", "Klebsiella pneumoniae, Proteus mirabilis, Serratia marcescens"),
    ("Branches of the facial nerve?", "Temporal, zygomatic, buccal, marginal mandibular, cervical"),
    ("Muscles of the forearm?", "Pronator teres, flexor carpi radialis, palmaris longus"),
    ("What are tetanus signs?", "Trismus, risus sardonicus, opisthotonus, dysphagia, spasms"),
    ("Blood gas?", "pH 7.19, pCO2 9.1 kPa, pO2 7.9 kPa, HCO3 24, BE -2"),
    ("Blood count?", "Hb 7.8 g/dL, MCV 61 fL, WBC 9.1, Plt 512"),
    ("Drip?", "NaCl 0.9% 1 L + KCl 20 mmol / 8 h"),
    ("Prescription?", "Tab. Amoxicillin 500 mg 1-1-1 x 5 d; Syp. Paracetamol 5 ml SOS"),
    ("Code?", "S52.50"),
    ("Genes?", "FBN1, TGFBR1, TGFBR2, COL3A1, ACTA2, MYH11"),
    ("Which valve?", "Mitral"),
    ("Which?\n\nA) Treponema pallidum\nB) Borrelia burgdorferi", "Borrelia burgdorferi"),
    ("Which?\n\nA) Ileum\nB) Jejunum\nC) Caecum", "Caecum"),
    ("GCS?", "E2 V2 M4"),
    ("Is it 5 or 10?", "↑"),
]


@pytest.mark.parametrize(("question", "answer"), TERSE)
def test_terse_english_is_not_taken_for_another_language(question, answer):
    assert reason(question, answer, language="en") in ("", "placeholder")
    assert language.find_language(question, answer, "en") == ""


@pytest.mark.parametrize(
    ("wanted", "question", "answer"),
    [
        (
            "fr",
            "Quels médicaments ?",
            "Ramipril, bisoprolol, atorvastatine, acide acétylsalicylique",
        ),
        ("fr", "Quel germe ?", "Escherichia coli"),
        ("de", "Blutgas?", "pH 7,35-7,45; pCO2 35-45 mmHg; HCO3 22-26 mmol/l"),
        ("de", "Welche Diagnose?", "Akute Pankreatitis"),
        ("es", "¿Diagnóstico?", "Apendicitis aguda"),
        ("es", "¿Qué músculos?", "Supraespinoso, infraespinoso, redondo menor, subescapular"),
        ("it", "Quale batterio?", "Staphylococcus aureus"),
        ("ru", "Какой препарат?", "Парацетамол, ибупрофен, кеторолак"),
        ("ru", "Какой возбудитель?", "Escherichia coli"),
        ("zh", "什么药?", "布洛芬、对乙酰氨基酚"),
    ],
)
def test_lists_and_terms_stay_in_other_wanted_languages(wanted, question, answer):
    assert reason(question, answer, language=wanted) == ""


@pytest.mark.parametrize(
    ("answer", "spoken"),
    [
        ("Presione la herida con un paño limpio.", "es"),
        ("Legen Sie die Beine hoch.", "de"),
        ("Appuyez sur la plaie.", "fr"),
        ("Немедленно вызовите скорую помощь.", "ru"),
        ("休息。", "zh"),
    ],
)
def test_a_foreign_answer_under_an_english_question_is_named_with_its_language(answer, spoken):
    messages = row("What should I do first?", answer)
    _, why, changed = clean.clean_row(messages, job(language="en"))
    assert (why, changed) == ("other_language", {"other_language": (answer, f"language {spoken}")})
    assert reason("What should I do first?", answer, language=spoken) == ""


def test_the_second_answer_counts_too():
    assert reason("Hi.", "Hello there.", "And?", SENTENCES["fr"], language="en") == "other_language"


def test_a_language_nobody_knows_is_refused():
    language.check_language("")
    language.check_language("en")
    for code in ("xx", "zxx", "EN"):
        with pytest.raises(
            UserError, match=f"`{code}` is not one the detector knows;.* expected one of .*af, am"
        ):
            language.check_language(code)


@pytest.mark.parametrize("code", ["EN", " en", "en-US", "En"])
def test_a_language_written_otherwise_is_recognised(code):
    with pytest.raises(UserError, match="did you mean `en`?"):
        language.check_language(code)


@any_of
@given(any_text, any_text, st.sampled_from(["en", "fr", "la", "ru"]))
def test_any_text_gets_an_answer(question, answer, wanted):
    found = language.find_language(question, answer, wanted)
    assert found in ("", *language.list_languages())
    assert found != wanted


# -------------------------------------------------------------------------------------------------
# the bundled answers


def test_the_bundled_answers_are_of_many_kinds_and_languages():
    trials = language.read_trials()
    english = [t for t in trials if t["language"] == "en" and t["kind"] != "sentence"]
    foreign = Counter(t["language"] for t in trials if t["language"] != "en")
    assert len(english) >= 150
    assert len({t["kind"] for t in english}) >= 12
    assert sum(foreign.values()) >= 80
    assert len(foreign) >= 10
    assert len({(t["question"], t["answer"]) for t in trials}) == len(trials)
    assert all(set(t) == {"language", "kind", "question", "answer"} for t in trials)
    assert set(foreign) <= set(language.list_languages())


@pytest.mark.parametrize(
    ("wanted", "most_dropped", "most_missed"),
    [("en", 0.01, 0.1), ("fr", 0, 0.02), ("de", 0, 0.02), ("es", 0, 0.02), ("ru", 0, 0.02)],
)
def test_the_rule_is_rarely_wrong_on_them(wanted, most_dropped, most_missed):
    measured = language.measure_rule(wanted)
    for name, most in (("false_drops", most_dropped), ("misses", most_missed)):
        part = measured[name]
        assert part["answers"] > 3
        assert part["wrong"] <= most * part["answers"], part


def test_the_notebook_shows_these_errors():
    dropped, missed = language.tabulate_errors("en")
    assert dropped["mistake"] == "bundled answers in en, dropped as foreign"
    assert (dropped["answers"], missed["answers"]) == (234, 92)
    assert 0 < missed["wrong"] == language.measure_rule("en")["misses"]["wrong"]
    assert len(missed["examples"].splitlines()) == 3
    assert language.tabulate_errors("") == []


def test_one_wrong_rule_would_show(monkeypatch):
    monkeypatch.setattr(language, "find_language", lambda question, answer, wanted: "xx")
    measured = language.measure_rule.__wrapped__("en")
    assert measured["false_drops"]["wrong"] == measured["false_drops"]["answers"]
    assert measured["misses"]["wrong"] == 0
