"""Waiting for what happens in its own time, always with a deadline."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeVar

DEADLINE = 30.0
"""Seconds; only a test that fails takes them, so they fit the slowest machine."""
_INTERVAL = 0.01

T = TypeVar("T")


async def until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Return as soon as `condition` holds; fails, saying `what` did not happen, if it never does.

    For conditions that nobody announces: a counter of the gateway, the end of a process.
    """
    try:
        async with asyncio.timeout(deadline):
            while not condition():  # noqa: ASYNC110 - nobody sets an event for these
                await asyncio.sleep(_INTERVAL)
    except TimeoutError:
        raise AssertionError(f"not within {deadline:g} s: {what}") from None


@asynccontextmanager
async def in_its_own_task(manager: AbstractAsyncContextManager[T]) -> AsyncIterator[T]:
    """Enter and leave `manager` in one task, whatever tasks set a fixture up and tear it down."""
    entered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    leave = asyncio.Event()

    async def hold() -> None:
        try:
            async with manager as value:
                entered.set_result(value)
                await leave.wait()
        except BaseException as error:
            if entered.done():
                raise
            entered.set_exception(error)

    holding = asyncio.get_running_loop().create_task(hold(), name="in its own task")
    try:
        yield await entered
    finally:
        leave.set()
        await holding
