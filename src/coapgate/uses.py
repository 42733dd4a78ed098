"""Which certificates are in use by sessions that last: a handshake long ago is no sign of disuse.

An operator asks how many devices used a trust anchor lately before removing it. Handshakes tell;
but a device whose session goes on for months has none, so all live sessions are gone through now
and then, a bounded piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Protocol

from coapgate.model import Identity, Method

ROUND_INTERVAL = 21_600.0
"""Seconds between two rounds, 6 hours: uses are written at most once a day."""
TURN = 2_500
"""Sessions that one turn looks at."""


class Session(Protocol):
    """One of those there are."""

    @property
    def identity(self) -> Identity: ...


class LiveUses:
    """Goes round the sessions there are; call `turn` every few seconds.

    Mutable: the round that is under way, and when the next one is due.
    """

    def __init__(self, sessions: Callable[[], Sequence[Session]]) -> None:
        """`sessions` answers with all there are, in a list that is the caller's."""
        self._sessions = sessions
        self._left: Iterator[Session] = iter(())
        self._next_round_at = -math.inf

    def turn(self, now: float) -> list[Identity]:
        """The identities that the next few sessions were opened by, if by a certificate."""
        piece = list(islice(self._left, TURN))
        if not piece and now >= self._next_round_at:
            self._next_round_at = now + ROUND_INTERVAL
            self._left = iter(self._sessions())
            piece = list(islice(self._left, TURN))
        return [each.identity for each in piece if each.identity.method is Method.X509]
