"""Who observes which path, and the notifications to each: RFC 7641.

An observation is one row of a table: no task, no timer. It has at most one confirmable
notification under way, and beside it the newest content, which goes when that one has ended, or in
place of its repetition; what was in between is never sent (section 4.5.2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, Protocol

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.transmissions import Transmission, Transmissions
from coapgate.model import Content, DeviceId, Identity, KeptObservation, Tenant

REGISTER = 0
DEREGISTER = 1
"""Values of the Observe option of a request (section 2)."""
CONFIRM_AT_LEAST = 86400.0
"""Seconds after which a notification is confirmable in any case (section 4.5)."""
ORDERS = 1 << 24
"""Order numbers there are (section 3.4)."""

_Device = tuple[Tenant, DeviceId]


class Journal(Protocol):
    """Where observations are kept that outlive the process, by association id and token."""

    def added(self, association_id: bytes, kept: KeptObservation) -> None:
        """There is one more, or another in the place of one with that token; never raises."""

    def removed(self, association_id: bytes, token: bytes) -> None:
        """There is one less; never raises."""


class NoJournal:
    """Nothing outlives the process."""

    def added(self, association_id: bytes, kept: KeptObservation) -> None:
        """It is gone when the process is."""

    def removed(self, association_id: bytes, token: bytes) -> None:
        """It was never kept."""


class Waiting(NamedTuple):
    """The newest content that could not go yet; None: the state is gone."""

    content: Content | None


class Observation(Generic[A]):
    """One device watching one path by one token; the owner of its notification under way.

    `wanted` is the block that the registration asked for, `accept` its Accept. `order` is the last
    Observe value, `skipped` how many notifications since the last confirmable one were not.
    `message_id` is that of the last one that was not, which a RST may name.

    `told` is the ETag of what the device is known to have, empty from the next notification until
    that is acknowledged; `sending` that of the one under way. While `is_told_kept` the journal says
    so too. After a restart, while `is_restored`, what was told is not sent again.
    """

    __slots__ = (
        "accept",
        "confirmed_at",
        "endpoint",
        "is_established",
        "is_restored",
        "is_told_kept",
        "message_id",
        "order",
        "path",
        "sending",
        "skipped",
        "table",
        "token",
        "told",
        "under_way",
        "waiting",
        "wanted",
    )

    def __init__(
        self,
        table: Observations[A],
        endpoint: Endpoint[A],
        token: bytes,
        path: str,
        wanted: Block | None,
        accept: int | None,
        now: float,
    ) -> None:
        self.table = table
        self.endpoint = endpoint
        self.token = token
        self.path = path
        self.wanted = wanted
        self.accept = accept
        self.order = -1
        self.skipped = 0
        self.confirmed_at = now
        self.message_id = -1
        self.told = self.sending = b""
        self.is_established = self.is_restored = self.is_told_kept = False
        self.waiting: Waiting | None = None
        self.under_way: Transmission[A] | None = None

    def acknowledged(self, now: float) -> None:
        """The notification arrived: the next one may go."""
        self.under_way = None
        self.told = self.sending
        waiting, self.waiting = self.waiting, None
        if waiting is not None:
            self.table.send(self, waiting.content, now)

    def reset(self, now: float) -> None:
        """The device does not observe any more (section 3.6)."""
        self.under_way = None
        self.table.resets += 1
        self.table.remove(self)

    def given_up(self, now: float) -> None:
        """The device is not reached: whatever it observes, it does not hear of it (section 4.5)."""
        self.under_way = None
        self.table.timeouts += 1
        self.table.remove(self)

    def renew(self, now: float) -> bytes | None:
        """The newest content goes instead of a repetition of an older one."""
        waiting, self.waiting = self.waiting, None
        if waiting is None:
            return None
        octets = self.table.encode(self, waiting.content, now)
        self.sending = b"" if waiting.content is None else waiting.content.etag
        if self.is_ended_by(waiting.content):
            self.under_way = None  # goes on without this observation
            self.table.remove(self)
        return octets

    def keep(self) -> KeptObservation:
        """What outlives the process of it, and is about to be written."""
        exponent = None if self.wanted is None else self.wanted.exponent
        self.is_told_kept = bool(self.told)
        return KeptObservation(self.token, self.path, exponent, self.accept, self.told)

    def is_ended_by(self, content: Content | None) -> bool:
        """Whether the path has no such state any more, or none that the device can read."""
        return content is None or (
            self.accept is not None and content.content_format != self.accept
        )


class Observations(Generic[A]):
    """All observations, by device; `per_device` of one device at most.

    `encode` makes a confirmable notification, or an error that ends the observation;
    `send_unconfirmed` sends one that is not confirmable and returns its message ID. Every
    `confirm_every`th is confirmable. `unobserved` hears of the last observer of a path of a device.
    Order numbers are milliseconds of `now` plus `epoch`, Unix time when `now` was 0, so they go on
    growing after a restart. What is established is written to `journal`, until it has ended.
    """

    def __init__(
        self,
        transmissions: Transmissions[A],
        *,
        encode: Callable[[Observation[A], Content | None, float], bytes],
        send_unconfirmed: Callable[[Observation[A], Content | None, float], int],
        unobserved: Callable[[Identity, str], None],
        per_device: int,
        confirm_every: int,
        epoch: float,
        journal: Journal,
    ) -> None:
        self._journal = journal
        self.encode = encode
        self._send_unconfirmed = send_unconfirmed
        self._transmissions = transmissions
        self._unobserved = unobserved
        self._per_device = per_device
        self._confirm_every = confirm_every
        self._epoch = epoch
        self._devices: dict[_Device, tuple[Observation[A], ...]] = {}
        self._count = 0
        self.confirmable = 0
        self.unconfirmed = 0
        """Notifications, by how they were sent, repetitions not counted."""
        self.superseded = 0
        """Notifications never sent because a newer one was there before they could be."""
        self.resets = 0
        self.timeouts = 0
        """Observations that ended so."""

    def __len__(self) -> int:
        """Observations there are."""
        return self._count

    def register(
        self,
        endpoint: Endpoint[A],
        token: bytes,
        path: str,
        wanted: Block | None,
        accept: int | None,
        now: float,
    ) -> tuple[Observation[A] | None, bool]:
        """Add an observation, in place of an earlier one with that token (section 4.1).

        Returns it, None if the device has as many as it may by this endpoint, and whether it is the
        path's first. By other endpoints: the oldest of these observations ends.
        """
        identity = endpoint.identity
        device = identity.tenant, identity.device
        before = self.find(endpoint, token)
        own = self._devices.get(device, ())
        is_first = all(other.path != path for other in own)
        if before is None and len(own) >= self._per_device:
            # A device that was switched off and on has another association, and registers anew.
            oldest = next((other for other in own if other.endpoint is not endpoint), None)
            if oldest is None:
                return None, False
            self.remove(oldest)
            own = self._devices.get(device, ())
            is_first = all(other.path != path for other in own)
        observation = Observation(self, endpoint, token, path, wanted, accept, now)
        if before is not None:
            observation.order = before.order
            self._end_message(before)
            self._strike(before)
        kept = tuple(other for other in own if other is not before)
        self._devices[device] = (*kept, observation)
        self._count += before is None
        if before is not None and before.path != path:
            self._tell(before, kept)
        return observation, is_first

    def holds(self, observation: Observation[A]) -> bool:
        """Whether it is one still: neither ended nor replaced."""
        identity = observation.endpoint.identity
        return observation in self._devices.get((identity.tenant, identity.device), ())

    def establish(self, observation: Observation[A], etag: bytes) -> None:
        """The registration is answered with the content of that ETag."""
        observation.told = etag
        observation.is_established = True
        self._journal.added(observation.endpoint.association_id, observation.keep())

    def restore(
        self, endpoint: Endpoint[A], kept: KeptObservation, now: float
    ) -> tuple[Observation[A] | None, bool]:
        """Go on with an observation of an earlier process; returns what `register` does."""
        wanted = None if kept.exponent is None else Block(0, False, kept.exponent)
        observation, is_first = self.register(
            endpoint, kept.token, kept.path, wanted, kept.accept, now
        )
        if observation is not None:
            observation.told = kept.etag
            observation.is_established = observation.is_restored = True
            observation.is_told_kept = bool(kept.etag)
        return observation, is_first

    def kept(self) -> Iterator[tuple[bytes, KeptObservation]]:
        """All that are established, with the association ids, as they are now."""
        for own in self._devices.values():
            for observation in own:
                if observation.is_established:
                    yield observation.endpoint.association_id, observation.keep()

    def find(self, endpoint: Endpoint[A], token: bytes) -> Observation[A] | None:
        """The observation of an endpoint with that token."""
        identity = endpoint.identity
        for observation in self._devices.get((identity.tenant, identity.device), ()):
            if observation.endpoint is endpoint and observation.token == token:
                return observation
        return None

    def notify(
        self, tenant: Tenant, device: DeviceId, path: str, content: Content | None, now: float
    ) -> int:
        """Tell all who observe a path of a device; how many they are."""
        count = 0
        for observation in self._devices.get((tenant, device), ()):
            if observation.path == path:
                count += 1
                self.submit(observation, content, now)
        return count

    def submit(self, observation: Observation[A], content: Content | None, now: float) -> None:
        """Send content, or let it wait in place of what waits already."""
        if observation.is_restored:
            observation.is_restored = False
            if content is not None and content.etag == observation.told:
                return
        if observation.under_way is None and observation.is_established:
            self.send(observation, content, now)
            return
        if observation.waiting is not None:
            self.superseded += 1
        observation.waiting = Waiting(content)

    def send(self, observation: Observation[A], content: Content | None, now: float) -> None:
        """Send a notification now: nothing of this observation is under way."""
        endpoint = observation.endpoint
        observation.told = b""
        observation.sending = b"" if content is None else content.etag
        if observation.is_told_kept:
            # Once: whenever the process is killed from here on, the device is told again.
            self._journal.added(endpoint.association_id, observation.keep())
        observation.skipped += 1
        # What ends an observation must arrive, and what a path's credit withholds must come again.
        ends = observation.is_ended_by(content)
        if (
            not ends
            and observation.skipped < self._confirm_every
            and now < observation.confirmed_at + CONFIRM_AT_LEAST
            and endpoint.association.unproven is None
        ):
            self.unconfirmed += 1
            observation.message_id = self._send_unconfirmed(observation, content, now)
            return
        observation.skipped = 0
        observation.confirmed_at = now
        self.confirmable += 1
        octets = self.encode(observation, content, now)
        under_way = self._transmissions.send(endpoint, octets, 0, None, now, observation)
        if ends:
            self.remove(observation)
        else:
            observation.under_way = under_way

    def reset(self, endpoint: Endpoint[A], message_id: int, now: float) -> bool:
        """A RST names a message that is not under way: perhaps an unconfirmed notification."""
        identity = endpoint.identity
        for observation in self._devices.get((identity.tenant, identity.device), ()):
            if observation.endpoint is endpoint and observation.message_id == message_id:
                observation.reset(now)
                return True
        return False

    def next_order(self, observation: Observation[A], now: float) -> int:
        """The Observe value of the next notification: later than every one before."""
        order = int((now + self._epoch) * 1000.0) % ORDERS
        if observation.order >= 0 and (order - observation.order - 1) % ORDERS >= ORDERS >> 1:
            order = (observation.order + 1) % ORDERS
        observation.order = order
        return order

    def remove(self, observation: Observation[A]) -> None:
        """End an observation, if it is one still; a notification under way is not repeated."""
        identity = observation.endpoint.identity
        device = identity.tenant, identity.device
        own = self._devices.get(device, ())
        left = tuple(other for other in own if other is not observation)
        if len(left) == len(own):
            return
        self._count -= 1
        if left:
            self._devices[device] = left
        else:
            del self._devices[device]
        self._end_message(observation)
        self._strike(observation)
        self._tell(observation, left)

    def close(self, endpoint: Endpoint[A]) -> None:
        """End all observations of an endpoint that is no more."""
        identity = endpoint.identity
        for observation in self._devices.get((identity.tenant, identity.device), ()):
            if observation.endpoint is endpoint:
                self.remove(observation)

    def _end_message(self, observation: Observation[A]) -> None:
        if observation.under_way is not None:
            self._transmissions.drop(observation.under_way)
            observation.under_way = None

    def _strike(self, observation: Observation[A]) -> None:
        if observation.is_established:
            self._journal.removed(observation.endpoint.association_id, observation.token)

    def _tell(self, ended: Observation[A], left: tuple[Observation[A], ...]) -> None:
        if all(other.path != ended.path for other in left):
            self._unobserved(ended.endpoint.identity, ended.path)
