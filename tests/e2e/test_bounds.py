"""What strangers and sleepers may cost: the memory of a gateway process."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import Iterator

from coapgate.dtls import messages as m
from coapgate.dtls.client import Client, PskKey
from coapgate.dtls.cookies import hello_verify_request
from coapgate.model import DEFAULT_TENANT, Code, DeviceId
from coapgate.registry.base import NewDevice
from coapgate.simulated.device import Device
from coapgate.simulated.message import Kind, Message, request_options
from tests.gateway_fixtures import Install
from tests.gateways import GatewayProcess, Installation, running_process
from tests.rawpeer import connected
from tests.waiting import DEADLINE

KIB = 1024
SECRET = b"sixteen octets!!"


def spoofed_addresses() -> Iterator[str]:
    """Different ones below 127.0.0.0/8; no two hellos come from the same."""
    for a, b, c in itertools.product(range(1, 255), range(1, 255), range(1, 255)):
        yield f"127.{a}.{b}.{c}"


def hello(cookie: bytes = b"") -> bytes:
    """A good ClientHello with a random of its own; a cookie is one that the gateway never made."""
    client = Client(PskKey(b"sensor-1", SECRET))
    client.connect(0.0)
    if cookie:
        client.receive_datagram(hello_verify_request(0, 0, cookie), 0.0)
    return client.outgoing[-1]


async def flood(gateway: GatewayProcess, addresses: Iterator[str], count: int) -> int:
    """Send hellos from so many sources, each until it is answered; how many octets came back."""
    loop = asyncio.get_running_loop()
    answered = 0
    for _ in range(count // 100):
        sources = []
        for number in range(100):
            source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            source.setblocking(False)
            source.bind((next(addresses), 0))
            source.connect(gateway.address)
            question = hello(b"" if number % 2 else os.urandom(32))
            source.send(question)
            sources.append((source, question))
        for source, question in sources:
            with source:
                async with asyncio.timeout(DEADLINE):
                    answer = await loop.sock_recv(source, 65535)
            assert answer[m.HEADER_LENGTH + 1] == m.HandshakeType.HELLO_VERIFY_REQUEST
            assert len(answer) <= len(question)
            answered += 1
    return answered


async def test_20000_hellos_from_spoofed_sources_leave_nothing(install: Install) -> None:
    installation = install()
    key = installation.add_psk("sensor-1")
    addresses = spoofed_addresses()
    async with running_process(installation) as gateway:
        # What the first ones cost is the process's, not theirs.
        await flood(gateway, addresses, 2_000)
        before = gateway.resident_size()

        async with asyncio.TaskGroup() as tasks:
            flooding = tasks.create_task(flood(gateway, addresses, 20_000))
            async with Device(*gateway.address, key) as device:
                while not flooding.done():
                    assert str(await device.request(Code.POST, "alive", b"yes")) == "2.04"
                    await asyncio.wait({flooding}, timeout=0.1)

        grown = gateway.resident_size() - before
        metrics = await gateway.metrics()

    assert flooding.result() == 20_000
    assert metrics["coapgate_cookies_sent_total"] >= 22_000
    assert metrics["coapgate_handshakes_pending"] == 0
    assert metrics["coapgate_handshakes_completed_total,psk"] == 1
    assert grown < 512 * KIB, f"{grown / KIB:.0f} KiB"


async def attach(gateway: GatewayProcess, numbers: range) -> None:
    """Let devices connect, send one message, and fall asleep without a goodbye."""
    options = request_options((b"temperature",))
    message = Message(Kind.CON, Code.POST, 1, b"tokn", options, b"21.5")

    async def one(number: int) -> None:
        key = PskKey(f"sensor-{number}".encode(), SECRET)
        # An address of its own: a port that is used again would be the same path.
        local = (f"127.1.{number // 250}.{number % 250 + 1}", 0)
        async with connected(gateway.address, key, local_address=local) as peer:
            peer.send(message)
            assert (await peer.receive()).code == Code.CHANGED

    for start in range(numbers.start, numbers.stop, 50):
        async with asyncio.TaskGroup() as tasks:
            for number in range(start, min(start + 50, numbers.stop)):
                tasks.create_task(one(number))


def add_devices(installation: Installation, count: int) -> None:
    installation.registry.import_devices(
        NewDevice(n + 1, DEFAULT_TENANT, DeviceId(f"sensor-{n}"), f"sensor-{n}".encode(), SECRET)
        for n in range(count)
    )


async def test_an_idle_association_takes_at_most_4_kib(install: Install) -> None:
    installation = install()
    add_devices(installation, 5000)
    async with running_process(installation) as gateway:
        # Until all that is bounded is as full as it gets: the AEADs at hand, the buffers.
        await attach(gateway, range(2000))
        before = gateway.resident_size()

        await attach(gateway, range(2000, 5000))

        grown = gateway.resident_size() - before
        metrics = await gateway.metrics()

    assert metrics["coapgate_associations"] == 5000
    print("EACH", grown / 3000)
    assert grown / 3000 <= 4 * KIB, f"{grown / 3000 / KIB:.2f} KiB each"
