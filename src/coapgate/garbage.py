"""The garbage collector: what stays is not visited again and again, and each pause is measured.

An association is some six objects that the collector would look at in every full collection: at
100,000 of them it would hold up everything else for a quarter of a second. They need it not: they
are freed when they end (`tests/test_leaks.py`). So whatever has survived until there are some more
of them is set apart, as everything is that was built at the start or went on from an earlier
process. What is set apart costs a collection nothing, however much it is.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

LOOK_INTERVAL = 1.0
"""Seconds between two looks at how many there are."""
FREEZE_EVERY = 1000
"""Associations that are new since the last time: a pause of some milliseconds for them, and what
was by chance in use for something else, and is garbage later, is as rare."""


class Pauses:
    """How long the collector has held up everything else, while this is entered.

    Mutable: `collections`, `seconds` of all of them, and `longest`, seconds of a single one. A
    request causes no collection, so it pays nothing for this.
    """

    __slots__ = ("_begun_at", "_clock", "collections", "longest", "seconds")

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.collections = 0
        self.seconds = 0.0
        self.longest = 0.0
        self._clock = clock
        self._begun_at = 0.0

    def __enter__(self) -> Self:
        self._begun_at = self._clock()
        gc.callbacks.append(self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._notice)

    def _notice(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._begun_at = self._clock()
            return
        pause = self._clock() - self._begun_at
        self.collections += 1
        self.seconds += pause
        self.longest = max(self.longest, pause)


@contextmanager
def put_off() -> Iterator[None]:
    """Collect nothing meanwhile, and set apart all that there is in the end: it stays.

    Nobody is served yet, so the one collection before it holds nobody up.
    """
    set_apart()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


async def set_apart_what_stays(opened: Callable[[], int]) -> None:
    """Look after the collector until cancelled; `opened` is how many associations ever were."""
    last = opened()
    while True:
        await asyncio.sleep(LOOK_INTERVAL)
        now = opened()
        if now - last >= FREEZE_EVERY:
            last = now
            set_apart()


def set_apart() -> None:
    """Collect what is garbage, and never visit again what is not."""
    gc.collect()
    gc.freeze()
