"""Whether anything costs more among 100,000 associations than among 1,000.

Two gateways, with the same devices in their registries, take up a few associations and many of an
earlier process, which say nothing from then on. The load goes to one and the other in turn, so what
the machine does meanwhile concerns both alike: in floors of their repetition the two differ as much
as in microseconds.
"""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from itertools import islice
from statistics import median

from coapgate.association_file import read_boot_id
from coapgate.gateway import WORKER
from tests import crowd
from tests.bench.figures import GROWTH, PAUSE, Sample
from tests.bench.loads import run_load
from tests.bench.measurements import HANDSHAKES, faults, per_operation
from tests.bench.processes import Resident, resident
from tests.bench.surroundings import SLEEPER, Bench
from tests.gateways import GatewayProcess, Installation

REQUEST_FEW, REQUEST_MANY = "request-50-among-1000", "request-50-among-100000"
HANDSHAKE_FEW, HANDSHAKE_MANY = "handshake-psk-among-1000", "handshake-psk-among-100000"
IDLE_MANY = "idle-among-100000"

TURNS = 4
"""How often the load goes to each of the two, first and second by turns, for half of the time that
others are measured: what else the machine does is then mostly the same for both, and of what is not
the median knows little."""
UNSEEN = 1e-3
"""Microseconds of what was too short for the kernel to count."""
LOADS: dict[tuple[str, str], tuple[object, ...]] = {
    (REQUEST_FEW, REQUEST_MANY): ("--mode", "req", "-n", 50),
    (HANDSHAKE_FEW, HANDSHAKE_MANY): HANDSHAKES,
}


@dataclass(frozen=True, slots=True)
class Place:
    """A gateway among `sleepers` associations; `memory` is what it occupied before any load."""

    installation: Installation
    gateway: GatewayProcess
    sleepers: int
    memory: Resident


async def measure_crowd(bench: Bench) -> dict[str, Sample]:
    """All figures of this module."""
    scale = bench.scale
    async with AsyncExitStack() as stack:
        few = await _open(bench, stack, scale.few_sleepers)
        many = await _open(bench, stack, scale.many_sleepers)
        found: dict[str, list[Sample]] = defaultdict(list)
        for turn in range(TURNS):
            for names, load in LOADS.items():
                places = list(zip(names, (few, many), strict=True))
                for name, place in places if turn % 2 else reversed(places):
                    found[name].append(await _load(bench, place, load))
        samples = {name: _together(each) for name, each in found.items()}
        for name_few, name_many in LOADS:
            pairs = zip(found[name_few], found[name_many], strict=True)
            growth = median(costs.cost / max(before.cost, UNSEEN) for before, costs in pairs)
            notes = {**samples[name_many].notes, GROWTH: 100 * (growth - 1)}
            samples[name_many] = replace(samples[name_many], notes=notes)
        notes = {**samples[HANDSHAKE_MANY].notes, **await _pauses(many)}
        samples[HANDSHAKE_MANY] = replace(samples[HANDSHAKE_MANY], notes=notes)
        return samples | {IDLE_MANY: await _idle(few, many)}


async def _open(bench: Bench, stack: AsyncExitStack, sleepers: int) -> Place:
    """Start a gateway that takes up so many associations; the registry knows devices for most."""
    installing = bench.installation(sleepers=bench.scale.many_sleepers)
    installation = await stack.enter_async_context(installing)
    settings, registry = installation.settings, installation.registry
    prefix = SLEEPER.partition(".")[0].encode()
    sleeping = (entry for entry in registry.psks() if entry.identity.startswith(prefix))
    name = settings.dtls.association_store.format(node=settings.node, worker=WORKER)
    crowd.fill(
        registry.path.parent / name,
        settings.dtls.max_associations,
        registry,
        islice(sleeping, sleepers),
        wall=time.time(),
        boot_id=read_boot_id(),
        binds=[(bind.host, bind.port) for bind in settings.dtls.bind],
    )
    gateway = await stack.enter_async_context(bench.gateway(installation))
    return Place(installation, gateway, sleepers, resident(gateway.pid))


async def _load(bench: Bench, place: Place, load: tuple[object, ...]) -> Sample:
    scale = bench.scale
    usual = bench.options(place.installation, place.gateway)
    times = ("-d", scale.duration / 2, "-w", scale.warmup / 2)
    report = await run_load(bench.load, bench.cores.load, *usual, *load, *times)
    return per_operation(report, await faults(place.gateway))


def _together(turns: list[Sample]) -> Sample:
    """The middle of several samples as one; what went wrong in any of them did."""
    first = turns[0]
    rates, p50s, p99s = (
        [value for value in values if value is not None]
        for values in zip(*((each.rate, each.p50_ms, each.p99_ms) for each in turns), strict=True)
    )
    return Sample(
        median(each.cost for each in turns),
        *(median(rates), median(p50s), median(p99s)),
        {name: sum(each.wrong[name] for each in turns) for name in first.wrong},
        {name: median(each.notes[name] for each in turns) for name in first.notes},
    )


async def _pauses(place: Place) -> dict[str, float]:
    """What the garbage collector did in all the loads, as the gateway itself has measured it."""
    metrics = await place.gateway.metrics()
    return {
        PAUSE: 1000 * metrics["coapgate_garbage_collection_longest_seconds"],
        "gc_runs": metrics["coapgate_garbage_collections_total"],
        "gc_ms": 1000 * metrics["coapgate_garbage_collection_seconds_total"],
    }


async def _idle(few: Place, many: Place) -> Sample:
    """Memory of each association that the one gateway has more than the other."""
    more = many.sleepers - few.sleepers
    wrong = {}
    for place in (few, many):
        metrics = await place.gateway.metrics()
        recovered = metrics["coapgate_associations_recovered_total"]
        wrong[f"of {place.sleepers} not recovered"] = place.sleepers - recovered
    return Sample(
        (many.memory.total - few.memory.total) / more,
        wrong=wrong,
        notes={
            "anonymous_kib": (many.memory.anonymous - few.memory.anonymous) / more,
            "of_files_kib": (many.memory.of_files - few.memory.of_files) / more,
        },
    )
