"""From a premaster secret to keys and Finished (RFC 5246 sections 5, 6.3, 7.4.9; RFC 7627)."""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.hmac import HMAC

from coapgate.dtls.suites import Suite

MASTER_SECRET_LENGTH = 48
VERIFY_DATA_LENGTH = 12

_HASHES: dict[str, HashAlgorithm] = {"sha256": SHA256(), "sha384": SHA384()}
_NEW_HASHES = {"sha256": hashlib.sha256, "sha384": hashlib.sha384}


class Prf:
    """P_hash under one secret (RFC 5246 section 5).

    Its HMAC has the secret in it once and for all: to begin one anew costs as much as five times.
    """

    __slots__ = ("_keyed",)

    def __init__(self, hash_name: str, secret: bytes) -> None:
        self._keyed = HMAC(secret, _HASHES[hash_name])

    def expand(self, label: bytes, seed: bytes, length: int) -> bytes:
        """`length` octets over `label + seed`."""
        copy = self._keyed.copy
        seed = label + seed
        a = seed
        output = b""
        while len(output) < length:
            mac = copy()
            mac.update(a)
            a = mac.finalize()
            mac = copy()
            mac.update(a + seed)
            output += mac.finalize()
        return output[:length]


def psk_premaster(key: bytes) -> bytes:
    """The premaster secret of plain PSK (RFC 4279 section 2)."""
    length = len(key).to_bytes(2, "big")
    return length + bytes(len(key)) + length + key


def master_secret(
    suite: Suite, premaster: bytes, client_random: bytes, server_random: bytes
) -> bytes:
    """Without extended master secret (RFC 5246 section 8.1)."""
    seed = client_random + server_random
    return Prf(suite.hash_name, premaster).expand(b"master secret", seed, MASTER_SECRET_LENGTH)


def extended_master_secret(suite: Suite, premaster: bytes, session_hash: bytes) -> bytes:
    """RFC 7627 section 4."""
    label = b"extended master secret"
    return Prf(suite.hash_name, premaster).expand(label, session_hash, MASTER_SECRET_LENGTH)


def key_block(suite: Suite, master: Prf, client_random: bytes, server_random: bytes) -> bytes:
    """client_write_key, server_write_key, client_write_IV, server_write_IV (RFC 5246 6.3)."""
    seed = server_random + client_random
    return master.expand(b"key expansion", seed, suite.key_block_length)


def verify_data(master: Prf, *, of_client: bool, transcript_hash: bytes) -> bytes:
    """The body of Finished (RFC 5246 section 7.4.9)."""
    label = b"client finished" if of_client else b"server finished"
    return master.expand(label, transcript_hash, VERIFY_DATA_LENGTH)


class Transcript:
    """Every handshake message so far, headers in unfragmented form (RFC 6347 section 4.2.6).

    The octets themselves are kept until `forget_octets`: CertificateVerify may use another hash
    than the PRF, and Ed25519 signs the octets.
    """

    __slots__ = ("_hash", "octets")

    def __init__(self, hash_name: str) -> None:
        self._hash = _NEW_HASHES[hash_name]()
        self.octets: bytes | None = b""

    def add(self, message: bytes) -> None:
        self._hash.update(message)
        if self.octets is not None:
            self.octets += message

    def digest(self) -> bytes:
        return self._hash.digest()

    def forget_octets(self) -> None:
        self.octets = None
