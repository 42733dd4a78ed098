"""What observers cost: memory for each, calls for a notification to one of many."""

from __future__ import annotations

from dataclasses import dataclass

from coapgate.coap.endpoint import Endpoint
from coapgate.model import Code, Content, DeviceId, Tenant
from tests.coap.gate import ACK, CON, FakeAssociation, Gate, empty, identity, message
from tests.guard.counting import Calls, Memory, still, tracked

START = 100.0
ROUNDS = 50
TENANT = Tenant("default")


@dataclass(frozen=True, slots=True)
class Observers:
    """What one observer takes, and what one notification to one of them costs."""

    octets: float
    objects: float
    calls: float


def measure_observers(count: int) -> Observers:
    """Of `count` devices, each with one association that observes one path."""
    with still(), Memory() as memory:
        gate = Gate()
        gate.contents.states["led"] = Content.of(b"off", 0)
        endpoints = [_open(gate, number) for number in range(count)]
        for endpoint in endpoints:
            gate.receive(endpoint, message(CON, Code.GET, 1, "time"), START)
            gate.layer.respond(gate.silent_site.asked.pop()[0], Code.CONTENT, b"", b"now", START)
        gate.sent.clear()
        octets, objects = memory.now(), tracked()
        for number, endpoint in enumerate(endpoints):
            gate.contents.states["led"] = Content.of(b"state %d" % number, 0)
            token = number.to_bytes(4, "big")
            octets_of_registration = message(
                CON, Code.GET, 2, "led", token=token, options=((6, b""),)
            )
            gate.receive(endpoint, octets_of_registration, START)
        gate.sent.clear()
        gate.contents.asked.clear()
        gate.contents.observed_paths.clear()
        gate.journal.kept.clear()
        octets, objects = memory.now() - octets, tracked() - objects
    assert len(gate.layer.observations) == count
    # The first after a registration is written to the journal.
    chosen = [number * count // ROUNDS for number in range(ROUNDS)]
    for at in chosen:
        _notify(gate, endpoints[at], at, ROUNDS + at)
    with still(), Calls() as calls:
        for number, at in enumerate(chosen):
            _notify(gate, endpoints[at], at, number)
    return Observers(octets / count, objects / count, calls.python.total() / ROUNDS)


def _open(gate: Gate, number: int) -> Endpoint[FakeAssociation]:
    name = f"sensor-{number}"
    association = FakeAssociation(number.to_bytes(8, "big"), identity(name))
    return gate.layer.open(association, association.identity, association.id)


def _notify(gate: Gate, endpoint: Endpoint[FakeAssociation], at: int, number: int) -> None:
    """One notification, and its acknowledgement."""
    content = Content.of(b"on %d" % number, 0)
    assert gate.layer.notify(TENANT, DeviceId(f"sensor-{at}"), "led", content, START + 1) == 1
    ((_, octets),) = gate.sent
    gate.sent.clear()
    gate.receive(endpoint, empty(ACK, int.from_bytes(octets[2:4], "big")), START + 1)
    assert endpoint.outgoing is None
