"""Certificates of sessions that last are in use."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from coapgate import uses
from coapgate.authentication import Authentication
from coapgate.errors import RegistryUnavailable
from coapgate.model import DEFAULT_TENANT, DeviceId, DeviceIdSource, Identity, Method
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.factory import FactoryCa
from coapgate.registry.memory import MemoryRegistry
from coapgate.uses import ROUND_INTERVAL, LiveUses

WALL = 1_800_000_000.0


@dataclass(frozen=True)
class Held:
    """A session that is held."""

    identity: Identity


def identity(number: int, method: Method = Method.X509, anchor: bytes = b"a" * 32) -> Identity:
    name = f"sensor-{number}"
    return Identity(
        DEFAULT_TENANT, DeviceId(name), method, f"sha256:{number:016}", anchor, value=name
    )


def test_all_sessions_with_certificates_are_gone_through_a_piece_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(uses, "TURN", 3)
    held = [Held(identity(number)) for number in range(7)]
    held[4] = Held(identity(4, Method.PSK))
    live = LiveUses(lambda: held)

    pieces = [live.turn(float(now)) for now in range(4)]

    assert [len(piece) for piece in pieces] == [3, 2, 1, 0]
    assert {each.device for piece in pieces for each in piece} == {
        f"sensor-{number}" for number in range(7) if number != 4
    }


def test_a_round_begins_every_six_hours() -> None:
    live = LiveUses(lambda: [Held(identity(1))])

    assert len(live.turn(0.0)) == 1
    assert live.turn(10.0) == []
    assert live.turn(ROUND_INTERVAL - 1) == []
    assert len(live.turn(ROUND_INTERVAL)) == 1


async def test_a_session_that_lasts_is_a_use_of_its_anchor() -> None:
    registry = MemoryRegistry(wall=lambda: WALL)
    anchor = parse_anchor(
        FactoryCa.create("Root", wall=WALL).certificate_pem,
        name="factory",
        tenant=DEFAULT_TENANT,
        device_id_source=DeviceIdSource.CN,
        auto_provision=False,
        wall=WALL,
    )
    registry.add_anchor(anchor)
    for number in range(2):
        registry.trust(
            DEFAULT_TENANT, DeviceId(f"sensor-{number}"), "factory", f"sensor-{number}",
            create_device=True,
        )  # fmt: skip
    authentication = Authentication(registry)

    await authentication.note_uses(
        [identity(1, anchor=anchor.key_id), identity(0, anchor=b"of nobody" * 3)]
    )

    assert await registry.write_uses() == 1
    assert registry.anchor_devices(anchor.key_id, WALL) == 1


async def test_uses_that_could_not_be_written_are_written_later(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    from coapgate.registry.sqlite import SqliteRegistry
    from tests.registry.values import FACTORY, SENSOR_1

    folder = tmp_path_factory.mktemp("registry")

    def opened(timeout: float) -> SqliteRegistry:
        return SqliteRegistry.open(
            "sqlite:///r.db", folder / "r.key", folder, wall=lambda: WALL, write_timeout=timeout
        )

    with opened(0.05) as gateway, opened(2.0) as other:
        other.add_anchor(FACTORY)
        other.trust(DEFAULT_TENANT, SENSOR_1, "factory", "sensor-1", create_device=True)
        gateway.note_use(FACTORY.key_id, "sensor-1")
        other._writer.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryUnavailable):
            await gateway.write_uses()
        other._writer.execute("ROLLBACK")

        assert await gateway.write_uses() == 1
