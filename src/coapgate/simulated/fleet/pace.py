"""So many of something a second, evenly spread, whatever becomes of them."""

from __future__ import annotations

CATCH_UP = 0.1
"""Seconds of delay that are made up for at once; what is older than that is left out."""
MIN_CATCH_UP = 10
"""So many are made up for at any rate: no burst that anybody notices."""
_ALMOST = 1e-6


class Pace:
    """`rate` a second for `duration` seconds (None: for ever), beginning at `start`."""

    def __init__(self, rate: float, start: float, duration: float | None = None) -> None:
        self.skipped = 0
        """So many were left out, because nobody asked in time: the machine is too slow."""
        self._rate = rate
        self._start = start
        self._end = None if duration is None else start + duration
        self._most = max(MIN_CATCH_UP, int(rate * CATCH_UP))
        self._told = 0

    def due(self, now: float) -> int:
        """How many are due since it was last asked."""
        until = now if self._end is None else min(now, self._end)
        due = int((until - self._start) * self._rate + _ALMOST) - self._told
        self._told += due
        late = max(0, due - self._most)
        self.skipped += late
        return due - late

    def is_over(self, now: float) -> bool:
        return self._end is not None and now >= self._end

    def next_at(self) -> float | None:
        """When the next is due, or all are over."""
        if self._rate == 0:
            return self._end
        at = self._start + (self._told + 1) / self._rate
        return at if self._end is None else min(at, self._end)
