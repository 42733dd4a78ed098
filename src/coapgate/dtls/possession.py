"""Whether a peer holds the key of the certificate it shows (RFC 5246 sections 7.4.6, 7.4.8)."""

from __future__ import annotations

from collections.abc import Callable

from coapgate.dtls import messages as m
from coapgate.dtls.signatures import SCHEMES, PublicKey
from coapgate.errors import Reason, Refused


class Possession:
    """A peer's Certificate until its CertificateVerify; `refusal` says what is wrong with them.

    The chain itself stays in the transcript meanwhile: 8 kB are held once.
    """

    __slots__ = ("_at", "_key", "is_empty", "refusal")

    def __init__(self, body: bytes, start: int, public_key: Callable[[bytes], PublicKey]) -> None:
        """Take a Certificate, whose body will begin at `start` in the transcript.

        Raises MalformedMessage.
        """
        chain = m.parse_certificate(body)
        self._at = slice(start, start + len(body))
        self._key: PublicKey | None = None
        self.is_empty = not chain
        self.refusal: Refused | None = None
        if not chain:
            self.refusal = Refused(Reason.NO_CERTIFICATE)
            return
        try:
            self._key = public_key(chain[0])
        except Refused as refusal:
            self.refusal = refusal

    def verify(self, body: bytes, transcript: bytes) -> tuple[bytes, ...]:
        """Take a CertificateVerify over `transcript`; returns the chain, whatever it is worth.

        The scheme must be one that was offered, and fit the key. Raises MalformedMessage.
        """
        message = m.CertificateVerify.parse(body)
        scheme = SCHEMES.get(message.scheme)
        if self._key is not None and (
            scheme is None or not scheme.verify(self._key, message.signature, transcript)
        ):
            self.refusal = Refused(Reason.BAD_SIGNATURE, f"scheme {message.scheme:#06x}")
        return m.parse_certificate(transcript[self._at])
