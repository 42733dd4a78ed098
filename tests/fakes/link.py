"""A DTLS server and its clients joined by a fake wire with a clock of its own: no socket, no sleep.

    link = Link()
    device = link.connect(Client(PskKey(IDENTITY, KEY)))
    device.client.send(b"up")
    link.run(10.0)                         # ten seconds pass at once
    assert link.delivered == [(link.association, b"up")]

What happens to each datagram is its `Fate`: lost by script, or by chance with a fixed seed. The
server's events are answered from a table of keys and by a judge that accepts everybody, unless the
test brings its own.
"""

from __future__ import annotations

import enum
import heapq
import itertools
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from random import Random

from coapgate.dtls.association import Association
from coapgate.dtls.client import Client
from coapgate.dtls.events import (
    Candidate,
    ChainProven,
    Event,
    HandshakeFailed,
    KeyProven,
    KeysRequested,
)
from coapgate.dtls.server import Server, ServerSettings
from coapgate.errors import Reason
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Path

IDENTITY = b"sensor-1"
KEY = b"0123456789abcdef"
LATENCY = 0.01
"""Seconds a datagram takes if nothing else is said."""
MAX_STEPS = 100_000


class Direction(enum.Enum):
    TO_SERVER = "to server"
    TO_CLIENT = "to client"


Fate = Callable[[Direction, int, bytes], tuple[float, ...]]
"""How long each copy of a datagram takes, in seconds; none at all: it is lost.

It is told the direction, the number of the datagram in that direction (from 0), and its octets.
"""

Verdict = Identity | Reason | None
Judge = Callable[[KeyProven | ChainProven], Verdict]
"""Who was proven, why they are refused, or None: the test decides later."""


def delivered(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
    """The fate of every datagram on a good wire."""
    return (LATENCY,)


def losing(lost: Container[tuple[Direction, int]]) -> Fate:
    """A wire that loses the datagrams of these directions and numbers."""

    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        return () if (direction, number) in lost else (LATENCY,)

    return fate


def by_chance(
    seed: int, *, loss: float = 0.0, duplication: float = 0.0, reordering: float = 0.0
) -> Fate:
    """A bad wire: each share is of datagrams, in both directions; the seed chooses which."""
    chance = Random(seed)

    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        if chance.random() < loss:
            return ()
        copies = 2 if chance.random() < duplication else 1
        return tuple(
            LATENCY * (1 + 30 * chance.random()) if chance.random() < reordering else LATENCY
            for _ in range(copies)
        )

    return fate


def accepted(event: KeyProven | ChainProven) -> Verdict:
    """The judge that lets everybody in."""
    method = Method.PSK if isinstance(event, KeyProven) else Method.X509
    return Identity(DEFAULT_TENANT, DeviceId("sensor-1"), method, "test")


@dataclass(slots=True)
class Joined:
    """A client on the link; `plaintexts` is what it received."""

    client: Client
    path: Path
    plaintexts: list[bytes] = field(default_factory=list)


@dataclass(order=True, frozen=True, slots=True)
class _Arrival:
    at: float
    order: int
    direction: Direction = field(compare=False)
    datagram: bytes = field(compare=False)
    path: Path = field(compare=False)


class Link:
    """One server, any number of clients, and the datagrams between them.

    `sent` is everything that was put on the wire, with its time and direction, `events` all that
    the server reported, `delivered` the plaintexts it handed up, as (association, plaintext).
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        fate: Fate = delivered,
        keys: Mapping[bytes, tuple[bytes, ...]] | None = None,
        judge: Judge = accepted,
        random: Callable[[int], bytes] | None = None,
    ) -> None:
        self.now = 0.0
        self.fate = fate
        self.keys = {IDENTITY: (KEY,)} if keys is None else keys
        self.judge = judge
        self.delivered: list[tuple[Association, bytes]] = []
        self.events: list[Event] = []
        self.sent: list[tuple[float, Direction, bytes]] = []
        chosen = settings or ServerSettings()
        self.server = (
            Server(chosen, self._deliver)
            if random is None
            else Server(chosen, self._deliver, random)
        )
        self._joined: dict[Path, Joined] = {}
        self._wire: list[_Arrival] = []
        self._order = itertools.count()
        self._numbers = {direction: itertools.count() for direction in Direction}

    def join(self, client: Client, path: Path | None = None) -> Joined:
        """Put a client on the link, at an address of its own."""
        if path is None:
            path = (0, ("192.0.2.1", 49152 + len(self._joined)))
        joined = self._joined[path] = Joined(client, path)
        return joined

    def move(self, joined: Joined, path: Path) -> None:
        """Let a client speak from another address; what is under way to the old one is lost."""
        del self._joined[joined.path]
        joined.path = path
        self._joined[path] = joined

    # --- what tests ask for

    def datagrams(self, direction: Direction) -> list[bytes]:
        return [datagram for _, way, datagram in self.sent if way is direction]

    @property
    def failures(self) -> list[tuple[Reason, str]]:
        """Why handshakes failed, in their order."""
        return [(e.reason, e.detail) for e in self.events if isinstance(e, HandshakeFailed)]

    def of_kind(self, *kinds: type) -> list[Event]:
        """The events of these kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def association(self) -> Association:
        """The only association there is."""
        (association,) = self.server.associations
        return association

    # --- time

    def run(self, seconds: float, *, max_steps: int = MAX_STEPS) -> None:
        """Let so many seconds pass."""
        until = self.now + seconds
        self._settle()
        for _ in range(max_steps):
            due = self._next()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self._arrive()
            self._handle_timers()
            self._settle()
        else:
            raise AssertionError("the link does not come to rest")
        self.now = until

    def connect(self, client: Client, *, seconds: float = 0.5) -> Joined:
        """Join a client and let it connect."""
        joined = self.join(client)
        client.connect(self.now)
        self.run(seconds)
        return joined

    def inject(self, datagram: bytes, path: Path) -> None:
        """Somebody sends this to the server, now, and it arrives; its answers are on the wire."""
        self.server.receive_datagram(datagram, path, self.now)
        self._settle()

    def _next(self) -> float | None:
        timers = [self.server.next_timer(), *(j.client.next_timer() for j in self._joined.values())]
        due = [at for at in timers if at is not None]
        if self._wire:
            due.append(self._wire[0].at)
        return min(due, default=None)

    def _arrive(self) -> None:
        while self._wire and self._wire[0].at <= self.now:
            arrival = heapq.heappop(self._wire)
            if arrival.direction is Direction.TO_SERVER:
                self.server.receive_datagram(arrival.datagram, arrival.path, self.now)
            elif arrival.path in self._joined:
                joined = self._joined[arrival.path]
                joined.plaintexts += joined.client.receive_datagram(arrival.datagram, self.now)

    def _handle_timers(self) -> None:
        due = self.server.next_timer()
        if due is not None and due <= self.now:
            self.server.handle_timer(self.now)
        for joined in self._joined.values():
            due = joined.client.next_timer()
            if due is not None and due <= self.now:
                joined.client.handle_timer(self.now)

    # --- what the shell around the cores would do

    def _settle(self) -> None:
        """Answer the server's events and put everything on the wire that is to be sent."""
        events = self.server.events
        while events:
            self._answer(events.popleft())
        for datagram, path in self.server.outgoing:
            self._transmit(Direction.TO_CLIENT, datagram, path)
        self.server.outgoing.clear()
        for joined in self._joined.values():
            for datagram in joined.client.outgoing:
                self._transmit(Direction.TO_SERVER, datagram, joined.path)
            joined.client.outgoing.clear()

    def _answer(self, event: Event) -> None:
        self.events.append(event)
        match event:
            case KeysRequested(handshake, identity):
                if identity in self.keys:
                    candidates = tuple(Candidate(key, key) for key in self.keys[identity])
                    self.server.offer_keys(handshake, candidates, self.now)
                else:
                    self.server.offer_keys(handshake, (), self.now)
            case KeyProven(handshake) | ChainProven(handshake):
                verdict = self.judge(event)
                if isinstance(verdict, Identity):
                    self.server.accept(handshake, verdict, self.now)
                elif verdict is not None:
                    self.server.refuse(handshake, verdict, self.now)

    def _transmit(self, direction: Direction, datagram: bytes, path: Path) -> None:
        self.sent.append((self.now, direction, datagram))
        for delay in self.fate(direction, next(self._numbers[direction]), datagram):
            arrival = _Arrival(self.now + delay, next(self._order), direction, datagram, path)
            heapq.heappush(self._wire, arrival)

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        self.delivered.append((association, plaintext))
