"""Follows the registry: what changes there reaches the associations that it concerns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Protocol

from coapgate.errors import RegistryError
from coapgate.logs import Seldom
from coapgate.registry.base import Change
from coapgate.reviews import Reviews

LOOK_INTERVAL = 0.5
"""Seconds between two looks at the registry."""
COMPLAINT_INTERVAL = 60.0
"""Seconds between two lines about a registry that cannot be asked."""

log = logging.getLogger(__name__)


class ChangeLog(Protocol):
    """What following asks of a registry; both raise RegistryError if it cannot answer."""

    def newest_change(self) -> int: ...

    def changes(self, after: int) -> tuple[Change, ...] | None: ...


class Following:
    """Looks for changes, and has live associations judged again, a piece in each turn of the loop.

    `wake` is called when there may be something to send. Call `begin` before the first device is
    let in, then `run` as a task.
    """

    def __init__(
        self,
        registry: ChangeLog,
        reviews: Reviews,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._registry = registry
        self._reviews = reviews
        self._wake = wake
        self._clock = clock
        self._wall = wall
        self._seen = 0
        self._seldom = Seldom(COMPLAINT_INTERVAL)
        self.is_current = True
        """False: the registry could not be asked at the last look."""
        self.failures = 0
        """Ended by an exception: mistakes of ours."""

    def begin(self) -> None:
        """What changes from now on is noticed. Raises RegistryError."""
        self._seen = self._registry.newest_change()

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL)
            try:
                await self.follow()
            except Exception as error:
                self.failures += 1
                if count := self._seldom.count("failure", self._clock()):
                    log.error("changes not followed", exc_info=error, extra={"count": count})

    async def follow(self) -> None:
        """Look once, and do all there is to do; while that takes long, look again and again."""
        self._look()
        looked_at = self._clock()
        while self._reviews.is_more:
            await self._reviews.turn(self._wall())
            self._wake()
            await asyncio.sleep(0)  # devices are served between two turns
            if self._clock() - looked_at >= LOOK_INTERVAL:
                self._look()
                looked_at = self._clock()
        if self._reviews.unavailable is not None:
            self._complain(self._reviews.unavailable.detail)

    def _look(self) -> None:
        now = self._clock()
        self.is_current = True
        try:
            newest = self._registry.newest_change()
            if newest < self._seen:  # an older copy was put in its place
                self._reviews.note(None, now)
            elif newest > self._seen:
                changes = self._registry.changes(self._seen)
                self._reviews.note(changes, now)
                newest = changes[-1].number if changes else newest
            self._seen = newest
        except RegistryError as error:
            self._complain(str(error))
        self._reviews.look(now, self._wall())

    def _complain(self, detail: str) -> None:
        """Whoever is let in stays: the gateway serves from what it has."""
        self.is_current = False
        if count := self._seldom.count("registry", self._clock()):
            log.warning("registry cannot be followed", extra={"detail": detail, "count": count})
