"""Proof that whoever adds a trust anchor holds its key: a certificate for a code that we made up.

Without it a tenant could name another's authority as its own, and its devices with it. The code is
the common name; an authority that issues certificates can issue this one.
"""

from __future__ import annotations

import hmac
import secrets
import warnings

from cryptography import x509
from cryptography.x509.oid import NameOID

from coapgate.errors import CertificateError, Refused
from coapgate.model import TrustAnchor
from coapgate.pki.certificates import judge_certificate, read_statements
from coapgate.pki.keys import UNREADABLE, is_signed_by, signature_fault

CODE_LENGTH = 16
"""Octets; twice as many hexadecimal digits, which fit into any common name."""


def make_code() -> str:
    """A code that nobody has a certificate for yet."""
    return secrets.token_hex(CODE_LENGTH)


def verify_proof(pem: bytes, anchor: TrustAnchor, wall: float) -> None:
    """Whether the first certificate in `pem` proves possession of the key of `anchor`.

    It must name the anchor's `proof_code`, be signed by its key and be valid at `wall` (Unix
    seconds). Raises CertificateError.
    """
    with warnings.catch_warnings(action="ignore"):
        try:
            certificate = x509.load_pem_x509_certificates(pem)[0]
            authority = x509.load_der_x509_certificate(anchor.certificate)
            _verify(certificate, authority, anchor, wall)
        except UNREADABLE as error:
            raise CertificateError(
                "no certificate can be read from the file",
                "a PEM file is wanted: -----BEGIN CERTIFICATE-----",
            ) from error


def _verify(
    certificate: x509.Certificate, authority: x509.Certificate, anchor: TrustAnchor, wall: float
) -> None:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    named = str(names[0].value) if len(names) == 1 else ""
    code = anchor.proof_code
    if not code or not hmac.compare_digest(named.encode(), code.encode()):
        raise CertificateError(
            f"the certificate does not name the code of anchor {anchor.name!r}",
            f"its one common name must be {code}: let the authority issue it anew"
            if code
            else "no proof is wanted of this anchor",
        )
    if (
        certificate.issuer != authority.subject
        or signature_fault(certificate)
        or not is_signed_by(certificate, authority)
    ):
        raise CertificateError(
            f"the certificate is not signed by the key of anchor {anchor.name!r}",
            "the authority itself must have issued it, not another one above or below it",
        )
    try:
        judge_certificate(read_statements(certificate), wall)
    except Refused as refused:
        raise CertificateError(
            f"the certificate proves nothing: {refused}", "let the authority issue one for today"
        ) from refused
