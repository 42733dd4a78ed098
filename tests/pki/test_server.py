"""Loading the gateway's own certificate and key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from coapgate.errors import CertificateError
from coapgate.pki.factory import SERVER, FactoryCa, PrivateKey
from coapgate.pki.server import MAX_FILE_SIZE, load_server_certificate

WALL = 1_800_000_000.0


@pytest.fixture
def ca() -> FactoryCa:
    return FactoryCa.create("Acme Root", wall=WALL).intermediate("Acme Servers")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["p256", "p384"])
def test_a_chain_and_its_key_are_loaded(
    ca: FactoryCa, curve: ec.EllipticCurve, tmp_path: Path
) -> None:
    issued = ca.issue_server(key=ec.generate_private_key(curve))

    loaded = load_server_certificate(*issued.write(tmp_path, "gateway"))

    assert loaded.chain == issued.chain
    assert loaded.key.public_key() == issued.key.public_key()
    assert "key" not in repr(loaded)


def test_an_expired_certificate_is_loaded_and_says_so(ca: FactoryCa, tmp_path: Path) -> None:
    issued = ca.issue_server(profile=replace(SERVER, not_after=WALL))

    assert load_server_certificate(*issued.write(tmp_path, "gateway")).not_after == WALL


def test_a_key_file_may_start_with_its_parameters(ca: FactoryCa, tmp_path: Path) -> None:
    certificate, key = ca.issue_server().write(tmp_path, "gateway")
    parameters = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
    key.write_bytes(parameters + key.read_bytes())  # as `openssl ecparam -genkey` writes it

    assert load_server_certificate(certificate, key).chain


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP521R1()),
    ],
    ids=["rsa", "ed25519", "p521"],
)
def test_other_keys_than_p256_and_p384_are_refused(
    ca: FactoryCa, key: PrivateKey, tmp_path: Path
) -> None:
    files = ca.issue_server(key=key).write(tmp_path, "gateway")

    with pytest.raises(CertificateError, match="is not EC P-256 or P-384") as caught:
        load_server_certificate(*files)

    assert "openssl ecparam" in caught.value.hint


def _missing(certificate: Path, key: Path) -> None:
    certificate.unlink()


def _key_missing(certificate: Path, key: Path) -> None:
    key.unlink()


def _directory(certificate: Path, key: Path) -> None:
    certificate.unlink()
    certificate.mkdir()


def _empty(certificate: Path, key: Path) -> None:
    certificate.write_bytes(b"")


def _cut_short(certificate: Path, key: Path) -> None:
    certificate.write_bytes(certificate.read_bytes()[:300])


def _huge(certificate: Path, key: Path) -> None:
    certificate.write_bytes(bytes(MAX_FILE_SIZE + 1))


def _swapped(certificate: Path, key: Path) -> None:
    octets = certificate.read_bytes()
    certificate.write_bytes(key.read_bytes())
    key.write_bytes(octets)


def _no_key(certificate: Path, key: Path) -> None:
    key.write_bytes(certificate.read_bytes())


def _reversed(certificate: Path, key: Path) -> None:
    marker = b"-----BEGIN"
    first, second = certificate.read_bytes().split(marker)[1:]
    certificate.write_bytes(marker + second + marker + first)


def _unrelated(certificate: Path, key: Path) -> None:
    other = FactoryCa.create("Other", wall=WALL).certificate_pem
    certificate.write_bytes(certificate.read_bytes() + other)


def _many(certificate: Path, key: Path) -> None:
    certificate.write_bytes(certificate.read_bytes() * 6)


def _another_key(certificate: Path, key: Path) -> None:
    key.write_bytes(FactoryCa.create("x").issue_server().key_pem)


def _encrypted(certificate: Path, key: Path) -> None:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        loaded.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )


@pytest.mark.parametrize(
    ("spoil", "message", "hint"),
    [
        (_missing, "the certificate .* cannot be read: No such file", "who may read"),
        (_key_missing, "the private key .* cannot be read: No such file", "who may read"),
        (_directory, "the certificate .* cannot be read: Is a directory", "who may read"),
        (_empty, "no certificates can be read", "BEGIN CERTIFICATE"),
        (_cut_short, "no certificates can be read", "BEGIN CERTIFICATE"),
        (_huge, "is larger than", ""),
        (_swapped, "no certificates can be read", "BEGIN CERTIFICATE"),
        (_no_key, "no private key can be read", "BEGIN PRIVATE KEY"),
        (_reversed, "is not a chain: 'CN=Acme Servers' is not followed", "own certificate first"),
        (_unrelated, "is not a chain: 'CN=Acme Servers' is not followed by its issuer", "followed"),
        (_many, "holds 12 certificates", "at most 10"),
        (_another_key, "does not belong to the first certificate", "starts with"),
        (_encrypted, "is encrypted", "openssl pkey -in"),
    ],
)
def test_files_that_cannot_be_used_are_told_with_what_to_do(
    ca: FactoryCa,
    spoil: Callable[[Path, Path], None],
    message: str,
    hint: str,
    tmp_path: Path,
) -> None:
    certificate, key = ca.issue_server().write(tmp_path, "gateway")
    spoil(certificate, key)

    with pytest.raises(CertificateError, match=message) as caught:
        load_server_certificate(certificate, key)

    assert hint in caught.value.hint
