"""What the gateway hears from the bus, without a socket and with a scripted clock."""

from __future__ import annotations

import pytest
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
)

from coapgate.mqtt.client import ACK_TIMEOUT, Hello, State
from coapgate.mqtt.publications import Publications
from coapgate.mqtt.subscriptions import (
    MAX_BATCH,
    MAX_FEED,
    SUBSCRIBE_ID,
    UNSUBSCRIBE_ID,
    Complete,
    Heard,
    Refusal,
)
from tests.mqtt.test_client import Wire

GRANTED = SubAckReasonCode.GRANTED_QOS_AT_MOST_ONCE


class Ear(Wire):
    """A connected client that subscribes."""

    def __init__(self) -> None:
        super().__init__(silence=1000.0)
        self.subscriptions = self.client.subscriptions

    def subscribe(self, *topics: str, is_state: bool = True) -> None:
        for topic in topics:
            self.subscriptions.subscribe(topic, is_state=is_state)
        self.subscriptions.flush(self.now)

    def unsubscribe(self, *topics: str) -> None:
        for topic in topics:
            self.subscriptions.unsubscribe(topic)
        self.subscriptions.flush(self.now)

    def grant(self, count: int = 1, code: SubAckReasonCode = GRANTED) -> None:
        self.receive(SubAckPacket(SUBSCRIBE_ID, [code] * count))

    def heard(self) -> list[Heard | Complete | Refusal]:
        """Everything, in the order in which it is handed on."""
        return list(iter(self.subscriptions.next_heard, None))


def connected() -> Ear:
    ear = Ear()
    ear.connect()
    ear.sent()
    return ear


def topics_of(packet: Packet) -> list[str]:
    assert isinstance(packet, SubscribePacket)
    return [topic_filter.pattern for topic_filter in packet.topic_filters]


def test_a_subscription_is_followed_by_a_ping_and_complete_when_that_is_answered() -> None:
    ear = connected()
    ear.subscribe("t")
    subscribe, ping = ear.sent()
    assert isinstance(subscribe, SubscribePacket)
    assert isinstance(ping, PingReqPacket)
    assert subscribe.topic_filters[0].max_qos is QoS.AT_MOST_ONCE
    assert subscribe.topic_filters[0].retain_as_published

    ear.grant()
    assert ear.heard() == []
    ear.receive(PublishPacket("t", b"21.5", retain=True), PingRespPacket())

    publication, complete = ear.heard()
    assert isinstance(publication, Heard)
    assert (publication.payload, publication.retain) == (b"21.5", True)
    assert complete == Complete("t", found=True)


def test_nothing_is_retained_if_the_ping_is_answered_and_nothing_came() -> None:
    ear = connected()
    ear.subscribe("t")
    ear.grant()
    ear.receive(PublishPacket("t", b"news, not state"), PingRespPacket())

    complete, publication = ear.heard()
    assert isinstance(publication, Heard)
    assert not publication.retain
    assert complete == Complete("t", found=False)


def test_the_answer_to_an_earlier_ping_completes_nothing() -> None:
    ear = connected()
    ear.subscriptions.ping()
    ear.subscribe("t")
    ear.grant()

    ear.receive(PingRespPacket())
    assert ear.heard() == []
    ear.receive(PingRespPacket())
    assert ear.heard() == [Complete("t", found=False)]


def test_what_is_wanted_meanwhile_goes_with_the_next_packet() -> None:
    ear = connected()
    ear.subscribe("first")
    ear.sent()
    ear.subscribe("second")
    ear.subscribe("third")
    assert ear.sent() == []

    ear.grant()
    ear.receive(PingRespPacket())

    assert topics_of(ear.sent()[0]) == ["second", "third"]


def test_ten_thousand_topics_go_in_packets_of_a_hundred() -> None:
    ear = connected()
    ear.subscribe(*(f"t/{number}" for number in range(10_000)))
    packets = 0
    while sent := ear.sent():
        count = len(topics_of(sent[0]))
        assert count == MAX_BATCH
        packets += 1
        ear.grant(count)
        ear.receive(PingRespPacket())

    assert packets == 100
    assert len(ear.heard()) == 10_000


def test_what_the_broker_does_not_grant_is_refused_and_the_rest_completes() -> None:
    ear = connected()
    ear.subscribe("allowed", "forbidden")
    codes = [GRANTED, SubAckReasonCode.NOT_AUTHORIZED]
    ear.receive(SubAckPacket(SUBSCRIBE_ID, codes), PingRespPacket())

    assert ear.heard() == [Refusal("forbidden", 0x87), Complete("allowed", found=False)]


def test_a_new_connection_subscribes_to_everything_again() -> None:
    ear = connected()
    ear.subscribe("state")
    ear.subscribe("feed/#", is_state=False)
    ear.client.lost(ear.now, cut=False)

    ear.connect()

    (subscribe, _) = ear.sent()
    assert topics_of(subscribe) == ["state", "feed/#"]


def test_what_is_unsubscribed_is_heard_no_longer() -> None:
    ear = connected()
    ear.subscribe("t")
    ear.receive(PublishPacket("t", b"old", retain=True))
    ear.sent()
    ear.unsubscribe("t")
    (unsubscribe,) = ear.sent()
    assert isinstance(unsubscribe, UnsubscribePacket)
    assert unsubscribe.patterns == ["t"]

    ear.grant()
    ear.receive(PingRespPacket())

    assert ear.heard() == []


def test_a_topic_wanted_again_before_it_was_unsubscribed_is_looked_up_anew() -> None:
    ear = connected()
    ear.subscribe("a", "b")
    ear.grant(2)
    ear.receive(PingRespPacket())
    ear.heard()
    ear.unsubscribe("a")
    ear.unsubscribe("b")
    ear.sent()
    ear.subscribe("b")

    assert topics_of(ear.sent()[0]) == ["b"]
    ear.receive(UnsubAckPacket(UNSUBSCRIBE_ID, [UnsubAckReasonCode.SUCCESS]))
    assert ear.sent() == [], "b is wanted again"
    ear.grant()
    ear.receive(PingRespPacket())
    assert ear.heard() == [Complete("b", found=False)]


def test_of_a_state_only_the_newest_publication_waits() -> None:
    ear = connected()
    ear.subscribe("t")
    ear.receive(*(PublishPacket("t", b"%d" % number, retain=True) for number in range(100)))
    ear.grant()
    ear.receive(PingRespPacket())

    publication, complete = ear.heard()
    assert isinstance(publication, Heard)
    assert publication.payload == b"99"
    assert isinstance(complete, Complete)


def test_a_feed_is_heard_while_a_state_never_rests() -> None:
    ear = connected()
    ear.subscribe("state")
    ear.receive(PublishPacket("feed", b"1", qos=QoS.AT_LEAST_ONCE, packet_id=1))
    looked_at = []
    for number in range(4):
        ear.receive(PublishPacket("state", b"%d" % number, retain=True))
        heard = ear.subscriptions.next_heard()
        assert isinstance(heard, Heard)
        looked_at.append(heard.topic)

    assert "feed" in looked_at


def test_a_flood_at_qos_0_is_dropped_and_counted_beyond_its_bound() -> None:
    ear = connected()
    ear.subscribe("feed/#", is_state=False)
    for _ in range(20):
        ear.receive(*[PublishPacket("feed/x", b"")] * 1000)
    last = PublishPacket("feed/last", b"", qos=QoS.AT_LEAST_ONCE, packet_id=7)
    ear.receive(last)

    assert ear.subscriptions.dropped == 20_000 - MAX_FEED
    heard = ear.heard()
    assert len(heard) == MAX_FEED + 1
    assert isinstance(heard[-1], Heard)
    assert heard[-1].topic == "feed/last", "what we acknowledge is never dropped"


def test_a_publication_is_acknowledged_when_it_is_taken_care_of_and_on_its_connection() -> None:
    ear = connected()
    ear.subscribe("feed/#", is_state=False)
    ear.sent()
    ear.receive(PublishPacket("feed/x", b"", qos=QoS.AT_LEAST_ONCE, packet_id=7))
    assert ear.sent() == []
    (heard,) = ear.heard()
    assert isinstance(heard, Heard)

    ear.subscriptions.acknowledge(heard.receipt)
    (puback,) = ear.sent()
    assert isinstance(puback, PubAckPacket)
    assert puback.packet_id == 7

    ear.client.lost(ear.now, cut=False)
    ear.connect()
    ear.sent()
    ear.subscriptions.acknowledge(heard.receipt)
    assert not any(isinstance(packet, PubAckPacket) for packet in ear.sent())


def test_a_broker_that_answers_no_subscription_counts_as_dead() -> None:
    ear = connected()
    ear.subscribe("t")
    ear.run_until(ear.now + ACK_TIMEOUT + 1)

    assert ear.client.state is State.OVER
    assert ear.ending() == "no-suback"


def test_no_publication_has_the_packet_identifier_of_a_subscription() -> None:
    publications = Publications(hold_time=10.0, hold_messages=100_000, hold_size=1 << 30)
    for _ in range(65_536):
        publications.publish("t", b"", 1, False, None, [], None, 0.0)

    assert publications.held == SUBSCRIBE_ID - 1


def test_a_publication_that_comes_in_pieces_is_put_together() -> None:
    ear = connected()
    ear.subscribe("t")
    body = bytes(range(256)) * 16384
    octets = PublishPacket("t", body, retain=True).write()
    for start in range(0, len(octets), 65_536):
        ear.client.receive(octets[start : start + 65_536], ear.now)

    (heard,) = ear.heard()
    assert isinstance(heard, Heard)
    assert heard.payload == body


def test_one_octet_at_a_time_is_as_good_as_all_at_once() -> None:
    ear = connected()
    ear.subscribe("t")
    for octet in PublishPacket("t", b"x" * 300, retain=True).write() + PingRespPacket().write():
        ear.client.receive(bytes((octet,)), ear.now)

    (heard,) = ear.heard()
    assert isinstance(heard, Heard)
    assert len(heard.payload) == 300


def test_a_packet_larger_than_announced_ends_the_connection_before_it_is_read() -> None:
    ear = connected()
    ear.client.receive(b"\x30\xff\xff\xff\x7f" + b"x" * 10, ear.now)

    assert ear.client.state is State.OVER
    assert ear.ending() == "malformed"


def test_a_subscription_before_there_is_a_broker_is_sent_when_there_is_one() -> None:
    ear = Ear()
    ear.subscribe("t")
    assert ear.sent() == []

    ear.connect(ConnAckPacket())

    assert topics_of(ear.sent()[0]) == ["t"]


def test_what_the_broker_delivers_again_after_a_reconnect_is_heard_once() -> None:
    ear = Ear()
    ear.connect(ConnAckPacket())
    first = PublishPacket("feed/x", b"1", qos=QoS.AT_LEAST_ONCE, packet_id=7)
    ear.receive(first)
    assert len(ear.heard()) == 1
    ear.client.lost(ear.now, cut=False)
    ear.connect(ConnAckPacket(session_present=True))
    ear.sent()

    again = PublishPacket("feed/x", b"1", qos=QoS.AT_LEAST_ONCE, packet_id=7, duplicate=True)
    other = PublishPacket("feed/x", b"2", qos=QoS.AT_LEAST_ONCE, packet_id=8, duplicate=True)
    ear.receive(again, other)

    (puback,) = ear.sent()
    assert isinstance(puback, PubAckPacket)
    assert puback.packet_id == 7
    (heard,) = ear.heard()
    assert isinstance(heard, Heard)
    assert heard.payload == b"2", "we had not seen it"


def test_a_packet_identifier_that_stands_for_something_else_is_no_repetition() -> None:
    ear = connected()
    ear.receive(PublishPacket("feed/x", b"1", qos=QoS.AT_LEAST_ONCE, packet_id=7))
    ear.receive(PublishPacket("feed/x", b"1", qos=QoS.AT_LEAST_ONCE, packet_id=7))
    changed = PublishPacket("feed/x", b"2", qos=QoS.AT_LEAST_ONCE, packet_id=7, duplicate=True)
    ear.receive(changed)

    assert len(ear.heard()) == 3


def test_a_subscription_of_an_earlier_process_is_ended() -> None:
    ear = connected()
    ear.subscribe("wanted")
    ear.sent()
    for topic in ("stale", "wanted"):
        ear.subscriptions.unsubscribe_stale(topic)
    ear.subscriptions.flush(ear.now)

    (unsubscribe,) = ear.sent()
    assert isinstance(unsubscribe, UnsubscribePacket)
    assert unsubscribe.patterns == ["stale"]


def test_with_a_session_that_lasts_connect_says_so() -> None:
    ear = Wire(Hello("coapgate-0-0", session_expiry=3600))
    ear.open()

    (connect,) = ear.sent()
    assert isinstance(connect, ConnectPacket)
    assert (connect.clean_start, connect.session_expiry_interval) == (False, 3600)


@pytest.mark.parametrize("is_resumed", [True, False])
def test_what_is_published_again_says_so_to_a_broker_that_remembers(is_resumed: bool) -> None:
    ear = connected()
    ear.publish(1)
    ear.sent()
    ear.client.lost(ear.now, cut=False)
    ear.connect(ConnAckPacket(session_present=is_resumed))

    (publish,) = (packet for packet in ear.sent() if isinstance(packet, PublishPacket))
    assert publish.duplicate == is_resumed


def test_of_a_feed_no_large_body_is_kept() -> None:
    ear = connected()
    ear.subscriptions.max_feed_payload = 100
    ear.receive(PublishPacket("feed/x", b"x" * 101), PublishPacket("feed/y", b"y" * 100))
    properties = [("name", "x" * 5000)] * 2
    ear.receive(PublishPacket("feed/z", b"z", user_properties=properties))

    cut, whole, odd = ear.heard()
    assert isinstance(cut, Heard)
    assert isinstance(whole, Heard)
    assert isinstance(odd, Heard)
    assert (cut.is_cut, cut.payload) == (True, b"")
    assert (whole.is_cut, whole.payload) == (False, b"y" * 100)
    assert (odd.is_cut, odd.payload, odd.properties) == (True, b"", [])


def test_what_waits_of_feeds_at_qos_0_is_bounded_in_octets() -> None:
    ear = connected()
    for _ in range(100):
        ear.receive(PublishPacket("feed/x", b"x" * (1 << 20)))

    assert 60 <= 100 - ear.subscriptions.dropped <= 64
    assert len(ear.heard()) == 100 - ear.subscriptions.dropped
    ear.receive(PublishPacket("feed/x", b"room again"))
    assert len(ear.heard()) == 1


def test_what_is_retained_is_heard_whole_however_much_it_is() -> None:
    ear = connected()
    for _ in range(20):
        ear.receive(*[PublishPacket("feed/status", b"", retain=True)] * 1000)

    assert (ear.subscriptions.dropped, len(ear.heard())) == (0, 20_000)
