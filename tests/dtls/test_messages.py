"""Handshake messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.messages import (
    CertificateRequest,
    CertificateVerify,
    ClientHello,
    Fragment,
    HandshakeType,
    ServerHello,
    ServerKeyExchange,
)
from coapgate.errors import MalformedMessage

RANDOM = bytes(range(32))
HELLO = ClientHello(
    RANDOM,
    (0xC0A8, 0x00FF),
    session_id=b"session",
    cookie=b"cookie",
    extensions={23: b"", 10: bytes.fromhex("00020017")},
)
HELLO_OCTETS = bytes.fromhex(
    f"fefd {RANDOM.hex()} 07 73657373696f6e 06 636f6f6b6965 0004 c0a800ff 01 00"
    " 000c 0017 0000 000a 0004 00020017"
)


def fails(parse: Callable[[bytes], object], octets: bytes) -> None:
    with pytest.raises(MalformedMessage):
        parse(octets)


# --- fragments


def test_a_message_is_encoded_in_unfragmented_form() -> None:
    encoded = m.encode_message(HandshakeType.FINISHED, 3, b"verify data!")

    assert encoded == bytes.fromhex("14 00000c 0003 000000 00000c") + b"verify data!"
    assert list(m.parse_fragments(encoded)) == [Fragment(20, 12, 3, 0, b"verify data!")]


def test_several_messages_and_fragments_share_a_record() -> None:
    octets = (
        m.encode_fragment(11, 10, 1, 0, b"01234")
        + m.encode_fragment(11, 10, 1, 5, b"56789")
        + m.encode_message(14, 2, b"")
    )

    assert list(m.parse_fragments(octets)) == [
        Fragment(11, 10, 1, 0, b"01234"),
        Fragment(11, 10, 1, 5, b"56789"),
        Fragment(14, 0, 2, 0, b""),
    ]
    assert list(m.parse_fragments(b"")) == []


def test_a_fragment_cut_short_is_malformed() -> None:
    octets = m.encode_message(11, 0, b"0123")

    for cut in range(1, len(octets)):
        fails(lambda cut_octets: list(m.parse_fragments(cut_octets)), octets[:cut])


@pytest.mark.parametrize(("offset", "length"), [(0, 3), (1, 4), (5, 4), (0xFFFFFF, 4)])
def test_a_fragment_outside_its_message_is_malformed(offset: int, length: int) -> None:
    octets = m.encode_fragment(11, length, 0, offset, b"0123")

    fails(lambda fragment: list(m.parse_fragments(fragment)), octets)


def test_a_record_of_a_thousand_empty_fragments_costs_no_more_than_a_few() -> None:
    empty = m.encode_fragment(11, 100, 0, 0, b"")
    outside = m.encode_fragment(11, 1, 0, 100, b"")

    # What is behind them is not looked at.
    with pytest.raises(MalformedMessage, match="too many"):
        m.parse_fragments(empty * m.MAX_FRAGMENTS + outside * 1000)

    assert len(m.parse_fragments(empty * m.MAX_FRAGMENTS)) == m.MAX_FRAGMENTS


# --- ClientHello


def test_a_client_hello_is_read() -> None:
    assert ClientHello.parse(HELLO_OCTETS) == HELLO
    assert HELLO.encode() == HELLO_OCTETS


def test_a_client_hello_may_have_no_extensions() -> None:
    hello = ClientHello(RANDOM, (0xC0A8,))

    assert ClientHello.parse(hello.encode()) == hello
    assert ClientHello.parse(hello.encode() + b"\0\0") == hello


def test_an_extension_sent_twice_is_malformed() -> None:
    twice = bytes.fromhex("0008 0017 0000 0017 0000")

    fails(ClientHello.parse, ClientHello(RANDOM, (0xC0A8,)).encode() + twice)


def test_a_hello_of_hundreds_of_empty_extensions_is_malformed() -> None:
    longest = ClientHello(RANDOM, (0xC0A8,), extensions=dict.fromkeys(range(64), b""))
    too_long = ClientHello(RANDOM, (0xC0A8,), extensions=dict.fromkeys(range(65), b""))

    assert ClientHello.parse(longest.encode()) == longest
    fails(ClientHello.parse, too_long.encode())


def test_a_client_hello_cut_short_or_with_octets_behind_is_malformed() -> None:
    without_extensions = len(HELLO_OCTETS) - 14
    for cut in range(len(HELLO_OCTETS)):
        if cut != without_extensions:
            fails(ClientHello.parse, HELLO_OCTETS[:cut])
    fails(ClientHello.parse, HELLO_OCTETS + b"\0")


def test_a_client_hello_offers_at_least_one_suite_and_one_compression_method() -> None:
    start = HELLO_OCTETS[:49]

    assert ClientHello.parse(start + bytes.fromhex("0002 c0a8 01 00")).cipher_suites == (0xC0A8,)
    fails(ClientHello.parse, start + bytes.fromhex("0000 01 00"))
    fails(ClientHello.parse, start + bytes.fromhex("0003 c0a800 01 00"))
    fails(ClientHello.parse, start + bytes.fromhex("0002 c0a8 00"))


def test_a_session_id_is_at_most_32_octets() -> None:
    longest = ClientHello(RANDOM, (0xC0A8,), session_id=bytes(32))
    too_long = ClientHello(RANDOM, (0xC0A8,), session_id=bytes(33))

    assert ClientHello.parse(longest.encode()) == longest
    assert m.parse_hello_start(longest.encode()).session_id == bytes(32)
    fails(ClientHello.parse, too_long.encode())
    fails(m.parse_hello_start, too_long.encode())
    fails(ServerHello.parse, ServerHello(RANDOM, 0xC0A8, session_id=bytes(33)).encode())


def test_the_first_fragment_of_a_hello_holds_all_that_a_cookie_needs() -> None:
    until_cookie = 2 + 32 + 1 + 7 + 1 + 6

    for end in (until_cookie, until_cookie + 1, len(HELLO_OCTETS)):
        assert m.parse_hello_start(HELLO_OCTETS[:end]) == m.HelloStart(
            b"\xfe\xfd", RANDOM, b"session", b"cookie"
        )
    for cut in range(until_cookie):
        fails(m.parse_hello_start, HELLO_OCTETS[:cut])


# --- messages of the server


def test_a_hello_verify_request_carries_a_cookie_and_its_version_means_nothing() -> None:
    for version in ("feff", "fefd", "0000"):
        body = bytes.fromhex(f"{version} 03 636f6f")
        assert m.parse_hello_verify_request(body) == b"coo"
        fails(m.parse_hello_verify_request, body[:-1])
        fails(m.parse_hello_verify_request, body + b"\0")


def test_a_server_hello_is_read() -> None:
    hello = ServerHello(RANDOM, 0xC0A8, extensions={23: b"", 0xFF01: b"\0"})
    octets = bytes.fromhex(f"fefd {RANDOM.hex()} 00 c0a8 00 0009 0017 0000 ff01 0001 00")

    assert hello.encode() == octets
    assert ServerHello.parse(octets) == hello
    assert ServerHello.parse(octets[:38]) == ServerHello(RANDOM, 0xC0A8)
    for cut in set(range(len(octets))) - {38}:
        fails(ServerHello.parse, octets[:cut])


def test_a_chain_is_read_leaf_first() -> None:
    octets = bytes.fromhex("00000b 000004") + b"leaf" + bytes.fromhex("000001") + b"i"

    assert m.encode_certificate((b"leaf", b"i")) == octets
    assert m.parse_certificate(octets) == (b"leaf", b"i")
    for cut in range(len(octets)):
        fails(m.parse_certificate, octets[:cut])
    fails(m.parse_certificate, octets + b"\0")


def test_a_peer_without_certificate_sends_an_empty_chain() -> None:
    assert m.encode_certificate(()) == bytes(3)
    assert m.parse_certificate(bytes(3)) == ()


def test_a_certificate_of_no_octets_is_malformed() -> None:
    fails(m.parse_certificate, bytes.fromhex("000003 000000"))


def test_a_chain_has_at_most_ten_certificates() -> None:
    longest = (b"x",) * m.MAX_CERTIFICATES

    assert m.parse_certificate(m.encode_certificate(longest)) == longest
    fails(m.parse_certificate, m.encode_certificate((*longest, b"x")))


def test_a_server_key_exchange_is_read() -> None:
    message = ServerKeyExchange(23, b"point", 0x0403, b"signature")
    octets = bytes.fromhex("03 0017 05") + b"point" + bytes.fromhex("0403 0009") + b"signature"

    assert message.encode() == octets
    assert octets.startswith(ServerKeyExchange.encode_parameters(23, b"point"))
    assert ServerKeyExchange.parse(octets) == message
    for cut in range(len(octets)):
        fails(ServerKeyExchange.parse, octets[:cut])
    fails(ServerKeyExchange.parse, octets + b"\0")


def test_a_server_key_exchange_names_its_curve() -> None:
    for curve_type in (1, 2):
        fails(ServerKeyExchange.parse, bytes((curve_type,)) + b"\0\x17\1p\4\3\0\0")
    fails(ServerKeyExchange.parse, bytes.fromhex("03 0017 00 0403 0000"))


def test_a_certificate_request_is_read_whatever_authorities_it_names() -> None:
    request = CertificateRequest(bytes((64, 1)), (0x0403, 0x0807), b"\0\1x")
    octets = bytes.fromhex("02 4001 0004 0403 0807 0003 000178")

    assert request.encode() == octets
    assert CertificateRequest.parse(octets) == request
    for cut in range(len(octets)):
        fails(CertificateRequest.parse, octets[:cut])
    fails(CertificateRequest.parse, octets + b"\0")


# --- messages of the client


def test_a_certificate_verify_is_read() -> None:
    message = CertificateVerify(0x0403, b"signature")
    octets = bytes.fromhex("0403 0009") + b"signature"

    assert message.encode() == octets
    assert CertificateVerify.parse(octets) == message
    for cut in range(len(octets)):
        fails(CertificateVerify.parse, octets[:cut])
    fails(CertificateVerify.parse, octets + b"\0")


@pytest.mark.parametrize("identity", [b"", b"sensor-1", b"\0", bytes(200)])
def test_a_psk_identity_is_any_octets(identity: bytes) -> None:
    octets = len(identity).to_bytes(2, "big") + identity

    assert m.encode_psk_identity(identity) == octets
    assert m.parse_psk_identity(octets) == identity
    for cut in range(len(octets)):
        fails(m.parse_psk_identity, octets[:cut])
    fails(m.parse_psk_identity, octets + b"\0")


def test_a_point_is_read_and_never_empty() -> None:
    assert m.encode_point(b"\4xy") == b"\3\4xy"
    assert m.parse_point(b"\3\4xy") == b"\4xy"
    for octets in (b"", b"\0", b"\3\4x", b"\3\4xyz"):
        fails(m.parse_point, octets)
