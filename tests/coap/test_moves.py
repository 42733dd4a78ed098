"""A device that moves while something is under way."""

from __future__ import annotations

from random import Random

import pytest

from coapgate.coap.messages import Settings
from coapgate.dtls.paths import UnprovenPath
from coapgate.model import Code, Outcome
from tests.coap.gate import (
    ACK,
    CON,
    CONTENT,
    ECHO,
    NON,
    OVERHEAD,
    RST,
    FakeAssociation,
    Gate,
    empty,
    get,
    uplink,
)

START = 100.0
DEDUP_EXCHANGES = 6


def test_a_device_that_moves_while_its_request_is_blocked_is_answered_where_it_is() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    endpoint.association.move(received=0)
    gate.receive(endpoint, uplink(), START + 0.1)  # repeated from the new path, while we wait
    assert gate.take() == []

    gate.conclude(START + 0.2)

    assert gate.take_one().code == Code.CHANGED
    assert len(gate.publisher.published) == 1
    assert gate.withheld == []


def test_a_device_that_moves_after_the_empty_ack_gets_its_separate_response_there() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    assert gate.take() == [empty(ACK, 1)]
    endpoint.association.move()
    gate.conclude(START + 1)
    response = gate.take_one()
    assert (response.mtype, response.code) == (CON, Code.CHANGED)

    gate.receive(endpoint, uplink(), START + 2)
    assert gate.take() == [empty(ACK, 1)]
    gate.receive(endpoint, empty(ACK, response.mid), START + 2)

    assert endpoint.association.unproven is None
    assert len(gate.publisher.published) == 1


class Walk:
    """A device with one association that does anything, at random, and knows all it ever heard.

    `went` says to which unproven paths each confirmable message went, None for a proven one.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.gate = Gate(Settings(dedup_exchanges=DEDUP_EXCHANGES))
        self.gate.on_transmit = self.transmit
        self.endpoint = self.gate.open()
        self.association = self.endpoint.association
        self.now = START
        self.went: dict[bytes, set[UnprovenPath | None]] = {}
        self.tickets: list[int] = []
        self.echoes = [b"\0" * 8]
        self.gate.publisher.on_publish = lambda publication: self.tickets.append(
            publication.ticket_number
        )

    def transmit(self, association: FakeAssociation, octets: bytes) -> None:
        if octets[0] < 0x50:
            self.went.setdefault(octets, set()).add(association.unproven)

    def may_prove(self, path: UnprovenPath, message_id: int, echo: bytes) -> bool:
        """Whether what the device told was told to nobody but who is at that path."""
        answers = message_id.to_bytes(2, "big")
        return echo == path.echo or any(
            paths == {path} for octets, paths in self.went.items() if octets[2:4] == answers
        )

    def step(self) -> tuple[int, bytes]:
        """Do something; returns the message ID and the Echo value that the device told, if any."""
        layer = self.gate.layer
        message_id, echo = 0, b""
        match self.random.randrange(9):
            case 0:
                self.echoes.append(self.random.randbytes(8))
                self.association.move(self.random.choice([0, 20, 60, 300]), self.echoes[-1])
            case 1 if self.association.unproven is not None:
                self.association.unproven.credit += self.random.randrange(4 * OVERHEAD)
            case 2:
                octets = uplink(self.random.randrange(40), self.random.choice([CON, NON]))
                layer.receive(self.endpoint, octets, self.now)
            case 3:
                echo = self.random.choice(self.echoes[-3:])
                octets = get(self.random.randrange(40), (ECHO, echo))
                layer.receive(self.endpoint, octets, self.now)
            case 4 if self.tickets:
                ticket = self.tickets.pop(self.random.randrange(len(self.tickets)))
                outcome = self.random.choice([0, 0x87, Outcome.UNAVAILABLE])
                layer.acknowledged(ticket, outcome, self.now)
            case 5 if self.gate.silent_site.asked:
                ticket, _ = self.gate.silent_site.asked.pop()
                layer.respond(ticket, Code.CONTENT, b"", CONTENT, self.now)
            case 6 if self.went:
                octets = self.random.choice(list(self.went)[-5:])
                message_id = int.from_bytes(octets[2:4], "big")
                octets = empty(self.random.choice([ACK, RST]), message_id)
                layer.receive(self.endpoint, octets, self.now)
            case _:
                self.now += self.random.choice([0.1, 1.0, 5.0])
                self.gate.run_timers(self.now)
        return message_id, echo


@pytest.mark.parametrize("seed", range(10))
def test_whatever_happens_only_what_went_to_a_path_and_to_no_other_proves_it(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(2000):
        message_id, echo = walk.step()
        for path in walk.gate.proven:
            assert walk.may_prove(path, message_id, echo)
        walk.gate.proven.clear()
        assert len(walk.endpoint.outgoing or {}) <= 2 * DEDUP_EXCHANGES + 1
        assert len(walk.endpoint.exchanges or {}) <= DEDUP_EXCHANGES

    assert len(walk.gate.layer.counts.path_proofs) >= 2
    assert walk.gate.layer.counts.path_pings > 0
    walk.gate.layer.close(walk.endpoint, START)
    assert walk.gate.layer.unfinished_exchanges == 0
