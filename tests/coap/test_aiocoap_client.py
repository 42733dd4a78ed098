"""aiocoap's own client against our message layer, over plain UDP on loopback."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiocoap
import pytest
from aiocoap import GET, POST, PUT

from coapgate.coap.aiocoap_bridge import Bridge
from coapgate.coap.endpoint import Endpoint
from coapgate.coap.hotpath import HotPath
from coapgate.coap.messages import MessageLayer, Settings
from coapgate.coap.rates import DeviceRates
from coapgate.coap.resources import build_site
from coapgate.dtls.paths import UnprovenPath
from coapgate.model import Identity
from coapgate.uplink import Uplinks
from tests.coap.gate import WALL, RecordingPublisher, identity

ACK_DELAY = 0.02


@dataclass(slots=True)
class Peer:
    """Stands where an association would stand."""

    address: Any
    identity: Identity = field(default_factory=identity)
    max_plaintext: int = 1024
    unproven: UnprovenPath | None = None

    def can_send(self, length: int) -> bool:
        return self.unproven is None or length <= self.unproven.credit


class Shell:
    """A socket and a timer around the sans-IO core, as `serving` and `udp` are."""

    def __init__(self, copies: int = 1) -> None:
        self.loop = asyncio.get_running_loop()
        self.publisher = RecordingPublisher()
        self.copies = copies
        self.sent: list[bytes] = []
        self.endpoints: dict[Any, Endpoint[Peer]] = {}
        self.timer: asyncio.TimerHandle | None = None
        self.changed = asyncio.Event()
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(("127.0.0.1", 0))
        self.uri = f"coap://127.0.0.1:{self.socket.getsockname()[1]}"

    def build(self, bridge: Bridge) -> None:
        uplinks = Uplinks(self.publisher, "coapgate")
        rates = DeviceRates(1000.0, 1000)
        settings = Settings(ack_delay=ACK_DELAY)
        self.layer = MessageLayer(
            self.transmit,
            HotPath(uplinks, bridge),
            rates,
            settings,
            prove_path=self.prove_path,
        )
        self.loop.add_reader(self.socket, self.readable)

    def readable(self) -> None:
        octets, address = self.socket.recvfrom(2048)
        endpoint = self.endpoints.get(address)
        if endpoint is None:
            peer = Peer(address)
            endpoint = self.layer.open(peer, peer.identity, b"12345678")
            self.endpoints[address] = endpoint
        for _ in range(self.copies):
            self.layer.receive(endpoint, octets, self.loop.time())
        self.after()

    def prove_path(self, peer: Peer) -> None:
        peer.unproven = None

    def transmit(self, peer: Peer, octets: bytes, now: float) -> None:
        if not peer.can_send(len(octets)):
            return
        if peer.unproven is not None:
            peer.unproven.credit -= len(octets)
        self.sent.append(octets)
        self.socket.sendto(octets, peer.address)

    def tick(self) -> None:
        self.layer.handle_timer(self.loop.time())
        self.after()

    def after(self) -> None:
        self.changed.set()
        self.changed.clear()
        if self.timer is not None:
            self.timer.cancel()
        due = self.layer.next_timer()
        self.timer = self.loop.call_at(due, self.tick) if due is not None else None

    def respond(self, ticket: int, code: int, options: bytes, payload: bytes) -> None:
        self.layer.respond(ticket, code, options, payload, self.loop.time())
        self.after()

    def acknowledge(self, number: int) -> None:
        ticket = self.publisher.published[number].ticket_number
        self.layer.acknowledged(ticket, 0, self.loop.time())
        self.after()

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not done():
                await self.changed.wait()

    def close(self) -> None:
        self.loop.remove_reader(self.socket)
        self.socket.close()
        if self.timer is not None:
            self.timer.cancel()


@asynccontextmanager
async def client_and_shell(copies: int = 1) -> AsyncIterator[tuple[aiocoap.Context, Shell]]:
    shell = Shell(copies)
    async with Bridge(build_site(lambda: WALL), shell.respond) as bridge:
        shell.build(bridge)
        client = await aiocoap.Context.create_client_context(transports=["simple6"])
        try:
            yield client, shell
        finally:
            await client.shutdown()
            shell.close()


async def test_discovery_and_hello() -> None:
    async with client_and_shell() as (client, shell):
        core = aiocoap.Message(code=GET, uri=f"{shell.uri}/.well-known/core?rt=coapgate.*")
        hello = aiocoap.Message(code=GET, uri=f"{shell.uri}/hello")

        assert b"</time>" in (await client.request(core).response).payload
        assert json.loads((await client.request(hello).response).payload)["device"] == "sensor-1"


@pytest.mark.parametrize("copies", [1, 3])
async def test_an_uplink_is_published_once_however_often_it_arrives(copies: int) -> None:
    async with client_and_shell(copies) as (client, shell):
        request = aiocoap.Message(code=POST, uri=f"{shell.uri}/a/b?x=1", payload=b"21.5")
        response = client.request(request).response
        await shell.until(lambda: shell.publisher.published)
        shell.acknowledge(0)

        assert (await response).code == aiocoap.CHANGED
        (publication,) = shell.publisher.published
        assert publication.topic == "coapgate/default/sensor-1/up/a/b"
        assert dict(publication.user_properties)["coap-query"] == "x=1"


async def test_a_separate_response_arrives_and_is_acknowledged() -> None:
    async with client_and_shell() as (client, shell):
        request = aiocoap.Message(code=PUT, uri=f"{shell.uri}/slow", payload=b"x")
        response = client.request(request).response
        await shell.until(lambda: shell.sent)
        assert shell.sent[0][:2] == b"\x60\x00"
        shell.acknowledge(0)

        assert (await response).code == aiocoap.CHANGED
        (endpoint,) = shell.endpoints.values()
        await shell.until(lambda: endpoint.outgoing is None)
        assert shell.layer.counts.resets == 0


async def test_a_small_block_size_is_no_obstacle() -> None:
    async with client_and_shell() as (client, shell):
        request = aiocoap.Message(code=GET, uri=f"{shell.uri}/.well-known/core", block2=(0, 0, 0))

        assert b"</hello>" in (await client.request(request).response).payload


async def test_an_unknown_critical_option_is_4_02() -> None:
    async with client_and_shell() as (client, shell):
        request = aiocoap.Message(code=POST, uri=f"{shell.uri}/a", if_none_match=True)

        assert (await client.request(request).response).code == aiocoap.BAD_OPTION


async def test_a_client_that_knows_no_echo_proves_its_path_by_its_reset_of_our_ping() -> None:
    async with client_and_shell() as (client, shell):
        hello = aiocoap.Message(code=GET, uri=f"{shell.uri}/hello")
        await client.request(hello).response
        (peer,) = (endpoint.association for endpoint in shell.endpoints.values())
        peer.unproven = UnprovenPath(16, b"\x0e" * 8)

        core = aiocoap.Message(code=GET, uri=f"{shell.uri}/.well-known/core")
        refused = await client.request(core).response
        await shell.until(lambda: peer.unproven is None)
        core = aiocoap.Message(code=GET, uri=f"{shell.uri}/.well-known/core")

        assert (refused.code, refused.opt.echo) == (aiocoap.UNAUTHORIZED, b"\x0e" * 8)
        assert (await client.request(core).response).code == aiocoap.CONTENT
        assert shell.layer.counts.path_proofs == {"reset": 1}
