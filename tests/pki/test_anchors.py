"""Trust anchors as an operator gives them."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from coapgate.errors import CertificateError
from coapgate.model import DEFAULT_TENANT, DeviceIdSource, Tenant, TrustAnchor
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import verify_chain
from coapgate.pki.factory import (
    AUTHORITY,
    DAY,
    FactoryCa,
    PrivateKey,
    Profile,
    key_usage,
)
from tests.pki.der import version_1

WALL = 1_800_000_000.0


def parse(pem: bytes, *, name: str = "factory", tenant: str = DEFAULT_TENANT) -> TrustAnchor:
    return parse_anchor(
        pem,
        name=name,
        tenant=Tenant(tenant),
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        wall=WALL,
    )


def test_an_anchor_is_keyed_by_the_hash_of_its_public_key() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = parse(FactoryCa.create("Acme Root", key=key, wall=WALL).certificate_pem)
    renewed = parse(FactoryCa.create("Acme Root 2", key=key, wall=WALL).certificate_pem)

    public_key = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    assert first.key_id == renewed.key_id == hashlib.sha256(public_key).digest()
    assert first.certificate != renewed.certificate


def test_what_the_operator_said_stands_in_it() -> None:
    ca = FactoryCa.create("Acme Root", wall=WALL)

    anchor = parse_anchor(
        ca.certificate_pem,
        name="acme",
        tenant=Tenant("north"),
        device_id_source=DeviceIdSource.SERIAL_NUMBER,
        auto_provision=False,
        wall=WALL,
    )

    assert (anchor.name, anchor.tenant, anchor.auto_provision) == ("acme", "north", False)
    assert anchor.device_id_source is DeviceIdSource.SERIAL_NUMBER
    assert anchor.state == "active"
    assert anchor.certificate == ca.certificate.public_bytes(serialization.Encoding.DER)


def test_an_intermediate_may_be_an_anchor() -> None:
    factory = FactoryCa.create("Acme Root", wall=WALL).intermediate("Acme Factory 1")

    assert parse(factory.certificate_pem).name == "factory"


def test_text_around_the_certificate_does_not_matter() -> None:
    pem = FactoryCa.create("Acme Root", wall=WALL).certificate_pem

    assert parse(b"subject=Acme Root\r\n" + pem.replace(b"\n", b"\r\n")) == parse(pem)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p384", "p521", "ed25519", "rsa2048"],
)
def test_every_anchor_that_is_taken_can_be_verified_with(key: PrivateKey) -> None:
    ca = FactoryCa.create("Acme Root", key=key, wall=WALL)

    anchor = parse(ca.certificate_pem)

    assert verify_chain(ca.issue_device("sensor-7").chain, (anchor,), WALL).value == "sensor-7"


def test_no_anchor_is_not_a_file_of_several() -> None:
    one = FactoryCa.create("Acme Root", wall=WALL).certificate_pem

    with pytest.raises(CertificateError, match="the file holds 2 certificates") as caught:
        parse(one + FactoryCa.create("Other Root", wall=WALL).certificate_pem)

    assert "split the file" in caught.value.hint


@pytest.mark.parametrize(
    "octets",
    [
        b"",
        b"not a certificate",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        FactoryCa.create("Acme Root").certificate.public_bytes(serialization.Encoding.DER),
        FactoryCa.create("Acme Root").issue_device("a").key_pem,
    ],
    ids=["empty", "text", "garbage", "der", "key"],
)
def test_a_file_without_a_pem_certificate_is_refused_with_how_to_make_one(octets: bytes) -> None:
    with pytest.raises(CertificateError, match="no certificate can be read") as caught:
        parse(octets)

    assert "openssl x509 -inform der" in caught.value.hint


CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


@pytest.mark.parametrize(
    ("key", "profile", "message", "hint"),
    [
        (None, replace(AUTHORITY, not_after=WALL - 1), "expired", "renewed"),
        (None, replace(AUTHORITY, not_before=WALL + DAY), "not_yet_valid", "clock"),
        (None, replace(AUTHORITY, ca=False), "BasicConstraints CA", "authority that issues"),
        (None, replace(AUTHORITY, ca=None), "BasicConstraints CA", "authority that issues"),
        (
            None,
            replace(AUTHORITY, usage=key_usage(digital_signature=True)),
            "keyCertSign",
            "authority that issues",
        ),
        (None, replace(AUTHORITY, purposes=(SERVER,)), "clientAuth", "authority that issues"),
        (rsa.generate_private_key(65537, 1024), AUTHORITY, "RSA of 1024 bits", "2048 to 4096"),
        (ec.generate_private_key(ec.SECP224R1()), AUTHORITY, "curve secp224r1", "P-256"),
        (ec.generate_private_key(ec.SECP256K1()), AUTHORITY, "curve secp256k1", "P-256"),
    ],
)
def test_a_certificate_that_no_device_could_chain_to_is_refused(
    key: PrivateKey | None, profile: Profile, message: str, hint: str
) -> None:
    ca = FactoryCa.create("Acme Root", key=key, profile=profile, wall=WALL)

    with pytest.raises(CertificateError, match=message) as caught:
        parse(ca.certificate_pem)

    assert hint in caught.value.hint


def test_a_version_1_root_is_refused() -> None:
    ca = FactoryCa.create("Acme Root", wall=WALL)
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    der = version_1(ca.certificate.public_bytes(serialization.Encoding.DER), ca.key)
    pem = x509.load_der_x509_certificate(der).public_bytes(serialization.Encoding.PEM)

    with pytest.raises(CertificateError, match="version 1") as caught:
        parse(pem)

    assert "version 3" in caught.value.hint


@pytest.mark.parametrize("name", ["", "two words", "$sys", "a/b", "x" * 65])
def test_names_that_cannot_be_in_a_topic_are_refused(name: str) -> None:
    pem = FactoryCa.create("Acme Root", wall=WALL).certificate_pem

    with pytest.raises(CertificateError, match="the name"):
        parse(pem, name=name)
    with pytest.raises(CertificateError, match="the tenant"):
        parse(pem, tenant=name)


def test_purposes_of_an_authority_that_include_devices_are_fine() -> None:
    profile = replace(AUTHORITY, purposes=(SERVER, CLIENT))

    ca = FactoryCa.create("Acme Root", profile=profile, wall=WALL)

    assert parse(ca.certificate_pem).name == "factory"
