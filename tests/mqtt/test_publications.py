"""Publications: held, in flight, suspected, and ended once."""

from __future__ import annotations

import pytest
from mqtt5 import PublishPacket, read

from coapgate.model import Outcome
from coapgate.mqtt.publications import MAX_PACKET_IDS, Blame, Publications

STATUS = ("coapgate/$gateway/0/status", b'{"online": true}')


class Books:
    """Publications and the broker's view of them."""

    def __init__(
        self,
        *,
        hold_time: float = 10.0,
        hold_messages: int = 4,
        hold_size: int = 10_000,
        max_in_flight: int = 3,
    ) -> None:
        self.publications = Publications(
            hold_time=hold_time,
            hold_messages=hold_messages,
            hold_size=hold_size,
            max_in_flight=max_in_flight,
        )

    def publish(
        self,
        ticket: int | None,
        *,
        topic: str | None = None,
        payload: bytes = b"",
        qos: int = 1,
        retain: bool = False,
        now: float = 0.0,
    ) -> None:
        self.publications.publish(
            topic if topic is not None else f"t/{ticket}",
            payload,
            qos,
            retain,
            "text/plain",
            [("device", "sensor-1")],
            ticket,
            now,
        )

    def connect(
        self,
        *,
        receive_maximum: int = 65535,
        maximum_packet_size: int | None = None,
        retain_available: bool = True,
        announcement: tuple[str, bytes] | None = None,
        now: float = 0.0,
    ) -> None:
        self.publications.connected(
            receive_maximum=receive_maximum,
            maximum_packet_size=maximum_packet_size,
            retain_available=retain_available,
            announcement=announcement,
            now=now,
        )

    def sent(self) -> list[PublishPacket]:
        """What was written since the last call."""
        packets = []
        for octets in self.publications.outgoing:
            packet, length = read(memoryview(octets))
            assert isinstance(packet, PublishPacket)
            assert length == len(octets)
            packets.append(packet)
        self.publications.outgoing.clear()
        return packets

    def topics(self) -> list[str]:
        return [packet.topic for packet in self.sent()]

    def acknowledge(self, *packets: PublishPacket, code: int = 0, now: float = 0.0) -> None:
        for packet in packets:
            assert packet.packet_id is not None
            self.publications.acknowledge(packet.packet_id, code, now)

    def ended(self) -> list[tuple[int, int]]:
        """What ended since the last call."""
        ended = self.publications.ended.copy()
        self.publications.ended.clear()
        return ended


def test_a_publication_is_sent_at_once_and_ends_with_its_puback() -> None:
    books = Books()
    books.connect()
    books.publish(7, payload=b"21.5")

    (packet,) = books.sent()
    assert (packet.topic, packet.payload, packet.qos.value) == ("t/7", b"21.5", 1)
    assert packet.content_type == "text/plain"
    assert packet.user_properties == [("device", "sensor-1")]
    assert (packet.retain, packet.duplicate) == (False, False)
    assert books.ended() == []
    assert books.publications.in_flight == 1

    books.acknowledge(packet)
    assert books.ended() == [(7, 0)]
    assert (books.publications.in_flight, books.publications.acknowledged) == (0, 1)


def test_what_nobody_subscribed_to_is_a_success_that_is_counted() -> None:
    books = Books()
    books.connect()
    books.publish(1)
    books.acknowledge(*books.sent(), code=0x10)

    assert books.ended() == [(1, 0x10)]
    assert (books.publications.acknowledged, books.publications.unheard) == (1, 1)


@pytest.mark.expects_warnings("broker refuses publications")
def test_a_refusal_is_reported_as_it_is_and_logged_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    books = Books()
    books.connect()
    for ticket, now in ((1, 0.0), (2, 59.0), (3, 60.0), (None, 61.0)):
        books.publish(ticket, topic=f"t/{ticket}\u202e", now=now)
        books.acknowledge(*books.sent(), code=0x87, now=now)

    assert books.ended() == [(1, 0x87), (2, 0x87), (3, 0x87)]
    assert books.publications.refused == {0x87: 4}
    assert books.publications.acknowledged == 0
    facts = [(vars(record)["topic"], vars(record)["count"]) for record in caplog.records]
    assert facts == [("t/1\\u202e", 1), ("t/3\\u202e", 3)], "printable, whatever a device says"


def test_a_puback_that_answers_nothing_is_ignored() -> None:
    books = Books()
    books.connect()
    books.publish(1)
    (packet,) = books.sent()
    books.publications.acknowledge(4711, 0, 0.0)
    books.acknowledge(packet, packet)

    assert books.ended() == [(1, 0)]
    assert books.publications.acknowledged == 1


def test_qos_0_ends_when_it_is_sent() -> None:
    books = Books()
    books.connect()
    books.publish(1, qos=0)
    books.publish(None, qos=0)

    assert [(packet.qos.value, packet.packet_id) for packet in books.sent()] == [(0, None)] * 2
    assert books.ended() == [(1, 0)]
    assert books.publications.in_flight == 0


def test_before_there_is_a_broker_publications_are_held_in_order() -> None:
    books = Books()
    for ticket in (1, 2, 3):
        books.publish(ticket, qos=int(ticket != 2))
    assert books.sent() == []
    assert books.ended() == []
    assert books.publications.held == 3

    books.connect()
    assert books.topics() == ["t/1", "t/2", "t/3"]
    assert books.ended() == [(2, 0)]
    assert books.publications.held == 0


def test_receive_maximum_is_honoured() -> None:
    books = Books(max_in_flight=100)
    books.connect(receive_maximum=2)
    for ticket in range(5):
        books.publish(ticket)
    first = books.sent()
    assert [packet.topic for packet in first] == ["t/0", "t/1"]

    books.acknowledge(first[1])
    assert books.topics() == ["t/2"]
    books.acknowledge(first[0])
    assert books.topics() == ["t/3"]
    assert (books.publications.in_flight, books.publications.held) == (2, 1)


def test_our_own_limit_holds_where_the_broker_has_none() -> None:
    books = Books(max_in_flight=3)
    books.connect()
    for ticket in range(4):
        books.publish(ticket)

    assert len(books.sent()) == 3


def test_beyond_hold_messages_a_publication_ends_as_unavailable_at_once() -> None:
    books = Books(hold_messages=2)
    for ticket in range(4):
        books.publish(ticket)

    assert books.ended() == [(2, Outcome.UNAVAILABLE), (3, Outcome.UNAVAILABLE)]
    assert (books.publications.held, books.publications.unavailable) == (2, 2)


def test_beyond_hold_size_a_publication_ends_as_unavailable_at_once() -> None:
    books = Books(hold_size=1000)
    for ticket in range(3):
        books.publish(ticket, payload=b"x" * 900)

    assert books.ended() == [(2, Outcome.UNAVAILABLE)]
    books.connect()
    books.acknowledge(*books.sent())
    books.publications.lost(Blame.NONE, 1.0)
    books.ended()
    books.publish(4, payload=b"x" * 900, now=1.0)
    assert books.ended() == [], "what was sent no longer counts"


def test_there_are_never_more_publications_than_packet_identifiers() -> None:
    books = Books(hold_messages=100_000, hold_size=1 << 30)
    # The last three belong to subscriptions and to the announcement.
    for ticket in range(MAX_PACKET_IDS - 2):
        books.publish(ticket, topic="t")

    assert books.ended() == [(MAX_PACKET_IDS - 3, Outcome.UNAVAILABLE)]
    assert books.publications.held == MAX_PACKET_IDS - 3


def test_a_publication_waits_for_hold_time_and_is_never_sent_after_it() -> None:
    books = Books(hold_time=10.0)
    books.publish(1, now=100.0)
    books.publish(2, now=103.0)

    assert books.publications.next_timer == 110.0
    books.publications.expire(109.9)
    assert books.ended() == []
    books.publications.expire(110.0)
    assert books.ended() == [(1, Outcome.UNAVAILABLE)]
    assert books.publications.next_timer == 113.0

    books.connect(now=112.0)
    assert books.topics() == ["t/2"]
    assert books.publications.next_timer is None


def test_behind_a_slow_broker_a_publication_waits_for_hold_time_too() -> None:
    books = Books(hold_time=10.0, max_in_flight=1)
    books.connect(now=100.0)
    books.publish(1, now=100.0)
    books.publish(2, now=100.0)
    (first,) = books.sent()
    books.publications.expire(110.0)

    assert books.ended() == [(2, Outcome.UNAVAILABLE)], "it was not sent; the first one was"
    books.acknowledge(first, now=120.0)
    assert books.ended() == [(1, 0)]
    assert books.sent() == []


def test_what_was_in_flight_is_sent_again_in_order_as_new() -> None:
    books = Books(max_in_flight=3)
    books.connect()
    for ticket in range(5):
        books.publish(ticket)
    first = books.sent()
    books.acknowledge(first[1])
    assert books.topics() == ["t/3"]
    books.ended()

    books.publications.lost(Blame.NONE, 1.0)
    assert (books.publications.in_flight, books.publications.held) == (0, 4)
    books.connect(now=1.0)
    again = books.sent()
    assert [packet.topic for packet in again] == ["t/0", "t/2", "t/3"]
    assert not any(packet.duplicate for packet in again)
    assert books.publications.repeated == 3
    books.acknowledge(*again)
    books.acknowledge(*books.sent())
    assert books.ended() == [(0, 0), (2, 0), (3, 0), (4, 0)]


def test_a_publication_whose_time_is_over_ends_with_its_connection() -> None:
    books = Books(hold_time=10.0)
    books.connect()
    books.publish(1, now=0.0)
    books.publish(2, now=5.0)
    books.sent()
    books.publications.lost(Blame.CUT, 12.0)

    assert books.ended() == [(1, Outcome.UNAVAILABLE)]
    books.connect(now=12.0)
    assert books.topics() == ["t/2"]


def test_what_was_not_written_when_the_connection_went_is_not_written_to_the_next() -> None:
    books = Books()
    books.connect()
    books.publish(None, qos=0)
    books.publications.lost(Blame.NONE, 0.0)
    books.connect()

    assert books.sent() == []


def test_nothing_is_sent_while_the_way_to_the_broker_is_full() -> None:
    books = Books()
    books.connect()
    books.publications.set_writable(False, 0.0)
    books.publish(1)
    books.publish(None, topic="zero", qos=0)
    assert books.sent() == []

    books.publications.set_writable(True, 0.0)
    assert books.topics() == ["t/1", "zero"]

    books.publications.set_writable(False, 0.0)
    books.publications.lost(Blame.NONE, 0.0)
    books.connect()
    assert books.topics() == ["t/1"], "the next connection begins with room"


def test_above_maximum_packet_size_a_publication_is_not_sent() -> None:
    books = Books()
    books.publish(1, payload=b"x" * 200)
    books.connect(maximum_packet_size=150)
    books.publish(2, payload=b"x" * 200, qos=0)
    books.publish(3, payload=b"x" * 20)

    assert books.topics() == ["t/3"]
    assert books.ended() == [(1, Outcome.TOO_LARGE), (2, Outcome.TOO_LARGE)]
    assert books.publications.too_large == 2
    assert books.publications.maximum_packet_size == 150


def test_without_retain_available_nothing_is_retained() -> None:
    books = Books()
    books.connect(retain_available=False, announcement=STATUS)
    books.publish(1, retain=True)
    assert [packet.retain for packet in books.sent()] == [False, False]

    books.publications.lost(Blame.NONE, 0.0)
    books.connect(retain_available=True, announcement=STATUS)
    books.publish(2, retain=True)
    assert [packet.retain for packet in books.sent()] == [True, False, True]


def test_a_topic_that_is_no_mqtt_string_ends_as_an_invalid_topic() -> None:
    books = Books(hold_messages=1)
    books.publish(1, topic="\ud800")
    books.publish(2, topic="\ud800", qos=0)
    books.publish(3)

    assert books.ended() == [(1, 0x90), (2, 0x90)]
    books.connect()
    assert books.topics() == ["t/3"]


def test_the_announcement_comes_first_and_belongs_to_its_connection() -> None:
    books = Books()
    books.publish(1)
    books.connect(announcement=STATUS)
    status, other = books.sent()
    assert (status.topic, status.payload) == STATUS
    assert (status.retain, status.content_type) == (True, "application/json")
    assert status.packet_id == MAX_PACKET_IDS
    assert other.topic == "t/1"

    books.publications.lost(Blame.NONE, 0.0)
    assert books.publications.held == 1
    books.connect(announcement=STATUS)
    status, other = books.sent()
    books.acknowledge(status, other)
    assert books.ended() == [(1, 0)]
    assert books.publications.repeated == 1


@pytest.mark.expects_warnings("publication dropped as poison")
def test_poison_is_never_sent_a_third_time_and_innocents_are_acknowledged() -> None:
    books = Books(max_in_flight=10, hold_messages=10)
    books.connect()
    for ticket in range(4):
        books.publish(ticket)
    books.sent()
    books.publications.lost(Blame.PROTOCOL_ERROR, 0.0)
    books.publish(4)

    books.connect()
    for ticket in (0, 1):
        (alone,) = books.sent()
        assert alone.topic == f"t/{ticket}", "suspects are sent one at a time"
        books.acknowledge(alone)
    assert books.topics() == ["t/2"]
    books.publications.lost(Blame.PROTOCOL_ERROR, 0.0)
    assert books.ended() == [(0, 0), (1, 0), (2, Outcome.POISON)]
    assert books.publications.poison == 1

    books.connect()
    (alone,) = books.sent()
    assert alone.topic == "t/3"
    books.acknowledge(alone)
    assert books.topics() == ["t/4"], "with no suspect left the window is open"
    books.publish(5)
    books.publish(6)
    assert books.topics() == ["t/5", "t/6"]


def test_qos_0_waits_while_there_are_suspects() -> None:
    books = Books()
    books.connect()
    books.publish(1)
    books.sent()
    books.publications.lost(Blame.PROTOCOL_ERROR, 0.0)
    books.connect()
    books.publish(None, topic="zero", qos=0)
    (suspect,) = books.sent()
    assert suspect.topic == "t/1"
    books.acknowledge(suspect)

    assert books.topics() == ["zero"]


@pytest.mark.expects_warnings("publication dropped as poison")
def test_a_cut_accuses_half_as_much_as_a_protocol_error() -> None:
    books = Books()
    books.publish(1)
    books.publish(2)
    for _ in range(2):
        books.connect()
        assert books.topics() == ["t/1", "t/2"], "a broker that dies makes no suspects"
        books.publications.lost(Blame.CUT, 0.0)
    for _ in range(2):
        books.connect()
        assert books.topics() == ["t/1"]
        books.publications.lost(Blame.CUT, 0.0)
    assert books.ended() == [(1, Outcome.POISON)]

    books.connect()
    (second,) = books.sent()
    assert second.topic == "t/2"
    books.acknowledge(second)
    assert books.ended() == [(2, 0)]


def test_a_suspect_that_runs_out_of_time_opens_the_window() -> None:
    books = Books(hold_time=10.0, max_in_flight=10)
    books.connect()
    books.publish(1, now=0.0)
    books.sent()
    books.publications.lost(Blame.PROTOCOL_ERROR, 1.0)
    for ticket in (2, 3):
        books.publish(ticket, now=5.0)
    books.publications.expire(10.0)
    books.connect(now=10.0)

    assert books.ended() == [(1, Outcome.UNAVAILABLE)]
    assert books.topics() == ["t/2", "t/3"]


@pytest.mark.expects_warnings("publication dropped as poison")
def test_a_poisonous_announcement_is_given_up_and_takes_nobody_along() -> None:
    books = Books()
    books.publish(1)
    books.connect(announcement=STATUS)
    assert books.topics() == [STATUS[0], "t/1"]
    books.publications.lost(Blame.PROTOCOL_ERROR, 0.0)
    books.connect(announcement=STATUS)
    assert books.topics() == [STATUS[0]]
    books.publications.lost(Blame.PROTOCOL_ERROR, 0.0)

    books.connect(announcement=STATUS)
    (only,) = books.sent()
    assert only.topic == "t/1"
    books.acknowledge(only)
    assert books.ended() == [(1, 0)]


def test_the_one_that_waits_longest_for_its_puback_is_known() -> None:
    assert Books().publications.oldest_sent_at is None
    books = Books()
    books.publish(1, now=1.0)
    books.connect(now=3.0)
    books.publish(2, now=4.0)
    first, _ = books.sent()
    assert books.publications.oldest_sent_at == 3.0
    books.acknowledge(first)
    assert books.publications.oldest_sent_at == 4.0


def test_once_it_stops_accepting_what_is_there_is_finished_and_the_rest_refused() -> None:
    books = Books(max_in_flight=1)
    books.connect(announcement=None)
    books.publish(1)
    books.publish(2)
    books.publications.stop_accepting()
    books.publish(3)
    assert books.ended() == [(3, Outcome.UNAVAILABLE)]

    books.acknowledge(*books.sent())
    assert books.topics() == ["t/2"]
    books.publications.abandon()
    assert books.ended() == [(1, 0), (2, Outcome.UNAVAILABLE)]
    books.publish(4)
    assert books.ended() == [(4, Outcome.UNAVAILABLE)]
    assert (books.publications.in_flight, books.publications.held) == (0, 0)


def test_abandoning_ends_what_is_held_but_not_the_announcement() -> None:
    books = Books()
    books.publish(1)
    books.publish(None)
    books.connect(receive_maximum=1, announcement=STATUS)
    books.publications.abandon()

    assert books.ended() == [(1, Outcome.UNAVAILABLE)]
    assert books.publications.unavailable == 2
