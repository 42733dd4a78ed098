"""The anti-replay window (RFC 6347 section 4.1.2.6)."""

from __future__ import annotations

WINDOW_LENGTH = 64
_MASK = (1 << WINDOW_LENGTH) - 1


class ReplayWindow:
    """Which record numbers of one epoch were seen: the newest, and a bitmap of the 64 up to it.

    Ask `is_fresh` before a record is opened, tell `mark` after it authenticated.
    """

    __slots__ = ("_bitmap", "newest")

    def __init__(self) -> None:
        self.newest = -1
        self._bitmap = 0

    def restore(self, newest: int) -> None:
        """Begin after `newest`: all up to it counts as seen."""
        self.newest = newest
        self._bitmap = _MASK

    def is_fresh(self, sequence: int) -> bool:
        """Whether `sequence` is new and not older than the window."""
        age = self.newest - sequence
        return age < 0 or (age < WINDOW_LENGTH and not self._bitmap >> age & 1)

    def mark(self, sequence: int) -> None:
        """Remember an authenticated record."""
        step = sequence - self.newest
        if step <= 0:
            self._bitmap |= 1 << -step
        else:
            # An authenticated peer may jump to 2**48 - 1: never shift by more than the window.
            self._bitmap = (self._bitmap << step | 1) & _MASK if step < WINDOW_LENGTH else 1
            self.newest = sequence
