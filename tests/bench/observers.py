"""Fan-out: what a notification costs the gateway, to one of many observers and to all of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiomqtt

from coapgate.dtls.client import PskKey
from coapgate.simulated.fleet.plan import Plan
from coapgate.simulated.fleet.running import Fleet, Phase
from coapgate.simulated.fleet.sockets import raise_file_limit
from tests.bench.figures import Sample
from tests.bench.processes import cpu_seconds, on_core, resident_kib
from tests.bench.surroundings import IDENTITY, SECRET, Bench
from tests.gateways import GatewayProcess
from tests.waiting import until

PATH = "state"
NOTIFICATIONS = 5000
"""To single observers, one after the other."""
AT_ONCE = 32
"""Publications to observers that have not been told yet."""
DEADLINE = 120.0
TOLD_WITHIN = 30.0
CONNECT_RATE = 300.0
"""Handshakes a second: few enough that an address has never too many under way."""


@dataclass(frozen=True, slots=True)
class Observers:
    """A fleet that observes; `topics` are what each of its devices does."""

    fleet: Fleet
    gateway: GatewayProcess
    topics: tuple[str, ...]
    client: aiomqtt.Client
    resident_kib: float
    """Of the gateway, for each of them: association and observation."""

    @property
    def notifications(self) -> int:
        return self.fleet.tally.notifications


async def measure_one(bench: Bench) -> Sample:
    """The state of one device after the other changes, AT_ONCE at a time."""
    async with observing(bench) as observers:
        count = min(NOTIFICATIONS, 50 * len(observers.topics))
        step = max(1, len(observers.topics) // 997)
        # Never two to one device: the second would take the first one's place, and not be counted.
        at_once = min(AT_ONCE, len(observers.topics) // 4)
        chosen = [observers.topics[at * step % len(observers.topics)] for at in range(count)]

        async def work() -> None:
            before = observers.notifications
            for told, topic in enumerate(chosen):
                await observers.client.publish(topic, b"%d" % told, qos=0)
                while told - (observers.notifications - before) > at_once:  # noqa: ASYNC110
                    await asyncio.sleep(0)
            await until(lambda: observers.notifications - before >= count, "told", TOLD_WITHIN)

        return await _measured(observers, work, count)


async def measure_all(bench: Bench) -> Sample:
    """The state of every device changes at once."""
    async with observing(bench) as observers:

        async def work() -> None:
            before, count = observers.notifications, observers.fleet.tally.observing
            await publish(observers.client, observers.topics, b"on", retain=False)
            await until(lambda: observers.notifications - before >= count, "told", TOLD_WITHIN)

        return await _measured(observers, work, len(observers.topics))


@asynccontextmanager
async def observing(bench: Bench) -> AsyncIterator[Observers]:
    """A gateway and a fleet, each device of which observes a path of its own."""
    numbers = range(1, bench.scale.observers + 1)
    raise_file_limit(len(numbers), is_needed=True)
    with on_core(bench.cores.load):
        async with (
            bench.installation() as installation,
            bench.gateway(installation) as gateway,
            aiomqtt.Client(*_address(bench.broker_url)) as client,
        ):
            root = f"{installation.root}/default"
            topics = tuple(f"{root}/load-{number}/down/{PATH}" for number in numbers)
            await publish(client, topics, b"off", retain=True)
            while (await gateway.metrics())["coapgate_mqtt_connected"] != 1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            before = resident_kib(gateway.pid)
            fleet = Fleet(
                Plan(
                    rate=0.0,
                    duration=3600.0,
                    path=(b"unused",),
                    payload=b"",
                    connect_rate=CONNECT_RATE,
                    max_rate=1e6,
                    observe=(PATH.encode(),),
                ),
                [PskKey(IDENTITY.format(number).encode(), SECRET) for number in numbers],
                (socket.AF_INET, gateway.address),
            )
            running = asyncio.get_running_loop().create_task(fleet.run(), name="fleet")
            try:
                tally = fleet.tally

                def are_settled() -> bool:
                    away = sum(tally.not_observing.values()) + sum(tally.failed.values())
                    return tally.observing + away >= len(numbers)

                await until(are_settled, "every device observes, or has failed to", DEADLINE)
                await asyncio.sleep(bench.scale.hold)
                each = (resident_kib(gateway.pid) - before) / len(numbers)
                yield Observers(fleet, gateway, topics, client, each)
            finally:
                fleet.stop()
                if fleet.phase is not Phase.GONE:
                    fleet.stop()
                await running
                await publish(client, topics, b"", retain=True)


async def publish(
    client: aiomqtt.Client, topics: Iterable[str], payload: bytes, *, retain: bool
) -> None:
    """What is retained the broker has before this returns: another client may be next."""
    for topic in topics:
        await client.publish(topic, payload, qos=int(retain), retain=retain)


async def _measured(
    observers: Observers, work: Callable[[], Awaitable[None]], count: int
) -> Sample:
    gateway, tally = observers.gateway, observers.fleet.tally
    cpu, begun = cpu_seconds(gateway.pid), time.monotonic()
    await work()
    seconds, cpu = time.monotonic() - begun, cpu_seconds(gateway.pid) - cpu
    wrong = {
        "not observing": float(sum(tally.not_observing.values())),
        "failed handshakes": float(sum(tally.failed.values())),
    }
    notes = {"observers": float(len(observers.topics)), "kib_with_session": observers.resident_kib}
    return Sample(cpu * 1e6 / count, count / seconds, wrong=wrong, notes=notes)


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("mqtt://").partition(":")
    return host, int(port)
