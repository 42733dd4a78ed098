"""Which live associations must end: those whose device or credential is no longer what it was.

A change in the registry concerns the associations of one device, or those below one trust anchor,
or those of one tenant; and time concerns all whose credential ends. Each of them is judged again.
What is revoked concerns few of many: of all that have a certificate those are judged again that it
names.
Nothing is kept for an association but what its identity says: devices are found by name, and
everything else by walking over all associations, a bounded piece at a time.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from itertools import accumulate
from typing import Protocol

from coapgate.dtls.association import Association
from coapgate.dtls.server import Server
from coapgate.errors import Reason, Refused
from coapgate.model import DeviceId, Identity, Method, Tenant
from coapgate.registry.base import Change
from coapgate.sessions import Sessions

TURN = 10_000
"""What one turn may cost, with an association that is looked at as the unit: 4 ms or so."""
ASK_COST = 4
"""What it costs to ask of one whether it is revoked."""
REVIEW_COST = 50
"""What it costs to judge one again."""
END_COST = 50
"""What it costs besides to end one."""
SWEEP_INTERVAL = 2.0
"""Seconds at least between two walks for the sake of what ends by time."""
COUNT_INTERVAL = 60.0
"""Seconds at most between two walks: they count what ends soon."""
HORIZONS = {"1d": 86_400.0, "7d": 7 * 86_400.0, "30d": 30 * 86_400.0}
"""Seconds ahead, in order, for which it is counted how many credentials in use end."""
MAX_RECENT = 10_000
"""Changes remembered for those whose handshake began before them."""

_EVERYTHING = None
_CERTIFICATES: Hashable = object()
"""Whoever has one: some may be revoked."""


class Live(Protocol):
    """The associations there are."""

    def of_device(self, tenant: Tenant, device: DeviceId) -> Iterable[Association]:
        """Those of one device."""

    def all(self) -> list[Association]:
        """All of them, in a list that is the caller's."""


class LiveAssociations:
    """Those of a server, which `sessions` knows by their devices."""

    def __init__(self, server: Server, sessions: Sessions) -> None:
        self._server = server
        self._sessions = sessions

    def of_device(self, tenant: Tenant, device: DeviceId) -> Iterable[Association]:
        found = map(self._server.find, self._sessions.find(tenant, device))
        return [association for association in found if association is not None]

    def all(self) -> list[Association]:
        return self._server.traffic.associations.snapshot()


class _Walk:
    """One way over all associations: which it concerns, how far it is, what it has found."""

    __slots__ = ("associations", "concerned", "earliest", "ending", "position")

    def __init__(self, associations: list[Association], concerned: set[Hashable]) -> None:
        self.associations = associations
        self.concerned = concerned
        self.position = 0
        self.earliest = math.inf
        self.ending = [0] * (len(HORIZONS) + 1)
        """By the first of HORIZONS that their end is within; the last: within none."""


class Reviews:
    """Judges live associations again when something may have changed for them.

    `review(identity, wall)` answers with the identity as it is now, or raises Refused; `end` closes
    an association for a reason. `see_revoked` takes notice of what is revoked, and answers with
    what tells quickly whether an identity is; it raises Refused (unavailable). `clock_skew` is the
    seconds that a key is good after its end. A handshake takes `window` seconds at most: whoever
    began one before a change may have been judged by what was before it.

    Mutable: what waits to be judged, the walk that is under way, and the changes of the last
    `window` seconds. Call `look` every half second, then `turn` while there `is_more`.
    """

    def __init__(
        self,
        live: Live,
        review: Callable[[Identity, float], Awaitable[Identity]],
        end: Callable[[Association, Reason], None],
        *,
        see_revoked: Callable[[], Awaitable[Callable[[Identity], bool]]],
        clock_skew: float,
        window: float,
    ) -> None:
        self._live = live
        self._review = review
        self._end = end
        self._see_revoked = see_revoked
        self._clock_skew = clock_skew
        self._window = window
        self._waiting: deque[Association] = deque()
        self._wanted: set[Hashable] = set()
        self._walk: _Walk | None = None
        self._recent: dict[Hashable, float] = {}
        self._earliest_end = math.inf
        self._next_sweep_at = -math.inf
        self._next_count_at = -math.inf
        self.unavailable: Refused | None = None
        """Why nothing can be judged just now: what waits is tried again after the next `look`."""
        self.expiring: dict[str, int] = dict.fromkeys(HORIZONS, 0)
        """Associations whose credential ends within each of HORIZONS, as last counted."""
        self.reviewed = 0
        """Associations that were judged again."""

    # --- what may have changed

    def note(self, changes: Iterable[Change] | None, now: float) -> None:
        """Take notice of changes; None: nobody knows what has changed, so everything may have."""
        if changes is None:
            self._concern(_EVERYTHING, now)
            return
        for change in changes:
            if change.kind == "device":
                assert change.tenant is not None
                assert change.device is not None
                name = (change.tenant, change.device)
                self._remember(name, now)
                self._waiting.extend(self._live.of_device(*name))
            elif change.kind == "batch":
                self._concern(change.tenant, now)
            else:
                if change.kind == "anchor":
                    self._concern(change.key_id, now)
                # One that is disabled ends what is below it by way of another, too.
                self.concern_revoked(now)

    def concern_revoked(self, now: float) -> None:
        """Other certificates are revoked than before: by a command, or a revocation list."""
        self._concern(_CERTIFICATES, now)

    def may_have_changed(self, identity: Identity) -> bool:
        """Whether who was judged by what a handshake was told at its beginning is to be judged once
        more before it is let in: since then something may have become different."""
        recent = self._recent
        return bool(recent) and (
            (identity.tenant, identity.device) in recent
            or _group(identity) in recent
            or (identity.anchor is not None and _CERTIFICATES in recent)
            or _EVERYTHING in recent
        )

    def opened(self, association: Association) -> None:
        """An association begins: when it ends is known from now on."""
        identity = association.identity
        if identity.not_after is not None:
            self._earliest_end = min(self._earliest_end, self._end_of(identity))

    def _concern(self, whom: Hashable, now: float) -> None:
        self._wanted.add(whom)
        self._remember(whom, now)

    def _remember(self, whom: Hashable, now: float) -> None:
        recent = self._recent
        if len(recent) >= MAX_RECENT:
            recent.clear()
            whom = _EVERYTHING
        recent.pop(whom, None)  # the dict is in order of time
        recent[whom] = now + self._window

    # --- judging

    def look(self, now: float, wall: float) -> None:
        """Begin what is due; `wall` is Unix seconds."""
        recent = self._recent
        while recent and now >= next(iter(recent.values())):
            del recent[next(iter(recent))]
        self.unavailable = None
        if self._walk is not None:
            return
        is_sweep_due = wall > self._earliest_end and now >= self._next_sweep_at
        if self._wanted or is_sweep_due or now >= self._next_count_at:
            self._walk = _Walk(self._live.all(), self._wanted)
            self._wanted = set()
            # Whoever comes from now on lowers it; what the walk finds is added at its end.
            self._earliest_end = math.inf
            self._next_sweep_at = now + SWEEP_INTERVAL
            self._next_count_at = now + COUNT_INTERVAL

    @property
    def is_more(self) -> bool:
        """Whether `turn` has something to do."""
        return self._walk is not None or (bool(self._waiting) and self.unavailable is None)

    async def turn(self, wall: float) -> None:
        """Do a piece of what there is to do; `wall` is Unix seconds.

        Single devices come first: an operator waits for them.
        """
        left = TURN
        while left > 0 and self._waiting and self.unavailable is None:
            association = self._waiting.popleft()
            if _is_open(association):
                await self._judge(association, wall)
                left -= REVIEW_COST if _is_open(association) else REVIEW_COST + END_COST
        if self._walk is not None and left > 0:
            await self._go_on(self._walk, left, wall)

    async def _go_on(self, walk: _Walk, left: int, wall: float) -> None:
        associations, concerned, skew = walk.associations, walk.concerned, self._clock_skew
        is_everybody = _EVERYTHING in concerned
        is_revoked = await self._whom_is_revoked() if _CERTIFICATES in concerned else None
        edges = [wall + ahead for ahead in HORIZONS.values()]
        ending = walk.ending
        position = walk.position
        # Not a call for each: there are 200,000 of them.
        while left > 0 and position < len(associations):
            association = associations[position]
            position += 1
            left -= 1
            identity = association.identity
            anchor, end = identity.anchor, identity.not_after
            if end is None:
                end = math.inf
            elif anchor is None:
                end += skew
            group: Hashable = identity.tenant if anchor is None else anchor
            is_concerned = is_everybody or wall > end or group in concerned
            if is_revoked is not None and anchor is not None and not is_concerned:
                left -= ASK_COST
                is_concerned = is_revoked(identity)
            if is_concerned and _is_open(association):
                walk.position = position  # a mistake of ours costs one, not all behind it
                await self._judge(association, wall)
                left -= REVIEW_COST if _is_open(association) else REVIEW_COST + END_COST
                end = self._end_of(association.identity)
            if not association.is_open:
                continue
            if end < walk.earliest:
                walk.earliest = end
            ending[bisect_left(edges, end)] += 1
        walk.position = position
        if position == len(associations):
            self._walk = None
            self._earliest_end = min(self._earliest_end, walk.earliest)
            self.expiring = dict(zip(HORIZONS, accumulate(ending), strict=False))

    async def _whom_is_revoked(self) -> Callable[[Identity], bool] | None:
        """None: nobody can say now, and another walk will ask."""
        try:
            return await self._see_revoked()
        except Refused as refusal:
            self.unavailable = refusal
            self._wanted.add(_CERTIFICATES)
            return None

    async def _judge(self, association: Association, wall: float) -> None:
        """Judge one again, and end it if need be; or later, if nobody can say now."""
        if self.unavailable is None:
            try:
                identity = await self._review(association.identity, wall)
            except Refused as refusal:
                if refusal.reason is not Reason.UNAVAILABLE:
                    self._finish(association, refusal.reason)
                    return
                self.unavailable = refusal
            else:
                association.identity = identity
                self._earliest_end = min(self._earliest_end, self._end_of(identity))
                self.reviewed += 1
                return
        if wall > self._end_of(association.identity):
            # Nobody has to be asked: what the device proved was good until then.
            self._finish(association, Reason.EXPIRED)
        else:
            self._waiting.append(association)

    def _finish(self, association: Association, reason: Reason) -> None:
        self.reviewed += 1
        if association.is_open:  # it may have ended while the registry was asked
            self._end(association, reason)

    def _end_of(self, identity: Identity) -> float:
        """When what a device proved is good no longer, in Unix seconds."""
        if identity.not_after is None:
            return math.inf
        if identity.method is Method.PSK:
            return identity.not_after + self._clock_skew
        return identity.not_after


def _is_open(association: Association) -> bool:
    """As it is now: judging it may have ended it."""
    return association.is_open


def _group(identity: Identity) -> Hashable:
    """What a change may name instead of a device: the anchor's key id, or the tenant of a key."""
    return identity.tenant if identity.anchor is None else identity.anchor
