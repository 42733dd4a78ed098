"""Sealing and opening records."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from coapgate.dtls.keys import Prf, key_block
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import MAX_PLAINTEXT, MAX_SEQUENCE, ContentType, split
from coapgate.dtls.suites import SUITES, Suite
from coapgate.errors import DtlsError, ForgedRecord
from tests.dtls.vectors import SESSIONS, Session

APPLICATION_DATA = ContentType.APPLICATION_DATA
CID, OTHER_CID = b"\xc1\xc2\xc3\xc4", b"\xd1"

each_suite = pytest.mark.parametrize("suite", SUITES.values(), ids=lambda suite: suite.name)
each_session = pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.name)


def both_ends(suite: Suite, cid_of_server: bytes = b"") -> tuple[Protection, Protection]:
    """Client and server of one association; with a CID of the server's, the client has one too."""
    block = key_block(suite, Prf(suite.hash_name, b"m" * 48), b"c" * 32, b"s" * 32)
    cid_of_client = OTHER_CID if cid_of_server else b""
    return (
        Protection(
            suite, block, is_client=True, received_cid=cid_of_client, sent_cid=cid_of_server
        ),
        Protection(
            suite, block, is_client=False, received_cid=cid_of_server, sent_cid=cid_of_client
        ),
    )


def open_any(protection: Protection, octets: bytes) -> tuple[int, bytes]:
    """Content type and plaintext of the one record in a datagram, as the server takes it."""
    record, *rest = split(octets, len(protection.received_cid))
    if rest:
        raise ForgedRecord("more than one record")
    if protection.received_cid:
        return protection.open_cid(record.octets)
    return record.content_type, protection.open(record.octets)


def seal_inner(inner: bytes, client: Protection) -> bytes:
    """A tls12_cid record of the client with `inner` as DTLSInnerPlaintext, padding and all."""
    # seal() appends the content type itself: hand it all but the last octet, and that one.
    return client.seal(inner[-1], 1, inner[:-1])


# --- records of other stacks


@each_session
def test_records_of_other_stacks_open(session: Session) -> None:
    protection = session.server_protection()

    for record in session.records:
        assert open_any(protection, record.octets) == (record.content_type, record.plaintext)


@each_session
def test_records_of_other_stacks_do_not_open_once_an_octet_is_changed(session: Session) -> None:
    protection = session.server_protection()
    octets = session.records[0].octets

    for position in range(len(octets)):
        forged = bytearray(octets)
        forged[position] ^= 1
        with pytest.raises(DtlsError):
            open_any(protection, bytes(forged))


def test_records_with_and_without_connection_id_are_among_those_of_other_stacks() -> None:
    assert {bool(session.server_cid) for session in SESSIONS} == {True, False}
    assert {session.suite.code for session in SESSIONS} == {0xC0A8, 0xC0A4, 0x00A8, 0x00A9}


# --- round trips


@each_suite
@pytest.mark.parametrize("cid", [b"", CID], ids=["no_cid", "cid"])
def test_what_one_end_seals_the_other_opens(suite: Suite, cid: bytes) -> None:
    client, server = both_ends(suite, cid)

    for sequence, length in enumerate((0, 1, 100, MAX_PLAINTEXT)):
        plaintext = os.urandom(length)
        up = client.seal(APPLICATION_DATA, sequence, plaintext)
        down = server.seal(ContentType.ALERT, sequence, plaintext)

        assert open_any(server, up) == (APPLICATION_DATA, plaintext)
        assert open_any(client, down) == (ContentType.ALERT, plaintext)
        assert len(up) == length + client.overhead
        assert len(down) == length + server.overhead


@each_suite
@pytest.mark.parametrize("cid", [b"", CID], ids=["no_cid", "cid"])
def test_every_octet_of_a_record_is_authenticated(suite: Suite, cid: bytes) -> None:
    client, server = both_ends(suite, cid)
    octets = client.seal(APPLICATION_DATA, 5, b"21.5")

    for position in range(len(octets)):
        for bit in range(8):
            forged = bytearray(octets)
            forged[position] ^= 1 << bit
            with pytest.raises(DtlsError):
                open_any(server, bytes(forged))


@each_suite
def test_a_record_does_not_open_at_the_end_that_sealed_it(suite: Suite) -> None:
    client, _ = both_ends(suite)

    with pytest.raises(ForgedRecord):
        client.open(client.seal(APPLICATION_DATA, 0, b"21.5"))


# --- nonces and numbers


def test_the_explicit_nonce_that_we_send_is_epoch_and_sequence_number() -> None:
    client, _ = both_ends(SUITES[0xC0A8])

    record = client.seal(APPLICATION_DATA, 0x0102030405, b"")

    assert record[3:11] == bytes.fromhex("0001 000102030405")
    assert record[13:21] == record[3:11]


def test_a_received_nonce_is_read_from_the_record_never_computed() -> None:
    # OpenSSL's GCM starts at a random value; its records are among the vectors.
    session = next(s for s in SESSIONS if s.name == "psk_aes128_gcm_no_cid_openssl")
    record = session.records[0]

    assert record.octets[13:21] != record.octets[3:11]
    assert session.server_protection().open(record.octets) == record.plaintext


@pytest.mark.parametrize("cid", [b"", CID], ids=["no_cid", "cid"])
def test_a_number_out_of_bounds_would_not_repeat_a_nonce(cid: bytes) -> None:
    client, _ = both_ends(SUITES[0xC0A8], cid)
    numbers = (0, 1, MAX_SEQUENCE, MAX_SEQUENCE + 1, MAX_SEQUENCE + 2)
    start = 13 + len(cid)

    nonces = {client.seal(APPLICATION_DATA, n, b"")[start : start + 8] for n in numbers}

    assert len(nonces) == len(numbers)


# --- lengths


@each_suite
def test_a_record_shorter_than_nonce_and_tag_is_forged(suite: Suite) -> None:
    _, server = both_ends(suite)
    for length in range(suite.overhead):
        with pytest.raises(ForgedRecord):
            server.open(b"\x17\xfe\xfd" + bytes(8) + length.to_bytes(2, "big") + bytes(length))

    _, server = both_ends(suite, CID)
    for length in range(suite.overhead + 1):
        header = b"\x19\xfe\xfd" + bytes(8) + CID + length.to_bytes(2, "big")
        with pytest.raises(ForgedRecord):
            server.open_cid(header + bytes(length))


def test_a_plaintext_longer_than_the_rfc_allows_is_refused_even_from_the_peer() -> None:
    too_long = bytes(MAX_PLAINTEXT + 1)

    for cid in (b"", CID):
        client, server = both_ends(SUITES[0xC0A8], cid)
        with pytest.raises(ForgedRecord):
            open_any(server, client.seal(APPLICATION_DATA, 0, too_long))


# --- Connection IDs


def test_the_inner_content_type_is_the_record_s() -> None:
    client, server = both_ends(SUITES[0xC0A8], CID)
    for content_type in range(1, 256):
        octets = client.seal(content_type, 1, b"body")

        assert octets[0] == ContentType.TLS12_CID
        assert server.open_cid(octets) == (content_type, b"body")


def test_padding_after_the_inner_content_type_is_removed() -> None:
    client, server = both_ends(SUITES[0xC0A8], CID)
    for padding in (1, 2, 255):
        octets = seal_inner(b"body\0\0\x17" + bytes(padding), client)

        assert server.open_cid(octets) == (APPLICATION_DATA, b"body\0\0")


def test_a_plaintext_of_padding_only_is_refused() -> None:
    client, server = both_ends(SUITES[0xC0A8], CID)
    for length in (1, 2, 100):
        with pytest.raises(ForgedRecord):
            server.open_cid(seal_inner(bytes(length), client))


def test_a_record_for_another_connection_id_is_refused() -> None:
    suite = SUITES[0xC0A8]
    client, server = both_ends(suite, CID)
    octets = client.seal(APPLICATION_DATA, 1, b"body")

    for cid in (b"\xc1\xc2\xc3\xc5", CID[:3], CID + b"\0", b""):
        _, other = both_ends(suite, cid)
        with pytest.raises(ForgedRecord):
            other.open_cid(octets)
    assert server.open_cid(octets) == (APPLICATION_DATA, b"body")


def test_an_empty_connection_id_means_records_without() -> None:
    client, server = both_ends(SUITES[0xC0A8])

    octets = client.seal(APPLICATION_DATA, 0, b"body")

    assert octets[0] == APPLICATION_DATA
    with pytest.raises(ForgedRecord):
        server.open_cid(octets)
    with pytest.raises(ForgedRecord):
        server.open_cid(b"\x19" + octets[1:])


# --- AEAD objects


@pytest.mark.parametrize(
    "first",
    [
        lambda end: end.warm(),
        lambda end: end.cool(),
        lambda end: end.seal(APPLICATION_DATA, 0, b""),
    ],
    ids=["warmed", "cooled", "sealed"],
)
def test_cooling_and_warming_change_nothing_but_memory(
    first: Callable[[Protection], object],
) -> None:
    for cid in (b"", CID):
        client, server = both_ends(SUITES[0xC02C], cid)
        first(client)
        first(server)
        for sequence in (1, 2):
            octets = client.seal(APPLICATION_DATA, sequence, b"21.5")
            assert open_any(server, octets) == (APPLICATION_DATA, b"21.5")
        client.cool()
        server.cool()
        octets = client.seal(APPLICATION_DATA, 3, b"21.5")
        assert open_any(server, octets) == (APPLICATION_DATA, b"21.5")


def test_only_a_protection_that_holds_aead_objects_is_warm() -> None:
    _, cold = both_ends(SUITES[0xC0A8])
    _, warm = both_ends(SUITES[0xC0A8])
    _, cooled = both_ends(SUITES[0xC0A8])
    warm.warm()
    cooled.warm()
    cooled.cool()

    assert [end.opener is not None for end in (cold, warm, cooled)] == [False, True, False]
