"""Both ends of the gateway in memory: a socket towards devices, a transport towards the broker."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from typing import Any

from mqtt5 import (
    ConnAckPacket,
    PingReqPacket,
    PingRespPacket,
    PubAckPacket,
    PublishPacket,
    read,
)

Peer = tuple[str, int]


class Wire(socket.socket):
    """A bound socket that hands out what `arrived` and keeps what was `sent`.

    `calls` are those that would each be one of the system's.
    """

    def __init__(self, family: int, kind: int) -> None:
        super().__init__(family, kind)
        self.arrived: deque[tuple[bytes, Peer]] = deque()
        self.sent: list[tuple[bytes, Peer]] = []
        self.calls = 0

    def recvfrom(self, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
        self.calls += 1
        if not self.arrived:
            raise BlockingIOError(errno.EAGAIN, "nothing there")
        return self.arrived.popleft()

    def sendto(self, data: Any, peer: Any, /) -> int:  # type: ignore[override]  # without flags
        self.calls += 1
        self.sent.append((data, peer))
        return len(data)


class Broker(asyncio.Transport):
    """A broker that takes everything at once. `calls` are writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self._written: list[bytes] = []

    def write(self, data: Any) -> None:
        self.calls += 1
        self._written.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def welcome(self) -> bytes:
        """What it answers to CONNECT."""
        self._written.clear()
        return bytes(ConnAckPacket().write())

    def answer(self) -> bytes:
        """What it answers to all that was written since the last time."""
        octets = b"".join(self._written)
        self._written.clear()
        view, position, answers = memoryview(octets), 0, []
        while position < len(octets):
            packet, length = read(view[position:])
            position += length
            if isinstance(packet, PublishPacket):
                assert packet.packet_id is not None
                answers.append(PubAckPacket(packet.packet_id).write())
            else:
                assert isinstance(packet, PingReqPacket), packet
                answers.append(PingRespPacket().write())
        return b"".join(answers)
