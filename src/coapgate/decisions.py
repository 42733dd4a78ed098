"""Decisions on handshakes: coroutines that seldom wait, and never for long."""

from __future__ import annotations

import asyncio
import logging
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from coapgate.logs import Seldom

log = logging.getLogger(__name__)


class Decisions:
    """Runs coroutines: at once up to their first wait, and what does wait as a task of `tasks`.

    The embedded registry answers without waiting, and tasks with deadlines for a handshake's two
    decisions would cost half as much as the handshake. Each waits `timeout` seconds at most, but
    for a write that is under way (`SqliteRegistry`): of that its coroutine may still have to tell.
    `ended` is called after each that waited. What a coroutine raises costs itself alone.

    Those about peers that proved a key are as many as handshakes may be. The others go on when
    their handshake has yielded to another: only while fewer than `limit` wait, else they are
    dropped.

    Until its first wait a coroutine runs outside of any task: it must not ask for the current
    one, as `asyncio.timeout` does.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, ended: Callable[[], None], *, timeout: float, limit: int
    ) -> None:
        self._tasks = tasks
        self._ended = ended
        self._timeout = timeout
        self._limit = limit
        self._waiting: set[asyncio.Task[None]] = set()
        self._is_stopped = False
        self._seldom = Seldom()
        self.overruns = 0
        """Cancelled at `timeout`, or dropped because of `limit`."""
        self.failures = 0
        """Ended by an exception: mistakes of ours."""

    @property
    def waiting(self) -> int:
        """How many wait for an answer."""
        return len(self._waiting)

    def start(
        self, coroutine: Coroutine[Any, Any, None], name: str, *, is_proven: bool = False
    ) -> None:
        """Run a coroutine; `name` is its task's. Raises nothing."""
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        except (Exception, asyncio.CancelledError) as error:
            # Here nobody can have cancelled: it awaited what somebody else had cancelled.
            self._fail(error)
            return
        _mark(awaited, awaited_now=False)
        if self._is_stopped:
            coroutine.close()
            return
        if len(self._waiting) >= self._limit and not is_proven:
            coroutine.close()
            self._overrun()
            return
        waiting = self._finish(_resume(coroutine, awaited))
        try:
            task = self._tasks.create_task(waiting, name=name)
        except RuntimeError:  # everything ends
            waiting.close()
            coroutine.close()
            return
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    def stop(self) -> None:
        """Cancel what waits, and let nothing wait any more."""
        self._is_stopped = True
        for task in self._waiting:
            task.cancel()

    async def _finish(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(self._timeout) as deadline:
                await coroutine
        except TimeoutError as error:
            if deadline.expired():
                self._overrun()
            else:
                self._fail(error)
        except Exception as error:
            self._fail(error)
        self._ended()

    def _overrun(self) -> None:
        self.overruns += 1
        if count := self._seldom.count("overrun", asyncio.get_running_loop().time()):
            log.warning("registry is too slow for dtls.auth_timeout", extra={"count": count})

    def _fail(self, error: BaseException) -> None:
        self.failures += 1
        if count := self._seldom.count("failure", asyncio.get_running_loop().time()):
            log.error("authentication failed", exc_info=error, extra={"count": count})


@types.coroutine
def _resume(
    coroutine: Coroutine[Any, Any, None], awaited: object
) -> Generator[object, object, None]:
    """Go on with a coroutine that was run to its first wait and waits for `awaited`."""
    _mark(awaited, awaited_now=True)
    try:
        while True:
            try:
                answer = yield awaited
            except BaseException as error:  # a cancellation too is the coroutine's to handle
                awaited = coroutine.throw(error)
            else:
                awaited = coroutine.send(answer)
    except StopIteration:
        return


def _mark(awaited: object, *, awaited_now: bool) -> None:
    """Futures are marked from when somebody awaits them until his task has seen it, in the same
    step of the loop (see `asyncio.isfuture`); meanwhile nobody else can await them."""
    if asyncio.isfuture(awaited):
        awaited._asyncio_future_blocking = awaited_now
