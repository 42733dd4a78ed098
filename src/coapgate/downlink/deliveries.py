"""Requests on their way to devices: sent at once, or held until the device speaks.

One request at a time is under way to a device. A device that did not acknowledge one is taken to be
asleep until it speaks: what comes meanwhile waits, and so does the one that it did not acknowledge.
A device may get a request twice if its acknowledgement was lost, or if the gateway was killed just
then; while this process lives each has one outcome.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from coapgate.downlink.outcomes import Answer, RequestOutcome
from coapgate.downlink.requests import Origin, Request
from coapgate.model import Code, DeviceId, Identity, Tenant

SPARE_DEADLINES = 64
"""Deadlines of requests that are over, beyond as many as there are requests."""

E = TypeVar("E")
E_co = TypeVar("E_co", covariant=True)
Key = tuple[Tenant, DeviceId]


class Devices(Protocol[E_co]):
    """The devices that are attached."""

    def find(self, key: Key, association_id: bytes | None = None) -> E_co | None:
        """The endpoint of a device: of this association, or of its newest; None: not attached."""

    def await_word(self, key: Key, *, awaited: bool) -> None:
        """Whether `Deliveries.spoke` is to be called when the device speaks next."""


class Tell(Protocol):
    """Publishes what became of a request; `settles` is the request's number."""

    def __call__(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        *,
        reason: str = "",
        answer: Answer | None = None,
        settles: int | None = None,
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """How much waits at most, in all and for one device, in requests and octets of their bodies.

    `holds` false: nothing waits for a device that does not listen. `attempts`: how often one that
    does not acknowledge is tried.
    """

    holds: bool = True
    per_device: int = 16
    messages: int = 10_000
    size: int = 64 << 20
    attempts: int = 4


class _Waiting:
    """A request that has no outcome yet; `deadline` in monotonic seconds."""

    __slots__ = ("attempts", "deadline", "is_timed", "request")

    def __init__(self, request: Request, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.attempts = 0
        self.is_timed = False


class _Queue:
    """What is to be sent to one device, and whether it listens.

    What is under way has a ticket, and went to an endpoint.
    """

    __slots__ = ("endpoint", "is_asleep", "key", "ticket", "under_way", "waiting")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.waiting: deque[_Waiting] = deque()
        self.under_way: _Waiting | None = None
        self.ticket = 0
        self.endpoint: object = None
        self.is_asleep = False

    def __len__(self) -> int:
        return len(self.waiting) + (self.under_way is not None)


_REASONS = {
    "reset": "the device rejects it (RST)",
    "too_large": "the request or its answer is too large",
    "unacceptable": "the device's answer cannot be understood",
}
"""Why a request has failed for good, by failure."""


class Deliveries(Generic[E]):
    """Every request that has no outcome yet; one outcome is told for each.

    `send` sends one to a device, with a ticket; its end comes by `answered` or `failed`, perhaps at
    once. `now` is monotonic seconds.
    """

    def __init__(
        self,
        devices: Devices[E],
        send: Callable[[E, Request, int, float], None],
        tell: Tell,
        limits: Limits | None = None,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        self.sent = 0
        self._devices = devices
        self._send = send
        self._tell = tell
        self._limits = limits or Limits()
        self._queues: dict[Key, _Queue] = {}
        self._count = 0
        self._size = 0
        self._open: set[int] = set()
        self._under_way: dict[int, _Queue] = {}  # by ticket
        self._last_ticket = 0
        self._deadlines: list[tuple[float, int, _Queue, _Waiting]] = []
        self._waiting: dict[int, _Waiting] = {}

    def __len__(self) -> int:
        """Requests that have no outcome yet."""
        return self._count

    @property
    def held(self) -> int:
        """Those that wait for their device."""
        return len(self._waiting)

    def is_pending(self, number: int) -> bool:
        """Whether a request still has no outcome."""
        return number in self._open

    def is_attached(self, key: Key) -> bool:
        """Whether a device is attached now."""
        return self._devices.find(key) is not None

    def take(self, request: Request, deadline: float, now: float) -> None:
        """Send a request now, or hold it until `deadline`."""
        key = request.key
        limits = self._limits
        queue = self._queues.get(key)
        if queue is not None and request.code == Code.PUT:
            self._supersede(queue, request)
        endpoint = self._devices.find(key)
        if not limits.holds and (endpoint is None or (queue is not None and queue.is_asleep)):
            self._reject(request, "the device does not listen now, and nothing is held")
        elif queue is not None and len(queue) >= limits.per_device:
            self._reject(request, "too many requests wait for the device")
        elif self._count >= limits.messages or self._size + len(request.payload) > limits.size:
            self._reject(request, "too many requests wait")
        else:
            self._hold(request, deadline, now)
            queue = self._queues[key]
            if endpoint is not None and not queue.is_asleep:
                self._send_next(queue, endpoint, now)
                self._await(queue)

    def restore(self, requests: Iterable[tuple[Request, float]], now: float) -> None:
        """Hold what an earlier process held, each with its deadline, in order of arrival."""
        for request, deadline in requests:
            self._hold(request, deadline, now)

    def reject(self, origin: Origin, reason: str) -> None:
        """Tell that a request was none."""
        self._conclude(origin, RequestOutcome.REJECTED, None, reason=reason)

    def refuse_unknown(self, request: Request) -> None:
        """Tell that the registry has no such device."""
        self._conclude(request.origin, RequestOutcome.DEVICE_UNKNOWN, request.number)

    # --- from the device's side

    def opened(self, identity: Identity) -> None:
        """A device has one more association: hear when it speaks, if something waits for it."""
        queue = self._queues.get((identity.tenant, identity.device))
        if queue is not None:
            self._await(queue)
            if queue.under_way is not None:
                self._devices.await_word(queue.key, awaited=True)

    def gone(self, identity: Identity) -> None:
        """A device has no association any more."""
        queue = self._queues.get((identity.tenant, identity.device))
        if queue is not None:
            queue.is_asleep = False
            self._drop_if_idle(queue)

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        """A device has just been answered: it listens."""
        queue = self._queues.get((identity.tenant, identity.device))
        endpoint = self._devices.find((identity.tenant, identity.device), association_id)
        if queue is None or endpoint is None:
            self._devices.await_word((identity.tenant, identity.device), awaited=False)
            return
        queue.is_asleep = False
        if queue.under_way is not None and queue.endpoint is not endpoint:
            # It has come back, and what went to where it was may never be answered.
            self._hold_again(queue, queue.under_way, now)
        self._send_next(queue, endpoint, now)
        self._await(queue)
        self._drop_if_idle(queue)

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        """The device answered a request."""
        answer = Answer(code, content_format, payload)
        self._end(ticket, RequestOutcome.ANSWERED, now, answer=answer)

    def failed(self, ticket: int, failure: str, now: float) -> None:
        """A request to a device came to nothing; `failure` is one of CoAP's words for why."""
        queue = self._under_way.get(ticket)
        if queue is None or queue.under_way is None:
            return
        entry = queue.under_way
        if failure == "silent":
            self._end(ticket, RequestOutcome.DELIVERED, now)
        elif failure in _REASONS:
            self._end(ticket, RequestOutcome.REJECTED, now, reason=_REASONS[failure])
        elif failure == "timeout":
            queue.is_asleep = self.is_attached(queue.key)
            if entry.attempts >= self._limits.attempts or not self._limits.holds:
                reason = "the device does not acknowledge it"
                self._end(ticket, RequestOutcome.EXPIRED, now, reason=reason)
            else:
                self._hold_again(queue, entry, now)
        else:  # its association closed, or too many requests of others are under way
            entry.attempts -= 1
            self._hold_again(queue, entry, now)

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        while self._deadlines and self._deadlines[0][1] not in self._waiting:
            heapq.heappop(self._deadlines)[3].is_timed = False
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> None:
        """Give up what has waited for too long."""
        while (due := self.next_timer()) is not None and due <= now:
            _, _, queue, entry = heapq.heappop(self._deadlines)
            queue.waiting.remove(entry)
            self._expire(queue, entry)

    def _hold(self, request: Request, deadline: float, now: float) -> None:
        queue = self._queues.get(request.key)
        if queue is None:
            queue = self._queues[request.key] = _Queue(request.key)
        entry = _Waiting(request, deadline)
        self._count += 1
        self._open.add(request.number)
        self._size += len(request.payload)
        queue.waiting.append(entry)
        self._wait(queue, entry)
        self._await(queue)

    def _hold_again(self, queue: _Queue, entry: _Waiting, now: float) -> None:
        """Its turn comes again, before that of all others."""
        queue.under_way = queue.endpoint = None
        del self._under_way[queue.ticket]
        if entry.deadline <= now:
            self._expire(queue, entry)
            return
        queue.waiting.appendleft(entry)
        self._wait(queue, entry)
        self._await(queue)

    def _wait(self, queue: _Queue, entry: _Waiting) -> None:
        number = entry.request.number
        self._waiting[number] = entry
        if not entry.is_timed:
            entry.is_timed = True
            heapq.heappush(self._deadlines, (entry.deadline, number, queue, entry))
        if len(self._deadlines) > 2 * self._count + SPARE_DEADLINES:
            # Most requests are answered long before their deadline.
            self._deadlines = [each for each in self._deadlines if self.is_pending(each[1])]
            heapq.heapify(self._deadlines)

    def _send_next(self, queue: _Queue, endpoint: E, now: float) -> None:
        if queue.under_way is not None or not queue.waiting:
            return
        entry = queue.waiting.popleft()
        del self._waiting[entry.request.number]
        entry.attempts += 1
        queue.under_way = entry
        queue.endpoint = endpoint
        self._last_ticket += 1
        queue.ticket = self._last_ticket
        self._under_way[queue.ticket] = queue
        self.sent += 1
        self._send(endpoint, entry.request, queue.ticket, now)

    def _end(
        self,
        ticket: int,
        outcome: RequestOutcome,
        now: float,
        *,
        reason: str = "",
        answer: Answer | None = None,
    ) -> None:
        """What was under way is over, and the next one may go."""
        queue = self._under_way.pop(ticket, None)
        if queue is None or queue.under_way is None:
            return
        entry, queue.under_way = queue.under_way, None
        queue.endpoint = None
        request = entry.request
        self._forget(entry)
        self._conclude(request.origin, outcome, request.number, reason=reason, answer=answer)
        if outcome is not RequestOutcome.EXPIRED:
            queue.is_asleep = False
            endpoint = self._devices.find(queue.key)
            if endpoint is not None:
                self._send_next(queue, endpoint, now)
        self._await(queue)
        self._drop_if_idle(queue)

    def _expire(self, queue: _Queue, entry: _Waiting) -> None:
        self._waiting.pop(entry.request.number, None)
        self._forget(entry)
        self._conclude(entry.request.origin, RequestOutcome.EXPIRED, entry.request.number)
        self._drop_if_idle(queue)

    def _supersede(self, queue: _Queue, newer: Request) -> None:
        """A PUT replaces those before it: only what a resource is to become in the end counts."""
        for entry in list(queue.waiting):
            older = entry.request
            if (older.code, older.origin.path, older.query) == (
                newer.code,
                newer.origin.path,
                newer.query,
            ):
                queue.waiting.remove(entry)
                del self._waiting[older.number]
                self._forget(entry)
                self._conclude(older.origin, RequestOutcome.SUPERSEDED, older.number)
        self._drop_if_idle(queue)

    def _reject(self, request: Request, reason: str) -> None:
        self._conclude(request.origin, RequestOutcome.REJECTED, request.number, reason=reason)

    def _forget(self, entry: _Waiting) -> None:
        self._count -= 1
        self._open.discard(entry.request.number)
        self._size -= len(entry.request.payload)

    def _conclude(
        self,
        origin: Origin,
        outcome: RequestOutcome,
        number: int | None,
        *,
        reason: str = "",
        answer: Answer | None = None,
    ) -> None:
        self.outcomes[outcome] += 1
        self._tell(origin, outcome, reason=reason, answer=answer, settles=number)

    def _await(self, queue: _Queue) -> None:
        """Hear when the device speaks: there is something for it, or it is taken to be asleep."""
        is_awaited = queue.under_way is None and (bool(queue.waiting) or queue.is_asleep)
        self._devices.await_word(queue.key, awaited=is_awaited)

    def _drop_if_idle(self, queue: _Queue) -> None:
        if not len(queue) and not queue.is_asleep and self._queues.get(queue.key) is queue:
            del self._queues[queue.key]
            self._devices.await_word(queue.key, awaited=False)


def deadline_of(request: Request, now: float, wall: float) -> float:
    """When a request expires, in monotonic seconds; `wall` is the clock's Unix seconds now."""
    return now + request.expires_at - wall
