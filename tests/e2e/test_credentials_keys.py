"""Keys that follow one another, and keys that a factory derives."""

from __future__ import annotations

import asyncio
import csv
import hmac
import json
import resource
import secrets
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from coapgate.dtls.client import ClientSettings, PskKey
from coapgate.errors import Alert, NoAnswer
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from tests.e2e.operating import (
    SOON,
    address,
    coapgate,
    ended,
    event_of,
    goes_on,
    listening_to,
    refusal_of,
    told,
)
from tests.gateway_fixtures import Install, StartGateway
from tests.gateways import SHORT_HANDSHAKES, Running, running_process
from tests.interop.openssl import s_client_by_psk
from tests.interop.post import CHANGED, POST
from tests.peers import require
from tests.programs import started
from tests.rawpeer import connected
from tests.waiting import until

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
    gateway = await start_gateway(psk={"grace_time": 4.0}, dtls={"clock_skew": 0.0})
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

            async with asyncio.timeout(4 + SOON):
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


async def test_a_disk_that_takes_no_more_keeps_no_known_device_out(install: Install) -> None:
    installation = install()
    old = installation.add_psk("sensor-1")
    async with (
        running_process(installation) as gateway,
        connected(gateway.address, old) as peer,
    ):
        command = ("psk", "rotate", "sensor-1", "--key", "text:sixteen octets!!")
        await coapgate(installation, *command)
        limits = resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, (4096, limits[1]))
        new = PskKey(old.identity, b"sixteen octets!!")

        async with connected(gateway.address, new) as another:
            for each in (peer, another):
                each.send(POST)
                assert (await each.receive()).encode() == CHANGED
        await gateway.program.until(b"warning promotion not written")

        resource.prlimit(gateway.pid, resource.RLIMIT_FSIZE, limits)
        async with connected(gateway.address, new):
            await gateway.program.until(b"info credential promoted")
        metrics = await gateway.metrics()
    assert metrics["coapgate_promotions_failed_total"] == 1
    assert metrics["coapgate_credentials_promoted_total"] == 1


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
