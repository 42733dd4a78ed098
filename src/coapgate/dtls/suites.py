"""The table of cipher suites and their AEADs (RFC 5288, 5289, 5487, 6655, 7251)."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESCCM, AESGCM

IV_LENGTH = 4
"""Octets of the implicit part of a nonce, from the key block (RFC 5288 section 3)."""
EXPLICIT_NONCE_LENGTH = 8
"""Octets of the explicit part, carried by each record."""


class Aead(Protocol):
    """What `cryptography` offers for AES-CCM and AES-GCM alike."""

    def encrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes: ...


class KeyExchange(enum.Enum):
    """How the premaster secret comes about."""

    PSK = "psk"
    """RFC 4279 section 2."""
    ECDHE_ECDSA = "ecdhe_ecdsa"
    """RFC 8422 section 2."""


@dataclass(frozen=True, slots=True)
class Suite:
    """One cipher suite; lengths in octets."""

    code: int
    name: str
    key_exchange: KeyExchange
    aead: Callable[[bytes], Aead]
    key_length: int
    tag_length: int
    hash_name: str
    """Of PRF, transcript and session hash, as `hashlib` calls it."""

    @property
    def overhead(self) -> int:
        """Octets that protection adds to a plaintext, besides the record header."""
        return EXPLICIT_NONCE_LENGTH + self.tag_length

    @property
    def key_block_length(self) -> int:
        """Octets of the key block: two keys, two IVs, no MAC keys (RFC 5246 section 6.3)."""
        return 2 * self.key_length + 2 * IV_LENGTH


def _ccm_8(key: bytes) -> Aead:
    return AESCCM(key, tag_length=8)


def _suite(
    code: int,
    key_exchange: KeyExchange,
    aead_name: str,
    aead: Callable[[bytes], Aead],
    key_length: int = 16,
    tag_length: int = 16,
    hash_name: str = "sha256",
) -> Suite:
    name = f"{key_exchange.name}_{aead_name}"
    return Suite(code, name, key_exchange, aead, key_length, tag_length, hash_name)


_PSK = KeyExchange.PSK
_ECDHE = KeyExchange.ECDHE_ECDSA

SUITES: dict[int, Suite] = {
    suite.code: suite
    for suite in (
        _suite(0xC0A8, _PSK, "AES_128_CCM_8", _ccm_8, tag_length=8),
        _suite(0xC0A4, _PSK, "AES_128_CCM", AESCCM),
        _suite(0x00A8, _PSK, "AES_128_GCM_SHA256", AESGCM),
        _suite(0x00A9, _PSK, "AES_256_GCM_SHA384", AESGCM, 32, hash_name="sha384"),
        _suite(0xC0AE, _ECDHE, "AES_128_CCM_8", _ccm_8, tag_length=8),
        _suite(0xC0AC, _ECDHE, "AES_128_CCM", AESCCM),
        _suite(0xC02B, _ECDHE, "AES_128_GCM_SHA256", AESGCM),
        _suite(0xC02C, _ECDHE, "AES_256_GCM_SHA384", AESGCM, 32, hash_name="sha384"),
    )
}
"""Ours by code, in the order in which the server chooses: a client library offers PSK only if it
holds a key, ECDHE by default, and AES-256 first although the device would rather not."""
