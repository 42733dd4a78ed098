"""Loss, duplication and reordering on a fake link: nothing is published twice."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from aiocoap import Message

from coapgate.coap.messages import Settings
from coapgate.model import Code
from tests.coap.gate import ACK, CON, NON, FakeAssociation, Gate, Publication, empty, message

REQUESTS = 40
ACK_TIMEOUT = 2.0
MAX_RETRANSMIT = 4


class World:
    """A clock and what is to happen; the link loses, duplicates and delays."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = 1000.0
        self._order = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, delay: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + delay, self._order, event))

    def carry(self, deliver: Callable[[bytes], None], octets: bytes) -> None:
        """One datagram: 30 % are lost, of the others 30 % arrive twice, up to 3 s late."""
        if self.random.random() < 0.3:
            return
        for _ in range(2 if self.random.random() < 0.3 else 1):
            self.at(self.random.uniform(0.01, 3.0), lambda: deliver(octets))

    def run(self, gate: Gate) -> None:
        while self._events:
            due = gate.layer.next_timer()
            if due is not None and due <= self._events[0][0]:
                self.now = max(self.now, due)
                gate.layer.handle_timer(due)
            else:
                self.now, _, event = heapq.heappop(self._events)
                event()


class Device:
    """A client after RFC 7252: one request at a time, repeated, and asked again if it failed."""

    def __init__(self, world: World, send: Callable[[bytes], None], kind: int) -> None:
        self.world = world
        self.send = send
        self.kind = kind
        self.message_id = world.random.getrandbits(16)
        self.request = 0
        self.token = b""
        self.waits_for_ack = False
        self.answered: list[bytes] = []
        self.failed: list[bytes] = []

    def ask(self) -> None:
        """The next request, or the last one again under a new message ID and token."""
        if len(self.answered) == REQUESTS:
            return
        self.message_id = self.message_id + 1 & 0xFFFF
        self.request += 1
        self.token = self.request.to_bytes(2, "big")
        octets = message(
            self.kind, Code.POST, self.message_id, "a", token=self.token, payload=self.token
        )
        self.waits_for_ack = self.kind == CON
        token = self.token
        if self.kind == CON:
            timeout = ACK_TIMEOUT * self.world.random.uniform(1.0, 1.5)
            self.repeat(octets, token, timeout, MAX_RETRANSMIT)
        else:
            self.send(octets)
        self.world.at(100.0, lambda: self.give_up(token))

    def repeat(self, octets: bytes, token: bytes, timeout: float, left: int) -> None:
        if self.token == token and self.waits_for_ack:
            self.send(octets)
            if left:
                self.world.at(timeout, lambda: self.repeat(octets, token, timeout * 2, left - 1))

    def give_up(self, token: bytes) -> None:
        if self.token == token:
            self.failed.append(token)
            self.ask()

    def receive(self, octets: bytes) -> None:
        answer = Message.decode(octets)
        if answer.mtype == CON:
            self.send(empty(ACK, answer.mid))
        if answer.mtype == ACK and answer.mid == self.message_id:
            self.waits_for_ack = False
        if answer.code == Code.CHANGED and answer.token == self.token:
            self.answered.append(self.token)
            self.token = b""
            self.world.at(0.2, self.ask)


@pytest.mark.parametrize("kind", [CON, NON])
@pytest.mark.parametrize("seed", range(8))
def test_nothing_is_published_twice_and_what_is_answered_was_published(
    seed: int, kind: int
) -> None:
    world = World(seed)
    gate = Gate(Settings(dedup_exchanges=8))
    endpoint = gate.open()
    device = Device(
        world, lambda o: world.carry(lambda o: gate.layer.receive(endpoint, o, world.now), o), kind
    )
    published: list[Publication] = []

    def publish(publication: Publication) -> None:
        published.append(publication)
        world.at(
            world.random.choice([0.001, 0.01, 2.0, 6.0]),
            lambda: gate.layer.acknowledged(publication.ticket_number, 0, world.now),
        )

    def transmit(association: FakeAssociation, octets: bytes) -> None:
        world.carry(device.receive, octets)

    gate.publisher.on_publish = publish
    gate.on_transmit = transmit
    device.ask()
    world.run(gate)

    ids = Counter(dict(p.user_properties)["message-id"] for p in published)
    payloads = Counter(p.payload for p in published)
    assert set(ids.values()) == {1}
    assert set(payloads.values()) == {1}
    assert len(device.answered) == REQUESTS
    assert set(device.answered) <= set(payloads)
    assert gate.layer.counts.duplicates > 0
