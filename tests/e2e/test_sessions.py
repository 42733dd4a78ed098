"""Associations that come, go, and meet on one path."""

from __future__ import annotations

import socket

import pytest

from coapgate.dtls.client import Client, PskKey
from coapgate.errors import Alert
from coapgate.logs import TextFormatter
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, request_options
from tests.gateway_fixtures import StartGateway
from tests.gateways import Running
from tests.rawpeer import RawPeer, connected
from tests.waiting import until


def post(message_id: int) -> Message:
    return Message(Kind.CON, Code.POST, message_id, b"tk", request_options((b"a",)), b"x")


def changed(message_id: int) -> Message:
    return Message(Kind.ACK, Code.CHANGED, message_id, b"tk")


async def test_a_hello_on_the_path_of_an_association_harms_it_only_with_a_proven_key(
    gateway: Running,
) -> None:
    key = gateway.installation.add_psk("sensor-1")
    detached = gateway.gateway.pump.detached
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect((gateway.host, gateway.port))
        first = RawPeer(sock, Client(key))
        await first.connect()

        stranger = Client(PskKey(key.identity, bytes(16)))
        stranger.connect(0.0)
        sock.send(stranger.outgoing[0])
        first.send(post(1))
        assert await first.receive() == changed(1)

        # The device has lost all it knew and starts again, from the same port.
        again = RawPeer(sock, Client(key))
        await again.connect()
        again.send(post(1))
        assert await again.receive() == changed(1)

    assert detached == {"replaced": 1}
    assert gateway.gateway.pump.server.association_count == 1


async def test_of_a_devices_associations_the_newest_win(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(limits={"associations_per_device": 2})
    address = (gateway.host, gateway.port)
    key = gateway.installation.add_psk("sensor-1")
    async with (
        connected(address, key) as oldest,
        connected(address, key) as old,
        connected(address, key) as newest,
    ):
        await oldest.closed()
        assert oldest.client.alert is Alert.CLOSE_NOTIFY
        for peer in (old, newest):
            peer.send(post(1))
            assert await peer.receive() == changed(1)


async def test_who_is_idle_for_too_long_is_told_goodbye(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls={"idle_timeout": 1.0})
    key = gateway.installation.add_psk("sensor-1")
    async with connected((gateway.host, gateway.port), key) as peer:
        await peer.closed()

    assert peer.client.alert is Alert.CLOSE_NOTIFY
    assert gateway.gateway.pump.detached == {"idle": 1}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_one_socket_serves_both_internets(
    start_gateway: StartGateway, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    caplog.set_level("INFO", "coapgate")
    gateway = await start_gateway(dtls={"bind": "[::]:0"})
    if gateway.host != "::":
        pytest.skip("IPv6 is off here")
    gateway.host = host
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key) as device:
        assert str(await device.request(Code.POST, "a", b"x")) == "2.04"

    lines = [TextFormatter().format(record) for record in caplog.records]
    assert any(f"peer={'[::1]' if host == '::1' else host}:" in line for line in lines)
    assert not any("ffff" in line for line in lines)


async def test_all_of_several_addresses_are_served(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(dtls={"bind": ["127.0.0.1:0", "127.0.0.2:0"]})
    key = gateway.installation.add_psk("sensor-1")
    for address in gateway.gateway.addresses:
        async with connected((address.host, address.port), key) as peer:
            peer.send(post(1))
            assert await peer.receive() == changed(1)


async def test_a_device_that_says_goodbye_is_gone(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with gateway.device(key):
        assert gateway.gateway.pump.server.association_count == 1

    server = gateway.gateway.pump.server
    await until(lambda: server.association_count == 0, "the association ends")
    assert gateway.gateway.pump.detached == {"peer": 1}


async def test_a_replayed_record_is_dropped_and_counted(gateway: Running) -> None:
    key = gateway.installation.add_psk("sensor-1")
    async with connected((gateway.host, gateway.port), key) as peer:
        peer.client.send(post(1).encode())
        (record,) = peer.client.outgoing
        peer.flush()
        assert await peer.receive() == changed(1)
        peer.resend(record)
        forged = bytearray(record)
        forged[-1] ^= 1
        forged[10] += 9  # a fresh sequence number, so that the tag is looked at
        peer.resend(bytes(forged))
        peer.send(post(2))
        assert await peer.receive() == changed(2)

    dropped = gateway.gateway.pump.server.counters.dropped
    assert (dropped["replayed"], dropped["forged"]) == (1, 1)
