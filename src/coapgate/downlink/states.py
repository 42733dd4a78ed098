"""The state of devices' paths: the newest retained publication on `down/{path}`.

A path is known while a device observes it, and for a while after one has read it: then the
connection is subscribed to it, so what is known is what the broker has. Everything else is looked
up when it is asked for.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Protocol

from coapgate.downlink.formats import ContentFormats
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, Identity, Tenant
from coapgate.mqtt import topics
from coapgate.mqtt.subscriptions import Heard
from coapgate.rights import RightsTable

RETRY_AFTER = (2, 60)
"""Seconds between which a device is told to come back while the broker is away."""
MAX_ASKING = 4096
"""Reads of devices that wait for the broker; the next is answered 5.03."""


_DROPPED = -1
"""In place of a connection: the state was known, and there was no room for it."""


class Bus(Protocol):
    """The connection to the broker."""

    @property
    def connected(self) -> bool: ...

    @property
    def connects(self) -> int:
        """How many connections there have been."""

    def subscribe(self, topic_filter: str, *, is_state: bool = False) -> None: ...

    def unsubscribe(self, topic_filter: str) -> None: ...


class Answers(Protocol):
    """How devices are answered; see `coap.messages`."""

    def respond_content(self, ticket: int, content: Content | None, now: float) -> None: ...

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None: ...

    def notify(
        self, tenant: Tenant, device: DeviceId, path: str, content: Content | None, now: float
    ) -> int: ...


class _State:
    """One path of one device.

    `connection` is the one on which it became known, 0: none. `content` None: there is no state.
    """

    __slots__ = (
        "asking",
        "connection",
        "content",
        "device",
        "is_observed",
        "path",
        "tenant",
        "used_at",
    )

    def __init__(self, tenant: Tenant, device: DeviceId, path: str) -> None:
        self.tenant = tenant
        self.device = device
        self.path = path
        self.content: Content | None = None
        self.connection = 0
        self.is_observed = False
        self.asking: list[int] | None = None
        self.used_at = 0.0


class States:
    """What devices may read and observe; `coap.states.Contents` for retained publications.

    At most `limit` paths and `size` octets of their states are known; of those that nobody
    observes the one that was read longest ago is forgotten first. Times are monotonic seconds.
    Call `connect` before anything else.
    """

    def __init__(
        self,
        bus: Bus,
        root: str,
        rights: RightsTable,
        formats: ContentFormats,
        *,
        limit: int = 65_536,
        size: int = 64 << 20,
        linger_time: float = 60.0,
        look_up_time: float = 5.0,
        jitter: Callable[[int, int], int] = random.randint,
    ) -> None:
        self.looked_up = 0
        self.notified = 0
        self.forbidden: dict[str, int] = {"read": 0, "observe": 0}
        """Requests for paths that their device has no right to, by use."""
        self.unavailable = 0
        """Reads that were answered 5.03: the broker was away, too slow, or unwilling."""
        self.size = 0
        """Octets of the states that are known."""
        self._bus = bus
        self._root = root
        self._rights = rights
        self._formats = formats
        self._limit = limit
        self._max_size = size
        self._linger_time = linger_time
        self._look_up_time = look_up_time
        self._jitter = jitter
        self._states: dict[str, _State] = {}
        self._idle: dict[str, _State] = {}  # known, observed by nobody; oldest first
        self._asked: dict[str, float] = {}  # topic -> when it is too late; oldest first
        self._asking = 0

    def __len__(self) -> int:
        """Paths that are known or looked up."""
        return len(self._states)

    def connect(self, answers: Answers) -> None:
        """How devices are answered."""
        self._answers = answers

    # --- from devices

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        """See `coap.states.Contents`."""
        self.check_readable(identity, path)
        topic = topics.state_topic(self._root, identity.tenant, identity.device, path)
        if not self._bus.connected or self._asking >= MAX_ASKING:
            raise self.turn_away()
        state = self._states.get(topic)
        if state is None:
            state = self._add(topic, identity, path)
        if state.connection == self._bus.connects:
            self._touch(topic, state, now)
            self._answers.respond_content(ticket, state.content, now)
            return
        if state.connection == _DROPPED:
            state.connection = 0
            self._bus.subscribe(topic, is_state=True)
        if state.asking is None:
            state.asking = []
            self._asked[topic] = now + self._look_up_time
            self._idle.pop(topic, None)
        state.asking.append(ticket)
        self._asking += 1

    def check_readable(self, identity: Identity, path: str) -> None:
        """Raise RequestRefused (4.03) if the device may not read that path."""
        rule = self._rights.of(identity.tenant).read
        if rule is not None and not rule.allows(path):
            self._forbid("read")

    def check_observable(self, identity: Identity, path: str) -> None:
        """See `coap.states.Contents`."""
        self.check_readable(identity, path)
        rule = self._rights.of(identity.tenant).observe
        if rule is not None and not rule.allows(path):
            self._forbid("observe")

    def observed(self, identity: Identity, path: str) -> None:
        """See `coap.states.Contents`."""
        topic = topics.state_topic(self._root, identity.tenant, identity.device, path)
        state = self._states.get(topic) or self._add(topic, identity, path)
        state.is_observed = True
        self._idle.pop(topic, None)

    def unobserved(self, identity: Identity, path: str) -> None:
        """See `coap.states.Contents`."""
        topic = topics.state_topic(self._root, identity.tenant, identity.device, path)
        state = self._states.get(topic)
        if state is not None and state.is_observed:
            state.is_observed = False
            if state.asking is None:
                # Whoever observed it is gone; it does not linger like what was read.
                self._forget(topic)

    # --- from the bus

    def hear(self, heard: Heard, now: float) -> bool:
        """A publication on one of the topics that are subscribed to; false: it is none of them."""
        state = self._states.get(heard.topic)
        if state is None:
            return False
        content = None
        if heard.payload or not heard.retain:
            content = Content.of(heard.payload, self._content_format(heard))
        if heard.retain:
            was_known = state.connection
            before = state.content
            # Observed before it was ever read: an earlier process answered the registration.
            is_news = before != content if was_known else state.asking is None
            self._keep(state, content)
            if was_known == self._bus.connects or is_news:
                self._notify(state, content, now)
            state.connection = self._bus.connects
            self._answer(heard.topic, state, content, now)
            self._make_room(heard.topic, state)
        elif content is not None:
            self._notify(state, content, now)
        return True

    def complete(self, topic: str, now: float, *, found: bool) -> None:
        """All that is retained on a topic has come; not `found`: nothing is."""
        state = self._states.get(topic)
        if state is None or found:
            return
        was_known = state.connection
        is_news = state.content is not None if was_known else state.asking is None
        self._keep(state, None)
        state.connection = self._bus.connects
        if is_news:
            self._notify(state, None, now)
        self._answer(topic, state, None, now)

    def refused(self, topic: str, now: float) -> None:
        """The broker does not let us hear a topic."""
        state = self._states.get(topic)
        if state is not None:
            self._give_up(topic, state, now)

    # --- time

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do."""
        timers = [next(iter(self._asked.values()))] if self._asked else []
        if self._idle:
            timers.append(next(iter(self._idle.values())).used_at + self._linger_time)
        return min(timers, default=None)

    def handle_timer(self, now: float) -> None:
        """Answer those that have waited for too long, forget what nobody has read for long."""
        while self._asked:
            topic, due = next(iter(self._asked.items()))
            if due > now:
                break
            self._give_up(topic, self._states[topic], now)
        while self._idle:
            topic, state = next(iter(self._idle.items()))
            if state.used_at + self._linger_time > now:
                break
            self._forget(topic)

    def _add(self, topic: str, identity: Identity, path: str) -> _State:
        if len(self._states) >= self._limit:
            if not self._idle:
                raise self.turn_away()
            self._forget(next(iter(self._idle)))
        state = self._states[topic] = _State(identity.tenant, identity.device, path)
        self.looked_up += 1
        self._bus.subscribe(topic, is_state=True)
        return state

    def _touch(self, topic: str, state: _State, now: float) -> None:
        if not state.is_observed and self._states.get(topic) is state:
            state.used_at = now
            self._idle.pop(topic, None)
            self._idle[topic] = state

    def _answer(self, topic: str, state: _State, content: Content | None, now: float) -> None:
        """Whoever asked gets what is known now; an answer may end an observation, and with it
        what is known.
        """
        tickets, state.asking = state.asking, None
        self._asked.pop(topic, None)
        if tickets is None:
            return
        self._asking -= len(tickets)
        self._touch(topic, state, now)
        for ticket in tickets:
            self._answers.respond_content(ticket, content, now)

    def _give_up(self, topic: str, state: _State, now: float) -> None:
        tickets, state.asking = state.asking, None
        self._asked.pop(topic, None)
        for ticket in tickets or ():
            self._asking -= 1
            self._answers.refuse(ticket, self.turn_away(), now)
        # A refusal may have ended the observation, and with it what is known.
        if self._states.get(topic) is state and not state.is_observed:
            self._forget(topic)

    def _notify(self, state: _State, content: Content | None, now: float) -> None:
        if state.is_observed:
            self.notified += 1
            self._answers.notify(state.tenant, state.device, state.path, content, now)

    def _keep(self, state: _State, content: Content | None) -> None:
        for old, sign in ((state.content, -1), (content, 1)):
            if old is not None:
                self.size += sign * len(old.payload)
        state.content = content

    def _make_room(self, topic: str, state: _State) -> None:
        """Forget what was read longest ago until the states that are left fit."""
        while self.size > self._max_size and self._idle:
            self._forget(next(iter(self._idle)))
        if self.size > self._max_size and topic in self._states:
            # Only observed ones are left: this one is looked up again when somebody reads it.
            self._keep(state, None)
            state.connection = _DROPPED

    def _forget(self, topic: str) -> None:
        state = self._states.pop(topic)
        self._keep(state, None)
        self._idle.pop(topic, None)
        self._bus.unsubscribe(topic)

    def _content_format(self, heard: Heard) -> int | None:
        try:
            return self._formats.find(heard)
        except ValueError:
            return None

    def _forbid(self, use: str) -> None:
        self.forbidden[use] += 1
        raise RequestRefused(Code.FORBIDDEN, "not allowed")

    def turn_away(self) -> RequestRefused:
        """Count a read that cannot be answered now; raise what this returns (5.03)."""
        self.unavailable += 1
        return RequestRefused(
            Code.SERVICE_UNAVAILABLE, "try again later", max_age=self._jitter(*RETRY_AFTER)
        )
