"""Which keys and signature algorithms a certificate may have."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import SignatureAlgorithmOID

PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey

UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for octets that are no sound certificate; not all are ValueErrors."""

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)

MIN_RSA_SIZE = 2048
MAX_RSA_SIZE = 4096
"""Bits. The upper bound keeps one verification below a tenth of a millisecond."""

MAX_RSA_EXPONENT = 1 << 32
"""An exponent as long as the modulus would make a verification cost a hundred times as much."""

SIGNATURE_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
SIGNATURE_ALGORITHMS = frozenset(
    {
        SignatureAlgorithmOID.ECDSA_WITH_SHA256,
        SignatureAlgorithmOID.ECDSA_WITH_SHA384,
        SignatureAlgorithmOID.ECDSA_WITH_SHA512,
        SignatureAlgorithmOID.RSA_WITH_SHA256,
        SignatureAlgorithmOID.RSA_WITH_SHA384,
        SignatureAlgorithmOID.RSA_WITH_SHA512,
        SignatureAlgorithmOID.RSASSA_PSS,
        SignatureAlgorithmOID.ED25519,
    }
)


def public_key(certificate: x509.Certificate) -> CertificatePublicKeyTypes | None:
    """The key of a certificate; None if it is of a kind that the library does not know.

    Raises UNREADABLE.
    """
    try:
        return certificate.public_key()
    except UnsupportedAlgorithm:
        return None


def key_fault(key: CertificatePublicKeyTypes | None) -> str:
    """Why a key is not accepted, or "" if it is; None is a key of an unknown kind."""
    match key:
        case ec.EllipticCurvePublicKey(curve=curve):
            return "" if isinstance(curve, CURVES) else f"curve {curve.name}"
        case rsa.RSAPublicKey(key_size=size):
            if not MIN_RSA_SIZE <= size <= MAX_RSA_SIZE:
                return f"RSA of {size} bits"
            return "" if key.public_numbers().e < MAX_RSA_EXPONENT else "RSA with a long exponent"
        case ed25519.Ed25519PublicKey():
            return ""
        case _:
            return "an unknown kind of key"


def signature_fault(signed: x509.Certificate | x509.CertificateRevocationList) -> str:
    """Why the algorithm something is signed with is not accepted, or "" if it is."""
    oid = signed.signature_algorithm_oid
    if oid not in SIGNATURE_ALGORITHMS:
        return f"signature algorithm {oid.dotted_string}"
    if oid == SignatureAlgorithmOID.ED25519:
        return ""
    algorithm = signed.signature_hash_algorithm
    if isinstance(algorithm, SIGNATURE_HASHES):
        return ""
    return "a signature over an unknown hash" if algorithm is None else f"hash {algorithm.name}"


def is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether the key of `issuer`, which must be accepted, signed `certificate`.

    That the names match is for the caller to see. Algorithms that are not accepted are tried too:
    only a certificate that an anchor really issued is refused as weak, any other as untrusted, so
    nobody learns the names of anchors.
    """
    try:
        if signature_fault(certificate):
            return _has_weak_signature_of(certificate, issuer)
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _has_weak_signature_of(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Verify what `verify_directly_issued_by` does not, such as SHA-1. Raises InvalidSignature."""
    algorithm = certificate.signature_hash_algorithm
    if algorithm is None:
        return False
    signature, octets = certificate.signature, certificate.tbs_certificate_bytes
    match issuer.public_key():
        case ec.EllipticCurvePublicKey() as key:
            key.verify(signature, octets, ec.ECDSA(algorithm))
        case rsa.RSAPublicKey() as key:
            scheme = certificate.signature_algorithm_parameters
            if not isinstance(scheme, padding.PSS):
                scheme = padding.PKCS1v15()
            key.verify(signature, octets, scheme, algorithm)
        case _:
            return False
    return True
