"""What an endpoint costs."""

from __future__ import annotations

import gc
import tracemalloc

from coapgate.model import Code
from tests.coap.gate import CON, Gate, message

IDLE_SIZE = 400
"""Octets; of the 4 KiB that an idle association may take DTLS needs about 2 KiB."""


def test_an_idle_endpoint_that_once_was_busy_is_small() -> None:
    count = 200
    gate = Gate(max_absent=0)
    associations = [
        gate.open(f"sensor-{n}", n.to_bytes(8, "big")).association for n in range(count)
    ]
    gate.sent.clear()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        endpoints = [gate.layer.open(a, a.identity, a.id) for a in associations]
        for endpoint in endpoints:
            for message_id in range(70):
                octets = message(CON, Code.POST, message_id * 300, "a/b", payload=b"x" * 100)
                gate.layer.receive(endpoint, octets, 100.0)
                ticket = gate.publisher.published.pop().ticket_number
                gate.layer.acknowledged(ticket, 0, 100.0)
        gate.sent.clear()
        gate.answers.clear()
        gate.run_timers(100.0 + 2 * 247.0)
        gc.collect()
        size = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()

    assert gate.layer.active_endpoints == 0
    assert size < IDLE_SIZE


def test_no_object_that_the_collector_visits_is_kept_for_a_request() -> None:
    gate = Gate()
    endpoint = gate.open()

    def forward(message_id: int) -> None:
        gate.layer.receive(
            endpoint, message(CON, Code.POST, message_id, "a/b", payload=b"x"), 100.0
        )
        gate.layer.acknowledged(gate.publisher.published.pop().ticket_number, 0, 100.0)
        gate.sent.clear()
        gate.answers.clear()

    forward(1)
    gc.collect()
    before = len(gc.get_objects())
    for message_id in range(2, 62):
        forward(message_id)
    gc.collect()

    assert endpoint.exchanges is not None
    assert len(endpoint.exchanges) == 61
    assert len(gc.get_objects()) <= before


def test_an_endpoint_says_whose_it_is() -> None:
    assert repr(Gate().open()) == "<Endpoint 0102030405060708 default/sensor-1>"
