"""Loss, duplication, reordering and moves on a fake link: nothing is published twice."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from aiocoap import Message

from coapgate.coap.messages import Settings
from coapgate.dtls.paths import AMPLIFICATION, UnprovenPath
from coapgate.model import Code
from tests.coap.gate import (
    ACK,
    CON,
    NON,
    OVERHEAD,
    RST,
    FakeAssociation,
    Gate,
    Publication,
    empty,
    message,
)

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
            self.send(empty(RST if answer.code == Code.EMPTY else ACK, answer.mid))
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


class Roaming:
    """Numbers a device's records, moves its association with them, and says where answers go.

    `heard` are the unproven paths at which the device got something while it was there.
    """

    def __init__(self, world: World, gate: Gate) -> None:
        self.world = world
        self.gate = gate
        self.endpoint = gate.open()
        self.association = self.endpoint.association
        self.device_at = 0
        self.gateway_at = 0
        self.sequence = 0
        self.received: set[int] = set()
        self.heard: list[UnprovenPath | None] = []
        self.moves = 0
        self.device = Device(world, self.from_device, CON)
        gate.on_transmit = self.to_device

    def roam(self) -> None:
        """Another address for the device, every now and then, until it has all its answers."""
        if len(self.device.answered) < REQUESTS:
            self.device_at += 1
            self.world.at(self.world.random.uniform(1.0, 20.0), self.roam)

    def from_device(self, octets: bytes) -> None:
        self.sequence += 1
        sequence, address = self.sequence, self.device_at
        self.world.carry(lambda octets: self.arrive(octets, sequence, address), octets)

    def arrive(self, octets: bytes, sequence: int, address: int) -> None:
        if sequence in self.received:
            return
        is_newest = sequence > max(self.received, default=0)
        self.received.add(sequence)
        size = len(octets) + OVERHEAD
        if is_newest and address != self.gateway_at:
            self.gateway_at = address
            self.moves += 1
            self.association.move(size)
        elif is_newest and self.association.unproven is not None:
            self.association.unproven.credit += AMPLIFICATION * size
        before = self.association.unproven
        self.gate.layer.receive(self.endpoint, octets, self.world.now)
        if self.association.unproven is not before:
            assert before in self.heard

    def to_device(self, association: FakeAssociation, octets: bytes) -> None:
        address, path = self.gateway_at, association.unproven

        def deliver(octets: bytes) -> None:
            if address == self.device_at:
                self.heard.append(path)
                self.device.receive(octets)

        self.world.carry(deliver, octets)


@pytest.mark.parametrize("seed", range(12))
def test_a_roaming_device_gets_its_answers_and_only_proves_paths_at_which_it_heard_us(
    seed: int,
) -> None:
    world = World(seed)
    gate = Gate(Settings(dedup_exchanges=8))
    roaming = Roaming(world, gate)
    published: list[Publication] = []

    def publish(publication: Publication) -> None:
        published.append(publication)
        world.at(
            world.random.choice([0.001, 0.01, 2.0, 6.0]),
            lambda: gate.layer.acknowledged(publication.ticket_number, 0, world.now),
        )

    gate.publisher.on_publish = publish
    roaming.device.ask()
    roaming.roam()
    world.run(gate)

    assert len(roaming.device.answered) == REQUESTS
    assert set(Counter(p.payload for p in published).values()) == {1}
    assert roaming.moves > 20
    assert sum(gate.layer.counts.path_proofs.values()) > 0
