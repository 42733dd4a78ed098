"""Certificates that no library makes: a certificate taken apart, changed and signed again."""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

ECDSA_WITH_SHA1 = bytes.fromhex("3009 06072a8648ce3d0401")
ED25519 = bytes.fromhex("3005 06032b6570")
ECDSA_WITH_SHA256 = bytes.fromhex("300a 06082a8648ce3d040302")

SEQUENCE, BIT_STRING, VERSION, EXTENSIONS = 0x30, 0x03, 0xA0, 0xA3


def element(tag: int, content: bytes) -> bytes:
    """Tag, length, content."""
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def elements(octets: bytes) -> list[bytes]:
    """The elements that follow one another in `octets`, each whole."""
    found = []
    while octets:
        header, length = 2, octets[1]
        if length & 0x80:
            header += length & 0x7F
            length = int.from_bytes(octets[2:header], "big")
        found.append(octets[: header + length])
        octets = octets[header + length :]
    return found


def content(octets: bytes) -> bytes:
    """What is inside the one element `octets`."""
    return octets[2 + (octets[1] & 0x7F if octets[1] & 0x80 else 0) :]


def to_be_signed(certificate: bytes) -> bytes:
    return elements(content(certificate))[0]


def signed(
    to_be_signed: bytes,
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    *,
    algorithm: bytes = ECDSA_WITH_SHA256,
    signature_hash: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A certificate around `to_be_signed`, whatever that is; an Ed25519 key says so itself."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        algorithm, signature = ED25519, key.sign(to_be_signed)
    else:
        signature = key.sign(to_be_signed, ec.ECDSA(signature_hash or hashes.SHA256()))
    return element(SEQUENCE, to_be_signed + algorithm + element(BIT_STRING, b"\x00" + signature))


def changed(
    certificate: bytes,
    key: ec.EllipticCurvePrivateKey,
    change: Callable[[list[bytes]], list[bytes]],
) -> bytes:
    """The certificate with the fields of its TBSCertificate changed, signed again with `key`.

    Fields: [0] version, serial, signature, issuer, validity, subject, key, [3] extensions.
    """
    fields = change(elements(content(to_be_signed(certificate))))
    return signed(element(SEQUENCE, b"".join(fields)), key)


def version_1(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate as a version 1 one, which has no extensions."""
    return changed(
        certificate, key, lambda fields: [f for f in fields if f[0] not in (VERSION, EXTENSIONS)]
    )


def signed_with_sha1(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The certificate signed with ecdsa-with-SHA1."""
    fields = elements(content(to_be_signed(certificate)))
    fields[2] = ECDSA_WITH_SHA1
    return signed(
        element(SEQUENCE, b"".join(fields)),
        key,
        algorithm=ECDSA_WITH_SHA1,
        signature_hash=hashes.SHA1(),
    )
