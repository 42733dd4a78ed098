"""What became of a fleet's handshakes and requests, in numbers."""

from __future__ import annotations

import math
from collections import Counter

_STEPS = 200
"""Buckets of times for each factor of ten: a percentile is right to about one per cent."""
_SHORTEST = 1e-6
MAX_REASONS = 32
"""Different reasons of failure that are told apart; all others are `other`."""


class Times:
    """Durations in seconds, counted in buckets: any number of them in the same memory."""

    def __init__(self) -> None:
        self.count = 0
        self.longest = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds
        self._buckets[int(math.log10(max(seconds, _SHORTEST) / _SHORTEST) * _STEPS)] += 1

    def percentile(self, share: float) -> float:
        """The time in which that share (above 0, at most 1) was done; 0.0 if nothing was."""
        wanted = math.ceil(share * self.count)
        seen = 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                # The middle of the bucket, which may lie above all that is in it.
                middle: float = _SHORTEST * 10 ** ((bucket + 0.5) / _STEPS)
                return min(middle, self.longest)
        return 0.0


class Tally:
    """All counts of one run; `seconds` is how long requests have been sent."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.connecting_seconds = 0.0
        self.sent = 0
        """Requests, each counted once however often it was repeated."""
        self.answered = 0
        """Requests that got a response of class 2."""
        self.wrong: Counter[int] = Counter()
        """Responses of any other class, by code."""
        self.rejected = 0
        """Requests that were answered by RST."""
        self.given_up = 0
        """Requests that nobody acknowledged, however often they were repeated."""
        self.unanswered = 0
        """Requests that had no response when the load, or their association, ended."""
        self.busy = 0
        """Requests that were due and not sent: every device waited for an answer."""
        self.late = 0
        """Requests that were due and not sent: this machine was too slow."""
        self.no_socket = 0
        """Requests that were due and not sent: no socket could be opened."""
        self.repeats = 0
        self.echoes = 0
        """Requests that were sent once more with an Echo value, as the server wanted."""
        self.handshakes = 0
        self.connection_ids = 0
        """Handshakes in which the server gave a Connection ID."""
        self.failed: Counter[str] = Counter()
        """Handshakes that came to nothing, by reason."""
        self.ended = 0
        """Associations that the server ended."""
        self.observing = 0
        """Registrations that were answered with an observation."""
        self.not_observing: Counter[str] = Counter()
        """Registrations that came to nothing, by what was answered."""
        self.notifications = 0
        self.moves = 0
        self.sleeps = 0
        self.datagrams_sent = 0
        self.datagrams_received = 0
        self.dropped = 0
        """Datagrams of either direction that `loss` took."""
        self.response_times = Times()
        """From the first transmission of a request to its response, whatever its code."""
        self.handshake_times = Times()

    @property
    def lost(self) -> int:
        """Requests that were sent and got no response."""
        return self.given_up + self.unanswered + self.rejected

    @property
    def not_sent(self) -> int:
        """Requests that were due and not sent."""
        return self.busy + self.late + self.no_socket

    @property
    def went_well(self) -> bool:
        """Whether every device got in, and every request that was due a response of class 2; and
        every device that was to observe does."""
        return not (self.lost or self.not_sent or self.wrong or self.failed or self.not_observing)

    def fail(self, reason: str) -> None:
        """Count a handshake that came to nothing."""
        known = reason in self.failed or len(self.failed) < MAX_REASONS
        self.failed[reason if known else "other"] += 1
