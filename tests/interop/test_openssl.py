"""OpenSSL's `s_client`: every suite, a small MTU, and goodbye."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.dtls.client import PskKey
from coapgate.pki.factory import PrivateKey
from tests.bus import Bus
from tests.gateway_fixtures import StartGateway
from tests.gateways import SHORT_HANDSHAKES, Running
from tests.interop.openssl import s_client_by_psk, s_client_by_x509
from tests.interop.post import CHANGED, POST, was_published
from tests.waiting import until

SUITES = ["AES128-CCM8", "AES128-CCM", "AES128-GCM-SHA256", "AES256-GCM-SHA384"]


@pytest.mark.parametrize("suite", SUITES)
async def test_by_psk(gateway: Running, bus: Bus, suite: str) -> None:
    key = gateway.installation.add_psk("sensor-1")

    async with s_client_by_psk(gateway, key, f"PSK-{suite}") as client:
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-1", "psk")


@pytest.mark.parametrize("suite", SUITES)
async def test_by_x509(gateway: Running, bus: Bus, tmp_path: Path, suite: str) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.issue_device("sensor-7")

    async with s_client_by_x509(gateway, issued, tmp_path, f"ECDHE-ECDSA-{suite}") as client:
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")


@pytest.mark.parametrize(
    "key",
    [
        pytest.param(ec.generate_private_key(ec.SECP384R1()), id="P-384"),
        pytest.param(ec.generate_private_key(ec.SECP521R1()), id="P-521"),
        pytest.param(ed25519.Ed25519PrivateKey.generate(), id="Ed25519"),
        pytest.param(rsa.generate_private_key(65537, 2048), id="RSA"),
    ],
)
async def test_by_x509_with_every_kind_of_key(
    gateway: Running, bus: Bus, tmp_path: Path, key: PrivateKey
) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.issue_device("sensor-7", key=key)

    async with s_client_by_x509(gateway, issued, tmp_path) as client:
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")


async def test_a_chain_in_small_fragments(gateway: Running, bus: Bus, tmp_path: Path) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.intermediate("Line 4").issue_device("sensor-7")

    async with s_client_by_x509(
        gateway, issued, tmp_path, "ECDHE-ECDSA-AES128-GCM-SHA256", "-mtu", "300"
    ) as client:
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")


async def test_a_maximum_fragment_length(gateway: Running, bus: Bus, tmp_path: Path) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.issue_device("sensor-7")

    async with s_client_by_x509(
        gateway, issued, tmp_path, "ECDHE-ECDSA-AES128-CCM8", "-maxfraglen", "512"
    ) as client:
        client.write(POST)
        await client.until(CHANGED)

    await was_published(bus, "sensor-7", "x509")


async def test_goodbye_ends_the_association(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    server = gateway.gateway.pump.server

    async with s_client_by_psk(gateway, key, "PSK-AES128-CCM8", "-no_ign_eof") as client:
        client.write(POST)
        await client.until(CHANGED)
        assert server.association_count == 1
        await client.end()

    await until(lambda: server.association_count == 0, "the association ends")


async def test_a_wrong_key_gets_nothing(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls=SHORT_HANDSHAKES)
    key = gateway.installation.add_psk("sensor-1")

    async with s_client_by_psk(gateway, PskKey(key.identity, bytes(16))) as client:
        client.write(POST)
        await gateway.refused("bad_key")

    assert gateway.gateway.pump.server.association_count == 0
    assert CHANGED not in client.output
