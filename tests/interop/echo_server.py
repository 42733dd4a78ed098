"""Our DTLS alone over UDP, without CoAP: it says back what it hears."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace

from coapgate.dtls.association import Association
from coapgate.dtls.events import Candidate, ChainProven, KeyProven, KeysRequested
from coapgate.dtls.records import ContentType
from coapgate.dtls.server import Server, ServerSettings
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method
from tests.fakes.link import IDENTITY, KEY, Direction, Fate, delivered

Address = tuple[str, int]

DEVICE = Identity(DEFAULT_TENANT, DeviceId("sensor-1"), Method.PSK, "test")
PREFIX = b"you said "
TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


class EchoServer:
    """The smallest UDP shell there is: one socket, one timer; everybody who proves a key is let in.

    `fate` says which datagrams of handshakes are lost; application data, which nobody would send
    again, never is where it can be told from outside. `heard` is the plaintext that came, `lengths`
    the octets of all datagrams, lost ones included.
    """

    def __init__(self, settings: ServerSettings, fate: Fate = delivered) -> None:
        self.server = Server(settings, self._echo)
        self.heard: list[bytes] = []
        self.lengths: dict[Direction, list[int]] = {way: [] for way in Direction}
        self._fate = fate
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(("127.0.0.1", 0))
        self._loop.add_reader(self._socket, self._receive)
        self._timer = self._loop.call_soon(lambda: None)

    @property
    def address(self) -> Address:
        host, port = self._socket.getsockname()
        return host, port

    def close(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _echo(self, association: Association, plaintext: bytes, now: float) -> None:
        self.heard.append(plaintext)
        self.server.traffic.send(association, PREFIX + plaintext, now)

    def _receive(self) -> None:
        datagram, peer = self._socket.recvfrom(65535)
        if self._arrives(TO_SERVER, datagram):
            self.server.receive_datagram(datagram, (0, peer), self._loop.time())
        self._settle()

    def _handle_timer(self) -> None:
        self.server.handle_timer(self._loop.time())
        self._settle()

    def _settle(self) -> None:
        now = self._loop.time()
        while self.server.events:
            match self.server.events.popleft():
                case KeysRequested(handshake, identity):
                    keys = (Candidate(KEY, None),) if identity == IDENTITY else ()
                    self.server.offer_keys(handshake, keys, now)
                case KeyProven(handshake) | ChainProven(handshake):
                    self.server.accept(handshake, DEVICE, now)
        for datagram, (_, peer) in self.server.outgoing:
            if self._arrives(TO_CLIENT, datagram):
                self._socket.sendto(datagram, peer)
        self.server.outgoing.clear()
        self._timer.cancel()
        due = self.server.next_timer()
        if due is not None:
            self._timer = self._loop.call_at(due, self._handle_timer)

    def _arrives(self, way: Direction, datagram: bytes) -> bool:
        self.lengths[way].append(len(datagram))
        is_data = datagram[0] == ContentType.APPLICATION_DATA
        return is_data or self._fate(way, len(self.lengths[way]) - 1, datagram) != ()


@contextlib.contextmanager
def echo_server(settings: ServerSettings, fate: Fate = delivered) -> Iterator[EchoServer]:
    """A server that listens while the context is open.

    It repeats a flight after 0.3 s already: here the clock is a real one.
    """
    handshake = replace(settings.handshake, retransmission_time=0.3)
    server = EchoServer(replace(settings, handshake=handshake), fate)
    try:
        yield server
    finally:
        server.close()
