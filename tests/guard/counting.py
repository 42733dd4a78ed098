"""Counters of what code does: calls, instructions, memory, objects that the collector visits.

Each counts while it is entered, may be entered again, and adds up. What is counted is what the
package does, or what others do for it, from its outermost function on: neither the event loop, nor
the tests, nor what stands for a socket. So the numbers are the same each time, on any machine.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import BuiltinFunctionType, FrameType, TracebackType
from typing import Any, Self

import coapgate

_OURS = str(Path(coapgate.__file__).parent)
_TESTS = str(Path(__file__).parents[1])


class Calls:
    """Calls of functions by name: `python` are those written in Python, `c` those in C."""

    def __init__(self) -> None:
        self.python: Counter[str] = Counter()
        self.c: Counter[str] = Counter()
        self._inside: list[bool] = []
        self._before: Any = None

    def __enter__(self) -> Self:
        self._inside.clear()
        self._before = sys.getprofile()
        sys.setprofile(self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.setprofile(self._before)

    def _notice(self, frame: FrameType, event: str, argument: Any) -> None:
        inside = self._inside
        if event == "call":
            caller_counts = bool(inside) and inside[-1]
            inside.append(_counts(frame, caller_counts))
            # What stands for a socket counts as one call, whatever it does itself.
            if inside[-1] or caller_counts:
                self.python[_name(frame)] += 1
        elif event == "return":
            if inside:
                inside.pop()
        elif event == "c_call" and inside and inside[-1]:
            self.c[_c_name(argument)] += 1


class Instructions:
    """Instructions of Python's virtual machine, by the function whose own they are.

    Each version of Python has other ones, and so far a newer one has needed fewer.
    """

    def __init__(self) -> None:
        self.by_name: Counter[str] = Counter()
        self._before: Any = None
        self._within = self._count  # one object, by which a frame's caller is recognised

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._begin)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        sys.settrace(self._before)

    def _begin(self, frame: FrameType, event: str, argument: object) -> Any:
        caller = frame.f_back
        if not _counts(frame, caller is not None and caller.f_trace is self._within):
            return None
        frame.f_trace_lines, frame.f_trace_opcodes = False, True
        return self._within

    def _count(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "opcode":
            self.by_name[_name(frame)] += 1
        return self._within


def _counts(frame: FrameType, caller_counts: bool) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(_OURS) or (caller_counts and not file.startswith(_TESTS))


def _name(frame: FrameType) -> str:
    module = str(frame.f_globals.get("__name__", "?"))
    return f"{module.removeprefix('coapgate.')}.{frame.f_code.co_qualname}"


def _c_name(function: BuiltinFunctionType) -> str:
    module = getattr(function, "__module__", None)
    return f"{module}.{function.__qualname__}" if module else function.__qualname__


@contextmanager
def still() -> Iterator[None]:
    """Without the garbage collector, and with nothing left for it to do.

    What others left behind must not be freed in the midst of what is counted.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def tracked() -> int:
    """Objects that the garbage collector has to visit."""
    gc.collect()
    return len(gc.get_objects())


class Memory:
    """Octets that Python holds now; what libraries in C hold is not among them."""

    def __init__(self) -> None:
        self._was_tracing = tracemalloc.is_tracing()

    def __enter__(self) -> Self:
        if not self._was_tracing:
            tracemalloc.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._was_tracing:
            tracemalloc.stop()

    @staticmethod
    def now() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]


class Collections:
    """How often the garbage collector ran, at the thresholds that Python has by default."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._thresholds, self._was_enabled = gc.get_threshold(), gc.isenabled()
        gc.collect()
        gc.set_threshold(700, 10, 10)
        gc.enable()
        gc.callbacks.append(self._notice)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        gc.callbacks.remove(self._notice)
        gc.set_threshold(*self._thresholds)
        if not self._was_enabled:
            gc.disable()

    def _notice(self, phase: str, info: dict[str, int]) -> None:
        self.count += phase == "start"
