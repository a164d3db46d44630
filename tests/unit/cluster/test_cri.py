"""The hand-made protobuf coding of the few runtime calls, against the published wire format."""

from __future__ import annotations

import pytest

from cluster.local.cri import field, strings


def test_a_field_is_tag_length_content() -> None:
    # The example of the protobuf documentation: field 2, string "testing".
    assert field(2, b"testing") == bytes.fromhex("120774657374696e67")


def test_lengths_over_127_take_more_bytes() -> None:
    content = b"x" * 300
    assert field(1, content)[:3] == b"\x0a\xac\x02"
    assert list(strings(field(1, content), 1)) == [content]


def test_only_the_wanted_field_is_returned_and_all_other_kinds_are_passed_over() -> None:
    message = (
        b"\x18\x96\x01"  # field 3, number 150
        + field(1, b"id")
        + b"\x21" + bytes(8)  # field 4, 64 bits
        + field(2, b"first")
        + b"\x2d" + bytes(4)  # field 5, 32 bits
        + field(2, b"second")
    )  # fmt: skip
    assert list(strings(message, 2)) == [b"first", b"second"]
    assert list(strings(message, 1)) == [b"id"]
    assert list(strings(b"", 1)) == []


def test_nested_messages() -> None:
    image = field(1, b"sha256:aa") + field(2, b"localhost/x:1") + field(2, b"localhost/x:2")
    (inner,) = strings(field(1, image), 1)
    assert list(strings(inner, 2)) == [b"localhost/x:1", b"localhost/x:2"]


def test_a_cut_message_is_an_error() -> None:
    with pytest.raises(IndexError):
        list(strings(b"\x0a", 1))
