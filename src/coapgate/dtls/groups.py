"""Ephemeral Diffie-Hellman on named groups (RFC 8422 sections 5.1, 5.10, 5.11)."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from coapgate.errors import MalformedMessage

_Private = ec.EllipticCurvePrivateKey | x25519.X25519PrivateKey


@dataclass(frozen=True, slots=True)
class Group:
    """A named group; `curve` is None for x25519, `point_length` in octets."""

    code: int
    curve: ec.EllipticCurve | None
    point_length: int

    def generate(self) -> _Private:
        """A new ephemeral key."""
        if self.curve is None:
            return x25519.X25519PrivateKey.generate()
        return ec.generate_private_key(self.curve)

    def exchange(self, private: _Private, point: bytes) -> bytes:
        """The premaster secret, leading zeros kept (RFC 8422 section 5.10).

        Raises MalformedMessage if the point is not of the exact length, uncompressed and on the
        curve, or if x25519 yields zero (section 5.11).
        """
        if len(point) != self.point_length:
            raise MalformedMessage("point of the wrong length")
        try:
            if isinstance(private, x25519.X25519PrivateKey):
                return private.exchange(x25519.X25519PublicKey.from_public_bytes(point))
            assert self.curve is not None
            if point[0] != 4:
                raise MalformedMessage("point is not uncompressed")
            public = ec.EllipticCurvePublicKey.from_encoded_point(self.curve, point)
            return private.exchange(ec.ECDH(), public)
        except ValueError as error:
            raise MalformedMessage("point is not on the curve") from error


def encode_public(private: _Private) -> bytes:
    """The public point of an ephemeral key as it goes into a key exchange message."""
    if isinstance(private, x25519.X25519PrivateKey):
        return private.public_key().public_bytes_raw()
    return private.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


P_256 = Group(23, ec.SECP256R1(), 65)
X25519 = Group(29, None, 32)
P_384 = Group(24, ec.SECP384R1(), 97)

GROUPS: dict[int, Group] = {group.code: group for group in (P_256, X25519, P_384)}
"""By code, in our order of preference."""

CURVES = {"secp256r1": P_256, "secp384r1": P_384}
"""Groups that a server certificate's key may be on, by the curve's name."""
