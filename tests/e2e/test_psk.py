"""Scenarios about pre-shared keys."""

from __future__ import annotations

import logging

import pytest

from coapgate.dtls.client import ClientSettings, PskKey
from coapgate.errors import Alert, DeviceRefused, NoAnswer
from coapgate.logs import JsonFormatter, TextFormatter
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from tests.bus import Bus
from tests.gateway_fixtures import StartGateway
from tests.gateways import SHORT_HANDSHAKES, Running

IMPATIENT = ClientSettings(retransmission_time=0.3, handshake_timeout=1.2)


async def test_a_key_under_anothers_identity_fails_and_harms_nobody(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gateway = await start_gateway(dtls=SHORT_HANDSHAKES)
    a, b = (gateway.installation.add_psk(name) for name in ("sensor-a", "sensor-b"))
    stolen = PskKey(b.identity, a.secret)

    async with gateway.device(a) as device:
        with pytest.raises(NoAnswer):
            async with gateway.device(stolen, settings=IMPATIENT):
                pass
        await gateway.refused("bad_key")
        assert str(await device.request(Code.POST, "alive", b"yes")) == "2.04"

    assert (await gateway.metrics())["coapgate_refusals_total,bad_key"] == 1
    written = "\n".join(
        formatter.format(record)
        for record in caplog.records
        for formatter in (TextFormatter(), JsonFormatter())
    )
    assert "bad_key" in written
    for key in (a, b):
        assert key.secret.hex() not in written
        assert repr(key.secret)[2:-1] not in written


async def test_an_unknown_identity_and_a_wrong_key_look_alike(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls=SHORT_HANDSHAKES)
    gateway.installation.add_psk("sensor-1")

    for identity in (b"sensor-1", b"sensor-2"):
        with pytest.raises(NoAnswer, match="no answer"):
            async with gateway.device(PskKey(identity, bytes(16)), settings=IMPATIENT):
                pass

    await gateway.refused("bad_key")
    await gateway.refused("unknown_identity")


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(b"i" * 128, id="128 octets"),
        pytest.param(bytes(range(0x80, 0x100)), id="not UTF-8"),
        pytest.param(b"sensor@plant-4.example", id="with @"),
        pytest.param(b" sensor-1\n", id="with white space"),
        pytest.param("Fühler-7".encode(), id="UTF-8"),
    ],
)
async def test_an_identity_is_looked_up_exactly(
    gateway: Running, bus: Bus, identity: bytes
) -> None:
    key = gateway.installation.add_psk("sensor-1", identity=identity)

    async with gateway.device(key) as device:
        assert str(await device.request(Code.POST, "a", b"")) == "2.04"

    published = await bus.next()
    assert published["device"] == "sensor-1"
    assert published["credential"].startswith("psk-")


async def test_both_keys_of_an_identity_work_and_say_which_one_was_used(
    gateway: Running, bus: Bus
) -> None:
    main = gateway.installation.add_psk("sensor-1")
    backup = gateway.installation.add_psk("sensor-1")

    for key in (main, backup):
        async with gateway.device(key) as device:
            assert str(await device.request(Code.POST, "a", b"")) == "2.04"

    assert (await bus.next())["credential"] != (await bus.next())["credential"]


async def test_a_disabled_device_is_told_so_once_it_proved_its_key(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    gateway.installation.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=False)

    with pytest.raises(DeviceRefused) as refused:
        async with gateway.device(key):
            pass
    assert refused.value.alert is Alert.CERTIFICATE_REVOKED
    await gateway.refused("disabled")

    gateway.installation.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=True)
    async with gateway.device(key) as device:
        assert str(await device.request(Code.POST, "a", b"")) == "2.04"


async def test_a_refusal_after_proof_is_an_event_of_the_device(gateway: Running, bus: Bus) -> None:
    key = gateway.installation.add_psk("sensor-1")
    gateway.installation.registry.enable_device(DEFAULT_TENANT, DeviceId("sensor-1"), enabled=False)

    for _ in range(2):
        with pytest.raises(DeviceRefused):
            async with gateway.device(key):
                pass

    event = await bus.next_event()
    assert event.topic == f"{bus.root}/sensor-1/event/refused"
    assert b'"disabled"' in event.payload
    # One a minute: of the second nothing is heard, but of what another device sends after it.
    other = gateway.installation.add_psk("sensor-2")
    async with gateway.device(other) as device:
        await device.request(Code.POST, "a", b"")
    assert (await bus.next()).topic == f"{bus.root}/sensor-2/up/a"
    assert len(bus.events) == 1
