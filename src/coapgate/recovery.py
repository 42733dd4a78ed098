"""Which associations of an earlier process go on: those that still may, the longest idle first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import NamedTuple

from coapgate.dtls.association import Association
from coapgate.dtls.store import AssociationStore, Recovered
from coapgate.dtls.traffic import Traffic
from coapgate.errors import Reason, Refused, StartError
from coapgate.model import Identity, Path


class TakenUp(NamedTuple):
    """An association that goes on; `number` counts in order of opening.

    Each of `answers` is a message ID, when it means another request (monotonic seconds), and the
    octets that a repetition gets until then.
    """

    number: int
    association: Association
    answers: tuple[tuple[int, float, bytes], ...]


async def take_up(
    store: AssociationStore,
    traffic: Traffic,
    review: Callable[[Identity, float], Awaitable[Identity]],
    now: float,
    wall: float,
    *,
    idle_timeout: float,
    associations_per_device: int,
    can_reach: Callable[[Path], bool],
) -> tuple[list[TakenUp], Counter[str]]:
    """Take up what was idle for less than `idle_timeout` seconds and whose device `review` admits.

    `wall` (Unix seconds) tells for how long it was idle; if it is before what the store knows, the
    clock is wrong, and the store is right. Of one device the newest go on. `can_reach` says whether
    our sockets lead to a path: from where it is, a device with a Connection ID will tell. Returns
    the associations in order of opening, and how many ended by what cause.

    Raises StartError if the registry cannot answer: then nobody knows who may go on, and nothing is
    forgotten.
    """
    taken: list[TakenUp] = []
    ended: Counter[str] = Counter()
    everything = sorted(store.recover(), key=lambda found: found.seen_at)
    latest = everything[-1].seen_at if everything else 0
    # How old an answer is nobody knows then; and a repetition that is carried out once more does
    # less harm than a new request that is taken for one.
    knows_ages = wall >= latest
    wall = max(wall, latest)
    surplus = _surplus(everything, associations_per_device)
    for found in everything:
        idle = wall - found.seen_at
        if idle >= idle_timeout:
            ended["idle"] += 1
        elif found.slot in surplus:
            ended["surplus"] += 1
        elif (identity := await _review(found.established.identity, review, wall)) is None:
            ended["refused"] += 1
        elif (association := _recover(found, traffic, can_reach, idle, now)) is None:
            ended["unreachable"] += 1
        else:
            answers = tuple(
                (answer.message_id, now + answer.expires_at - wall, answer.octets)
                for answer in found.answers
                if knows_ages
            )
            association.identity = identity
            taken.append(TakenUp(found.number, association, answers))
            continue
        store.remove(found.slot)
    taken.sort(key=lambda each: each.number)
    return taken, ended


def _surplus(everything: list[Recovered], associations_per_device: int) -> set[int]:
    """The slots of what devices have beyond their limit."""
    kept: Counter[tuple[str, str]] = Counter()
    surplus = set()
    for found in sorted(everything, key=lambda found: found.number, reverse=True):
        device = (found.established.identity.tenant, found.established.identity.device)
        kept[device] += 1
        if kept[device] > associations_per_device:
            surplus.add(found.slot)
    return surplus


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


async def _review(
    identity: Identity, review: Callable[[Identity, float], Awaitable[Identity]], wall: float
) -> Identity | None:
    """The identity as it is now; None: it may not go on."""
    try:
        return await review(identity, wall)
    except Refused as refusal:
        if refusal.reason is Reason.UNAVAILABLE:
            hint = "the registry must say which devices may go on"
            raise StartError(f"sessions cannot be recovered: {refusal.detail}", hint) from refusal
        return None
