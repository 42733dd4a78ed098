"""What becomes of devices that are there when their credentials change, told by real clients."""

from __future__ import annotations

import asyncio
import csv
import hmac
import json
import os
import re
import secrets
import sqlite3
import sys
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding

from coapgate.dtls.client import ClientCertificate, ClientSettings, PskKey
from coapgate.errors import Alert, DeviceRefused, NoAnswer
from coapgate.model import DEFAULT_TENANT, Code, Device, DeviceId, Tenant
from coapgate.pki.factory import DAY, DEVICE, FactoryCa, IssuedCertificate
from tests.bus import Bus, Publication, listening
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import SHORT_HANDSHAKES, GatewayProcess, Installation, Running, running_process
from tests.interop.gnutls import gnutls_cli_by_x509
from tests.interop.openssl import s_client_by_psk, s_client_by_x509
from tests.interop.post import CHANGED, POST
from tests.peers import require
from tests.programs import Program, started
from tests.rawpeer import RawPeer, connected
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


async def ended(peer: RawPeer) -> Alert | None:
    """Wait until a device's association has ended; what it was told."""
    async with asyncio.timeout(SOON):
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


# --- keys that follow one another


async def rotate(gateway: Running, device: str, *options: str) -> PskKey:
    """Give a device its next key; under its own identity unless `options` name another."""
    secret = secrets.token_bytes(16)
    key = f"hex:{secret.hex()}"
    await coapgate(gateway.installation, "psk", "rotate", device, "--key", key, *options)
    identity = options[1].encode() if options else device.encode()
    return PskKey(identity, secret)


@pytest.mark.parametrize("identity", [(), ("--identity", "sensor-1-next")])
async def test_a_device_switches_to_its_next_key_and_the_old_one_goes_after_its_grace(
    start_gateway: StartGateway, identity: tuple[str, ...]
) -> None:
    gateway = await start_gateway(psk={"grace_time": 2.0}, dtls={"clock_skew": 0.0})
    old = gateway.installation.add_psk("sensor-1")
    milestones = gateway.gateway.pump.milestones
    async with listening_to(gateway) as bus, s_client_by_psk(gateway, old) as client:
        await goes_on(client)
        new = await rotate(gateway, "sensor-1", *identity)
        async with gateway.device(old) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
        assert milestones.promotions == 0

        async with s_client_by_psk(gateway, new) as switched:
            await goes_on(switched)
            event = await event_of(bus, "sensor-1", "credential-promoted")
            assert json.loads(event.payload)["credential"] == "psk-2"
            assert milestones.promotions == 1
            await goes_on(client)  # its grace

            async with asyncio.timeout(2 * SOON):
                await told(client, "alert certificate expired")
            await goes_on(switched)
    assert await refusal_of(gateway, old) is Alert.CERTIFICATE_EXPIRED
    async with gateway.device(new) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
    assert (await gateway.metrics())["coapgate_credentials_promoted_total"] == 1


async def test_a_next_key_is_promoted_once_by_50_handshakes_at_once(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway(limits={"associations_per_device": 64})
    gateway.installation.add_psk("sensor-1")
    new = await rotate(gateway, "sensor-1")

    async def connect() -> str:
        async with gateway.device(new) as device:
            return str(await device.request(Code.POST, "a", b""))

    async with asyncio.TaskGroup() as tasks:
        connecting = [tasks.create_task(connect()) for _ in range(50)]

    assert {task.result() for task in connecting} == {"2.04"}
    milestones = gateway.gateway.pump.milestones
    await until(lambda: milestones.promotions == 1, "the key is promoted")
    decisions = gateway.gateway.pump.decisions
    await until(lambda: decisions.waiting == 0, "all promotions are decided")
    assert milestones.promotions == 1


async def test_a_forged_handshake_promotes_nothing(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls=SHORT_HANDSHAKES)
    gateway.installation.add_psk("sensor-1")
    await rotate(gateway, "sensor-1", "--identity", "next")
    guessed = PskKey(b"next", bytes(16))
    settings = ClientSettings(handshake_timeout=1.0)

    with pytest.raises(NoAnswer):
        async with gateway.device(guessed, settings=settings):
            pass
    await gateway.refused("bad_key")

    assert gateway.gateway.pump.milestones.promotions == 0
    states = [entry.state for entry in gateway.installation.registry.psks()]
    assert states == ["active", "backup"]


@pytest.mark.expects_warnings("promotion not written")
async def test_a_promotion_that_cannot_be_written_keeps_no_device_out(gateway: Running) -> None:
    installation = gateway.installation
    installation.add_psk("sensor-1")
    new = await rotate(gateway, "sensor-1")
    milestones = gateway.gateway.pump.milestones
    with closing(sqlite3.connect(installation.folder / "registry.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        async with gateway.device(new) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
            await until(lambda: milestones.failed_promotions == 1, "the promotion fails")
        other.execute("ROLLBACK")

    async with gateway.device(new):
        await until(lambda: milestones.promotions == 1, "the promotion is written")


async def test_a_key_that_is_revoked_ends_its_session_and_the_other_goes_on(
    gateway: Running,
) -> None:
    old = gateway.installation.add_psk("sensor-1")
    new = await rotate(gateway, "sensor-1")
    async with (
        connected(address(gateway), old) as peer,
        connected(address(gateway), new) as stays,
    ):
        await coapgate(gateway.installation, "psk", "revoke", "psk-1")

        assert await ended(peer) is Alert.CERTIFICATE_REVOKED
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED


@pytest.mark.parametrize("client", ["coap-client-openssl", "coap-client-gnutls"])
async def test_libcoap_switches_to_its_next_key(start_gateway: StartGateway, client: str) -> None:
    gateway = await start_gateway(psk={"grace_time": 0.0}, dtls={"clock_skew": 0.0})
    gateway.installation.add_psk("sensor-1", secret=b"sixteen octets!!")
    command = ("psk", "rotate", "sensor-1", "--key", "text:sixteen octets??")
    await coapgate(gateway.installation, *command)

    async def post(key: str, seconds: int) -> str:
        options = ("-u", "sensor-1", "-k", key, "-m", "post", "-e", "on", "-B", f"{seconds}")
        target = f"coaps://{gateway.address}/state"
        async with started(require(client), *options, "-v", "7", target) as program:
            await program.end()
        return program.output.decode(errors="backslashreplace")

    assert "2.04" in await post("sixteen octets!!", 20)
    assert gateway.gateway.pump.milestones.promotions == 0
    assert "2.04" in await post("sixteen octets??", 20)
    milestones = gateway.gateway.pump.milestones
    await until(lambda: milestones.promotions == 1, "the key is promoted")
    assert "2.04" not in await post("sixteen octets!!", 2)
    await gateway.refused("expired")


# --- keys from the factory


async def test_a_thousand_derived_keys_need_no_record_and_one_of_them_can_be_revoked(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    installation = gateway.installation
    identities = [f"acme-{number:04}" for number in range(1000)]
    names = tmp_path / "identities.txt"
    names.write_text("\n".join(identities))
    master = tmp_path / "master.key"
    master.write_text(f"hex:{secrets.token_hex(32)}\n")
    master.chmod(0o600)
    create = ("batch", "create", "acme", "--pattern", "acme-{device}", "--max-devices", "1000")
    await coapgate(installation, *create, "--key-file", str(master))
    derive = ("batch", "derive", "--master-key-file", str(master), "--identities", str(names))
    output = await coapgate(installation, *derive)
    keys = {
        row["identity"]: PskKey(
            row["identity"].encode(), bytes.fromhex(row["key"].removeprefix("hex:"))
        )
        for row in csv.DictReader(output.splitlines())
    }
    assert list(keys) == identities
    assert list(installation.registry.devices()) == []

    async def connect(identity: str) -> None:
        async with gateway.device(keys[identity]) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"

    for begin in range(0, 1000, 50):
        async with asyncio.TaskGroup() as tasks:
            for identity in identities[begin : begin + 50]:
                tasks.create_task(connect(identity))
    assert len(list(installation.registry.devices())) == 1000
    provisioned = (await gateway.metrics())["coapgate_devices_provisioned_total,batch"]
    assert provisioned == 1000

    async with (
        connected(address(gateway), keys["acme-0007"]) as peer,
        connected(address(gateway), keys["acme-0008"]) as stays,
    ):
        await coapgate(installation, "psk", "revoke", "--identity", "acme-0007")
        assert await ended(peer) is Alert.CERTIFICATE_REVOKED
        assert await refusal_of(gateway, keys["acme-0007"]) is Alert.CERTIFICATE_REVOKED
        stays.send(POST)
        assert (await stays.receive()).encode() == CHANGED

        await coapgate(installation, "batch", "revoke", "acme")
        assert await ended(stays) is Alert.CERTIFICATE_REVOKED
    assert await refusal_of(gateway, keys["acme-0009"]) is Alert.CERTIFICATE_REVOKED


async def test_50_first_contacts_at_once_are_one_device(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"associations_per_device": 64})
    secret = secrets.token_bytes(32)
    create = ("batch", "create", "acme", "--pattern", "acme-{device}", "--max-devices", "1")
    await coapgate(gateway.installation, *create, "--key", f"hex:{secret.hex()}")
    key = PskKey(b"acme-7", hmac.digest(secret, b"acme-7", "sha256"))

    async def connect() -> str:
        async with gateway.device(key) as device:
            return str(await device.request(Code.POST, "a", b""))

    async with asyncio.TaskGroup() as tasks:
        connecting = [tasks.create_task(connect()) for _ in range(50)]

    assert {task.result() for task in connecting} == {"2.04"}
    assert [entry.device.device for entry in gateway.installation.registry.devices()] == ["7"]
    assert gateway.gateway.pump.milestones.provisioned == {"batch": 1}

    another = PskKey(b"acme-8", hmac.digest(secret, b"acme-8", "sha256"))
    assert await refusal_of(gateway, another) is Alert.INTERNAL_ERROR
    await gateway.refused("limit")


# --- revocation


def trust_with_list(installation: Installation, file: Path, *, mode: str = "soft") -> None:
    """Believe the factory, whose revocation list is in a file."""
    installation.add_anchor(crl_files=(str(file),), crl_mode=mode)


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
    await until(lambda: bool(lists.next_updates()), "the list is read")

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
    lists = gateway.gateway.upkeep.lists
    await until(lambda: bool(lists.next_updates()), "the list is read")
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


@pytest.mark.parametrize(
    ("validity", "reason"),
    [
        ({"not_before": 30.0}, None),
        ({"not_after": -30.0}, None),
        ({"not_before": 90.0}, "not_yet_valid"),
        ({"not_after": -90.0}, "expired"),
    ],
)
async def test_a_key_is_good_within_its_validity_and_the_clock_skew_around_it(
    gateway: Running, validity: dict[str, float], reason: str | None
) -> None:
    edges = {name: time.time() + seconds for name, seconds in validity.items()}
    key = PskKey(b"sensor-1", secrets.token_bytes(16))
    gateway.installation.registry.add_psk(
        DEFAULT_TENANT,
        DeviceId("sensor-1"),
        key.identity,
        key.secret,
        create_device=True,
        not_before=edges.get("not_before"),
        not_after=edges.get("not_after"),
    )
    if reason is None:
        async with gateway.device(key) as device:
            assert str(await device.request(Code.POST, "a", b"x")) == "2.04"
    else:
        assert await refusal_of(gateway, key) is Alert.CERTIFICATE_EXPIRED
        await gateway.refused(reason)


async def test_a_certificate_that_expires_ends_its_session(gateway: Running, bus: Bus) -> None:
    installation = gateway.installation
    installation.add_anchor()
    shortly = replace(DEVICE, not_after=time.time() + 2)
    credential = installation.certificate(installation.ca.issue_device("sensor-1", profile=shortly))
    async with connected(address(gateway), credential) as peer:
        assert await ended(peer) is Alert.CERTIFICATE_EXPIRED

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
