"""Whatever an authenticated device sends, the message layer neither raises nor grows.

`python -m tests.fuzz.fuzz_coap -max_total_time=60` runs it under atheris, `tests/properties` runs
it under hypothesis.
"""

from __future__ import annotations

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.exchanges import FINISHED
from coapgate.coap.messages import Settings
from coapgate.model import Code, Content, DeviceId, Outcome, Tenant
from tests.coap.gate import FakeAssociation, Gate

DEDUP_EXCHANGES = 4
MAX_PLAINTEXT = 128
OUTCOMES = (0x00, 0x10, 0x87, 0x90, 0x97, Outcome.UNAVAILABLE, Outcome.TOO_LARGE)
SETTINGS = Settings(
    dedup_exchanges=DEDUP_EXCHANGES,
    max_body=200,
    block_size=32,
    transfers=2,
    transfers_per_device=2,
    download_memory=300,
    observations_per_device=2,
    confirm_every=2,
)
PATHS = ("a", "b", "c")
SMALL, LARGE = Content.of(b"x", 0), Content.of(b"y" * 100, 42)
STATES = (SMALL, LARGE, Content.of(b"z" * 100, None), None)


def test_one_input(data: bytes) -> None:
    """A run: one octet says what happens next, then a length and a message if it is one."""
    gate = Gate(SETTINGS, rate=1.0, burst=8)
    gate.contents.states.update(a=SMALL, b=LARGE)
    endpoint = gate.open()
    endpoint.association.max_plaintext = MAX_PLAINTEXT
    now = 100.0
    position = requests = farewells = 0
    while position < len(data):
        action = data[position]
        position += 1
        if action < 0xC0:
            length = data[position] if position < len(data) else 0
            gate.contents.is_slow = bool(action & 1)
            gate.layer.receive(endpoint, data[position + 1 : position + 1 + length], now)
            position += 1 + length
        elif action < 0xD0:
            now += (action & 0x0F) ** 2
            for _ in range(100):
                due = gate.layer.next_timer()
                if due is None or due > now:
                    break
                gate.layer.handle_timer(now)
        elif action < 0xE0 and gate.publisher.published:
            ticket = gate.publisher.published.pop(action % len(gate.publisher.published)).ticket
            if ticket is not None:
                gate.layer.acknowledged(ticket, OUTCOMES[action % len(OUTCOMES)], now)
        elif action < 0xE8 and gate.silent_site.asked:
            ticket, _ = gate.silent_site.asked.pop()
            gate.layer.respond(ticket, 0x45, b"\xc0", b"x" * action, now)
        elif action < 0xF0 and gate.contents.asked:
            ticket, _ = gate.contents.asked.pop()
            gate.layer.respond_content(ticket, STATES[action & 3], now)
        elif action < 0xF8:
            state, path = STATES[action & 3], PATHS[action % len(PATHS)]
            told = gate.layer.notify(Tenant("default"), DeviceId("sensor-1"), path, state, now)
            farewells += told
        else:
            requests += 1
            body = b"x" * (50 * (action & 7))
            gate.layer.request(endpoint, Code.PUT, "a/b", "q=1", 60, body, requests, now)
        check(gate, endpoint, farewells)
    gate.layer.close(endpoint, now)
    check_end(gate, requests)


def check(gate: Gate, endpoint: Endpoint[FakeAssociation], farewells: int) -> None:
    """What must hold after every step."""
    exchanges, layer = endpoint.exchanges or {}, gate.layer
    unfinished = [exchange for exchange in exchanges.values() if exchange[0] != FINISHED]
    assert len(exchanges) <= DEDUP_EXCHANGES
    assert len(endpoint.outgoing or {}) <= 2 * DEDUP_EXCHANGES + 1 + farewells
    assert layer.unfinished_exchanges <= len(unfinished)
    assert len(layer.observations) <= SETTINGS.observations_per_device
    assert len(layer.assembly) <= SETTINGS.transfers_per_device
    assert layer.assembly.octets <= SETTINGS.transfers_per_device * SETTINGS.max_body
    assert layer.downloads.octets <= SETTINGS.download_memory
    assert len(layer.device_requests) <= SETTINGS.requests_per_device
    for publication in gate.publisher.published:
        assert publication.topic.startswith("coapgate/default/sensor-1/up/")
        assert len(publication.topic.encode()) <= 255
        assert len(publication.payload) <= SETTINGS.max_body
    gate.sent.clear()  # their length was checked on the way


def check_end(gate: Gate, requests: int) -> None:
    """What must hold when the device has gone."""
    layer = gate.layer
    assert layer.active_endpoints == 0
    assert layer.unfinished_exchanges == 0
    assert len(layer.observations) == len(layer.assembly) == len(layer.device_requests) == 0
    assert gate.contents.observed_paths == []
    assert gate.journal.kept == {}
    ended = [answer[0] for answer in gate.downlinks.answers]
    ended += [failure[0] for failure in gate.downlinks.failures]
    assert sorted(ended) == list(range(1, requests + 1))


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
