"""Hello extensions."""

from __future__ import annotations

import pytest

from coapgate.dtls.extensions import (
    FRAGMENT_LENGTHS,
    RENEGOTIATION_SCSV,
    ExtensionType,
    Offer,
    encode_answer,
    encode_offer,
    parse_offer,
)
from coapgate.dtls.groups import GROUPS
from coapgate.dtls.presentation import integers
from coapgate.dtls.signatures import SCHEMES
from coapgate.errors import MalformedMessage, Reason, Refused

ALL_GROUPS, ALL_SCHEMES = tuple(GROUPS), tuple(SCHEMES)


def test_a_hello_without_extensions_offers_nothing() -> None:
    assert parse_offer({}, (0xC0A8,)) == Offer()


def test_what_our_client_offers_our_server_reads() -> None:
    offer = parse_offer(encode_offer(ALL_GROUPS, ALL_SCHEMES, 1024), ())

    assert offer == Offer(1024, ALL_GROUPS, (0,), ALL_SCHEMES, True, True)


def test_a_client_with_a_psk_only_offers_no_groups() -> None:
    assert set(encode_offer((), ALL_SCHEMES)) == {
        ExtensionType.RENEGOTIATION_INFO,
        ExtensionType.EXTENDED_MASTER_SECRET,
    }


def test_unknown_extensions_are_ignored() -> None:
    assert parse_offer({0: b"server name", 53: b"\0", 0xFFFF: b""}, ()) == Offer()


# --- maximum fragment length


@pytest.mark.parametrize(("code", "octets"), [(1, 512), (2, 1024), (3, 2048), (4, 4096)])
def test_maximum_fragment_length_values_1_to_4_are_echoed(code: int, octets: int) -> None:
    offer = parse_offer({ExtensionType.MAX_FRAGMENT_LENGTH: bytes((code,))}, ())

    assert offer.max_fragment_length == octets == FRAGMENT_LENGTHS[code]
    answer = encode_answer(offer, with_ecdhe=False)
    assert answer == {ExtensionType.MAX_FRAGMENT_LENGTH: bytes((code,))}


@pytest.mark.parametrize("code", [0, 5, 255])
def test_another_maximum_fragment_length_is_alert_47(code: int) -> None:
    with pytest.raises(Refused) as refusal:
        parse_offer({ExtensionType.MAX_FRAGMENT_LENGTH: bytes((code,))}, ())

    assert refusal.value.reason is Reason.ILLEGAL_PARAMETER
    assert refusal.value.alert == 47


# --- renegotiation_info


def test_renegotiation_info_or_the_scsv_is_answered_empty() -> None:
    by_extension = parse_offer({ExtensionType.RENEGOTIATION_INFO: b"\0"}, ())
    by_suite = parse_offer({}, (0xC0A8, RENEGOTIATION_SCSV))

    for offer in (by_extension, by_suite):
        assert encode_answer(offer, with_ecdhe=False) == {ExtensionType.RENEGOTIATION_INFO: b"\0"}
    assert encode_answer(Offer(), with_ecdhe=False) == {}


@pytest.mark.parametrize("body", [b"", b"\1x", b"\0\0"])
def test_a_first_handshake_has_nothing_to_renegotiate(body: bytes) -> None:
    with pytest.raises(Refused) as refusal:
        parse_offer({ExtensionType.RENEGOTIATION_INFO: body}, ())

    assert refusal.value.reason is Reason.ILLEGAL_PARAMETER


# --- the rest


def test_extended_master_secret_is_taken_whenever_offered() -> None:
    offer = parse_offer({ExtensionType.EXTENDED_MASTER_SECRET: b""}, ())

    assert offer.extended_master_secret
    assert encode_answer(offer, with_ecdhe=False) == {ExtensionType.EXTENDED_MASTER_SECRET: b""}


def test_ec_point_formats_is_answered_with_uncompressed_where_a_curve_is_used() -> None:
    offer = parse_offer({ExtensionType.EC_POINT_FORMATS: b"\3\0\1\2"}, ())

    assert offer.point_formats == (0,)
    assert encode_answer(offer, with_ecdhe=True) == {ExtensionType.EC_POINT_FORMATS: b"\1\0"}
    assert encode_answer(offer, with_ecdhe=False) == {}
    assert encode_answer(Offer(), with_ecdhe=True) == {}


def test_a_list_that_holds_nothing_of_ours_is_not_an_absent_one() -> None:
    offer = parse_offer(
        {
            ExtensionType.SUPPORTED_GROUPS: integers(2, 2, (25, 0x0A0A)),
            ExtensionType.EC_POINT_FORMATS: b"\1\1",
            ExtensionType.SIGNATURE_ALGORITHMS: integers(2, 2, (0x0203,)),
        },
        (),
    )

    assert (offer.groups, offer.point_formats, offer.signature_algorithms) == ((), (), ())


def test_an_offer_of_a_thousand_numbers_keeps_only_what_we_know() -> None:
    # A tuple of a thousand foreign numbers would weigh 36 KiB in every pending handshake.
    many = tuple(range(0x1000, 0x1000 + 990)) + ALL_GROUPS[::-1] * 3 + ALL_SCHEMES[::-1]
    body = integers(2, 2, many)

    offer = parse_offer(
        {ExtensionType.SUPPORTED_GROUPS: body, ExtensionType.SIGNATURE_ALGORITHMS: body}, ()
    )

    assert offer.groups == ALL_GROUPS
    assert offer.signature_algorithms == ALL_SCHEMES


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (ExtensionType.MAX_FRAGMENT_LENGTH, ""),
        (ExtensionType.MAX_FRAGMENT_LENGTH, "0101"),
        (ExtensionType.EXTENDED_MASTER_SECRET, "00"),
        (ExtensionType.SUPPORTED_GROUPS, ""),
        (ExtensionType.SUPPORTED_GROUPS, "0000"),
        (ExtensionType.SUPPORTED_GROUPS, "0001 17"),
        (ExtensionType.SUPPORTED_GROUPS, "0002 0017 00"),
        (ExtensionType.EC_POINT_FORMATS, "00"),
        (ExtensionType.EC_POINT_FORMATS, "02 00"),
        (ExtensionType.SIGNATURE_ALGORITHMS, "0003 040305"),
        (ExtensionType.SIGNATURE_ALGORITHMS, "0000"),
    ],
)
def test_an_extension_that_does_not_parse_is_malformed(kind: ExtensionType, body: str) -> None:
    with pytest.raises(MalformedMessage):
        parse_offer({kind: bytes.fromhex(body)}, ())


# --- Connection ID (RFC 9146 section 3)


@pytest.mark.parametrize("length", [0, 1, 255])
def test_an_offered_connection_id_is_answered_by_ours(length: int) -> None:
    body = bytes((length,)) + bytes(length)

    offer = parse_offer({ExtensionType.CONNECTION_ID: body}, ())

    assert offer.connection_id == bytes(length)
    answer = encode_answer(offer, with_ecdhe=False, connection_id=b"ours")
    assert answer == {ExtensionType.CONNECTION_ID: b"\4ours"}


@pytest.mark.parametrize("body", [b"", b"\1", b"\0\0", b"\2\1"])
def test_a_connection_id_that_is_cut_short_or_too_long_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse_offer({ExtensionType.CONNECTION_ID: body}, ())
