"""Confirmable messages of ours; how they are timed is tested with the message layer."""

from __future__ import annotations

from random import Random

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.transmissions import Reliability, Transmissions
from tests.coap.gate import FakeAssociation, identity


def open_endpoint() -> Endpoint[FakeAssociation]:
    association = FakeAssociation(b"12345678", identity())
    return Endpoint(1, association, association.identity, association.id, 0)


def test_messages_that_are_over_do_not_pile_up() -> None:
    sent: list[bytes] = []
    transmissions: Transmissions[FakeAssociation] = Transmissions(
        lambda association, octets, now: sent.append(octets), Reliability(), Random(1)
    )
    endpoint = open_endpoint()
    for number in range(10_000):
        octets = b"\x40\x44" + number.to_bytes(2, "big")
        transmissions.send(endpoint, octets, number, b"", now=1.0)
        if number % 100:
            assert transmissions.take(endpoint, number) is not None

    assert len(sent) == 10_000
    assert len(transmissions) == 100
    assert len(endpoint.outgoing or {}) == 100
    assert len(transmissions._due) <= 2 * 100 + 1
    transmissions.cancel(endpoint)
    assert endpoint.outgoing is None
    assert len(transmissions) == 0
    assert transmissions.next_timer() is None


def test_what_is_over_is_neither_repeated_nor_given_up() -> None:
    transmissions: Transmissions[FakeAssociation] = Transmissions(
        lambda association, octets, now: None, Reliability(), Random(1)
    )
    endpoint = open_endpoint()
    transmissions.send(endpoint, b"\x40\x44\0\1", 1, b"", now=1.0)
    assert transmissions.take(endpoint, 1) is not None
    assert transmissions.take(endpoint, 1) is None

    assert transmissions.handle_timer(1000.0) == ([], [])
    assert transmissions.repeats == 0
    assert transmissions.next_timer() is None
