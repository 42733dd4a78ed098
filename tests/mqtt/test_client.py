"""The client's side of MQTT 5, without a socket and with a scripted clock."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    read,
)

from coapgate.model import Outcome
from coapgate.mqtt.client import ACK_TIMEOUT, CONNACK_TIMEOUT, Client, Hello, State
from coapgate.mqtt.publications import Blame, Publications
from tests.fakes.broker import MQTT_3_REFUSAL

WALL = 1_767_225_600.25
STATUS = "coapgate/$gateway/0/status"


class Wire:
    """A client and what it wrote; `now` is the scripted clock."""

    def __init__(self, hello: Hello | None = None, silence: float = 10.0) -> None:
        self.now = 100.0
        self.publications = Publications(hold_time=10.0, hold_messages=100)
        self.client = Client(hello or Hello("coapgate-0-0"), self.publications, silence)

    def open(self, password: bytes | None = None) -> None:
        self.client.connect(password, self.now, WALL)

    def receive(self, *packets: Packet) -> None:
        self.client.receive(b"".join(packet.write() for packet in packets), self.now)

    def connect(self, connack: ConnAckPacket | None = None) -> None:
        self.open()
        self.sent()
        self.receive(connack or ConnAckPacket())

    def publish(self, ticket: int) -> None:
        self.publications.publish("t", b"", 1, False, None, [], ticket, self.now)

    def run_until(self, when: float) -> None:
        """Serve every timer that is due up to `when`, as the shell does."""
        while (due := self.client.next_timer()) is not None and due <= when:
            self.now = max(self.now, due)
            self.client.handle_timer(self.now)
            if self.client.state is State.OVER:
                return
        self.now = when

    def sent(self) -> list[Packet]:
        """What was written since the last call."""
        octets = self.client.take_outgoing()
        packets = []
        while octets:
            packet, length = read(memoryview(octets))
            packets.append(packet)
            octets = octets[length:]
        return packets

    def ending(self) -> str:
        assert self.client.ending is not None
        return self.client.ending.kind


def test_connect_says_who_we_are_and_starts_clean() -> None:
    wire = Wire(Hello("coapgate-0-0", "gateway", 30, STATUS))
    wire.open(b"secret")

    (connect,) = wire.sent()
    assert isinstance(connect, ConnectPacket)
    assert (connect.client_id, connect.username, connect.password) == (
        "coapgate-0-0",
        "gateway",
        b"secret",
    )
    assert (connect.clean_start, connect.session_expiry_interval) == (True, 0)
    assert (connect.keep_alive, connect.max_packet_size) == (30, 8 << 20)
    assert connect.receive_max == 64
    assert wire.client.state is State.CONNECTING


def test_the_will_says_that_the_gateway_is_lost() -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.open()

    (connect,) = wire.sent()
    assert isinstance(connect, ConnectPacket)
    assert connect.will is not None
    assert (connect.will.topic, connect.will.retain, connect.will.qos.value) == (STATUS, True, 1)
    assert connect.will.payload is not None
    assert json.loads(connect.will.payload) == {
        "at": "2026-01-01T00:00:00.250Z",
        "online": False,
        "reason": "lost",
    }


def test_once_connected_the_status_is_published_before_all_else() -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.publish(1)
    wire.connect()

    assert wire.client.state is State.CONNECTED
    status, other = wire.sent()
    assert isinstance(status, PublishPacket)
    assert isinstance(other, PublishPacket)
    assert (status.topic, status.retain) == (STATUS, True)
    assert json.loads(status.payload) == {"at": "2026-01-01T00:00:00.250Z", "online": True}
    assert other.topic == "t"


def test_without_a_status_topic_there_is_neither_status_nor_will() -> None:
    wire = Wire()
    wire.open()
    (connect,) = wire.sent()
    assert isinstance(connect, ConnectPacket)
    assert connect.will is None
    wire.receive(ConnAckPacket())
    assert wire.sent() == []


def test_pubacks_end_publications_however_the_octets_are_cut() -> None:
    octets = b"".join(
        packet.write()
        for packet in (
            ConnAckPacket(receive_max=20, reason_str="welcome"),
            PingRespPacket(),
        )
    )
    wire = Wire()
    wire.publish(7)
    wire.open()
    wire.sent()
    for octet in octets:
        wire.client.receive(bytes((octet,)), wire.now)
    (publish,) = wire.sent()
    assert isinstance(publish, PublishPacket)
    assert publish.packet_id is not None
    for octet in PubAckPacket(publish.packet_id, reason_str="taken").write():
        assert wire.publications.ended == []
        wire.client.receive(bytes((octet,)), wire.now)

    assert wire.publications.ended == [(7, 0)]
    assert wire.client.receive_maximum == 20


def test_a_broker_that_takes_qos_0_only_is_left() -> None:
    wire = Wire()
    wire.publish(1)
    wire.connect(ConnAckPacket(max_qos=QoS.AT_MOST_ONCE))

    assert (wire.client.state, wire.ending()) == (State.OVER, "no-qos-1")
    assert wire.sent() == [], "nothing was said that it could acknowledge"
    assert wire.publications.held == 1


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION, "broker does not speak MQTT 5"),
        (ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD, "broker refuses user name or password"),
        (ConnAckReasonCode.NOT_AUTHORIZED, "broker does not authorize us"),
        (ConnAckReasonCode.CLIENT_ID_NOT_VALID, "broker refuses mqtt.client_id"),
        (ConnAckReasonCode.QUALITY_NOT_SUPPORTED, "broker takes publications at QoS 0 only"),
        (ConnAckReasonCode.SERVER_BUSY, "broker refuses us"),
    ],
)
def test_a_refusal_is_told_in_the_words_of_an_operator(
    code: ConnAckReasonCode, message: str
) -> None:
    wire = Wire()
    wire.connect(ConnAckPacket(reason_code=code))

    assert wire.client.state is State.OVER
    ending = wire.client.ending
    assert ending is not None
    assert (ending.kind, ending.message) == (f"connack-{code.value:#04x}", message)
    assert ending.detail.endswith(f"({code.value:#04x})")
    assert (ending.hint == "") == (code is ConnAckReasonCode.SERVER_BUSY)
    assert wire.sent() == []


def test_a_broker_that_names_another_is_quoted() -> None:
    wire = Wire()
    code = ConnAckReasonCode.USE_ANOTHER_SERVER
    wire.connect(ConnAckPacket(reason_code=code, server_reference="b.example\x1b"))

    assert wire.client.ending is not None
    assert wire.client.ending.hint == r"it names 'b.example\x1b' as the one to use"


def test_of_what_a_broker_names_only_the_beginning_is_quoted() -> None:
    wire = Wire()
    code = ConnAckReasonCode.USE_ANOTHER_SERVER
    wire.connect(ConnAckPacket(reason_code=code, server_reference="b" * 60_000))

    assert wire.client.ending is not None
    assert len(wire.client.ending.hint) < 200


def test_where_retain_is_not_supported_the_next_will_is_not_retained() -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.connect(ConnAckPacket(reason_code=ConnAckReasonCode.RETAIN_NOT_SUPPORTED))
    wire.client.lost(wire.now, cut=True)
    wire.open()

    (connect,) = wire.sent()
    assert isinstance(connect, ConnectPacket)
    assert connect.will is not None
    assert connect.will.retain is False


@pytest.mark.parametrize("cut", [False, True])
def test_a_broker_of_mqtt_3_is_recognized(cut: bool) -> None:
    wire = Wire()
    wire.open()
    if cut:
        wire.client.receive(MQTT_3_REFUSAL[:1], wire.now)
        wire.client.receive(MQTT_3_REFUSAL[1:], wire.now)
    else:
        wire.client.receive(MQTT_3_REFUSAL, wire.now)

    assert (wire.client.state, wire.ending()) == (State.OVER, "mqtt-version")


@pytest.mark.parametrize(
    "octets",
    [
        b"HTTP/1.1 400 Bad Request\r\nServer: nginx\r\nContent-Type: text/html\r\n" + bytes(80),
        PubAckPacket(1).write(),
        ConnAckPacket(receive_max=1).write().replace(b"\x21\x00\x01", b"\x21\x00\x00"),
        b"\x30\xff\xff\xff\x7f" + bytes(70_000),
    ],
)
def test_what_is_no_mqtt_5_ends_the_connection(octets: bytes) -> None:
    wire = Wire()
    wire.open()
    wire.client.receive(octets, wire.now)

    assert (wire.client.state, wire.ending()) == (State.OVER, "malformed")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_topic_that_is_no_text_ends_the_connection_though_the_codec_panics() -> None:
    wire = Wire()
    wire.connect()
    wire.client.receive(b"\x30\x06\x00\x02\xff\xfe\x00x", wire.now)

    assert (wire.client.state, wire.ending()) == (State.OVER, "malformed")


def test_malformed_octets_on_a_connection_are_answered_and_accuse_nobody() -> None:
    wire = Wire()
    wire.connect()
    wire.publish(1)
    wire.sent()
    wire.client.receive(b"\x40\x03\x00\x01\x55", wire.now)

    (disconnect,) = wire.sent()
    assert isinstance(disconnect, DisconnectPacket)
    assert disconnect.reason_code is DisconnectReasonCode.MALFORMED_PACKET
    wire.client.lost(wire.now, cut=False)
    assert wire.client.blame is Blame.NONE
    assert wire.publications.held == 1


def test_nothing_after_a_disconnect_is_looked_at() -> None:
    wire = Wire()
    wire.connect()
    wire.publish(1)
    wire.sent()
    goodbye = DisconnectPacket(reason_code=DisconnectReasonCode.SERVER_SHUTTING_DOWN)
    wire.receive(goodbye, PubAckPacket(1))

    assert (wire.client.state, wire.ending()) == (State.OVER, "disconnect-0x8b")
    assert wire.publications.ended == []
    assert wire.sent() == []


def test_what_comes_after_a_disconnect_is_for_the_next_connection_and_accused_of_nothing() -> None:
    wire = Wire()
    wire.connect()
    wire.publish(1)
    wire.sent()
    wire.receive(DisconnectPacket(reason_code=DisconnectReasonCode.MALFORMED_PACKET))
    wire.publish(2)
    assert wire.sent() == []
    wire.client.lost(wire.now, cut=True)

    assert (wire.publications.held, wire.publications.suspects) == (2, 1)


@pytest.mark.parametrize(
    ("code", "blame"),
    [
        (DisconnectReasonCode.MALFORMED_PACKET, Blame.PROTOCOL_ERROR),
        (DisconnectReasonCode.PROTOCOL_ERROR, Blame.PROTOCOL_ERROR),
        (DisconnectReasonCode.NOT_AUTHORIZED, Blame.PROTOCOL_ERROR),
        (DisconnectReasonCode.TOPIC_NAME_INVALID, Blame.PROTOCOL_ERROR),
        (DisconnectReasonCode.SERVER_SHUTTING_DOWN, Blame.NONE),
        (DisconnectReasonCode.SESSION_TAKEN_OVER, Blame.NONE),
        (DisconnectReasonCode.QUOTA_EXCEEDED, Blame.NONE),
    ],
)
def test_only_a_protocol_error_accuses_what_was_in_flight(
    code: DisconnectReasonCode, blame: Blame
) -> None:
    wire = Wire()
    wire.connect()
    wire.receive(DisconnectPacket(reason_code=code))
    wire.client.lost(wire.now, cut=True)

    assert wire.client.blame is blame
    assert (wire.client.state, wire.ending()) == (
        State.DISCONNECTED,
        f"disconnect-{code.value:#04x}",
    )


def test_a_closed_connection_accuses_a_little_and_a_broken_network_nobody() -> None:
    wire = Wire()
    wire.connect()
    wire.client.lost(wire.now, cut=True)
    assert (wire.ending(), wire.client.blame) == ("closed", Blame.CUT)

    wire.connect()
    wire.client.lost(wire.now, cut=False)
    assert (wire.ending(), wire.client.blame) == ("network", Blame.NONE)


def test_a_connection_that_closes_before_connack_says_so() -> None:
    wire = Wire()
    wire.open()
    wire.client.lost(wire.now, cut=True)

    assert (wire.ending(), wire.client.blame) == ("no-connack", Blame.NONE)


def test_a_broker_that_does_not_answer_connect_is_left() -> None:
    wire = Wire()
    wire.open()
    wire.run_until(100.0 + CONNACK_TIMEOUT - 0.1)
    assert wire.client.state is State.CONNECTING
    wire.run_until(100.0 + CONNACK_TIMEOUT)

    assert (wire.client.state, wire.ending()) == (State.OVER, "no-connack")


def test_a_broker_that_answers_pings_is_kept() -> None:
    wire = Wire(silence=10.0)
    wire.connect()
    for ping in range(1, 13):
        wire.run_until(100.0 + 5 * ping)
        (request,) = wire.sent()
        assert isinstance(request, PingReqPacket)
        wire.receive(PingRespPacket())

    assert wire.client.state is State.CONNECTED


def test_a_broker_that_is_silent_is_left() -> None:
    wire = Wire(silence=10.0)
    wire.connect()
    wire.publish(1)
    wire.run_until(109.9)
    assert wire.client.state is State.CONNECTED
    wire.run_until(110.0)

    assert (wire.client.state, wire.ending()) == (State.OVER, "silent")
    wire.client.lost(wire.now, cut=False)
    assert wire.publications.ended == [(1, Outcome.UNAVAILABLE)], "its hold time is over as well"


def test_a_short_patience_never_breaks_off_with_a_busy_broker() -> None:
    wire = Wire(silence=0.0)
    wire.connect()
    wire.run_until(104.9)

    assert wire.client.state is State.CONNECTED


def test_the_brokers_keep_alive_is_kept() -> None:
    wire = Wire(silence=10.0)
    wire.connect(ConnAckPacket(server_keep_alive=2))
    wire.run_until(101.0)

    (request,) = wire.sent()
    assert isinstance(request, PingReqPacket)


def test_without_keep_alive_the_broker_is_watched_all_the_same() -> None:
    wire = Wire(silence=10.0)
    wire.connect(ConnAckPacket(server_keep_alive=0))
    wire.run_until(105.0)

    (request,) = wire.sent()
    assert isinstance(request, PingReqPacket)


def test_a_slow_broker_is_waited_for_but_not_for_ever() -> None:
    wire = Wire(silence=10.0)
    wire.connect()
    wire.publish(1)
    wire.sent()
    while wire.now < 100.0 + ACK_TIMEOUT - 1:
        wire.run_until(wire.now + 1)
        wire.receive(PingRespPacket())
    assert wire.client.state is State.CONNECTED
    assert wire.publications.ended == []

    wire.run_until(100.0 + ACK_TIMEOUT)
    assert (wire.client.state, wire.ending()) == (State.OVER, "no-puback")
    wire.client.lost(wire.now, cut=False)
    assert wire.publications.ended == [(1, Outcome.UNAVAILABLE)]


def test_while_disconnected_the_only_timer_is_that_of_what_is_held() -> None:
    wire = Wire()
    assert wire.client.next_timer() is None
    wire.publish(1)
    assert wire.client.next_timer() == 110.0
    wire.run_until(110.0)

    assert wire.publications.ended == [(1, Outcome.UNAVAILABLE)]
    assert wire.client.next_timer() is None


def test_a_goodbye_comes_with_a_status_and_without_the_will() -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.connect()
    (online,) = wire.sent()
    assert isinstance(online, PublishPacket)
    assert online.packet_id is not None
    wire.receive(PubAckPacket(online.packet_id))
    wire.client.say_goodbye(WALL + 60)

    status, disconnect = wire.sent()
    assert isinstance(status, PublishPacket)
    assert isinstance(disconnect, DisconnectPacket)
    assert (status.topic, status.retain) == (STATUS, True)
    assert json.loads(status.payload) == {
        "at": "2026-01-01T00:01:00.250Z",
        "online": False,
        "reason": "stopped",
    }
    assert disconnect.reason_code is DisconnectReasonCode.NORMAL_DISCONNECTION
    assert (wire.client.state, wire.ending()) == (State.OVER, "stopped")


def test_a_goodbye_that_leaves_publications_behind_leaves_the_will() -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.connect()
    wire.sent()
    wire.client.say_goodbye(WALL)

    (disconnect,) = wire.sent()
    assert isinstance(disconnect, DisconnectPacket)
    assert disconnect.reason_code is DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE


def test_a_goodbye_without_a_status_topic_or_a_connection_is_short() -> None:
    wire = Wire()
    wire.client.say_goodbye(WALL)
    assert wire.sent() == []
    wire.connect()
    wire.client.say_goodbye(WALL)
    (disconnect,) = wire.sent()
    assert isinstance(disconnect, DisconnectPacket)
    assert disconnect.reason_code is DisconnectReasonCode.NORMAL_DISCONNECTION


def test_losing_what_never_connected_is_nothing() -> None:
    wire = Wire()
    wire.client.lost(wire.now, cut=True)
    wire.client.give_up()

    assert (wire.client.state, wire.client.ending) == (State.DISCONNECTED, None)


def test_giving_up_says_nothing_so_the_broker_publishes_the_will() -> None:
    wire = Wire()
    wire.connect()
    wire.client.give_up()

    assert (wire.client.state, wire.ending()) == (State.OVER, "stopped")
    assert wire.sent() == []


def test_a_timer_that_comes_early_finds_nothing_to_do() -> None:
    wire = Wire()
    wire.connect()
    wire.client.handle_timer(wire.now)

    assert wire.client.state is State.CONNECTED
    assert wire.sent() == []


def test_packets_that_no_publisher_is_sent_are_ignored() -> None:
    wire = Wire()
    wire.connect()
    wire.receive(PublishPacket("t", b""))

    assert wire.client.state is State.CONNECTED


@given(st.lists(st.binary(max_size=80), max_size=8), st.booleans())
def test_whatever_a_broker_says_the_client_neither_raises_nor_grows(
    pieces: list[bytes], connected: bool
) -> None:
    wire = Wire(Hello("coapgate-0-0", status_topic=STATUS))
    wire.open()
    if connected:
        wire.receive(ConnAckPacket())
    wire.publish(1)
    for piece in pieces:
        wire.client.receive(piece, wire.now)
        wire.sent()
    wire.client.lost(wire.now, cut=True)

    assert len(wire.publications.ended) + wire.publications.held == 1
