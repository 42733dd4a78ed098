"""A wire between devices and a gateway that loses datagrams, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from random import Random

Address = tuple[str, int]

MAX_DATAGRAM = 65535


class LossyRelay:
    """Hands on what devices send to `address`, each by a socket of its own, and the answers back.

    `loss` is the share of datagrams that is lost, in each direction; `seed` chooses which.
    """

    def __init__(self, gateway: Address, loss: float, seed: int) -> None:
        self.lost = 0
        self._gateway = gateway
        self._loss = loss
        self._random = Random(seed)
        self._loop = asyncio.get_running_loop()
        self._listening = self._open()
        self._listening.bind(("127.0.0.1", 0))
        self._loop.add_reader(self._listening, self._from_device)
        self._to_gateway: dict[Address, socket.socket] = {}

    @property
    def address(self) -> Address:
        host, port = self._listening.getsockname()
        return host, port

    def close(self) -> None:
        for sock in (self._listening, *self._to_gateway.values()):
            self._loop.remove_reader(sock)
            sock.close()

    def _from_device(self) -> None:
        datagram, device = self._listening.recvfrom(MAX_DATAGRAM)
        way = self._to_gateway.get(device)
        if way is None:
            way = self._to_gateway[device] = self._open()
            way.connect(self._gateway)
            self._loop.add_reader(way, self._from_gateway, way, device)
        if not self._is_lost():
            way.send(datagram)

    def _from_gateway(self, way: socket.socket, device: Address) -> None:
        with contextlib.suppress(ConnectionRefusedError):
            datagram = way.recv(MAX_DATAGRAM)
            if not self._is_lost():
                self._listening.sendto(datagram, device)

    def _is_lost(self) -> bool:
        is_lost = self._random.random() < self._loss
        self.lost += is_lost
        return is_lost

    @staticmethod
    def _open() -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        return sock


@contextlib.contextmanager
def lossy_relay(gateway: Address, loss: float, seed: int) -> Iterator[LossyRelay]:
    """A relay that listens while the context is open."""
    relay = LossyRelay(gateway, loss, seed)
    try:
        yield relay
    finally:
        relay.close()
