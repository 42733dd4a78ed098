"""What the bus is told about devices that come and go."""

from __future__ import annotations

import json

from coapgate.lifecycle import Lifecycle
from coapgate.model import DeviceId, Tenant
from coapgate.outbox import Outbox
from tests.downlink.values import SENSOR, WALL

TOPIC = "gate/acme/sensor-1"
STARTED = "2026-01-01T00:00:00.250Z"


class Bus:
    """A bus on which everything published is at hand; devices are attached as the test says."""

    def __init__(self) -> None:
        self.published: list[tuple[str, dict[str, object], bool]] = []
        self.attached: set[tuple[Tenant, DeviceId]] = set()
        self.lifecycle = Lifecycle(
            Outbox(self, 1000),
            "gate",
            3,
            lambda tenant, device: (tenant, device) in self.attached,
            WALL,
        )

    connected = True

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        assert content_type == "application/json"
        self.published.append((topic, json.loads(payload), retain))

    def hear(self, status: object, device: str = "sensor-1") -> None:
        payload = status if isinstance(status, bytes) else json.dumps(status).encode()
        self.lifecycle.heard(f"gate/acme/{device}/status", payload, 0.0, WALL + 1)


def stale(node: int = 3, since: str = "2025-12-31T23:00:00.000Z") -> dict[str, object]:
    return {"at": since, "attached": True, "since": since, "method": "psk", "node": node}


def test_a_device_that_comes_has_an_event_and_then_a_retained_status() -> None:
    bus = Bus()
    bus.lifecycle.attached(SENSOR, 0.0, WALL)

    assert bus.published == [
        (
            f"{TOPIC}/event/connected",
            {"at": STARTED, "event": "connected", "method": "psk", "credential": "psk-1"},
            False,
        ),
        (
            f"{TOPIC}/status",
            {"at": STARTED, "attached": True, "since": STARTED, "method": "psk", "node": 3},
            True,
        ),
    ]


def test_a_device_that_goes_has_an_event_with_the_cause_and_then_its_status() -> None:
    bus = Bus()
    bus.lifecycle.detached(SENSOR.tenant, SENSOR.device, "idle", 0.0, WALL)

    assert bus.published == [
        (
            f"{TOPIC}/event/disconnected",
            {"at": STARTED, "event": "disconnected", "cause": "idle"},
            False,
        ),
        (
            f"{TOPIC}/status",
            {"at": STARTED, "attached": False, "since": STARTED, "cause": "idle", "node": 3},
            True,
        ),
    ]


def test_a_status_that_a_killed_gateway_left_is_corrected_once() -> None:
    bus = Bus()
    bus.hear(stale())

    assert [topic for topic, _, _ in bus.published] == [
        f"{TOPIC}/event/disconnected",
        f"{TOPIC}/status",
    ]
    assert bus.published[0][1]["cause"] == "lost"
    assert bus.published[1][1]["attached"] is False
    assert bus.lifecycle.corrected == 1


def test_what_is_true_is_left_alone() -> None:
    bus = Bus()
    bus.attached.add((SENSOR.tenant, SENSOR.device))
    bus.hear(stale())
    bus.attached.clear()
    bus.hear(stale(node=4))  # another gateway's
    bus.hear(stale(since="2026-01-01T00:00:00.250Z"))  # this process said so itself
    bus.hear({"attached": False, "node": 3, "since": "2025-01-01T00:00:00.000Z"})
    bus.hear(b"\xff not JSON")
    bus.hear([1])
    bus.hear({})
    bus.lifecycle.heard("gate/$gateway/0/status", b"{}", 0.0, WALL)
    bus.lifecycle.heard("gate/acme/sensor-1/up/status", json.dumps(stale()).encode(), 0.0, WALL)

    assert bus.published == []


def test_a_device_that_went_on_and_has_no_status_gets_one() -> None:
    bus = Bus()
    bus.attached.add((SENSOR.tenant, SENSOR.device))
    bus.lifecycle.recovered(SENSOR)
    bus.hear({"attached": False, "node": 3, "since": "2025-01-01T00:00:00.000Z"})
    bus.hear(stale(node=4))
    assert bus.published == []

    bus.lifecycle.complete(0.0, WALL)
    bus.lifecycle.complete(0.0, WALL)

    assert [topic for topic, _, _ in bus.published] == [
        f"{TOPIC}/event/connected",
        f"{TOPIC}/status",
    ]


def test_a_device_that_went_on_with_its_status_gets_no_other() -> None:
    bus = Bus()
    bus.attached.add((SENSOR.tenant, SENSOR.device))
    bus.lifecycle.recovered(SENSOR)
    bus.hear(stale())
    bus.lifecycle.complete(0.0, WALL)

    assert bus.published == []


def test_a_device_that_went_on_and_left_before_all_was_heard_is_gone() -> None:
    bus = Bus()
    bus.lifecycle.recovered(SENSOR)
    bus.lifecycle.detached(SENSOR.tenant, SENSOR.device, "peer", 0.0, WALL)
    bus.lifecycle.complete(0.0, WALL)

    assert [fields.get("attached") for _, fields, retain in bus.published if retain] == [False]
