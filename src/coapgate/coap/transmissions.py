"""Our own confirmable messages, repeated until they are acknowledged: RFC 7252 section 4.2."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Generic, Protocol

from coapgate.coap.endpoint import A, Endpoint

if TYPE_CHECKING:
    from coapgate.dtls.paths import UnprovenPath

MAX_LATENCY = 100.0
"""Seconds a datagram may be under way (RFC 7252 section 4.8.2)."""
_FEW = 64
"""Cancelled ones that are not worth tidying up for."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Transmission parameters (RFC 7252 section 4.8), in seconds; raise them for a slow radio."""

    ack_timeout: float = 2.0
    ack_random_factor: float = 1.5
    max_retransmit: int = 4

    @property
    def transmit_span(self) -> float:
        """From the first transmission to the last (MAX_TRANSMIT_SPAN)."""
        return self.ack_timeout * ((1 << self.max_retransmit) - 1) * self.ack_random_factor

    @property
    def exchange_lifetime(self) -> float:
        """How long a CON's message ID means that exchange: 247 s by default."""
        return self.transmit_span + 2 * MAX_LATENCY + self.ack_timeout

    @property
    def non_lifetime(self) -> float:
        """How long a NON's message ID means that message: 145 s by default."""
        return self.transmit_span + MAX_LATENCY


class Owner(Protocol):
    """Whose message it is, if it answers no request; exactly one of the first three ends it."""

    def acknowledged(self, now: float) -> None:
        """An empty ACK has come."""

    def reset(self, now: float) -> None:
        """A RST has come."""

    def given_up(self, now: float) -> None:
        """It was repeated often enough."""

    def renew(self, now: float) -> bytes | None:
        """What is to be sent in place of a repetition, with another message ID; None: the same."""


class Transmission(Generic[A]):
    """One message under way; without an endpoint once it is over.

    `exchange` is what the message layer keeps of the request that it answers, `owner` whose it is
    otherwise; a ping has neither. `proves` is the unproven path that it was first sent to, and so
    is sent to alone for as long as the association has not moved on; None: it was proven, or
    nothing has left.
    """

    __slots__ = (
        "endpoint",
        "exchange",
        "has_left",
        "message_id",
        "octets",
        "owner",
        "proves",
        "repeats",
        "request_id",
        "timeout",
    )

    def __init__(
        self,
        endpoint: Endpoint[A],
        message_id: int,
        octets: bytes,
        request_id: int,
        exchange: bytes | None,
        timeout: float,
        owner: Owner | None = None,
    ) -> None:
        self.owner = owner
        self.endpoint: Endpoint[A] | None = endpoint
        self.message_id = message_id
        self.octets = octets
        self.request_id = request_id
        self.exchange = exchange
        self.timeout = timeout
        self.repeats = 0
        self.has_left = False
        self.proves: UnprovenPath | None = None

    @property
    def is_ping(self) -> bool:
        return self.exchange is None and self.owner is None


class Transmissions(Generic[A]):
    """Sends, repeats with doubled delays, gives up; the answers to it come from `take`."""

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        reliability: Reliability,
        random: Random,
    ) -> None:
        self._transmit = transmit
        self._reliability = reliability
        self._random = random
        self._due: list[tuple[float, int, Transmission[A]]] = []
        self._order = 0
        self._over = 0
        self.repeats = 0
        self.renewals = 0
        """Messages sent in place of a repetition of an older one."""

    def __len__(self) -> int:
        """Messages under way."""
        return len(self._due) - self._over

    def send(
        self,
        endpoint: Endpoint[A],
        octets: bytes,
        request_id: int,
        exchange: bytes | None,
        now: float,
        owner: Owner | None = None,
    ) -> Transmission[A]:
        """Send a confirmable message; its message ID was taken from the endpoint."""
        timeout = self._reliability.ack_timeout * self._random.uniform(
            1.0, self._reliability.ack_random_factor
        )
        message_id = int.from_bytes(octets[2:4], "big")
        transmission = Transmission(
            endpoint, message_id, octets, request_id, exchange, timeout, owner
        )
        if endpoint.outgoing is None:
            endpoint.outgoing = {}
        endpoint.outgoing[message_id] = transmission
        self._push(transmission, now + timeout)
        self._carry(transmission, endpoint.association, now)
        return transmission

    def drop(self, transmission: Transmission[A]) -> None:
        """End a message that needs no answer any more, if it is still under way."""
        if transmission.endpoint is not None:
            self.take(transmission.endpoint, transmission.message_id)

    def take(self, endpoint: Endpoint[A], message_id: int) -> Transmission[A] | None:
        """End the message that an ACK or RST names; None if there is no such message."""
        outgoing = endpoint.outgoing
        transmission = outgoing.get(message_id) if outgoing is not None else None
        if transmission is not None:
            self._end(transmission, endpoint)
            self._over += 1
            self._tidy_up()
        return transmission

    def cancel(self, endpoint: Endpoint[A]) -> None:
        """End all messages to an endpoint that is no more."""
        for transmission in tuple((endpoint.outgoing or {}).values()):
            self._end(transmission, endpoint)
            self._over += 1
        self._tidy_up()

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do at the earliest."""
        return self._due[0][0] if self._due else None

    def handle_timer(
        self, now: float
    ) -> tuple[list[tuple[Endpoint[A], Transmission[A]]], list[Endpoint[A]]]:
        """Repeat what is due.

        Returns the messages that were repeated often enough and are given up, and the endpoints
        to which something could not leave, for want of a proven path. It is repeated as if it had.
        """
        given_up: list[tuple[Endpoint[A], Transmission[A]]] = []
        withheld: list[Endpoint[A]] = []
        while self._due and self._due[0][0] <= now:
            transmission = heapq.heappop(self._due)[2]
            endpoint = transmission.endpoint
            is_ping = transmission.is_ping
            if endpoint is None:
                self._over -= 1
            elif is_ping and transmission.proves is not endpoint.association.unproven:
                self._end(transmission, endpoint)  # nothing depends on its answer any more
            elif transmission.repeats == self._reliability.max_retransmit:
                self._end(transmission, endpoint)
                if not is_ping:
                    given_up.append((endpoint, transmission))
            else:
                transmission.repeats += 1
                transmission.timeout *= 2
                self._renew(transmission, endpoint, now)
                self._push(transmission, now + transmission.timeout)
                if not self._carry(transmission, endpoint.association, now):
                    withheld.append(endpoint)
                elif not is_ping:
                    self.repeats += 1
        return given_up, withheld

    def _renew(self, transmission: Transmission[A], endpoint: Endpoint[A], now: float) -> None:
        """Let a newer message go on in place of one that is to be repeated (RFC 7641 4.5.2)."""
        octets = None if transmission.owner is None else transmission.owner.renew(now)
        if octets is None:
            return
        assert endpoint.outgoing is not None
        del endpoint.outgoing[transmission.message_id]
        transmission.octets = octets
        transmission.message_id = int.from_bytes(octets[2:4], "big")
        transmission.has_left = False
        transmission.proves = None
        endpoint.outgoing[transmission.message_id] = transmission
        self.renewals += 1

    def _carry(self, transmission: Transmission[A], association: A, now: float) -> bool:
        """Send it once more, or for the first time; False: it is withheld below."""
        path = association.unproven
        leaves = path is None or association.can_send(len(transmission.octets))
        if leaves and not transmission.has_left:
            transmission.has_left = True
            transmission.proves = path
        self._transmit(association, transmission.octets, now)
        return leaves

    def _push(self, transmission: Transmission[A], due: float) -> None:
        self._order += 1
        heapq.heappush(self._due, (due, self._order, transmission))

    def _end(self, transmission: Transmission[A], endpoint: Endpoint[A]) -> None:
        assert endpoint.outgoing is not None
        del endpoint.outgoing[transmission.message_id]
        if not endpoint.outgoing:
            endpoint.outgoing = None
        transmission.endpoint = None

    def _tidy_up(self) -> None:
        """Messages that are over wait in the heap for their time, but never outnumber the rest."""
        if self._over > _FEW and self._over * 2 > len(self._due):
            self._due = [entry for entry in self._due if entry[2].endpoint is not None]
            heapq.heapify(self._due)
            self._over = 0
