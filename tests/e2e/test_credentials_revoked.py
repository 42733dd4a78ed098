"""Certificates that are revoked, by lists and by command."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.dtls.client import ClientSettings
from coapgate.errors import Alert, DeviceRefused
from coapgate.model import Code
from coapgate.pki.factory import DAY, FactoryCa, IssuedCertificate
from coapgate.simulated.device import Device
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
from tests.gateways import Installation, Running, running_process
from tests.interop.gnutls import gnutls_cli_by_x509
from tests.interop.openssl import s_client_by_x509
from tests.interop.post import CHANGED, POST
from tests.rawpeer import connected
from tests.waiting import until

# --- revocation


def trust_with_list(installation: Installation, file: Path, *, mode: str = "soft") -> None:
    """Believe the factory, whose revocation list is in a file."""
    installation.add_anchor(crl_files=(str(file),), crl_mode=mode)


async def has_read_list(gateway: Running) -> None:
    """Until then nobody is let in below its anchor."""
    lists = gateway.gateway.upkeep.lists
    await until(lambda: bool(lists.next_updates()), "the list is read")


def sign_list(
    ca: FactoryCa, *issued: IssuedCertificate, number: int = 1, stale_for: float = 0.0
) -> bytes:
    """The authority's list, which revokes these certificates; stale since so many seconds."""
    serials = (x509.load_der_x509_certificate(each.chain[0]).serial_number for each in issued)
    begins = ends = None
    if stale_for:
        ends = time.time() - stale_for
        begins = ends - DAY
    signed = ca.sign_list(
        dict.fromkeys(serials, ca.created_at), number=number, this_update=begins, next_update=ends
    )
    return signed.public_bytes(Encoding.PEM)


def replace_file(file: Path, octets: bytes) -> None:
    """As it is to be done: nobody reads half a file."""
    new = file.with_suffix(".new")
    new.write_bytes(octets)
    new.rename(file)


async def test_a_list_that_changes_ends_the_sessions_of_whom_it_names(
    gateway: Running, tmp_path: Path
) -> None:
    installation = gateway.installation
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca))
    trust_with_list(installation, file)
    await has_read_list(gateway)
    names = ("sensor-1", "sensor-2")
    issued = [installation.ca.issue_device(name) for name in names]
    for name in names:
        (tmp_path / name).mkdir()
    async with (
        s_client_by_x509(gateway, issued[0], tmp_path / names[0]) as client,
        s_client_by_x509(gateway, issued[1], tmp_path / names[1]) as stays,
    ):
        await goes_on(client)
        await goes_on(stays)

        replace_file(file, sign_list(installation.ca, issued[0], number=2))

        async with asyncio.timeout(SOON):
            await told(client, "alert certificate revoked")
        await goes_on(stays)
    assert await refusal_of(gateway, installation.certificate(issued[0])) is (
        Alert.CERTIFICATE_REVOKED
    )


async def test_a_list_that_revokes_an_intermediate_ends_all_below_it(
    gateway: Running, tmp_path: Path
) -> None:
    installation = gateway.installation
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca))
    trust_with_list(installation, file)
    await has_read_list(gateway)
    line, other = (installation.ca.intermediate(name) for name in ("Line 4", "Line 5"))
    below = installation.certificate(line.issue_device("sensor-4"))
    beside = installation.certificate(other.issue_device("sensor-5"))
    authority = IssuedCertificate((line.certificate.public_bytes(Encoding.DER),), line.key)
    async with (
        connected(address(gateway), below) as peer,
        connected(address(gateway), beside) as stays,
    ):
        replace_file(file, sign_list(installation.ca, authority, number=2))

        assert await ended(peer) is Alert.CERTIFICATE_REVOKED
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED


@pytest.mark.expects_warnings("revocation list kept")
async def test_a_list_of_a_stranger_leaves_the_old_one_in_force(
    gateway: Running, tmp_path: Path
) -> None:
    installation = gateway.installation
    revoked, good = (installation.ca.issue_device(name) for name in ("sensor-1", "sensor-2"))
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca, revoked))
    trust_with_list(installation, file)
    lists = gateway.gateway.upkeep.lists
    await has_read_list(gateway)

    replace_file(file, sign_list(FactoryCa.create("Example Factory Root"), good))
    await until(lambda: lists.failures == 1, "the new list is refused")

    assert await refusal_of(gateway, installation.certificate(revoked)) is (
        Alert.CERTIFICATE_REVOKED
    )
    async with gateway.device(installation.certificate(good)) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"


@pytest.mark.expects_warnings("revocation list is stale", "authentication is unavailable")
@pytest.mark.parametrize(("mode", "is_let_in"), [("soft", True), ("hard", False)])
async def test_a_stale_list_keeps_devices_out_only_where_the_anchor_says_so(
    gateway: Running, tmp_path: Path, mode: str, *, is_let_in: bool
) -> None:
    installation = gateway.installation
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca, stale_for=3600.0))
    trust_with_list(installation, file, mode=mode)
    await has_read_list(gateway)
    credential = installation.certificate(installation.ca.issue_device("sensor-1"))

    if is_let_in:
        async with gateway.device(credential) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
    else:
        assert await refusal_of(gateway, credential) is Alert.INTERNAL_ERROR
        await gateway.refused("unavailable")
    assert (await gateway.metrics())["coapgate_revocation_lists_stale"] == 1


@pytest.mark.parametrize("by", ["--serial", "--fingerprint", "--file"])
async def test_a_certificate_that_is_revoked_by_command_ends_its_session(
    gateway: Running, bus: Bus, tmp_path: Path, by: str
) -> None:
    installation = gateway.installation
    installation.add_anchor()
    issued, other = (installation.ca.issue_device(name) for name in ("sensor-1", "sensor-2"))
    certificate = x509.load_der_x509_certificate(issued.chain[0])
    (tmp_path / "one.pem").write_bytes(issued.chain_pem)
    which = {
        "--serial": f"{certificate.serial_number:X}",
        "--fingerprint": certificate.fingerprint(hashes.SHA256()).hex(":"),
        "--file": str(tmp_path / "one.pem"),
    }
    async with (
        gnutls_cli_by_x509(gateway, issued, tmp_path) as client,
        connected(address(gateway), installation.certificate(other)) as stays,
    ):
        await client.until(b"Handshake was completed")

        await coapgate(installation, "certificate", "revoke", "--anchor", "factory", by, which[by])

        async with asyncio.timeout(SOON):
            await told(client, "Certificate was revoked")
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED
    event = await event_of(bus, "sensor-1", "session-ended")
    assert json.loads(event.payload)["reason"] == "revoked"
    assert await refusal_of(gateway, installation.certificate(issued)) is (
        Alert.CERTIFICATE_REVOKED
    )


async def test_what_a_list_revokes_while_the_gateway_is_down_does_not_go_on(
    install: Install, tmp_path: Path
) -> None:
    installation = install()
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca))
    trust_with_list(installation, file)
    revoked, good = (installation.ca.issue_device(name) for name in ("sensor-1", "sensor-2"))
    async with AsyncExitStack() as stack:
        async with running_process(installation) as gateway:
            peers = [
                await stack.enter_async_context(
                    connected(
                        gateway.address,
                        installation.certificate(issued),
                        settings=ClientSettings(connection_id=b""),
                    )
                )
                for issued in (revoked, good)
            ]
            gateway.program.kill()
            await gateway.program.end()
        replace_file(file, sign_list(installation.ca, revoked, number=2))

        async with running_process(installation, gateway.address) as again:
            peers[1].send(POST)
            assert (await peers[1].receive()).encode() == CHANGED
            metrics = await again.metrics()
            assert metrics["coapgate_associations_recovered_total"] == 1
            assert metrics["coapgate_associations_closed_total,refused"] == 1


async def test_while_a_list_cannot_be_read_after_a_restart_sessions_go_on_and_nobody_new_comes(
    install: Install, tmp_path: Path
) -> None:
    installation = install()
    file = tmp_path / "factory.crl"
    file.write_bytes(sign_list(installation.ca))
    trust_with_list(installation, file)
    revoked, good, new = (installation.ca.issue_device(f"sensor-{number}") for number in range(3))
    async with AsyncExitStack() as stack:
        async with running_process(installation) as gateway:
            peers = [
                await stack.enter_async_context(
                    connected(
                        gateway.address,
                        installation.certificate(issued),
                        settings=ClientSettings(connection_id=b""),
                    )
                )
                for issued in (revoked, good)
            ]
            gateway.program.kill()
            await gateway.program.end()
        replace_file(file, b"half a list")

        async with running_process(installation, gateway.address) as again:
            for peer in peers:
                peer.send(POST)
                assert (await peer.receive()).encode() == CHANGED
            with pytest.raises(DeviceRefused) as refused:
                await stack.enter_async_context(
                    Device(*again.address, installation.certificate(new))
                )
            assert refused.value.alert is Alert.INTERNAL_ERROR

            replace_file(file, sign_list(installation.ca, revoked, number=2))

            assert await ended(peers[0]) is Alert.CERTIFICATE_REVOKED
            async with Device(*again.address, installation.certificate(new)):
                pass
            peers[1].send(POST)
            assert (await peers[1].receive()).encode() == CHANGED
