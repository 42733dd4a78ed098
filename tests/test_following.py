"""From a change in a registry to the alert that the device gets."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from coapgate import reviews
from coapgate.dtls.client import PskKey
from coapgate.errors import Alert, RegistryUnavailable
from coapgate.following import Following
from coapgate.model import DEFAULT_TENANT, Device, DeviceId, PskCredential, Tenant
from coapgate.registry.base import Change
from coapgate.registry.memory import MemoryRegistry
from tests.pumped import WALL, Gate, pumping
from tests.waiting import until


class Books(MemoryRegistry):
    """A registry that can be made to fail, to forget what has changed, or to be an older copy."""

    def __init__(self) -> None:
        super().__init__(wall=lambda: WALL)
        self.fault: Exception | None = None
        self.has_forgotten = False
        self.is_older = False
        self.has_credentials = True

    async def find_psk_number(self, number: int) -> PskCredential | None:
        self._fail()
        if not self.has_credentials:
            raise RegistryUnavailable("database is locked")
        return await super().find_psk_number(number)

    def newest_change(self) -> int:
        self._fail()
        return 0 if self.is_older else super().newest_change()

    def changes(self, after: int) -> tuple[Change, ...] | None:
        return None if self.has_forgotten else super().changes(after)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault

    def add(self, device: str, tenant: str = DEFAULT_TENANT) -> PskKey:
        key = PskKey(f"{tenant}/{device}".encode(), secrets.token_bytes(16))
        self.add_device(Device(Tenant(tenant), DeviceId(device)))
        self.add_psk(Tenant(tenant), DeviceId(device), key.identity, key.secret)
        return key

    def disable(self, device: str) -> None:
        self.enable_device(DEFAULT_TENANT, DeviceId(device), enabled=False)


@pytest.fixture
def books() -> Books:
    return Books()


@asynccontextmanager
async def followed(books: Books) -> AsyncIterator[tuple[Gate, Following]]:
    """A gate, and who looks for changes when the test says so."""
    async with pumping(books) as gate:
        following = Following(
            books, gate.pump.reviews, gate.turn, lambda: gate.now, lambda: gate.wall
        )
        following.begin()
        yield gate, following


async def test_a_disabled_device_gets_its_alert_and_the_bus_an_event(books: Books) -> None:
    one, other = books.add("sensor-1"), books.add("sensor-2")
    async with followed(books) as (gate, following):
        peer, stays = gate.connect(one), gate.connect(other)
        books.disable("sensor-1")
        await following.follow()

        assert not peer.client.is_established
        assert peer.client.alert is Alert.CERTIFICATE_REVOKED
        assert stays.client.is_established
        assert gate.pump.detached == {"disabled": 1}
        assert len(gate.pump.sessions) == 1
        (event,) = [event for event in gate.events if event[2] == "session-ended"]
        assert event[:2] == ("default", "sensor-1")
        said = json.loads(event[3])
        assert said.pop("at").startswith("2027-")
        assert said == {"event": "session-ended", "reason": "disabled", "credential": "psk-1"}


async def test_a_change_never_reaches_the_device_of_that_name_of_another_tenant(
    books: Books,
) -> None:
    one, other = books.add("sensor-1"), books.add("sensor-1", "plant-4")
    async with followed(books) as (gate, following):
        peer, stays = gate.connect(one), gate.connect(other)
        books.remove_device(DEFAULT_TENANT, DeviceId("sensor-1"))
        await following.follow()

        assert peer.client.alert is Alert.UNKNOWN_CA
        assert stays.client.is_established
        assert gate.pump.reviews.reviewed == 1


async def test_nothing_is_judged_while_nothing_changes(books: Books) -> None:
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        gate.connect(key)
        await following.follow()
        await following.follow()

        assert gate.pump.reviews.reviewed == 0


async def test_when_the_registry_has_forgotten_what_changed_all_are_judged(books: Books) -> None:
    one, other = books.add("sensor-1"), books.add("sensor-2")
    books.has_forgotten = True
    async with followed(books) as (gate, following):
        peer, stays = gate.connect(one), gate.connect(other)
        books.disable("sensor-1")
        await following.follow()

        assert not peer.client.is_established
        assert stays.client.is_established
        assert gate.pump.reviews.reviewed == 2


async def test_an_older_registry_in_the_place_of_this_one_is_noticed(books: Books) -> None:
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        peer = gate.connect(key)
        books.disable("sensor-1")
        books.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=True)
        await following.follow()
        books.is_older = True
        books.disable("sensor-1")
        await following.follow()

        assert not peer.client.is_established


@pytest.mark.expects_warnings("registry cannot be followed")
async def test_a_registry_that_cannot_be_asked_sends_nobody_away_and_is_asked_again(
    books: Books,
) -> None:
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        peer = gate.connect(key)
        books.disable("sensor-1")
        books.fault = RegistryUnavailable("database is locked")
        await following.follow()
        assert peer.client.is_established
        assert (following.is_current, len(gate.associations)) == (False, 1)

        books.fault = None
        await following.follow()
        assert (following.is_current, len(gate.associations)) == (True, 0)
        assert peer.client.alert is Alert.CERTIFICATE_REVOKED


async def test_who_was_judged_by_what_was_before_a_change_is_not_let_in_after_it(
    books: Books,
) -> None:
    """The keys of its handshake were found before the change; it ends after it."""
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        before = await books.find_psk(key.identity)
        books.disable("sensor-1")
        await following.follow()

        books.find_psk = lambda identity: _answer(before)  # type: ignore[method-assign]
        peer = gate.join(key)

        assert not peer.client.is_established
        assert peer.client.alert is Alert.CERTIFICATE_REVOKED
        assert gate.pump.refusals == {"disabled": 1}


async def _answer(credentials: tuple[PskCredential, ...]) -> tuple[PskCredential, ...]:
    return credentials


async def test_devices_are_served_between_the_pieces_of_a_long_walk(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews, "TURN", 3 * reviews.REVIEW_COST)
    keys = [books.add(f"sensor-{number}") for number in range(30)]
    books.has_forgotten = True
    async with followed(books) as (gate, following):
        for key in keys:
            gate.connect(key)
        turns = 0

        def wake() -> None:
            nonlocal turns
            turns += 1

        following._wake = wake
        books.disable("sensor-0")
        await following.follow()

        assert turns >= 10
        assert len(gate.associations) == 29


@pytest.mark.expects_warnings("changes not followed")
async def test_a_mistake_of_ours_does_not_end_the_following(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        peer = gate.connect(key)
        books.disable("sensor-1")
        books.fault = ZeroDivisionError()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(following.run())
            await until(lambda: following.failures == 2, "following fails twice")
            assert len(caplog.records) == 1
            assert peer.client.is_established
            books.fault = None
            await until(lambda: not gate.associations, "the device is sent away")
            running.cancel()


async def test_what_changes_during_a_long_walk_is_noticed_before_its_end(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reviews, "TURN", reviews.REVIEW_COST)
    keys = [books.add(f"sensor-{number}") for number in range(20)]
    books.has_forgotten = True
    async with followed(books) as (gate, following):
        for key in keys:
            gate.connect(key)
        left_at: list[int] = []

        def wake() -> None:
            gate.turn()
            gate.now += 0.2
            if gate.pump.reviews.reviewed == 3:
                books.has_forgotten = False
                books.disable("sensor-19")
            if gate.pump.detached["disabled"] == 2:
                left_at.append(gate.pump.reviews.reviewed)

        following._wake = wake
        books.disable("sensor-0")
        await following.follow()

        assert left_at[0] < 10
        assert len(gate.associations) == 18


@pytest.mark.expects_warnings("registry cannot be followed")
async def test_changes_that_are_seen_and_cannot_be_judged_are_told_of_once_and_wait(
    books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    key = books.add("sensor-1")
    async with followed(books) as (gate, following):
        gate.connect(key)
        books.disable("sensor-1")
        books.has_credentials = False
        for _ in range(3):
            await following.follow()
        assert (following.is_current, len(gate.associations)) == (False, 1)
        assert len(caplog.records) == 1

        books.has_credentials = True
        await following.follow()
        assert (following.is_current, len(gate.associations)) == (True, 0)
