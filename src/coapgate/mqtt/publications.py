"""Publications on their way to the broker.

Each is *held* until the connection has room, then *in flight* until its PUBACK, and ends exactly
once: with the broker's reason code, or with one of our own outcomes. Nothing is sent after it
ended. Order is order of acceptance throughout, which makes every deadline a look at the oldest.

Suspicion. A broker may end the connection over a publication it dislikes instead of refusing it;
sent again and again, that one would keep everybody off the broker. So whatever was in flight when
the broker ended a connection is marked: 2 for a protocol error, 1 for a bare cut, which more often
is a broker that died. From 2 on a publication is sent alone, so that guilt is certain; at 4 it is
poison. After two protocol errors, or four cuts, that is; and nobody else pays for it.
"""

from __future__ import annotations

import enum
import logging
from collections import deque

from mqtt5 import PublishPacket, QoS, read

from coapgate.model import Outcome
from coapgate.mqtt.subscriptions import SUBSCRIBE_ID

log = logging.getLogger(__name__)

MAX_PACKET_IDS = 65535
"""What 16 bits can tell apart: more publications than this never wait at once (MQTT 5 2.2.1)."""

MAX_PACKET_SIZE = 1 << 28
"""What a broker takes that announces no Maximum Packet Size (MQTT 5 2.1.4)."""

SUCCESS = 0x00
TOPIC_NAME_INVALID = 0x90
_REFUSED = 0x80
_DUP = 0x08
"""The flag of a PUBLISH that may have been sent before (MQTT 5 3.3.1.1)."""
_SUSPECT = 2
_POISON = 4
_COMPLAINT_INTERVAL = 60.0
"""Seconds between two log lines about one reason code."""


class Blame(enum.IntEnum):
    """How much the end of a connection says against what was in flight."""

    NONE = 0
    CUT = 1
    PROTOCOL_ERROR = 2


class Publication:
    """One encoded PUBLISH; `ticket` None: nobody asks what became of it."""

    __slots__ = ("accepted_at", "mark", "packet", "packet_id", "sent_at", "ticket")

    def __init__(
        self, packet: bytes, packet_id: int | None, ticket: int | None, accepted_at: float
    ) -> None:
        self.packet = packet
        self.packet_id = packet_id
        self.ticket = ticket
        self.accepted_at = accepted_at
        self.sent_at: float | None = None
        self.mark = 0

    @property
    def topic(self) -> str:
        """For the log, in ASCII; read back from the packet, since only refusals want it."""
        packet, _ = read(memoryview(self.packet))
        assert isinstance(packet, PublishPacket)
        return packet.topic.encode("ascii", "backslashreplace").decode()


class Publications:
    """All publications of one worker that have not ended.

    Whoever calls a method then writes `outgoing` to the broker, and hands on `ended`, pairs of
    ticket and outcome; both are lists to be emptied. At most `hold_messages` publications, and
    `hold_size` octets of them, wait at once: the next one ends as unavailable. One that waited
    `hold_time` seconds to be sent ends as unavailable too, be the broker absent or too slow for
    what comes in. Time in flight has no bound here: a connected broker is waited for, and
    `client` decides when it counts as gone.
    """

    def __init__(
        self,
        *,
        hold_time: float,
        hold_messages: int,
        hold_size: int = 64 << 20,
        max_in_flight: int = 256,
    ) -> None:
        self.outgoing: list[bytes] = []
        self.ended: list[tuple[int, int]] = []
        self.accepted = 0
        self.acknowledged = 0
        """Ended by a PUBACK below 0x80."""
        self.unheard = 0
        """Those among the acknowledged that nobody had subscribed to (0x10)."""
        self.refused: dict[int, int] = {}
        """Reason code of a PUBACK from 0x80 on -> how many."""
        self.unavailable = 0
        self.poison = 0
        self.too_large = 0
        self.repeated = 0
        """Sent again after a connection was lost."""
        self._hold_time = hold_time
        self._hold_messages = hold_messages
        self._hold_size = hold_size
        self._max_in_flight = max_in_flight
        # The last ones belong to the announcement and to subscriptions. Reused as late as possible.
        self._packet_ids = deque(range(1, min(max_in_flight + hold_messages + 1, SUBSCRIBE_ID)))
        self._held: deque[Publication] = deque()
        self._held_size = 0
        self._in_flight: dict[int, Publication] = {}
        self._announcement = Publication(b"", MAX_PACKET_IDS, None, 0.0)
        self._announcing = True
        self._suspects = 0
        self._accepting = True
        self._connected = False
        self._is_resumed = False
        self._writable = True
        self._window = 0
        self._receive_maximum = 0
        self._maximum_packet_size = MAX_PACKET_SIZE
        self._retain_available = True
        self._complained_at: dict[int, float] = {}

    @property
    def maximum_packet_size(self) -> int:
        """Octets of the largest packet that the broker takes."""
        return self._maximum_packet_size

    @property
    def in_flight(self) -> int:
        """How many were sent and have no PUBACK yet."""
        return len(self._in_flight)

    @property
    def held(self) -> int:
        """How many wait to be sent."""
        return len(self._held)

    @property
    def suspects(self) -> int:
        """How many the broker may have ended a connection over; see the module."""
        return self._suspects

    @property
    def oldest_sent_at(self) -> float | None:
        """When the one that has waited longest for its PUBACK was sent."""
        for publication in self._in_flight.values():
            return publication.sent_at
        return None

    @property
    def next_timer(self) -> float | None:
        """When `expire` has something to do."""
        return self._held[0].accepted_at + self._hold_time if self._held else None

    def publish(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
        now: float,
        correlation_data: bytes | None = None,
    ) -> None:
        """Take one publication; `user_properties` is not kept.

        At QoS 0 it ends when it is sent, as success.
        """
        if not self._accepting and (ticket is None or ticket >= 0):
            self._end_unavailable(ticket)
            return
        free = not self._held and len(self._in_flight) < self._window
        if not free and not self._may_hold():
            self._end_unavailable(ticket)
            return
        packet_id: int | None = None
        if qos:
            if not self._packet_ids:
                self._end_unavailable(ticket)
                return
            packet_id = self._packet_ids.popleft()
        try:
            packet = PublishPacket(
                topic,
                payload,
                qos=QoS.AT_LEAST_ONCE if qos else QoS.AT_MOST_ONCE,
                retain=retain and self._retain_available,
                packet_id=packet_id,
                content_type=content_type,
                user_properties=user_properties,
                correlation_data=correlation_data,
            ).write()
        except ValueError:
            # No MQTT string; `topics` lets none through, so this is a mistake of ours.
            if packet_id is not None:
                self._packet_ids.append(packet_id)
            self._end(ticket, TOPIC_NAME_INVALID)
            return
        self.accepted += 1
        publication = Publication(packet, packet_id, ticket, now)
        if free:
            self._send(publication, now)
        else:
            self._held.append(publication)
            self._held_size += len(packet)

    def connected(
        self,
        *,
        receive_maximum: int,
        maximum_packet_size: int | None,
        retain_available: bool,
        announcement: tuple[str, bytes] | None,
        now: float,
        is_resumed: bool = False,
    ) -> None:
        """The broker took our CONNECT: send the announcement, then what may be sent.

        `is_resumed`: it remembers the last connection's session.

        The announcement is the gateway's own status, topic and JSON, retained. It belongs to this
        connection: it is never held and never repeated. A broker that ends connections over it is
        not told any more.
        """
        self._connected = True
        self._is_resumed = is_resumed
        self._receive_maximum = receive_maximum
        self._maximum_packet_size = maximum_packet_size or MAX_PACKET_SIZE
        self._retain_available = retain_available
        self._open_window()
        if announcement is not None and self._announcing:
            self._announce(*announcement, now)
        self._send_held(now)

    def acknowledge(self, packet_id: int, reason_code: int, now: float) -> None:
        """A PUBACK came. One that answers nothing in flight is ignored."""
        publication = self._in_flight.pop(packet_id, None)
        if publication is None:
            return
        self._release(publication)
        if reason_code >= _REFUSED:
            self._count_refused(publication, reason_code, now)
        else:
            self.acknowledged += 1
            if reason_code:
                self.unheard += 1
        if publication.ticket is not None:
            self.ended.append((publication.ticket, reason_code))
        if self._held:
            self._send_held(now)

    def stop_sending(self) -> None:
        """The connection is over but for its end: whatever comes now is for the next one."""
        self._connected = False
        self._open_window()

    def lost(self, blame: Blame, now: float) -> None:
        """The connection is gone: what was in flight waits again, or ends as poison."""
        self._connected = False
        self._writable = True
        self.outgoing.clear()
        in_flight = list(self._in_flight.values())
        self._in_flight.clear()
        for publication in reversed(in_flight):
            self._suspect(publication, blame)
            if publication.mark >= _POISON:
                self._drop_poison(publication)
            elif publication is self._announcement:
                continue
            else:
                self._held.appendleft(publication)
                self._held_size += len(publication.packet)
        self._open_window()
        self.expire(now)

    def set_writable(self, writable: bool, now: float) -> None:
        """Whether the way to the broker has room; without it everything is held."""
        self._writable = writable
        self._open_window()
        self._send_held(now)

    def expire(self, now: float) -> None:
        """End what has waited for `hold_time`."""
        while self._held and self._held[0].accepted_at + self._hold_time <= now:
            self._give_up(self._next_held())

    def stop_accepting(self) -> None:
        """From now on whatever devices send ends as unavailable.

        What the gateway itself has to say, with a ticket below 0, is still taken.
        """
        self._accepting = False

    def abandon(self) -> None:
        """End everything that is left as unavailable, in flight or not."""
        left = [*self._in_flight.values()]
        self._in_flight.clear()
        while self._held:
            left.append(self._next_held())
        for publication in left:
            if publication is not self._announcement:
                self._give_up(publication)

    def _may_hold(self) -> bool:
        return len(self._held) < self._hold_messages and self._held_size < self._hold_size

    def _open_window(self) -> None:
        """How many may be in flight now: while there are suspects, one."""
        if not (self._connected and self._writable):
            self._window = 0
        elif self._suspects:
            self._window = 1
        else:
            self._window = min(self._receive_maximum, self._max_in_flight)

    def _announce(self, topic: str, payload: bytes, now: float) -> None:
        publication = self._announcement
        publication.packet = PublishPacket(
            topic,
            payload,
            qos=QoS.AT_LEAST_ONCE,
            retain=self._retain_available,
            packet_id=publication.packet_id,
            content_type="application/json",
        ).write()
        publication.sent_at = None
        self._send(publication, now)

    def _send_held(self, now: float) -> None:
        while self._held and len(self._in_flight) < self._window:
            self._send(self._next_held(), now)

    def _next_held(self) -> Publication:
        publication = self._held.popleft()
        self._held_size -= len(publication.packet)
        return publication

    def _send(self, publication: Publication, now: float) -> None:
        packet = publication.packet
        packet_id = publication.packet_id
        if len(packet) > self._maximum_packet_size:
            self._release(publication)
            self.too_large += 1
            self._end(publication.ticket, Outcome.TOO_LARGE)
        elif packet_id is None:
            self.outgoing.append(packet)
            self._end(publication.ticket, SUCCESS)
        else:
            if publication.sent_at is not None:
                self.repeated += 1
                # To a broker without memory of the old connection it is new (MQTT 5 4.4).
                first = packet[0] | _DUP if self._is_resumed else packet[0] & ~_DUP
                packet = publication.packet = bytes((first,)) + packet[1:]
            self.outgoing.append(packet)
            publication.sent_at = now
            self._in_flight[packet_id] = publication

    def _release(self, publication: Publication) -> None:
        """It has ended: its packet identifier is free, and it is under suspicion no longer."""
        packet_id = publication.packet_id
        if packet_id is not None and packet_id != MAX_PACKET_IDS:
            self._packet_ids.append(packet_id)
        if publication.mark:
            if publication.mark >= _SUSPECT:
                self._suspects -= 1
                self._open_window()
            publication.mark = 0

    def _suspect(self, publication: Publication, blame: Blame) -> None:
        before = publication.mark
        publication.mark += blame
        if before < _SUSPECT <= publication.mark:
            self._suspects += 1

    def _drop_poison(self, publication: Publication) -> None:
        log.warning("publication dropped as poison", extra={"topic": publication.topic})
        self.poison += 1
        if publication is self._announcement:
            self._announcing = False
        self._release(publication)
        self._end(publication.ticket, Outcome.POISON)

    def _give_up(self, publication: Publication) -> None:
        self._release(publication)
        self._end_unavailable(publication.ticket)

    def _end_unavailable(self, ticket: int | None) -> None:
        self.unavailable += 1
        self._end(ticket, Outcome.UNAVAILABLE)

    def _end(self, ticket: int | None, outcome: int) -> None:
        if ticket is not None:
            self.ended.append((ticket, int(outcome)))

    def _count_refused(self, publication: Publication, reason_code: int, now: float) -> None:
        count = self.refused.get(reason_code, 0) + 1
        self.refused[reason_code] = count
        complained_at = self._complained_at.get(reason_code)
        if complained_at is None or now - complained_at >= _COMPLAINT_INTERVAL:
            self._complained_at[reason_code] = now
            log.warning(
                "broker refuses publications",
                extra={
                    "reason_code": f"0x{reason_code:02x}",
                    "topic": publication.topic,
                    "count": count,
                },
            )
