"""Keys for association files, without a registry."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Keys:
    """The keys that are made of some words, the newest last; derives as a registry does."""

    def __init__(self, *words: bytes) -> None:
        self._keys = {_key_id(word): hashlib.sha256(word).digest() for word in words or (b"key",)}

    def newest_key_id(self) -> bytes:
        return tuple(self._keys)[-1]

    def derive_key(self, key_id: bytes, salt: bytes) -> bytes | None:
        key = self._keys.get(key_id)
        if key is None:
            return None
        return HKDF(hashes.SHA256(), 32, salt, b"coapgate association store").derive(key)


def _key_id(word: bytes) -> bytes:
    return hashlib.sha256(b"id of " + word).digest()[:8]
