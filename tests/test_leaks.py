"""Sessions that came and went leave nothing behind but what is documented to stay a while."""

from __future__ import annotations

import gc
import secrets
import weakref
from collections import Counter

from coapgate.coap.aiocoap_bridge import Bridge
from coapgate.coap.rates import MAX_ABSENT
from coapgate.coap.resources import build_site
from coapgate.dtls.association import Association
from coapgate.dtls.client import PskKey
from coapgate.dtls.server import ServerSettings
from coapgate.dtls.warmth import WARM_TIME
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from coapgate.registry.memory import MemoryRegistry
from coapgate.simulated.message import Kind, Message, request_options
from tests.pumped import WALL, Gate, Peer, post, pumping
from tests.waiting import until

SESSIONS = 1000
HELLO = Message(Kind.CON, Code.GET, 2, b"tk", request_options((b"hello",)))

OURS = "coapgate."
STAY = {"coapgate.coap.rates.Allowance"}
"""What of a device stays when its last session is gone, MAX_ABSENT of them at most: who comes back
within seconds finds the allowance of requests as it was."""


def keys(registry: MemoryRegistry, count: int) -> list[PskKey]:
    made = [PskKey(b"sensor-%d" % number, secrets.token_bytes(16)) for number in range(count)]
    for number, key in enumerate(made):
        registry.add_psk(
            DEFAULT_TENANT,
            DeviceId(f"sensor-{number}"),
            key.identity,
            key.secret,
            create_device=True,
        )
    return made


def census() -> Counter[str]:
    """How many objects of ours there are, by class."""
    gc.collect()
    classes = (type(each) for each in gc.get_objects())
    names = (f"{each.__module__}.{each.__qualname__}" for each in classes)
    return Counter(name for name in names if name.startswith(OURS))


def live(gate: Gate, peer: Peer) -> None:
    """What a session may have when it ends: answers, and requests that are not answered yet."""
    gate.send(peer, post(1))
    gate.acknowledge()
    gate.send(peer, HELLO)
    gate.pump.respond(gate.site.asked.pop(), Code.CONTENT, b"", b"you")
    gate.turn()
    gate.send(peer, HELLO)
    gate.send(peer, post(3))
    gate.publisher.published.clear()
    gate.publisher.properties.clear()


def session(gate: Gate, key: PskKey) -> tuple[Peer, weakref.ref[Association]]:
    peer = gate.connect(key)
    association = gate.associations[-1]
    assert association.identity.device == key.identity.decode()
    live(gate, peer)
    return peer, weakref.ref(association)


async def test_a_thousand_sessions_that_said_goodbye_leave_nothing() -> None:
    registry = MemoryRegistry()
    first, *others = keys(registry, 1 + SESSIONS)
    async with pumping(registry) as gate:
        peer, _ = session(gate, first)
        before = census()

        references = []
        for key in others:
            leaving, reference = session(gate, key)
            references.append(reference)
            leaving.client.close()
            gate.turn()
            gate.leave(leaving)
        del leaving
        # The last ones are known as warm for a while; what they held of keys is gone.
        gate.wait(WARM_TIME)
        after = census()

        assert gate.pump.detached == {"peer": SESSIONS}
        assert peer.client.is_established
    assert [reference for reference in references if reference() is not None] == []
    left = after - before
    assert set(left) <= STAY
    assert left.total() <= SESSIONS <= MAX_ABSENT


async def test_sessions_are_freed_without_the_garbage_collector() -> None:
    registry = MemoryRegistry()
    (key,) = keys(registry, 1)
    async with pumping(registry) as gate:
        gc.disable()
        try:
            peer, reference = session(gate, key)
            peer.client.close()
            gate.turn()
            gate.wait(WARM_TIME)
            assert reference() is None
        finally:
            gc.enable()


async def test_the_sites_handles_hold_no_session() -> None:
    """aiocoap may keep the handle of a device for 247 s (EXCHANGE_LIFETIME)."""
    before = census()
    registry = MemoryRegistry()
    references = []
    async with (
        pumping(registry) as gate,
        Bridge(build_site(lambda: WALL), gate.pump.respond) as site,
    ):
        gate.site.answering = site
        for key in keys(registry, 50):
            peer = gate.connect(key)
            references.append(weakref.ref(gate.associations[-1]))
            gate.send(peer, HELLO)
            await until(lambda: gate.wakes == len(references), "the Site answers")
            gate.turn()
            assert len(peer.received) == 1
            peer.client.close()
            gate.turn()
            gate.leave(peer)
        gate.wait(WARM_TIME)
        left = census() - before

    assert [reference for reference in references if reference() is not None] == []
    assert {name for name in left if "Endpoint" in name} == set()


async def test_answers_for_those_who_left_go_nowhere_and_hold_nothing() -> None:
    registry = MemoryRegistry()
    (key,) = keys(registry, 1)
    async with pumping(registry) as gate:
        peer, reference = session(gate, key)
        gate.wait(1.0)  # what was not answered in time is answered separately
        peer.client.close()
        gate.turn()
        gate.leave(peer)

        for ticket in gate.site.asked:
            gate.pump.respond(ticket, Code.CONTENT, b"", b"you")
        gate.acknowledge()
        gate.wait(WARM_TIME)
        gc.collect()

        assert reference() is None
        assert gate.pump.outgoing == []
        assert gate.layer.next_timer() is None


async def test_a_thousand_handshakes_that_came_to_nothing_leave_nothing() -> None:
    registry = MemoryRegistry()
    keys(registry, 1)
    settings = ServerSettings(max_handshakes=100, handshakes_per_address=100)
    async with pumping(registry, settings) as gate:
        gate.leave(gate.join(PskKey(b"sensor-0", bytes(16))))
        gate.wait(200.0)
        before = census()

        for number in range(SESSIONS):
            identity = (b"sensor-0", b"nobody")[number % 2]
            gate.leave(gate.join(PskKey(identity, bytes(16))))
        assert gate.pump.server.handshake_count == 100
        gate.wait(90.0)
        gate.wait(10.0)

        assert gate.pump.refusals.total() == 1 + SESSIONS
        assert census() - before == Counter()
        assert gate.pump.next_timer() is None


async def test_a_session_that_is_replaced_evicted_or_surplus_is_freed_too() -> None:
    registry = MemoryRegistry()
    one, *others = keys(registry, 60)
    references = []
    async with pumping(
        registry, ServerSettings(max_associations=20), associations_per_device=5
    ) as gate:
        peer, reference = session(gate, one)
        references.append(reference)
        for key in 10 * [one] + others:
            _, reference = session(gate, key)
            references.append(reference)
        session(gate, others[0])
        gate.connect(others[1], peer.path)
        gate.connect(others[2], peer.path)
        gate.wait(WARM_TIME)
        gc.collect()

        alive = [reference for reference in references if reference() is not None]
        assert set(gate.pump.detached) == {"replaced", "evicted", "surplus"}
        assert gate.pump.server.association_count == 20
        assert len(alive) <= 20
        assert len(gate.pump.sessions) <= 20
