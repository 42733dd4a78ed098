"""Record headers, with and without Connection ID."""

from __future__ import annotations

import pytest

from coapgate.dtls import records
from coapgate.dtls.records import ContentType, encode, split
from coapgate.errors import MalformedRecord
from tests.dtls.vectors import SESSIONS

HELLO_REQUEST = bytes.fromhex("16 fefd 0000 000000000007 000c 000000000000000000000000")
WITH_CID = bytes.fromhex("19 fefd 0001 000000000009 c1c2 0003 aabbcc")


def test_a_datagram_is_split_into_its_records() -> None:
    alert = bytes.fromhex("15 fefd 0001 0000000000ff 0002 0100")

    first, second = split(HELLO_REQUEST + alert)

    assert (first.content_type, first.epoch, first.sequence) == (ContentType.HANDSHAKE, 0, 7)
    assert (first.octets, first.fragment) == (HELLO_REQUEST, bytes(12))
    assert (second.content_type, second.epoch, second.sequence) == (ContentType.ALERT, 1, 255)
    assert (second.octets, second.fragment) == (alert, b"\1\0")
    assert second.connection_id == b""


def test_a_record_with_connection_id_is_read_with_the_length_that_we_hand_out() -> None:
    record, after = split(WITH_CID + HELLO_REQUEST, cid_length=2)

    assert (record.content_type, record.epoch, record.sequence) == (ContentType.TLS12_CID, 1, 9)
    assert record.connection_id == b"\xc1\xc2"
    assert record.fragment == b"\xaa\xbb\xcc"
    assert after.connection_id == b""
    assert after.octets == HELLO_REQUEST


def test_the_records_of_other_stacks_are_split() -> None:
    for session in SESSIONS:
        datagram = b"".join(record.octets for record in session.records)

        found = list(split(datagram, cid_length=len(session.server_cid)))

        assert [record.octets for record in found] == [r.octets for r in session.records]
        assert {record.connection_id for record in found} == {session.server_cid}
        assert {record.epoch for record in found} == {1}
        assert [record.sequence for record in found] == list(range(len(found)))


def test_an_empty_datagram_holds_no_record() -> None:
    assert list(split(b"")) == []


@pytest.mark.parametrize(("record", "cid_length"), [(HELLO_REQUEST, 0), (WITH_CID, 2)])
def test_a_record_cut_short_is_malformed(record: bytes, cid_length: int) -> None:
    for cut in range(1, len(record)):
        with pytest.raises(MalformedRecord):
            list(split(record[:cut], cid_length))


def test_what_comes_before_a_malformed_record_is_yielded() -> None:
    found = split(HELLO_REQUEST + HELLO_REQUEST[:-1])

    assert next(found).octets == HELLO_REQUEST
    with pytest.raises(MalformedRecord):
        next(found)


def test_record_versions_1_0_and_1_2_are_accepted_and_no_other() -> None:
    for version in range(0x10000):
        record = HELLO_REQUEST[:1] + version.to_bytes(2, "big") + HELLO_REQUEST[3:]
        if version in (0xFEFF, 0xFEFD):
            assert len(list(split(record))) == 1
        else:
            with pytest.raises(MalformedRecord):
                list(split(record))


def test_a_record_longer_than_the_rfc_allows_is_malformed() -> None:
    longest = (1 << 14) + 2048

    assert len(list(split(encode(ContentType.HANDSHAKE, 0, bytes(longest))))) == 1
    with pytest.raises(MalformedRecord):
        list(split(encode(ContentType.HANDSHAKE, 0, bytes(longest + 1))))


def test_a_datagram_of_thousands_of_empty_records_costs_no_more_than_a_few() -> None:
    empty = encode(ContentType.HANDSHAKE, 0, b"")
    found: list[records.Record] = []

    with pytest.raises(MalformedRecord):
        found.extend(split(empty * 5000))

    assert len(found) == records.MAX_RECORDS
    assert len(list(split(empty * records.MAX_RECORDS))) == records.MAX_RECORDS


def test_a_record_in_the_clear_carries_its_48_bit_number() -> None:
    assert encode(ContentType.HANDSHAKE, 7, bytes(12)) == HELLO_REQUEST
    record = encode(ContentType.ALERT, records.MAX_SEQUENCE, b"\2\x28", records.DTLS_1_0)
    assert record == bytes.fromhex("15 feff 0000 ffffffffffff 0002 0228")
    assert next(split(record)).sequence == (1 << 48) - 1
