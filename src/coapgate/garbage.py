"""The garbage collector: what stays is not visited again and again.

An association is some six objects that the collector would look at in every full collection: at
100,000 of them it would hold up everything else for a quarter of a second. They need it not: they
are freed when they end (`tests/test_leaks.py`). So whatever has survived until there are some more
of them is set apart, as everything that was built at the start is.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable

LOOK_INTERVAL = 1.0
"""Seconds between two looks at how many there are."""
FREEZE_EVERY = 1000
"""Associations that are new since the last time: a pause of some milliseconds for them, and what
was by chance in use for something else, and is garbage later, is as rare."""


async def set_apart_what_stays(opened: Callable[[], int]) -> None:
    """Look after the collector until cancelled; `opened` is how many associations ever were."""
    last = opened()
    set_apart()
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
