"""Requests for devices between the broker and the registry: acknowledged once they are on disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from coapgate.downlink.deliveries import Deliveries, Key, deadline_of
from coapgate.downlink.requests import METHODS, Origin, Parser, Rejection, Request
from coapgate.errors import RegistryUnavailable
from coapgate.logs import Seldom
from coapgate.model import Device, DeviceId, Tenant
from coapgate.mqtt.subscriptions import Heard
from coapgate.outbox import Notice, dump_notice, load_notice
from coapgate.registry.base import HeldRequest, HeldRequests

MAX_WAITING = 1024
"""Requests that wait to be looked at; of those at QoS 0 the next is dropped."""
MAX_SIZE = 16 << 20
"""Octets of their bodies."""
SETTLE_TIME = 1.0
"""Seconds the broker has to take an outcome, until it is written down."""
AT_ONCE = 32
"""Requests that are looked at in one tick of the loop, and written to disk together."""
log = logging.getLogger(__name__)


class Devices(Protocol):
    """Which devices there are; raises RegistryUnavailable."""

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None: ...


class Intake:
    """Takes requests one after another, and keeps those without an outcome in `store`.

    `store` None: nothing outlives this process. `acknowledge` lets the broker forget a request.
    `run` is the one task. Times are monotonic seconds, those of `wall` Unix seconds.
    """

    def __init__(
        self,
        parser: Parser,
        deliveries: Deliveries[Any],
        devices: Devices,
        store: HeldRequests | None,
        node: int,
    ) -> None:
        self.dropped = 0
        """Requests at QoS 0 for which there was no time."""
        self.malformed = 0
        """Requests on topics that name no tenant: nobody can be told."""
        self._parser = parser
        self._deliveries = deliveries
        self._devices = devices
        self._store = store
        self._node = node
        self._waiting: deque[Heard] = deque()
        self._size = 0
        self._unsaved: dict[int, Request] = {}
        self._saved: set[int] = set()
        self._removed: list[int] = []
        self._has_changed = False
        self._concluded: dict[int, tuple[float, Notice]] = {}
        self._work = asyncio.Event()
        self._is_stopping = False
        self._seldom = Seldom()

    @property
    def unsaved(self) -> int:
        """Requests that would not outlive this process, because the registry is unavailable."""
        return len(self._unsaved)

    def restore(self, now: float, wall: float) -> tuple[int, list[Notice]]:
        """Go on with the requests that an earlier process held; returns how many, and the
        outcomes that it could not tell any more.

        Raises RegistryUnavailable.
        """
        if self._store is None:
            return 0, []
        rows = self._store.held_requests(self._node)
        self._saved = {row.number for row in rows}
        self._parser.next_number = max(self._saved, default=0) + 1
        held = [_from_row(row) for row in rows if row.outcome is None]
        self._deliveries.restore(
            [(request, deadline_of(request, now, wall)) for request in held], now
        )
        return len(held), [load_notice(row.outcome) for row in rows if row.outcome is not None]

    def take(self, heard: Heard) -> None:
        """A request came."""
        is_full = len(self._waiting) >= MAX_WAITING or self._size >= MAX_SIZE
        if heard.receipt is None and is_full:
            self.dropped += 1
            return
        self._waiting.append(heard)
        self._size += len(heard.payload)
        self._work.set()

    def stop(self) -> None:
        """Take nothing new: what is not acknowledged the broker keeps for the next process."""
        self._is_stopping = True
        self._work.set()

    def concluded(self, number: int, notice: Notice, now: float) -> None:
        """The outcome of a request is known; `settled` follows when it is on the bus."""
        if number in self._saved or number in self._unsaved:
            self._concluded[number] = (now, notice)
            if len(self._concluded) == 1:
                self._work.set()  # from now on it is looked at in time

    def settled(self, number: int) -> None:
        """The outcome of a request is on the bus: it need not be kept."""
        self._concluded.pop(number, None)
        self._unsaved.pop(number, None)
        if number in self._saved:
            self._saved.discard(number)
            self._removed.append(number)
            self._has_changed = True
            self._work.set()

    async def run(
        self,
        acknowledge: Callable[[Heard], None],
        done: Callable[[], None],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """Take what comes until `stop`; `done` is called after each tick."""
        while not self._is_stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SETTLE_TIME if self._concluded else None):
                    await self._work.wait()
            self._work.clear()
            if self._concluded:
                await self.save(clock())
            while (self._waiting or self._has_changed) and not self._is_stopping:
                taken = [self._waiting.popleft() for _ in range(min(AT_ONCE, len(self._waiting)))]
                for heard in taken:
                    self._size -= len(heard.payload)
                    try:
                        await self._take(heard, clock, wall)
                    except Exception:
                        # One that fails must not take the others with it.
                        if count := self._seldom.count("not taken", clock()):
                            log.exception("request not taken", extra={"count": count})
                done()
                await self.save(clock())
                for heard in taken:
                    acknowledge(heard)
                await asyncio.sleep(0)

    async def save(self, now: float, *, is_last: bool = False) -> None:
        """Write down what is new and what is over, and outcomes that the broker does not have
        after a while; `is_last`: that it does not have now.
        """
        store = self._store
        due = [
            (number, dump_notice(notice))
            for number, (at, notice) in self._concluded.items()
            if is_last or at + SETTLE_TIME <= now
        ]
        if store is None or not (self._unsaved or self._removed or due):
            self._removed.clear()
            self._has_changed = False
            return
        added, removed = dict(self._unsaved), self._removed
        self._removed = []
        self._has_changed = False
        try:
            await store.change_held_requests(
                self._node, [_to_row(request) for request in added.values()], due, removed
            )
        except RegistryUnavailable as error:
            # They are held all the same, and written down with the next.
            self._removed += removed
            if count := self._seldom.count("unsaved", now):
                log.warning(
                    "held requests cannot be saved",
                    extra={"detail": str(error), "hint": error.hint, "count": count},
                )
            return
        for number, _ in due:
            self._concluded.pop(number, None)
        for number in added:
            if self._unsaved.pop(number, None) is not None:
                self._saved.add(number)
            else:  # its outcome was published meanwhile
                self._removed.append(number)
                self._has_changed = True

    async def _take(
        self, heard: Heard, clock: Callable[[], float], wall: Callable[[], float]
    ) -> None:
        request = self._parser.parse(heard, wall())
        if request is None:
            self.malformed += 1
        elif isinstance(request, Rejection):
            self._deliveries.reject(request.origin, request.reason)
        elif not await self._is_known(request.key):
            self._deliveries.refuse_unknown(request)
        else:
            now = clock()
            if self._store is not None:
                self._unsaved[request.number] = request
            self._deliveries.take(request, deadline_of(request, now, wall()), now)

    async def _is_known(self, key: Key) -> bool:
        if self._deliveries.is_attached(key):
            return True
        try:
            return await self._devices.find_device(*key) is not None
        except RegistryUnavailable:
            return True  # nobody can tell, and a request is soon lost


def _to_row(request: Request) -> HeldRequest:
    origin = request.origin
    return HeldRequest(
        request.number,
        origin.tenant,
        request.device,
        origin.method,
        origin.path,
        request.query,
        request.content_format,
        request.payload,
        origin.response_topic,
        origin.correlation,
        request.expires_at,
    )


def _from_row(row: HeldRequest) -> Request:
    origin = Origin(
        row.tenant, row.device, row.method, row.path, row.response_topic, row.correlation
    )
    code = METHODS[row.method.lower()]
    return Request(
        row.number,
        origin,
        row.device,
        code,
        row.query,
        row.content_format,
        row.payload,
        row.expires_at,
    )
