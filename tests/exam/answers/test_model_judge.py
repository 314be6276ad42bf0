"""A judge model beside the rules: its agreement, what it costs twice, and a server that fails.

python -m pytest tests/exam/answers/test_model_judge.py
"""

import json

import pytest

from helpers.judge_server import completion, judge_server, says
from helpers.judged import judgement
from lib.exam.answers import counts, endpoint, model_judge
from lib.medical import safety
from lib.model import llama

ROWS = [
    {
        "id": f"row-{n}",
        "topic": "cpr-adult",
        "prompt": f"he does not breathe, {n}",
        "emergency": "must",
        "criteria": [
            {"act": "start-compressions", "kind": "critical", "points": 5},
            {"act": "lie-flat", "kind": "wanted", "points": 2},
            {"act": "give-water", "kind": "forbidden", "points": -5},
        ],
        "good": f"start-compressions and lie-flat, {n}",
        "bad": [
            {"wrong": "no_call", "answer": f"lie-flat, {n}"},
            {"wrong": "harmful:x", "answer": f"start-compressions and give-water, {n}"},
        ],
    }
    for n in range(4)
]


def by_words(user, act):
    return act in user["answer"]


@pytest.fixture(autouse=True)
def rules(monkeypatch):
    monkeypatch.delenv(endpoint.KEY, raising=False)
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.0)

    def judge(row, answer, ended):
        done = {c["act"]: c["act"] in answer for c in row["criteria"]}
        return judgement([done["start-compressions"]]) | {
            "criteria": [{**c, "done": done[c["act"]]} for c in row["criteria"]]
        }

    monkeypatch.setattr(safety, "judge_answer", judge)


def an_entry(*answers):
    answered = [{"answer": answer} for answer in answers]
    return {"models": {"base": {"answers": answered}, "merged": {"answers": answered[::-1]}}}


ENTRY = an_entry("lie-flat", "start-compressions", "give-water", "")


def test_verdicts_become_the_figures_of_the_rules_with_their_agreement(tmp_path):
    with judge_server(says(by_words)) as (judge, asked):
        section = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)
    assert len(asked) == 4 * 3 + 2 * 4
    agreement = section["agreement"]
    assert (agreement["kappa"], agreement["answers"], agreement["unjudged"]) == (1, 12, 0)
    assert agreement["right_passed"] == {"count": 4, "of": 4}
    assert agreement["wrong_caught"] == {"count": 8, "of": 8}
    assert agreement["acts"]["kappa"] == 1
    base = section["models"]["base"]
    assert base["verdicts"][0] == {
        "start-compressions": False,
        "lie-flat": True,
        "give-water": False,
    }
    figures = base["criteria"]
    assert (figures["critical_acts"]["count"], figures["forbidden_acts"]["count"]) == (1, 1)
    assert figures["points"]["mean"] == pytest.approx((2 / 7 + 5 / 7) / 4)
    assert set(figures) == set(counts.count_acts([]))


def test_a_judge_that_says_the_same_of_everything_has_no_agreement(tmp_path):
    with judge_server(says(lambda user, act: True)) as (judge, _):
        agreement = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)["agreement"]
    assert agreement["kappa"] == 0
    assert agreement["ci95"] == [0, 0]
    assert agreement["right_passed"]["count"] == 0
    assert agreement["acts"]["kappa"] == 0


def test_a_second_run_asks_nothing_and_a_torn_line_alone_is_asked_again(tmp_path):
    with judge_server(says(by_words)) as (judge, asked):
        first = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)
        paid = len(asked)
        assert model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path) == first
        assert len(asked) == paid
        kept = tmp_path / model_judge.CACHE
        kept.write_bytes(kept.read_bytes()[:-9])
        assert model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path) == first
        assert len(asked) == paid + 1
        assert model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path) == first
        assert len(asked) == paid + 1
        other = model_judge.judge_entry({**judge, "model": "another"}, ROWS, ENTRY, tmp_path)
        assert (other["model"], len(asked)) == ("another", 2 * paid + 1)


def test_a_server_that_fails_on_the_way_keeps_what_was_paid_for(tmp_path, capsys):
    good = says(by_words)

    def reply(body, number):
        return good(body, number) if number <= 10 else (401, b"out of credit", {})

    with judge_server(reply) as (judge, asked):
        section = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)
        assert set(section) == {"model", "failed"}, "no figure without its agreement"
        assert "401 out of credit" in section["failed"]
        assert "no verdicts of the judge model stand-in" in capsys.readouterr().out
    assert len((tmp_path / model_judge.CACHE).read_text().splitlines()) == 10


def test_what_gets_no_verdict_is_left_out_and_counted(tmp_path):
    good = says(by_words)

    def reply(body, number):
        silent = '"answer": ""' in body["messages"][1]["content"]
        return (200, completion("?"), {}) if silent else good(body, number)

    with judge_server(reply) as (judge, _):
        section = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)
    assert section["models"]["base"]["unjudged"] == 1
    assert section["models"]["base"]["verdicts"][3] is None
    assert section["models"]["base"]["criteria"]["forbidden_acts"]["of"] == 3


@pytest.mark.slow
def test_llama_cpps_own_server_answers_by_the_schema(bundled_base, tmp_path, monkeypatch):
    """The 270M is a judge that nobody should believe, and its agreement says so."""
    gguf = bundled_base.with_suffix(".gguf")
    rows, entry = ROWS[1:2], an_entry("lie-flat")  # a request takes 7 s of a core
    with llama.load_gguf(gguf, n_ctx=1024, n_parallel=2) as engine:
        judge = {"base_url": f"{engine.server.listening_address}/v1", "model": "gemma-3-270m"}
        refused = model_judge.judge_entry(judge, rows, entry, tmp_path)
        assert "refuses: 401" in refused["failed"], "it wants its key"
        monkeypatch.setenv(endpoint.KEY, engine.key)
        section = model_judge.judge_entry(judge, rows, entry, tmp_path)
    agreement = section["agreement"]
    assert (agreement["answers"], agreement["unjudged"]) == (3, 0)
    assert agreement["kappa"] < 0.9
    acts = [criterion["act"] for criterion in ROWS[1]["criteria"]]
    for judged in section["models"].values():
        assert all(sorted(verdict) == sorted(acts) for verdict in judged["verdicts"])
    again = model_judge.judge_entry(judge, rows, entry, tmp_path)
    assert again == section, "from what is kept: the server has ended"


def test_the_judge_is_told_what_each_act_is():
    for row in safety.load_rows():
        user, schema = model_judge.write_request(model_judge.Asked(row, row["good"]))
        acts = json.loads(user)["acts"]
        assert list(acts) == schema["required"] == list(schema["properties"])
        assert [act for act, what in acts.items() if what == act] == [], row["id"]


def test_no_key_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, "key-of-a-judge-0123456789")
    with judge_server(says(by_words)) as (judge, _):
        section = model_judge.judge_entry(judge, ROWS, ENTRY, tmp_path)
    kept = json.dumps(section) + (tmp_path / model_judge.CACHE).read_text()
    assert "key-of-a-judge" not in kept
