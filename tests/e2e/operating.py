"""What an operator does while devices are there, and what they are told."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import AbstractAsyncContextManager

import pytest

from coapgate.dtls.client import ClientCertificate, PskKey
from coapgate.errors import Alert, DeviceRefused
from tests.bus import Bus, Publication, listening
from tests.gateways import Installation, Running
from tests.interop.post import CHANGED, POST
from tests.programs import Program, started
from tests.rawpeer import RawPeer
from tests.waiting import until

SOON = 5.0
"""Seconds in which the session of a device ends that may no longer be there."""


async def coapgate(installation: Installation, *command: str) -> str:
    """Run one command as an operator does; what it printed."""
    env = os.environ | {"COAPGATE_CONFIG": str(installation.config_file)}
    async with started(sys.executable, "-m", "coapgate", *command, env=env) as program:
        status = await program.end()
    output = program.output.decode()
    assert status == 0, output
    return output


async def told(client: Program, alert: str) -> None:
    """Wait until OpenSSL's client has ended with an alert."""
    await client.until(alert.encode())


async def goes_on(client: Program) -> None:
    """A device at OpenSSL's client is answered."""
    answered = client.output.count(CHANGED)
    client.write(POST)
    await until(lambda: client.output.count(CHANGED) > answered, "the device is answered")


async def ended(peer: RawPeer, within: float = SOON) -> Alert | None:
    """Wait until a device's association has ended; what it was told."""
    async with asyncio.timeout(within):
        await peer.closed()
    return peer.client.alert


async def refusal_of(gateway: Running, credential: PskKey | ClientCertificate) -> Alert:
    """Try to connect; what the device is told."""
    with pytest.raises(DeviceRefused) as refused:
        async with gateway.device(credential):
            pass
    return refused.value.alert


async def event_of(bus: Bus, device: str, name: str) -> Publication:
    """Wait for an event of a device."""
    while True:
        published = await bus.next_event()
        if published.topic == f"{bus.root}/{device}/event/{name}":
            return published


def listening_to(gateway: Running) -> AbstractAsyncContextManager[Bus]:
    """What a gateway of a test's own publishes of devices in the default tenant."""
    broker = gateway.installation.settings.mqtt.url
    return listening(broker.host, broker.port, f"{gateway.installation.root}/default")


def address(gateway: Running) -> tuple[str, int]:
    return gateway.host, gateway.port
