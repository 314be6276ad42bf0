"""The header of a GGUF file: it is read as it was written, and a false one is an error that takes no memory.

python -m pytest tests/export/test_gguf_file.py
"""

import struct

import gguf
import pytest

from lib.common.errors import UserError
from lib.export import gguf_file

TENSORS = [gguf_file.Tensor("a", (32, 2), "Q8_0"), gguf_file.Tensor("b", (5,), "F32")]


def head(*pairs, tensors=TENSORS):
    """Return the bytes of a file with these key/value pairs, and tensors of zeros."""
    data, placed = gguf_file.build_header(dict(enumerate(pairs)), tensors)
    return data + bytes(max((tensor.end for tensor in placed), default=0) - len(data)), placed


def test_a_head_is_read_back(tmp_path):
    pairs = [
        gguf_file.encode_pair("name", "é"),
        gguf_file.encode_pair("yes", True),
        gguf_file.encode_pair("count", 7),
        gguf_file.encode_pair("share", 0.5),
    ]
    data, placed = head(*pairs)
    (tmp_path / "x.gguf").write_bytes(data)
    found = gguf_file.read_header(tmp_path / "x.gguf")
    assert found.metadata == {"name": "é", "yes": True, "count": 7, "share": 0.5}
    assert list(found.pairs.values()) == pairs
    assert found.tensors == placed
    assert [tensor.row_bytes for tensor in placed] == [34, 20]


def array(inner, count, rest=b""):
    return gguf_file.encode_string("k") + struct.pack("<IIQ", gguf_file.ARRAY, inner, count) + rest


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "does not begin with GGUF"),
        (struct.pack("<4sIQQ", b"GGUF", 9, 0, 0), "version 9"),
        (
            head(array(gguf_file.ARRAY, 1, struct.pack("<IQ", 9, 1) * 20_000))[0],
            "an array of arrays",
        ),
        (head(array(gguf_file.STRING, 2**62))[0], "ends inside its header"),
        (head(array(4, 2**62))[0], "array is too big"),
        (head(array(4, 2**20))[0], "buffer is smaller"),
        (head(array(77, 1))[0], "77"),
        (head(gguf_file.encode_pair("general.alignment", 0))[0], "an alignment of 0"),
        (head(gguf_file.encode_pair("general.alignment", "many"))[0], "an alignment of 'many'"),
        (
            head()[0].replace(
                struct.pack("<Qc", 1, b"a") + struct.pack("<I", 2),
                struct.pack("<Qc", 1, b"a") + struct.pack("<I", 0),
            ),
            "a tensor of 0 dimensions",
        ),
        (
            head()[0].replace(struct.pack("<QQ", 32, 2), struct.pack("<QQ", 32, 2**40)),
            "its tensors need",
        ),
        (
            head(tensors=[gguf_file.Tensor("a", (32, 2, 2), "Q8_0")])[0].replace(
                struct.pack("<QQ", 2, 2), struct.pack("<QQ", 2**32, 2**32)
            ),
            "its tensors need",
        ),
        (head(array(4, 2**64 - 1))[0], "too large|too big"),
        (head()[0][:-1], "its tensors need"),
        (struct.pack("<4sIQQ", b"GGUF", 3, 2**60, 2**60), "ends inside its header|unpack_from"),
    ],
)
def test_a_head_that_lies_is_an_error(tmp_path, data, said):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(UserError, match=f"x.gguf is not a complete GGUF file .*(?:{said})"):
        gguf_file.read_header(tmp_path / "x.gguf")


@pytest.mark.slow
def test_a_head_is_read_as_the_gguf_package_reads_it_and_written_back_to_the_byte(whole):
    path = whole
    ours, theirs = gguf_file.read_header(path), gguf.GGUFReader(path)
    assert ours.metadata == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    assert ours.tensors == [
        gguf_file.Tensor(t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.data_offset)
        for t in theirs.tensors
    ]
    data, placed = gguf_file.build_header(ours.pairs, ours.tensors)
    assert placed == ours.tensors
    assert data == path.read_bytes()[: len(data)]
    values = {"a": "text, größer", "b": True, "c": 7, "d": 0.5}
    assert (
        gguf_file.parse_header(
            gguf_file.build_header({k: gguf_file.encode_pair(k, v) for k, v in values.items()}, [])[
                0
            ]
        ).metadata
        == values
    )
