"""What the server reports: a handshake that needs an answer, one that failed, one that opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from coapgate.dtls.association import Association
from coapgate.errors import Reason
from coapgate.model import Path


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key that a claimed identity may have, and what its use proves: ours to hand back."""

    secret: bytes = field(repr=False)
    proves: object


class KeysRequested(NamedTuple):
    """A peer claims a PSK identity; answer with `Server.offer_keys`."""

    handshake: int
    identity: bytes


class KeyProven(NamedTuple):
    """A peer's Finished verified with a candidate that `proves` this; `accept` or `refuse` it."""

    handshake: int
    path: Path
    proves: object


class ChainProven(NamedTuple):
    """A peer holds the key of the first certificate; judge the chain, then `accept` or `refuse`.

    `chain` is DER, leaf first, as sent: nothing in it was believed yet.
    """

    handshake: int
    path: Path
    chain: tuple[bytes, ...]


class HandshakeFailed(NamedTuple):
    """A handshake ended without association; `identity` as claimed, None if none was."""

    path: Path
    reason: Reason
    detail: str = ""
    identity: bytes | None = None


class AssociationClosed(NamedTuple):
    """An association is gone; `cause` is one word: `peer`, `replaced`, `idle`, `evicted`, ..."""

    association: Association
    cause: str


Event = KeysRequested | KeyProven | ChainProven | HandshakeFailed | AssociationClosed
