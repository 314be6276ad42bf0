"""Values, sizes and tables formatted for people.

python -m pytest tests/common/test_text.py
"""

from lib.common import text


def test_numbers_for_people():
    assert [
        text.format_value(v) for v in (None, True, 1234567, 0.00012345, 2.34567, 12345.6, "x", 0.0)
    ] == ["not measured", "True", "1,234,567", "0.000123", "2.346", "12,346", "x", "0"]
    assert (text.format_size(1500), text.format_size(3 * 2**20)) == ("1.5 KiB", "3.0 MiB")


def test_text_tables_align():
    assert text.aligned_table(
        [{"run": "a", "loss": 1.5}, {"run": "longer", "loss": 12}]
    ).splitlines() == ["run     loss", "a        1.5", "longer    12"]
    assert text.aligned_table([]) == ""


def test_a_long_text_is_shortened_and_its_length_told():
    assert text.shorten("x" * 120) == "x" * 120
    assert text.shorten("x" * 5000) == "x" * 120 + "... (5,000 characters)"
