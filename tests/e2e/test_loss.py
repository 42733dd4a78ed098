"""Handshakes and requests complete although datagrams get lost in both directions."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import ClientSettings
from coapgate.model import Code
from coapgate.simulated.device import Device
from tests.fakes.relay import lossy_relay
from tests.gateway_fixtures import StartGateway
from tests.interop.post import CHANGED, POST
from tests.peers import require
from tests.programs import started

LOSS = 0.15
QUICK = {"retransmission_time": 0.3, "handshake_timeout": 60.0}
"""For [dtls]: the lost flights of this test are not to cost 9 s each."""
PERSISTENT = ClientSettings(retransmission_time=0.2, handshake_timeout=60.0, max_datagram=400)
EAGER = Reliability(ack_timeout=0.2, ack_random_factor=1.0, max_retransmit=7)


@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_ten_devices_connect_and_ask_at_15_percent_loss_each_way(
    start_gateway: StartGateway, method: str
) -> None:
    gateway = await start_gateway(dtls=QUICK)
    installation = gateway.installation
    credentials = [installation.credential(method, f"sensor-{number}") for number in range(10)]
    with lossy_relay((gateway.host, gateway.port), LOSS, seed=1302) as relay:

        async def run(number: int) -> str:
            async with Device(
                *relay.address, credentials[number], settings=PERSISTENT, reliability=EAGER
            ) as device:
                return str(await device.request(Code.POST, "a", b"x"))

        async with asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(run(number)) for number in range(10)]

    assert [task.result() for task in asking] == ["2.04"] * 10
    assert relay.lost > 10
    assert (await gateway.metrics())["coapgate_uplinks_published_total"] == 10


@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_openssl_connects_and_asks_at_15_percent_loss_each_way(
    start_gateway: StartGateway, tmp_path: Path, method: str
) -> None:
    gateway = await start_gateway(dtls=QUICK)
    installation = gateway.installation
    if method == "psk":
        key = installation.add_psk("sensor-1")
        proof = ["-psk_identity", "sensor-1", "-psk", key.secret.hex()]
    else:
        installation.add_anchor()
        certificate, private = installation.ca.issue_device("sensor-1").write(tmp_path, "device")
        proof = ["-cert", str(certificate), "-key", str(private), "-mtu", "400"]
    with lossy_relay((gateway.host, gateway.port), LOSS, seed=1302) as relay:
        where = "{}:{}".format(*relay.address)
        command = [require("openssl"), "s_client", "-dtls1_2", "-connect", where, *proof]
        async with started(*command) as client:
            # Only now: what is written during the handshake goes out in one record.
            await client.until(b"Extended master secret")
            while CHANGED not in client.output:
                client.write(POST)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await client.until(CHANGED)

    assert relay.lost > 0
    assert (await gateway.metrics())["coapgate_uplinks_published_total"] == 1
