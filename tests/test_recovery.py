"""Which associations of an earlier process go on, and what they remember."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import ClientSettings, PskKey
from coapgate.dtls.counters import Drop
from coapgate.dtls.server import ServerSettings
from coapgate.errors import RegistryUnavailable, StartError
from coapgate.model import DEFAULT_TENANT, DeviceId, Path, PskCredential
from coapgate.registry.memory import MemoryRegistry
from tests.dtls.store_memory import Memory, blank
from tests.pumped import WALL, Gate, Peer, changed, post, pumping

MOVING = ClientSettings(connection_id=b"")
HOME: Path = (0, ("192.0.2.1", 49152))
AWAY: Path = (0, ("198.51.100.7", 5000))
IDLE_TIMEOUT = 3600.0


class Books(MemoryRegistry):
    """A registry that can be made to fail."""

    def __init__(self) -> None:
        super().__init__(wall=lambda: WALL)
        self.fault: Exception | None = None

    async def find_psk_number(self, number: int) -> PskCredential | None:
        if self.fault is not None:
            raise self.fault
        return await super().find_psk_number(number)


class House:
    """A registry and the memory of a store, in which one gate after the other lives."""

    def __init__(self) -> None:
        self.registry = Books()
        self.memory = Memory(blank(64))

    def add_psk(self, device: str = "sensor-1") -> PskKey:
        key = PskKey(device.encode(), secrets.token_bytes(16))
        self.registry.add_psk(
            DEFAULT_TENANT, DeviceId(device), key.identity, key.secret, create_device=True
        )
        return key

    @asynccontextmanager
    async def gate(
        self,
        *,
        wall: float = WALL,
        max_associations: int = 100,
        associations_per_device: int = 4,
        sockets: int = 1,
    ) -> AsyncIterator[Gate]:
        """Dies without a word at the end, as by SIGKILL."""
        self.memory = Memory(bytes(self.memory))
        settings = ServerSettings(idle_timeout=IDLE_TIMEOUT, max_associations=max_associations)
        async with pumping(
            self.registry,
            settings,
            associations_per_device=associations_per_device,
            store=self.memory.store(),
            wall=wall,
        ) as gate:
            await gate.pump.recover(lambda path: path[0] < sockets)
            yield gate


@pytest.fixture
def house() -> House:
    return House()


def names(gate: Gate) -> list[str]:
    return [association.identity.device for association in gate.associations]


async def settled(
    house: House, *devices: str, settings: ClientSettings | None = None
) -> list[Peer]:
    """Devices that are let in by a gate that dies then, one second after the other."""
    keys = [house.add_psk(device) for device in devices]
    async with house.gate() as gate:
        peers = []
        for key in keys:
            peers.append(gate.connect(key, settings=settings))
            gate.wall += 1.0
        assert gate.pump.stored == len(devices)
    return peers


async def test_a_device_goes_on_where_it_was_without_a_handshake(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")

    async with house.gate() as gate:
        gate.adopt(peer)
        gate.send(peer, post(1))
        gate.acknowledge()

        assert peer.received == [changed(1)]
        assert gate.pump.recovered == 1
        assert gate.pump.server.counters.handshakes_completed == 0
        assert len(gate.pump.sessions) == 1


async def test_no_send_number_is_used_again(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")
    numbers: list[int] = []
    for start in range(5):
        async with house.gate() as gate:
            gate.adopt(peer)
            for message_id in range(70):
                gate.pump.begin()
                peer.client.send(post(100 * start + message_id).encode())
                gate.pump.receive_datagram(peer.client.outgoing.pop(), peer.path, gate.now)
                gate.pump.acknowledged(gate.publisher.tickets.pop(), 0)
                numbers += [int.from_bytes(d[5:11], "big") for d, _ in gate.pump.outgoing]
                gate.pump.outgoing.clear()

    assert len(numbers) == 350
    assert len(set(numbers)) == 350
    assert numbers == sorted(numbers)


async def test_no_record_is_accepted_twice(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")
    async with house.gate() as gate:
        gate.adopt(peer)
        peer.client.send(post(1).encode())
        recorded = peer.client.outgoing[-1]
        gate.turn()
        assert len(gate.publisher.tickets) == 1

    async with house.gate() as gate:
        gate.pump.receive_datagram(recorded, peer.path, gate.now)

        assert gate.publisher.tickets == []
        assert gate.pump.server.counters.dropped[Drop.REPLAYED] == 1


async def test_what_came_out_of_order_before_counts_as_seen(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")
    async with house.gate() as gate:
        peer.client.send(post(1).encode())
        peer.client.send(post(2).encode())
        older, newer = peer.client.outgoing
        peer.client.outgoing.clear()
        gate.pump.receive_datagram(newer, peer.path, gate.now)

    async with house.gate() as gate:
        gate.pump.receive_datagram(older, peer.path, gate.now)

        assert gate.pump.server.counters.dropped[Drop.REPLAYED] == 1


async def test_a_device_is_where_it_moved_to_and_has_to_prove_it_still(house: House) -> None:
    (peer,) = await settled(house, "sensor-1", settings=MOVING)
    async with house.gate() as gate:
        gate.adopt(peer)
        gate.move(peer, AWAY)
        gate.send(peer, post(1))

    async with house.gate() as gate:
        (association,) = gate.associations
        assert association.path == AWAY
        assert association.unproven is not None
        assert not association.can_send(0)


async def test_a_path_that_had_proven_itself_needs_no_proof_again(house: House) -> None:
    (peer,) = await settled(house, "sensor-1", settings=MOVING)
    async with house.gate() as gate:
        gate.adopt(peer)
        gate.move(peer, AWAY)
        gate.send(peer, post(1))
        gate.pump.server.traffic.prove_path(gate.associations[0])

    async with house.gate() as gate:
        assert gate.associations[0].unproven is None


@pytest.mark.parametrize(
    ("took", "age", "repeated"),
    [(0.0, 0.0, True), (0.0, 246.0, True), (0.0, 247.0, False), (200.0, 47.0, False)],
)
async def test_a_repetition_gets_the_same_answer_for_the_lifetime_of_its_message_id(
    house: House, took: float, age: float, *, repeated: bool
) -> None:
    """It begins with the request, however long the broker took."""
    assert Reliability().exchange_lifetime == 247.0
    (peer,) = await settled(house, "sensor-1")
    async with house.gate() as gate:
        gate.adopt(peer)
        gate.send(peer, post(1))
        gate.now += took
        gate.wall += took
        gate.pump.begin()
        gate.acknowledge()

    async with house.gate(wall=WALL + took + age) as gate:
        gate.adopt(peer)
        peer.received.clear()
        gate.send(peer, post(1))

        assert (peer.received == [changed(1)]) is repeated
        assert (gate.publisher.tickets == []) is repeated


async def test_what_was_not_answered_is_carried_out_under_the_same_message_id(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")
    ids = []
    for _ in range(2):
        async with house.gate() as gate:
            gate.adopt(peer)
            gate.send(peer, post(1))
            (properties,) = gate.publisher.properties
            ids.append(properties["message-id"])

    assert ids[0] == ids[1]


# --- who does not go on


@pytest.mark.parametrize(("age", "goes_on"), [(IDLE_TIMEOUT - 1, True), (IDLE_TIMEOUT, False)])
async def test_idle_time_is_wall_time_across_restarts(
    house: House, age: float, *, goes_on: bool
) -> None:
    await settled(house, "sensor-1")

    async with house.gate(wall=WALL + age) as gate:
        assert (names(gate) == ["sensor-1"]) is goes_on
        assert gate.pump.detached["idle"] == (not goes_on)
        assert gate.pump.stored == goes_on
        if goes_on:
            # The rest of its time runs on the monotonic clock.
            gate.wait(2.0)
            assert names(gate) == []


async def test_a_clock_that_went_back_ends_nobody_and_makes_nothing_last_longer(
    house: House,
) -> None:
    first, second = await settled(house, "sensor-1", "sensor-2")
    async with house.gate() as gate:
        gate.adopt(first)
        gate.send(first, post(1))
        gate.acknowledge()
    async with house.gate(wall=WALL + 300.0) as gate:
        gate.adopt(second)
        gate.send(second, post(1))

    async with house.gate(wall=WALL - 10 * IDLE_TIMEOUT) as gate:
        assert names(gate) == ["sensor-1", "sensor-2"]
        assert gate.pump.next_timer() == pytest.approx(gate.now + IDLE_TIMEOUT - 300.0)
        gate.adopt(first)
        gate.send(first, post(1))
        assert len(gate.publisher.tickets) == 1


async def test_the_longest_idle_yield_to_a_lower_limit(house: House) -> None:
    await settled(house, "sensor-1", "sensor-2", "sensor-3")

    async with house.gate(max_associations=2) as gate:
        assert names(gate) == ["sensor-2", "sensor-3"]
        assert gate.pump.detached == {"evicted": 1}
        assert gate.pump.stored == 2


async def test_of_a_devices_associations_the_newest_go_on(house: House) -> None:
    key = house.add_psk()
    async with house.gate() as gate:
        for _ in range(4):
            gate.connect(key, settings=MOVING)
        newest = [association.id for association in gate.associations][2:]

    async with house.gate(associations_per_device=2) as gate:
        assert [association.id for association in gate.associations] == newest
        assert gate.pump.detached == {"surplus": 2}
        gate.connect(key)
        assert gate.pump.detached == {"surplus": 3}


async def test_a_device_with_too_many_pushes_nobody_out(house: House) -> None:
    await settled(house, "idle-one")
    key = house.add_psk("many")
    async with house.gate() as gate:
        gate.wall += 10.0
        for _ in range(4):
            gate.connect(key, AWAY, MOVING)

    async with house.gate(max_associations=2, associations_per_device=1) as gate:
        assert names(gate) == ["idle-one", "many"]
        assert gate.pump.detached == {"surplus": 3}


async def test_after_a_recovery_the_sockets_are_told_to_look_at_the_time(house: House) -> None:
    await settled(house, "sensor-1")

    async with house.gate() as gate:
        assert gate.wakes > 0


async def test_a_device_that_was_disabled_does_not_go_on_and_others_do(house: House) -> None:
    await settled(house, "sensor-1", "sensor-2")
    house.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=False)

    async with house.gate() as gate:
        assert names(gate) == ["sensor-2"]
        assert gate.pump.detached == {"refused": 1}
    async with house.gate() as gate:
        assert gate.pump.detached == {}


async def test_a_registry_that_cannot_answer_forgets_nobody(house: House) -> None:
    await settled(house, "sensor-1")
    house.registry.fault = RegistryUnavailable("the registry is locked", "wait")

    with pytest.raises(ExceptionGroup) as raised:
        async with house.gate():
            pass
    assert raised.group_contains(StartError, match="the registry is locked")
    house.registry.fault = None
    async with house.gate() as gate:
        assert names(gate) == ["sensor-1"]


async def test_a_path_through_a_socket_that_is_no_more_waits_for_the_device(house: House) -> None:
    fixed, moving = house.add_psk("sensor-1"), house.add_psk("sensor-2")
    async with house.gate() as gate:
        gate.connect(fixed, (1, ("192.0.2.1", 1)))
        peer = gate.connect(moving, (1, ("192.0.2.1", 2)), MOVING)

    async with house.gate(sockets=1) as gate:
        assert names(gate) == ["sensor-2"]
        assert gate.pump.detached == {"unreachable": 1}
        (association,) = gate.associations
        gate.pump.server.traffic.send(association, b"down", gate.now)
        assert gate.pump.outgoing == []
        peer.path = HOME
        gate.adopt(peer)
        gate.send(peer, post(1))
        gate.acknowledge()
        assert peer.received == [changed(1)]


async def test_an_association_that_ends_is_forgotten_with_its_keys(house: House) -> None:
    (peer,) = await settled(house, "sensor-1")
    async with house.gate() as gate:
        gate.adopt(peer)
        peer.client.close()
        gate.turn()
        assert gate.pump.stored == 0

    assert bytes(house.memory) == blank(64)
    async with house.gate() as gate:
        assert names(gate) == []
