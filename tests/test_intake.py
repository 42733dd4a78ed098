"""Requests between the broker and the registry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from coapgate.downlink.requests import Parser
from coapgate.errors import RegistryUnavailable
from coapgate.intake import MAX_WAITING, Intake
from coapgate.model import Device, DeviceId, Tenant
from coapgate.mqtt.subscriptions import Heard
from coapgate.outbox import Notice
from coapgate.registry.base import HeldRequest
from coapgate.rights import RightsTable
from tests.downlink.test_deliveries import Backend
from tests.downlink.values import FORMATS, WALL, heard
from tests.waiting import until

TOPIC = "acme/sensor-1/request/POST/led"


class Disk:
    """A registry with one device; it can be out of order."""

    def __init__(self) -> None:
        self.rows: dict[int, HeldRequest] = {}
        self.writes = 0
        self.is_broken = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        if self.is_broken:
            raise RegistryUnavailable("the disk is gone")
        return Device(tenant, device) if device == "sensor-1" else None

    def held_requests(self, node: int) -> list[HeldRequest]:
        return list(self.rows.values())

    async def change_held_requests(
        self,
        node: int,
        added: Iterable[HeldRequest],
        concluded: Iterable[tuple[int, str]],
        removed: Iterable[int],
    ) -> None:
        await self.gate.wait()
        if self.is_broken:
            raise RegistryUnavailable("the disk is gone", "mend it")
        self.writes += 1
        for row in added:
            self.rows[row.number] = row
        for number, outcome in concluded:
            self.rows[number] = self.rows[number]._replace(outcome=outcome)
        for number in removed:
            del self.rows[number]


class Room:
    """An intake, what is behind it, and what it has acknowledged."""

    def __init__(self, disk: Disk | None = None, *, is_durable: bool = True) -> None:
        self.disk = disk or Disk()
        self.backend = Backend()
        parser = Parser("gate", RightsTable({}), FORMATS, hold_time=60.0, max_body=9)
        store = self.disk if is_durable else None
        self.intake = Intake(parser, self.backend.deliveries, self.disk, store, 0)
        self.acknowledged: list[Heard] = []

    def take(self, topic: str = TOPIC, *, at_least_once: bool = True) -> Heard:
        publication = heard(topic)._replace(receipt=(1, 1) if at_least_once else None)
        self.intake.take(publication)
        return publication

    @property
    def told(self) -> list[str]:
        return [each.outcome for each in self.backend.told]


@asynccontextmanager
async def open_room(disk: Disk | None = None, *, is_durable: bool = True) -> AsyncIterator[Room]:
    room = Room(disk, is_durable=is_durable)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(
            room.intake.run(room.acknowledged.append, lambda: None, lambda: 0.0, lambda: WALL)
        )
        yield room
        running.cancel()


async def test_a_request_is_acknowledged_when_it_is_on_disk() -> None:
    async with open_room() as room:
        room.disk.gate.clear()
        publication = room.take()
        await until(lambda: room.intake.unsaved == 1, "it is taken")
        assert room.acknowledged == []
        room.disk.gate.set()
        await until(lambda: room.acknowledged == [publication], "it is acknowledged")

        assert list(room.disk.rows) == [1]
        assert room.intake.unsaved == 0
        assert room.backend.deliveries.held == 1


async def test_many_requests_are_written_together() -> None:
    async with open_room() as room:
        for _ in range(16):
            room.take()
        await until(lambda: len(room.acknowledged) == 16, "all are acknowledged")

        assert room.disk.writes == 1


async def test_a_request_is_removed_when_its_outcome_is_on_the_bus_and_not_before() -> None:
    async with open_room() as room:
        room.take()
        await until(lambda: list(room.disk.rows) == [1], "it is on disk")
        room.backend.attach()
        room.backend.speak()
        room.backend.answer(1)
        assert list(room.disk.rows) == [1]
        room.intake.settled(1)
        await until(lambda: room.disk.rows == {}, "it is over")


async def test_what_is_over_before_it_was_written_leaves_nothing_behind() -> None:
    async with open_room() as room:
        room.backend.attach()
        room.disk.gate.clear()
        room.take()
        await until(lambda: room.backend.sent == [1], "it is sent at once")
        room.backend.answer(1)
        room.intake.settled(1)
        room.disk.gate.set()
        await until(lambda: len(room.acknowledged) == 1, "it is acknowledged")
        room.take()  # the next change takes it away
        await until(lambda: list(room.disk.rows) == [2], "only the next is on disk")


async def test_an_unknown_device_is_told_and_takes_no_room() -> None:
    async with open_room() as room:
        room.take("acme/nobody/request/POST/led")
        await until(lambda: len(room.acknowledged) == 1, "it is acknowledged")

        assert room.told == ["device-unknown"]
        assert room.disk.rows == {}


async def test_a_topic_without_a_tenant_is_counted() -> None:
    async with open_room() as room:
        room.take("a cme/sensor-1/request/POST/led")
        await until(lambda: len(room.acknowledged) == 1, "it is acknowledged")

        assert (room.intake.malformed, room.told) == (1, [])


@pytest.mark.expects_warnings("held requests cannot be saved")
async def test_while_the_registry_is_away_requests_are_held_and_saved_later() -> None:
    async with open_room() as room:
        room.disk.is_broken = True
        room.take("acme/whoever/request/POST/led")
        await until(lambda: len(room.acknowledged) == 1, "it is acknowledged")
        assert (room.told, room.intake.unsaved) == ([], 1)

        room.disk.is_broken = False
        room.take()
        await until(lambda: list(room.disk.rows) == [1, 2], "both are on disk")
        assert room.intake.unsaved == 0


@pytest.mark.expects_warnings("held requests cannot be saved")
async def test_what_is_over_while_the_registry_is_away_is_removed_later() -> None:
    async with open_room() as room:
        room.take()
        await until(lambda: list(room.disk.rows) == [1], "it is on disk")
        room.disk.is_broken = True
        room.intake.settled(1)
        await until(lambda: not room.intake._has_changed, "it was tried, and is not tried for ever")
        assert list(room.disk.rows) == [1]
        room.disk.is_broken = False
        room.take()
        await until(lambda: list(room.disk.rows) == [2], "it goes with the next")


async def test_a_flood_at_qos_0_is_dropped_and_counted_beyond_its_bound() -> None:
    room = Room()
    for _ in range(MAX_WAITING + 5):
        room.take(at_least_once=False)
    room.take()

    assert room.intake.dropped == 5


async def test_a_new_process_goes_on_with_what_was_held() -> None:
    disk = Disk()
    async with open_room(disk) as room:
        for _ in range(3):
            room.take()
        await until(lambda: len(disk.rows) == 3, "all are on disk")
    again = Room(disk)
    assert again.intake.restore(0.0, WALL) == (3, [])
    again.backend.attach()
    again.backend.speak()
    assert again.backend.sent == [1]
    again.intake.settled(1)
    again.take()
    await again.intake.save(0.0)

    assert list(disk.rows) == [2, 3]


async def test_what_waited_too_long_in_between_has_expired() -> None:
    disk = Disk()
    async with open_room(disk) as room:
        room.take()
        await until(lambda: len(disk.rows) == 1, "it is on disk")
    again = Room(disk)
    again.intake.restore(1000.0, WALL + 61.0)
    again.backend.run_until(1000.0)

    assert again.told == ["expired"]


async def test_where_nothing_is_kept_nothing_is_written() -> None:
    async with open_room(is_durable=False) as room:
        room.take()
        await until(lambda: len(room.acknowledged) == 1, "it is acknowledged")
        room.intake.settled(1)

        assert (room.disk.writes, room.intake.restore(0.0, WALL)) == (0, (0, []))


NOTICE = Notice(
    "gate/acme/reply/app",
    b"\x00was off",
    content_type=None,
    properties=(("outcome", "answered"),),
    correlation=b"\xff",
    settles=1,
    instead=Notice("gate/acme/sensor-1/event/request", b"{}", settles=1),
)


async def test_an_outcome_that_could_not_be_told_is_told_by_the_next_process() -> None:
    disk = Disk()
    async with open_room(disk) as room:
        room.take()
        await until(lambda: len(disk.rows) == 1, "it is on disk")
        room.intake.concluded(1, NOTICE, 0.0)
    await room.intake.save(0.0)
    assert disk.rows[1].outcome is None, "the broker has some time to take it"
    await room.intake.save(0.0, is_last=True)

    again = Room(disk)
    assert again.intake.restore(0.0, WALL) == (0, [NOTICE])
    again.intake.settled(1)
    await again.intake.save(0.0)
    assert disk.rows == {}


async def test_an_outcome_that_the_broker_has_in_time_is_not_written() -> None:
    room = Room()
    room.take()
    async with asyncio.TaskGroup() as tasks:
        clock = [0.0]
        running = tasks.create_task(
            room.intake.run(room.acknowledged.append, lambda: None, lambda: clock[0], lambda: WALL)
        )
        await until(lambda: len(room.disk.rows) == 1, "it is on disk")
        room.intake.concluded(1, NOTICE, 0.0)
        room.intake.settled(1)
        await until(lambda: room.disk.rows == {}, "it is over")
        running.cancel()

    assert room.disk.writes == 2
