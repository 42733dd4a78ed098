"""What the bus is told about devices: once each, in order, also through restarts."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from coapgate.dtls.client import ClientSettings, PskKey
from coapgate.model import Code
from coapgate.simulated.device import Device
from tests.conftest import StartMosquitto
from tests.e2e.backend import Backend, listening
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import GatewayProcess, Running, running_process
from tests.peers import Mosquitto
from tests.waiting import in_its_own_task, until

WHOLE = ["connected", "attached", "disconnected", "detached"]


@pytest.fixture
async def backend(gateway: Running, broker: Mosquitto) -> AsyncIterator[Backend]:
    root = gateway.installation.root
    async with in_its_own_task(listening(broker.host, broker.port, root)) as backend:
        yield backend


def device_of(gateway: GatewayProcess, key: PskKey, *, has_cid: bool = True) -> Device:
    settings = ClientSettings(handshake_timeout=60.0, connection_id=b"" if has_cid else None)
    return Device(*gateway.address, key, settings=settings)


async def test_a_device_comes_and_goes(gateway: Running, backend: Backend) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key):
        await until(lambda: len(backend.story()) == 2, "it has come")
    await until(lambda: len(backend.story()) == 4, "it has gone")

    assert backend.story() == WHOLE
    connected, attached, disconnected, detached = (heard.json() for heard in backend.lifecycle)
    assert (connected["method"], attached["method"]) == ("psk", "psk")
    assert connected["credential"].startswith("psk-")
    assert attached["since"] == connected["at"]
    assert (disconnected["cause"], detached["cause"]) == ("peer", "peer")
    assert attached["node"] == detached["node"] == 0


async def test_a_status_is_retained(gateway: Running, broker: Mosquitto) -> None:
    root = gateway.installation.root
    async with gateway.device(gateway.installation.add_psk("sensor-1")) as device:
        await device.request(Code.POST, "a", b"1")
        async with listening(broker.host, broker.port, root) as late:
            await until(lambda: late.story() == ["attached"], "whoever comes late hears it too")

        assert late.lifecycle[0].retain


async def test_a_second_session_changes_nothing(gateway: Running, backend: Backend) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key):
        async with gateway.device(key) as second:
            await second.request(Code.POST, "a", b"1")
        async with gateway.device(key) as third:
            await third.request(Code.POST, "a", b"1")
    await until(lambda: "detached" in backend.story(), "it has gone")

    assert backend.story() == WHOLE


async def test_a_refusal_is_an_event(gateway: Running, backend: Backend) -> None:
    key = gateway.installation.add_psk("sensor-1")
    gateway.installation.registry.enable_device("default", "sensor-1", enabled=False)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="revoked"):
        await gateway.device(key).__aenter__()
    await until(lambda: backend.story() == ["refused"], "it is told")


async def test_a_stop_tells_of_those_whose_session_ends_with_it(
    install: Install, broker: Mosquitto
) -> None:
    installation = install(dtls={"association_store": ""})
    key = installation.add_psk("sensor-1")
    async with listening(broker.host, broker.port, installation.root) as backend:
        async with running_process(installation) as gateway:
            await gateway.until_connected()
            async with device_of(gateway, key):
                await until(lambda: len(backend.story()) == 2, "it has come")
                gateway.program.terminate()
                assert await gateway.program.end() == 0
        await until(lambda: len(backend.story()) == 4, "it has gone")

    assert backend.story() == WHOLE
    assert backend.lifecycle[2].json()["cause"] == "shutdown"


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
async def test_a_device_that_goes_on_after_a_restart_has_never_gone(
    is_killed: bool, install: Install, broker: Mosquitto
) -> None:
    installation = install()
    key = installation.add_psk("sensor-1")
    async with listening(broker.host, broker.port, installation.root) as backend:
        async with running_process(installation) as gateway:
            await gateway.until_connected()
            device = await device_of(gateway, key).__aenter__()
            assert str(await device.request(Code.POST, "a", b"1")) == "2.04"
            await until(lambda: len(backend.story()) == 2, "it has come")
            (gateway.program.kill if is_killed else gateway.program.terminate)()
            await gateway.program.end()
        async with running_process(installation, gateway.address) as again:
            await again.until_connected()
            assert str(await device.request(Code.POST, "a", b"2")) == "2.04"
            await device.__aexit__(None, None, None)
            await until(lambda: "detached" in backend.story(), "it has gone")

    assert backend.story() == WHOLE
    assert device.handshakes == 1


async def test_a_killed_gateway_corrects_what_it_left_behind(
    install: Install, broker: Mosquitto
) -> None:
    installation = install(dtls={"association_store": ""})
    keys = [installation.add_psk(f"sensor-{number}") for number in range(5)]
    async with listening(broker.host, broker.port, installation.root) as backend:
        async with running_process(installation) as gateway:
            await gateway.until_connected()
            for key in keys:
                device = await device_of(gateway, key, has_cid=False).__aenter__()
                device.sleep()
            await until(lambda: len(backend.lifecycle) == 10, "they have come")
            gateway.program.kill()
            await gateway.program.end()
        async with running_process(installation):
            await until(lambda: len(backend.lifecycle) == 20, "they are known to be gone")
        async with running_process(installation) as third:
            await third.until_connected()
            # Whatever it had to correct it would have said before this.
            async with device_of(third, keys[0]) as device:
                await device.request(Code.POST, "a", b"1")
                await until(lambda: len(backend.story("sensor-0")) == 6, "it has come again")

    for number in range(1, 5):
        assert backend.story(f"sensor-{number}") == WHOLE
    assert backend.story("sensor-0")[:6] == [*WHOLE, "connected", "attached"]
    assert backend.lifecycle[10].json()["cause"] == "lost"


@pytest.mark.expects_warnings
async def test_while_the_broker_is_away_nothing_is_lost_and_the_order_stays(
    start_gateway: StartGateway, mosquitto: StartMosquitto
) -> None:
    broker = mosquitto()
    gateway = await start_gateway(broker.url, mqtt={"hold_time": 0.2})
    key = gateway.installation.add_psk("sensor-1")
    connection = gateway.gateway.connection
    broker.stop()
    await until(lambda: not connection.connected, "the broker is gone")
    for _ in range(8):
        async with gateway.device(key):
            pass
    broker.start()
    async with listening(broker.host, broker.port, gateway.installation.root) as backend:
        # Some may have been published before the backend was there: the end is what counts.
        outbox = gateway.gateway.backends.policy.outbox
        await until(lambda: len(outbox) == 0, "everything is published")
        await until(lambda: backend.story()[-1:] == ["detached"], "and heard")

    assert outbox.lost == 0
    # Coming and going eight times; of the status only what it is in the end.
    assert outbox.published == 17


@pytest.mark.expects_warnings
async def test_what_could_not_be_told_before_a_stop_is_told_after_it(
    install: Install, mosquitto: StartMosquitto
) -> None:
    """A device comes while the broker is away, and goes on after a restart of the gateway."""
    broker = mosquitto()
    installation = install(broker.url)
    key = installation.add_psk("sensor-1")
    async with running_process(installation) as gateway:
        await gateway.until_connected()
        broker.stop()
        device = await device_of(gateway, key).__aenter__()
        gateway.program.terminate()
        assert await gateway.program.end() == 0
    broker.start()
    async with (
        listening(broker.host, broker.port, installation.root) as backend,
        running_process(installation, gateway.address) as again,
    ):
        await until(lambda: backend.story() == ["connected", "attached"], "it is told")
        assert str(await device.request(Code.POST, "a", b"1")) == "2.04"
        await again.until_connected()

    assert device.handshakes == 1
    await device.__aexit__(None, None, None)
