"""One certificate of a peer: what it says, read once, and what it must say.

Every function raises Refused and nothing else, whatever the octets are. The rules are those of
RFC 5280 section 6 that can be judged without a signature; each names its own reason, because the
verifier of `cryptography` gives text only. An absent KeyUsage or ExtendedKeyUsage permits all
(RFC 5280 4.2.1.3, 4.2.1.12).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID

from coapgate.errors import Reason, Refused
from coapgate.pki.keys import UNREADABLE, PublicKey, key_fault, public_key, signature_fault

MAX_CERTIFICATE_SIZE = 16384
"""Octets. Four times what a certificate with an RSA-4096 key and many names takes."""

MAX_SHOWN = 64
"""Characters of a peer's text in a detail."""

CLIENT_PURPOSES = frozenset(
    {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)

VERSION_TAG = 0xA0
"""Of the optional first field of a TBSCertificate: [0], constructed."""

HANDLED_EXTENSIONS: frozenset[type[x509.ExtensionType]] = frozenset(
    {
        x509.BasicConstraints,
        x509.KeyUsage,
        x509.ExtendedKeyUsage,
        x509.SubjectAlternativeName,
    }
)
"""What is judged here; another one that is critical is left to the verifier."""

Read = TypeVar("Read")
Extension = TypeVar("Extension", bound=x509.ExtensionType)


class Certificate(NamedTuple):
    """A certificate that parses, its octets, and the names by which paths are built (DER)."""

    parsed: x509.Certificate
    octets: bytes
    subject: bytes
    issuer: bytes


@dataclass(frozen=True, slots=True)
class Statements:
    """What a certificate says about itself; times are Unix seconds, faults are "" where none is.

    `path_length` is None for any. `usage` is None where the extension is absent. `serves_clients`
    is whether ExtendedKeyUsage permits clientAuth, or is absent. `has_constraints`:
    NameConstraints, or a critical extension that is not handled here.
    """

    version: x509.Version
    not_before: float
    not_after: float
    key_fault: str
    signature_fault: str
    is_ca: bool
    path_length: int | None
    usage: x509.KeyUsage | None
    serves_clients: bool
    has_ed25519_key: bool
    has_constraints: bool


def parse_certificate(octets: bytes) -> Certificate:
    """Parse DER, without its extensions. Raises Refused (malformed)."""
    if len(octets) > MAX_CERTIFICATE_SIZE:
        raise Refused(Reason.MALFORMED, f"a certificate of {len(octets)} octets")
    return read(lambda: _parse(octets))


def leaf_public_key(octets: bytes) -> PublicKey:
    """The key of a peer's certificate (DER), before anything is computed with it.

    Raises Refused (malformed, weak_key).
    """
    # The library warns of oddities on standard error: peers must not write there.
    with warnings.catch_warnings(action="ignore"):
        certificate = parse_certificate(octets).parsed
        key = read(lambda: public_key(certificate))
    fault = key_fault(key)
    if fault or not isinstance(key, PublicKey):
        raise Refused(Reason.WEAK_KEY, fault)
    return key


def read_statements(certificate: x509.Certificate) -> Statements:
    """Read what a certificate says. Raises Refused (malformed)."""
    return read(lambda: _read_statements(certificate))


def judge_certificate(says: Statements, wall: float) -> None:
    """What every certificate of a path must be, the anchor too. `wall` is Unix seconds.

    Raises Refused (malformed, weak_key, not_yet_valid, expired).
    """
    if says.version is not x509.Version.v3:
        raise Refused(Reason.MALFORMED, "version 1, which has no extensions")
    if says.key_fault:
        raise Refused(Reason.WEAK_KEY, says.key_fault)
    # notBefore and notAfter are inclusive and have no fractions (RFC 5280 4.1.2.5).
    if int(wall) < says.not_before:
        raise Refused(Reason.NOT_YET_VALID)
    if int(wall) > says.not_after:
        raise Refused(Reason.EXPIRED)


def judge_signature(says: Statements) -> None:
    """What every certificate but an anchor must be signed with. Raises Refused (weak_signature)."""
    if says.signature_fault:
        raise Refused(Reason.WEAK_SIGNATURE, says.signature_fault)


def judge_device(says: Statements) -> None:
    """What a device's own certificate must be. Raises Refused (wrong_usage)."""
    if says.is_ca:
        raise Refused(Reason.WRONG_USAGE, "the device shows a certificate of an authority")
    if says.usage is not None and not says.usage.digital_signature:
        raise Refused(Reason.WRONG_USAGE, "the key must not sign: KeyUsage digitalSignature")
    if says.usage is not None and says.usage.key_cert_sign:
        raise Refused(Reason.WRONG_USAGE, "the key may sign certificates: KeyUsage keyCertSign")
    _judge_purposes(says)


def judge_issuer(says: Statements, beneath: int) -> None:
    """What an authority must be, with `beneath` authorities below it.

    Self-issued ones count, as they do for the verifier; RFC 5280 4.2.1.9 would leave them out.

    Raises Refused (wrong_usage, path_length).
    """
    if not says.is_ca:
        raise Refused(Reason.WRONG_USAGE, "the issuer is no authority: BasicConstraints CA")
    if says.usage is not None and not says.usage.key_cert_sign:
        raise Refused(Reason.WRONG_USAGE, "the issuer must not sign: KeyUsage keyCertSign")
    _judge_purposes(says)
    if says.path_length is not None and beneath > says.path_length:
        raise Refused(
            Reason.PATH_LENGTH, f"{beneath} authorities below, {says.path_length} allowed"
        )


def printable(text: str) -> str:
    """A peer's text for a log line: quoted, ASCII, short."""
    return ascii(text[:MAX_SHOWN])


def read(find: Callable[[], Read]) -> Read:
    """What `find` gives, which reads a peer's certificate. Raises Refused (malformed)."""
    try:
        return find()
    except UNREADABLE as error:
        raise Refused(Reason.MALFORMED, "a certificate does not parse") from error


def _parse(octets: bytes) -> Certificate:
    parsed = x509.load_der_x509_certificate(octets)
    return Certificate(parsed, octets, *_names(octets))


def _names(octets: bytes) -> tuple[bytes, bytes]:
    """Subject and issuer of a certificate that parses (RFC 5280 4.1), as they stand there.

    The library makes an object of every attribute, which takes milliseconds for a thousand.
    """
    at, _ = _content(octets, 0)  # Certificate
    at, _ = _content(octets, at)  # TBSCertificate
    if octets[at] == VERSION_TAG:
        _, at = _content(octets, at)
    fields = []
    for _ in range(5):  # serialNumber, signature, issuer, validity, subject
        start, (_, at) = at, _content(octets, at)
        fields.append(octets[start:at])
    return fields[4], fields[2]


def _content(octets: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at `at` starts and ends (X.690 8.1), in sound DER."""
    length, start = octets[at + 1], at + 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(octets[at + 2 : start], "big")
    return start, start + length


def _read_statements(certificate: x509.Certificate) -> Statements:
    # Only unknown extensions share a type, and of those none is looked for.
    extensions = {type(extension.value): extension for extension in certificate.extensions}

    def get(kind: type[Extension]) -> Extension | None:
        extension = extensions.get(kind)
        # The check is for the type checker.
        return extension.value if extension and isinstance(extension.value, kind) else None

    constraints = get(x509.BasicConstraints)
    purposes = get(x509.ExtendedKeyUsage)
    key = public_key(certificate)
    return Statements(
        version=certificate.version,
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        key_fault=key_fault(key),
        signature_fault=signature_fault(certificate),
        is_ca=constraints is not None and constraints.ca,
        path_length=constraints.path_length if constraints is not None else None,
        usage=get(x509.KeyUsage),
        serves_clients=purposes is None or not CLIENT_PURPOSES.isdisjoint(purposes),
        has_ed25519_key=isinstance(key, ed25519.Ed25519PublicKey),
        has_constraints=x509.NameConstraints in extensions
        or any(
            extension.critical and type(extension.value) not in HANDLED_EXTENSIONS
            for extension in certificate.extensions
        ),
    )


def _judge_purposes(says: Statements) -> None:
    if not says.serves_clients:
        raise Refused(Reason.WRONG_USAGE, "ExtendedKeyUsage without clientAuth")
