"""A pump with all that is above it and none of the sockets: devices are joined to it by calls.

    async with pumping(registry) as gate:
        peer = gate.connect(key)
        gate.send(peer, post(1))
        gate.acknowledge()
        assert peer.received == [...]

Time is `gate.now` and stands still unless a test moves it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from coapgate.authentication import Authentication, Registry
from coapgate.coap.aiocoap_bridge import Bridge
from coapgate.coap.hotpath import HotPath
from coapgate.coap.messages import MessageLayer
from coapgate.coap.options import Request
from coapgate.coap.rates import DeviceRates
from coapgate.dtls.association import Association
from coapgate.dtls.client import Client, ClientSettings, Credential
from coapgate.dtls.server import ServerSettings
from coapgate.dtls.store import AssociationStore
from coapgate.model import Code, DeviceId, Path, Tenant
from coapgate.serving import Pump
from coapgate.sessions import Sessions
from coapgate.simulated.message import Kind, Message, request_options
from coapgate.uplink import Source, Uplinks

WALL = 1_800_000_000.0


@dataclass
class Publisher:
    """Takes publications and keeps them; the test says how they end."""

    published: list[tuple[str, bytes]] = field(default_factory=list)
    properties: list[dict[str, str]] = field(default_factory=list)
    tickets: list[int] = field(default_factory=list)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
    ) -> None:
        self.published.append((topic, payload))
        self.properties.append(dict(user_properties))
        if ticket is not None:
            self.tickets.append(ticket)


class Site:
    """One resource, `/hello`; the test answers, or whom it names."""

    paths: frozenset[tuple[bytes, ...]] = frozenset({(b"hello",)})

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.answering: Bridge | None = None

    def request(self, source: Source, ticket: int, request: Request) -> None:
        if self.answering is None:
            self.asked.append(ticket)
        else:
            self.answering.request(source, ticket, request)


@dataclass
class Peer:
    """A device at one address; `received` are the plaintexts it got."""

    client: Client
    path: Path
    received: list[bytes] = field(default_factory=list)


class Gate:
    """The pump, the layers above it as they are, and what it told those who are not there."""

    def __init__(
        self,
        registry: Registry,
        tasks: asyncio.TaskGroup,
        settings: ServerSettings,
        associations_per_device: int,
        store: AssociationStore | None = None,
        wall: float = WALL,
    ) -> None:
        self.now = 1000.0
        self.wall = wall
        self.publisher = Publisher()
        self.site = Site()
        self.events: list[tuple[str, str, str, bytes]] = []
        self.wakes = 0
        self.pump = Pump(
            settings,
            Authentication(registry),
            Sessions(associations_per_device),
            tasks,
            lambda: self.now,
            lambda: self.wall,
            store,
        )
        self.uplinks = Uplinks(self.publisher, "root")
        self.layer: MessageLayer[Association] = MessageLayer(
            self.pump.server.traffic.send,
            HotPath(self.uplinks, self.site),
            DeviceRates(1000.0, 1000),
            prove_path=self.pump.server.traffic.prove_path,
            answered=self.pump.server.traffic.remember_answer,
        )
        self.pump.connect(self.layer, self.uplinks, self._publish_event, self._wake)
        self._peers: dict[Path, Peer] = {}
        self._ports = itertools.count(49152)

    @property
    def associations(self) -> list[Association]:
        """Longest idle first."""
        return list(self.pump.server.associations)

    def join(
        self,
        credential: Credential,
        path: Path | None = None,
        settings: ClientSettings | None = None,
    ) -> Peer:
        """Put a device at an address, by default one of its own, and let it begin to connect."""
        path = path or (0, ("192.0.2.1", next(self._ports)))
        peer = self._peers[path] = Peer(Client(credential, settings), path)
        peer.client.connect(self.now)
        self.turn()
        return peer

    def connect(
        self,
        credential: Credential,
        path: Path | None = None,
        settings: ClientSettings | None = None,
    ) -> Peer:
        """Join a device that is let in at once."""
        peer = self.join(credential, path, settings)
        assert peer.client.is_established, peer.client.failure
        return peer

    def adopt(self, peer: Peer) -> None:
        """Go on with a device that was at another gate."""
        self._peers[peer.path] = peer

    def move(self, peer: Peer, path: Path) -> None:
        """Let a device speak from another address."""
        del self._peers[peer.path]
        peer.path = path
        self._peers[path] = peer

    def send(self, peer: Peer, message: Message | bytes) -> None:
        """A device sends one record of application data, and all that follows happens."""
        peer.client.send(message if isinstance(message, bytes) else message.encode())
        self.turn()

    def acknowledge(self, outcome: int = 0) -> None:
        """The broker has everything that was published."""
        for ticket in self.publisher.tickets:
            self.pump.acknowledged(ticket, outcome)
        self.publisher.tickets.clear()
        self.turn()

    def turn(self) -> None:
        """Carry datagrams, as the sockets do, until nobody has one to send."""
        sending = True
        while sending:
            sending = False
            self.pump.begin()
            for peer in list(self._peers.values()):
                for datagram in peer.client.outgoing:
                    sending = True
                    self.pump.receive_datagram(datagram, peer.path, self.now)
                peer.client.outgoing.clear()
            self.pump.settle(self.now)
            for datagram, path in self.pump.outgoing:
                sending = True
                if path in self._peers:
                    client = self._peers[path].client
                    self._peers[path].received += client.receive_datagram(datagram, self.now)
            self.pump.outgoing.clear()

    def leave(self, peer: Peer) -> None:
        """Take a device off the wire, without a goodbye."""
        del self._peers[peer.path]

    def wait(self, seconds: float) -> None:
        """So much time passes; what is due in it happens at its end."""
        self.now += seconds
        due = self.pump.next_timer()
        if due is not None and due <= self.now:
            self.pump.handle_timer(self.now)
        self.turn()

    def _publish_event(self, tenant: Tenant, device: DeviceId, name: str, payload: bytes) -> None:
        self.events.append((tenant, device, name, payload))

    def _wake(self) -> None:
        self.wakes += 1


@asynccontextmanager
async def pumping(
    registry: Registry,
    settings: ServerSettings | None = None,
    *,
    associations_per_device: int = 4,
    store: AssociationStore | None = None,
    wall: float = WALL,
) -> AsyncIterator[Gate]:
    """A gate whose waiting decisions are cancelled in the end."""
    async with asyncio.TaskGroup() as tasks:
        gate = Gate(
            registry, tasks, settings or ServerSettings(), associations_per_device, store, wall
        )
        try:
            yield gate
        finally:
            gate.pump.stop()


def post(message_id: int, path: bytes = b"a", payload: bytes = b"x") -> Message:
    return Message(Kind.CON, Code.POST, message_id, b"tk", request_options((path,)), payload)


def changed(message_id: int) -> bytes:
    """The answer to `post` once the broker has it."""
    return Message(Kind.ACK, Code.CHANGED, message_id, b"tk").encode()
