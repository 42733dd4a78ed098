"""The server's handshake: what it takes, what it answers, what it says when it ends."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.dtls import extensions
from coapgate.dtls import messages as m
from coapgate.dtls.events import Candidate, ChainProven, HandshakeFailed, KeyProven, KeysRequested
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.finished import HandshakeKeys
from coapgate.dtls.groups import GROUPS
from coapgate.dtls.handshake import (
    MAX_ALERTS,
    POINT_INTERVAL,
    REFUSAL_TIME,
    HandshakeSettings,
    ServerHandshake,
    State,
)
from coapgate.dtls.keys import Transcript
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.records import ContentType, Record, encode, split
from coapgate.dtls.server import Server, ServerSettings
from coapgate.dtls.signatures import SCHEMES, PrivateKey
from coapgate.dtls.suites import SUITES, KeyExchange
from coapgate.errors import Alert, Reason
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method
from coapgate.pki.factory import IssuedCertificate
from tests.dtls.factory import (
    authority,
    device_certificate,
    psk_client,
    server_certificate,
    x509_client,
    x509_settings,
)
from tests.dtls.raw import ECDHE_CCM_8, PSK_CCM_8, RawPeer, read_messages
from tests.fakes.link import IDENTITY, KEY, Direction, Link

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")
PSK_SUITES = [code for code, s in SUITES.items() if s.key_exchange is KeyExchange.PSK]
ECDHE_SUITES = [code for code in SUITES if code not in PSK_SUITES]
RETRANSMISSION_TIME = HandshakeSettings().retransmission_time
HANDSHAKE_TIMEOUT = HandshakeSettings().handshake_timeout
AUTH_TIMEOUT = HandshakeSettings().auth_timeout


@pytest.fixture
def server() -> Server:
    return new_server()


def new_server(**changes: Any) -> Server:
    return Server(x509_settings(**changes), lambda association, plaintext, now: None)


def pending(server: Server) -> ServerHandshake:
    (handshake,) = server._pending
    return handshake


def offer(server: Server, *secrets: bytes, now: float = 0.0, **how: Any) -> None:
    """Answer the KeysRequested that is there."""
    event = server.events.popleft()
    assert isinstance(event, KeysRequested)
    candidates = tuple(Candidate(secret, secret) for secret in secrets)
    server.offer_keys(event.handshake, candidates, now, **how)


def claim(peer: RawPeer, *secrets: bytes, key: bytes = KEY) -> None:
    """A PSK handshake up to Finished; `secrets` are offered, `key` is what the peer has."""
    peer.greet()
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive(key)
    offer(peer.server, *secrets, now=peer.now)


def prove(peer: RawPeer) -> KeyProven:
    """A PSK handshake up to the decision."""
    claim(peer, KEY)
    peer.finish()
    event = peer.server.events.popleft()
    assert isinstance(event, KeyProven)
    return event


def show(
    peer: RawPeer,
    certificate: IssuedCertificate | None = None,
    *,
    key: PrivateKey | None = None,
    scheme: int | None = None,
) -> None:
    """An ECDHE handshake up to the decision."""
    certificate = certificate or device_certificate()
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(certificate.chain))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    peer.say(T.CERTIFICATE_VERIFY, peer.certificate_verify(key or certificate.key, scheme))
    peer.finish()


def alerts(records: list[Record]) -> list[bytes]:
    return [record.fragment for record in records if record.content_type == ContentType.ALERT]


def failures(server: Server) -> list[tuple[Reason, str]]:
    found = [e for e in server.events if isinstance(e, HandshakeFailed)]
    return [(event.reason, event.detail) for event in found]


def expire(peer: RawPeer, seconds: float = HANDSHAKE_TIMEOUT) -> list[Record]:
    """Let a handshake end at its deadline."""
    peer.now += seconds
    peer.server.handle_timer(peer.now)
    return peer.take()


# --- handshakes that succeed


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "plain"])
@pytest.mark.parametrize("suite", SUITES)
def test_every_suite_completes_with_and_without_extended_master_secret(
    suite: int, extended: bool
) -> None:
    make = psk_client if suite in PSK_SUITES else x509_client
    link = Link(x509_settings())
    device = link.connect(make(cipher_suites=(suite,), extended_master_secret=extended))

    device.client.send(b"up")
    link.server.traffic.send(link.association, b"down", link.now)
    link.run(1.0)

    assert [plaintext for _, plaintext in link.delivered] == [b"up"]
    assert device.plaintexts == [b"down"]
    assert link.association.protection.suite.code == suite


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_completes(group: int) -> None:
    handshake = HandshakeSettings(
        server_certificate(ec.SECP384R1), x509_settings().handshake.public_key
    )
    link = Link(ServerSettings(handshake))

    device = link.connect(x509_client(groups=(group, 24) if group != 24 else (24,)))

    assert device.client.is_established


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "P-521", "Ed25519", "RSA-2048"],
)
@pytest.mark.parametrize("suite", [0xC0AE, 0xC02C], ids=["SHA-256", "SHA-384"])
def test_certificate_verify_may_use_another_hash_than_the_prf(key: PrivateKey, suite: int) -> None:
    issued = authority().issue_device("sensor-1", key=key)
    for code, scheme in SCHEMES.items():
        if isinstance(key.public_key(), scheme.key):
            server = new_server()
            show(RawPeer(server, suite=suite), issued, scheme=code)
            (event,) = server.events
            assert isinstance(event, ChainProven)
            assert event.chain == issued.chain


def test_small_datagrams_fragment_and_reassemble_both_ways() -> None:
    link = Link(x509_settings(max_datagram=228))

    device = link.connect(x509_client(max_datagram=200))

    assert device.client.is_established
    assert max(len(d) for d in link.datagrams(Direction.TO_CLIENT)) <= 228
    assert max(len(d) for d in link.datagrams(Direction.TO_SERVER)) <= 200


def test_several_messages_in_one_record_are_taken(server: Server) -> None:
    certificate = device_certificate()
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    said = []
    for kind, body in (
        (T.CERTIFICATE, m.encode_certificate(certificate.chain)),
        (T.CLIENT_KEY_EXCHANGE, peer.key_exchange()),
    ):
        said.append(m.encode_message(kind, peer.message_seq, body))
        peer.message_seq += 1
        peer.transcript.add(said[-1])
    peer.put(peer.clear(ContentType.HANDSHAKE, b"".join(said)))
    peer.derive()
    peer.say(T.CERTIFICATE_VERIFY, peer.certificate_verify(certificate.key))

    peer.finish()

    assert isinstance(server.events[0], ChainProven)


def test_messages_and_finished_that_come_in_the_wrong_order_are_put_right(server: Server) -> None:
    certificate = device_certificate()
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    records = [peer.message(T.CERTIFICATE, m.encode_certificate(certificate.chain))]
    records.append(peer.message(T.CLIENT_KEY_EXCHANGE, peer.key_exchange()))
    peer.derive()
    records.append(peer.message(T.CERTIFICATE_VERIFY, peer.certificate_verify(certificate.key)))
    records.append(peer.sealed_finished())

    for record in reversed(records):
        peer.put(record)

    assert isinstance(server.events[0], ChainProven)


def test_finished_is_taken_without_change_cipher_spec(server: Server) -> None:
    peer = RawPeer(server)
    claim(peer, KEY)

    peer.put(peer.sealed_finished())

    assert isinstance(server.events[0], KeyProven)


def test_server_hello_takes_message_seq_and_record_sequence_of_the_accepted_hello(
    server: Server,
) -> None:
    for message_seq, record_sequence in ((1, 1), (4, 900)):
        peer = RawPeer(server, random=bytes([message_seq]) * 32)
        cookie = peer.ask()
        peer.message_seq, peer.record_sequence = message_seq, record_sequence

        replies = peer.say(T.CLIENT_HELLO, peer.hello(cookie).encode())

        assert [record.sequence for record in replies] == [record_sequence, record_sequence + 1]
        seqs = [int.from_bytes(message[4:6], "big") for message in read_messages(replies)]
        assert seqs == [message_seq, message_seq + 1]


# --- hello


def test_an_ecdhe_hello_that_its_address_may_not_afford_is_dropped_without_state(
    server: Server,
) -> None:
    server = Server(
        replace(x509_settings(), ecdhe_burst=1, ecdhe_rate=0.1),
        lambda association, plaintext, now: None,
    )
    first = RawPeer(server, suite=ECDHE_CCM_8)
    assert len(first.greet()) > 0
    second = RawPeer(server, suite=ECDHE_CCM_8, path=(0, ("192.0.2.1", 7)))

    assert second.greet() == []
    assert server.handshake_count == 1
    assert not server.events

    # The client repeats it, and a PSK hello costs nothing.
    second.now = 10.0
    second.message_seq = second.record_sequence = 0
    assert len(second.greet()) > 0
    assert len(RawPeer(server, path=(0, ("192.0.2.1", 8))).greet()) > 0


def test_a_server_with_a_certificate_must_be_able_to_read_those_of_others() -> None:
    with pytest.raises(AssertionError):
        HandshakeSettings(certificate=server_certificate())


@pytest.mark.parametrize(
    ("changes", "alert", "reason"),
    [
        ({"version": b"\xfe\xff"}, Alert.PROTOCOL_VERSION, Reason.UNSUPPORTED_VERSION),
        ({"compression_methods": b"\1"}, Alert.ILLEGAL_PARAMETER, Reason.ILLEGAL_PARAMETER),
        ({"extensions": {1: b"\5"}}, Alert.ILLEGAL_PARAMETER, Reason.ILLEGAL_PARAMETER),
        ({"cipher_suites": (0xC02F,)}, Alert.HANDSHAKE_FAILURE, Reason.NO_SHARED_CIPHER),
    ],
    ids=["version", "compression", "fragment length", "cipher"],
)
def test_what_a_hello_cannot_have_is_answered_at_once_and_leaves_no_state(
    server: Server, changes: dict[str, Any], alert: Alert, reason: Reason
) -> None:
    peer = RawPeer(server)

    (reply,) = peer.greet(**changes)

    assert (reply.content_type, reply.epoch, reply.sequence) == (ContentType.ALERT, 0, 1)
    assert reply.fragment == bytes((2, alert))
    assert server.handshake_count == 0
    assert [failed for failed, _ in failures(server)] == [reason]


def test_a_hello_that_does_not_parse_is_dropped_and_a_better_one_is_taken(server: Server) -> None:
    peer = RawPeer(server)
    cookie = peer.ask()
    good = peer.hello(cookie).encode()
    twice = peer.hello(cookie, extensions={}).encode() + b"\0\x08" + b"\0\x17\0\0" * 2

    assert peer.put(hello_record(peer, twice)) == []
    assert pending(server).state is State.AWAIT_CLIENT_HELLO
    peer.put(hello_record(peer, good))
    assert pending(server).state is State.AWAIT_CLIENT_KEY_EXCHANGE

    server = new_server()
    peer = RawPeer(server)
    cookie = peer.ask()
    peer.put(
        hello_record(
            peer, peer.hello(cookie, extensions={}).encode() + b"\0\x08" + b"\0\x17\0\0" * 2
        )
    )
    assert expire(peer) == []
    assert failures(server) == [(Reason.MALFORMED, "extension 23 sent twice")]


def hello_record(peer: RawPeer, body: bytes) -> bytes:
    return peer.clear(
        ContentType.HANDSHAKE, m.encode_message(T.CLIENT_HELLO, peer.message_seq, body)
    )


def test_only_the_hello_that_the_cookie_was_for_is_taken(server: Server) -> None:
    peer = RawPeer(server)
    hello = peer.hello(peer.ask()).encode()
    seq = peer.message_seq
    other = hello[:2] + bytes(32) + hello[34:]
    start = m.encode_fragment(T.CLIENT_HELLO, 3000, seq, 0, hello)
    peer.put(peer.clear(ContentType.HANDSHAKE, start))
    assert pending(server).state is State.AWAIT_CLIENT_HELLO

    # The hello is not the first fragment of its record: it goes to the handshake unseen.
    smuggled = m.encode_fragment(T.CLIENT_HELLO, len(other), seq, 1, other[1:])
    smuggled += m.encode_fragment(T.CLIENT_HELLO, len(other), seq, 0, other)
    assert peer.put(peer.clear(ContentType.HANDSHAKE, smuggled)) == []

    assert pending(server).state is State.AWAIT_CLIENT_HELLO
    assert expire(peer) == []
    assert failures(server) == [(Reason.MALFORMED, "not the hello that the cookie was for")]


def test_renegotiation_info_is_answered_empty_if_it_or_the_scsv_was_sent() -> None:
    def answered(**changes: Any) -> bytes | None:
        peer = RawPeer(new_server())
        peer.greet(**changes)
        hello = m.ServerHello.parse(peer.flight[T.SERVER_HELLO])
        return hello.extensions.get(ExtensionType.RENEGOTIATION_INFO)

    assert answered(extensions={ExtensionType.RENEGOTIATION_INFO: b"\0"}) == b"\0"
    assert answered(extensions={}, cipher_suites=(PSK_CCM_8, 0x00FF)) == b"\0"
    assert answered(extensions={}) is None


@pytest.mark.parametrize("version", [0xFEFF, 0xFEFD])
def test_record_versions_of_dtls_1_0_and_1_2_are_accepted(server: Server, version: int) -> None:
    peer = RawPeer(server)
    for cookie in (b"", cookie_of(server, peer)):
        hello = m.encode_message(T.CLIENT_HELLO, peer.message_seq, peer.hello(cookie).encode())
        replies = peer.put(encode(ContentType.HANDSHAKE, peer.message_seq, hello, version))
        peer.message_seq += 1

    assert [message[0] for message in read_messages(replies)] == [
        T.SERVER_HELLO,
        T.SERVER_HELLO_DONE,
    ]
    assert {record.octets[1:3] for record in replies} == {b"\xfe\xfd"}


def test_the_session_id_of_the_answer_is_empty_and_its_version_1_2(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet(session_id=b"resume me", version=b"\xfe\xfc")

    hello = m.ServerHello.parse(peer.flight[T.SERVER_HELLO])

    assert (hello.session_id, hello.version) == (b"", b"\xfe\xfd")


@pytest.mark.parametrize("offered", [True, False])
def test_extended_master_secret_is_used_whenever_it_is_offered(
    server: Server, offered: bool
) -> None:
    extension: dict[int, bytes] = {ExtensionType.EXTENDED_MASTER_SECRET: b""}
    peer = RawPeer(server, extensions=extension if offered else {})

    prove(peer)

    answered = m.ServerHello.parse(peer.flight[T.SERVER_HELLO]).extensions
    assert (ExtensionType.EXTENDED_MASTER_SECRET in answered) is offered


@pytest.mark.parametrize(("code", "length"), [(1, 512), (2, 1024)])
def test_no_record_carries_more_than_the_maximum_fragment_length(
    server: Server, code: int, length: int
) -> None:
    offered = extensions.encode_offer((23,), tuple(SCHEMES), length)
    peer = RawPeer(server, suite=ECDHE_CCM_8, extensions=offered)
    show(peer)

    hello = m.ServerHello.parse(peer.flight[T.SERVER_HELLO])
    assert hello.extensions[ExtensionType.MAX_FRAGMENT_LENGTH] == bytes((code,))
    assert max(len(record.fragment) for record in peer.replies) <= length
    event = server.events.popleft()
    assert isinstance(event, ChainProven)
    association = server.accept(event.handshake, DEVICE, 0.0)
    assert association is not None
    assert association.max_plaintext == length


def test_without_a_maximum_fragment_length_a_plaintext_fills_a_datagram(server: Server) -> None:
    event = prove(RawPeer(server))

    association = server.accept(event.handshake, DEVICE, 0.0)

    assert association is not None
    assert association.max_plaintext == 1232 - 13 - 8 - 8


# --- messages that are not taken


def test_a_message_that_does_not_parse_is_dropped_without_advancing_and_remembered(
    server: Server,
) -> None:
    peer = RawPeer(server)
    peer.greet()
    bad = m.encode_message(T.CLIENT_KEY_EXCHANGE, peer.message_seq, b"\0\5abc")
    peer.put(peer.clear(ContentType.HANDSHAKE, bad))
    assert not server.events

    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    offer(server, KEY)
    peer.finish()
    assert isinstance(server.events.popleft(), KeyProven)

    peer = RawPeer(server, path=(0, ("192.0.2.2", 1)))
    peer.greet()
    peer.put(peer.clear(ContentType.HANDSHAKE, bad))
    expire(peer)
    assert (Reason.MALFORMED, "message cut short") in failures(server)


def test_a_record_that_does_not_parse_is_remembered_too(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()

    peer.put(peer.clear(ContentType.HANDSHAKE, b"\x10\0\0\5\0\2\0\0\0\0\0\5ab"))
    expire(peer)

    assert failures(server) == [(Reason.MALFORMED, "fragment outside its message")]


def test_a_fragment_that_contradicts_octets_already_held_is_dropped(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()
    body = peer.key_exchange()
    seq = peer.message_seq
    first = m.encode_fragment(T.CLIENT_KEY_EXCHANGE, len(body), seq, 0, body[:5])
    lie = m.encode_fragment(T.CLIENT_KEY_EXCHANGE, len(body), seq, 4, b"?" + body[5:])
    rest = m.encode_fragment(T.CLIENT_KEY_EXCHANGE, len(body), seq, 4, body[4:])
    for fragment in (first, lie, rest):
        peer.put(peer.clear(ContentType.HANDSHAKE, fragment))

    event = server.events.popleft()
    assert isinstance(event, KeysRequested)
    assert event.identity == IDENTITY


@pytest.mark.parametrize(
    ("kind", "length", "ahead"),
    [
        (T.CLIENT_KEY_EXCHANGE, 513, 0),
        (T.CLIENT_KEY_EXCHANGE, 10, 4),
        (T.CERTIFICATE, 100, 0),
        (T.CERTIFICATE_VERIFY, 1025, 1),
    ],
)
def test_a_fragment_out_of_bounds_is_not_held(
    server: Server, kind: int, length: int, ahead: int
) -> None:
    peer = RawPeer(server)
    peer.greet()
    seq = peer.message_seq + ahead
    peer.put(peer.clear(ContentType.HANDSHAKE, m.encode_fragment(kind, length, seq, 0, bytes(1))))

    assert not pending(server)._reassembly._partials
    expire(peer)
    assert [reason for reason, _ in failures(server)] == [Reason.MALFORMED]


def test_a_certificate_longer_than_max_handshake_message_is_not_held() -> None:
    server = new_server(max_handshake_message=1000)
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    for length in (1001, 1000):
        fragment = m.encode_fragment(T.CERTIFICATE, length, peer.message_seq, 0, b"\0")
        peer.put(peer.clear(ContentType.HANDSHAKE, fragment))
        assert len(pending(server)._reassembly._partials) == (length == 1000)


def test_a_client_key_exchange_that_comes_early_and_does_not_fit_then_is_dropped(
    server: Server,
) -> None:
    # Without a certificate no CertificateVerify may come; this one is there already.
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    seq = peer.message_seq
    verify = m.CertificateVerify(0x0403, b"").encode()
    early = m.encode_message(T.CERTIFICATE_VERIFY, seq + 2, verify)
    peer.put(peer.clear(ContentType.HANDSHAKE, early))
    peer.say(T.CERTIFICATE, m.encode_certificate(()))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()

    replies = peer.finish()

    assert alerts(replies) == [bytes((2, Alert.HANDSHAKE_FAILURE))]
    assert [reason for reason, _ in failures(server)] == [Reason.NO_CERTIFICATE]


@pytest.mark.parametrize(
    ("group", "point"),
    [
        (23, b"\4" + bytes(64)),
        (23, b"\4" + bytes(63)),
        (23, b"\2" + bytes(32)),
        (23, b"\2" + bytes(64)),
        (23, b"\0"),
        (29, bytes(32)),
        (29, b"\1" + bytes(31)),
        (29, bytes(31)),
    ],
)
def test_a_point_that_is_not_uncompressed_whole_and_on_the_curve_is_refused(
    server: Server, group: int, point: bytes
) -> None:
    # The curve of the server's certificate comes first, so x25519 needs one on P-384.
    if group == 29:
        handshake = HandshakeSettings(
            server_certificate(ec.SECP384R1), x509_settings().handshake.public_key
        )
        server = Server(ServerSettings(handshake), lambda association, plaintext, now: None)
    offered = extensions.encode_offer((29, 24) if group == 29 else (23,), tuple(SCHEMES))
    peer = RawPeer(server, suite=ECDHE_CCM_8, extensions=offered)
    peer.greet()
    assert m.ServerKeyExchange.parse(peer.flight[T.SERVER_KEY_EXCHANGE]).group == group
    peer.say(T.CERTIFICATE, m.encode_certificate(device_certificate().chain))

    peer.say(T.CLIENT_KEY_EXCHANGE, m.encode_point(point))

    assert pending(server).state is State.AWAIT_CLIENT_KEY_EXCHANGE
    expire(peer)
    ((reason, detail),) = failures(server)
    assert reason is Reason.MALFORMED
    assert "point" in detail


def test_a_peer_s_bad_points_are_looked_at_four_times_a_second(server: Server) -> None:
    # Each costs us as much as an ECDHE hello, of which there are only so many a second.
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(device_certificate().chain))
    good = peer.key_exchange()

    def attempt(body: bytes) -> State:
        message = m.encode_message(T.CLIENT_KEY_EXCHANGE, peer.message_seq, body)
        peer.put(peer.clear(ContentType.HANDSHAKE, message))
        return pending(server).state

    bad = m.encode_point(b"\4" + bytes(64))
    assert attempt(bad) is State.AWAIT_CLIENT_KEY_EXCHANGE
    assert attempt(good) is State.AWAIT_CLIENT_KEY_EXCHANGE
    peer.now += POINT_INTERVAL
    assert attempt(good) is State.AWAIT_CERTIFICATE_VERIFY


# --- facts about the device: only after its Finished


def test_a_peer_without_certificate_is_refused_once_its_finished_verified(server: Server) -> None:
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    before = peer.say(T.CERTIFICATE, m.encode_certificate(()))
    before += peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    assert before == []
    assert failures(server) == []

    replies = peer.finish()

    assert alerts(replies) == [bytes((2, Alert.HANDSHAKE_FAILURE))]
    assert failures(server) == [(Reason.NO_CERTIFICATE, "")]


@pytest.mark.parametrize("scheme", [0x0403, 0x0603])
def test_a_signature_that_is_not_by_the_leaf_s_key_is_refused_once_finished_verified(
    server: Server, scheme: int
) -> None:
    peer = RawPeer(server, suite=ECDHE_CCM_8)

    show(peer, key=ec.generate_private_key(ec.SECP256R1()), scheme=scheme)

    assert alerts(peer.replies) == [bytes((2, Alert.DECRYPT_ERROR))]
    assert failures(server) == [(Reason.BAD_SIGNATURE, f"scheme {scheme:#06x}")]


def test_a_signature_scheme_that_was_not_offered_is_refused(server: Server) -> None:
    certificate = device_certificate()
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(certificate.chain))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    assert isinstance(certificate.key, ec.EllipticCurvePrivateKey)
    peer.say(T.CERTIFICATE_VERIFY, m.CertificateVerify(0x0203, b"sha-1").encode())

    peer.finish()

    assert failures(server) == [(Reason.BAD_SIGNATURE, "scheme 0x0203")]


def test_the_transcript_s_octets_are_kept_until_certificate_verify_and_freed_after_it(
    server: Server,
) -> None:
    certificate = device_certificate()
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(certificate.chain))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    kept = pending(server)._transcript.octets
    peer.say(T.CERTIFICATE_VERIFY, peer.certificate_verify(certificate.key))

    assert kept is not None
    assert pending(server)._transcript.octets is None

    without = RawPeer(server, path=(0, ("192.0.2.2", 1)))
    without.greet()
    handshake = server._pending.at(without.path)
    assert handshake is not None
    assert handshake._transcript.octets is None


def test_a_key_that_may_not_be_used_is_refused_once_finished_verified(server: Server) -> None:
    weak = authority().issue_device("weak", key=rsa.generate_private_key(65537, 1024))
    peer = RawPeer(server, suite=ECDHE_CCM_8)

    show(peer, weak)

    assert alerts(peer.replies) == [bytes((2, Alert.BAD_CERTIFICATE))]
    assert [reason for reason, _ in failures(server)] == [Reason.WEAK_KEY]


# --- candidate keys


@pytest.mark.parametrize("position", range(4))
def test_the_candidate_that_opens_finished_is_the_device_s(server: Server, position: int) -> None:
    secrets = [bytes([n]) * 16 for n in range(4)]
    peer = RawPeer(server)
    claim(peer, *secrets, key=secrets[position])

    peer.finish()

    (event,) = server.events
    assert isinstance(event, KeyProven)
    assert event.proves == secrets[position]
    assert event.path == peer.path


def test_more_than_four_candidates_are_not_tried(server: Server) -> None:
    secrets = [bytes([n]) * 16 for n in range(5)]
    peer = RawPeer(server)
    claim(peer, *secrets, key=secrets[4])

    peer.finish()

    assert not server.events


@pytest.mark.parametrize("length", [16, 33, 64])
def test_keys_of_any_length_are_tried(server: Server, length: int) -> None:
    key = bytes(range(length))
    peer = RawPeer(server)
    claim(peer, key, key=key)

    peer.finish()

    assert isinstance(server.events[0], KeyProven)


def test_finished_that_came_before_the_keys_is_tried_with_them(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    peer.finish()
    assert len(server.events) == 1

    offer(server, KEY)

    assert isinstance(server.events[0], KeyProven)


def test_answers_that_come_too_late_or_twice_change_nothing(server: Server) -> None:
    peer = RawPeer(server)
    event = prove(peer)

    server.offer_keys(event.handshake, (Candidate(KEY, None),), 0.0)
    server.offer_keys(99, (Candidate(KEY, None),), 0.0)
    server.refuse(99, Reason.DISABLED, 0.0)
    assert server.accept(99, DEVICE, 0.0) is None
    assert pending(server).state is State.AWAIT_DECISION

    assert server.accept(event.handshake, DEVICE, 0.0) is not None
    assert server.accept(event.handshake, DEVICE, 0.0) is None
    server.refuse(event.handshake, Reason.DISABLED, 0.0)
    assert server.association_count == 1


@pytest.mark.parametrize("identity", [b"", b"a\0b", b"x" * 129, b"x" * 500])
def test_an_identity_that_cannot_be_continues_with_a_random_key(
    server: Server, identity: bytes
) -> None:
    peer = RawPeer(server)
    peer.greet()
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange(identity))
    peer.derive()
    # Even if somebody finds a key for it.
    offer(server, KEY)
    assert peer.finish() == []
    assert pending(server).state is State.AWAIT_FINISHED

    expire(peer)

    (event,) = server.events
    assert isinstance(event, HandshakeFailed)
    assert (event.reason, event.identity) == (Reason.UNKNOWN_IDENTITY, identity)


def test_an_identity_of_128_octets_that_is_no_text_is_looked_up_exactly(server: Server) -> None:
    identity = bytes(range(128, 256))
    peer = RawPeer(server)
    peer.greet()
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange(identity))

    (event,) = server.events
    assert isinstance(event, KeysRequested)
    assert event.identity == identity


class Work:
    """Counts calls of primitives while it is entered."""

    NAMES = frozenset({"finalize", "decrypt", "encrypt", "openssl_sha256", "sha256"})

    def __enter__(self) -> Counter[str]:
        self.calls: Counter[str] = Counter()
        sys.setprofile(self._count)
        return self.calls

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, frame: object, event: str, function: Any) -> None:
        if event == "c_call" and function.__name__ in self.NAMES:
            self.calls[function.__name__] += 1


def test_an_unknown_identity_and_a_wrong_key_are_alike_on_the_wire_and_in_work() -> None:
    patterns, works = [], []
    for secrets in ((), (b"another key 0123",), (b"another key 0123", b"yet another one!")):
        server = new_server()
        peer = RawPeer(server)
        peer.greet()
        with Work() as work:
            peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
            offer(server, *secrets, padding=3)
        peer.derive()
        with Work() as trials:
            for _ in range(3):
                peer.now += 2.0
                peer.finish()
        expire(peer)
        replies = [(r.content_type, r.epoch, r.sequence, len(r.octets)) for r in peer.replies]
        patterns.append((replies, server.next_timer(), server.handshake_count))
        works.append((dict(work), dict(trials)))

    assert patterns[0] == patterns[1] == patterns[2]
    assert works[0] == works[1] == works[2]
    assert works[0][0]["finalize"] > 0
    assert works[0][1]["decrypt"] == 9


def test_a_failed_look_up_continues_as_an_unknown_identity_does_and_only_the_count_differs() -> (
    None
):
    outcomes = []
    for reason in (Reason.UNKNOWN_IDENTITY, Reason.UNAVAILABLE):
        server = new_server()
        peer = RawPeer(server)
        peer.greet()
        peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
        peer.derive()
        offer(server, reason=reason)
        peer.finish()
        expire(peer)
        assert [found for found, _ in failures(server)] == [reason]
        outcomes.append([len(record.octets) for record in peer.replies])

    assert outcomes[0] == outcomes[1]


def test_a_look_up_that_exceeds_auth_timeout_continues_with_random_keys(server: Server) -> None:
    first = RawPeer(server)
    claim(first, KEY)
    server.offer_keys(99, (), 0.0, padding=4)
    peer = RawPeer(server, path=(0, ("192.0.2.2", 1)))
    peer.greet()
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    event = server.events.popleft()
    assert isinstance(event, KeysRequested)
    handshake = server._pending.numbered(event.handshake)
    assert handshake is not None

    expire(peer, AUTH_TIMEOUT)

    # As many as the list had when it could be told last.
    assert len(handshake._candidates) == 4
    assert handshake.state is State.AWAIT_FINISHED
    server.offer_keys(event.handshake, (Candidate(KEY, None),), peer.now)
    assert peer.finish() == []
    expire(peer)
    assert (Reason.UNAVAILABLE, "Finished does not verify") in failures(server)


def test_bad_key_is_counted_once_per_handshake_at_its_end(server: Server) -> None:
    peer = RawPeer(server)
    claim(peer, b"another key 0123")
    for _ in range(5):
        peer.now += 1.0
        peer.finish()
    assert failures(server) == []

    expire(peer)

    assert failures(server) == [(Reason.BAD_KEY, "Finished does not verify")]


def test_a_forged_finished_never_ends_a_handshake(server: Server) -> None:
    peer = RawPeer(server)
    claim(peer, KEY)
    forged = b"\x16\xfe\xfd\0\1" + bytes(6) + (40).to_bytes(2, "big") + bytes(40)
    for _ in range(200):
        peer.put(forged)
    assert pending(server).state is State.AWAIT_FINISHED

    peer.now += 1.0
    peer.finish()

    assert isinstance(server.events[0], KeyProven)


def test_32_records_of_epoch_1_are_tried_a_second(server: Server) -> None:
    peer = RawPeer(server)
    claim(peer, KEY)
    forged = b"\x16\xfe\xfd\0\1" + bytes(6) + (40).to_bytes(2, "big") + bytes(40)
    with Work() as work:
        for _ in range(1000):
            peer.put(forged)
    assert work["decrypt"] == 32
    assert peer.finish() == []

    peer.now += 1.0
    peer.finish()

    assert isinstance(server.events[0], KeyProven)


def test_an_ecdhe_finished_that_does_not_verify_is_no_bad_key(server: Server) -> None:
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(()))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.put(b"\x16\xfe\xfd\0\1" + bytes(6) + (40).to_bytes(2, "big") + bytes(40))

    expire(peer)

    assert failures(server) == [(Reason.TIMEOUT, "Finished does not verify")]


# --- clear text proves nothing


def test_an_alert_in_the_clear_is_only_remembered(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()
    peer.put(peer.clear(ContentType.ALERT, bytes((2, 48))))
    peer.put(peer.clear(ContentType.ALERT, b"\2"))
    assert pending(server).state is State.AWAIT_CLIENT_KEY_EXCHANGE

    expire(peer)

    assert failures(server) == [(Reason.TIMEOUT, "peer sent alert 48")]


def test_a_peer_that_falls_silent_is_a_timeout_and_told_nothing(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()
    peer.now = HANDSHAKE_TIMEOUT - 0.1
    server.handle_timer(peer.now)
    peer.take()
    assert server.handshake_count == 1

    peer.now = HANDSHAKE_TIMEOUT
    server.handle_timer(peer.now)

    assert alerts(peer.take()) == []
    assert failures(server) == [(Reason.TIMEOUT, "")]
    assert server.handshake_count == 0


# --- timers


def test_a_flight_is_repeated_after_9_s_doubling_to_60(server: Server) -> None:
    server = new_server(handshake_timeout=400.0)
    peer = RawPeer(server)
    first = peer.greet()
    sent_at = []
    while (due := server.next_timer()) is not None and due < 400.0:
        peer.now = due
        server.handle_timer(due)
        if replies := peer.take():
            sent_at.append(due)
            # Every time under new numbers.
            assert [r.sequence for r in replies] == [r.sequence + 2 * len(sent_at) for r in first]
            assert [r.fragment for r in replies] == [r.fragment for r in first]

    assert sent_at == [9.0, 27.0, 63.0, 123.0, 183.0, 243.0, 303.0, 363.0]


def test_a_repeated_hello_is_answered_at_once_and_at_most_once_a_second(server: Server) -> None:
    peer = RawPeer(server)
    first = peer.greet()
    hello = m.encode_message(T.CLIENT_HELLO, 1, peer.hello(cookie_of(server, peer)).encode())

    def repeat(now: float) -> list[Record]:
        peer.now = now
        return peer.put(peer.clear(ContentType.HANDSHAKE, hello))

    assert [r.fragment for r in repeat(0.99)] == [r.fragment for r in first]
    assert repeat(1.5) == []
    assert [r.fragment for r in repeat(2.0)] == [r.fragment for r in first]
    assert len({record.sequence for record in peer.replies if record.epoch == 0}) == 7


def cookie_of(server: Server, peer: RawPeer) -> bytes:
    return server._cookies.make(peer.path, b"\xfe\xfd", peer.random, b"", 0.0)


def test_a_repeated_message_of_the_flight_that_is_awaited_is_swallowed(server: Server) -> None:
    peer = RawPeer(server, suite=ECDHE_CCM_8)
    peer.greet()
    record = peer.message(T.CERTIFICATE, m.encode_certificate(device_certificate().chain))
    peer.put(record)
    peer.now += 5.0

    assert peer.put(record) == []
    assert pending(server).state is State.AWAIT_CLIENT_KEY_EXCHANGE


def test_flights_repeated_while_a_decision_waits_are_swallowed(server: Server) -> None:
    peer = RawPeer(server)
    hello = peer.hello(peer.ask())
    again = hello_record(peer, hello.encode())
    peer.greet()
    exchange = peer.message(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.put(exchange)
    for now in (1.0, 2.0, 3.0):
        peer.now = now
        assert peer.put(again) == peer.put(exchange) == []
    peer.derive()
    offer(server, KEY, now=3.0)
    peer.finish()
    for now in (4.0, 5.0, 6.0):
        peer.now = now
        assert peer.put(exchange) == peer.finish() == []

    event = server.events.popleft()
    assert isinstance(event, KeyProven)
    assert server.accept(event.handshake, DEVICE, 6.0) is not None


def test_a_decision_that_exceeds_auth_timeout_is_unavailable(server: Server) -> None:
    peer = RawPeer(server)
    event = prove(peer)

    assert expire(peer, AUTH_TIMEOUT - 0.1) == []
    replies = expire(peer, 0.1)

    assert alerts(replies) == [bytes((2, Alert.INTERNAL_ERROR))]
    assert failures(server) == [(Reason.UNAVAILABLE, "no decision in time")]
    assert server.accept(event.handshake, DEVICE, peer.now) is None


def test_whoever_proved_a_key_just_before_the_deadline_is_told_the_decision(
    server: Server,
) -> None:
    peer = RawPeer(server)
    claim(peer, KEY)
    peer.now = HANDSHAKE_TIMEOUT - 0.5
    peer.finish()
    event = server.events.popleft()
    assert isinstance(event, KeyProven)

    peer.now = HANDSHAKE_TIMEOUT + 1.0
    server.handle_timer(peer.now)
    assert server.accept(event.handshake, DEVICE, peer.now) is not None

    assert [record.epoch for record in peer.take()] == [0, 1]


def test_a_timer_that_fires_early_does_nothing(server: Server) -> None:
    peer = RawPeer(server)
    peer.greet()
    handshake = pending(server)
    handshake.handle_timer(RETRANSMISSION_TIME - 0.1)
    assert handshake.outgoing == []

    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    handshake.handle_timer(AUTH_TIMEOUT - 0.1)

    assert handshake.state is State.AWAIT_KEYS
    assert handshake.outgoing == []


# --- refusals


def refused(server: Server, reason: Reason = Reason.DISABLED) -> RawPeer:
    peer = RawPeer(server)
    event = prove(peer)
    server.refuse(event.handshake, reason, 0.0)
    peer.take()
    return peer


@pytest.mark.parametrize(
    ("reason", "alert"),
    [
        (Reason.DISABLED, 44),
        (Reason.REVOKED, 44),
        (Reason.EXPIRED, 45),
        (Reason.NOT_YET_VALID, 45),
        (Reason.UNTRUSTED, 48),
        (Reason.CREDENTIAL_MISMATCH, 48),
        (Reason.WRONG_USAGE, 42),
        (Reason.UNAVAILABLE, 80),
    ],
)
def test_a_refusal_is_told_in_the_clear_under_the_next_number(
    server: Server, reason: Reason, alert: int
) -> None:
    peer = refused(server, reason)

    last = peer.replies[-1]
    clear = [record.sequence for record in peer.replies]
    assert (last.content_type, last.epoch) == (ContentType.ALERT, 0)
    assert last.fragment == bytes((2, alert))
    # After the second hello's number and that of ServerHelloDone.
    assert clear == [0, 1, 2, 3]


def test_a_peer_that_begins_anew_while_the_decision_waits_has_no_reason_but_time(
    server: Server,
) -> None:
    event = prove(RawPeer(server))
    assert pending(server).has_proven

    RawPeer(server, random=bytes(32)).greet()

    assert failures(server) == [(Reason.TIMEOUT, "")]
    assert server.accept(event.handshake, DEVICE, 0.0) is None


def test_a_reason_without_alert_is_told_by_silence(server: Server) -> None:
    peer = refused(server, Reason.UNKNOWN_IDENTITY)
    peer.now = 1.0

    assert alerts(peer.replies) == []
    assert peer.finish() == []


def test_a_refusal_is_repeated_for_each_repeated_flight_at_most_5_times_in_60_s(
    server: Server,
) -> None:
    peer = refused(server)
    told = alerts(peer.replies)
    exchange = m.encode_message(T.CLIENT_KEY_EXCHANGE, 2, peer.key_exchange())
    for second in range(1, 60):
        peer.now = float(second)
        # A flight is several records: they are answered once.
        told += alerts(peer.put(peer.clear(ContentType.HANDSHAKE, exchange)))
        told += alerts(peer.finish())

    assert told == [bytes((2, Alert.CERTIFICATE_REVOKED))] * MAX_ALERTS
    sequences = [r.sequence for r in peer.replies if r.epoch == 0]
    assert len(set(sequences)) == len(sequences)
    assert server.handshake_count == 1
    expire(peer, REFUSAL_TIME - 59.0)
    assert server.handshake_count == 0
    assert failures(server) == []


# --- the end


def test_the_last_flight_is_change_cipher_spec_and_finished_in_one_datagram(
    server: Server,
) -> None:
    peer = RawPeer(server)
    event = prove(peer)
    server.accept(event.handshake, DEVICE, 0.0)

    ((datagram, path),) = server.outgoing
    change, finished = split(datagram)

    assert path == peer.path
    assert (change.content_type, change.epoch) == (ContentType.CHANGE_CIPHER_SPEC, 0)
    assert (finished.content_type, finished.epoch, finished.sequence) == (22, 1, 0)
    assert peer.keys is not None
    message = peer.keys.protection.open(finished.octets)
    peer.transcript.add(m.encode_message(T.FINISHED, peer.message_seq, peer.finished()))
    expected = peer.keys.verify_data(peer.transcript, of_client=False)
    # ServerHello had message_seq 1, ServerHelloDone 2.
    assert message == m.encode_message(T.FINISHED, 3, expected)


@pytest.mark.parametrize("end", ["accepted", "refused", "timeout"])
@pytest.mark.parametrize("suite", [PSK_CCM_8, ECDHE_CCM_8])
def test_the_handshake_s_secrets_are_dropped_when_it_ends(
    server: Server, suite: int, end: str
) -> None:
    peer = RawPeer(server, suite=suite)
    if suite == PSK_CCM_8:
        claim(peer, KEY)
        peer.finish()
    else:
        show(peer)
    event = server.events.popleft()
    assert isinstance(event, KeyProven | ChainProven)
    if end == "accepted":
        server.accept(event.handshake, DEVICE, 0.0)
    elif end == "refused":
        server.refuse(event.handshake, Reason.DISABLED, 0.0)
        assert not hasattr(pending(server), "_proof")
    else:
        expire(peer, HANDSHAKE_TIMEOUT * 2)
        expire(peer, HANDSHAKE_TIMEOUT * 2)
        assert server.handshake_count == 0
    peer.keys, peer.transcript = None, Transcript("sha256")
    gc.collect()

    alive = Counter(type(found) for found in gc.get_objects())
    assert alive[HandshakeKeys] == 0
    assert alive[ServerHandshake] == server.handshake_count == (end == "refused")


# --- memory

MAX_PENDING_MEMORY = 24 * 1024
USUAL_PENDING_MEMORY = 16 * 1024


def memory_per_handshake(fill: Any, count: int = 50) -> float:
    """Octets that one pending handshake holds once `fill` has said to it what it can."""
    server = new_server()
    fill(RawPeer(server))
    peers = [RawPeer(server, path=(0, (f"192.0.2.{number}", 1000))) for number in range(count)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            fill(peers[number])
            server.events.clear()
            # The peer's own things are not the server's.
            peers[number] = None  # type: ignore[call-overload]
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert server.handshake_count == count + 1
    print(f"{fill.__name__}: {held / count:.0f} octets")
    return held / count


def greedy_hello(peer: RawPeer) -> None:
    """As long a hello as is taken, then all that can come early."""
    padding = {0x7777: bytes(1700)}
    peer.suite = ECDHE_CCM_8
    peer.extensions = extensions.encode_offer((23,), tuple(SCHEMES)) | padding
    peer.greet()


def early_records(peer: RawPeer) -> None:
    for _ in range(4):
        peer.put(b"\x16\xfe\xfd\0\1" + bytes(6) + (115).to_bytes(2, "big") + bytes(115))
    peer.put(b"\x16\xfe\xfd\0\1" + bytes(6) + (16000).to_bytes(2, "big") + bytes(16000))


def hold_a_partial_certificate(peer: RawPeer) -> None:
    greedy_hello(peer)
    early_records(peer)
    for kind, length, ahead in (
        (T.CERTIFICATE, 8192, 0),
        (T.CLIENT_KEY_EXCHANGE, 512, 1),
        (T.CERTIFICATE_VERIFY, 1024, 2),
    ):
        body = bytes(length - 1)
        for offset in range(0, len(body), 1000):
            fragment = m.encode_fragment(
                kind, length, peer.message_seq + ahead, offset, body[offset : offset + 1000]
            )
            peer.put(peer.clear(ContentType.HANDSHAKE, fragment))


def hold_a_certificate_and_wait(peer: RawPeer) -> None:
    greedy_hello(peer)
    early_records(peer)
    chain = (*device_certificate().chain, *[bytes(1200)] * 6)
    peer.say(T.CERTIFICATE, m.encode_certificate(chain))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    fragment = m.encode_fragment(T.CERTIFICATE_VERIFY, 1024, peer.message_seq, 0, bytes(1000))
    peer.put(peer.clear(ContentType.HANDSHAKE, fragment))


def hold_four_candidates(peer: RawPeer) -> None:
    peer.extensions = {0x7777: bytes(1700)}
    claim(peer, *[bytes([n]) * 64 for n in range(4)])
    early_records(peer)


def the_usual_psk(peer: RawPeer) -> None:
    claim(peer, KEY)


def the_usual_ecdhe(peer: RawPeer) -> None:
    peer.suite = ECDHE_CCM_8
    peer.greet()
    peer.say(T.CERTIFICATE, m.encode_certificate(device_certificate().chain))
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())


@pytest.mark.parametrize(
    "fill", [hold_a_partial_certificate, hold_a_certificate_and_wait, hold_four_candidates]
)
def test_a_pending_handshake_holds_at_most_24_kib(fill: Any) -> None:
    assert memory_per_handshake(fill) < MAX_PENDING_MEMORY


@pytest.mark.parametrize("fill", [the_usual_psk, the_usual_ecdhe])
def test_the_usual_pending_handshake_holds_less_than_16_kib(fill: Any) -> None:
    assert memory_per_handshake(fill) < USUAL_PENDING_MEMORY
