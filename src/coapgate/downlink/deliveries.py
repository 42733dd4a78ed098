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

UNDER_WAY_TIME = 300.0
"""Seconds that a request under way has at least, even if its own time is over."""
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

    One tenant has at most the part `share` of it, 0 to 1. As much as may wait may be under way
    besides: what waits for devices that sleep never stops what others can be sent at once.
    `holds` false: nothing waits for a device that does not listen. `attempts`: how often one that
    does not acknowledge is tried.
    """

    holds: bool = True
    per_device: int = 16
    messages: int = 10_000
    size: int = 64 << 20
    share: float = 0.5
    attempts: int = 4


class _Amount:
    """Requests, and octets of their bodies: in all, and of each tenant."""

    __slots__ = ("messages", "size", "tenants")

    def __init__(self) -> None:
        self.messages = 0
        self.size = 0
        self.tenants: dict[Tenant, tuple[int, int]] = {}

    def change(self, request: Request, sign: int) -> None:
        """Count a request in (1) or out (-1)."""
        tenant, size = request.origin.tenant, len(request.payload)
        self.messages += sign
        self.size += sign * size
        messages, octets = self.tenants.get(tenant, (0, 0))
        if messages + sign:
            self.tenants[tenant] = (messages + sign, octets + sign * size)
        else:
            self.tenants.pop(tenant, None)

    def refuses(self, request: Request, limits: Limits) -> str:
        """Why one more is too many, or an empty text."""
        size = len(request.payload)
        if self.messages >= limits.messages or self.size + size > limits.size:
            return "too many requests wait"
        messages, octets = self.tenants.get(request.origin.tenant, (0, 0))
        if (
            messages >= max(1, limits.messages * limits.share)
            or octets + size > limits.size * limits.share
        ):
            return "too many requests of the tenant wait"
        return ""


class _Waiting:
    """A request that has no outcome yet; `deadline` in monotonic seconds."""

    __slots__ = ("attempts", "deadline", "is_timed", "request", "sent_at")

    def __init__(self, request: Request, deadline: float) -> None:
        self.request = request
        self.deadline = deadline
        self.attempts = 0
        self.is_timed = False
        self.sent_at = 0.0


class _Queue:
    """What is to be sent to one device, and whether it listens.

    What is under way has a ticket, and went to an endpoint.
    """

    __slots__ = (
        "endpoint",
        "is_asleep",
        "is_put_back",
        "is_sending",
        "key",
        "ticket",
        "under_way",
        "waiting",
    )

    def __init__(self, key: Key) -> None:
        self.key = key
        self.waiting: deque[_Waiting] = deque()
        self.under_way: _Waiting | None = None
        self.ticket = 0
        self.endpoint: object = None
        self.is_asleep = False
        self.is_sending = False
        self.is_put_back = False

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
        self._held = _Amount()
        self._sent = _Amount()
        self._open: set[int] = set()
        self._under_way: dict[int, _Queue] = {}  # by ticket
        self._last_ticket = 0
        self._deadlines: list[tuple[float, int, _Queue, _Waiting]] = []
        self._waiting: dict[int, _Waiting] = {}

    def __len__(self) -> int:
        """Requests that have no outcome yet."""
        return len(self._open)

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
        else:
            goes = endpoint is not None and queue is None
            amount = self._sent if goes else self._held
            if reason := amount.refuses(request, limits):
                self._reject(request, reason)
                return
            self._hold(request, deadline)
            queue = self._queues[key]
            if endpoint is not None and not queue.is_asleep:
                self._send_next(queue, endpoint, now)
                self._await(queue)

    def restore(self, requests: Iterable[tuple[Request, float]], now: float) -> None:
        """Hold what an earlier process held, each with its deadline, in order of arrival."""
        for request, deadline in requests:
            self._hold(request, deadline)

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
        elif not self._limits.holds:
            reason = "its session has ended, or is busy, and nothing is held"
            self._end(ticket, RequestOutcome.REJECTED, now, reason=reason)
        else:  # its association closed, or too many requests of others are under way
            entry.attempts -= 1
            self._hold_again(queue, entry, now)

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        while self._deadlines and self._deadlines[0][1] not in self._open:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def handle_timer(self, now: float) -> None:
        """Give up what has waited for too long; what is under way has a little more time."""
        while (due := self.next_timer()) is not None and due <= now:
            _, number, queue, entry = heapq.heappop(self._deadlines)
            if number in self._waiting:
                queue.waiting.remove(entry)
                self._stop_waiting(entry)
                self._expire(queue, entry)
            elif now < entry.sent_at + UNDER_WAY_TIME:
                over_at = entry.sent_at + UNDER_WAY_TIME
                heapq.heappush(self._deadlines, (over_at, number, queue, entry))
            else:
                self._end(queue.ticket, RequestOutcome.EXPIRED, now)

    def _hold(self, request: Request, deadline: float) -> None:
        queue = self._queues.get(request.key)
        if queue is None:
            queue = self._queues[request.key] = _Queue(request.key)
        entry = _Waiting(request, deadline)
        self._open.add(request.number)
        queue.waiting.append(entry)
        self._wait(queue, entry)
        self._await(queue)

    def _hold_again(self, queue: _Queue, entry: _Waiting, now: float) -> None:
        """Its turn comes again, before that of all others."""
        queue.is_put_back = True
        queue.under_way = queue.endpoint = None
        del self._under_way[queue.ticket]
        self._sent.change(entry.request, -1)
        if entry.deadline <= now:
            self._expire(queue, entry)
            return
        queue.waiting.appendleft(entry)
        self._wait(queue, entry)
        self._await(queue)

    def _wait(self, queue: _Queue, entry: _Waiting) -> None:
        number = entry.request.number
        self._waiting[number] = entry
        self._held.change(entry.request, 1)
        if not entry.is_timed:
            entry.is_timed = True
            heapq.heappush(self._deadlines, (entry.deadline, number, queue, entry))
        if len(self._deadlines) > 2 * len(self._open) + SPARE_DEADLINES:
            # Most requests are answered long before their deadline.
            self._deadlines = [each for each in self._deadlines if self.is_pending(each[1])]
            heapq.heapify(self._deadlines)

    def _stop_waiting(self, entry: _Waiting) -> None:
        del self._waiting[entry.request.number]
        self._held.change(entry.request, -1)

    def _send_next(self, queue: _Queue, endpoint: E, now: float) -> None:
        """Send what is first, and what follows it as long as requests end at once."""
        if queue.is_sending:
            return  # further up
        queue.is_sending = True
        queue.is_put_back = False
        try:
            while queue.waiting and queue.under_way is None and not queue.is_put_back:
                self._send_one(queue, endpoint, now)
        finally:
            queue.is_sending = False

    def _send_one(self, queue: _Queue, endpoint: E, now: float) -> None:
        entry = queue.waiting.popleft()
        self._stop_waiting(entry)
        self._sent.change(entry.request, 1)
        entry.attempts += 1
        entry.sent_at = now
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
        self._sent.change(request, -1)
        self._forget(entry)
        try:
            self._conclude(request.origin, outcome, request.number, reason=reason, answer=answer)
        finally:
            # Whatever became of telling it, the next one must not wait for ever.
            if outcome is not RequestOutcome.EXPIRED:
                queue.is_asleep = False
                endpoint = self._devices.find(queue.key)
                if endpoint is not None:
                    self._send_next(queue, endpoint, now)
            self._await(queue)
            self._drop_if_idle(queue)

    def _expire(self, queue: _Queue, entry: _Waiting) -> None:
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
                self._stop_waiting(entry)
                self._forget(entry)
                self._conclude(older.origin, RequestOutcome.SUPERSEDED, older.number)
        self._drop_if_idle(queue)

    def _reject(self, request: Request, reason: str) -> None:
        self._conclude(request.origin, RequestOutcome.REJECTED, request.number, reason=reason)

    def _forget(self, entry: _Waiting) -> None:
        self._open.discard(entry.request.number)

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
