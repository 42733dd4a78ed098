"""An event loop that runs step by step, in a time of its own, and counts what it is asked for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from typing import Any, TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")


class SteppedLoop(asyncio.SelectorEventLoop):
    """Nothing happens but in `step` and `run_until_complete`.

    `now` is the time, in seconds, and stands still unless it is set. `asked` are the callbacks,
    timers, tasks and futures that were asked for since it was last cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.asked: Counter[str] = Counter()
        self._readers: dict[int, Callable[[], object]] = {}
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self.now

    def step(self) -> None:
        """Run once what is ready or due, and nothing of what it brings about."""
        super().call_soon(self.stop)
        self.run_forever()

    def read(self, fd: int) -> None:
        """One step, in which there is something to read at `fd`."""
        super().call_soon(self._readers[fd])
        self.step()

    def run(self, callback: Callable[[Unpack[Ts]], object], *args: *Ts) -> None:
        """One step in which `callback` is called, as if by a socket."""
        super().call_soon(callback, *args)
        self.step()

    def add_reader(self, fd: Any, callback: Callable[[Unpack[Ts]], Any], *args: *Ts) -> None:
        self._readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: Any) -> bool:
        return self._readers.pop(fd, None) is not None

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        self.asked["callbacks"] += 1
        return super().call_soon(callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.asked["timers"] += 1
        return super().call_at(when, callback, *args, context=context)

    def create_future(self) -> asyncio.Future[Any]:
        self.asked["futures"] += 1
        return super().create_future()

    @staticmethod
    def _make_task(loop: asyncio.AbstractEventLoop, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        assert isinstance(loop, SteppedLoop)
        loop.asked["tasks"] += 1
        return asyncio.Task(coro, loop=loop, **kwargs)
