"""YAML: what is read as meant, and errors that name their line and the next step.

python -m pytest tests/common/test_strict_yaml.py
"""

import pytest

from lib import params
from lib.common import strict_yaml
from lib.common.errors import UserError


@pytest.mark.parametrize(
    ("text", "line", "step"),
    [
        ("common: &c\n  lora_r: 4\n<<: *c\n", 3, "write the keys out here"),
        ("<<: {lora_r: 4}\n", 1, "write the keys out here"),
        ("a: 1\nb:\n  - c: 1\n    <<: {d: 2}\n", 4, "write the keys out here"),
        ("columns:\n\tquestion: ask\n", 2, "write blanks instead of tabs"),
        ("answer_cap:\t5\n", 1, "write blanks instead of tabs"),
        ("a: 1\npush_to:\n", 2, 'write "" for an empty text, [] for an empty list'),
        ("exam: null\n", 1, "remove the line to take the default"),
        ("exam: ~\n", 1, "remove the line to take the default"),
        ("exam:\n  - a\n  -\n", 3, "an entry has no value (null)"),
        ("a: 1\n---\nb: 2\n", 2, "keep one, without a line `---` between"),
        ("a: \u201cmain\u201d\n", 1, "typographic quote"),
        ("a:\u00a0 3\nb: 1\n", 2, "a plain blank after"),
        ('a: "C:\\Users\\me"\n', 1, "write paths with /"),
        ('a: "C:\\data"\n', 1, "write paths with /"),
        ("a: *.csv\n", 1, "quote a text that begins with *"),
        ("a: b: c\n", 1, "quote a text with a colon in it"),
    ],
)
def test_an_error_names_the_line_and_the_next_step(text, line, step):
    with pytest.raises(UserError) as error:
        strict_yaml.parse(text, "my.yaml")
    assert str(error.value).startswith(f"my.yaml, line {line}: ")
    assert step in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a: '<<'\n'<<': b\n", {"a": "<<", "<<": "b"}),
        ("a: &x 512\nb: *x\n", {"a": 512, "b": 512}),
        ("a: 'null'\nb: \"\"\nc: []\n", {"a": "null", "b": "", "c": []}),
        (
            "a: it's\nb: 37.5 \u00b0C\nc: say \u201cno\u201d\n",
            {"a": "it's", "b": "37.5 \u00b0C", "c": "say \u201cno\u201d"},
        ),
        ("# nothing\n", None),
        ("", None),
    ],
)
def test_what_is_meant_is_read(text, value):
    assert strict_yaml.parse(text, "my.yaml") == value


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_params_file_may_have_any_encoding_that_it_names(tmp_path, encoding):
    (tmp_path / "p.yaml").write_bytes("# 37,5 \u00b0C\nseed: 5\n".encode(encoding))
    assert params.load_job(tmp_path / "p.yaml").seed == 5


def test_another_encoding_says_how_to_save_the_file(tmp_path):
    (tmp_path / "p.yaml").write_bytes("# 37,5 \u00b0C\nseed: 5\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 7, .*\)\. Save it as UTF-8\."):
        params.load_job(tmp_path / "p.yaml")


@pytest.mark.parametrize("text", ["[" * 3000, "a: " + "[" * 3000 + "]" * 3000, "{a: " * 3000])
def test_what_is_nested_too_deeply_is_one_sentence(text):
    with pytest.raises(UserError, match="^job: lists or mappings are nested too deeply$"):
        strict_yaml.parse(text, "job")
