"""One established association: its keys, counters, path and identity."""

from __future__ import annotations

from coapgate.dtls.flights import Repeats
from coapgate.dtls.paths import UnprovenPath
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import ContentType, encode
from coapgate.dtls.replay import ReplayWindow
from coapgate.model import Identity, Path

FINAL_FLIGHT_LIFETIME = 240.0
"""Seconds that our Finished is kept for a client that did not get it."""


class FinalFlight:
    """ChangeCipherSpec and Finished, for when the client repeats its own (RFC 6347 4.2.4)."""

    __slots__ = ("clear_sequence", "message", "repeats")

    def __init__(self, message: bytes, clear_sequence: int) -> None:
        self.message = message
        self.clear_sequence = clear_sequence
        self.repeats = Repeats()

    def encode_change(self) -> bytes:
        """ChangeCipherSpec, every time under a new number."""
        self.clear_sequence += 1
        return encode(ContentType.CHANGE_CIPHER_SPEC, self.clear_sequence - 1, b"\1")


class Association:
    """Mutable state of one association, from its Finished to its close; never reused.

    `id` is 8 random octets. `endpoint` belongs to the layer above. `max_plaintext` is the longest
    plaintext in octets that fits one record of one datagram. `path` changes when the peer comes
    from another one; `unproven` is there until that has proven itself. `slot` is where the store
    keeps it, -1: nowhere.
    """

    __slots__ = (
        "__weakref__",
        "endpoint",
        "final_flight",
        "id",
        "identity",
        "is_open",
        "last_seen_at",
        "max_plaintext",
        "no_renegotiation_sent",
        "path",
        "protection",
        "sequence",
        "slot",
        "unproven",
        "window",
    )

    def __init__(
        self,
        association_id: bytes,
        identity: Identity,
        path: Path,
        protection: Protection,
        max_plaintext: int,
        now: float,
    ) -> None:
        self.id = association_id
        self.identity = identity
        self.path = path
        self.protection = protection
        self.max_plaintext = max_plaintext
        self.window = ReplayWindow()
        self.sequence = 0
        self.last_seen_at = now
        self.final_flight: FinalFlight | None = None
        self.endpoint: object = None
        self.no_renegotiation_sent = False
        self.is_open = True
        self.unproven: UnprovenPath | None = None
        self.slot = -1

    def __repr__(self) -> str:
        return f"<Association {self.id.hex()} {self.identity.tenant}/{self.identity.device}>"

    def can_send(self, length: int) -> bool:
        """Whether a plaintext of `length` octets may leave now, for all that its path has proven.

        Whatever may not is dropped, as if it were lost on the way.
        """
        unproven = self.unproven
        return unproven is None or length + self.protection.overhead <= unproven.credit

    def seal(self, content_type: int, plaintext: bytes) -> bytes:
        """The next record to the peer; `sequence` must not pass MAX_SEQUENCE."""
        sequence = self.sequence
        self.sequence = sequence + 1
        return self.protection.seal(content_type, sequence, plaintext)
