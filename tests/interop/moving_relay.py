"""A NAT that forgets at once: a device seems to be somewhere else with every record it sends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

from coapgate.dtls.records import ContentType

Address = tuple[str, int]

MAX_DATAGRAM = 65535
_FINISHED = 1 << 48
"""Epoch and number of the first record that carries a Connection ID: the handshake's last."""


class MovingRelay:
    """Hands on what one device sends to `address`, and hands back what it is answered.

    Each datagram that begins with a Connection ID, after the handshake, comes to the gateway from
    another address and port than all before. `moves` is how many did; `strayed` counts answers that
    went to where the device had been before: they are lost.
    """

    def __init__(self, gateway: Address) -> None:
        self.moves = 0
        self.strayed = 0
        self._gateway = gateway
        self._device: Address | None = None
        self._loop = asyncio.get_running_loop()
        self._listening = self._open("127.0.0.1")
        self._loop.add_reader(self._listening, self._from_device)
        self._ways: list[socket.socket] = []
        self._move()

    @property
    def address(self) -> Address:
        host, port = self._listening.getsockname()
        return host, port

    def close(self) -> None:
        for sock in (self._listening, *self._ways):
            self._loop.remove_reader(sock)
            sock.close()

    def _move(self) -> None:
        way = self._open(f"127.0.0.{len(self._ways) + 2}")
        self._ways.append(way)
        self._loop.add_reader(way, self._from_gateway, way)

    def _from_device(self) -> None:
        datagram, self._device = self._listening.recvfrom(MAX_DATAGRAM)
        number = int.from_bytes(datagram[3:11], "big")
        if datagram[0] == ContentType.TLS12_CID and number > _FINISHED:
            self._move()
            self.moves += 1
        self._ways[-1].sendto(datagram, self._gateway)

    def _from_gateway(self, way: socket.socket) -> None:
        datagram, _ = way.recvfrom(MAX_DATAGRAM)
        if way is self._ways[-1]:
            assert self._device is not None
            self._listening.sendto(datagram, self._device)
        else:
            self.strayed += 1

    @staticmethod
    def _open(host: str) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.bind((host, 0))
        return sock


@contextlib.contextmanager
def moving_relay(gateway: Address) -> Iterator[MovingRelay]:
    """A relay that listens while the context is open."""
    relay = MovingRelay(gateway)
    try:
        yield relay
    finally:
        relay.close()
