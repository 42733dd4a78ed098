"""A device's way to the gateway: one UDP socket, another one for each address it speaks from."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator

MAX_DATAGRAM = 65535
MAX_AT_ONCE = 64
"""Datagrams taken from the socket before the loop gets its turn again."""

Place = tuple[socket.AddressFamily, tuple[object, ...]]
"""Where a gateway is: what a socket is opened for and connected to."""


class Radio:
    """Off until `turn_on`. `on_readable` is called when there is something to `receive`.

    `local_address` is where datagrams come from; None: the system chooses.
    """

    def __init__(
        self,
        host: str,
        port: int,
        local_address: tuple[str, int] | None,
        on_readable: Callable[[], None],
    ) -> None:
        self._gateway = (host, port)
        self._local_address = local_address
        self._on_readable = on_readable
        self._loop: asyncio.AbstractEventLoop
        self._socket: socket.socket | None = None

    @property
    def is_on(self) -> bool:
        return self._socket is not None

    @property
    def address(self) -> tuple[str, int] | None:
        """Where datagrams come from now; None while it is off."""
        if self._socket is None:
            return None
        host, port, *_ = self._socket.getsockname()
        return host, port

    async def look_up(self) -> Place:
        """Where the gateway is now. Raises OSError."""
        self._loop = asyncio.get_running_loop()
        host, port = self._gateway
        places = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, _, _, _, address = places[0]
        return family, address

    def turn_on(self, place: Place) -> None:
        """Open the first socket. Raises OSError."""
        self._open(place, self._local_address)

    def turn_to(self, place: Place, local_address: tuple[str, int] | None) -> None:
        """Open another socket; None: at another port of the host that the last one was given.

        Raises OSError; nothing has changed then.
        """
        if local_address is None and self._local_address is not None:
            local_address = (self._local_address[0], 0)
        self._open(place, local_address)
        self._local_address = local_address

    def turn_off(self) -> None:
        """Close the socket, if there is one: whatever is sent to it now is lost."""
        if self._socket is not None:
            self._loop.remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def send(self, datagrams: list[bytes]) -> None:
        """Send and clear all of these; what cannot leave, off or full, is as good as lost."""
        if self._socket is not None:
            for datagram in datagrams:
                try:
                    self._socket.send(datagram)
                except BlockingIOError:
                    break
                except OSError:
                    # The error belongs to an earlier datagram, and this one was not sent.
                    with contextlib.suppress(OSError):
                        self._socket.send(datagram)
        datagrams.clear()

    def receive(self) -> Iterator[bytes]:
        """The datagrams that have come, MAX_AT_ONCE at most."""
        assert self._socket is not None
        for _ in range(MAX_AT_ONCE):
            try:
                yield self._socket.recv(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier datagram; whatever was lost is repeated

    def _open(self, place: Place, local_address: tuple[str, int] | None) -> None:
        family, address = place
        opened = socket.socket(family, socket.SOCK_DGRAM)
        try:
            opened.setblocking(False)
            if local_address is not None:
                opened.bind(local_address)
            opened.connect(address)
            self._loop.add_reader(opened, self._on_readable)
        except BaseException:
            opened.close()
            raise
        self.turn_off()
        self._socket = opened
