"""The pump: what DTLS reports goes to authentication, sessions and CoAP, their answers back."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from coapgate.authentication import Authentication
from coapgate.coap.messages import MessageLayer
from coapgate.decisions import Decisions
from coapgate.dtls.association import Association
from coapgate.dtls.events import (
    AssociationClosed,
    Candidate,
    ChainProven,
    HandshakeFailed,
    KeyProven,
    KeysRequested,
)
from coapgate.dtls.server import Server, ServerSettings
from coapgate.dtls.store import AssociationStore
from coapgate.errors import ALERTS, Alert, Reason, Refused
from coapgate.logs import Seldom, StrangerLog
from coapgate.milestones import Milestones
from coapgate.model import DeviceId, Identity, KeptObservation, Path, PskCredential, Tenant
from coapgate.notices import render_event
from coapgate.recovery import take_up
from coapgate.reviews import LiveAssociations, Reviews
from coapgate.sessions import Sessions
from coapgate.uplink import Uplinks

REFUSED_EVENT_INTERVAL = 60.0
"""Seconds between two `event/refused` of one device and reason."""
MAX_REFUSED_EVENTS = 4096
"""Pairs of device and reason remembered for that."""
SESSION_LINES = 10
"""Log lines about one device that comes, and as many about one that goes, that are written in
`SESSION_LINES_INTERVAL` seconds: whoever holds a key may try it a thousand times a second."""
SESSION_LINES_INTERVAL = 60.0
MAX_TALKATIVE = 4096
"""Devices remembered for that."""
CLOSED_AT_ONCE = 256
"""Associations that are closed before their goodbyes are sent."""

log = logging.getLogger(__name__)


class Presence(Protocol):
    """Who is told of devices that come and go."""

    def opened(self, identity: Identity, *, is_new: bool) -> None:
        """A device has one more association; `is_new`: it was not attached."""

    def recovered(self, identity: Identity) -> None:
        """An association of a device has outlived an earlier process."""

    def detached(self, identity: Identity, cause: str) -> None:
        """A device has no association any more; `cause` is why the last one ended."""


class Observations(Protocol):
    """What devices observed in an earlier process."""

    def take(self, association_id: bytes) -> tuple[KeptObservation, ...]:
        """What one association observed."""

    def begin(self, current: Callable[[], Iterable[tuple[bytes, KeptObservation]]]) -> None:
        """Go on with what is observed now; what nobody took is dropped."""


class Pump:
    """Carries events and answers between the layers; it has no policy of its own.

    A handshake has at most one decision at a time, which ends within `auth_timeout` seconds; those
    that wait are tasks of `tasks`. What `store` holds outlives this process. `clock` is monotonic
    seconds, `wall` Unix seconds. Call `connect` before anything else.
    """

    def __init__(
        self,
        settings: ServerSettings,
        authentication: Authentication,
        sessions: Sessions,
        tasks: asyncio.TaskGroup,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        store: AssociationStore | None = None,
    ) -> None:
        self.server = Server(settings, self._deliver, store=store)
        self.outgoing = self.server.outgoing
        self.receive_datagram = self.server.receive_datagram
        self.decisions = Decisions(
            tasks,
            self._decided,
            timeout=settings.handshake.auth_timeout,
            limit=settings.max_handshakes,
        )
        self.sessions = sessions
        self.reviews = Reviews(
            LiveAssociations(self.server, sessions),
            authentication.review,
            self.end,
            see_revoked=authentication.see_revoked,
            clock_skew=authentication.clock_skew,
            window=settings.handshake.handshake_timeout + settings.handshake.auth_timeout,
        )
        self.refusals: Counter[str] = Counter()
        """Handshakes that ended without association, by reason."""
        self.attached: Counter[str] = Counter()
        """Associations that opened, by method."""
        self.detached: Counter[str] = Counter()
        """Associations that closed, by cause."""
        self.recovered = 0
        """Associations of an earlier process that went on."""
        self._authentication = authentication
        self._store = store
        self._clock = clock
        self._wall = wall
        self._strangers = StrangerLog(log)
        self._seldom = Seldom()
        self._is_closing = False
        self._refused = Seldom(REFUSED_EVENT_INTERVAL, MAX_REFUSED_EVENTS)
        self._opened = Seldom(SESSION_LINES_INTERVAL, MAX_TALKATIVE, SESSION_LINES)
        self._closed = Seldom(SESSION_LINES_INTERVAL, MAX_TALKATIVE, SESSION_LINES)

    def connect(
        self,
        layer: MessageLayer[Association],
        uplinks: Uplinks,
        publish_event: Callable[[Tenant, DeviceId, str, bytes], None],
        wake: Callable[[], None],
        presence: Presence | None = None,
    ) -> None:
        """The layers above, built on this pump's `server.traffic.send` and `acknowledged`.

        `wake` is called when there may be something to send outside a batch.
        """
        self._layer = layer
        self._uplinks = uplinks
        self._publish_event = publish_event
        self.milestones = Milestones(publish_event, self._wall)
        self._authentication.witness = self.milestones
        self._wake = wake
        self._presence = presence or _Unnoticed()

    async def recover(
        self, can_reach: Callable[[Path], bool], observations: Observations | None = None
    ) -> None:
        """Go on with the associations of an earlier process and what they observe; `can_reach` is
        the sockets'.

        Before anybody is heard: what a handshake stores would be taken for an earlier process's.
        Raises StartError if the registry cannot say who may go on.
        """
        assert not self.server.association_count, "nobody is let in before"
        if self._store is None:
            return
        now, wall = self._clock(), self._wall()
        self.server.traffic.begin(wall)
        taken, ended = await take_up(
            self._store,
            self.server.traffic,
            self._authentication.review,
            now,
            wall,
            idle_timeout=self.server.settings.idle_timeout,
            associations_per_device=self.sessions.limit,
            can_reach=can_reach,
        )
        self.detached += ended
        for _, association, answers in taken:
            endpoint = self._layer.open(association, association.identity, association.id)
            association.endpoint = endpoint
            if association.is_open:  # not one too many, nor surplus of its device
                self._layer.restore(endpoint, answers, now)
                if observations is not None:
                    kept = observations.take(association.id)
                    self._layer.restore_observations(endpoint, kept, now)
                self._admit(association, is_recovered=True)
        self.settle(now)
        if observations is not None:
            observations.begin(self._layer.observations.kept)
        self.recovered = self.server.association_count
        if taken or ended:
            fields = {"count": self.recovered, **ended}
            log.info("sessions recovered", extra=fields)
        self._wake()  # the sockets' timer was set when there was nothing to wait for

    @property
    def stored(self) -> int:
        """Associations that outlive this process."""
        return 0 if self._store is None else self._store.count

    # --- from below: the sockets

    def begin(self) -> None:
        """A batch of datagrams follows."""
        wall = self._wall()
        self._uplinks.begin(wall)
        self.server.traffic.begin(wall)

    def settle(self, now: float) -> None:
        """Act on the events that DTLS left."""
        events = self.server.events
        start = self.decisions.start
        while events:
            match events.popleft():
                case KeysRequested(handshake, identity):
                    start(self._find_keys(handshake, identity), "find-keys")
                case KeyProven(handshake, path, PskCredential() as credential):
                    judging = self._judge_key(handshake, path, credential)
                    start(judging, "judge-key", is_proven=True)
                case ChainProven(handshake, path, chain):
                    judging = self._judge_chain(handshake, path, chain)
                    start(judging, "judge-chain", is_proven=True)
                case HandshakeFailed() as failed:
                    self._on_failed(failed, now)
                case AssociationClosed(association, cause):
                    self._on_closed(association, cause)

    def next_timer(self) -> float | None:
        """When `handle_timer` wants to be called (monotonic seconds), None if never."""
        timers = (self.server.next_timer(), self._layer.next_timer(), self._strangers.due_at)
        return min((due for due in timers if due is not None), default=None)

    def handle_timer(self, now: float) -> None:
        """Do what is due; nothing may be."""
        self.begin()
        self.server.handle_timer(now)
        self._layer.handle_timer(now)
        self._strangers.flush(now)

    def _deliver(self, association: Association, plaintext: bytes, now: float) -> None:
        # `_accept` put it there, and an association without it has received nothing.
        self._layer.receive(association.endpoint, plaintext, now)  # type: ignore[arg-type]

    # --- from above: the broker

    def acknowledged(self, ticket: int, outcome: int) -> None:
        """A publication ended: its PUBACK's reason code, or an Outcome."""
        self._layer.acknowledged(ticket, outcome, self._clock())
        self._wake()

    def respond(self, ticket: int, code: int, options: bytes, payload: bytes) -> None:
        """The Site answers an exchange."""
        self._layer.respond(ticket, code, options, payload, self._clock())
        self._wake()

    # --- authentication

    async def _find_keys(self, handshake: int, identity: bytes) -> None:
        try:
            found = await self._authentication.find_keys(identity)
        except Refused as refusal:
            self._complain(refusal)
            self.server.offer_keys(handshake, (), self._clock(), reason=refusal.reason)
            return
        # What comes back with the proof, and may have to wait for a decision, holds no secret.
        candidates = tuple(
            Candidate(credential.secret, credential.without_secret()) for credential in found
        )
        padding = self._authentication.max_candidates()
        self.server.offer_keys(handshake, candidates, self._clock(), padding=padding)

    async def _judge_key(self, handshake: int, path: Path, credential: PskCredential) -> None:
        try:
            identity = await self._authentication.judge_psk(credential, self._wall())
            if self.reviews.may_have_changed(identity):
                identity = await self._authentication.review(identity, self._wall())
        except Refused as refusal:
            self._refuse(handshake, path, refusal)
            return
        if self._accept(handshake, identity):
            # Only now, so that a registry that cannot be written keeps nobody waiting.
            await self._authentication.promote(credential, identity)

    async def _judge_chain(self, handshake: int, path: Path, chain: tuple[bytes, ...]) -> None:
        try:
            identity = await self._authentication.judge_chain(chain, self._wall())
            if self.reviews.may_have_changed(identity):
                identity = await self._authentication.review(identity, self._wall())
        except Refused as refusal:
            self._refuse(handshake, path, refusal)
            return
        self._accept(handshake, identity)

    def _decided(self) -> None:
        self._wake()

    def _accept(self, handshake: int, identity: Identity) -> bool:
        association = self.server.accept(handshake, identity, self._clock())
        if association is None:
            return False  # it took too long, and the server has refused it
        association.endpoint = self._layer.open(association, identity, association.id)
        self.attached[identity.method] += 1
        self._tell(self._opened, "session opened", association, {})
        self.milestones.opened(identity)
        self._admit(association)
        return True

    def _admit(self, association: Association, *, is_recovered: bool = False) -> None:
        """Attach a device through one more association: the newest ones win."""
        identity = association.identity
        is_new = not self.sessions.find(identity.tenant, identity.device)
        for surplus in self.sessions.open(identity, association.id, self._is_open):
            oldest = self.server.find(surplus)
            assert oldest is not None
            self.server.traffic.close(oldest, "surplus")
        self.reviews.opened(association)
        if is_recovered:
            self._presence.recovered(identity)
        else:
            self._presence.opened(identity, is_new=is_new)

    def _is_open(self, association_id: bytes) -> bool:
        return self.server.find(association_id) is not None

    def _refuse(self, handshake: int, path: Path, refusal: Refused) -> None:
        """Turn a peer away whose Finished verified; it may have proven to be a device."""
        now = self._clock()
        reason = refusal.reason
        if not self.server.refuse(handshake, reason, now):
            return  # it took too long, and the server has refused it
        if refusal.proven is None:
            self._complain(refusal)
            failed = HandshakeFailed(path, reason, refusal.detail, refusal.claimed)
            self._on_failed(failed, now)
            return
        self.refusals[reason] += 1
        tenant, device, credential = refusal.proven
        if self._refused.count((tenant, device, reason), now):
            fields = {"tenant": tenant, "device": device, "credential": credential}
            log.info("session refused", extra=fields | {"reason": reason.value, "peer": path[1]})
            event = render_event("refused", self._wall(), reason=reason.value)
            self._publish_event(Tenant(tenant), DeviceId(device), "refused", event)

    def _complain(self, refusal: Refused) -> None:
        """What concerns everybody is said at once; handshakes end only when their time is up."""
        if refusal.reason is not Reason.UNAVAILABLE:
            return
        if count := self._seldom.count(refusal.reason, self._clock()):
            fields = {"detail": refusal.detail, "count": count}
            log.warning("authentication is unavailable", extra=fields)

    def _on_failed(self, failed: HandshakeFailed, now: float) -> None:
        self.refusals[failed.reason] += 1
        peer, identity = failed.path[1], failed.identity or b""
        self._strangers.refused(failed.reason, peer, now, identity, failed.detail)

    # --- the end of associations

    def end(self, association: Association, reason: Reason) -> None:
        """Close the association of a device that would not be let in now, and tell both sides."""
        self.server.traffic.close(association, reason.value, ALERTS[reason] or Alert.CLOSE_NOTIFY)
        identity = association.identity
        event = render_event(
            "session-ended", self._wall(), reason=reason.value, credential=identity.credential
        )
        self._publish_event(identity.tenant, identity.device, "session-ended", event)
        self._wake()

    def _on_closed(self, association: Association, cause: str) -> None:
        self.detached[cause] += 1
        endpoint = association.endpoint
        self._layer.close(endpoint, self._clock())  # type: ignore[arg-type]  # as in `_deliver`
        # Each holds the other: without this the garbage collector would have to find them.
        association.endpoint = None
        if self.sessions.close(association.identity, association.id):
            self._presence.detached(association.identity, cause)
        if not self._is_closing:
            self._tell(self._closed, "session closed", association, {"cause": cause})

    def _tell(
        self,
        seldom: Seldom,
        message: str,
        association: Association,
        fields: dict[str, object],
    ) -> None:
        """One line about a session, or none: then the device's next one says of how many it is."""
        if not log.isEnabledFor(logging.INFO):
            return
        identity = association.identity
        count = seldom.count((identity.tenant, identity.device), self._clock())
        if count:
            fields = _describe(association) | fields
            log.info(message, extra=fields if count == 1 else fields | {"count": count})

    def stop(self) -> None:
        """Let nobody in any more: no new handshakes, and no decision on those under way.

        What `close_all` will end is over for the bus now, while there is a broker to be told.
        """
        self.server.is_accepting = False
        self.decisions.stop()
        for association in self.server.associations:
            if association.slot < 0 and self.sessions.close(association.identity, association.id):
                self._presence.detached(association.identity, "shutdown")

    def close_all(self, flush: Callable[[], None], deadline: float) -> None:
        """Say close_notify to all whose association ends with this process, as far as there is
        time; `flush` sends what piles up.

        In one line: with a line for each, 200,000 devices would take longer than a stop may.
        """
        self._is_closing = True
        count = 0
        ending = [association for association in self.server.associations if association.slot < 0]
        for association in ending:
            self.server.traffic.close(association, "shutdown")
            count += 1
            if count % CLOSED_AT_ONCE == 0:
                now = self._clock()
                self.settle(now)
                flush()
                if now >= deadline:
                    break
        self.settle(self._clock())
        flush()
        untold = len(ending) - count
        kept = self.server.association_count - untold
        fields = {"count": count, "untold": untold, "kept": kept, "cause": "shutdown"}
        log.info("sessions closed", extra=fields)
        self._strangers.flush(math.inf)


class _Unnoticed:
    """Nobody is told."""

    def opened(self, identity: Identity, *, is_new: bool) -> None:
        pass

    def recovered(self, identity: Identity) -> None:
        pass

    def detached(self, identity: Identity, cause: str) -> None:
        pass


def _describe(association: Association) -> dict[str, object]:
    identity = association.identity
    return {
        "tenant": identity.tenant,
        "device": identity.device,
        "method": identity.method.value,
        "credential": identity.credential,
        "peer": association.path[1],
        "association": association.id.hex(),
    }
