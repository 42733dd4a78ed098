"""RFC 9146 at the server: negotiation, records with a Connection ID, and moves to another path."""

from __future__ import annotations

import pytest

from coapgate.dtls import messages as m
from coapgate.dtls.association import Association
from coapgate.dtls.counters import Drop
from coapgate.dtls.events import (
    AssociationClosed,
    Candidate,
    HandshakeFailed,
    KeysRequested,
)
from coapgate.dtls.extensions import ExtensionType
from coapgate.dtls.messages import HandshakeType as T
from coapgate.dtls.paths import AMPLIFICATION
from coapgate.dtls.records import CID_LENGTH, ContentType, split
from coapgate.dtls.server import Server, ServerSettings
from coapgate.errors import Alert
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path
from tests.dtls.factory import psk_client, x509_client, x509_settings
from tests.dtls.raw import RawPeer
from tests.fakes.link import KEY, Link

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "psk-1")
HOME: Path = (0, ("192.0.2.1", 49152))
AWAY: Path = (0, ("198.51.100.7", 5000))
THIRD: Path = (0, ("203.0.113.9", 6000))


class Site:
    """A server, what it delivered, and one peer that can say anything."""

    def __init__(self, connection_id: bytes | None = b"\xbe\xef") -> None:
        self.delivered: list[bytes] = []
        self.server = Server(
            ServerSettings(worker=3, node=9),
            lambda _, plaintext, __: self.delivered.append(plaintext),
        )
        self.peer = RawPeer(self.server, HOME, connection_id=connection_id)

    def claim(self) -> None:
        self.peer.greet()
        self.peer.say(T.CLIENT_KEY_EXCHANGE, self.peer.key_exchange())
        self.peer.derive(KEY)

    def offer_keys(self) -> None:
        event = self.server.events.pop()
        assert isinstance(event, KeysRequested)
        self.server.offer_keys(event.handshake, (Candidate(KEY, None),), self.peer.now)

    def attach(self) -> Association:
        self.claim()
        self.offer_keys()
        self.peer.finish()
        return self.accept()

    def accept(self) -> Association:
        event = self.server.events.pop()
        assert not isinstance(event, KeysRequested | HandshakeFailed | AssociationClosed)
        association = self.server.accept(event.handshake, DEVICE, self.peer.now)
        assert association is not None
        self.peer.take()
        return association

    def sealed(self, plaintext: bytes, content_type: int = ContentType.APPLICATION_DATA) -> bytes:
        return self.peer.sealed(content_type, plaintext)

    def receive(self, datagram: bytes, path: Path = HOME) -> None:
        self.server.receive_datagram(datagram, path, self.peer.now)

    def sent_to(self, path: Path) -> list[bytes]:
        sent = [datagram for datagram, where in self.server.outgoing if where == path]
        self.server.outgoing.clear()
        return sent

    def send(self, association: Association, plaintext: bytes) -> None:
        self.server.traffic.send(association, plaintext, self.peer.now)

    def dropped(self, why: Drop) -> int:
        return self.server.counters.dropped[why]


@pytest.fixture
def site() -> Site:
    return Site()


# --- negotiation (section 3)


@pytest.mark.parametrize("length", [0, 1, 2, 8, 32, 255])
@pytest.mark.parametrize("make_client", [psk_client, x509_client])
def test_a_connection_id_of_any_length_is_negotiated_whenever_it_is_offered(
    make_client: type, length: int
) -> None:
    link = Link(x509_settings())
    joined = link.connect(make_client(connection_id=bytes(range(length))))

    joined.client.send(b"up")
    link.run(1.0)
    link.server.traffic.send(link.association, b"down", link.now)
    link.run(1.0)

    protection = link.association.protection
    assert (len(protection.received_cid), protection.sent_cid) == (CID_LENGTH, bytes(range(length)))
    assert link.delivered == [(link.association, b"up")]
    assert joined.plaintexts == [b"down"]


def test_ours_says_worker_and_node_and_is_random_besides(site: Site) -> None:
    association = site.attach()

    first = association.protection.received_cid
    others = {Site().attach().protection.received_cid for _ in range(20)}

    assert (len(first), first[:2]) == (CID_LENGTH, b"\x03\x09")
    assert len(others | {first}) == 21


def test_who_does_not_offer_one_gets_none() -> None:
    site = Site(connection_id=None)

    association = site.attach()

    hello = m.ServerHello.parse(site.peer.flight[T.SERVER_HELLO])
    assert ExtensionType.CONNECTION_ID not in hello.extensions
    assert association.protection.received_cid == b""


def test_an_offer_of_no_length_or_with_more_behind_it_is_malformed() -> None:
    for body in (b"", b"\x02\xbe", b"\x01\xbe\xef"):
        site = Site()
        offered = dict(site.peer.hello().extensions) | {ExtensionType.CONNECTION_ID: body}
        site.peer.extensions = offered

        site.peer.ask()
        site.peer.greet()

        assert T.SERVER_HELLO not in site.peer.flight


def test_one_that_an_association_or_a_handshake_has_is_not_drawn_again() -> None:
    octets = iter([1, 1, 1, 2])
    server = Server(
        ServerSettings(),
        lambda *_: None,
        lambda n: bytes((next(octets),)) * n if n == CID_LENGTH - 2 else b"r" * n,
    )
    one = RawPeer(server, HOME, connection_id=b"")
    other = RawPeer(server, AWAY, connection_id=b"")

    one.greet()
    other.greet()

    assert one.server_connection_id == b"\0\0" + b"\1" * 6
    assert other.server_connection_id == b"\0\0" + b"\2" * 6


# --- records (sections 4 and 5)


def test_finished_comes_in_a_record_with_the_connection_id(site: Site) -> None:
    site.claim()
    site.offer_keys()
    record = next(split(site.peer.sealed_finished(), CID_LENGTH))

    site.receive(record.octets)

    assert (record.content_type, record.connection_id) == (
        ContentType.TLS12_CID,
        site.peer.server_connection_id,
    )
    assert site.accept().is_open


def test_records_with_a_connection_id_that_come_before_there_are_keys_are_held_a_bounded_few(
    site: Site,
) -> None:
    site.peer.greet()
    key_exchange = site.peer.message(T.CLIENT_KEY_EXCHANGE, site.peer.key_exchange())
    site.peer.derive(KEY)
    forged = bytearray(site.peer.sealed_finished())
    forged[-1] ^= 1

    site.receive(bytes(forged))
    site.receive(site.peer.sealed_finished())
    site.receive(key_exchange)
    site.offer_keys()

    assert site.accept().is_open


def test_a_third_early_record_is_not_held(site: Site) -> None:
    site.peer.greet()
    key_exchange = site.peer.message(T.CLIENT_KEY_EXCHANGE, site.peer.key_exchange())
    site.peer.derive(KEY)
    forged = bytearray(site.peer.sealed_finished())
    forged[-1] ^= 1

    for record in (bytes(forged), bytes(forged), site.peer.sealed_finished()):
        site.receive(record)
    site.receive(key_exchange)
    site.offer_keys()

    assert not site.server.events
    site.receive(site.peer.sealed_finished())
    assert site.accept().is_open


def test_a_finished_without_the_connection_id_is_refused(site: Site) -> None:
    site.claim()
    site.offer_keys()
    protection = site.peer.keys.protection  # type: ignore[union-attr]
    message = m.encode_message(T.FINISHED, site.peer.message_seq, site.peer.finished())
    protection.sent_cid = b""

    site.receive(site.peer.sealed(ContentType.HANDSHAKE, message))

    assert site.dropped(Drop.WITHOUT_CID) == 1
    assert not site.server.events


def test_records_without_connection_id_are_refused_where_one_was_agreed_on(site: Site) -> None:
    association = site.attach()
    protection = site.peer.keys.protection  # type: ignore[union-attr]
    protection.sent_cid = b""

    for content_type in (ContentType.APPLICATION_DATA, ContentType.ALERT, ContentType.HANDSHAKE):
        site.receive(site.sealed(bytes((1, Alert.CLOSE_NOTIFY)), content_type))

    assert site.delivered == []
    assert association.is_open
    assert site.dropped(Drop.NO_ASSOCIATION) == 3


def test_records_with_a_connection_id_are_refused_where_none_was_agreed_on() -> None:
    site = Site(connection_id=None)
    site.attach()
    protection = site.peer.keys.protection  # type: ignore[union-attr]
    protection.sent_cid = bytes(CID_LENGTH)

    site.receive(site.sealed(b"up"))

    assert site.delivered == []
    assert site.dropped(Drop.UNKNOWN_CID) == 1


@pytest.mark.parametrize("length", [0, 1, 7, 9, 20])
def test_a_connection_id_of_another_length_reaches_nobody(site: Site, length: int) -> None:
    association = site.attach()
    protection = site.peer.keys.protection  # type: ignore[union-attr]
    cid = association.protection.received_cid
    protection.sent_cid = (cid * 3)[:length] or b"\0"

    site.receive(site.sealed(b"up"))

    assert site.delivered == []
    assert site.dropped(Drop.UNKNOWN_CID) + site.dropped(Drop.MALFORMED) >= 1


def test_the_inner_content_type_says_what_a_record_is(site: Site) -> None:
    association = site.attach()

    site.receive(site.sealed(b"up"))
    site.receive(site.sealed(bytes((1, Alert.CLOSE_NOTIFY)), ContentType.ALERT))

    assert site.delivered == [b"up"]
    assert not association.is_open


def test_an_inner_content_type_that_has_no_business_here_is_dropped(site: Site) -> None:
    site.attach()

    for content_type in (ContentType.CHANGE_CIPHER_SPEC, ContentType.TLS12_CID, 99):
        site.receive(site.sealed(b"\1", content_type))

    assert site.delivered == []
    assert site.dropped(Drop.UNEXPECTED_RECORD) == 3


@pytest.mark.parametrize("padding", [1, 15, 300])
def test_padding_behind_the_inner_content_type_is_taken_off(site: Site, padding: int) -> None:
    site.attach()

    # What is sealed last is taken for the content type: here the padding's last octet.
    site.receive(site.sealed(b"up\x17" + bytes(padding - 1), 0))

    assert site.delivered == [b"up"]


def test_a_finished_may_be_padded(site: Site) -> None:
    site.claim()
    site.offer_keys()
    message = m.encode_message(T.FINISHED, site.peer.message_seq, site.peer.finished())

    site.receive(site.sealed(message + b"\x16" + bytes(40), 0))

    assert site.accept().is_open


def test_a_plaintext_of_zeros_only_is_refused(site: Site) -> None:
    site.attach()

    site.receive(site.sealed(bytes(20), 0))

    assert site.delivered == []
    assert site.dropped(Drop.FORGED) == 1


def test_a_record_with_a_connection_id_in_epoch_0_is_dropped(site: Site) -> None:
    site.attach()
    record = bytearray(site.sealed(b"up"))
    record[4] = 0

    site.receive(bytes(record))

    assert site.delivered == []
    assert site.dropped(Drop.WRONG_EPOCH) == 1


def test_several_records_share_a_datagram(site: Site) -> None:
    site.attach()

    site.receive(site.sealed(b"one") + site.sealed(b"two"))

    assert site.delivered == [b"one", b"two"]


def test_what_we_send_carries_the_clients_connection_id_if_it_is_not_empty(site: Site) -> None:
    association = site.attach()
    empty = Site(connection_id=b"")
    other = empty.attach()

    site.send(association, b"down")
    empty.send(other, b"down")

    (with_cid,), (without,) = site.sent_to(HOME), empty.sent_to(HOME)
    assert (with_cid[0], with_cid[11:13]) == (ContentType.TLS12_CID, b"\xbe\xef")
    assert without[0] == ContentType.APPLICATION_DATA


def test_a_repeated_finished_is_answered_under_new_numbers(site: Site) -> None:
    site.claim()
    site.offer_keys()
    site.peer.finish()
    site.accept()

    site.receive(site.peer.sealed_finished())

    (datagram,) = site.sent_to(HOME)
    change, finished = split(datagram, 2)
    assert change.content_type == ContentType.CHANGE_CIPHER_SPEC
    assert (finished.content_type, finished.sequence) == (ContentType.TLS12_CID, 1)


def test_one_path_may_have_any_number_of_associations_with_connection_ids() -> None:
    site = Site()
    peers = [site.peer, *(RawPeer(site.server, HOME, connection_id=b"") for _ in range(3))]
    peers.append(RawPeer(site.server, HOME))

    for peer in peers:
        site.peer = peer
        site.attach()
    for number, peer in enumerate(peers):
        site.receive(peer.sealed(ContentType.APPLICATION_DATA, b"%d" % number))

    assert site.delivered == [b"0", b"1", b"2", b"3", b"4"]
    assert site.server.association_count == 5


# --- moves (section 6)


def test_the_newest_record_moves_the_association_to_its_path(site: Site) -> None:
    association = site.attach()

    site.receive(site.sealed(b"up"), AWAY)
    site.send(association, b"down")

    assert site.delivered == [b"up"]
    assert association.path == AWAY
    assert len(site.sent_to(AWAY)) == 1
    assert site.server.counters.address_moves == 1


def test_an_older_record_moves_nothing_and_is_taken_all_the_same(site: Site) -> None:
    association = site.attach()
    older, newer = site.sealed(b"older"), site.sealed(b"newer")

    site.receive(newer)
    site.receive(older, AWAY)

    assert site.delivered == [b"newer", b"older"]
    assert (association.path, association.unproven) == (HOME, None)


def test_a_replayed_record_moves_nothing(site: Site) -> None:
    association = site.attach()
    record = site.sealed(b"up")

    site.receive(record)
    site.receive(record, THIRD)

    assert site.delivered == [b"up"]
    assert association.path == HOME
    assert site.dropped(Drop.REPLAYED) == 1


def test_a_forged_record_moves_nothing(site: Site) -> None:
    association = site.attach()
    record = bytearray(site.sealed(b"up"))
    record[-1] ^= 1

    site.receive(bytes(record), THIRD)

    assert association.path == HOME
    assert site.dropped(Drop.FORGED) == 1


def test_an_association_without_connection_id_does_not_move() -> None:
    site = Site(connection_id=None)
    association = site.attach()

    site.receive(site.sealed(b"up"), AWAY)

    assert site.delivered == []
    assert association.path == HOME


def test_an_unproven_path_gets_three_times_what_came_from_it_and_no_more(site: Site) -> None:
    association = site.attach()
    record = site.sealed(b"up")

    site.receive(record, AWAY)
    for _ in range(50):
        site.send(association, b"down")

    assert 0 < sum(map(len, site.sent_to(AWAY))) <= AMPLIFICATION * len(record)
    assert site.dropped(Drop.UNPROVEN_PATH) > 0


def test_what_more_comes_from_it_lets_more_be_sent_to_it(site: Site) -> None:
    association = site.attach()
    received = sent = 0

    for _ in range(10):
        record = site.sealed(b"up")
        received += len(record)
        site.receive(record, AWAY)
        for _ in range(5):
            site.send(association, b"down")
        sent += sum(map(len, site.sent_to(AWAY)))
        assert sent <= AMPLIFICATION * received

    assert sent > received


def test_what_comes_from_elsewhere_gives_an_unproven_path_nothing(site: Site) -> None:
    association = site.attach()
    late = site.sealed(b"late")
    site.receive(site.sealed(b"up"), AWAY)
    unproven = association.unproven
    assert unproven is not None
    before = unproven.credit

    site.receive(late, HOME)

    assert (association.path, unproven.credit) == (AWAY, before)


def test_a_path_that_has_proven_itself_gets_all(site: Site) -> None:
    association = site.attach()
    site.receive(site.sealed(b"up"), AWAY)

    site.server.traffic.prove_path(association)
    for _ in range(50):
        site.send(association, b"down")

    assert len(site.sent_to(AWAY)) == 50
    assert site.dropped(Drop.UNPROVEN_PATH) == 0


def test_goodbyes_and_last_flights_count_too(site: Site) -> None:
    association = site.attach()
    record = site.sealed(b"")
    site.receive(record, AWAY)
    unproven = association.unproven
    assert unproven is not None
    unproven.credit = 10

    site.receive(site.peer.sealed_finished(), AWAY)
    unproven.credit = 10
    site.server.traffic.close(association, "surplus")

    assert site.sent_to(AWAY) == []
    assert not association.is_open


def test_every_move_is_to_a_path_that_has_to_prove_itself_anew(site: Site) -> None:
    association = site.attach()

    site.receive(site.sealed(b"up"), AWAY)
    first = association.unproven
    site.receive(site.sealed(b"up"), HOME)
    second = association.unproven

    assert first is not None
    assert second is not None
    assert first is not second
    assert first.echo != second.echo


def test_a_handshake_whose_finished_comes_from_elsewhere_goes_on_from_there(site: Site) -> None:
    site.claim()
    site.offer_keys()
    site.receive(site.peer.sealed_finished(), AWAY)
    association = site.accept()

    site.receive(site.peer.sealed_finished(), AWAY)

    assert association.path == AWAY
    assert len(site.sent_to(AWAY)) == 1


def test_a_connection_id_that_leaves_no_room_for_messages_is_not_agreed_on() -> None:
    link = Link(x509_settings(max_datagram=208))
    fitting = link.connect(psk_client(connection_id=bytes(100), max_datagram=208))
    too_long = link.connect(psk_client(connection_id=bytes(255), max_datagram=208))

    assert fitting.client.is_established
    assert too_long.client.is_established
    cids = [association.protection.received_cid for association in link.server.associations]
    assert [len(cid) for cid in cids] == [CID_LENGTH, 0]
    assert all(association.max_plaintext >= 64 for association in link.server.associations)
