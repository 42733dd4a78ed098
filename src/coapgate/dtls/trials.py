"""Records of epoch 1, tried against the keys that a peer may have: one of them is Finished."""

from __future__ import annotations

from typing import NamedTuple

from coapgate.dtls.finished import MAX_FINISHED_RECORD, HandshakeKeys
from coapgate.dtls.keys import Transcript
from coapgate.dtls.protection import Protection
from coapgate.dtls.records import Record

MAX_HELD_RECORDS = 2
"""Records that are kept until there are keys."""
MAX_TRIALS_PER_SECOND = 32
"""Records that are opened, a second: never a fixed number in all."""


class Proof(NamedTuple):
    """A Finished that verified: by which keys, what they prove, and what answers it."""

    proves: object
    protection: Protection
    verify_data: bytes
    sequence: int
    """Of the record it came in."""


class Trials:
    """Holds records until `begin`, tries them from then on; a forgery never ends it."""

    __slots__ = (
        "_candidates",
        "_count",
        "_held",
        "_message_seq",
        "_second",
        "_transcript",
        "has_failed",
    )

    def __init__(self) -> None:
        self._held: list[Record] = []
        self._candidates: tuple[tuple[object, HandshakeKeys], ...] = ()
        self._second = self._count = 0
        self.has_failed = False
        """Whether a record that might have been Finished was not."""

    def begin(
        self,
        candidates: tuple[tuple[object, HandshakeKeys], ...],
        message_seq: int,
        transcript: Transcript,
    ) -> Proof | None:
        """From now on there are keys, each with what its use proves; `message_seq` is Finished's.

        Tries what came early.
        """
        self._candidates = candidates
        self._message_seq = message_seq
        self._transcript = transcript
        held, self._held = self._held, []
        proofs = (self._try(record) for record in held)
        return next((proof for proof in proofs if proof is not None), None)

    def receive(self, record: Record, now: float) -> Proof | None:
        """Take a record of epoch 1; with a Connection ID it may hold something else."""
        if len(record.octets) > MAX_FINISHED_RECORD:
            return None
        if self._candidates:
            return self._try(record) if self._may_try(now) else None
        if len(self._held) < MAX_HELD_RECORDS:
            self._held.append(record)
        return None

    def _may_try(self, now: float) -> bool:
        second = int(now)
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= MAX_TRIALS_PER_SECOND

    def _try(self, record: Record) -> Proof | None:
        """Try every candidate: the one that opens Finished, and fits it, is the peer's."""
        transcript = self._transcript
        for proves, keys in self._candidates:
            message = keys.open_finished(
                record.octets, self._message_seq, transcript, of_client=True
            )
            if message is not None:
                transcript.add(message)
                verify_data = keys.verify_data(transcript, of_client=False)
                return Proof(proves, keys.protection, verify_data, record.sequence)
        self.has_failed = True
        return None
