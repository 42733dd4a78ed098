"""Scenarios about certificates."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from coapgate.dtls.client import ClientCertificate
from coapgate.errors import Alert, DeviceRefused
from coapgate.model import DEFAULT_TENANT, Code, DeviceId, DeviceIdSource
from coapgate.pki.factory import (
    AUTHORITY,
    DAY,
    DEVICE,
    FactoryCa,
    IssuedCertificate,
    PrivateKey,
)
from tests.bus import Bus
from tests.gateway_fixtures import StartGateway
from tests.gateways import Running
from tests.pki import der


def provisioned(gateway: Running) -> list[str]:
    return [entry.device.device for entry in gateway.installation.registry.devices()]


async def refusal_of(gateway: Running, credential: ClientCertificate) -> Alert:
    """Try to connect; what the device is told."""
    with pytest.raises(DeviceRefused) as refused:
        async with gateway.device(credential):
            pass
    return refused.value.alert


async def test_a_chain_through_an_intermediate_that_the_device_sends(
    gateway: Running, bus: Bus
) -> None:
    installation = gateway.installation
    installation.add_anchor()
    issued = installation.ca.intermediate("Line 4").issue_device("sensor-7")

    async with gateway.device(installation.certificate(issued)) as device:
        assert str(await device.request(Code.PUT, "state", b"on")) == "2.04"

    published = await bus.next()
    assert published.topic == f"{bus.root}/sensor-7/up/state"
    assert published["auth"] == "x509"
    assert published["credential"].startswith("sha256:")


async def test_a_leaf_alone_below_an_intermediate_that_is_the_anchor(
    gateway: Running, bus: Bus
) -> None:
    line = gateway.installation.ca.intermediate("Line 4")
    gateway.installation.add_anchor(line)
    issued = line.issue_device("sensor-7")
    alone = IssuedCertificate(issued.chain[:1], issued.key)

    async with gateway.device(gateway.installation.certificate(alone)) as device:
        assert str(await device.request(Code.PUT, "state", b"on")) == "2.04"

    assert (await bus.next())["device"] == "sensor-7"


async def test_the_tenant_is_the_anchors_and_the_name_where_it_says(
    start_gateway: StartGateway,
) -> None:
    gateway = await start_gateway()
    gateway.installation.add_anchor(tenant="plant-4", source=DeviceIdSource.SERIAL_NUMBER)
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "not this"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-0042"),
        ]
    )
    issued = gateway.installation.ca.issue_device("", subject=subject)

    async with gateway.device(gateway.installation.certificate(issued)) as device:
        hello = await device.request(Code.GET, "hello")

    told = json.loads(hello.payload)
    assert (told["tenant"], told["device"], told["method"]) == ("plant-4", "SN-0042", "x509")


async def test_50_handshakes_at_once_provision_one_device(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"associations_per_device": 64})
    gateway.installation.add_anchor()
    credential = gateway.installation.certificate(gateway.installation.ca.issue_device("sensor-7"))

    async def connect() -> str:
        async with gateway.device(credential) as device:
            return str(await device.request(Code.POST, "a", b""))

    async with asyncio.TaskGroup() as tasks:
        connecting = [tasks.create_task(connect()) for _ in range(50)]

    assert {task.result() for task in connecting} == {"2.04"}
    assert provisioned(gateway) == ["sensor-7"]


async def test_with_provisioning_off_a_stranger_is_refused_and_a_known_device_let_in(
    gateway: Running,
) -> None:
    installation = gateway.installation
    installation.add_anchor(auto_provision=False)
    credential = installation.certificate(installation.ca.issue_device("sensor-7"))

    assert await refusal_of(gateway, credential) is Alert.UNKNOWN_CA
    assert provisioned(gateway) == []

    installation.add_psk("sensor-7")
    assert await refusal_of(gateway, credential) is Alert.UNKNOWN_CA
    installation.registry.trust(DEFAULT_TENANT, DeviceId("sensor-7"), "factory", "sensor-7")
    async with gateway.device(credential) as device:
        assert str(await device.request(Code.POST, "a", b"")) == "2.04"


async def test_provisioning_never_takes_over_a_device(gateway: Running) -> None:
    installation = gateway.installation
    installation.add_psk("sensor-7")
    installation.add_anchor()
    credential = installation.certificate(installation.ca.issue_device("sensor-7"))

    assert await refusal_of(gateway, credential) is Alert.UNKNOWN_CA
    await gateway.refused("credential_mismatch")


def _too_long_a_path(ca: FactoryCa) -> IssuedCertificate:
    short = ca.intermediate("Line 4", profile=replace(AUTHORITY, path_length=0))
    return short.intermediate("Cell 2").issue_device("sensor-7")


def _with_sha1(ca: FactoryCa) -> IssuedCertificate:
    issued = ca.issue_device("sensor-7")
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    return IssuedCertificate((der.signed_with_sha1(issued.chain[0], ca.key),), issued.key)


def _odd(**fields: Any) -> Callable[[FactoryCa], IssuedCertificate]:
    return lambda ca: ca.issue_device("sensor-7", profile=replace(DEVICE, **fields))


def _with_key(key: PrivateKey) -> Callable[[FactoryCa], IssuedCertificate]:
    return lambda ca: ca.issue_device("sensor-7", key=key)


SERVER_AUTH = (ExtendedKeyUsageOID.SERVER_AUTH,)
YESTERDAY, TOMORROW = time.time() - DAY / 2, time.time() + DAY

FAULTS: dict[str, tuple[str, Alert, Callable[[FactoryCa], IssuedCertificate]]] = {
    "expired": ("expired", Alert.CERTIFICATE_EXPIRED, _odd(not_after=YESTERDAY)),
    "not yet valid": ("not_yet_valid", Alert.CERTIFICATE_EXPIRED, _odd(not_before=TOMORROW)),
    "for servers": ("wrong_usage", Alert.BAD_CERTIFICATE, _odd(purposes=SERVER_AUTH)),
    "CA:TRUE": ("wrong_usage", Alert.BAD_CERTIFICATE, _odd(ca=True)),
    "path too long": ("path_length", Alert.UNKNOWN_CA, _too_long_a_path),
    "SHA-1": ("weak_signature", Alert.BAD_CERTIFICATE, _with_sha1),
    "P-224": (
        "weak_key",
        Alert.BAD_CERTIFICATE,
        _with_key(ec.generate_private_key(ec.SECP224R1())),
    ),
    "RSA-1024": (
        "weak_key",
        Alert.BAD_CERTIFICATE,
        _with_key(rsa.generate_private_key(65537, 1024)),
    ),
    "another root": (
        "untrusted",
        Alert.UNKNOWN_CA,
        lambda ca: FactoryCa.create("Somebody else").issue_device("sensor-7"),
    ),
    "a name for no topic": (
        "malformed",
        Alert.BAD_CERTIFICATE,
        lambda ca: ca.issue_device("sensor/#"),
    ),
}
"""What is wrong with a certificate -> the reason, what the device is told, how to make one."""


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_of_a_certificate_has_its_reason_and_alert(
    gateway: Running, fault: str
) -> None:
    reason, alert, make = FAULTS[fault]
    gateway.installation.add_anchor()
    issued = make(gateway.installation.ca)

    assert await refusal_of(gateway, gateway.installation.certificate(issued)) is alert

    await gateway.refused(reason)
    assert (await gateway.metrics())[f"coapgate_refusals_total,{reason}"] == 1
    assert provisioned(gateway) == []


async def test_a_peer_without_a_certificate_is_refused(gateway: Running) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.issue_device("sensor-7")
    without = ClientCertificate((), issued.key, gateway.installation.certificate(issued).trust)

    assert await refusal_of(gateway, without) is Alert.HANDSHAKE_FAILURE
    await gateway.refused("no_certificate")


async def test_whoever_holds_a_certificate_but_not_its_key_is_refused(gateway: Running) -> None:
    gateway.installation.add_anchor()
    issued = gateway.installation.ca.issue_device("sensor-7")
    thief = IssuedCertificate(issued.chain, ec.generate_private_key(ec.SECP256R1()))

    assert await refusal_of(gateway, gateway.installation.certificate(thief)) is Alert.DECRYPT_ERROR
    await gateway.refused("bad_signature")


async def test_an_anchor_that_is_removed_opens_no_door(gateway: Running) -> None:
    installation = gateway.installation
    installation.add_anchor()
    credential = installation.certificate(installation.ca.issue_device("sensor-7"))
    async with gateway.device(credential):
        pass

    installation.registry.remove_anchor("factory")

    assert await refusal_of(gateway, credential) is Alert.UNKNOWN_CA
