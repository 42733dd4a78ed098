"""The client's side of one MQTT 5 connection after another: octets in, octets and outcomes out.

No sockets and no clock: `connection` is the shell around it. A broker keeps nothing for a client
that publishes at QoS 1, so what is published needs no session: a gateway that was restarted behaves
like one that reconnects. With `session_expiry` the broker keeps what it has for us at QoS 1 while
we are away. Whatever it remembers, what we want to hear we subscribe to again.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from datetime import UTC, datetime

from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    SubAckPacket,
    UnsubAckPacket,
    Will,
    read,
)

from coapgate.mqtt.publications import Blame, Publications
from coapgate.mqtt.subscriptions import MAX_UNACKNOWLEDGED, Subscriptions

CONNACK_TIMEOUT = 10.0
"""Seconds a broker may take for its CONNACK."""
ACK_TIMEOUT = 30.0
"""Seconds a broker that is there may take for a PUBACK; then the connection counts as dead."""
MIN_SILENCE = 5.0
"""Seconds in which a broker may always be silent: a busy one stalls for two."""

MAX_QUOTED = 128
"""Characters of what a broker says that go into a log line."""

STOPPED = "stopped"
"""The kind of ending that we chose."""

_MQTT_3_CONNACK = b"\x20\x02"
"""A CONNACK without properties, as in MQTT 3.1.1: MQTT 5 always has their length."""

# The codec's enumerations are neither hashable nor ordered: everything here is plain integers.
_ACCUSING = frozenset(
    code.value
    for code in (
        DisconnectReasonCode.UNSPECIFIED_ERROR,
        DisconnectReasonCode.MALFORMED_PACKET,
        DisconnectReasonCode.PROTOCOL_ERROR,
        DisconnectReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        # Some brokers disconnect for a denied publish rather than say so in its PUBACK.
        DisconnectReasonCode.NOT_AUTHORIZED,
        DisconnectReasonCode.TOPIC_NAME_INVALID,
        DisconnectReasonCode.PACKET_TOO_LARGE,
        DisconnectReasonCode.PAYLOAD_FORMAT_INVALID,
        DisconnectReasonCode.RETAIN_NOT_SUPPORTED,
        DisconnectReasonCode.QOS_NOT_SUPPORTED,
    )
)
"""Reasons to disconnect that lie in something we sent, rather than in the broker or its load."""


class State(enum.Enum):
    """Where a connection is; `OVER` is when the shell must close its transport."""

    DISCONNECTED = enum.auto()
    CONNECTING = enum.auto()
    CONNECTED = enum.auto()
    OVER = enum.auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """Why a connection ended: `kind` for a program, the rest for the operator.

    `message` is constant for a kind, `detail` what was said this time. `lasting`: the broker, or
    its operator, decided against us; time alone will not mend it.
    """

    kind: str
    message: str
    hint: str = ""
    detail: str = ""
    lasting: bool = False


@dataclass(frozen=True, slots=True)
class Hello:
    """What every CONNECT says; the password is not among it.

    `keep_alive` in whole seconds, and so is `session_expiry`: for how long the broker keeps the
    session; 0: every connection starts clean. `status_topic` None: no status, no Will.
    `max_received_packet` in octets: what is larger the broker keeps to itself.
    """

    client_id: str
    username: str | None = None
    keep_alive: int = 30
    status_topic: str | None = None
    session_expiry: int = 0
    max_received_packet: int = 8 << 20


class Client:
    """One worker's end of MQTT 5.

    After every call write `take_outgoing` to the transport, hand on `publications.ended`, close
    the transport if `state` is OVER, and look at `next_timer` again. `now` is monotonic seconds,
    `wall` Unix seconds.

    `silence` is how many seconds the broker may say nothing, pings included, before it counts as
    gone; its publications are then held, or answered if they have waited for too long.
    """

    def __init__(self, hello: Hello, publications: Publications, silence: float) -> None:
        self.state = State.DISCONNECTED
        self.ending: Ending | None = None
        """Why the last connection ended; None while one lives."""
        self.blame = Blame.NONE
        """What the end of the last connection says against its publications."""
        self.receive_maximum = 0
        self.subscriptions = Subscriptions(publications.outgoing)
        self._hello = hello
        self._publications = publications
        self._silence = max(MIN_SILENCE, silence)
        self._ping_interval = self._silence / 2
        self._will_retain = True
        self._buffer = b""
        self._chunks: list[bytes] = []  # of a packet whose end is still to come
        self._missing = 0
        self._outgoing = publications.outgoing
        self._deadline = 0.0
        self._heard_at = 0.0
        self._ping_at = 0.0
        self._wall = 0.0

    def connect(self, password: bytes | None, now: float, wall: float) -> None:
        """A transport is there: say CONNECT.

        Raises ValueError if client id, user name or password do not fit into one.
        """
        hello = self._hello
        connect = ConnectPacket(
            hello.client_id,
            username=hello.username,
            password=password,
            clean_start=hello.session_expiry == 0,
            will=self._will(wall),
            keep_alive=hello.keep_alive,
            session_expiry_interval=hello.session_expiry,
            receive_max=MAX_UNACKNOWLEDGED,
            max_packet_size=hello.max_received_packet,
        )
        self._outgoing.append(connect.write())
        self._forget_octets()
        self._wall = wall
        self._deadline = now + CONNACK_TIMEOUT
        self._heard_at = now
        self.ending = None
        self.blame = Blame.NONE
        self.state = State.CONNECTING

    def receive(self, data: bytes, now: float) -> None:
        """Octets came from the broker."""
        self._heard_at = now
        if self._buffer:
            if self._missing > len(data):
                # Put together once it is whole: what large packets cost is linear in their size.
                self._chunks.append(data)
                self._missing -= len(data)
                return
            data = b"".join((self._buffer, *self._chunks, data))
            self._forget_octets()
        view = memoryview(data)
        acknowledge = self._publications.acknowledge
        position = 0
        while position < len(data) and self.state is not State.OVER:
            try:
                packet, length = read(view[position:])
            except IndexError:
                break  # not all of it is here
            except ValueError:
                self._receive_malformed(data)
                return
            except BaseException as error:
                # The codec panics over text that is no UTF-8; PyO3 hides that from `Exception`.
                if type(error).__name__ != "PanicException":
                    raise
                self._receive_malformed(data)
                return
            position += length
            if type(packet) is PubAckPacket and self.state is State.CONNECTED:
                acknowledge(packet.packet_id, packet.reason_code.value, now)
            else:
                self._receive_packet(packet, now)
        self._buffer = data[position:]
        if self._buffer and self.state is not State.OVER:
            self._missing = _missing(self._buffer)
            if self._missing + len(self._buffer) > self._hello.max_received_packet:
                self._receive_malformed(data)

    def lost(self, now: float, *, cut: bool) -> None:
        """The transport is gone; `cut`: the broker closed it, rather than the network or we."""
        if self.state is State.CONNECTED:
            self.ending = Ending("closed" if cut else "network", "connection to the broker is gone")
            self.blame = Blame.CUT if cut else Blame.NONE
        elif self.state is State.CONNECTING:
            self.ending = _NO_CONNACK
        self.state = State.DISCONNECTED
        self._publications.lost(self.blame, now)
        self.subscriptions.lost()

    def say_goodbye(self, wall: float) -> None:
        """End the connection in order, with a status that says so.

        If publications are still in flight the broker publishes the Will, which says `lost`: no
        more than Receive Maximum may be in flight, and something was indeed left behind.
        """
        if self.state is not State.CONNECTED:
            return
        reason = DisconnectReasonCode.NORMAL_DISCONNECTION
        topic = self._hello.status_topic
        if self._publications.in_flight:
            reason = DisconnectReasonCode.DISCONNECT_WITH_WILL_MESSAGE
        elif topic is not None:
            status = PublishPacket(
                topic,
                _status(wall, online=False, reason="stopped"),
                qos=QoS.AT_LEAST_ONCE,
                retain=self._will_retain,
                packet_id=1,
                content_type="application/json",
            )
            self._outgoing.append(status.write())
        self._end(_GATEWAY_STOPS, reason)

    def give_up(self) -> None:
        """End the connection without a word: the broker publishes the Will."""
        if self.state in {State.CONNECTING, State.CONNECTED}:
            self._end(_GATEWAY_STOPS, reply=False)

    def take_outgoing(self) -> bytes:
        """What is to be written now, and is forgotten here."""
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        return data

    def next_timer(self) -> float | None:
        """When `handle_timer` is due at the latest."""
        due = self._publications.next_timer
        timers = [] if due is None else [due]
        if self.state is State.CONNECTING:
            timers.append(self._deadline)
        elif self.state is State.CONNECTED:
            timers += [self._ping_at, self._heard_at + self._silence]
            sent_at = self._publications.oldest_sent_at
            if sent_at is not None:
                timers.append(sent_at + ACK_TIMEOUT)
            asked_at = self.subscriptions.oldest_sent_at
            if asked_at is not None:
                timers.append(asked_at + ACK_TIMEOUT)
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Time has passed."""
        self._publications.expire(now)
        if self.state is State.CONNECTING and now >= self._deadline:
            self._end(_NO_CONNACK)
        elif self.state is State.CONNECTED:
            sent_at = self._publications.oldest_sent_at
            asked_at = self.subscriptions.oldest_sent_at
            if now >= self._heard_at + self._silence:
                self._end(Ending("silent", "broker is silent"))
            elif sent_at is not None and now >= sent_at + ACK_TIMEOUT:
                self._end(Ending("no-puback", "broker acknowledges nothing"))
            elif asked_at is not None and now >= asked_at + ACK_TIMEOUT:
                self._end(Ending("no-suback", "broker does not answer a subscription"))
            elif now >= self._ping_at:
                # Whatever else is said: Keep Alive counts what we send (MQTT 5 3.1.2.10).
                self._ping_at = now + self._ping_interval
                self.subscriptions.ping()

    def _receive_packet(self, packet: Packet, now: float) -> None:
        subscriptions = self.subscriptions
        match packet:
            case ConnAckPacket() if self.state is State.CONNECTING:
                self._receive_connack(packet, now)
            case DisconnectPacket():
                self._receive_disconnect(packet)
            case _ if self.state is State.CONNECTING:
                self._receive_malformed(b"")
            case PublishPacket():
                subscriptions.receive_publication(packet)
            case PingRespPacket():
                subscriptions.receive_pingresp()
            case SubAckPacket():
                subscriptions.receive_suback(packet)
            case UnsubAckPacket():
                subscriptions.receive_unsuback(packet)
            case _:
                pass  # it only shows that the broker is there
        subscriptions.flush(now)

    def _receive_connack(self, packet: ConnAckPacket, now: float) -> None:
        if packet.reason_code is not ConnAckReasonCode.SUCCESS:
            self._receive_refusal(packet)
            return
        if packet.max_qos is QoS.AT_MOST_ONCE:
            self._end(_NO_QOS_1, DisconnectReasonCode.QOS_NOT_SUPPORTED)
            return
        self._will_retain = packet.retain_available
        keep_alive = packet.server_keep_alive
        if keep_alive is None:
            keep_alive = self._hello.keep_alive
        self._ping_interval = self._silence / 2
        if keep_alive:
            self._ping_interval = min(self._ping_interval, keep_alive / 2)
        self._ping_at = now + self._ping_interval
        self.receive_maximum = packet.receive_max
        self.state = State.CONNECTED
        topic = self._hello.status_topic
        self._publications.connected(
            receive_maximum=packet.receive_max,
            maximum_packet_size=packet.max_packet_size,
            retain_available=packet.retain_available,
            announcement=(topic, _status(self._wall, online=True)) if topic is not None else None,
            now=now,
            is_resumed=packet.session_present,
        )
        self.subscriptions.connected(is_resumed=packet.session_present)

    def _receive_refusal(self, packet: ConnAckPacket) -> None:
        code = packet.reason_code
        if code is ConnAckReasonCode.RETAIN_NOT_SUPPORTED and self._will_retain:
            self._will_retain = False  # the next CONNECT carries a Will without it
        lasting = code.value in _REFUSALS
        message, hint = _REFUSALS.get(code.value, ("broker refuses us", ""))
        if packet.server_reference:
            hint = f"it names {packet.server_reference[:MAX_QUOTED]!r} as the one to use"
        ending = Ending(f"connack-{code.value:#04x}", message, hint, _words(code), lasting)
        self._end(ending, reply=False)

    def _receive_disconnect(self, packet: DisconnectPacket) -> None:
        code = packet.reason_code
        if self.state is State.CONNECTED and code.value in _ACCUSING:
            self.blame = Blame.PROTOCOL_ERROR
        hint = ""
        if code is DisconnectReasonCode.SESSION_TAKEN_OVER:
            hint = "another client uses mqtt.client_id: give each gateway a node number of its own"
        ending = Ending(
            f"disconnect-{code.value:#04x}", "broker ended the connection", hint, _words(code)
        )
        self._end(ending, reply=False)

    def _receive_malformed(self, data: bytes) -> None:
        if self.state is State.CONNECTING and data.startswith(_MQTT_3_CONNACK):
            self._end(_NO_MQTT_5, reply=False)
        else:
            ending = Ending("malformed", "broker sent what is not MQTT 5", "is mqtt.url a broker?")
            self._end(ending, DisconnectReasonCode.MALFORMED_PACKET)

    def _end(
        self,
        ending: Ending,
        reason: DisconnectReasonCode = DisconnectReasonCode.UNSPECIFIED_ERROR,
        *,
        reply: bool = True,
    ) -> None:
        self.ending = ending
        self._forget_octets()
        self.subscriptions.lost()
        if reply and self.state is State.CONNECTED:
            self._outgoing.append(DisconnectPacket(reason_code=reason).write())
        self.state = State.OVER
        self._publications.stop_sending()

    def _forget_octets(self) -> None:
        self._buffer = b""
        self._chunks.clear()
        self._missing = 0

    def _will(self, wall: float) -> Will | None:
        topic = self._hello.status_topic
        if topic is None:
            return None
        return Will(
            topic,
            payload=_status(wall, online=False, reason="lost"),
            qos=QoS.AT_LEAST_ONCE,
            retain=self._will_retain,
            content_type="application/json",
        )


_GATEWAY_STOPS = Ending(STOPPED, "gateway stops")
_NO_CONNACK = Ending(
    "no-connack",
    "broker does not answer our CONNECT",
    "is mqtt.url a broker for MQTT 5 on this port, with mqtts:// if the port is for TLS?",
)
_NO_MQTT_5 = Ending(
    "mqtt-version",
    "broker does not speak MQTT 5",
    "coapgate needs it to learn what became of a publication: mosquitto does from 1.6 on",
    lasting=True,
)
_NO_QOS_1 = Ending(
    "no-qos-1",
    "broker takes publications at QoS 0 only",
    "2.04 means that the broker has the message, which QoS 0 cannot tell: allow QoS 1",
    lasting=True,
)

_CREDENTIALS = (
    "check mqtt.username and mqtt.password_file, and that the broker lets this user write to "
    "ROOT/$gateway/NODE/status"
)
_REFUSALS: dict[int, tuple[str, str]] = {
    ConnAckReasonCode.UNSUPPORTED_PROTOCOL_VERSION.value: (_NO_MQTT_5.message, _NO_MQTT_5.hint),
    ConnAckReasonCode.QUALITY_NOT_SUPPORTED.value: (_NO_QOS_1.message, _NO_QOS_1.hint),
    ConnAckReasonCode.BAD_USER_NAME_OR_PASSWORD.value: (
        "broker refuses user name or password",
        _CREDENTIALS,
    ),
    ConnAckReasonCode.NOT_AUTHORIZED.value: ("broker does not authorize us", _CREDENTIALS),
    ConnAckReasonCode.CLIENT_ID_NOT_VALID.value: (
        "broker refuses mqtt.client_id",
        "choose another",
    ),
}


def _missing(octets: bytes) -> int:
    """Octets that the packet which begins here still lacks, as far as its length is known."""
    length = 0
    for index in range(1, min(5, len(octets))):
        length |= (octets[index] & 0x7F) << 7 * (index - 1)
        if octets[index] < 0x80:
            return max(0, 1 + index + length - len(octets))
    return 0


def _words(code: enum.IntEnum) -> str:
    return f"{code.name.lower().replace('_', ' ')} ({code.value:#04x})"


def _status(wall: float, *, online: bool, reason: str | None = None) -> bytes:
    """The gateway's own status; that of a Will carries the time of the CONNECT."""
    at = datetime.fromtimestamp(wall, UTC).isoformat(timespec="milliseconds")
    status: dict[str, object] = {"at": at.replace("+00:00", "Z"), "online": online}
    if reason is not None:
        status["reason"] = reason
    return json.dumps(status).encode()
