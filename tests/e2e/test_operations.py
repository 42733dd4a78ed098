"""What an operator does while the gateway runs, and what he sees."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from coapgate.dtls.client import Credential, PskKey
from coapgate.errors import Alert, DeviceRefused, Reason
from coapgate.model import Code
from coapgate.simulated.device import Device
from coapgate.simulated.message import Response
from tests.fakes.broker import FakeBroker
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import Installation, Running, parse_metrics, running_process
from tests.peers import require
from tests.programs import started
from tests.waiting import until


async def coapgate(installation: Installation, *command: str) -> tuple[int, str]:
    """Run one command with the installation's configuration; its exit status and output."""
    env = os.environ | {"COAPGATE_CONFIG": str(installation.config_file)}
    async with started(sys.executable, "-m", "coapgate", *command, env=env) as program:
        status = await program.end()
    return status, program.output.decode()


async def test_a_key_that_is_added_while_the_gateway_runs_works_at_once(gateway: Running) -> None:
    identity, secret = bytes(range(1, 129)), bytes(range(16))
    key = f"hex:{secret.hex()}"
    command = ("psk", "add", "sensor-1", "--identity", f"hex:{identity.hex()}", "--key", key)

    status, output = await coapgate(gateway.installation, *command)

    assert status == 0, output
    assert secret.hex() not in output
    async with gateway.device(PskKey(identity, secret)) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"


async def test_an_anchor_that_is_added_while_the_gateway_runs_works_at_once(
    gateway: Running,
) -> None:
    installation = gateway.installation
    credential = installation.certificate(installation.ca.issue_device("sensor-7"))
    with pytest.raises(DeviceRefused) as refused:
        async with gateway.device(credential):
            pass
    assert refused.value.alert is Alert.UNKNOWN_CA

    command = ("anchor", "add", str(installation.ca_file), "--name", "factory", "--auto-provision")
    status, output = await coapgate(installation, *command)

    assert status == 0, output
    async with gateway.device(credential) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"


async def test_a_key_without_an_encoding_is_refused_with_the_three_forms(install: Install) -> None:
    command = ("psk", "add", "sensor-1", "--identity", "sensor-1", "--key", "00112233445566778899")

    status, output = await coapgate(install(), *command)

    assert status == 2
    assert "error:" in output
    assert all(form in output for form in ("hex:", "base64:", "text:"))
    assert "00112233445566778899" not in output.splitlines()[0]


async def test_sigterm_says_goodbye_where_nothing_outlives_it_and_ends_with_0(
    install: Install,
) -> None:
    installation = install(dtls={"association_store": ""})
    key = installation.add_psk("sensor-1")
    async with (
        running_process(installation) as gateway,
        Device(*gateway.address, key) as device,
    ):
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
        async with asyncio.timeout(5):
            gateway.program.terminate()
            assert await gateway.program.end() == 0
        with pytest.raises(DeviceRefused) as refused:
            await _ask_until_told(device)

    assert refused.value.alert is Alert.CLOSE_NOTIFY


async def _ask_until_told(device: Device) -> None:
    """The goodbye has arrived, or arrives while something else is awaited."""
    while True:
        await device.request(Code.POST, "a", b"x", confirmable=False, response_timeout=10)


async def test_what_sigterm_finds_in_flight_is_answered(install: Install) -> None:
    async with FakeBroker(hold_pubacks=True) as broker:
        installation = install(broker.url)
        key = installation.add_psk("sensor-1")
        async with (
            running_process(installation) as gateway,
            Device(*gateway.address, key) as device,
            asyncio.TaskGroup() as tasks,
        ):
            asking = tasks.create_task(device.request(Code.POST, "a", b"x"))
            await broker.wait_for(lambda: any("/up/" in topic for topic in broker.topics))
            async with asyncio.timeout(5):
                gateway.program.terminate()
                assert await gateway.program.end() == 0

    answer: Response = asking.result()
    assert answer.code == Code.SERVICE_UNAVAILABLE
    assert answer.max_age is not None


async def test_a_port_in_use_is_one_error_and_one_hint(install: Install) -> None:
    first = install()
    async with running_process(first) as gateway:
        second = install(dtls={"bind": "{}:{}".format(*gateway.address)})
        status, output = await coapgate(second, "run")

    assert status == 1
    error, hint = (line for line in output.splitlines() if not line.startswith("20"))
    assert error.startswith("error: cannot bind 127.0.0.1:")
    assert hint.startswith("hint: ")


async def test_metrics_satisfy_prometheus(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        await device.request(Code.POST, "a", b"x")
        await device.request(Code.GET, "nowhere")
    text = (await gateway.get("/metrics")).text

    async with started(require("promtool"), "check", "metrics") as promtool:
        promtool.write(text.encode())
        assert await promtool.end() == 0, promtool.output

    metrics = parse_metrics(text)
    assert metrics["coapgate_responses_total,2.04"] == 1
    assert metrics["coapgate_responses_total,4.04"] == 1


async def test_every_refusal_has_a_series_and_devices_have_none(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(limits={"device_rate": 1000.0})
    credentials = [
        gateway.installation.credential(method, f"{method}-{number}")
        for method in ("psk", "x509")
        for number in range(10)
    ]

    async def visit(credential: Credential) -> None:
        async with gateway.device(credential) as device:
            await device.request(Code.POST, "a", b"x")

    for credential in (credentials[0], credentials[10]):
        await visit(credential)
    lists = gateway.gateway.upkeep.lists
    await until(lambda: bool(lists.anchors), "the gateway looks at its anchors")
    few = await gateway.metrics()
    for credential in credentials:
        await visit(credential)
    many = await gateway.metrics()

    assert few.keys() == many.keys()
    assert many["coapgate_uplinks_published_total"] == 22
    assert {f"coapgate_refusals_total,{reason}" for reason in Reason} <= many.keys()


async def test_the_gateway_is_live_and_ready(gateway: Running) -> None:
    assert (await gateway.get("/livez")).status_code == 200
    assert (await gateway.get("/readyz")).json() == {"ready": True, "reasons": []}
