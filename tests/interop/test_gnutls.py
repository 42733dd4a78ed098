"""GnuTLS's `gnutls-cli --udp`: every suite, by PSK and by X.509."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.bus import Bus
from tests.gateways import Running
from tests.interop.post import CHANGED, POST, was_published
from tests.peers import require
from tests.programs import Program, started

SUITES = ["AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM", "AES-256-GCM"]


def gnutls_cli(
    gateway: Running, key_exchange: str, cipher: str, *options: str
) -> AbstractAsyncContextManager[Program]:
    """Connect by DTLS 1.2 with one suite."""
    priority = f"NORMAL:-VERS-ALL:+VERS-DTLS1.2:-KX-ALL:+{key_exchange}:-CIPHER-ALL:+{cipher}"
    return started(
        require("gnutls-cli"),
        *("--udp", "--port", str(gateway.port), "--priority", priority),
        *options,
        gateway.host,
    )


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
    certificate, key = installation.ca.issue_device("sensor-7").write(tmp_path, "device")
    files = ("--x509certfile", str(certificate), "--x509keyfile", str(key))
    trust = ("--x509cafile", str(installation.ca_file), "--verify-hostname", "localhost")

    async with gnutls_cli(gateway, "ECDHE-ECDSA", suite, *files, *trust) as client:
        await client.until(b"Handshake was completed")
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")
