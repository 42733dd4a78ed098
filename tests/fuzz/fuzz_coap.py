"""Whatever an authenticated device sends, the message layer neither raises nor grows.

`python -m tests.fuzz.fuzz_coap -max_total_time=60` runs it under atheris, `tests/properties` runs
it under hypothesis.
"""

from __future__ import annotations

from coapgate.coap.exchanges import FINISHED
from coapgate.coap.messages import Settings
from coapgate.model import Outcome
from tests.coap.gate import Gate

DEDUP_EXCHANGES = 4
MAX_PLAINTEXT = 64
OUTCOMES = (0x00, 0x10, 0x87, 0x90, 0x97, Outcome.UNAVAILABLE, Outcome.TOO_LARGE)


def test_one_input(data: bytes) -> None:
    """A run: one octet says what happens next, then a length and a message if it is one."""
    gate = Gate(Settings(dedup_exchanges=DEDUP_EXCHANGES), rate=1.0, burst=8)
    endpoint = gate.open()
    endpoint.association.max_plaintext = MAX_PLAINTEXT
    now = 100.0
    position = 0
    while position < len(data):
        action = data[position]
        position += 1
        if action < 0xC0:
            length = data[position] if position < len(data) else 0
            gate.layer.receive(endpoint, data[position + 1 : position + 1 + length], now)
            position += 1 + length
        elif action < 0xD0:
            now += (action & 0x0F) ** 2
            for _ in range(100):
                due = gate.layer.next_timer()
                if due is None or due > now:
                    break
                gate.layer.handle_timer(now)
        elif gate.publisher.published:
            ticket = gate.publisher.published.pop(action % len(gate.publisher.published)).ticket
            if ticket is not None:
                gate.layer.acknowledged(ticket, OUTCOMES[action % len(OUTCOMES)], now)
        elif gate.silent_site.asked:
            ticket, _ = gate.silent_site.asked.pop()
            gate.layer.respond(ticket, 0x45, b"\xc0", b"x" * action, now)
        check(gate, endpoint.exchanges or {}, len(endpoint.outgoing or {}))
    gate.layer.close(endpoint, 10.0)
    assert gate.layer.active_endpoints == 0
    assert gate.layer.unfinished_exchanges == 0


def check(gate: Gate, exchanges: dict[int, bytes], outgoing: int) -> None:
    """What must hold after every step."""
    unfinished = [exchange for exchange in exchanges.values() if exchange[0] != FINISHED]
    assert len(exchanges) <= DEDUP_EXCHANGES
    assert outgoing <= 2 * DEDUP_EXCHANGES
    assert gate.layer.unfinished_exchanges <= len(unfinished)
    for publication in gate.publisher.published:
        assert publication.topic.startswith("coapgate/default/sensor-1/up/")
        assert len(publication.topic.encode()) <= 255
    gate.sent.clear()  # their length was checked on the way


if __name__ == "__main__":
    from tests.fuzz.running import fuzz

    fuzz(test_one_input, __file__)
