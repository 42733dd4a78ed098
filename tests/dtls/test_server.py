"""From a datagram to whom it is for, and every bound of the server."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.association import FINAL_FLIGHT_LIFETIME, Association
from coapgate.dtls.client import Client
from coapgate.dtls.counters import Drop
from coapgate.dtls.events import AssociationClosed, Candidate, HandshakeFailed, KeysRequested
from coapgate.dtls.handshake import State
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import MAX_SEQUENCE, ContentType, Record, encode, split
from coapgate.dtls.server import MAX_HELLO_RECORD_SEQUENCE, MAX_HELLO_SEQ, Server, ServerSettings
from coapgate.dtls.warmth import WARM_TIME
from coapgate.errors import Alert, Reason
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path
from tests.dtls.factory import psk_client, x509_settings
from tests.dtls.raw import ECDHE_CCM_8, RawPeer
from tests.fakes.link import KEY, Direction, Joined, Link

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")


class Site:
    """A server with what it delivered, and peers that are taken through handshakes."""

    def __init__(self, settings: ServerSettings | None = None) -> None:
        self.delivered: list[tuple[Association, bytes, float]] = []
        self.server = Server(settings or ServerSettings(), self._deliver)

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        self.delivered.append((association, plaintext, now))

    def peer(self, host: str = "192.0.2.1", port: int = 49152, **fields: Any) -> RawPeer:
        return RawPeer(self.server, path=(0, (host, port)), **fields)

    def attach(self, peer: RawPeer, key: bytes = KEY) -> Association:
        """Take a PSK peer through its handshake."""
        self.claim(peer, key)
        peer.finish()
        event = self.server.events.pop()
        assert not isinstance(event, KeysRequested | HandshakeFailed | AssociationClosed)
        association = self.server.accept(event.handshake, DEVICE, peer.now)
        peer.take()
        assert association is not None
        return association

    def claim(self, peer: RawPeer, key: bytes = KEY) -> None:
        """A PSK handshake up to Finished; the hellos only if there were none yet."""
        if not peer.flight:
            peer.greet()
        peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
        peer.derive(key)
        event = self.server.events.pop()
        assert isinstance(event, KeysRequested)
        self.server.offer_keys(event.handshake, (Candidate(KEY, None),), peer.now)

    def dropped(self, why: Drop) -> int:
        return self.server.counters.dropped[why]

    @property
    def failures(self) -> list[Reason]:
        return [e.reason for e in self.server.events if isinstance(e, HandshakeFailed)]

    @property
    def closed(self) -> list[tuple[Association, str]]:
        return [
            (e.association, e.cause) for e in self.server.events if isinstance(e, AssociationClosed)
        ]


@pytest.fixture
def site() -> Site:
    return Site()


def opened(peer: RawPeer, records: list[Record]) -> list[tuple[int, bytes]]:
    """Content type and plaintext of the sealed ones among these records."""
    assert peer.keys is not None
    return [(r.content_type, peer.keys.protection.open(r.octets)) for r in records if r.epoch == 1]


# --- cookies: no state for a stranger


def test_a_hello_without_cookie_is_answered_from_its_own_octets_and_leaves_no_state(
    site: Site,
) -> None:
    peer = site.peer()
    peer.message_seq, peer.record_sequence = 3, 77
    hello = peer.message(T.CLIENT_HELLO, peer.hello().encode())

    (reply,) = peer.put(hello)

    assert (reply.sequence, reply.octets[1:3]) == (77, b"\xfe\xff")
    (fragment,) = m.parse_fragments(reply.fragment)
    assert (fragment.type, fragment.message_seq) == (T.HELLO_VERIFY_REQUEST, 3)
    assert fragment.body[:2] == b"\xfe\xff"
    assert (site.server.handshake_count, site.server.next_timer()) == (0, None)
    assert site.server.counters.cookies_sent == 1


def test_the_answer_is_never_larger_than_the_question(site: Site) -> None:
    # Version, random, empty session id and cookie: the shortest start that is looked at.
    start = m.encode_fragment(T.CLIENT_HELLO, 100, 0, 0, b"\xfe\xfd" + bytes(34))
    for length in range(len(start) + 1):
        question = encode(ContentType.HANDSHAKE, 0, start[:length])
        answers = site.peer().put(question)
        assert sum(len(answer.octets) for answer in answers) <= len(question)
    assert site.server.counters.cookies_sent == 1


def test_a_datagram_full_of_hellos_is_answered_by_one_datagram(site: Site) -> None:
    # Each answer has IP and UDP headers of its own: 24 of them would be more than the question.
    peer = site.peer()

    replies = peer.put(*(peer.message(T.CLIENT_HELLO, peer.hello().encode()) for _ in range(10)))

    assert [reply.sequence for reply in replies] == [0]
    assert site.server.counters.cookies_sent == 1
    assert site.dropped(Drop.MANY_HELLOS) == 9
    assert peer.greet()


@pytest.mark.parametrize(
    ("host", "port"), [("192.0.2.1", 2), ("192.0.2.2", 1), ("::ffff:192.0.2.1", 1)]
)
def test_a_cookie_is_worth_nothing_from_another_address(site: Site, host: str, port: int) -> None:
    cookie = site.peer("192.0.2.1", 1).ask()
    thief = site.peer(host, port)

    replies = thief.say(T.CLIENT_HELLO, thief.hello(cookie).encode())

    assert site.server.handshake_count == 0
    types = [fragment.type for r in replies for fragment in m.parse_fragments(r.fragment)]
    assert types == [T.HELLO_VERIFY_REQUEST]


def test_a_cookie_is_accepted_for_the_lifetime_of_two_secrets(site: Site) -> None:
    for age, accepted in ((0.0, True), (299.0, True), (301.0, True), (900.0, False)):
        peer = site.peer(port=int(age) + 1)
        cookie = peer.ask()
        peer.now = age
        peer.say(T.CLIENT_HELLO, peer.hello(cookie).encode())
        assert (site.server._pending.at(peer.path) is not None) is accepted


def test_20000_spoofed_hellos_leave_memory_flat_and_a_real_device_connects_meanwhile(
    site: Site,
) -> None:
    peer = site.peer()
    question = encode(
        ContentType.HANDSHAKE, 0, m.encode_message(T.CLIENT_HELLO, 0, peer.hello().encode())
    )
    forged = encode(
        ContentType.HANDSHAKE,
        1,
        m.encode_message(T.CLIENT_HELLO, 1, peer.hello(bytes(32)).encode()),
    )

    def flood(count: int) -> None:
        for number in range(count):
            host = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
            site.server.receive_datagram(question, (0, (host, number)), number / 1000)
            site.server.receive_datagram(forged, (0, (host, number)), number / 1000)
            site.server.outgoing.clear()

    flood(100)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        flood(10_000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert grown < 2048
    assert (site.server.handshake_count, site.server.association_count) == (0, 0)
    assert not site.server.events
    peer.now = 10.0
    site.attach(peer)
    assert site.server.association_count == 1


@pytest.mark.parametrize(
    ("message_seq", "record_sequence", "taken"),
    [
        (MAX_HELLO_SEQ, 0, True),
        (MAX_HELLO_SEQ + 1, 0, False),
        (0, MAX_HELLO_RECORD_SEQUENCE, True),
        (0, MAX_HELLO_RECORD_SEQUENCE + 1, False),
    ],
)
def test_a_hello_with_a_number_no_first_hello_has_is_dropped(
    site: Site, message_seq: int, record_sequence: int, taken: bool
) -> None:
    peer = site.peer()
    peer.message_seq, peer.record_sequence = message_seq, record_sequence

    replies = peer.say(T.CLIENT_HELLO, peer.hello().encode())

    assert len(replies) == taken
    assert site.dropped(Drop.HELLO_NUMBER) == (not taken)


def test_a_server_that_stops_accepting_goes_on_with_what_is_pending(site: Site) -> None:
    peer, late = site.peer(), site.peer(port=2)
    cookie = late.ask()
    site.claim(peer)
    site.server.is_accepting = False

    assert late.say(T.CLIENT_HELLO, late.hello(cookie).encode()) == []
    assert late.say(T.CLIENT_HELLO, late.hello().encode()) == []
    peer.finish()

    assert site.dropped(Drop.NOT_ACCEPTING) == 2
    assert len(site.server.events) == 1
    assert site.server.handshake_count == 1


# --- fragmented hellos


def split_hello(peer: RawPeer, cookie: bytes, at: int = 70) -> tuple[bytes, bytes]:
    """Two records of a hello, the first of them up to octet `at`."""
    hello = peer.hello(cookie).encode()
    pieces = ((0, hello[:at]), (at, hello[at:]))
    first, rest = (
        peer.clear(
            ContentType.HANDSHAKE,
            m.encode_fragment(T.CLIENT_HELLO, len(hello), peer.message_seq, offset, body),
        )
        for offset, body in pieces
    )
    return first, rest


def test_a_fragmented_hello_is_accepted_if_its_first_fragment_holds_the_cookie(
    site: Site,
) -> None:
    peer = site.peer()
    first, rest = split_hello(peer, peer.ask())

    assert peer.put(first) == []
    assert site.server.handshake_count == 1
    assert len(peer.put(rest)) == 2


def test_a_first_fragment_without_the_whole_cookie_is_dropped(site: Site) -> None:
    peer = site.peer()
    first, _ = split_hello(peer, peer.ask(), at=60)

    assert peer.put(first) == []

    assert site.server.handshake_count == 0
    assert site.dropped(Drop.MALFORMED) == 1


def test_later_fragments_from_a_path_without_a_pending_handshake_are_dropped(site: Site) -> None:
    peer = site.peer()
    _, rest = split_hello(peer, peer.ask())

    assert peer.put(rest) == []

    assert site.server.handshake_count == 0
    assert site.dropped(Drop.NO_HANDSHAKE) == 1


# --- one path, two things


def test_a_hello_with_the_random_of_the_pending_one_goes_to_it(site: Site) -> None:
    peer = site.peer()
    cookie = peer.ask()
    hello = m.encode_message(T.CLIENT_HELLO, peer.message_seq, peer.hello(cookie).encode())
    first = peer.put(peer.clear(ContentType.HANDSHAKE, hello))

    again = peer.put(peer.clear(ContentType.HANDSHAKE, hello))

    assert [r.fragment for r in again] == [r.fragment for r in first]
    assert site.server.counters.handshakes_started == 1


def test_a_late_first_hello_is_answered_by_a_cookie_and_harms_nothing(site: Site) -> None:
    peer = site.peer()
    late = encode(
        ContentType.HANDSHAKE, 0, m.encode_message(T.CLIENT_HELLO, 0, peer.hello().encode())
    )
    peer.greet()

    (reply,) = peer.put(late)

    (request,) = m.parse_fragments(reply.fragment)
    assert request.type == T.HELLO_VERIFY_REQUEST
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    assert isinstance(site.server.events[0], KeysRequested)


def test_a_hello_with_another_random_replaces_the_pending_handshake(site: Site) -> None:
    first, second = site.peer(), site.peer(random=bytes(32))
    first.greet()

    second.greet()

    assert site.server.handshake_count == 1
    assert site.failures == [Reason.TIMEOUT]
    site.attach(second)


def test_a_hello_without_a_valid_cookie_replaces_nothing(site: Site) -> None:
    site.claim(site.peer())
    stranger = site.peer(random=bytes(32))

    stranger.say(T.CLIENT_HELLO, stranger.hello().encode())
    stranger.say(T.CLIENT_HELLO, stranger.hello(bytes(32)).encode())

    (handshake,) = site.server._pending
    assert handshake.state is State.AWAIT_FINISHED


def test_a_new_hello_on_a_live_association_s_path_changes_nothing_until_it_is_finished(
    site: Site,
) -> None:
    peer, again = site.peer(), site.peer(random=bytes(32))
    old = site.attach(peer)
    again.greet()
    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"still here"))
    assert site.delivered == [(old, b"still here", 0.0)]
    again.say(T.CLIENT_KEY_EXCHANGE, again.key_exchange())
    again.derive()
    event = site.server.events.pop()
    assert isinstance(event, KeysRequested)
    site.server.offer_keys(event.handshake, (Candidate(KEY, None),), 0.0)
    assert site.server.association_count == 1

    again.finish()
    new = site.server.accept(event.handshake, DEVICE, 0.0)

    assert site.closed == [(old, "replaced")]
    assert list(site.server.associations) == [new]
    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"too late"))
    again.put(again.sealed(ContentType.APPLICATION_DATA, b"me now"))
    assert [plaintext for _, plaintext, _ in site.delivered] == [b"still here", b"me now"]


def test_handshake_records_of_epoch_1_go_to_the_pending_handshake_first_then_the_association(
    site: Site,
) -> None:
    peer, again = site.peer(), site.peer(random=bytes(32))
    site.attach(peer)
    site.claim(again)
    # The association's: it wants the last flight again.
    replies = peer.finish()
    assert [content_type for content_type, _ in opened(peer, replies)] == [22]

    # The pending handshake's.
    again.finish()

    event = site.server.events.pop()
    assert site.server.accept(event.handshake, DEVICE, 0.0) is not None  # type: ignore[union-attr]


def test_alerts_and_application_data_go_to_the_association_first(site: Site) -> None:
    peer, again = site.peer(), site.peer(random=bytes(32))
    association = site.attach(peer)
    site.claim(again)

    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"data"))
    peer.put(peer.sealed(ContentType.ALERT, b"\1\0"))

    assert [plaintext for _, plaintext, _ in site.delivered] == [b"data"]
    assert site.closed == [(association, "peer")]
    # With nobody but the pending handshake there, they are nothing.
    again.put(again.sealed(ContentType.APPLICATION_DATA, b"early"))
    again.put(again.sealed(ContentType.ALERT, b"\2\x28"))
    assert site.server.handshake_count == 1


def test_sealed_records_of_nobody_are_dropped(site: Site) -> None:
    for content_type in (20, 21, 22, 23):
        record = bytes((content_type,)) + b"\xfe\xfd\0\1" + bytes(6) + b"\0\x20" + bytes(32)
        site.peer().put(record)

    assert site.dropped(Drop.NO_ASSOCIATION) == 3
    assert site.dropped(Drop.UNEXPECTED_RECORD) == 1


# --- what becomes of a handshake


def test_what_was_wrong_on_the_way_is_the_reason_at_the_deadline(site: Site) -> None:
    alerted, malformed, silent = (site.peer(port=port) for port in (1, 2, 3))
    for peer in (alerted, malformed, silent):
        peer.greet()
    alerted.put(alerted.clear(ContentType.ALERT, b"\2\x30"))
    malformed.put(malformed.clear(ContentType.HANDSHAKE, b"\x10\0\0\5\0\2"))

    site.server.handle_timer(90.0)

    reasons = {e.path: (e.reason, e.detail) for e in site.server.events}  # type: ignore[union-attr]
    assert reasons == {
        alerted.path: (Reason.TIMEOUT, "peer sent alert 48"),
        malformed.path: (Reason.MALFORMED, "message cut short"),
        silent.path: (Reason.TIMEOUT, ""),
    }


def test_a_hello_that_asks_for_what_cannot_be_is_answered_and_leaves_nothing(site: Site) -> None:
    (reply,) = site.peer().greet(compression_methods=b"\1")

    assert reply.fragment == bytes((2, Alert.ILLEGAL_PARAMETER))
    assert site.failures == [Reason.ILLEGAL_PARAMETER]
    assert site.server.handshake_count == 0


def test_a_refusal_is_told_and_whoever_refuses_knows(site: Site) -> None:
    peer = site.peer()
    site.claim(peer)
    peer.finish()
    event = site.server.events.pop()

    site.server.refuse(event.handshake, Reason.REVOKED, 0.0)  # type: ignore[union-attr]

    assert [r.fragment for r in peer.take()] == [bytes((2, Alert.CERTIFICATE_REVOKED))]
    assert not site.server.events
    site.server.handle_timer(60.0)
    assert site.server.handshake_count == 0
    assert not site.server.events


def test_a_peer_refused_for_what_it_showed_is_told_again_when_it_repeats() -> None:
    site = Site(x509_settings())
    peer = site.peer(suite=ECDHE_CCM_8)
    peer.greet()
    certificate = peer.message(T.CERTIFICATE, m.encode_certificate(()))
    peer.put(certificate)
    peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
    peer.derive()
    told = peer.finish()
    for now in (1.0, 2.0):
        peer.now = now
        told += peer.put(certificate) + peer.finish()

    assert [r.fragment for r in told] == [bytes((2, Alert.HANDSHAKE_FAILURE))] * 3
    assert site.failures == [Reason.NO_CERTIFICATE]


def test_a_decision_that_does_not_come_in_time_is_unavailable(site: Site) -> None:
    peer = site.peer()
    site.claim(peer)
    peer.finish()
    site.server.events.clear()

    site.server.handle_timer(5.0)

    assert [r.fragment for r in peer.take()] == [bytes((2, Alert.INTERNAL_ERROR))]
    assert site.failures == [Reason.UNAVAILABLE]


def test_answers_for_a_handshake_that_is_gone_change_nothing(site: Site) -> None:
    site.server.offer_keys(7, (), 0.0)
    site.server.refuse(7, Reason.REVOKED, 0.0)

    assert site.server.accept(7, DEVICE, 0.0) is None
    assert (site.server.outgoing, len(site.server.events)) == ([], 0)


def test_keys_that_cannot_be_told_are_padded_as_the_last_time(site: Site) -> None:
    counts = []
    for port, how in enumerate(({}, {"padding": 3}, {"reason": Reason.UNAVAILABLE})):
        peer = site.peer(port=port)
        peer.greet()
        peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
        event = site.server.events.pop()
        assert isinstance(event, KeysRequested)
        site.server.offer_keys(event.handshake, (), 0.0, **how)  # type: ignore[arg-type]
        handshake = site.server._pending.numbered(event.handshake)
        assert handshake is not None
        counts.append(len(handshake._candidates))

    assert counts == [1, 3, 3]


# --- full house


def test_at_max_handshakes_the_oldest_unproven_yields() -> None:
    site = Site(ServerSettings(max_handshakes=3))
    peers = [site.peer(f"192.0.2.{number}") for number in range(4)]

    for peer in peers:
        peer.greet()

    assert site.server.handshake_count == 3
    assert site.failures == [Reason.LIMIT]
    assert site.server._pending.at(peers[0].path) is None


def test_one_address_never_keeps_others_out() -> None:
    site = Site(ServerSettings(max_handshakes=8, handshakes_per_address=4))
    first = site.peer("192.0.2.7")
    first.greet()
    for port in range(100):
        site.peer("192.0.2.1", port, random=bytes([port]) * 32).greet()

    assert site.server.handshake_count == 5
    assert site.server._pending.at(first.path) is not None
    site.attach(site.peer("192.0.2.8"))


def test_if_all_of_an_address_wait_for_their_decision_a_new_one_is_not_begun() -> None:
    site = Site(ServerSettings(handshakes_per_address=1))
    waiting = site.peer()
    site.claim(waiting)
    waiting.finish()
    late = site.peer(port=2)

    assert late.greet() == []

    assert site.dropped(Drop.HANDSHAKE_LIMIT) == 1
    assert site.server.handshake_count == 1


def test_refused_handshakes_with_made_up_certificates_keep_nobody_out() -> None:
    site = Site(replace(x509_settings(), max_handshakes=4))
    for number in range(8):
        peer = site.peer(f"192.0.2.{number}", suite=ECDHE_CCM_8)
        peer.greet()
        peer.say(T.CERTIFICATE, m.encode_certificate(()))
        peer.say(T.CLIENT_KEY_EXCHANGE, peer.key_exchange())
        peer.derive()
        peer.finish()

    assert site.server.handshake_count == 4
    assert site.failures == [Reason.NO_CERTIFICATE] * 8
    site.attach(site.peer("192.0.2.100"))


def test_ecdhe_hellos_of_one_address_have_a_rate_and_others_are_unaffected() -> None:
    site = Site(replace(x509_settings(), ecdhe_rate=1.0, ecdhe_burst=2, handshakes_per_address=9))
    answers = [len(site.peer(port=n, suite=ECDHE_CCM_8).greet()) for n in range(4)]

    assert [count > 0 for count in answers] == [True, True, False, False]
    assert site.dropped(Drop.ECDHE_RATE) == 2
    assert site.peer("192.0.2.2", suite=ECDHE_CCM_8).greet() != []


def test_at_max_associations_the_longest_idle_yields_and_is_told() -> None:
    site = Site(ServerSettings(max_associations=2))
    peers = [site.peer(port=port) for port in (1, 2, 3)]
    first = site.attach(peers[0])
    second = site.attach(peers[1])
    peers[0].put(peers[0].sealed(ContentType.APPLICATION_DATA, b"awake"))

    third = site.attach(peers[2])

    assert site.closed == [(second, "evicted")]
    assert list(site.server.associations) == [first, third]
    assert opened(peers[1], peers[1].take()) == [(ContentType.ALERT, b"\1\0")]


# --- records of an association


def test_application_data_is_delivered_with_its_association_and_time(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)
    peer.now = 5.0

    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"hello"))

    assert site.delivered == [(association, b"hello", 5.0)]
    assert association.last_seen_at == 5.0
    assert site.server.find(association.id) is association
    assert site.server.find(bytes(8)) is None


def test_several_records_in_one_datagram_are_delivered(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)

    peer.put(*(peer.sealed(ContentType.APPLICATION_DATA, bytes([n])) for n in range(3)))

    assert [plaintext for _, plaintext, _ in site.delivered] == [b"\0", b"\1", b"\2"]


def test_replayed_forged_and_foreign_records_are_dropped_silently_and_counted(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    good = peer.sealed(ContentType.APPLICATION_DATA, b"once")
    forged = bytearray(peer.sealed(ContentType.APPLICATION_DATA, b"forged"))
    forged[-1] ^= 1
    other_epoch = bytearray(peer.sealed(ContentType.APPLICATION_DATA, b"epoch 2"))
    other_epoch[4] = 2
    clear = encode(ContentType.APPLICATION_DATA, 9, b"in the clear")

    replies = [
        peer.put(record) for record in (good, good, bytes(forged), bytes(other_epoch), clear)
    ]

    assert replies == [[]] * 5
    assert [plaintext for _, plaintext, _ in site.delivered] == [b"once"]
    assert site.dropped(Drop.REPLAYED) == 1
    assert site.dropped(Drop.FORGED) == 1
    assert site.dropped(Drop.WRONG_EPOCH) == 2


def test_application_data_of_another_epoch_is_dropped_beside_other_records_too(
    site: Site,
) -> None:
    peer = site.peer()
    site.attach(peer)
    clear = encode(ContentType.APPLICATION_DATA, 9, b"in the clear")

    peer.put(clear, clear)

    assert site.dropped(Drop.UNEXPECTED_RECORD) == 2
    assert site.delivered == []


def test_records_with_a_connection_id_are_nobody_s_yet(site: Site) -> None:
    site.peer().put(b"\x19\xfe\xfd\0\1" + bytes(6) + b"\0\x20" + bytes(32))

    assert site.dropped(Drop.UNKNOWN_CID) == 1


@pytest.mark.parametrize("datagram", [b"", b"\x17", b"\x16\xfe\xfd", bytes(100), b"\xff" * 100])
def test_datagrams_that_are_not_records_are_dropped(site: Site, datagram: bytes) -> None:
    peer = site.peer()
    site.attach(peer)

    peer.put(datagram)

    assert site.server.association_count == 1
    assert site.dropped(Drop.MALFORMED) == (datagram != b"")


def test_a_handshake_record_without_a_message_is_malformed(site: Site) -> None:
    peer = site.peer()
    peer.put(peer.clear(ContentType.HANDSHAKE, b""))

    assert site.dropped(Drop.MALFORMED) == 1


# --- close_notify


def test_close_notify_of_the_peer_is_answered_and_ends_the_association(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    replies = peer.put(peer.sealed(ContentType.ALERT, b"\1\0"))

    assert opened(peer, replies) == [(ContentType.ALERT, b"\1\0")]
    assert site.closed == [(association, "peer")]
    assert not association.is_open
    assert site.server.association_count == 0


def test_a_fatal_alert_ends_the_association_without_a_word(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    assert peer.put(peer.sealed(ContentType.ALERT, bytes((2, 80)))) == []

    assert site.closed == [(association, "peer")]


@pytest.mark.parametrize("alert", [b"", b"\1", b"\1\x5a", b"\1\x64"])
def test_other_alerts_change_nothing(site: Site, alert: bytes) -> None:
    peer = site.peer()
    site.attach(peer)

    assert peer.put(peer.sealed(ContentType.ALERT, alert)) == []

    assert site.server.association_count == 1


def test_we_say_close_notify_once(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    site.server.traffic.close(association, "surplus")
    site.server.traffic.close(association, "surplus")
    site.server.traffic.send(association, b"too late", 0.0)

    assert opened(peer, peer.take()) == [(ContentType.ALERT, b"\1\0")]
    assert site.closed == [(association, "surplus")]


def test_another_alert_than_close_notify_is_fatal(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    site.server.traffic.close(association, "refused", Alert.CERTIFICATE_REVOKED)

    assert opened(peer, peer.take()) == [(ContentType.ALERT, bytes((2, 44)))]


def test_after_finished_nothing_in_the_clear_but_a_hello_is_looked_at(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    for content_type, fragment in (
        (ContentType.ALERT, b"\2\x28"),
        (ContentType.ALERT, b"\1\0"),
        (ContentType.CHANGE_CIPHER_SPEC, b"\1"),
        (ContentType.HANDSHAKE, m.encode_message(T.FINISHED, 3, bytes(12))),
        (ContentType.HANDSHAKE, m.encode_message(T.CLIENT_KEY_EXCHANGE, 2, peer.key_exchange())),
        (ContentType.APPLICATION_DATA, b"plain"),
    ):
        assert peer.put(peer.clear(content_type, fragment)) == []

    assert site.server.association_count == 1
    assert site.delivered == []
    stranger = site.peer(random=bytes(32))
    assert len(stranger.say(T.CLIENT_HELLO, stranger.hello().encode())) == 1


def test_no_alert_answers_a_record_that_did_not_authenticate(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    for content_type in (21, 22, 23):
        for length in (0, 1, 8, 15, 16, 17, 40, 200):
            header = bytes((content_type,)) + b"\xfe\xfd\0\1\0\0\0\0\xff" + bytes([length])
            assert peer.put(header + length.to_bytes(2, "big") + bytes(length)) == []

    assert site.server.association_count == 1


# --- the last flight


def test_a_repeated_finished_is_answered_by_the_last_flight_under_new_numbers(
    site: Site,
) -> None:
    peer = site.peer()
    site.attach(peer)
    first = peer.replies[-2:]

    again = peer.finish()

    assert [r.epoch for r in again] == [0, 1]
    assert opened(peer, again) == opened(peer, first)
    numbers = [(r.epoch, r.sequence) for r in peer.replies if r.content_type != 22 or r.epoch]
    assert len(set(numbers)) == len(numbers)


def test_the_last_flight_is_repeated_at_most_once_a_second(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    counts = []
    for now in (0.1, 0.2, 1.0, 1.1, 1.2, 5.0):
        peer.now = now
        counts.append(len(peer.finish()))

    assert counts == [2, 0, 0, 2, 0, 2]


def test_the_same_finished_again_is_a_replay(site: Site) -> None:
    peer = site.peer()
    site.claim(peer)
    finished = peer.sealed_finished()
    peer.put(finished)
    event = site.server.events.pop()
    site.server.accept(event.handshake, DEVICE, 0.0)  # type: ignore[union-attr]
    peer.take()

    assert peer.put(finished) == []
    assert site.dropped(Drop.REPLAYED) == 1


def test_the_last_flight_is_kept_until_the_first_application_data(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)
    before = association.final_flight

    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"I have your Finished"))

    assert before is not None
    assert association.final_flight is None
    assert site.server.traffic.associations.final_flights_due_at is None
    assert peer.finish() == []


def test_the_last_flight_is_kept_for_240_s(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    site.server.handle_timer(FINAL_FLIGHT_LIFETIME - 0.1)
    assert association.final_flight is not None
    assert site.server.next_timer() == FINAL_FLIGHT_LIFETIME
    site.server.handle_timer(FINAL_FLIGHT_LIFETIME)

    assert site.server.traffic.associations.final_flights_due_at is None
    peer.now = FINAL_FLIGHT_LIFETIME
    assert peer.finish() == []


# --- renegotiation


def test_renegotiation_is_declined_by_a_warning_once(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    hello = m.encode_message(T.CLIENT_HELLO, 0, peer.hello().encode())

    first = peer.put(peer.sealed(ContentType.HANDSHAKE, hello))
    second = peer.put(peer.sealed(ContentType.HANDSHAKE, hello))

    assert opened(peer, first) == [(ContentType.ALERT, bytes((1, Alert.NO_RENEGOTIATION)))]
    assert second == []
    assert site.server.association_count == 1
    assert site.server.handshake_count == 0


@pytest.mark.parametrize(
    "message", [b"", b"\1", b"\x14\0\0\x0c", m.encode_message(T.CERTIFICATE, 4, bytes(3))]
)
def test_other_sealed_handshake_octets_are_dropped(site: Site, message: bytes) -> None:
    peer = site.peer()
    site.attach(peer)

    assert peer.put(peer.sealed(ContentType.HANDSHAKE, message)) == []

    assert site.server.association_count == 1
    assert site.dropped(Drop.MALFORMED) == (len(message) < 12)


# --- sending


def test_no_sequence_number_is_used_twice_under_one_key(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)
    for number in range(20):
        peer.now = float(number)
        site.server.traffic.send(association, b"same", peer.now)
        if number % 3 == 0:
            peer.finish()
        if number == 10:
            peer.put(
                peer.sealed(
                    ContentType.HANDSHAKE,
                    m.encode_message(T.CLIENT_HELLO, 0, peer.hello().encode()),
                )
            )
    site.server.traffic.close(association, "surplus")
    peer.take()

    sealed = [record for record in peer.replies if record.epoch == 1]
    assert [record.sequence for record in sealed] == list(range(len(sealed)))
    assert len(sealed) == 1 + 20 + 7 + 1 + 1
    # The explicit nonce we send is epoch and sequence number.
    assert all(record.octets[13:21] == record.octets[3:11] for record in sealed)


def test_a_received_explicit_nonce_is_read_and_never_computed(site: Site) -> None:
    peer = site.peer()
    site.attach(peer)
    assert peer.keys is not None
    protection = peer.keys.protection
    nonce, plaintext = b"8 random", b"OpenSSL's GCM begins anywhere"
    sequence = (1 << 48 | 9).to_bytes(8, "big")
    aead = protection.suite.aead(protection.key_block[:16])
    header = b"\x17\xfe\xfd"
    associated = sequence + header + len(plaintext).to_bytes(2, "big")
    sealed = aead.encrypt(protection._write_iv + nonce, plaintext, associated)
    length = (len(nonce) + len(sealed)).to_bytes(2, "big")

    peer.put(header + sequence + length + nonce + sealed)

    assert [plaintext for _, plaintext, _ in site.delivered] == [plaintext]


def test_an_association_closes_before_a_send_number_reaches_2_to_the_48(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)
    association.sequence = MAX_SEQUENCE - 2

    site.server.traffic.send(association, b"one", 0.0)
    assert association.is_open
    site.server.traffic.send(association, b"two", 0.0)

    sent = peer.take()
    assert [record.sequence for record in sent] == [
        MAX_SEQUENCE - 2,
        MAX_SEQUENCE - 1,
        MAX_SEQUENCE,
    ]
    assert opened(peer, sent)[-1] == (ContentType.ALERT, b"\1\0")
    assert site.closed == [(association, "exhausted")]


@pytest.mark.parametrize("kind", ["final flight", "no_renegotiation"])
def test_answers_of_ours_exhaust_an_association_too(site: Site, kind: str) -> None:
    peer = site.peer()
    association = site.attach(peer)
    association.sequence = MAX_SEQUENCE - 1

    if kind == "final flight":
        peer.finish()
    else:
        hello = m.encode_message(T.CLIENT_HELLO, 0, peer.hello().encode())
        peer.put(peer.sealed(ContentType.HANDSHAKE, hello))

    assert [r.sequence for r in peer.replies if r.epoch][-2:] == [MAX_SEQUENCE - 1, MAX_SEQUENCE]
    assert site.closed == [(association, "exhausted")]


def test_a_plaintext_that_does_not_fit_is_not_sent(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)

    site.server.traffic.send(association, bytes(association.max_plaintext + 1), 0.0)
    assert (peer.take(), site.dropped(Drop.TOO_LONG)) == ([], 1)
    site.server.traffic.send(association, bytes(association.max_plaintext), 0.0)

    (record,) = peer.take()
    assert len(record.octets) == site.server.settings.handshake.max_datagram


def test_a_silent_association_lets_go_of_its_aead_objects_and_makes_new_ones(site: Site) -> None:
    peer = site.peer()
    association = site.attach(peer)
    assert association.protection.opener is None
    peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"one"))
    warm = association.protection.opener is not None
    site.server.handle_timer(WARM_TIME)
    after_a_while = association.protection.opener is not None

    site.server.traffic.send(association, b"answer", WARM_TIME)

    assert (warm, after_a_while, association.protection.opener is not None) == (True, False, True)
    assert opened(peer, peer.take())[-1] == (ContentType.APPLICATION_DATA, b"answer")


# --- time


def test_an_idle_association_is_closed_and_told(site: Site) -> None:
    site = Site(ServerSettings(idle_timeout=100.0))
    early, late = site.peer(port=1), site.peer(port=2)
    first = site.attach(early)
    late.now = 50.0
    second = site.attach(late)
    site.server.handle_timer(99.9)
    assert site.closed == []

    site.server.handle_timer(100.0)

    assert site.closed == [(first, "idle")]
    assert opened(early, early.take()) == [(ContentType.ALERT, b"\1\0")]
    assert site.server.next_timer() == 150.0
    late.now = 149.0
    late.put(late.sealed(ContentType.APPLICATION_DATA, b"awake"))
    site.server.handle_timer(150.0)
    assert list(site.server.associations) == [second]


def test_what_we_send_does_not_keep_an_association_alive() -> None:
    site = Site(ServerSettings(idle_timeout=100.0))
    association = site.attach(site.peer())
    site.server.traffic.send(association, b"anybody there?", 99.0)

    site.server.handle_timer(100.0)

    assert site.closed == [(association, "idle")]


def test_forged_records_do_not_keep_an_association_alive() -> None:
    site = Site(ServerSettings(idle_timeout=100.0))
    peer = site.peer()
    association = site.attach(peer)
    record = bytearray(peer.sealed(ContentType.APPLICATION_DATA, b"?"))
    record[-1] ^= 1
    peer.now = 99.0
    peer.put(bytes(record))

    assert association.last_seen_at == 0.0


def test_a_server_with_nothing_to_do_wants_no_timer(site: Site) -> None:
    site.server.handle_timer(1e6)

    assert site.server.next_timer() is None


def test_the_timer_after_a_handshake_that_is_over_is_harmless(site: Site) -> None:
    peer = site.peer()
    peer.greet()
    due = site.server.next_timer()
    assert due is not None
    site.claim(site.peer(port=2))
    peer.now = due
    site.server.handle_timer(due)
    assert len(peer.take()) == 2

    site.server.handle_timer(1000.0)

    assert site.server.next_timer() is None
    assert site.failures == [Reason.TIMEOUT, Reason.TIMEOUT]


def test_many_pending_handshakes_are_walked_over_at_most_ten_times_a_second() -> None:
    site = Site(ServerSettings(handshakes_per_address=1000))
    for number in range(200):
        peer = site.peer(port=number)
        peer.now = number / 1000
        peer.greet()
    site.server.outgoing.clear()
    walks = []
    while (due := site.server.next_timer()) is not None and due < 20.0:
        site.server.handle_timer(due)
        walks.append(due)

    # All of them were due within 0.2 s, between 9 and 9.2.
    assert len(site.server.outgoing) == 200
    assert walks == pytest.approx([9.0, 9.1, 9.2])


# --- memory

DTLS_PART = 2048


def test_an_idle_association_s_dtls_part_is_less_than_2_kib() -> None:
    site = Site()
    count = 300
    identities = [
        Identity(DEFAULT_TENANT, DeviceId(f"sensor-{n}"), Method.PSK, f"psk-{n}")
        for n in range(count + 1)
    ]

    def attach(number: int) -> None:
        path: Path = (0, (f"192.0.2.{number & 255}", 1000 + number))
        client = psk_client()
        client.connect(0.0)
        settle(site.server, client, path, identities[number])
        client.send(b"once")
        settle(site.server, client, path, identities[number])
        site.server.handle_timer(20.0)

    attach(count)
    tracemalloc.start()
    try:
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            attach(number)
        site.delivered.clear()
        gc.collect()
        held = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    print(f"idle association: {held:.0f} octets")

    assert site.server.association_count == count + 1
    assert held < DTLS_PART


def settle(server: Server, client: Client, path: Path, identity: Identity) -> None:
    """Carry datagrams until there are none."""
    while client.outgoing or server.outgoing or server.events:
        for datagram in client.outgoing:
            server.receive_datagram(datagram, path, 0.0)
        client.outgoing.clear()
        while server.events:
            event = server.events.popleft()
            if isinstance(event, KeysRequested):
                server.offer_keys(event.handshake, (Candidate(KEY, None),), 0.0)
            else:
                server.accept(event.handshake, identity, 0.0)  # type: ignore[union-attr]
        for datagram, _ in server.outgoing:
            client.receive_datagram(datagram, 0.0)
        server.outgoing.clear()


def test_a_thousand_associations_opened_and_closed_leave_nothing_behind(site: Site) -> None:
    kinds = (Association, Protection)
    gc.collect()
    before = sum(isinstance(found, kinds) for found in gc.get_objects())
    for number in range(1000):
        peer = site.peer(port=number)
        association = site.attach(peer)
        peer.put(peer.sealed(ContentType.APPLICATION_DATA, b"hi"))
        site.server.traffic.close(association, "surplus")
        site.delivered.clear()
        site.server.events.clear()
        site.server.outgoing.clear()
    del association, peer
    site.server.handle_timer(1000.0)
    gc.collect()

    assert sum(isinstance(found, kinds) for found in gc.get_objects()) == before
    assert site.server.next_timer() is None


# --- whatever octets arrive


def test_a_link_with_two_devices_keeps_them_apart() -> None:
    link = Link()
    first, second = link.connect(psk_client()), link.connect(psk_client())

    def say(device: Joined, plaintext: bytes) -> None:
        device.client.send(plaintext)
        link.run(0.1)

    say(first, b"first")
    say(second, b"second")
    for association, plaintext in link.delivered:
        link.server.traffic.send(association, b"to " + plaintext, link.now)
    link.run(0.1)

    assert (first.plaintexts, second.plaintexts) == ([b"to first"], [b"to second"])
    assert all(len(list(split(d))) for d in link.datagrams(Direction.TO_CLIENT))


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: d + d[:20]])
def test_a_datagram_that_ends_in_octets_of_no_record_loses_only_those(
    site: Site, change: Callable[[bytes], bytes]
) -> None:
    peer = site.peer()
    site.attach(peer)
    datagram = peer.sealed(ContentType.APPLICATION_DATA, b"data")

    peer.put(change(datagram))

    assert len(site.delivered) == (len(change(datagram)) > len(datagram))
    assert site.dropped(Drop.MALFORMED) == 1
