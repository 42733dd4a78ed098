"""The factory CA, judged by OpenSSL."""

from __future__ import annotations

import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

from coapgate.pki.factory import (
    DAY,
    DEVICE,
    FactoryCa,
    IssuedCertificate,
    PrivateKey,
    common_name,
)
from coapgate.pki.server import load_server_certificate
from tests.peers import require

WALL = 1_800_000_000.0


def openssl_verifies(
    issued: IssuedCertificate, root: FactoryCa, directory: Path, *, purpose: str, at: float
) -> bool:
    """Whether `openssl verify` accepts the chain at `at` (Unix seconds)."""
    certificate, _ = issued.write(directory, "leaf")
    anchor = directory / "root.pem"
    anchor.write_bytes(root.certificate_pem)
    command = [require("openssl"), "verify", "-x509_strict", "-purpose", purpose]
    command += ["-attime", str(int(at)), "-CAfile", str(anchor), "-untrusted", str(certificate)]
    finished = subprocess.run([*command, str(certificate)], capture_output=True, check=False)
    return finished.returncode == 0


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP521R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p521", "ed25519", "rsa2048"],
)
def test_openssl_accepts_what_the_factory_issues(key: PrivateKey, tmp_path: Path) -> None:
    root = FactoryCa.create("Acme Root", key=key, wall=WALL)
    device = root.intermediate("Acme Factory 1").issue_device("sensor-7", key=key)

    assert openssl_verifies(device, root, tmp_path, purpose="sslclient", at=WALL)


def test_openssl_refuses_it_when_it_has_expired_or_comes_from_elsewhere(tmp_path: Path) -> None:
    root = FactoryCa.create("Acme Root", wall=WALL)
    short = root.issue_device("sensor-7", profile=replace(DEVICE, not_after=WALL + DAY))
    for name in ("good", "late", "foreign"):
        (tmp_path / name).mkdir()

    assert openssl_verifies(short, root, tmp_path / "good", purpose="sslclient", at=WALL)
    late = WALL + 2 * DAY
    assert not openssl_verifies(short, root, tmp_path / "late", purpose="sslclient", at=late)
    other = FactoryCa.create("Acme Root", wall=WALL)
    foreign = tmp_path / "foreign"
    assert not openssl_verifies(short, other, foreign, purpose="sslclient", at=WALL)


def test_a_server_certificate_names_its_hosts_and_serves(tmp_path: Path) -> None:
    root = FactoryCa.create("Acme Root", wall=WALL)
    issued = root.intermediate("Acme Servers").issue_server(("gw.example",), ("192.0.2.1", "::1"))

    names = (
        x509.load_der_x509_certificate(issued.chain[0])
        .extensions.get_extension_for_class(x509.SubjectAlternativeName)
        .value
    )
    assert names.get_values_for_type(x509.DNSName) == ["gw.example"]
    assert [str(each) for each in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1", "::1"]
    (tmp_path / "gateway").mkdir()
    loaded = load_server_certificate(*issued.write(tmp_path / "gateway", "gateway"))
    assert loaded.chain == issued.chain
    assert openssl_verifies(issued, root, tmp_path, purpose="sslserver", at=WALL)


def test_a_chain_holds_the_intermediates_but_not_the_root() -> None:
    root = FactoryCa.create("Acme Root", wall=WALL)
    upper = root.intermediate("Acme Factories")
    lower = upper.intermediate("Acme Factory 1")

    chain = [x509.load_der_x509_certificate(each) for each in lower.issue_device("a").chain]

    assert [each.subject.rfc4514_string() for each in chain] == [
        "CN=a",
        "CN=Acme Factory 1",
        "CN=Acme Factories",
    ]
    assert len(root.issue_device("a").chain) == 1


def test_a_whole_subject_may_be_given() -> None:
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"),
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-7"),
        ]
    )

    issued = FactoryCa.create("Acme Root").issue_device("unused", subject=subject)

    assert x509.load_der_x509_certificate(issued.chain[0]).subject == subject


def test_a_written_key_is_nobody_elses(tmp_path: Path) -> None:
    issued = FactoryCa.create("Acme Root").issue_device("sensor-7")

    certificate, key = issued.write(tmp_path, "sensor-7")

    assert (certificate.name, key.name) == ("sensor-7.pem", "sensor-7.key")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert (
        loaded.public_key() == x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    )


def test_a_written_key_is_never_overwritten(tmp_path: Path) -> None:
    ca = FactoryCa.create("Acme Root")
    _, key = ca.issue_device("sensor-7").write(tmp_path, "sensor-7")
    before = key.read_bytes()

    with pytest.raises(FileExistsError):
        ca.issue_device("sensor-7").write(tmp_path, "sensor-7")

    assert key.read_bytes() == before


def test_no_repr_shows_a_key() -> None:
    ca = FactoryCa.create("Acme Root")
    issued = ca.issue_device("sensor-7")

    assert "PrivateKey" not in repr(ca) + repr(issued)
    assert common_name("a", "b").rfc4514_string() == "CN=b,CN=a"
