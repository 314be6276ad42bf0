r"""HTML as text: nothing that a reader sees is lost, glued or moved; nothing deleted stays.

python -m pytest tests/data/cleaning/test_markup.py
"""

import re

import pytest
from hypothesis import example, given

from helpers.cleaning import cleaned
from helpers.html_pages import pages
from helpers.odd_texts import any_of
from lib.data.cleaning.markup import strip_html
from lib.data.cleaning.markup_tags import UnclearMarkup

# of lists, and the lines of tables
MARKERS = re.compile(r"-|\d+\.|\||---")


def seen_words(text):
    """Return the words of a text without what marks lists and tables."""
    text = re.sub("%|°C", r" \g<0> ", text)  # they may follow a number at once
    words = [word.removesuffix(";") for word in text.split()]
    return [word for word in words if not MARKERS.fullmatch(word)]


@any_of
@given(pages)
@example(("<b>5</b><i>10 mg</i>", ["5", "10", "mg"]))
@example(("<span>not</span><span>10 mg</span>", ["not", "10", "mg"]))
def test_every_number_unit_and_negation_that_is_seen_stays_in_its_order(page):
    html, seen = page
    for text in (strip_html(html), cleaned(html)[0]):
        assert seen_words(text) == seen


@any_of
@given(pages)
def test_text_from_markup_settles(page):
    html, _ = page
    once, changed = cleaned(html)
    assert not {"nested_markup", "unclear_markup"} & set(changed)
    assert cleaned(once) == (once, {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # deleted and hidden text
        ("Give <del>5 mg</del><ins>10 mg</ins> once.", "Give 10 mg once."),
        ("Give 1<del>0</del><ins>5</ins> mg.", "Give 15 mg."),
        ("Take <s>5</s> <strike>6</strike> 7 mg.", "Take 7 mg."),
        ('<span style="text-decoration:line-through">Ice.</span> Water.', "Water."),
        ("<div style='display: none'><p>5</p></div>6", "6"),
        ("<del><p>Ice.</p><ul><li>a</li></ul></del>Water.", "Water."),
        # edges of inline elements
        ("<span>Adults</span><span>500 mg</span>", "Adults 500 mg"),
        ("<b>Adults</b>500 mg<b>Children</b>250 mg", "Adults 500 mg Children 250 mg"),
        ("<span>Adults:</span><span>5 mg.</span><span>Then</span>", "Adults: 5 mg. Then"),
        (
            "un<b>believ</b>able, vitamin B<b>12</b>, 1<b>0</b> mg",
            "unbelievable, vitamin B12, 10 mg",
        ),
        ("<b>0.</b><i>5</i> mg, <b>5</b><i>%</i>, <b>(</b><i>5</i><b>)</b>", "0.5 mg, 5%, (5)"),
        ("word<b></b>word", "wordword"),
        ("<b>Do not</b>give, k<b>not</b>s, <i>Never</i>", "Do not give, knots, Never"),
        (
            "1<img src=x alt='½'> tablet, <img alt=\"≥\"> 5, <img alt='a photo'>.",
            "1½ tablet, ≥ 5, .",
        ),
        # raised and lowered text
        ("Take 1<sup>1</sup>/<sub>2</sub> tablets", "Take 1 1/2 tablets"),
        ("1<sup>1</sup>&frasl;<sub>2</sub>, <sup>3</sup>/<sub>4</sub>", "1 1⁄2, 3/4"),
        ("1<sup>1/2</sup>, 1<small>1/2</small>, 2<sup>1</sup>/4", "1 1/2, 1 1/2, 2 1/4"),
        ("10<sup>1</sup>/<sub>2</sub> h, 10<sup>9</sup>/2", "10 1/2 h, 10^9/2"),
        ("10<sup>9</sup>/L, 10<sup>-3</sup>, 10<sup>9</sup>5", "10^9/L, 10^-3, 10^9 5"),
        ("kg/m<sup>2</sup>, min<sup>-1</sup>, χ<sup>2</sup>", "kg/m2, min^-1, χ2"),
        ("300 mg<sup>2</sup> now.<sup>14</sup> Rest", "300 mg[2] now.[14] Rest"),
        ("300 mg <sup>2</sup> now<sup>a</sup>", "300 mg [2] now[a]"),
        ("1<sup>st</sup>, 2<sup>ND</sup>, Tylenol<sup>®</sup>", "1st, 2ND, Tylenol®"),
        ("Ca<sup>2+</sup>, SO<sub>4</sub><sup>2-</sup>, <sup>131</sup>I", "Ca2+, SO4^2-, 131I"),
        ("38<sup>o</sup>C, 38<sup>0</sup>C", "38°C, 38°C"),
        ("SpO<sub>2</sub>, FEV<sub>1</sub>/FVC, 1<sub>2</sub>", "SpO2, FEV1/FVC, 1_2"),
        # lists
        (
            "<ol><li>Call<ul><li>where<li>what</ul><li>Help</ol>Wait",
            "1. Call\n   - where\n   - what\n2. Help\n\nWait",
        ),
        ("<ol start=3><li>a<li value=7>b<li>c</ol>", "3. a\n7. b\n8. c"),
        ("<ol type='a'><li>x<li>y</ol><ol type=A start=3><li>z</ol>", "a. x\nb. y\n\nC. z"),
        ("<ul><li>1. Call</li><li>• Help</li></ul>", "1. Call\n• Help"),
        ("<li>a</li><li>b</li>", "- a\n- b"),
        # tables
        (
            "<table><tr><th>Drug<th>Adult<th>Child<tr><td>X<td>5 mg<td><tr><td>Y<td><td>1 mg</table>",
            "| Drug | Adult | Child |\n| --- | --- | --- |\n| X | 5 mg | |\n| Y | | 1 mg |",
        ),
        (
            "<table><tr><th rowspan=2>Drug</th><th colspan=2>Dose</th></tr><tr><th>Adult</th>"
            "<th>Child</th></tr><tr><td>X</td><td></td><td>5 mg<br>10 mg</td></tr></table>",
            "| Drug | Dose | Dose |\n| --- | --- | --- |\n| Drug | Adult | Child |\n| X | | 5 mg; 10 mg |",
        ),
        (
            "<table><tr><td>Adult</td><td>Child</td></tr><tr><td colspan=2>none</td></tr></table>",
            "| Adult | Child |\n| --- | --- |\n| none | none |",
        ),
        ("<tr><td>5</td><td></td><td>6</td></tr>", "| 5 | | 6 |"),
        ("<td>5</td>\n<td></td>\n<td>6</td> mg", "| 5 | | 6 |\n\nmg"),
        ("<table><tr><td>1</td></tr>stray<tr><td>2</td></tr></table>", "1\n\nstray\n\n2"),
        ("<table><tr><td>1<td><table><tr><td>2<td>3</table></table>", "1\n\n| 2 | 3 |"),
        ("<table><caption>Doses</caption><tr><td>1<td>2</table>", "Doses\n\n| 1 | 2 |"),
        # what else is in pages
        ("<o:p></o:p>Rest <mark>today</mark>, <abbr title='x'>GP</abbr>", "Rest today, GP"),
        ("<![CDATA[5 mg]]> <![if !supportLists]>a<![endif]><!DOCTYPE html>b", "5 mg ab"),
        ("<td nowrap>5</td>", "5"),
        ('<img alt="a > b">x<hr>y', "x\ny"),
        ("a</div>b</td>c", "a\nbc"),
        ("BP<90, SpO2<92%, RR>30, p<0.05 and n>100", "BP<90, SpO2<92%, RR>30, p<0.05 and n>100"),
        ("0.<!-- -->5 mg, a<style>x</style>b", "0.5 mg, a b"),
        ("if a <b and c> d, <name>, <p", "if a <b and c> d, <name>, <p"),
    ],
)
def test_markup_becomes_text_that_says_the_same(before, after):
    assert cleaned(before)[0] == after


@pytest.mark.parametrize(
    "text",
    [
        "Give <del>5 mg 10 mg.",
        "10<sup>9 cells and more",
        "<td><del>5</td><td>6</del></td>",
        "<span hidden>5<p>6</span></p>",
        "<table><tr><td hidden>5</td><td>6</td></tr></table>",
        "<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>",
        "<div>" * 50 + "deep",
        "<table><tr>" + "<td colspan=99>x</td>" * 9 + "</tr></table>",
    ],
)
def test_markup_whose_reach_is_unclear_is_refused(text):
    with pytest.raises(UnclearMarkup):
        strip_html(text)
    assert set(cleaned(text, personal_data="keep", skip_rules=["blanks"])[1]) == {"unclear_markup"}
