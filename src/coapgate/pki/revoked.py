"""Certificates revoked one by one, by command: asked by what is remembered of a path.

A certificate is what it is, whatever anchor a chain leads to: one that is revoked below an
intermediate is so, too, where its chain goes on to the root.
"""

from __future__ import annotations

import hashlib
from collections import Counter

from coapgate.model import MARK_LENGTH, MARK_PART_LENGTH

LISTED = 2 * MARK_PART_LENGTH
"""Octets of a mark that tell a certificate by its issuer and its serial number."""


def serial_mark(serial: int) -> bytes:
    """How a serial number is remembered: 8 octets."""
    return hashlib.sha256(b"%x" % serial).digest()[:MARK_PART_LENGTH]


def issuer_mark(key_id: bytes) -> bytes:
    """How an issuer is remembered, of the SHA-256 of its key: 8 octets."""
    return key_id[:MARK_PART_LENGTH]


class Singly:
    """What commands revoked. Mutable: it is counted by `add` and `remove`, since two commands may
    say one thing."""

    def __init__(self) -> None:
        self._issued: Counter[bytes] = Counter()
        self._below: dict[bytes, Counter[bytes]] = {}
        self._fingerprints: Counter[bytes] = Counter()

    def add(
        self, key_id: bytes, serial: bytes = b"", issuer: bytes = b"", fingerprint: bytes = b""
    ) -> None:
        """Revoke a certificate by its `fingerprint` (8 octets or more), or by `serial`, big-endian.

        `issuer` is the first 8 octets of the SHA-256 of its issuer's key; if empty, whoever issued
        it below the key that has the SHA-256 `key_id`.
        """
        found, mark = self._find(key_id, serial, issuer, fingerprint)
        found[mark] += 1

    def remove(
        self, key_id: bytes, serial: bytes = b"", issuer: bytes = b"", fingerprint: bytes = b""
    ) -> None:
        """Take back what was added by the same words."""
        found, mark = self._find(key_id, serial, issuer, fingerprint)
        found[mark] -= 1
        if not found[mark]:
            del found[mark]

    def _find(
        self, key_id: bytes, serial: bytes, issuer: bytes, fingerprint: bytes
    ) -> tuple[Counter[bytes], bytes]:
        """Where it is counted, and as what."""
        if fingerprint:
            return self._fingerprints, fingerprint[:MARK_PART_LENGTH]
        mark = serial_mark(int.from_bytes(serial, "big"))
        if issuer:
            return self._issued, issuer + mark
        return self._below.setdefault(issuer_mark(key_id), Counter()), mark

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._issued or self._below or self._fingerprints)

    def covers(self, path: bytes) -> bool:
        """Whether any certificate of a path (`Identity.path`) is among them."""
        issued, below, fingerprints = self._issued, self._below, self._fingerprints
        for at in range(0, len(path), MARK_LENGTH):
            if path[at : at + LISTED] in issued or path[at + LISTED : at + MARK_LENGTH] in (
                fingerprints
            ):
                return True
            # Below a key is what it issued, and all that stands before that in the path.
            serials = below.get(path[at : at + MARK_PART_LENGTH]) if below else None
            if serials is not None and any(
                path[each + MARK_PART_LENGTH : each + LISTED] in serials
                for each in range(0, at + 1, MARK_LENGTH)
            ):
                return True
        return False
