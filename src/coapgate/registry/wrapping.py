"""How PSK secrets are encrypted in a registry: AES-256-GCM, bound to whose they are.

A wrapped secret is

    version   1 octet: 1
    key id    8 octets: which key of the key file
    nonce    12 octets, random
    sealed   the secret, then a tag of 16 octets

with the additional data tenant, device and identity, each after its length (2 octets), so that a
secret that is moved to another row, or a row that is renamed, does not open.

What the registry's owner encrypts elsewhere is encrypted under keys that are derived from those of
the key file, so that a copy of it is worth nothing without that file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coapgate.errors import RegistryError

KEY_LENGTH = 32
KEY_ID_LENGTH = 8

_VERSION = b"\x01"
_NONCE_LENGTH = 12
_NONCE_AT = len(_VERSION) + KEY_ID_LENGTH
_SEALED_AT = _NONCE_AT + _NONCE_LENGTH
_LENGTH = struct.Struct(">H")


@dataclass(frozen=True, slots=True)
class WrappingKey:
    """One key of the key file (32 octets). Its id is computed from it, so a damaged key shows."""

    key: bytes = field(repr=False)
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256(b"coapgate registry key id" + self.key).digest()
        object.__setattr__(self, "id", digest[:KEY_ID_LENGTH])

    @classmethod
    def generate(cls) -> WrappingKey:
        return cls(os.urandom(KEY_LENGTH))


class Keyring:
    """Seals with the newest key, opens with whichever sealed. Holds keys; has no repr of them."""

    def __init__(self, keys: Iterable[WrappingKey] = ()) -> None:
        """`keys` are in order of age, newest last."""
        self._keys = {key.id: key for key in keys}
        self._ciphers = {_VERSION + key.id: AESGCM(key.key) for key in self._keys.values()}
        self._newest = next(reversed(self._ciphers), None)

    @property
    def newest(self) -> bytes | None:
        """The id of the key that seals; None: there is none."""
        return self._newest and self._newest.removeprefix(_VERSION)

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Of all keys, newest last."""
        return tuple(self._keys)

    def holds(self, key_id: bytes) -> bool:
        return key_id in self._keys

    def derive(self, key_id: bytes, salt: bytes, purpose: bytes) -> bytes | None:
        """A key of 32 octets for one purpose, by HKDF-SHA256 (RFC 5869); None: that id is unknown.

        `purpose` is its `info`: whoever has a derived key learns nothing of any other.
        """
        key = self._keys.get(key_id)
        if key is None:
            return None
        return HKDF(hashes.SHA256(), KEY_LENGTH, salt, purpose).derive(key.key)

    def wrap(self, secret: bytes, tenant: str, device: str, identity: bytes) -> bytes:
        """Seal one secret."""
        assert self._newest is not None, "a keyring without keys seals nothing"
        nonce = os.urandom(_NONCE_LENGTH)
        sealed = self._ciphers[self._newest].encrypt(nonce, secret, _bind(tenant, device, identity))
        return self._newest + nonce + sealed

    def unwrap(self, wrapped: bytes, tenant: str, device: str, identity: bytes) -> bytes:
        """Open one secret.

        Raises RegistryError if it was sealed by another key or version, for another device, or
        was altered; `knows` tells the first case beforehand.
        """
        cipher = self._ciphers.get(wrapped[:_NONCE_AT])
        if cipher is None:
            raise RegistryError(
                f"a key of device {device!r} is not encrypted with any key of the key file",
                "restore the key file that belongs to this registry",
            )
        try:
            return cipher.decrypt(
                wrapped[_NONCE_AT:_SEALED_AT],
                wrapped[_SEALED_AT:],
                _bind(tenant, device, identity),
            )
        except (InvalidTag, ValueError):
            raise RegistryError(
                f"a key of device {device!r} does not open: it was altered in the registry",
                f"remove device {device!r} and add it again with a new key",
            ) from None

    def knows(self, wrapped: bytes) -> bool:
        """Whether the key that sealed this is here."""
        return wrapped[:_NONCE_AT] in self._ciphers


def _bind(tenant: str, device: str, identity: bytes) -> bytes:
    a, b = tenant.encode(), device.encode()
    pack = _LENGTH.pack
    return b"".join((pack(len(a)), a, pack(len(b)), b, pack(len(identity)), identity))
