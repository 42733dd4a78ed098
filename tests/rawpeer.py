"""A DTLS client whose every message the test writes and reads itself."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coapgate.dtls.client import Client, ClientSettings, Credential
from coapgate.simulated.message import Message
from tests.waiting import DEADLINE


class RawPeer:
    """One association over one socket. Nothing is repeated or acknowledged but the handshake."""

    def __init__(self, sock: socket.socket, client: Client) -> None:
        self.client = client
        self._socket = sock
        self._loop = asyncio.get_running_loop()
        self._plaintexts: deque[bytes] = deque()

    async def connect(self) -> None:
        """Do the handshake; `client.failure` and `client.alert` say how it ended if not well."""
        client = self.client
        client.connect(self._loop.time())
        while client.next_timer() is not None:
            self.flush()
            due = client.next_timer()
            assert due is not None
            try:
                async with asyncio.timeout_at(due):
                    await self._take_datagram()
            except TimeoutError:
                client.handle_timer(self._loop.time())
        self.flush()

    def send(self, message: Message | bytes) -> None:
        """Send one record of application data."""
        octets = message if isinstance(message, bytes) else message.encode()
        self.client.send(octets)
        self.flush()

    async def receive(self) -> Message:
        """The next message; a test that waits in vain fails."""
        try:
            async with asyncio.timeout(DEADLINE):
                while not self._plaintexts:
                    await self._take_datagram()
        except TimeoutError:
            raise AssertionError("the gateway sent nothing") from None
        return Message.parse(self._plaintexts.popleft())

    async def closed(self) -> None:
        """Wait until the gateway has ended the association."""
        try:
            async with asyncio.timeout(DEADLINE):
                while self.client.is_established:
                    await self._take_datagram()
        except TimeoutError:
            raise AssertionError("the association goes on") from None

    def resend(self, datagram: bytes) -> None:
        """Send octets as they are."""
        self._socket.send(datagram)

    def flush(self) -> None:
        for datagram in self.client.outgoing:
            self._socket.send(datagram)
        self.client.outgoing.clear()

    async def _take_datagram(self) -> None:
        datagram = await self._loop.sock_recv(self._socket, 65535)
        self._plaintexts += self.client.receive_datagram(datagram, self._loop.time())


@asynccontextmanager
async def connected(
    address: tuple[str, int],
    credential: Credential,
    *,
    local_address: tuple[str, int] = ("127.0.0.1", 0),
    settings: ClientSettings | None = None,
) -> AsyncIterator[RawPeer]:
    """A peer with an association; in the end it vanishes without a goodbye."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.bind(local_address)
        sock.connect(address)
        peer = RawPeer(sock, Client(credential, settings))
        await peer.connect()
        assert peer.client.is_established, peer.client.failure
        yield peer
