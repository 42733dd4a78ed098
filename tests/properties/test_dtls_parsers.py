"""Every DTLS parser: what was encoded parses to the same; any octets are parsed or refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from coapgate.dtls import messages as m
from coapgate.dtls import records
from coapgate.dtls.extensions import FRAGMENT_LENGTHS, encode_answer, encode_offer, parse_offer
from coapgate.dtls.fragments import Reassembly
from coapgate.dtls.groups import GROUPS, Group
from coapgate.dtls.keys import Prf, key_block
from coapgate.dtls.presentation import Reader, integers, vector
from coapgate.dtls.protection import Protection
from coapgate.dtls.signatures import SCHEMES, PublicKey, Scheme
from coapgate.dtls.suites import SUITES, Suite
from coapgate.errors import DtlsError, ForgedRecord, Refused

uint8 = st.integers(0, 0xFF)
uint16 = st.integers(0, 0xFFFF)
uint24 = st.integers(0, 0xFFFFFF)
uint48 = st.integers(0, records.MAX_SEQUENCE)
randoms = st.binary(min_size=32, max_size=32)
versions = st.binary(min_size=2, max_size=2)
session_ids = st.binary(max_size=32)
extensions = st.dictionaries(uint16, st.binary(max_size=40), max_size=8)
suites = st.sampled_from(list(SUITES.values()))

client_hellos = st.builds(
    m.ClientHello,
    randoms,
    st.lists(uint16, min_size=1, max_size=40).map(tuple),
    versions,
    session_ids,
    st.binary(max_size=255),
    st.binary(min_size=1, max_size=255),
    extensions,
)
server_hellos = st.builds(m.ServerHello, randoms, uint16, versions, session_ids, uint8, extensions)
server_key_exchanges = st.builds(
    m.ServerKeyExchange,
    uint16,
    st.binary(min_size=1, max_size=255),
    uint16,
    st.binary(max_size=300),
)
certificate_requests = st.builds(
    m.CertificateRequest,
    st.binary(min_size=1, max_size=20),
    st.lists(uint16, min_size=1, max_size=20).map(tuple),
    st.binary(max_size=300),
)
certificate_verifies = st.builds(m.CertificateVerify, uint16, st.binary(max_size=300))
chains = st.lists(st.binary(min_size=1, max_size=300), max_size=m.MAX_CERTIFICATES).map(tuple)

EPHEMERAL = {group.code: group.generate() for group in GROUPS.values()}
PUBLIC_KEYS: tuple[PublicKey, ...] = (
    ec.generate_private_key(ec.SECP256R1()).public_key(),
    ed25519.Ed25519PrivateKey.generate().public_key(),
    rsa.generate_private_key(65537, 2048).public_key(),
)

PARSERS: dict[str, Callable[[bytes], object]] = {
    "records": lambda octets: list(records.split(octets)),
    "records with connection ID": lambda octets: list(records.split(octets, 8)),
    "fragments": lambda octets: list(m.parse_fragments(octets)),
    "client hello": m.ClientHello.parse,
    "hello start": m.parse_hello_start,
    "hello verify request": m.parse_hello_verify_request,
    "server hello": m.ServerHello.parse,
    "certificate": m.parse_certificate,
    "server key exchange": m.ServerKeyExchange.parse,
    "certificate request": m.CertificateRequest.parse,
    "certificate verify": m.CertificateVerify.parse,
    "psk identity": m.parse_psk_identity,
    "point": m.parse_point,
}


@pytest.mark.parametrize("parse", PARSERS.values(), ids=PARSERS)
@given(octets=st.binary(max_size=400))
def test_any_octets_are_parsed_or_refused(parse: Callable[[bytes], object], octets: bytes) -> None:
    with contextlib.suppress(DtlsError):
        parse(octets)


@given(hello=client_hellos, position=st.floats(0, 1, exclude_max=True), octet=uint8)
def test_a_hello_with_one_octet_changed_is_parsed_or_refused(
    hello: m.ClientHello, position: float, octet: int
) -> None:
    octets = bytearray(hello.encode())
    octets[int(position * len(octets))] = octet
    with contextlib.suppress(DtlsError, Refused):
        changed = m.ClientHello.parse(bytes(octets))
        parse_offer(changed.extensions, changed.cipher_suites)


# --- presentation


@given(st.sampled_from((1, 2, 3)), st.binary(max_size=255))
def test_vectors(prefix: int, octets: bytes) -> None:
    reader = Reader(vector(prefix, octets))

    assert reader.vector(prefix) == octets
    reader.finish()


@given(st.lists(uint16, min_size=1, max_size=100).map(tuple))
def test_lists_of_integers(values: tuple[int, ...]) -> None:
    assert Reader(integers(2, 2, values)).integers(2, 2) == values


# --- records and fragments


@given(
    st.lists(
        st.tuples(uint8.filter(lambda kind: kind != 25), uint48, st.binary(max_size=100)),
        max_size=records.MAX_RECORDS,
    )
)
def test_records(sent: list[tuple[int, int, bytes]]) -> None:
    datagram = b"".join(records.encode(*record) for record in sent)

    got = list(records.split(datagram))

    assert [(record.content_type, record.sequence, record.fragment) for record in got] == sent
    assert b"".join(record.octets for record in got) == datagram


@given(st.lists(st.tuples(uint8, uint16, st.binary(max_size=100)), max_size=m.MAX_FRAGMENTS))
def test_messages_in_a_record(sent: list[tuple[int, int, bytes]]) -> None:
    octets = b"".join(m.encode_message(*message) for message in sent)

    got = list(m.parse_fragments(octets))

    assert got == [m.Fragment(kind, len(body), seq, 0, body) for kind, seq, body in sent]


@given(uint8, uint16, uint24, st.binary(max_size=100), uint24)
def test_fragments(kind: int, message_seq: int, offset: int, body: bytes, length: int) -> None:
    encoded = m.encode_fragment(kind, length, message_seq, offset, body)
    try:
        (fragment,) = m.parse_fragments(encoded)
    except DtlsError:
        assert offset + len(body) > length
    else:
        assert fragment == m.Fragment(kind, length, message_seq, offset, body)


# --- messages


@given(client_hellos)
def test_client_hellos(hello: m.ClientHello) -> None:
    octets = hello.encode()

    assert m.ClientHello.parse(octets) == hello
    assert m.parse_hello_start(octets) == m.HelloStart(
        hello.version, hello.random, hello.session_id, hello.cookie
    )


@given(server_hellos)
def test_server_hellos(hello: m.ServerHello) -> None:
    assert m.ServerHello.parse(hello.encode()) == hello


@given(chains)
def test_chains(chain: tuple[bytes, ...]) -> None:
    assert m.parse_certificate(m.encode_certificate(chain)) == chain


@given(server_key_exchanges)
def test_server_key_exchanges(message: m.ServerKeyExchange) -> None:
    assert m.ServerKeyExchange.parse(message.encode()) == message


@given(certificate_requests)
def test_certificate_requests(message: m.CertificateRequest) -> None:
    assert m.CertificateRequest.parse(message.encode()) == message


@given(certificate_verifies)
def test_certificate_verifies(message: m.CertificateVerify) -> None:
    assert m.CertificateVerify.parse(message.encode()) == message


@given(st.binary(max_size=300))
def test_psk_identities(identity: bytes) -> None:
    assert m.parse_psk_identity(m.encode_psk_identity(identity)) == identity


@given(st.binary(min_size=1, max_size=255))
def test_points(point: bytes) -> None:
    assert m.parse_point(m.encode_point(point)) == point


# --- extensions


@given(extensions, st.lists(uint16, max_size=20).map(tuple))
def test_any_extensions_are_parsed_or_refused(
    offered: dict[int, bytes], cipher_suites: tuple[int, ...]
) -> None:
    try:
        offer = parse_offer(offered, cipher_suites)
    except (DtlsError, Refused):
        return
    assert set(encode_answer(offer, with_ecdhe=True)) <= {*offered, 0xFF01}


@given(
    st.lists(st.sampled_from(list(GROUPS)), min_size=1, unique=True),
    st.lists(st.sampled_from(list(SCHEMES)), min_size=1, unique=True),
    st.none() | st.sampled_from(list(FRAGMENT_LENGTHS.values())),
)
def test_offers(groups: list[int], schemes: list[int], fragment_length: int | None) -> None:
    offer = parse_offer(encode_offer(tuple(groups), tuple(schemes), fragment_length), ())

    assert set(offer.groups or ()) == set(groups)
    assert set(offer.signature_algorithms or ()) == set(schemes)
    assert offer.max_fragment_length == fragment_length
    assert offer.extended_master_secret
    assert offer.secure_renegotiation


# --- what is built on them


@given(
    st.lists(
        st.tuples(uint8, st.integers(0, 300), st.integers(0, 6), st.binary(max_size=40)),
        max_size=50,
    )
)
def test_reassembly_takes_or_drops_any_fragment(
    fragments: list[tuple[int, int, int, bytes]],
) -> None:
    reassembly = Reassembly(0, 8192)
    for kind, offset, seq, body in fragments:
        reassembly.add(m.Fragment(kind, offset + len(body), seq, offset, body))
        while (message := reassembly.next()) is not None:
            assert message[0] <= 0xFF
            reassembly.advance()
    assert 0 <= reassembly.expected <= 7


@given(st.sampled_from(list(SCHEMES.values())), st.binary(max_size=400), st.binary(max_size=40))
def test_octets_that_are_no_signature_verify_nothing(
    scheme: Scheme, signature: bytes, octets: bytes
) -> None:
    for key in PUBLIC_KEYS:
        assert not scheme.verify(key, signature, octets)


@given(st.sampled_from(list(GROUPS.values())), st.binary(max_size=97))
def test_any_point_yields_a_secret_or_is_refused(group: Group, point: bytes) -> None:
    # Of the right length as often as not, and with the octet that says uncompressed.
    for candidate in (point, b"\4" + point.ljust(group.point_length - 1, b"\7"), point.ljust(32)):
        try:
            secret = group.exchange(EPHEMERAL[group.code], candidate)
        except DtlsError:
            continue
        assert any(secret)


@given(suites, st.sampled_from((b"", b"\xc1\xc2")), uint8, uint48, st.binary(max_size=200))
def test_sealed_records(
    suite: Suite, cid: bytes, content_type: int, sequence: int, plaintext: bytes
) -> None:
    block = key_block(suite, Prf(suite.hash_name, b"m" * 48), b"c" * 32, b"s" * 32)
    client = Protection(suite, block, is_client=True, sent_cid=cid)
    server = Protection(suite, block, is_client=False, received_cid=cid)
    octets = client.seal(content_type, sequence, plaintext)

    (record,) = records.split(octets, len(cid))

    assert (record.epoch, record.sequence) == (1, sequence)
    if not cid:
        assert server.open(octets) == plaintext
    elif content_type:
        assert server.open_cid(octets) == (content_type, plaintext)


@given(suites, st.sampled_from((b"", b"\xc1\xc2")), st.binary(max_size=400))
def test_any_octets_are_forged_to_an_association(suite: Suite, cid: bytes, octets: bytes) -> None:
    block = key_block(suite, Prf(suite.hash_name, b"m" * 48), b"c" * 32, b"s" * 32)
    server = Protection(suite, block, is_client=False, received_cid=cid)

    with pytest.raises(ForgedRecord):
        server.open(octets)
    with pytest.raises(ForgedRecord):
        server.open_cid(octets)
