"""Signature schemes: code points, keys they fit, signing, verifying (RFC 5246 7.4.1.4.1, 8422)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


@dataclass(frozen=True, slots=True)
class Scheme:
    """One SignatureAndHashAlgorithm; in TLS 1.2 an ECDSA scheme goes with any curve."""

    code: int
    key: type[ec.EllipticCurvePublicKey] | type[rsa.RSAPublicKey] | type[ed25519.Ed25519PublicKey]
    hash: hashes.HashAlgorithm | None
    padding: Callable[[], padding.AsymmetricPadding] | None = None

    def verify(self, key: PublicKey, signature: bytes, octets: bytes) -> bool:
        """Whether `key` made `signature` over `octets` with this scheme."""
        try:
            match key:
                case ec.EllipticCurvePublicKey() if self.key is ec.EllipticCurvePublicKey:
                    key.verify(signature, octets, ec.ECDSA(self._hash))
                case rsa.RSAPublicKey() if self.padding is not None:
                    key.verify(signature, octets, self.padding(), self._hash)
                case ed25519.Ed25519PublicKey() if self.key is ed25519.Ed25519PublicKey:
                    key.verify(signature, octets)
                case _:
                    return False
        except InvalidSignature:
            return False
        return True

    def sign(self, key: PrivateKey, octets: bytes) -> bytes:
        """A signature over `octets`; `key` must be of this scheme's kind."""
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key.sign(octets, ec.ECDSA(self._hash))
        if isinstance(key, rsa.RSAPrivateKey):
            assert self.padding is not None
            return key.sign(octets, self.padding(), self._hash)
        return key.sign(octets)

    @property
    def _hash(self) -> hashes.HashAlgorithm:
        assert self.hash is not None
        return self.hash


def _pss_of(algorithm: hashes.HashAlgorithm) -> Callable[[], padding.AsymmetricPadding]:
    return lambda: padding.PSS(padding.MGF1(algorithm), padding.PSS.DIGEST_LENGTH)


_SHA256, _SHA384, _SHA512 = hashes.SHA256(), hashes.SHA384(), hashes.SHA512()

SCHEMES: dict[int, Scheme] = {
    scheme.code: scheme
    for scheme in (
        Scheme(0x0403, ec.EllipticCurvePublicKey, _SHA256),
        Scheme(0x0503, ec.EllipticCurvePublicKey, _SHA384),
        Scheme(0x0603, ec.EllipticCurvePublicKey, _SHA512),
        Scheme(0x0807, ed25519.Ed25519PublicKey, None),
        Scheme(0x0804, rsa.RSAPublicKey, _SHA256, _pss_of(_SHA256)),
        Scheme(0x0805, rsa.RSAPublicKey, _SHA384, _pss_of(_SHA384)),
        Scheme(0x0806, rsa.RSAPublicKey, _SHA512, _pss_of(_SHA512)),
        Scheme(0x0401, rsa.RSAPublicKey, _SHA256, padding.PKCS1v15),
        Scheme(0x0501, rsa.RSAPublicKey, _SHA384, padding.PKCS1v15),
        Scheme(0x0601, rsa.RSAPublicKey, _SHA512, padding.PKCS1v15),
    )
}
"""By code, in our order of preference; no SHA-1."""


# To ask a private key for its public one costs as much as all the rest of a choice.
_SIGNERS: dict[type[PublicKey], type[PrivateKey]] = {
    ec.EllipticCurvePublicKey: ec.EllipticCurvePrivateKey,
    rsa.RSAPublicKey: rsa.RSAPrivateKey,
    ed25519.Ed25519PublicKey: ed25519.Ed25519PrivateKey,
}


def choose(key: PrivateKey, offered: tuple[int, ...] | None) -> Scheme | None:
    """The first scheme of ours that the peer offers and `key` can make.

    None if there is none, or if nothing was offered: that means SHA-1 (RFC 5246 7.4.1.4.1).
    """
    for scheme in SCHEMES.values():
        if offered is not None and scheme.code in offered and isinstance(key, _SIGNERS[scheme.key]):
            return scheme
    return None
