"""What the gateway itself has to say on the bus, in order, until the broker has it.

Events, outcomes and status outlast an absent broker, which uplinks do not: their devices repeat
them. A few are under way at a time, the rest wait here.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from coapgate.model import Outcome

WINDOW = 32
"""Notices under way at once."""
RETRY_INTERVAL = 1.0
"""Seconds until what the broker could not take is handed over again."""

MAX_ABOUT = 16
"""Events about one device that wait at once."""
RESERVE = 4
"""One in so many places is for what is not just an event: outcomes and statuses."""

_REFUSED = 0x80
"""PUBACK reason codes from here on are refusals (MQTT 5 section 3.4.2.1)."""


class Notice(NamedTuple):
    """One publication of the gateway's own.

    `settles` is given to whoever waits for it to be over. `instead`: what is said if the broker
    does not take this one. `about` is whom an event is about, that may come and go for ever: of
    those only MAX_ABOUT wait for each.
    """

    topic: str
    payload: bytes
    retain: bool = False
    content_type: str | None = "application/json"
    properties: tuple[tuple[str, str], ...] = ()
    correlation: bytes | None = None
    settles: int | None = None
    instead: Notice | None = None
    about: str | None = None


class Publisher(Protocol):
    """Where notices go; `Outbox.ended` follows for each ticket."""

    @property
    def connected(self) -> bool:
        """Whether the broker is there."""

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        """Take one publication; never raises, never blocks."""


class Outbox:
    """Notices that the broker does not have yet, at most `limit`; tickets are below 0.

    While the broker is away they wait here, and take no room from what devices send: `resume` when
    it is back.
    `settled` is called once for every notice with `settles`, when nothing more will be done about
    it. Of retained notices on one topic only the newest waits. Times are monotonic seconds.
    """

    def __init__(
        self, publisher: Publisher, limit: int, settled: Callable[[int], None] | None = None
    ) -> None:
        self.lost = 0
        """Notices for which there was no room, or which the broker refused."""
        self.published = 0
        self.settled = settled or _nobody_waits
        self._publisher = publisher
        self._limit = limit
        self._waiting: OrderedDict[int, Notice] = OrderedDict()
        self._under_way: dict[int, Notice] = {}
        self._again: list[tuple[int, Notice]] = []
        self._about: dict[str, int] = {}
        self._newest: dict[str, int] = {}
        self._last = 0
        self._retry_at = 0.0

    def __len__(self) -> int:
        """Notices that the broker does not have."""
        return len(self._waiting) + len(self._under_way) + len(self._again)

    def put(self, notice: Notice, now: float) -> None:
        """Say something; without room it is lost."""
        if notice.retain:
            # What it was in between is nobody's business any more.
            older = self._waiting.pop(self._newest.get(notice.topic, 0), None)
            if older is not None:
                self._settle(older)
        is_event = notice.settles is None and not notice.retain
        limit = self._limit - self._limit // RESERVE if is_event else self._limit
        if len(self) >= limit or self._about.get(notice.about or "", 0) >= MAX_ABOUT:
            self._lose(notice)
            return
        self._last += 1
        if notice.retain:
            self._newest[notice.topic] = self._last
        if notice.about is not None:
            self._about[notice.about] = self._about.get(notice.about, 0) + 1
        self._waiting[self._last] = notice
        self._hand_over()

    def ended(self, ticket: int, outcome: int, now: float) -> None:
        """A publication ended: its PUBACK's reason code, or an Outcome."""
        notice = self._under_way.pop(-ticket)
        if outcome == Outcome.UNAVAILABLE:
            self._again.append((-ticket, notice))
            self._retry_at = now + RETRY_INTERVAL
            return
        self._forget(-ticket, notice)
        if outcome < _REFUSED:
            self.published += 1
            self._settle(notice)
        elif notice.instead is not None:
            self.put(notice.instead, now)
        else:
            self._lose(notice)
        self._hand_over()

    def resume(self) -> None:
        """The broker is there."""
        self._hand_over()

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        return self._retry_at if self._again else None

    def handle_timer(self, now: float) -> None:
        """Hand over again what the broker could not take."""
        if self._again and now >= self._retry_at:
            for number, notice in sorted(self._again, reverse=True, key=lambda each: each[0]):
                if notice.retain and self._newest.get(notice.topic) != number:
                    self._settle(notice)
                else:
                    self._waiting[number] = notice
                    self._waiting.move_to_end(number, last=False)
            self._again.clear()
            self._hand_over()

    def _hand_over(self) -> None:
        # What comes after must not overtake what is to be said again.
        while (
            self._waiting
            and not self._again
            and len(self._under_way) < WINDOW
            and self._publisher.connected
        ):
            number, notice = self._waiting.popitem(last=False)
            self._under_way[number] = notice
            self._publisher.publish(
                notice.topic,
                notice.payload,
                qos=1,
                content_type=notice.content_type,
                user_properties=list(notice.properties),
                ticket=-number,
                retain=notice.retain,
                correlation_data=notice.correlation,
            )

    def _forget(self, number: int, notice: Notice) -> None:
        if notice.retain and self._newest.get(notice.topic) == number:
            del self._newest[notice.topic]
        if notice.about is not None:
            left = self._about[notice.about] - 1
            if left:
                self._about[notice.about] = left
            else:
                del self._about[notice.about]

    def _lose(self, notice: Notice) -> None:
        self.lost += 1
        self._settle(notice)

    def _settle(self, notice: Notice) -> None:
        if notice.settles is not None:
            self.settled(notice.settles)


def dump_notice(notice: Notice) -> str:
    """A notice as text that `load_notice` reads."""
    fields = {
        "topic": notice.topic,
        "payload": notice.payload.hex(),
        "content_type": notice.content_type,
        "properties": notice.properties,
        "correlation": None if notice.correlation is None else notice.correlation.hex(),
        "settles": notice.settles,
        "instead": None if notice.instead is None else dump_notice(notice.instead),
    }
    return json.dumps(fields)


def load_notice(text: str) -> Notice:
    """The notice that was dumped; it is not retained."""
    fields = json.loads(text)
    correlation, instead = fields["correlation"], fields["instead"]
    return Notice(
        fields["topic"],
        bytes.fromhex(fields["payload"]),
        content_type=fields["content_type"],
        properties=tuple((name, value) for name, value in fields["properties"]),
        correlation=None if correlation is None else bytes.fromhex(correlation),
        settles=fields["settles"],
        instead=None if instead is None else load_notice(instead),
    )


def _nobody_waits(number: int) -> None:
    """The outcome of a notice is nobody's business."""
