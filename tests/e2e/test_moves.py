"""Devices that come from another address (acceptance 12)."""

from __future__ import annotations

import socket

import pytest

from coapgate.dtls.client import Client, ClientSettings
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests.gateways import Running
from tests.rawpeer import RawPeer
from tests.waiting import until


def post(message_id: int) -> Message:
    return Message(Kind.CON, Code.POST, message_id, b"tk", request_options((b"a",)), b"x")


def opened() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1", 0))
    return sock


@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_a_device_changes_its_address_between_two_requests_without_a_handshake(
    gateway: Running, method: str
) -> None:
    credential = gateway.installation.credential(method, "sensor-1")
    pump = gateway.gateway.pump

    async with gateway.device(
        credential, settings=ClientSettings(connection_id=b"\xbe\xef")
    ) as device:
        for _ in range(5):
            before = device.address
            assert (await device.request(Code.POST, "a", b"x")).code == Code.CHANGED
            await device.move()
            assert device.address != before
        assert (await device.request(Code.POST, "a", b"x")).code == Code.CHANGED

        assert device.handshakes == 1
        assert pump.server.counters.handshakes_completed == 1
        assert pump.server.counters.address_moves == 5
        assert pump.server.association_count == 1


@pytest.mark.parametrize("method", ["psk", "x509"])
async def test_a_replayed_older_record_from_a_third_address_moves_nothing(
    gateway: Running, method: str
) -> None:
    credential = gateway.installation.credential(method, "sensor-1")
    server = gateway.gateway.pump.server
    with opened() as home, opened() as away, opened() as third:
        for sock in (home, away, third):
            sock.connect((gateway.host, gateway.port))
        client = Client(credential, ClientSettings(connection_id=b""))
        peer = RawPeer(home, client)
        await peer.connect()
        client.send(post(1).encode())
        recorded = tuple(client.outgoing)
        peer.flush()
        assert (await peer.receive()).code == Code.CHANGED

        moved = RawPeer(away, client)
        moved.send(post(2))
        assert (await moved.receive()).code == Code.CHANGED
        third.send(recorded[0])
        await until(lambda: server.counters.dropped["replayed"] == 1, "the replay is dropped")
        moved.send(post(3))

        assert (await moved.receive()).message_id == 3
        (association,) = server.associations
        assert association.path[1] == away.getsockname()
        assert server.counters.address_moves == 1


async def test_a_repetition_from_another_address_is_answered_there_and_not_published_again(
    gateway: Running,
) -> None:
    key = gateway.installation.add_psk("sensor-1")
    with opened() as home, opened() as away:
        for sock in (home, away):
            sock.connect((gateway.host, gateway.port))
        client = Client(key, ClientSettings(connection_id=b""))
        peer = RawPeer(home, client)
        await peer.connect()
        peer.send(post(1))
        answer = await peer.receive()

        moved = RawPeer(away, client)
        moved.send(post(1))

        assert await moved.receive() == answer
    counts = gateway.gateway.pump.server.counters
    assert counts.address_moves == 1
    assert (await gateway.metrics())["coapgate_uplinks_published_total"] == 1
