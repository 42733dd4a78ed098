"""What is kept of a request, so that its repetition is not carried out again.

One `bytes` by message ID, which the garbage collector has no reason to visit: a state, when it
expires in seconds of `now`, and in the last state the octets that answer a repetition.

    UNANSWERED    CON, nothing sent yet             a repetition is not answered
    ACKNOWLEDGED  CON, empty ACK sent, response     a repetition gets the empty ACK again
                  to come or under way
    UNRELIABLE    NON, response to come             a repetition is not answered
    FINISHED                                        a repetition gets what is kept, if anything

    UNANSWERED -> response -> FINISHED (piggybacked)
    UNANSWERED -> ack_delay -> ACKNOWLEDGED -> ACK or RST of the response, or none -> FINISHED
    UNRELIABLE -> response -> FINISHED
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable
from math import inf
from typing import Generic, NamedTuple

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.header import CON
from coapgate.coap.rates import DeviceRates
from coapgate.model import Identity
from coapgate.uplink import Source

UNANSWERED = 0
ACKNOWLEDGED = 1
UNRELIABLE = 2
FINISHED = 3

EXCHANGE = struct.Struct("!Bd")
"""State, and when the exchange is forgotten. FINISHED: the answer to repetitions follows."""
UNFINISHED = struct.Struct("!BdQB")
"""As above, then ticket and No-Response; the token follows."""

_PURGES_AT_ONCE = 64
"""Idle endpoints tidied up in one call, so that many of them never hold up the loop."""
_ROUNDING = 1e-3
"""Seconds by which an empty ACK may be early."""


def finished(expires_at: float, answer: bytes) -> bytes:
    """An exchange whose repetitions get `answer`; empty: none."""
    return EXCHANGE.pack(FINISHED, expires_at) + answer


def acknowledged(exchange: bytes) -> bytes:
    """An unanswered exchange after its empty ACK."""
    return bytes((ACKNOWLEDGED,)) + exchange[1:]


def make_room(exchanges: dict[int, bytes]) -> bool:
    """Forget the oldest finished exchange; False if all are unfinished."""
    for message_id, exchange in exchanges.items():
        if exchange[0] == FINISHED:
            del exchanges[message_id]
            return True
    return False


class Additions(NamedTuple):
    """What a response will have besides its own: options, and content only the block `wanted`."""

    options: tuple[tuple[int, bytes], ...]
    wanted: Block | None


class Exchanges(Generic[A]):
    """The exchanges of all endpoints, from their admission until they are forgotten.

    At most `capacity` of each endpoint; one of a CON lasts `lifetime` seconds, of a NON
    `non_lifetime`. `unacknowledged` are those in UNANSWERED by ticket, oldest first, and `ack_at`
    is when the first of them may be late; `awaited` are the others without a response. `additions`
    are what a few of them will have in their response. Whoever responds takes them out.
    """

    def __init__(
        self,
        source: Callable[[Identity, bytes], Source],
        rates: DeviceRates,
        *,
        capacity: int,
        ack_delay: float,
        lifetime: float,
        non_lifetime: float,
    ) -> None:
        self.unacknowledged: dict[int, Endpoint[A]] = {}
        self.awaited: dict[int, Endpoint[A]] = {}
        self.ack_at = inf
        self.additions: dict[int, Additions] = {}
        self._source = source
        self._rates = rates
        self._capacity = capacity
        self._ack_delay = ack_delay
        self._lifetime = lifetime
        self._non_lifetime = non_lifetime
        self._sequence = 0
        self._active: OrderedDict[int, Endpoint[A]] = OrderedDict()  # by number, next purge first

    @property
    def active_endpoints(self) -> int:
        """Endpoints of which something is remembered."""
        return len(self._active)

    def admit(
        self,
        endpoint: Endpoint[A],
        kind: int,
        message_id: int,
        token: bytes,
        no_response: int,
        now: float,
    ) -> int:
        """Enter a new exchange and return its ticket; 0: no room, all others are unfinished."""
        exchanges = endpoint.exchanges
        if exchanges is None:
            exchanges = self._wake(endpoint, now)
        elif len(exchanges) >= self._capacity and not make_room(exchanges):
            return 0
        self._sequence += 1
        ticket = self._sequence << 16 | message_id
        if kind == CON:
            state, expires_at = UNANSWERED, now + self._lifetime
            if not self.unacknowledged:
                self.ack_at = now + self._ack_delay
            self.unacknowledged[ticket] = endpoint
        else:
            state, expires_at = UNRELIABLE, now + self._non_lifetime
            self.awaited[ticket] = endpoint
        exchanges[message_id] = UNFINISHED.pack(state, expires_at, ticket, no_response) + token
        return ticket

    def restore(
        self, endpoint: Endpoint[A], answers: Iterable[tuple[int, float, bytes]], now: float
    ) -> None:
        """Enter what an earlier process finished: the newest, as far as there is room.

        The endpoint has received nothing yet. Each is a message ID, when it expires, and what
        answers its repetition. None lasts longer than if it had begun now: the clock that told how
        old it is may have gone back.
        """
        assert endpoint.exchanges is None
        latest = now + self._lifetime
        restored = {
            message_id: finished(min(expires_at, latest), octets)
            for message_id, expires_at, octets in sorted(answers, key=lambda answer: answer[1])
            if now < expires_at
        }
        if restored:
            newest = tuple(restored.items())[-self._capacity :]
            self._wake(endpoint, now).update(newest)

    def take_late(self, now: float) -> list[tuple[Endpoint[A], int]]:
        """Whom to send an empty ACK now, and of which message ID: they are ACKNOWLEDGED."""
        self.ack_at = inf
        received_before = now - self._ack_delay + _ROUNDING
        late: list[int] = []
        for ticket, endpoint in self.unacknowledged.items():
            assert endpoint.exchanges is not None
            entry = endpoint.exchanges[ticket & 0xFFFF]
            received_at = EXCHANGE.unpack_from(entry)[1] - self._lifetime
            if received_at > received_before:
                self.ack_at = received_at + self._ack_delay
                break
            late.append(ticket)
        taken = []
        for ticket in late:
            endpoint = self.awaited[ticket] = self.unacknowledged.pop(ticket)
            message_id = ticket & 0xFFFF
            assert endpoint.exchanges is not None
            endpoint.exchanges[message_id] = acknowledged(endpoint.exchanges[message_id])
            taken.append((endpoint, message_id))
        return taken

    def forget(self, endpoint: Endpoint[A], message_id: int, entry: bytes) -> None:
        """Drop an exchange; an answer that still comes goes nowhere."""
        assert endpoint.exchanges is not None
        del endpoint.exchanges[message_id]
        if entry[0] != FINISHED:
            ticket = UNFINISHED.unpack_from(entry)[2]
            self.unacknowledged.pop(ticket, None)
            self.awaited.pop(ticket, None)
            self.additions.pop(ticket, None)

    def find(self, ticket: int) -> Endpoint[A] | None:
        """Whose request it is that has no response yet; None: it was forgotten."""
        return self.unacknowledged.get(ticket) or self.awaited.get(ticket)

    def close(self, endpoint: Endpoint[A]) -> None:
        """Drop all exchanges of an endpoint."""
        if endpoint.exchanges is not None:
            for message_id, entry in tuple(endpoint.exchanges.items()):
                self.forget(endpoint, message_id, entry)
            del self._active[endpoint.number]
            self._rest(endpoint)

    def next_purge(self) -> float:
        """When `purge` has something to do, infinity if never."""
        return next(iter(self._active.values())).purge_at if self._active else inf

    def purge(self, now: float) -> None:
        """Forget what is old; an endpoint without any exchange left is idle."""
        for _ in range(min(_PURGES_AT_ONCE, len(self._active))):
            endpoint = next(iter(self._active.values()))
            if endpoint.purge_at > now:
                break
            self._purge(endpoint, now)

    def _purge(self, endpoint: Endpoint[A], now: float) -> None:
        exchanges = endpoint.exchanges
        assert exchanges is not None
        for message_id, entry in tuple(exchanges.items()):
            if EXCHANGE.unpack_from(entry)[1] <= now:
                self.forget(endpoint, message_id, entry)
        del self._active[endpoint.number]
        if exchanges:
            endpoint.purge_at = now + self._lifetime
            self._active[endpoint.number] = endpoint
        else:
            self._rest(endpoint)

    def _wake(self, endpoint: Endpoint[A], now: float) -> dict[int, bytes]:
        """Give an idle endpoint what an active one has."""
        endpoint.exchanges = {}
        endpoint.source = self._source(endpoint.identity, endpoint.association_id)
        endpoint.allowance = self._rates.join(endpoint.identity)
        endpoint.purge_at = now + self._lifetime
        self._active[endpoint.number] = endpoint
        return endpoint.exchanges

    def _rest(self, endpoint: Endpoint[A]) -> None:
        assert endpoint.allowance is not None
        self._rates.leave(endpoint.identity, endpoint.allowance)
        endpoint.exchanges = endpoint.source = endpoint.allowance = None
