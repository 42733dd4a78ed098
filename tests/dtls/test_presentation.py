"""The presentation language of TLS."""

from __future__ import annotations

import pytest

from coapgate.dtls.presentation import Reader, integers, vector
from coapgate.errors import MalformedMessage


def test_a_reader_reads_from_front_to_back() -> None:
    reader = Reader(bytes.fromhex("01 0203 04 02aabb 0004 00170018"))

    assert reader.integer(1) == 1
    assert reader.fixed(2) == b"\2\3"
    assert reader.fixed(1) == b"\4"
    assert reader.vector(1) == b"\xaa\xbb"
    assert reader.integers(2, 2) == (0x17, 0x18)
    assert reader.at_end
    reader.finish()


def test_a_message_cut_short_is_malformed() -> None:
    with pytest.raises(MalformedMessage):
        Reader(b"\2\1").fixed(3)
    with pytest.raises(MalformedMessage):
        Reader(b"\2\1").integer(3)
    with pytest.raises(MalformedMessage):
        Reader(b"\2\1").vector(1)


def test_a_reader_knows_whether_it_is_at_the_end() -> None:
    assert Reader(b"").at_end
    assert not Reader(b"\0").at_end


def test_nothing_more_can_be_read_at_the_end() -> None:
    reader = Reader(b"")

    assert reader.fixed(0) == b""
    with pytest.raises(MalformedMessage):
        reader.fixed(1)


def test_octets_after_the_end_are_malformed() -> None:
    with pytest.raises(MalformedMessage):
        Reader(b"\0").finish()


def test_a_vector_shorter_than_its_minimum_is_malformed() -> None:
    assert Reader(b"\1\xaa").vector(1, minimum=1) == b"\xaa"
    with pytest.raises(MalformedMessage):
        Reader(b"\0").vector(1, minimum=1)


@pytest.mark.parametrize("octets", ["0000", "0001 00", "0003 000102"])
def test_a_list_of_integers_is_neither_empty_nor_of_odd_length(octets: str) -> None:
    with pytest.raises(MalformedMessage):
        Reader(bytes.fromhex(octets)).integers(2, 2)


def test_vectors_carry_their_length_in_front() -> None:
    assert vector(1, b"ab") == b"\2ab"
    assert vector(3, b"ab") == b"\0\0\2ab"
    assert integers(2, 2, (0x17, 0x18)) == bytes.fromhex("0004 0017 0018")
    assert integers(1, 1, (0,)) == b"\1\0"
