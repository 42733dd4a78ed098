"""What a measurement runs in: how much of everything, a broker, gateways on their core."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coapgate.model import DEFAULT_TENANT, DeviceId
from coapgate.registry.base import NewDevice
from tests.bench.loads import Load
from tests.bench.processes import Cores, on_core
from tests.gateways import GatewayProcess, Installation, running_process
from tests.peers import Mosquitto

SECRET = b"sixteen octets!!"
IDENTITY = "load.{:06}"
"""Both as the load generators have them by default."""
SLEEPER = "sleeper.{:06}"
"""Identities of devices that have an association, and say nothing."""

OPTIONS: dict[str, dict[str, object]] = {
    # What is measured is the work, not the limits that an operator sets.
    "limits": {"device_rate": 1e6, "device_burst": 1_000_000, "associations_per_device": 64},
    "dtls": {
        "ecdhe_rate": 1e6,
        "ecdhe_burst": 1_000_000,
        "handshakes_per_address": 1024,
        "receive_buffer": 4 << 20,
    },
    # A line for each session is written as fast as somebody reads it.
    "log": {"level": "warning"},
}

DEVICE = "device"
"""The files of a certificate that the root has signed."""
DEVICE_OF_LINE = "device-of-line"
"""Those of one that an intermediate has signed, which is sent with it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of it: seconds of a measurement, and numbers of devices."""

    duration: float = 5.0
    warmup: float = 1.0
    most_devices: int = 5000
    idle_devices: int = 5000
    hold: float = 12.0
    """Seconds of silence before memory is read: longer than an association stays warm."""
    storm_devices: int = 10_000
    storm_time: float = 60.0
    recovered_devices: int = 5000
    few_sleepers: int = 1000
    many_sleepers: int = 100_000
    """Associations beside which everything is measured once more."""
    observers: int = 10_000

    @property
    def known_devices(self) -> int:
        """How many the registry knows: more than a load ever has at once."""
        most = (self.most_devices, self.idle_devices, self.storm_devices, self.recovered_devices)
        return 2 * max(*most, self.observers)


FULL = Scale()
QUICK = Scale(2.0, 0.5, 1000, 1000, 12.0, 1000, 6.0, 1000, 200, 20_000, 1000)
TINY = Scale(0.3, 0.1, 20, 20, 0.1, 20, 0.2, 20, 5, 50, 20)
"""Shows that everything works, and measures nothing."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What every measurement needs. `load` is the fast one, if there is one."""

    folder: Path
    broker_url: str
    load: Load
    cores: Cores
    scale: Scale

    @asynccontextmanager
    async def installation(
        self, broker_url: str | None = None, *, sleepers: int = 0
    ) -> AsyncIterator[Installation]:
        """A configured gateway, with all devices and certificates that any load has, and with so
        many devices besides that no load has."""
        folder = self.folder / f"gateway-{time.monotonic_ns()}"
        folder.mkdir()
        installation = Installation(folder, broker_url or self.broker_url, OPTIONS)
        try:
            numbers = range(1, self.scale.known_devices + 1)
            known = [_device(n, f"load-{n}", IDENTITY.format(n)) for n in numbers]
            known += [
                _device(len(known) + n, f"sleeper-{n}", SLEEPER.format(n))
                for n in range(1, sleepers + 1)
            ]
            installation.registry.import_devices(known)
            installation.add_anchor()
            installation.ca.issue_device("load-x509").write(folder, DEVICE)
            line = installation.ca.intermediate("Benchmark Line")
            line.issue_device("load-chain").write(folder, DEVICE_OF_LINE)
            yield installation
        finally:
            installation.close()

    @asynccontextmanager
    async def gateway(
        self, installation: Installation, address: tuple[str, int] | None = None
    ) -> AsyncIterator[GatewayProcess]:
        """`coapgate run`, on the server's core."""
        async with AsyncExitStack() as stack:
            with on_core(self.cores.server):
                gateway = await stack.enter_async_context(running_process(installation, address))
            yield gateway

    def options(
        self, installation: Installation, gateway: GatewayProcess, certificate: str = DEVICE
    ) -> tuple[object, ...]:
        """What tells a load generator where the gateway is, and who its devices are."""
        host, port = gateway.address
        folder, scale = installation.folder, self.scale
        return (
            *("--host", host, "--port", port, "--pid", gateway.pid),
            *("--id-count", scale.known_devices),
            *("--cert", folder / f"{certificate}.pem", "--key", folder / f"{certificate}.key"),
            *("--ca", installation.ca_file, "-d", scale.duration, "-w", scale.warmup),
        )


def _device(line: int, device: str, identity: str) -> NewDevice:
    return NewDevice(line, DEFAULT_TENANT, DeviceId(device), identity.encode(), SECRET)


@contextmanager
def mosquitto(folder: Path, core: int) -> Iterator[str]:
    """A broker on that core, which does not slow the gateway down by its defaults; its URL.

    This process is there too meanwhile: it waits, or is a broker itself.
    """
    quick = ("max_inflight_messages 256", "max_queued_messages 10000", "set_tcp_nodelay true")
    with on_core(core):
        broker = Mosquitto(folder, quick)
        broker.start()
        try:
            yield broker.url
        finally:
            broker.stop()
