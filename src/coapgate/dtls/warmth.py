"""Which associations hold AEAD objects, of up to 5 kB each: those in use, for a while."""

from __future__ import annotations

from collections import deque

from coapgate.dtls.association import Association

MAX_WARM = 1024
WARM_TIME = 10.0
"""Seconds after which an association lets go of them; the next record makes new ones."""


class Warmth:
    """Associations in the order in which they were warmed, at most MAX_WARM."""

    __slots__ = ("_warm",)

    def __init__(self) -> None:
        self._warm: deque[tuple[float, Association]] = deque()

    def warm_up(self, association: Association, now: float) -> None:
        """Make the AEAD objects of an association that has none."""
        association.protection.warm()
        self._warm.append((now + WARM_TIME, association))
        if len(self._warm) > MAX_WARM:
            self._cool_oldest()

    @property
    def due_at(self) -> float | None:
        """When `cool_down` has something to do."""
        return self._warm[0][0] if self._warm else None

    def cool_down(self, now: float) -> None:
        while self._warm and now >= self._warm[0][0]:
            self._cool_oldest()

    def _cool_oldest(self) -> None:
        self._warm.popleft()[1].protection.cool()
