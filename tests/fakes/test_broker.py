"""The fake broker does what it says, seen by a client that is not ours."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from mqtt5 import (
    ConnAckPacket,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    QoS,
    read,
)

from tests.fakes.broker import MQTT_3_REFUSAL, FakeBroker


class Probe:
    """A client that does nothing of itself."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = b""

    def send(self, *packets: Packet) -> None:
        self._writer.write(b"".join(packet.write() for packet in packets))

    def publish(
        self, topic: str, packet_id: int, payload: bytes = b"", retain: bool = False
    ) -> None:
        self.send(
            PublishPacket(topic, payload, qos=QoS.AT_LEAST_ONCE, packet_id=packet_id, retain=retain)
        )

    async def receive(self) -> Packet | None:
        """The next packet; None at the end of the connection."""
        async with asyncio.timeout(10):
            while True:
                try:
                    packet, length = read(memoryview(self._buffer))
                except IndexError:
                    data = await self.receive_octets()
                    if not data:
                        return None
                    self._buffer += data
                else:
                    self._buffer = self._buffer[length:]
                    return packet

    async def receive_octets(self) -> bytes:
        try:
            return await self._reader.read(4096)
        except ConnectionResetError:
            return b""

    async def receive_puback(self) -> PubAckPacket:
        packet = await self.receive()
        assert isinstance(packet, PubAckPacket)
        return packet

    async def receive_disconnect(self) -> int:
        packet = await self.receive()
        assert isinstance(packet, DisconnectPacket)
        assert await self.receive() is None
        return packet.reason_code.value


@asynccontextmanager
async def probe(broker: FakeBroker, *, connect: bool = True) -> AsyncIterator[Probe]:
    reader, writer = await asyncio.open_connection(broker.host, broker.port)
    one = Probe(reader, writer)
    try:
        one.send(ConnectPacket("probe"))
        if connect:
            assert isinstance(await one.receive(), ConnAckPacket)
        yield one
    finally:
        writer.close()


async def test_publications_are_recorded_and_acknowledged() -> None:
    async with FakeBroker() as broker, probe(broker) as client:
        client.publish("a/b", 7, b"21.5")

        assert (await client.receive_puback()).packet_id == 7
        await broker.published_at_least(1)
        assert [(packet.topic, packet.payload) for packet in broker.published] == [("a/b", b"21.5")]
        assert broker.topics == ["a/b"]
        assert broker.connects[0].client_id == "probe"
        assert broker.url == f"mqtt://127.0.0.1:{broker.port}"


async def test_a_topic_can_be_refused_disconnected_or_cut() -> None:
    broker = FakeBroker(refuse={"no": 0x87}, disconnect={"out": 0x81}, cut=frozenset({"dead"}))
    async with broker:
        async with probe(broker) as client:
            client.publish("no", 1)
            assert (await client.receive_puback()).reason_code.value == 0x87
            client.publish("out", 2)
            assert await client.receive_disconnect() == 0x81
        async with probe(broker) as client:
            client.publish("dead", 1)
            assert await client.receive() is None


async def test_pubacks_come_late_or_when_they_are_released() -> None:
    async with FakeBroker(puback_delay=0.05) as broker, probe(broker) as client:
        client.publish("a", 1)
        client.send(PingReqPacket())
        assert isinstance(await client.receive(), PingRespPacket)
        assert (await client.receive_puback()).packet_id == 1

        broker.hold_pubacks = True
        client.publish("b", 2)
        client.publish("c", 3)
        client.send(PingReqPacket())
        assert isinstance(await client.receive(), PingRespPacket)
        broker.release_pubacks()
        assert [(await client.receive_puback()).packet_id for _ in range(2)] == [2, 3]
        assert broker.most_in_flight == 2


async def test_what_connack_forbids_ends_the_connection() -> None:
    async with FakeBroker(
        receive_maximum=1, maximum_packet_size=100, maximum_qos=1, retain_available=False
    ) as broker:
        async with probe(broker) as client:
            client.publish("a", 1, b"x" * 100)
            assert await client.receive_disconnect() == 0x95
        async with probe(broker) as client:
            client.publish("a", 1, retain=True)
            assert await client.receive_disconnect() == 0x9A
        broker.hold_pubacks = True
        async with probe(broker) as client:
            client.publish("a", 1)
            client.publish("a", 2)
            assert await client.receive_disconnect() == 0x93
        broker.maximum_qos = 0
        async with probe(broker) as client:
            client.publish("a", 1)
            assert await client.receive_disconnect() == 0x9B


async def test_connack_says_what_was_asked_for() -> None:
    async with FakeBroker(receive_maximum=3, server_keep_alive=9) as broker:
        async with probe(broker, connect=False) as client:
            connack = await client.receive()
            assert isinstance(connack, ConnAckPacket)
            assert (connack.receive_max, connack.server_keep_alive) == (3, 9)
        broker.connack = 0x86
        async with probe(broker, connect=False) as client:
            connack = await client.receive()
            assert isinstance(connack, ConnAckPacket)
            assert connack.reason_code.value == 0x86
            assert await client.receive() is None
        broker.connack_octets = MQTT_3_REFUSAL
        async with probe(broker, connect=False) as client:
            assert await client.receive_octets() == MQTT_3_REFUSAL


async def test_a_silent_broker_keeps_its_connections_and_says_nothing() -> None:
    async with FakeBroker() as broker, probe(broker) as client:
        broker.silent = True
        client.publish("a", 1)
        client.send(PingReqPacket())
        await broker.wait_for(lambda: broker.pings == 1)
        broker.silent = False
        client.send(PingReqPacket())
        assert isinstance(await client.receive(), PingRespPacket)

        broker.accept_silently = True
        async with probe(broker, connect=False):
            await broker.connected_at_least(2)
            assert broker.connections == 2


async def test_a_broker_that_does_not_read_reads_on_later() -> None:
    async with FakeBroker() as broker, probe(broker) as client:
        broker.stop_reading()
        client.publish("a", 1)
        async with probe(broker) as other:
            other.publish("b", 1)
            await other.receive_puback()
        assert broker.topics == ["b"]
        broker.resume_reading()
        await client.receive_puback()
        assert broker.topics == ["b", "a"]


async def test_it_disconnects_cuts_and_comes_back_on_its_port() -> None:
    broker = FakeBroker()
    async with broker:
        async with probe(broker) as client:
            broker.disconnect_all(0x8B)
            assert await client.receive_disconnect() == 0x8B
        async with probe(broker) as client:
            broker.cut_all()
            assert await client.receive() is None
        port = broker.port
        async with probe(broker) as client:
            await broker.stop()
            assert await client.receive() is None
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(broker.host, port)
        await broker.start()
        assert broker.port == port
        async with probe(broker) as client:
            client.send(DisconnectPacket(reason_code=DisconnectReasonCode.NORMAL_DISCONNECTION))
            assert await client.receive() is None
            assert len(broker.disconnects) == 1


async def test_what_is_no_mqtt_ends_the_connection() -> None:
    async with FakeBroker() as broker, probe(broker) as client:
        client.send(ConnAckPacket())
        assert await client.receive_disconnect() == 0x82
    async with FakeBroker() as broker:
        reader, writer = await asyncio.open_connection(broker.host, broker.port)
        writer.write(b"\x00\x00")
        assert await reader.read(2) == b"\xe0\x01"
        writer.close()
        await broker.wait_for(lambda: broker.connections == 0)


async def test_waiting_for_what_does_not_happen_ends() -> None:
    async with FakeBroker(wait_timeout=0.01) as broker:
        with pytest.raises(TimeoutError):
            await broker.published_at_least(1)
