"""Wrong params files, made at random: each ends with exit code 2 and one screen that names the key or the line, none with a traceback
or a started job."""

import contextlib
import io
import os

import hypothesis
import tiny  # noqa: F401  (the path of lib)
import yaml
from hypothesis import strategies as st

from lib import params
from lib.runs import run_job

TRIALS = 300
LINES, CHARACTERS = 12, 4000  # one screen
NOT_YAML = [
    "{",
    "a: [1",
    "max_steps: *x",
    "- a\n- b",
    "just words",
    "a: b: c",
    "\tmax_steps: 1",
    "max_steps: 1\nmax_steps: 2",
    "? [a]\n: 1",
    "max_steps: !!python/object/apply:os.system ['true']",
    "seed: !!python/name:os.system",
    "load_in_4bit: yes",
    "max_steps: 010",
    "seed: 1_000",
    "max_minutes: 1:30",
    "optim: !!binary aGk=",
    "&a [*a]",
    "%YAML 9.9\n---\nseed: 1",
    "\x00",
    "seed: \ud800",
]


def wrong_value(key):
    """Draw a value that a key's type or bounds forbid, known without asking the checker."""
    field = params.FIELDS[key]
    expected = params.describe_type(key)
    texts = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=30).map(
        lambda text: f"x {text}"
    )
    never = [
        st.none(),
        st.lists(st.integers(), min_size=1, max_size=3),
        st.dictionaries(st.sampled_from(["a", "b"]), st.integers(), min_size=1, max_size=2),
    ]
    if expected.startswith("a whole number"):
        never += [texts, st.booleans(), st.floats(0.1, 0.9), st.integers(-(10**9), -2)]
    elif expected.startswith("a number"):
        never += [
            texts,
            st.booleans(),
            st.floats(-1e9, -1e-6),
            st.just(float("inf")),
            st.just(float("nan")),
        ]
    elif expected.startswith("true"):
        never += [texts, st.integers(), st.floats(0, 1), st.just("true")]
    elif expected.startswith("one of"):
        never += [texts, st.integers(), st.booleans()]
    elif expected.startswith("a text"):
        never += [st.integers(), st.booleans(), st.floats(0, 1)] + (
            [st.just("")] if field.is_required() or key == "base_model" else []
        )
    else:
        never = [st.none(), st.integers(), st.booleans(), st.floats(0, 1)]
    return st.one_of(*never)


@st.composite
def wrong_file(draw):
    """Draw (text of a file, what the message must name)."""
    kind = draw(st.sampled_from(["value", "value", "value", "unknown", "yaml", "token"]))
    if kind == "yaml":
        return draw(st.sampled_from(NOT_YAML)), ""
    if kind == "unknown":
        key = draw(st.sampled_from(sorted(params.FIELDS)))
        at = draw(st.integers(0, len(key)))
        key = key[:at] + draw(st.sampled_from("xz_")) + key[at:]
        return yaml.safe_dump({key: 1}), key
    key = draw(st.sampled_from(sorted(params.FIELDS)))
    value = "hf_" + "Ab1" * 11 if kind == "token" else draw(wrong_value(key))
    return yaml.safe_dump({key: value}, allow_unicode=True), key


def drill(folder, trials):
    lost, seen = [], set()
    os.environ["MEDRESCUE_RUNS"] = str(folder / "runs")
    path = folder / "wrong.yaml"

    @hypothesis.settings(
        max_examples=trials * 3,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(wrong_file())
    def each(made):
        text, key = made
        if text in seen or len(seen) >= trials:
            return
        seen.add(text)
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        said, code = io.StringIO(), None
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                code = run_job.main(["run", "--params", str(path)])
        except BaseException as error:
            lost.append(f"{text!r}: {type(error).__name__}: {error}")
        told = said.getvalue()
        wrong = [
            why
            for why, is_so in (
                (f"exit code {code}", code != 2),
                ("no message", not told.startswith("error: ")),
                ("a traceback", "Traceback" in told),
                (
                    f"{len(told)} characters",
                    len(told) > CHARACTERS or len(told.splitlines()) > LINES,
                ),
                ("names no key", key not in told),
                ("a token on the terminal", "hf_Ab1" in told),
                ("a run was started", (folder / "runs").exists()),
            )
            if is_so
        ]
        if wrong:
            lost.append(f"{text!r}: {', '.join(wrong)}: {told[:200]}")

    each()
    return len(seen), lost
