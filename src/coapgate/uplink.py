"""What becomes of a message from a device: one publication, one response code."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

from coapgate.errors import RequestRefused
from coapgate.model import Code, Identity, Method, Outcome
from coapgate.mqtt import topics
from coapgate.rights import RightsTable, Rule

RETRY_AFTER = (2, 60)
"""Seconds between which a refused device is told to come back, so that not all come at once."""
PROPERTIES_LENGTH = 1024
"""Octets kept free for topic and properties when a device is told how much the broker takes."""

_REFUSED_FROM = 0x80
"""PUBACK reason codes below it are success (MQTT 5 section 3.4.2.1)."""
_NOT_AUTHORIZED = 0x87
_TOPIC_NAME_INVALID = 0x90
_PAYLOAD_FORMAT_INVALID = 0x99

_AUTH_PROPERTIES = {method: ("auth", method.value) for method in Method}
_METHOD_PROPERTIES: dict[int, tuple[str, str]] = {
    Code.POST: ("coap-method", "POST"),
    Code.PUT: ("coap-method", "PUT"),
}


class Publisher(Protocol):
    """Where publications go; the outcome of each with a ticket comes back to `conclude`."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
    ) -> None:
        """Take one publication; never raises, never blocks."""


class Source:
    """What is the same for every uplink of one association.

    `room` is the octets a path may take in a topic, `may_post` which paths the device may send to,
    None: all. Whatever can be made from these in less time than a dictionary is asked is not kept:
    thousands of devices have a source each.
    """

    __slots__ = ("association_id", "identity", "may_post", "prefix", "room")

    def __init__(
        self, identity: Identity, association_id: bytes, root: str, may_post: Rule | None = None
    ) -> None:
        self.identity = identity
        self.association_id = association_id
        self.may_post = may_post
        self.prefix = topics.uplink_prefix(root, identity.tenant, identity.device)
        self.room = topics.MAX_TOPIC_LENGTH - len(self.prefix.encode())


class Uplinks:
    """What devices send, on its way to the broker.

    `begin` comes first in every tick of the loop, `conclude` once for every publication with a
    ticket. `outcomes` counts publications by what `conclude` was told, `forwarded` all of them.
    """

    def __init__(
        self,
        publisher: Publisher,
        root: str,
        max_packet_size: Callable[[], int | None] = lambda: None,
        jitter: Callable[[int, int], int] = random.randint,
        rights: RightsTable | None = None,
    ) -> None:
        self._rights = rights or RightsTable({})
        self._publisher = publisher
        self._root = root
        self._max_packet_size = max_packet_size
        self._jitter = jitter
        self._wall = 0.0
        self._received_at: tuple[str, str] | None = None
        self._second = -1
        self._second_text = ""
        self.forwarded = 0
        self.forbidden = 0
        """Messages to paths that their device has no right to."""
        self.outcomes: dict[int, int] = {}

    def begin(self, wall: float) -> None:
        """Start a tick: everything forwarded in it was received at `wall` (Unix seconds)."""
        self._wall = wall
        self._received_at = None

    @property
    def wall(self) -> float:
        """When this tick began, in Unix seconds."""
        return self._wall

    def source(self, identity: Identity, association_id: bytes) -> Source:
        """Prepare for the uplinks of one association."""
        may_post = self._rights.of(identity.tenant).post
        return Source(identity, association_id, self._root, may_post)

    def check(self, source: Source, path: Sequence[bytes]) -> str:
        """The path as it stands in a topic, before anything is sent to it.

        Raises RequestRefused: 4.00 or 4.04 as `topics.uplink_path` does, 4.03 without the right.
        """
        text = topics.uplink_path(path, source.room)
        self._check_right(source, text)
        return text

    def forward(
        self,
        source: Source,
        method: int,
        path: Sequence[bytes],
        query: Sequence[bytes],
        payload: bytes,
        *,
        content_type: str | None,
        content_format: int | None,
        message_id: int,
        token: bytes,
        ticket: int | None,
    ) -> None:
        """Publish one message of a device, at QoS 0 if there is no `ticket`, else at QoS 1.

        `content_format` is given if it has no Content Type. The user property `message-id` is the
        association id, the message ID and the token in hex, joined by `-`: 16, 4 and 0 to 16
        digits. Every repetition of one exchange has the same.

        Raises RequestRefused if the path or the query cannot be part of a publication, or the
        device may not send there.
        """
        topic = source.prefix + topics.uplink_path(path, source.room)
        if source.may_post is not None:
            self._check_right(source, topic[len(source.prefix) :])
        received_at = self._received_at
        if received_at is None:
            received_at = self._received_at = ("received-at", self._render_time())
        identity = source.identity
        properties: list[tuple[str, str]] = [
            ("tenant", identity.tenant),
            ("device", identity.device),
            _AUTH_PROPERTIES[identity.method],
            ("credential", identity.credential),
            _METHOD_PROPERTIES[method],
        ]
        if query:
            properties.append(("coap-query", topics.query_text(query)))
        if content_format is not None:
            properties.append(("content-format", str(content_format)))
        properties.append(received_at)
        properties.append(
            (
                "message-id",
                f"{source.association_id.hex()}-{message_id:04x}-{token.hex()}",
            ),
        )
        self.forwarded += 1
        self._publisher.publish(
            topic,
            payload,
            qos=0 if ticket is None else 1,
            content_type=content_type,
            user_properties=properties,
            ticket=ticket,
        )

    def _check_right(self, source: Source, path: str) -> None:
        if source.may_post is not None and not source.may_post.allows(path):
            self.forbidden += 1
            raise RequestRefused(Code.FORBIDDEN, "not allowed")

    def _render_time(self) -> str:
        """The tick's time, UTC with milliseconds, as RFC 3339 section 5.6 writes it."""
        second = int(self._wall)
        if second != self._second:
            # Once a second: this takes ten times as long as the rest.
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._second_text}.{int((self._wall - second) * 1000):03}Z"

    def conclude(self, outcome: int) -> RequestRefused | None:
        """What the device is told: None is 2.04, the broker has it.

        `outcome` is a PUBACK reason code or an Outcome.
        """
        outcomes = self.outcomes
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome < _REFUSED_FROM:
            return None
        if outcome == _NOT_AUTHORIZED:
            return RequestRefused(Code.FORBIDDEN, "not allowed by the broker")
        if outcome in (_TOPIC_NAME_INVALID, _PAYLOAD_FORMAT_INVALID):
            return RequestRefused(Code.BAD_REQUEST, "refused by the broker")
        if outcome == Outcome.TOO_LARGE:
            most = self._max_packet_size()
            return RequestRefused(
                Code.REQUEST_ENTITY_TOO_LARGE,
                "too large for the broker",
                size1=None if most is None else max(0, most - PROPERTIES_LENGTH),
            )
        return RequestRefused(
            Code.SERVICE_UNAVAILABLE, "try again later", max_age=self._jitter(*RETRY_AFTER)
        )
