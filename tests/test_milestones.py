"""What is counted, logged and published once in the life of a credential."""

from __future__ import annotations

import json

import pytest

from coapgate.errors import RegistryUnavailable
from coapgate.milestones import SOON, SOON_INTERVAL, Milestones
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Tenant

WALL = 1_800_000_000.0


class House:
    """Milestones, and the bus."""

    def __init__(self) -> None:
        self.wall = WALL
        self.events: list[tuple[str, str, str]] = []
        self.said: list[dict[str, str]] = []
        self.at: list[str] = []
        self.milestones = Milestones(self.publish, lambda: self.wall)

    def publish(self, tenant: Tenant, device: DeviceId, name: str, payload: bytes) -> None:
        self.events.append((tenant, device, name))
        said = json.loads(payload)
        assert said.pop("event") == name
        self.at.append(said.pop("at"))
        self.said.append(said)


@pytest.fixture
def house() -> House:
    return House()


def identity(not_after: float | None = None, device: str = "sensor-1") -> Identity:
    return Identity(DEFAULT_TENANT, DeviceId(device), Method.PSK, "psk-7", not_after=not_after)


def test_a_promotion_is_counted_and_published(house: House) -> None:
    house.milestones.promoted(identity())

    assert house.milestones.promotions == 1
    assert house.events == [("default", "sensor-1", "credential-promoted")]
    assert house.said == [{"credential": "psk-7"}]


def test_a_new_device_is_counted_by_what_vouched_for_it(house: House) -> None:
    house.milestones.provisioned_by(identity(), "batch")

    assert house.milestones.provisioned == {"batch": 1}
    assert house.events == [("default", "sensor-1", "provisioned")]
    assert house.said == [{"credential": "psk-7", "by": "batch"}]


@pytest.mark.expects_warnings("promotion not written")
def test_promotions_that_cannot_be_written_are_counted_and_told_of_once_a_minute(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        house.milestones.not_promoted(identity(), RegistryUnavailable("full", "free some"))

    assert house.milestones.failed_promotions == 3
    assert house.events == []
    assert len(caplog.records) == 1


def test_a_credential_that_ends_soon_is_announced_once_a_day(house: House) -> None:
    ending = identity(WALL + SOON - 1)
    house.milestones.opened(ending)
    house.milestones.opened(ending)
    assert house.events == [("default", "sensor-1", "credential-expiring")]
    assert house.said == [{"credential": "psk-7", "not_after": "2027-02-14T07:59:59.000Z"}]

    house.wall += SOON_INTERVAL
    house.milestones.opened(ending)
    assert house.at == ["2027-01-15T08:00:00.000Z", "2027-01-16T08:00:00.000Z"]


@pytest.mark.parametrize("not_after", [None, WALL + SOON])
def test_a_credential_that_does_not_is_not(house: House, not_after: float | None) -> None:
    house.milestones.opened(identity(not_after))

    assert house.events == []
