"""Stateless cookies: no state for a peer that has not shown its address (RFC 6347 4.2.1)."""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from coapgate.dtls.messages import HandshakeType, encode_message
from coapgate.dtls.presentation import vector
from coapgate.dtls.records import DTLS_1_0, ContentType, encode
from coapgate.model import Path

SECRET_LIFETIME = 300.0
"""Seconds until the secret changes; the one before it is accepted as long again."""
_SECRET_LENGTH = 32
_MAC_LENGTH = 31
_LENGTHS = struct.Struct("!HBBB")
"""Of the fields, so that no octet can move from one to the next."""


class Cookies:
    """Makes and verifies cookies: a generation octet and an HMAC-SHA256 cut to 31 octets.

    Bound to the path and to what the first fragment of a hello always holds: version, random and
    session id. The suites are not: they may stand in a later fragment.
    """

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._keyed: dict[int, HMAC] = {}

    def make(
        self, path: Path, version: bytes, random: bytes, session_id: bytes, now: float
    ) -> bytes:
        """The cookie of a hello, 32 octets."""
        generation = int(now // SECRET_LIFETIME)
        return self._cookie(generation, path, version, random, session_id)

    def verify(
        self,
        cookie: bytes,
        path: Path,
        version: bytes,
        random: bytes,
        session_id: bytes,
        now: float,
    ) -> bool:
        """Whether `cookie` is one that `make` gave this peer not long ago."""
        if len(cookie) != _MAC_LENGTH + 1:
            return False
        generation = int(now // SECRET_LIFETIME)
        if cookie[0] != generation & 0xFF:
            generation -= 1
        expected = self._cookie(generation, path, version, random, session_id)
        return hmac.compare_digest(cookie, expected)

    def _cookie(
        self, generation: int, path: Path, version: bytes, random: bytes, session_id: bytes
    ) -> bytes:
        number, address = path
        # The last is the link of a link-local IPv6 address, of an IPv4 one the port once more.
        peer = f"{number} {address[0]} {address[1]} {address[-1]}".encode()
        lengths = _LENGTHS.pack(len(peer), len(version), len(random), len(session_id))
        mac = self._keyed_by(generation).copy()
        mac.update(lengths + peer + version + random + session_id)
        return bytes((generation & 0xFF,)) + mac.finalize()[:_MAC_LENGTH]

    def _keyed_by(self, generation: int) -> HMAC:
        """An HMAC that has the secret of a generation in it; to be copied."""
        keyed = self._keyed.get(generation)
        if keyed is None:
            # A generation in which no cookie was made gets a secret too: only a forgery names it.
            keyed = self._keyed[generation] = HMAC(self._random(_SECRET_LENGTH), SHA256())
            for old in sorted(self._keyed)[:-2]:
                del self._keyed[old]
        return keyed


def hello_verify_request(record_sequence: int, message_seq: int, cookie: bytes) -> bytes:
    """The datagram that answers a hello without cookie: 60 octets, never more than the question.

    It echoes the hello's record sequence and message_seq, so that a second one to the same client
    does no harm. Version 0xFEFF whatever is negotiated (RFC 6347 section 4.2.1).
    """
    body = DTLS_1_0.to_bytes(2, "big") + vector(1, cookie)
    message = encode_message(HandshakeType.HELLO_VERIFY_REQUEST, message_seq, body)
    return encode(ContentType.HANDSHAKE, record_sequence, message, DTLS_1_0)
