"""What becomes of devices that are there when their credentials change, told by real clients."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from coapgate.errors import Alert
from coapgate.model import Code, Device, DeviceId, Tenant
from coapgate.pki.factory import DEVICE, FactoryCa
from tests.bus import Bus
from tests.e2e.operating import (
    SOON,
    address,
    coapgate,
    ended,
    event_of,
    goes_on,
    refusal_of,
    told,
)
from tests.gateway_fixtures import Install
from tests.gateways import GatewayProcess, Running, running_process
from tests.interop.openssl import s_client_by_psk, s_client_by_x509
from tests.interop.post import CHANGED, POST
from tests.peers import require
from tests.programs import started
from tests.rawpeer import connected


async def test_a_device_that_is_disabled_is_sent_away_and_no_other(
    gateway: Running, bus: Bus
) -> None:
    one, other = (gateway.installation.add_psk(name) for name in ("sensor-1", "sensor-2"))
    async with s_client_by_psk(gateway, one) as client, s_client_by_psk(gateway, other) as stays:
        await goes_on(client)
        await goes_on(stays)

        await coapgate(gateway.installation, "device", "disable", "sensor-1")

        async with asyncio.timeout(SOON):
            await told(client, "alert certificate revoked")
        await goes_on(stays)
    event = await event_of(bus, "sensor-1", "session-ended")
    assert b'"reason": "disabled", "credential": "psk-1"' in event.payload
    assert await refusal_of(gateway, one) is Alert.CERTIFICATE_REVOKED
    metrics = await gateway.metrics()
    assert metrics["coapgate_associations_closed_total,disabled"] == 1


async def test_a_device_that_trusts_a_certificate_no_more_is_sent_away_and_no_other(
    gateway: Running, bus: Bus
) -> None:
    installation = gateway.installation
    installation.add_anchor()
    one, other = (
        installation.certificate(installation.ca.issue_device(name))
        for name in ("sensor-1", "sensor-2")
    )
    async with (
        connected(address(gateway), one) as client,
        connected(address(gateway), other) as stays,
    ):
        await coapgate(installation, "device", "distrust", "sensor-1", "--anchor", "factory")

        assert await ended(client) is Alert.UNKNOWN_CA
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED
    event = await event_of(bus, "sensor-1", "session-ended")
    assert json.loads(event.payload)["reason"] == "credential_mismatch"
    assert await refusal_of(gateway, one) is Alert.UNKNOWN_CA

    await coapgate(installation, "device", "trust", "sensor-1", "--anchor", "factory")
    async with connected(address(gateway), one):
        pass


async def test_a_second_anchor_joins_and_the_first_one_goes_with_its_own_devices(
    gateway: Running, tmp_path: Path
) -> None:
    installation = gateway.installation
    second = FactoryCa.create("Example Factory Root")  # the same subject, another key
    (tmp_path / "second.pem").write_bytes(second.certificate_pem)
    installation.add_anchor(name="first")
    for name in ("of-first", "of-second"):
        (tmp_path / name).mkdir()
    by_key = installation.add_psk("with-a-key")
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(
            s_client_by_x509(
                gateway, installation.ca.issue_device("of-first"), tmp_path / "of-first"
            )
        )
        third = await stack.enter_async_context(s_client_by_psk(gateway, by_key))
        await goes_on(first)
        await goes_on(third)

        path = str(tmp_path / "second.pem")
        await coapgate(installation, "anchor", "add", path, "--name", "second", "--auto-provision")
        other = await stack.enter_async_context(
            s_client_by_x509(gateway, second.issue_device("of-second"), tmp_path / "of-second")
        )
        for client in (first, other, third):
            await goes_on(client)

        await coapgate(installation, "anchor", "remove", "first")

        async with asyncio.timeout(SOON):
            await told(first, "alert unknown ca")
        for client in (other, third):
            await goes_on(client)
    assert gateway.gateway.pump.detached["untrusted"] == 1


async def test_what_is_done_to_a_device_of_one_tenant_leaves_its_namesake_alone(
    gateway: Running,
) -> None:
    registry = gateway.installation.registry
    keys = []
    for tenant in ("default", "plant-4"):
        registry.add_device(Device(Tenant(tenant), DeviceId("sensor-1")))
        identity = f"{tenant}-sensor-1".encode()
        keys.append(gateway.installation.add_psk("sensor-1", identity=identity, tenant=tenant))
    async with (
        connected(address(gateway), keys[0]) as stays,
        connected(address(gateway), keys[1]) as peer,
    ):
        command = ("device", "remove", "sensor-1", "--tenant", "plant-4")
        await coapgate(gateway.installation, *command)

        assert await ended(peer) is Alert.UNKNOWN_CA
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED
    assert gateway.gateway.pump.reviews.reviewed == 1


async def test_an_anchor_that_is_disabled_is_believed_no_more_and_again_when_enabled(
    gateway: Running,
) -> None:
    installation = gateway.installation
    installation.add_anchor()
    credential = installation.certificate(installation.ca.issue_device("sensor-1"))
    async with connected(address(gateway), credential) as peer:
        await coapgate(installation, "anchor", "disable", "factory")
        assert await ended(peer) is Alert.UNKNOWN_CA
    assert await refusal_of(gateway, credential) is Alert.UNKNOWN_CA

    await coapgate(installation, "anchor", "enable", "factory")
    async with gateway.device(credential) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"


# --- what ends by time


async def test_a_certificate_that_expires_ends_its_session(gateway: Running, bus: Bus) -> None:
    installation = gateway.installation
    installation.add_anchor()
    shortly = replace(DEVICE, not_after=time.time() + 5)
    credential = installation.certificate(installation.ca.issue_device("sensor-1", profile=shortly))
    async with connected(address(gateway), credential) as peer:
        assert await ended(peer, within=5 + SOON) is Alert.CERTIFICATE_EXPIRED

    assert gateway.gateway.pump.detached == {"expired": 1}
    assert (await event_of(bus, "sensor-1", "provisioned")).content_type == "application/json"
    await event_of(bus, "sensor-1", "credential-expiring")
    ended_by = await event_of(bus, "sensor-1", "session-ended")
    assert json.loads(ended_by.payload)["reason"] == "expired"


# --- SIGHUP


async def test_sighup_exchanges_the_certificate_and_drops_nobody(
    install: Install,
) -> None:
    installation = install()
    installation.add_anchor()
    credential = installation.certificate(installation.ca.issue_device("sensor-1"))
    async with (
        running_process(installation) as gateway,
        connected(gateway.address, credential) as peer,
    ):
        before = await fingerprint_of(gateway)
        (installation.folder / "gateway.key").unlink()
        installation.ca.issue_server().write(installation.folder, "gateway")

        gateway.program.hang_up()
        await gateway.program.until(b"info reloaded")

        assert await fingerprint_of(gateway) != before
        peer.send(POST)
        assert (await peer.receive()).encode() == CHANGED

        (installation.folder / "gateway.pem").write_text("no certificate")
        after = await fingerprint_of(gateway)
        gateway.program.hang_up()
        await gateway.program.until(b"error server certificate kept")

        assert await fingerprint_of(gateway) == after
        peer.send(POST)
        metrics = await gateway.metrics()
        assert metrics["coapgate_reloads_total,failed"] == 1
        assert metrics["coapgate_reloads_total,done"] == 1


async def fingerprint_of(gateway: GatewayProcess) -> str:
    """Of the certificate that the gateway shows to OpenSSL's client."""
    host, port = gateway.address
    command = ("s_client", "-dtls1_2", "-connect", f"{host}:{port}", "-showcerts")
    async with started(require("openssl"), *command) as client:
        await client.until(b"-----END CERTIFICATE-----")
        pem = re.search(rb"-----BEGIN.*?-----END CERTIFICATE-----", client.output, re.DOTALL)
    assert pem is not None
    return x509.load_pem_x509_certificate(pem[0]).fingerprint(hashes.SHA256()).hex()
