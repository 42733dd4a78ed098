"""The certificate the gateway shows to its devices."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coapgate.errors import CertificateError
from coapgate.pki.keys import UNREADABLE

MAX_FILE_SIZE = 1 << 20
"""Octets; a chain of certificates is a few thousand."""

MAX_CHAIN_LENGTH = 10


@dataclass(frozen=True, slots=True)
class ServerCertificate:
    """The gateway's chain, DER and leaf first, with the key of the leaf: P-256 or P-384."""

    chain: tuple[bytes, ...] = field(repr=False)
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @property
    def not_after(self) -> float:
        """When the first certificate of the chain ends, in Unix seconds."""
        return min(not_after(each) for each in self.chain)


def not_after(certificate: bytes) -> float:
    """When a certificate (DER) ends, in Unix seconds."""
    return x509.load_der_x509_certificate(certificate).not_valid_after_utc.timestamp()


def load_server_certificate(certificate_file: Path, key_file: Path) -> ServerCertificate:
    """Load a PEM chain, leaf first, and the PEM key of its leaf.

    Raises CertificateError when a file cannot be read, the key is encrypted, is not EC P-256 or
    P-384 or does not belong to the leaf, or a certificate is not followed by its issuer.
    Validity is not judged: PSK devices are to be served whatever `not_after` is.
    """
    chain = _load_chain(certificate_file)
    key = _load_key(key_file)
    if key.public_key() != chain[0].public_key():
        raise CertificateError(
            f"the key {str(key_file)!r} does not belong to the first certificate of "
            f"{str(certificate_file)!r}",
            "the chain starts with the gateway's own certificate, then its issuers",
        )
    encoding = serialization.Encoding.DER
    return ServerCertificate(tuple(each.public_bytes(encoding) for each in chain), key)


def _load_chain(file: Path) -> list[x509.Certificate]:
    try:
        chain = x509.load_pem_x509_certificates(_read(file, "certificate"))
        chain[0].public_key()
        names = [(each.subject, each.issuer) for each in chain]
    except UNREADABLE as error:
        raise CertificateError(
            f"no certificates can be read from {str(file)!r}",
            "a PEM file is wanted: -----BEGIN CERTIFICATE----- blocks, the gateway's own first",
        ) from error
    if len(chain) > MAX_CHAIN_LENGTH:
        raise CertificateError(
            f"{str(file)!r} holds {len(chain)} certificates",
            f"only the gateway's own and its issuers, at most {MAX_CHAIN_LENGTH}",
        )
    for (subject, issuer), (next_subject, _) in itertools.pairwise(names):
        if issuer != next_subject:
            raise CertificateError(
                f"{str(file)!r} is not a chain: {subject.rfc4514_string()!r} is not followed by "
                f"its issuer {issuer.rfc4514_string()!r}",
                "the gateway's own certificate first, each one followed by its issuer",
            )
    return chain


def _load_key(file: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(file, "private key"), password=None)
    except TypeError as error:
        raise CertificateError(
            f"the private key {str(file)!r} is encrypted",
            f"decrypt it: openssl pkey -in {file} -out gateway.key; chmod 600 gateway.key",
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise CertificateError(
            f"no private key can be read from {str(file)!r}",
            "a PEM file is wanted: -----BEGIN PRIVATE KEY-----",
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1
    ):
        raise CertificateError(
            f"the private key {str(file)!r} is not EC P-256 or P-384",
            "constrained devices expect an elliptic curve: openssl ecparam -name prime256v1 "
            "-genkey -noout -out gateway.key",
        )
    return key


def _read(file: Path, what: str) -> bytes:
    """A file that holds the `what`. Raises CertificateError."""
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_SIZE + 1)
    except OSError as error:
        raise CertificateError(
            f"the {what} {str(file)!r} cannot be read: {error.strerror}",
            "check dtls.certificate and dtls.private_key, and who may read the files",
        ) from error
    if len(content) > MAX_FILE_SIZE:
        raise CertificateError(f"the {what} {str(file)!r} is larger than {MAX_FILE_SIZE} octets")
    return content
