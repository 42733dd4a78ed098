"""What requests and associations leave in memory.

What libraries in C hold is not counted: an AEAD object, of which associations that were used in the
last seconds have two.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.association import FINAL_FLIGHT_LIFETIME
from coapgate.model import Method
from tests.guard.costs import (
    DEVICES,
    add_devices,
    batches,
    connect_all,
    issue_certificates,
    warm_up,
)
from tests.guard.counting import Collections, Memory, still, tracked
from tests.guard.whole import Whole

ASSOCIATIONS = 1000
REQUESTS = 1000
TALKATIVE, TALK = 10, 400
"""Devices, and how many requests each has sent when no table of it grows any more, and none of the
message IDs in them is so small that Python has it already."""
IDLE = max(2 * Reliability().exchange_lifetime, FINAL_FLIGHT_LIFETIME)
"""Seconds after which nothing is remembered of an association but itself."""


@dataclass(frozen=True, slots=True)
class Left:
    """What one operation leaves, on average: octets, and objects that the garbage collector has to
    visit. `garbage` is how many of these it has to find, since they hold each other."""

    octets: float
    objects: float
    garbage: float = 0.0


def by_requests(gateway: Whole, *, warm: bool) -> Left:
    """Per request; `warm`: as many are remembered of each device as ever will be, else one."""
    # From the beginning: what is freed while it is counted has to have been counted.
    with still(), Memory() as memory:
        devices = add_devices(gateway, Method.PSK, TALKATIVE if warm else DEVICES, cid=True)
        connect_all(gateway, devices)
        warm_up(gateway, devices, TALK if warm else 1)
        waiting = batches(devices, DEVICES, REQUESTS)
        gateway.serve(waiting[0])
        octets, objects = memory.now(), tracked()
        for batch in waiting[1:]:
            gateway.serve(batch)
        garbage = gc.collect()
        octets, objects = memory.now() - octets, tracked() - objects
    count = REQUESTS - DEVICES
    return Left(octets / count, objects / count, garbage / count)


def by_associations(gateway: Whole, method: Method, *, cid: bool) -> Left:
    """Per association that has sent one request, and then nothing for a while."""
    if method is Method.X509:
        issue_certificates(DEVICES + ASSOCIATIONS)
    with still(), Memory() as memory:
        devices = add_devices(gateway, method, DEVICES, cid=cid)
        connect_all(gateway, devices)
        warm_up(gateway, devices, 1)
        del devices
        gateway.pass_time(IDLE)
        octets, objects = memory.now(), tracked()
        for number in range(DEVICES, DEVICES + ASSOCIATIONS, DEVICES):
            # The devices are forgotten: what stays is the gateway's.
            devices = add_devices(gateway, method, DEVICES, cid=cid, first=number)
            connect_all(gateway, devices)
            warm_up(gateway, devices, 1)
        del devices
        gateway.pass_time(IDLE)
        octets, objects = memory.now() - octets, tracked() - objects
    assert gateway.pump.server.association_count == DEVICES + ASSOCIATIONS
    return Left(octets / ASSOCIATIONS, objects / ASSOCIATIONS)


def by_recovery(gateway: Whole) -> Left:
    """Per association of an earlier process that goes on."""
    with still(), Memory() as memory:
        octets, objects = memory.now(), tracked()
        gateway.recover()
        octets, objects = memory.now() - octets, tracked() - objects
    count = gateway.pump.recovered
    return Left(octets / count, objects / count)


def collections_by_requests(gateway: Whole) -> int:
    """Runs of the garbage collector in `REQUESTS` requests, which are all there is to it."""
    devices = add_devices(gateway, Method.PSK, DEVICES, cid=True)
    connect_all(gateway, devices)
    warm_up(gateway, devices, 1)
    waiting = batches(devices, DEVICES, REQUESTS)
    with Collections() as collections:
        for batch in waiting:
            gateway.serve(batch)
    return collections.count
