"""One wheel for the timers of a whole fleet, each device having one."""

from __future__ import annotations

from collections import defaultdict
from typing import Generic, Protocol, TypeVar

GRANULARITY = 0.05
"""Seconds a timer may be late: little beside the seconds after which anything is repeated."""

NEVER = float("inf")
NOWHERE = 1 << 62


class Timed(Protocol):
    """What has a timer: `due_at` in monotonic seconds, or NEVER; `slot` is the wheel's."""

    due_at: float
    slot: int


T = TypeVar("T", bound=Timed)


class Timers(Generic[T]):
    """Tell `watch` after `due_at` was set; `take_due` gives back what is due.

    An answer that comes in time only sets `due_at` to NEVER, or later: a device stays in its slot
    of the wheel, and is looked at again when its turn comes. So it is there once at most.
    """

    def __init__(self, now: float) -> None:
        self._slots: defaultdict[int, list[T]] = defaultdict(list)
        self._next = int(now / GRANULARITY)

    def watch(self, device: T) -> None:
        if device.due_at < NEVER:
            slot = max(int(device.due_at / GRANULARITY) + 1, self._next)
            if slot < device.slot:
                device.slot = slot
                self._slots[slot].append(device)

    def take_due(self, now: float) -> list[T]:
        """All whose time has come; what they are to do next is for them to say."""
        due: list[T] = []
        end = int(now / GRANULARITY) + 1
        for number in range(self._next, end):
            for device in self._slots.pop(number, ()):
                if device.slot != number:
                    continue  # it stands in an earlier slot, or did
                device.slot = NOWHERE
                if device.due_at <= now:
                    due.append(device)
                else:
                    self.watch(device)
        self._next = end
        return due
