"""A device: CoAP over DTLS over one UDP socket.

    async with Device("127.0.0.1", 5684, PskKey(b"sensor-1", key)) as device:
        response = await device.request(Code.POST, "temperature", b"21.5", content_format=TEXT)
        print(response)                 # 2.04

Entering it does the handshake, leaving it says close_notify.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import Client, ClientSettings, Credential, State
from coapgate.errors import DeviceRefused, NoAnswer
from coapgate.simulated.exchange import Answered, Exchanges, GivenUp, Rejected
from coapgate.simulated.message import Response, request_options

MAX_DATAGRAM = 65535
MAX_AT_ONCE = 64
"""Datagrams taken from the socket before the loop gets its turn again."""
RESPONSE_TIMEOUT = 93.0
"""Seconds a device waits for a response: MAX_TRANSMIT_WAIT (RFC 7252 section 4.8.2)."""


class Device:
    """One device with one association; any number of requests at once.

    `local_address` is where its datagrams come from. An object is entered once.
    """

    def __init__(
        self,
        host: str,
        port: int,
        credential: Credential,
        *,
        settings: ClientSettings | None = None,
        reliability: Reliability | None = None,
        local_address: tuple[str, int] | None = None,
    ) -> None:
        self._address = (host, port)
        self._local_address = local_address
        self._client = Client(credential, settings)
        self._exchanges = Exchanges(reliability)
        self._answers: dict[bytes, asyncio.Future[Response]] = {}
        self._loop: asyncio.AbstractEventLoop
        self._socket: socket.socket
        self._connected: asyncio.Future[None]
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Do the handshake. Raises DeviceRefused, NoAnswer, OSError."""
        self._loop = asyncio.get_running_loop()
        self._socket = await self._open_socket()
        try:
            self._connected = self._loop.create_future()
            self._loop.add_reader(self._socket, self._receive)
            self._client.connect(self._loop.time())
            self._transmit()
            await self._connected
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._client.close()
        self._send_all(self._client.outgoing)
        self._close()

    @property
    def repeats(self) -> int:
        """Requests sent again because nobody acknowledged them in time."""
        return self._exchanges.repeats

    async def request(
        self,
        code: int,
        path: str | Sequence[bytes],
        payload: bytes = b"",
        *,
        query: Sequence[bytes] = (),
        content_format: int | None = None,
        options: Sequence[tuple[int, bytes]] = (),
        confirmable: bool = True,
        response_timeout: float = RESPONSE_TIMEOUT,
    ) -> Response:
        """Ask, and wait for the response, whatever its code.

        `path` is its segments, or text with `/` between them; `payload` is to fit one datagram. A
        confirmable request is repeated as RFC 7252 section 4.2 says; `response_timeout` (seconds)
        runs from the first transmission.

        Raises NoAnswer, or DeviceRefused if the gateway ended the association.
        """
        self._raise_if_closed()
        segments = path.strip("/").encode().split(b"/") if isinstance(path, str) else path
        usual = request_options(segments if path else (), query, content_format)
        token = self._exchanges.request(
            code, (*usual, *options), payload, self._loop.time(), confirmable=confirmable
        )
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._answers[token] = answer
        self._transmit()
        try:
            async with asyncio.timeout(response_timeout):
                return await answer
        except TimeoutError as error:
            raise NoAnswer("no response in time") from error
        finally:
            del self._answers[token]
            self._exchanges.forget(token)

    def send(self, plaintext: bytes) -> None:
        """Send any octets as application data; what comes back is taken as usual."""
        self._raise_if_closed()
        self._client.send(plaintext)
        self._transmit()

    async def _open_socket(self) -> socket.socket:
        host, port = self._address
        addresses = await self._loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = addresses[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            if self._local_address is not None:
                opened.bind(self._local_address)
            opened.connect(address)
        except BaseException:
            opened.close()
            raise
        return opened

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._fail_all(NoAnswer("the device closed its association"))

    def _raise_if_closed(self) -> None:
        if not self._client.is_established:
            raise self._failure()

    def _failure(self) -> DeviceRefused | NoAnswer:
        """Why there is no association (any more)."""
        alert = self._client.alert
        return NoAnswer(self._client.failure) if alert is None else DeviceRefused(alert)

    # --- tell the cores, then transmit

    def _receive(self) -> None:
        now = self._loop.time()
        for _ in range(MAX_AT_ONCE):
            try:
                datagram = self._socket.recv(MAX_DATAGRAM)
            except BlockingIOError:
                break
            except OSError:
                continue  # an ICMP error of an earlier datagram; whatever was lost is repeated
            for plaintext in self._client.receive_datagram(datagram, now):
                self._exchanges.receive(plaintext)
        self._transmit()

    def _handle_timer(self) -> None:
        self._timer = None
        now = self._loop.time()
        self._client.handle_timer(now)
        self._exchanges.handle_timer(now)
        self._transmit()

    def _transmit(self) -> None:
        """Send all that is to be sent, tell what happened, set the one timer."""
        if self._client.is_established:
            for plaintext in self._exchanges.outgoing:
                self._client.send(plaintext)
        self._exchanges.outgoing.clear()
        self._send_all(self._client.outgoing)
        self._tell()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timers = (self._client.next_timer(), self._exchanges.next_timer())
        due = min((at for at in timers if at is not None), default=None)
        if due is not None:
            self._timer = self._loop.call_at(due, self._handle_timer)

    def _tell(self) -> None:
        """Let those who wait know what came of it."""
        # What came before the end first: an answer may share its datagrams with the goodbye.
        for event in self._exchanges.events:
            answer = self._answers[event.token]
            match event:
                case _ if answer.done():
                    pass  # given up while the answer was under way
                case Answered(_, response):
                    answer.set_result(response)
                case Rejected():
                    answer.set_exception(NoAnswer("the gateway rejected the message"))
                case GivenUp():
                    answer.set_exception(NoAnswer("nobody acknowledged the request"))
        self._exchanges.events.clear()
        if self._client.is_established:
            if not self._connected.done():
                self._connected.set_result(None)
        elif self._client.state is State.CLOSED:
            self._fail_all(self._failure())

    def _fail_all(self, error: DeviceRefused | NoAnswer) -> None:
        if not self._connected.done():
            self._connected.set_exception(error)
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(error)

    def _send_all(self, datagrams: list[bytes]) -> None:
        for datagram in datagrams:
            try:
                self._socket.send(datagram)
            except BlockingIOError:
                break  # as good as lost on the way
            except OSError:
                # The error belongs to an earlier datagram, and this one was not sent.
                with contextlib.suppress(OSError):
                    self._socket.send(datagram)
        datagrams.clear()
