"""Which associations of an earlier process go on: those that still may, the longest idle first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

from coapgate.dtls.association import Association
from coapgate.dtls.store import Answer, AssociationStore, Recovered
from coapgate.dtls.traffic import Traffic
from coapgate.errors import Reason, Refused, StartError
from coapgate.model import Identity, Path


class TakenUp(NamedTuple):
    """An association that goes on; `number` counts in order of opening."""

    number: int
    association: Association
    answers: tuple[Answer, ...]


async def take_up(
    store: AssociationStore,
    traffic: Traffic,
    review: Callable[[Identity, float], Awaitable[None]],
    now: float,
    wall: float,
    *,
    idle_timeout: float,
    can_reach: Callable[[Path], bool],
) -> tuple[list[TakenUp], Counter[str]]:
    """Take up what was idle for less than `idle_timeout` seconds and whose device `review` admits.

    `wall` (Unix seconds) tells for how long it was idle; a clock that went back, that it was heard
    just now. `can_reach` says whether our sockets lead to a path: from where it is, a device with a
    Connection ID will tell. Returns the associations in order of opening, and how many ended by
    what cause.

    Raises StartError if the registry cannot answer: then nobody knows who may go on, and nothing is
    forgotten.
    """
    taken: list[TakenUp] = []
    ended: Counter[str] = Counter()
    for found in sorted(store.recover(), key=lambda found: found.seen_at):
        idle = max(0.0, wall - found.seen_at)
        if idle >= idle_timeout:
            ended["idle"] += 1
        elif not await _is_admitted(found.established.identity, review, wall):
            ended["refused"] += 1
        elif (association := _recover(found, traffic, can_reach, idle, now)) is None:
            ended["unreachable"] += 1
        else:
            taken.append(TakenUp(found.number, association, found.answers))
            continue
        store.remove(found.slot)
    taken.sort(key=lambda each: each.number)
    return taken, ended


def _recover(
    found: Recovered,
    traffic: Traffic,
    can_reach: Callable[[Path], bool],
    idle: float,
    now: float,
) -> Association | None:
    """None: nobody could tell its records apart, or whom to answer."""
    if not can_reach(found.path):
        if not found.established.received_cid:
            return None
        # Nothing is ever sent to an unproven path that nothing came from.
        found = replace(found, is_proven=False)
    return traffic.recover(found, idle, now)


async def _is_admitted(
    identity: Identity, review: Callable[[Identity, float], Awaitable[None]], wall: float
) -> bool:
    try:
        await review(identity, wall)
    except Refused as refusal:
        if refusal.reason is Reason.UNAVAILABLE:
            hint = "the registry must say which devices may go on"
            raise StartError(f"sessions cannot be recovered: {refusal.detail}", hint) from refusal
        return False
    return True
