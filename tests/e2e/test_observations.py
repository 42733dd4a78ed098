"""Observations of real devices: through address moves, restarts, and crashes of the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from coapgate.dtls.client import ClientSettings
from coapgate.model import Code
from coapgate.simulated.bodies import read_body, send_body
from coapgate.simulated.device import Device
from coapgate.simulated.message import Response
from tests.backend import publish
from tests.bus import Bus
from tests.gateway_fixtures import Install
from tests.gateways import GatewayProcess, Installation, Running, running_process
from tests.peers import Mosquitto
from tests.waiting import DEADLINE, until

BODY = bytes(range(256)) * 800
"""204,800 octets."""
FIRMWARE = bytes(range(251)) * 16711
"""4 MiB and a bit."""


def down(installation: Installation, path: str, device: str = "sensor-1") -> str:
    return f"{installation.root}/default/{device}/down/{path}"


async def following(states: AsyncIterator[Response]) -> Response:
    async with asyncio.timeout(DEADLINE):
        return await anext(states)


async def test_an_observation_follows_its_device_to_another_address(
    gateway: Running, broker: Mosquitto
) -> None:
    topic = down(gateway.installation, "led")
    await publish(broker, topic, b"off")
    async with (
        gateway.device(gateway.installation.add_psk("sensor-1")) as device,
        device.observe("led") as states,
    ):
        assert (await following(states)).payload == b"off"
        await device.move()
        assert (await device.request(Code.POST, "here", b"1")).code == Code.CHANGED
        await publish(broker, topic, b"on")

        assert (await following(states)).payload == b"on"
        assert device.handshakes == 1


@asynccontextmanager
async def observing(
    installation: Installation, gateway: GatewayProcess
) -> AsyncIterator[tuple[Device, AsyncIterator[Response]]]:
    """A device with a Connection ID that observes `/led`, beyond the end of that gateway."""
    await until_connected(gateway)
    key = installation.add_psk("sensor-1")
    async with (
        Device(*gateway.address, key, settings=ClientSettings(connection_id=b"")) as device,
        device.observe("led") as states,
    ):
        yield device, states
    assert device.handshakes == 1


async def until_connected(gateway: GatewayProcess) -> None:
    async with asyncio.timeout(DEADLINE):
        while (await gateway.metrics())["coapgate_mqtt_connected"] != 1:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("is_killed", [True, False])
async def test_an_observation_outlives_the_gateway(
    install: Install, broker: Mosquitto, is_killed: bool
) -> None:
    installation = install()
    topic = down(installation, "led")
    await publish(broker, topic, b"off")
    async with AsyncExitStack() as stack:
        async with running_process(installation) as gateway:
            _, states = await stack.enter_async_context(observing(installation, gateway))
            assert (await following(states)).payload == b"off"
            await publish(broker, topic, b"on")
            assert (await following(states)).payload == b"on"
            gateway.program.kill() if is_killed else gateway.program.terminate()
            await gateway.program.end()

        await publish(broker, topic, b"changed meanwhile")
        async with running_process(installation, gateway.address):
            assert (await following(states)).payload == b"changed meanwhile"
            await publish(broker, topic, b"blinking")
            assert (await following(states)).payload == b"blinking"


async def test_a_device_is_not_told_again_what_it_knows_when_the_gateway_is_restarted(
    install: Install, broker: Mosquitto
) -> None:
    installation = install()
    topic = down(installation, "led")
    await publish(broker, topic, b"off")
    async with AsyncExitStack() as stack:
        async with running_process(installation) as gateway:
            device, states = await stack.enter_async_context(observing(installation, gateway))
            assert (await following(states)).payload == b"off"
            await publish(broker, topic, b"on")
            assert (await following(states)).payload == b"on"
            gateway.program.terminate()
            await gateway.program.end()

        async with running_process(installation, gateway.address) as gateway:
            await until_connected(gateway)
            # What it is told next is the next state, not once more the one that is retained.
            await publish(broker, down(installation, "other"), b"1")
            assert (await device.request(Code.GET, "other")).payload == b"1"
            await publish(broker, topic, b"blinking")
            assert (await following(states)).payload == b"blinking"


async def test_large_bodies_go_both_ways(gateway: Running, bus: Bus, broker: Mosquitto) -> None:
    await publish(broker, down(gateway.installation, "config"), BODY)
    async with gateway.device(gateway.installation.add_psk("sensor-1")) as device:
        sent = await send_body(device, Code.POST, "log", BODY, content_format=42)
        response, read = await read_body(device, "config")

    assert (sent.code, response.code) == (Code.CHANGED, Code.CONTENT)
    assert read == BODY
    published = [each for each in bus.published if each.topic.endswith("/up/log")]
    assert [each.payload for each in published] == [BODY]


async def test_firmware_of_4_mib_is_read_from_a_retained_publication_and_resumed(
    gateway: Running, broker: Mosquitto
) -> None:
    await publish(broker, down(gateway.installation, "firmware"), FIRMWARE)
    async with gateway.device(gateway.installation.add_psk("sensor-1")) as device:
        first = await device.request(Code.GET, "firmware")
        etag = next(value for number, value in first.options if number == 4)
        half = FIRMWARE[: 2000 * 1024]
        response, read = await read_body(device, "firmware", start=half, etag=etag)

    assert response.code == Code.CONTENT
    assert len(read) == len(FIRMWARE)
    assert read == FIRMWARE
    assert gateway.gateway.pump._layer.downloads.octets == 0


async def test_the_end_of_an_association_ends_the_subscription(
    gateway: Running, broker: Mosquitto
) -> None:
    observations = gateway.gateway.pump._layer.observations
    await publish(broker, down(gateway.installation, "led"), b"off")
    async with (
        gateway.device(gateway.installation.add_psk("sensor-1")) as device,
        device.observe("led"),
    ):
        assert len(observations) == 1

    await until(lambda: len(observations) == 0, "the observation ends")
