"""The key of a certificate, read before anything is computed with it."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from coapgate.errors import Reason, Refused
from coapgate.pki.certificates import leaf_public_key
from coapgate.pki.factory import DEVICE, FactoryCa, common_name
from tests.pki import der

RSA_2048 = rsa.generate_private_key(65537, 2048).public_key()


def certificate_for(key: CertificatePublicKeyTypes) -> bytes:
    certificate = FactoryCa.create("Acme Root").sign(
        common_name("sensor-7"),
        key,  # type: ignore[arg-type]  # odd ones too
        DEVICE,
    )
    return certificate.public_bytes(serialization.Encoding.DER)


def rsa_of(size: int, exponent: int = 65537) -> rsa.RSAPublicKey:
    """A key that nobody has: an odd modulus of that many bits is enough to look like one."""
    return rsa.RSAPublicNumbers(exponent, (1 << (size - 1)) | 1).public_key()


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP521R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        RSA_2048,
        rsa_of(2048, 3),
        rsa_of(3072),
        rsa_of(4096),
    ],
)
def test_the_kinds_of_keys_that_are_accepted(key: CertificatePublicKeyTypes) -> None:
    assert leaf_public_key(certificate_for(key)) == key


@pytest.mark.parametrize(
    ("key", "detail"),
    [
        (ec.generate_private_key(ec.SECP224R1()).public_key(), "curve secp224r1"),
        (ec.generate_private_key(ec.SECP256K1()).public_key(), "curve secp256k1"),
        (ec.generate_private_key(ec.BrainpoolP256R1()).public_key(), "curve brainpoolP256r1"),
        (rsa_of(1024), "RSA of 1024 bits"),
        (rsa_of(2047), "RSA of 2047 bits"),
        (rsa_of(4097), "RSA of 4097 bits"),
        (rsa_of(16384), "RSA of 16384 bits"),
        (rsa_of(2048, (1 << 32) | 1), "RSA with a long exponent"),
        (ed448.Ed448PrivateKey.generate().public_key(), "an unknown kind of key"),
        (dsa.generate_private_key(1024).public_key(), "an unknown kind of key"),
    ],
    ids=str,
)
def test_the_kinds_of_keys_that_are_not(key: CertificatePublicKeyTypes, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        leaf_public_key(certificate_for(key))

    assert (caught.value.reason, caught.value.detail) == (Reason.WEAK_KEY, detail)


def test_a_key_of_an_algorithm_nobody_knows_is_not_accepted() -> None:
    ca = FactoryCa.create("Acme Root")
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)
    elliptic_curve, other = bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06072a8648ce3d027f")

    def replaced(fields: list[bytes]) -> list[bytes]:
        return [field.replace(elliptic_curve, other) for field in fields]

    odd = der.changed(ca.issue_device("sensor-7").chain[0], ca.key, replaced)

    with pytest.raises(Refused, match="weak_key: an unknown kind of key"):
        leaf_public_key(odd)


def test_a_point_that_is_not_on_the_curve_is_malformed() -> None:
    ca = FactoryCa.create("Acme Root")
    assert isinstance(ca.key, ec.EllipticCurvePrivateKey)

    def off_the_curve(fields: list[bytes]) -> list[bytes]:
        return [*fields[:6], fields[6][:-1] + bytes((fields[6][-1] ^ 1,)), *fields[7:]]

    odd = der.changed(ca.issue_device("sensor-7").chain[0], ca.key, off_the_curve)

    with pytest.raises(Refused, match="malformed"):
        leaf_public_key(odd)


@pytest.mark.parametrize("cut", [0, 1, 20, 200])
def test_a_certificate_cut_short_is_malformed(cut: int) -> None:
    with pytest.raises(Refused) as caught:
        leaf_public_key(certificate_for(RSA_2048)[:cut])

    assert caught.value.reason is Reason.MALFORMED
