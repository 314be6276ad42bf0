"""Yes and no to what a question proposes.

python -m pytest tests/medical/test_reply.py
"""

from lib.medical.reply import says_no, says_yes

YES = """yes. | yes, do that. | yeah, go on and it will help. | good idea. | your gran is right.
sure, go ahead. | she's right. | that's fine. | go for it, just don't swallow. | why not.
absolutely, because it draws the heat out. | do both. | yes, but gently.""".replace("\n", " | ")
NEITHER = """yes, press here. | yes, call an ambulance now. | cool it under the tap.
good ideas come later. | yesterday it was fine. | now run the tap over it.""".replace("\n", " | ")
NO = """no. | no, cool it first. | neither: both burn. | don't. | stop! | absolutely not.
bad idea. | that's a myth. | please don't.""".replace("\n", " | ")


def test_yes():
    assert [text for text in YES.split(" | ") if not says_yes([text])] == []
    assert [text for text in YES.split(" | ") if says_no([text])] == []


def test_no():
    assert [text for text in NO.split(" | ") if not says_no([text])] == []
    assert [text for text in NO.split(" | ") if says_yes([text])] == []


def test_neither():
    assert [text for text in NEITHER.split(" | ") if says_yes([text]) or says_no([text])] == []


def test_only_at_the_beginning():
    assert says_yes(["i know that hurts.", "yes, do that."])
    assert not says_yes(["cool it."] * 3 + ["yes."])
