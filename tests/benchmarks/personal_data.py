"""Compare the rules on personal data with Presidio's pattern recognisers, which need no downloaded model.

    pip install presidio-analyzer==2.2.366          # not among the project's requirements: it brings spaCy
    python tests/benchmarks/personal_data.py [ROWS.jsonl.gz]

Without a file, twenty hard lines; with one (MedQuAD was used), also every answer in it: what both find, what one of them
finds alone with a few words around it, and the seconds each takes.
"""

import gzip
import json
import logging
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[2]))

from presidio_analyzer.predefined_recognizers import EmailRecognizer, PhoneRecognizer

from lib.data.cleaning.personal import mask_personal_data

REGIONS = ("US", "GB", "DE", "FR", "ES", "IT", "IN", "AU", "CA", "BR")
# line, and the phone numbers and e-mail addresses in it that are somebody's own
HARD_LINES = [
    ("Call Dr. Meyer at (415) 555-0132 after the visit.", ["(415) 555-0132"]),
    ("My mobile is +44 7911 123456, please text.", ["+44 7911 123456"]),
    ("Reach the nurse on 212-736-5000 ext. 12.", ["212-736-5000 ext. 12"]),
    ("Write to anna.schmidt@klinik-nord.de with the photos.", ["anna.schmidt@klinik-nord.de"]),
    ("Patient's daughter: 303.555.0187, son: 303.555.0188", ["303.555.0187", "303.555.0188"]),
    (
        "Tel +49 (0)170 1234567 or mail j_doe+er@example.org",
        ["+49 (0)170 1234567", "j_doe+er@example.org"],
    ),
    ("Her number is +33 6 12 34 56 78 and she lives alone.", ["+33 6 12 34 56 78"]),
    ("phone 617 726 2000, ask for the ward", ["617 726 2000"]),
    ("E-mail: first.last@sub.hospital.co.uk.", ["first.last@sub.hospital.co.uk"]),
    ("He left +91 98765 43210 as his contact.", ["+91 98765 43210"]),
    ("In the US call Poison Control at 1-800-222-1222.", []),
    ("Call 911 or 112; the crisis line is 988.", []),
    ("ECG at 10:15, HR 120, BP 120/80-130/85, SpO2 97-98 %.", []),
    ("Give 1000 mg every 6 hours, at most 4000 mg in 24 hours.", []),
    ("Platelets 150000-450000 per microlitre, WBC 4500-11000.", []),
    ("N Engl J Med 2010;363:1304-1314. doi:10.1056/NEJMoa1001287", []),
    ("PMID 20842345, ISBN 978-3-16-148410-0, OMIM 143890.", []),
    ("Mutation c.1521_1523delCTT, chr7:117559590-117559592.", []),
    ("Dilute 1:10000; infuse 0.1-0.5 mcg/kg/min over 2020-2021.", []),
    ("German poison centre: +49 30 19240, Berlin.", []),
]


def presidio(text: str) -> list[str]:
    """Return Presidio's phone numbers and e-mail addresses, at the score that its analyzer keeps by default (any)."""
    spans = [
        *EMAIL.analyze(text, ["EMAIL_ADDRESS"], None),
        *PHONE.analyze(text, ["PHONE_NUMBER"], None),
    ]
    return sorted({text[span.start : span.end] for span in spans})


def ours(text: str) -> list[str]:
    """Return what our rules replace by [phone] or [e-mail], read from the masked text."""
    pattern = re.sub(r"\\\[(?:phone|e\\-mail)\\\]", "(.+?)", re.escape(mask_personal_data(text)))
    return sorted(
        set(
            re.fullmatch(
                re.sub(r"\\\[[a-z\\ ]+number\\\]", ".+?", pattern), text, re.DOTALL
            ).groups()
        )
    )


def score(name: str, find) -> None:
    right = missed = wrong = 0
    for line, personal in HARD_LINES:
        found = find(line)
        hit = [p for p in personal if any(p in f or (f in p and len(f) > 6) for f in found)]
        extra = [f for f in found if not any(f in p or p in f for p in personal)]
        right, missed, wrong = (
            right + len(hit),
            missed + len(personal) - len(hit),
            wrong + len(extra),
        )
        if extra or len(hit) < len(personal):
            print(f"  {name}: {line!r} found {found}, personal {personal}")
    print(f"{name}: {right} found, {missed} missed, {wrong} taken for personal that are not")


def real(path: str) -> None:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        answers = [json.loads(line)["answer"] or "" for line in lines]
    both, alone, seconds = 0, {"ours": [], "presidio": []}, {}
    found = {}
    for name, find, timed in (("ours", ours, mask_personal_data), ("presidio", presidio, presidio)):
        begin = time.perf_counter()
        for answer in answers:
            timed(answer)
        seconds[name] = round(time.perf_counter() - begin, 1)
        found[name] = [find(answer) for answer in answers]
    for text, a, b in zip(answers, found["ours"], found["presidio"], strict=True):
        for one in a:
            if any(one in other or other in one for other in b):
                both += 1
            else:
                alone["ours"].append((one, text))
        alone["presidio"] += [(o, text) for o in b if not any(o in x or x in o for x in a)]
    print(f"{len(answers):,} answers: both {both}, seconds {seconds}")
    toll_free = [one for one, _ in alone["presidio"] if re.match(r"\(? ?1?[- (]*8\d\d", one)]
    print(f"of those only Presidio finds, {len(toll_free)} are toll-free, which anybody may call")
    for name, rows in alone.items():
        print(f"only {name}: {len(rows)}")
        for one, text in rows[:: max(1, len(rows) // 60)]:
            start = text.index(one)
            print(
                f"    {one!r} in {' '.join(text[max(0, start - 50) : start + len(one) + 30].split())!r}"
            )


if __name__ == "__main__":
    logging.disable()  # Presidio asks the network for a list of domains, and logs that it got none
    EMAIL, PHONE = EmailRecognizer(), PhoneRecognizer(supported_regions=REGIONS)
    score("ours", ours)
    score("presidio", presidio)
    if sys.argv[1:]:
        real(sys.argv[1])
