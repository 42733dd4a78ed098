"""The whole gateway in this process, from socket to broker, wired as `gateway` does it.

Nothing is left out but the system: datagrams are put before its socket and taken from behind it,
and the broker is at the other end of a transport in memory. Nothing happens at the same time, and
nothing waits, so whatever is counted is the same each time.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from coapgate.association_file import open_associations
from coapgate.authentication import Authentication
from coapgate.coap.aiocoap_bridge import Bridge
from coapgate.coap.hotpath import HotPath
from coapgate.coap.messages import MessageLayer
from coapgate.coap.rates import DeviceRates
from coapgate.coap.resources import build_site
from coapgate.config import Settings
from coapgate.downlinks import build_backends, build_rights
from coapgate.dtls.association import Association
from coapgate.dtls.client import Client, ClientSettings, Credential
from coapgate.dtls.server import ServerSettings
from coapgate.dtls.store import AssociationStore
from coapgate.logs import TextFormatter
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from coapgate.mqtt.connection import Connection
from coapgate.mqtt.settings import ConnectionSettings
from coapgate.registry.base import NewDevice
from coapgate.registry.sqlite import SqliteRegistry
from coapgate.serving import Pump
from coapgate.sessions import Sessions
from coapgate.simulated.message import Kind, Message, request_options
from coapgate.udp import BATCH, Udp
from coapgate.uplink import Uplinks
from tests import crowd
from tests.dtls.factory import x509_settings
from tests.guard.loop import SteppedLoop
from tests.guard.wire import Broker, Peer, Wire

WALL = 1_800_000_000.0
BOOT = "guard"
CAPACITY = 8192
"""Associations that the file has room for."""
ASSOCIATIONS = "associations"
"""The name of the file."""
SECRET = b"sixteen octets!!"
PAYLOAD = b"x" * 100
BATCH_TIME = 0.001
"""Seconds from one batch of datagrams to the next."""

C = TypeVar("C", bound=AbstractContextManager[object])


class Device:
    """One device at an address of its own."""

    def __init__(self, credential: Credential, settings: ClientSettings, peer: Peer) -> None:
        self.client = Client(credential, settings)
        self.peer = peer
        self._message_id = 0

    def post(self) -> bytes:
        """A datagram with the next request."""
        self._message_id = self._message_id + 1 & 0xFFFF
        options = request_options((b"benchmark",))
        message = Message(Kind.CON, Code.POST, self._message_id, b"tokn", options, PAYLOAD)
        self.client.send(message.encode())
        return self.client.outgoing.pop()

    def hear(self, datagram: bytes, now: float) -> bool:
        """Whether a datagram says 2.04 to the request before."""
        expected = Message(Kind.ACK, Code.CHANGED, self._message_id, b"tokn").encode()
        return self.client.receive_datagram(datagram, now) == [expected]


class Whole:
    """The gateway, and devices at it."""

    def __init__(
        self, loop: SteppedLoop, registry: SqliteRegistry, store: AssociationStore | None
    ) -> None:
        self.loop = loop
        self._counting: AbstractContextManager[object] = nullcontext()
        self.registry = registry
        self.wires: list[Wire] = []
        self.broker = Broker()
        self._store = store
        self._address = 0
        self._closing = asyncio.Event()

    async def live(self) -> None:
        """Build everything, and hold it until `close`."""
        settings = x509_settings()
        limits = ServerSettings(
            settings.handshake, max_handshakes=4096, handshakes_per_address=4096, ecdhe_burst=4096
        )
        async with asyncio.TaskGroup() as tasks:
            self.pump = pump = Pump(
                limits,
                Authentication(self.registry),
                Sessions(4),
                tasks,
                self.loop.time,
                lambda: WALL,
                self._store,
            )
            self.connection = Connection(ConnectionSettings("guard"), pump.acknowledged)
            publications = self.connection.publications
            configured = Settings()
            rights = build_rights(configured)
            clock, root = (self.loop.time, lambda: WALL), configured.mqtt.root
            backends, words = build_backends(
                configured, pump, self.connection, self.registry, rights, *clock
            )
            uplinks = Uplinks(
                self.connection, root, lambda: publications.maximum_packet_size, rights=rights
            )
            async with Bridge(build_site(lambda: WALL), pump.respond) as bridge:
                self.layer: MessageLayer[Association] = MessageLayer(
                    pump.server.traffic.send,
                    HotPath(uplinks, bridge),
                    DeviceRates(1e6, 1_000_000),
                    prove_path=pump.server.traffic.prove_path,
                    answered=pump.server.traffic.remember_answer,
                    contents=backends,
                    downlinks=backends,
                )
                self.udp = Udp(pump, 65536, self._make_socket)
                wake = self.udp.flush_soon
                pump.connect(self.layer, uplinks, backends.publish_event, wake, backends)
                backends.connect(self.layer, wake)
                words.connect(self.layer)
                self.udp.open((("127.0.0.1", 0),))
                self.udp.listen()
                self.connection.made(self.broker, None)
                self.connection.received(self.broker.welcome())
                self.connection.received(self.broker.answer())
                await self._closing.wait()
                self.udp.close()

    def close(self) -> None:
        self._closing.set()

    def recover(self) -> None:
        """Take up the associations of an earlier process."""
        self.loop.run_until_complete(self.pump.recover(self.udp.can_reach))

    @property
    def system_calls(self) -> int:
        """Those for datagrams, and for what is written to the broker."""
        return sum(wire.calls for wire in self.wires) + self.broker.calls

    @contextmanager
    def counted(self, counter: C) -> Iterator[C]:
        """Count what the gateway does in the meantime."""
        self._counting = counter
        try:
            yield counter
        finally:
            self._counting = nullcontext()

    def add_device(self, credential: Credential, settings: ClientSettings | None = None) -> Device:
        """Put a device at an address of its own, without a word said yet."""
        self._address += 1
        high, low = divmod(self._address, 250)
        peer = (f"192.0.{high}.{low + 1}", 49152)
        return Device(credential, settings or ClientSettings(), peer)

    def connect(self, device: Device) -> int:
        """Let a device do a handshake; how many datagrams the gateway sent in it."""
        wire, client = self.wires[0], device.client
        count = 0
        client.connect(self.loop.now)
        while client.outgoing:
            wire.arrived.extend((datagram, device.peer) for datagram in client.outgoing)
            client.outgoing.clear()
            self._run(self.loop.read, wire.fileno())
            count += len(wire.sent)
            for datagram, _ in wire.sent:
                client.receive_datagram(datagram, self.loop.now)
            wire.sent.clear()
        assert client.is_established, client.failure
        # The bus is told that the device is there, and has it.
        self._run(self.loop.step)
        self._run(self.loop.run, self.connection.received, self.broker.answer())
        self.loop.now += BATCH_TIME
        return count

    def serve(self, batch: list[tuple[bytes, Peer]]) -> list[tuple[bytes, Peer]]:
        """Requests arrive at once, are published, acknowledged and answered; the answers.

        Then the next batch is `BATCH_TIME` away.
        """
        assert len(batch) <= BATCH
        wire = self.wires[0]
        wire.arrived.extend(batch)
        self._run(self.loop.read, wire.fileno())
        self._run(self.loop.step)
        self._run(self.loop.run, self.connection.received, self.broker.answer())
        self._run(self.loop.step)
        answers, wire.sent = wire.sent, []
        self.loop.now += BATCH_TIME
        return answers

    def pass_time(self, seconds: float) -> None:
        """Let time pass, a second at a time, with all that is due in it, and `upkeep`'s writing."""
        self.loop.run_until_complete(self.registry.write_uses())
        end = self.loop.now + seconds
        while self.loop.now < end:
            self.loop.now += min(1.0, end - self.loop.now)
            self._run(self.loop.step)
            if answer := self.broker.answer():
                self._run(self.loop.run, self.connection.received, answer)

    def _run(self, step: Callable[..., None], *args: object) -> None:
        with self._counting:
            step(*args)

    def _make_socket(self, family: int, kind: int) -> Wire:
        self.wires.append(Wire(family, kind))
        return self.wires[-1]


@contextmanager
def whole(folder: Path, *, stored: bool = True) -> Iterator[Whole]:
    """A gateway whose registry and association file, if it is `stored`, are in `folder`."""
    loop = SteppedLoop()
    try:
        with (
            _registry(folder, loop.time) as registry,
            _store(folder, registry) if stored else nullcontext() as store,
            _logged(),
        ):
            gateway = Whole(loop, registry, store)
            life = loop.create_task(gateway.live())
            loop.step()
            while not gateway.wires:
                loop.step()
            loop.asked.clear()
            try:
                yield gateway
            finally:
                gateway.close()
                loop.run_until_complete(life)
    finally:
        loop.close()


@contextmanager
def crowded(folder: Path, count: int) -> Iterator[Whole]:
    """The same, whose association file has so many associations in it: `recover` them."""
    with _registry(folder, lambda: 0.0) as registry:
        registry.import_devices(
            NewDevice(n, DEFAULT_TENANT, DeviceId(f"sleeper-{n:06}"), b"%d" % n, SECRET)
            for n in range(1, count + 1)
        )
        file = folder / ASSOCIATIONS
        crowd.fill(file, CAPACITY, registry, registry.psks(), wall=WALL, boot_id=BOOT)
    with whole(folder) as gateway:
        yield gateway


def _registry(folder: Path, clock: Callable[[], float]) -> SqliteRegistry:
    return SqliteRegistry.open(
        "sqlite:///registry.db",
        folder / "registry.key",
        folder,
        refresh_interval=0.5,
        wall=lambda: WALL,
        clock=clock,
    )


def _store(folder: Path, registry: SqliteRegistry) -> AbstractContextManager[AssociationStore]:
    return open_associations(folder / ASSOCIATIONS, CAPACITY, registry, boot_id=BOOT, wall=WALL)


@contextmanager
def _logged() -> Iterator[None]:
    """Write log lines as a gateway does, and to nobody else: what a test runner does with them is
    not to be counted."""
    log = logging.getLogger("coapgate")
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(TextFormatter())
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
