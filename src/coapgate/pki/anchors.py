"""A trust anchor, from the file an operator gives."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from coapgate.errors import CertificateError, Reason, Refused
from coapgate.model import DeviceIdSource, Tenant, TrustAnchor, is_name
from coapgate.pki.certificates import (
    judge_certificate,
    judge_issuer,
    parse_certificate,
    read_statements,
)
from coapgate.pki.keys import UNREADABLE, is_signed_by
from coapgate.pki.templates import parse_template, parse_tenant_rule

CURVE_NAMES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}

_HINTS = {
    Reason.MALFORMED: "an X.509 version 3 certificate of an authority is wanted",
    Reason.WEAK_KEY: "P-256, P-384, P-521, Ed25519 and RSA of 2048 to 4096 bits are accepted",
    Reason.WRONG_USAGE: "give the certificate of the authority that issues those of devices",
    Reason.EXPIRED: "its devices would all be refused; get the renewed certificate",
    Reason.NOT_YET_VALID: "its devices would all be refused; is the clock of this machine right?",
}


def parse_anchor(
    pem: bytes,
    *,
    name: str,
    tenant: Tenant,
    device_id_source: DeviceIdSource,
    auto_provision: bool,
    wall: float,
) -> TrustAnchor:
    """Parse the PEM of one authority, root or intermediate; `wall` is Unix seconds.

    Raises CertificateError for whatever could not be the anchor of any device: no authority, a key
    that is not accepted, expired, not yet valid, or bound by something that nobody here can judge.
    """
    for what, text in (("name", name), ("tenant", tenant)):
        if not is_name(text):
            raise CertificateError(
                f"the {what} {text!r} of a trust anchor cannot be used",
                "1 to 64 letters, digits and . _ ~ : -",
            )
    with warnings.catch_warnings(action="ignore"):
        octets = _decode(pem)
        try:
            certificate = parse_certificate(octets).parsed
            says = read_statements(certificate)
            judge_certificate(says, wall)
            judge_issuer(says, 0)
        except Refused as refused:
            raise CertificateError(
                f"the certificate for {name!r} can be no trust anchor: {refused}",
                _HINTS[refused.reason],
            ) from refused
    key = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return TrustAnchor(
        name=name,
        tenant=tenant,
        key_id=hashlib.sha256(key).digest(),
        certificate=octets,
        device_id_source=device_id_source,
        auto_provision=auto_provision,
    )


def check_rules(anchor: TrustAnchor) -> None:
    """Whether what an anchor says of its devices can be carried out. Raises CertificateError."""
    if anchor.device_id_template:
        parse_template(anchor.device_id_template, "device-id template")
    if anchor.tenant_template:
        parse_tenant_rule(anchor.tenant_template, anchor.tenants)
    elif anchor.tenants:
        raise CertificateError(
            "a list of tenants comes without a tenant template",
            "say which field of a certificate names the tenant, or --tenant for a single one",
        )
    for tenant in anchor.tenants:
        if not is_name(tenant):
            raise CertificateError(
                f"the tenant {tenant!r} of a trust anchor cannot be used",
                "1 to 64 letters, digits and . _ ~ : -",
            )
    if anchor.crl_mode == "hard" and not anchor.crl_files:
        raise CertificateError(
            "the mode hard comes without a revocation list",
            "no device would be let in: name the files of the lists, or leave it soft",
        )
    if anchor.max_validity is not None and not anchor.max_validity > 0:
        raise CertificateError("the longest validity accepted is not above 0 seconds")


def issuers_of(anchor: TrustAnchor, others: Iterable[TrustAnchor]) -> list[str]:
    """The names of those other anchors that issued this one: it is believed below them, too."""
    with warnings.catch_warnings(action="ignore"):
        own = x509.load_der_x509_certificate(anchor.certificate)
        return [
            other.name
            for other in others
            if other.key_id != anchor.key_id
            and (above := x509.load_der_x509_certificate(other.certificate)).subject == own.issuer
            and is_signed_by(own, above)
        ]


def describe_key(anchor: TrustAnchor) -> str:
    """What kind of key an anchor has, for people: `P-256`, `RSA of 2048 bits`."""
    key = x509.load_der_x509_certificate(anchor.certificate).public_key()
    match key:
        case ec.EllipticCurvePublicKey(curve=curve):
            return CURVE_NAMES.get(curve.name, curve.name)
        case rsa.RSAPublicKey(key_size=size):
            return f"RSA of {size} bits"
        case _:
            return "Ed25519"


def _decode(pem: bytes) -> bytes:
    """The DER of the one certificate in `pem`. Raises CertificateError."""
    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise CertificateError(
            "no certificate can be read from the file",
            "a PEM file is wanted; of a DER file: "
            "openssl x509 -inform der -in root.der -out root.pem",
        ) from error
    if len(certificates) != 1:
        raise CertificateError(
            f"the file holds {len(certificates)} certificates",
            "a trust anchor is one certificate: split the file and add each one that is needed",
        )
    return certificates[0].public_bytes(serialization.Encoding.DER)
