"""Certificate requests (PKCS #10): a device asks, and its key stays where it is."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import NameOID

from coapgate.errors import CertificateError
from coapgate.model import is_name
from coapgate.pki.keys import UNREADABLE, PublicKey, key_fault

MAX_REQUEST_SIZE = 16384
"""Octets."""

COPIED = (
    NameOID.COMMON_NAME,
    NameOID.ORGANIZATION_NAME,
    NameOID.ORGANIZATIONAL_UNIT_NAME,
    NameOID.SERIAL_NUMBER,
)
"""What a request may say of its subject: whatever may name a device or a tenant."""


_SHORT = {
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
    NameOID.SERIAL_NUMBER: "serialNumber",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for, as far as it may: names, for a key of its own."""

    subject: x509.Name
    uris: tuple[x509.UniformResourceIdentifier, ...]
    key: PublicKey


def parse_request(pem: bytes) -> Request:
    """Parse a request, in PEM; extensions but URIs are left out, whatever they ask for.

    Raises CertificateError if it does not parse, is not signed by its own key, has a key that no
    gateway accepts, or more or less than one common name that may be a device's.
    """
    if len(pem) > MAX_REQUEST_SIZE:
        raise CertificateError(f"the request is larger than {MAX_REQUEST_SIZE} octets")
    with warnings.catch_warnings(action="ignore"):
        try:
            request = x509.load_pem_x509_csr(pem)
            is_own = request.is_signature_valid
            key = request.public_key()
            subject = x509.Name([each for each in request.subject if each.oid in COPIED])
            uris = _uris(request)
        except UNREADABLE as error:
            raise CertificateError(
                "no certificate request can be read from the file",
                "a PEM file is wanted: -----BEGIN CERTIFICATE REQUEST-----",
            ) from error
    if not is_own:
        raise CertificateError(
            "the request is not signed by its own key", "whoever made it does not hold the key"
        )
    fault = key_fault(key)
    if fault or not isinstance(key, PublicKey):
        raise CertificateError(
            f"the key of the request is not accepted: {fault}", "P-256 is what devices have"
        )
    device_of(subject)
    return Request(subject, uris, key)


def grant(
    request: Request,
    *,
    organization: str = "",
    unit: str = "",
    serial_number: str = "",
    uris: tuple[str, ...] = (),
) -> tuple[Request, tuple[str, ...]]:
    """The request with its CN, and else what the operator states; and what of its own it loses.

    Whatever else names a device may name its tenant too: that is for the operator to say, not for
    whoever holds a key. Raises CertificateError if the request asks for another value than stated.
    """
    stated = {
        NameOID.ORGANIZATION_NAME: organization,
        NameOID.ORGANIZATIONAL_UNIT_NAME: unit,
        NameOID.SERIAL_NUMBER: serial_number,
    }
    lost = []
    for oid, value in stated.items():
        asked = [str(each.value) for each in request.subject.get_attributes_for_oid(oid)]
        if value and asked and asked != [value]:
            raise _differs(f"{_SHORT[oid]} {' and '.join(map(ascii, asked))}", ascii(value))
        if not value:
            lost += [f"{_SHORT[oid]} {each!a}" for each in asked]
    wanted = [each.value for each in request.uris]
    if uris and wanted and set(wanted) != set(uris):
        raise _differs(
            f"the URIs {' and '.join(map(ascii, wanted))}", " and ".join(map(ascii, uris))
        )
    if not uris:
        lost += [f"URI {each!a}" for each in wanted]
    subject = subject_of(
        device_of(request.subject),
        organization=organization,
        unit=unit,
        serial_number=serial_number,
    )
    return Request(subject, tuple(map(parse_uri, uris)), request.key), tuple(lost)


def subject_of(
    name: str, *, organization: str = "", unit: str = "", serial_number: str = ""
) -> x509.Name:
    """A subject; empty values are left out. Raises CertificateError."""
    values = (
        (NameOID.ORGANIZATION_NAME, organization),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, unit),
        (NameOID.SERIAL_NUMBER, serial_number),
        (NameOID.COMMON_NAME, name),
    )
    try:
        return x509.Name([x509.NameAttribute(oid, value) for oid, value in values if value])
    except ValueError as error:
        raise CertificateError(
            "a value of the subject cannot be in a certificate", "each has 1 to 64 characters"
        ) from error


def device_of(subject: x509.Name) -> str:
    """The device that a subject names by its common name. Raises CertificateError."""
    names = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if len(names) != 1 or not is_name(names[0]):
        shown = " and ".join(map(ascii, names)) or "nothing"
        raise CertificateError(
            f"the subject names {shown} by CN, which is no device",
            "one CN of 1 to 64 letters, digits and . _ ~ : -",
        )
    return names[0]


def parse_uri(text: str) -> x509.UniformResourceIdentifier:
    """Raises CertificateError."""
    try:
        return x509.UniformResourceIdentifier(text)
    except ValueError as error:
        raise CertificateError(
            f"the URI {text!r} cannot be in a certificate", "it is ASCII"
        ) from error


def _differs(asked: str, stated: str) -> CertificateError:
    return CertificateError(
        f"the request asks for {asked}, not {stated}",
        "is it this device's? Nothing was signed",
    )


def _uris(
    request: x509.CertificateSigningRequest,
) -> tuple[x509.UniformResourceIdentifier, ...]:
    """Raises UNREADABLE."""
    try:
        names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    return tuple(map(x509.UniformResourceIdentifier, uris))
