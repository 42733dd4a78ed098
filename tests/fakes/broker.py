"""A broker that misbehaves on demand: a real TCP server that speaks MQTT 5 with the codec.

    async with FakeBroker(puback_delay=2.0, refuse={"a/b": 0x87}) as broker:
        ...                                  # connect to broker.url
        await broker.published_at_least(3)
        assert broker.published[0].topic == "a/b"

Options are attributes and may be changed while it runs; those of CONNACK hold from the next
connection on. It grants subscriptions, and delivers nothing to subscribers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType

from mqtt5 import (
    ConnAckPacket,
    ConnAckReasonCode,
    ConnectPacket,
    DisconnectPacket,
    DisconnectReasonCode,
    Packet,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PubAckReasonCode,
    PublishPacket,
    QoS,
    SubAckPacket,
    SubAckReasonCode,
    SubscribePacket,
    UnsubAckPacket,
    UnsubAckReasonCode,
    UnsubscribePacket,
    read,
)

MQTT_3_REFUSAL = bytes.fromhex("20 02 00 01")
"""What a broker that knows MQTT 3.1.1 only says: unacceptable protocol version."""


class FakeBroker:
    """One MQTT 5 broker on loopback; see the module for how to use it.

    puback_delay           seconds from a PUBLISH to its PUBACK; pings are answered at once
    hold_pubacks           keep every PUBACK back until `release_pubacks`
    refuse                 topic -> reason code of its PUBACK
    disconnect             topic -> reason code of the DISCONNECT it provokes, instead of a PUBACK
    cut                    topics upon which the connection is closed without a word
    connack                reason code of CONNACK
    connack_octets         octets to send instead of a CONNACK; the connection is closed after them
    accept_silently        never answer a CONNECT
    receive_maximum, maximum_packet_size, maximum_qos, retain_available, server_keep_alive
                           what CONNACK announces; a client that exceeds one is disconnected
    subscriptions          reason code of every topic filter in SUBACK
    silent                 (attribute) say nothing any more, pings included, but keep connections
    wait_timeout           seconds after which waiting for what does not happen raises TimeoutError

    `published` and `connects` are all packets of their kinds, in order of arrival, over all
    connections; `most_in_flight` the most publications that ever were without PUBACK at once;
    `accepted` counts TCP connections, whatever was said on them.
    """

    def __init__(
        self,
        *,
        puback_delay: float = 0.0,
        hold_pubacks: bool = False,
        refuse: Mapping[str, int] | None = None,
        disconnect: Mapping[str, int] | None = None,
        cut: frozenset[str] = frozenset(),
        connack: int = 0x00,
        connack_octets: bytes | None = None,
        accept_silently: bool = False,
        receive_maximum: int = 65535,
        maximum_packet_size: int | None = None,
        maximum_qos: int = 2,
        retain_available: bool = True,
        server_keep_alive: int | None = None,
        subscriptions: int = 1,
        wait_timeout: float = 10.0,
    ) -> None:
        self.puback_delay = puback_delay
        self.hold_pubacks = hold_pubacks
        self.refuse = dict(refuse or {})
        self.disconnect = dict(disconnect or {})
        self.cut = cut
        self.connack = connack
        self.connack_octets = connack_octets
        self.accept_silently = accept_silently
        self.receive_maximum = receive_maximum
        self.maximum_packet_size = maximum_packet_size
        self.maximum_qos = maximum_qos
        self.retain_available = retain_available
        self.server_keep_alive = server_keep_alive
        self.subscriptions = subscriptions
        self.wait_timeout = wait_timeout
        self.published: list[PublishPacket] = []
        self.connects: list[ConnectPacket] = []
        self.disconnects: list[DisconnectPacket] = []
        self.pings = 0
        self.accepted = 0
        self.most_in_flight = 0
        self.silent = False
        self.port = 0
        self._peers: set[_Peer] = set()
        self._server: asyncio.Server | None = None
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @property
    def host(self) -> str:
        return "127.0.0.1"

    @property
    def url(self) -> str:
        return f"mqtt://{self.host}:{self.port}"

    async def __aenter__(self) -> FakeBroker:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen: on a free port at first, on the same one again after `stop`."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Peer(self), self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Listen no more and cut every connection."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut_all()
        await self.wait_for(lambda: not self._peers)

    def cut_all(self) -> None:
        """Close every connection at once, as a broker does that dies."""
        for peer in list(self._peers):
            peer.transport.abort()

    def disconnect_all(self, reason_code: int) -> None:
        """Send DISCONNECT on every connection and close it."""
        for peer in list(self._peers):
            peer.disconnect(reason_code)

    def release_pubacks(self) -> None:
        """Send every PUBACK that was held, and hold none any more."""
        self.hold_pubacks = False
        for peer in self._peers:
            peer.release_pubacks()

    def stop_reading(self) -> None:
        """Read nothing more from the clients that are connected now."""
        for peer in self._peers:
            peer.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read on."""
        for peer in self._peers:
            peer.transport.resume_reading()

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._peers)

    @property
    def topics(self) -> list[str]:
        """The topics of `published`."""
        return [packet.topic for packet in self.published]

    async def published_at_least(self, count: int) -> None:
        """Wait until so many publications have come."""
        await self.wait_for(lambda: len(self.published) >= count)

    async def connected_at_least(self, count: int) -> None:
        """Wait until so many CONNECTs have come."""
        await self.wait_for(lambda: len(self.connects) >= count)

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds. Raises TimeoutError after `wait_timeout` s."""
        if condition():
            return
        waiting = (condition, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(self.wait_timeout):
                await waiting[1]
        finally:
            self._waiting.remove(waiting)

    def changed(self) -> None:
        """Called by the peers: look at the conditions again."""
        for condition, future in self._waiting:
            if not future.done() and condition():
                future.set_result(None)


class _Peer(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._buffer = b""
        self._unacknowledged: set[int] = set()
        self._held: list[PubAckPacket] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._broker._peers.add(self)
        self._broker.accepted += 1
        self._broker.changed()

    def connection_lost(self, exc: Exception | None) -> None:
        self._broker._peers.discard(self)
        self._broker.changed()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and not self.transport.is_closing():
            try:
                packet, length = read(memoryview(self._buffer))
            except IndexError:
                break
            except ValueError:
                self.disconnect(DisconnectReasonCode.MALFORMED_PACKET.value)
                break
            self._buffer = self._buffer[length:]
            self._receive(packet, length)
        self._broker.changed()

    def disconnect(self, reason_code: int) -> None:
        self.transport.write(
            DisconnectPacket(reason_code=DisconnectReasonCode(reason_code)).write()
        )
        self.transport.close()

    def release_pubacks(self) -> None:
        for puback in self._held:
            self._acknowledge(puback)
        self._held.clear()

    def _receive(self, packet: Packet, length: int) -> None:
        broker = self._broker
        match packet:
            case ConnectPacket():
                broker.connects.append(packet)
                self._answer_connect()
            case PublishPacket():
                self._receive_publish(packet, length)
            case PingReqPacket():
                broker.pings += 1
                if not broker.silent:
                    self.transport.write(PingRespPacket().write())
            case SubscribePacket():
                granted = [SubAckReasonCode(broker.subscriptions)] * len(packet.topic_filters)
                self.transport.write(SubAckPacket(packet.packet_id, granted).write())
            case UnsubscribePacket():
                gone = [UnsubAckReasonCode.SUCCESS] * len(packet.patterns)
                self.transport.write(UnsubAckPacket(packet.packet_id, gone).write())
            case DisconnectPacket():
                broker.disconnects.append(packet)
                self.transport.close()
            case _:
                self.disconnect(DisconnectReasonCode.PROTOCOL_ERROR.value)

    def _answer_connect(self) -> None:
        broker = self._broker
        if broker.connack_octets is not None:
            self.transport.write(broker.connack_octets)
            self.transport.close()
        elif not broker.accept_silently:
            connack = ConnAckPacket(
                reason_code=ConnAckReasonCode(broker.connack),
                receive_max=broker.receive_maximum,
                max_packet_size=broker.maximum_packet_size,
                max_qos=QoS(broker.maximum_qos),
                retain_available=broker.retain_available,
                server_keep_alive=broker.server_keep_alive,
            )
            self.transport.write(connack.write())
            if broker.connack >= 0x80:
                self.transport.close()

    def _receive_publish(self, packet: PublishPacket, length: int) -> None:
        broker = self._broker
        broker.published.append(packet)
        if packet.packet_id is not None:
            self._unacknowledged.add(packet.packet_id)
            broker.most_in_flight = max(broker.most_in_flight, len(self._unacknowledged))
        excess = self._excess(packet, length)
        if excess is not None:
            self.disconnect(excess)
        elif packet.topic in broker.disconnect:
            self.disconnect(broker.disconnect[packet.topic])
        elif packet.topic in broker.cut:
            self.transport.abort()
        elif packet.packet_id is not None:
            code = PubAckReasonCode(broker.refuse.get(packet.topic, 0))
            puback = PubAckPacket(packet.packet_id, reason_code=code)
            if broker.hold_pubacks:
                self._held.append(puback)
            elif broker.puback_delay:
                loop = asyncio.get_running_loop()
                loop.call_later(broker.puback_delay, self._acknowledge, puback)
            else:
                self._acknowledge(puback)

    def _excess(self, packet: PublishPacket, length: int) -> int | None:
        """What the client did although CONNACK forbade it."""
        broker = self._broker
        if len(self._unacknowledged) > broker.receive_maximum:
            return DisconnectReasonCode.RECEIVE_MAX_EXCEEDED.value
        if broker.maximum_packet_size is not None and length > broker.maximum_packet_size:
            return DisconnectReasonCode.PACKET_TOO_LARGE.value
        if packet.qos.value > broker.maximum_qos:
            return DisconnectReasonCode.QOS_NOT_SUPPORTED.value
        if packet.retain and not broker.retain_available:
            return DisconnectReasonCode.RETAIN_NOT_SUPPORTED.value
        return None

    def _acknowledge(self, puback: PubAckPacket) -> None:
        if self._broker.silent or self.transport.is_closing():
            return
        self._unacknowledged.discard(puback.packet_id)
        self.transport.write(puback.write())
