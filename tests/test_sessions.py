"""Which devices are attached, and who has to go."""

from __future__ import annotations

import pytest

from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Tenant
from coapgate.sessions import Sessions


def identity(device: str, tenant: str = DEFAULT_TENANT) -> Identity:
    return Identity(Tenant(tenant), DeviceId(device), Method.PSK, "psk-1")


SENSOR_1 = identity("sensor-1")


def is_open(association_id: bytes) -> bool:
    return True


def test_the_newest_associations_of_a_device_win() -> None:
    sessions = Sessions(associations_per_device=2)

    assert sessions.open(SENSOR_1, b"a", is_open) == ()
    assert sessions.open(SENSOR_1, b"b", is_open) == ()
    assert sessions.open(SENSOR_1, b"c", is_open) == (b"a",)
    sessions.close(SENSOR_1, b"a")

    assert sessions.find(SENSOR_1.tenant, SENSOR_1.device) == (b"b", b"c")
    assert sessions.open(SENSOR_1, b"d", is_open) == (b"b",)


def test_an_association_that_has_just_ended_does_not_count() -> None:
    sessions = Sessions(associations_per_device=2)
    for association_id in (b"a", b"b"):
        sessions.open(SENSOR_1, association_id, is_open)

    assert sessions.open(SENSOR_1, b"c", b"b".__ne__) == ()
    assert not sessions.close(SENSOR_1, b"b")

    assert sessions.find(SENSOR_1.tenant, SENSOR_1.device) == (b"a", b"c")


@pytest.mark.parametrize("other", [identity("sensor-2"), identity("sensor-1", "acme")])
def test_devices_do_not_count_for_each_other(other: Identity) -> None:
    sessions = Sessions(associations_per_device=1)
    sessions.open(SENSOR_1, b"a", is_open)

    assert sessions.open(other, b"b", is_open) == ()

    assert len(sessions) == 2
    assert sessions.find(other.tenant, other.device) == (b"b",)


def test_a_device_is_attached_until_its_last_association_closes() -> None:
    sessions = Sessions(associations_per_device=4)
    sessions.open(SENSOR_1, b"a", is_open)
    sessions.open(SENSOR_1, b"b", is_open)

    assert not sessions.close(SENSOR_1, b"a")
    assert sessions.close(SENSOR_1, b"b")
    assert not sessions.close(SENSOR_1, b"b"), "it was gone already"

    assert len(sessions) == 0
    assert sessions.find(SENSOR_1.tenant, SENSOR_1.device) == ()
