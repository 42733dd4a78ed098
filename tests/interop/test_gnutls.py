"""GnuTLS's `gnutls-cli --udp`: every suite, by PSK and by X.509."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bus import Bus
from tests.gateways import Running
from tests.interop.gnutls import gnutls_cli, gnutls_cli_by_x509
from tests.interop.post import CHANGED, POST, was_published

SUITES = ["AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM", "AES-256-GCM"]


@pytest.mark.parametrize("suite", SUITES)
async def test_by_psk(gateway: Running, bus: Bus, suite: str) -> None:
    key = gateway.installation.add_psk("sensor-1")
    identity = ("--pskusername", key.identity.decode(), "--pskkey", key.secret.hex())

    async with gnutls_cli(gateway, "PSK", suite, *identity) as client:
        await client.until(b"Handshake was completed")
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-1", "psk")


@pytest.mark.parametrize("suite", SUITES)
async def test_by_x509(gateway: Running, bus: Bus, tmp_path: Path, suite: str) -> None:
    installation = gateway.installation
    installation.add_anchor()
    issued = installation.ca.issue_device("sensor-7")

    async with gnutls_cli_by_x509(gateway, issued, tmp_path, suite) as client:
        await client.until(b"Handshake was completed")
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")
