"""A device: CoAP over DTLS over one UDP socket.

    async with Device("127.0.0.1", 5684, PskKey(b"sensor-1", key)) as device:
        response = await device.request(Code.POST, "temperature", b"21.5", content_format=TEXT)
        print(response)                 # 2.04

Entering it does the handshake, leaving it says close_notify. In between it may go on from another
address, or sleep:

        await device.move()             # another port, as behind a NAT
        device.sleep()
        await device.resume()           # from yet another; no handshake, if the gateway does CID

It may observe a path, and with `serve` it answers what backends ask it:

        async with device.observe("led") as states:
            async for state in states:  # the first is what is there now
                print(state.payload)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from coapgate.coap.options import OBSERVE
from coapgate.coap.transmissions import Reliability
from coapgate.dtls.client import Client, ClientSettings, Credential, State
from coapgate.errors import DeviceRefused, NoAnswer
from coapgate.simulated.exchange import Answered, Exchanges, GivenUp, Notified, Rejected, Serve
from coapgate.simulated.message import Response, request_options
from coapgate.simulated.radio import Radio

RESPONSE_TIMEOUT = 93.0
"""Seconds a device waits for a response: MAX_TRANSMIT_WAIT (RFC 7252 section 4.8.2)."""
SETTINGS = ClientSettings(connection_id=b"")
"""What a device that may come from another address offers: records to it are as short as ever,
those from it carry what the gateway knows it by (RFC 9146 section 3)."""


class Device:
    """One device with one association; any number of requests at once.

    `settings` None are SETTINGS. `local_address` is where its datagrams come from, until it moves.
    `serve` answers what the gateway asks; None: such requests are rejected.
    An object is entered once; it costs one socket and no thread, while it sleeps not even that.
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
        serve: Serve | None = None,
    ) -> None:
        self._states: dict[bytes, asyncio.Queue[Response | None]] = {}
        self._radio = Radio(host, port, local_address, self._receive)
        self._client = Client(credential, settings or SETTINGS)
        self._exchanges = Exchanges(reliability, serve=serve)
        self._answers: dict[bytes, asyncio.Future[Response]] = {}
        self._loop: asyncio.AbstractEventLoop
        self._connected: asyncio.Future[None]
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Do the handshake. Raises DeviceRefused, NoAnswer, OSError."""
        self._loop = asyncio.get_running_loop()
        self._connected = self._loop.create_future()
        self._radio.turn_on(await self._radio.look_up())
        try:
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
        self._radio.send(self._client.outgoing)
        self._close()

    @property
    def handshakes(self) -> int:
        """How many were completed."""
        return self._client.handshakes

    @property
    def connection_id(self) -> bytes:
        """What the gateway knows it by, wherever it is; empty: only by its address."""
        return self._client.sent_cid

    @property
    def address(self) -> tuple[str, int] | None:
        """Where its datagrams come from; None while it sleeps."""
        return self._radio.address

    @property
    def echoes(self) -> int:
        """Requests sent once more because the gateway asked for an Echo value."""
        return self._exchanges.echoes

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

    @asynccontextmanager
    async def observe(
        self, path: str, *, options: Sequence[tuple[int, bytes]] = ()
    ) -> AsyncIterator[AsyncIterator[Response]]:
        """Observe a path: what is there now, and then what it becomes, until the context is left.

        It ends after a response without an Observe option: that says that nothing will follow. A
        large state is only its first block.

        Raises as `request`.
        """
        self._raise_if_closed()
        usual = request_options(path.strip("/").encode().split(b"/"))
        token = self._exchanges.observe((*usual, *options), self._loop.time())
        answer: asyncio.Future[Response] = self._loop.create_future()
        self._answers[token] = answer
        heard = self._states[token] = asyncio.Queue()
        self._transmit()

        async def states() -> AsyncIterator[Response]:
            response: Response | None = first
            while response is not None:
                yield response
                if response.option(OBSERVE) is None:
                    return
                response = await heard.get()
            raise self._failure()

        try:
            try:
                async with asyncio.timeout(RESPONSE_TIMEOUT):
                    first = await answer
            except TimeoutError as error:
                raise NoAnswer("no response in time") from error
            finally:
                del self._answers[token]
            yield states()
        finally:
            del self._states[token]
            self._exchanges.cancel(token)

    def send(self, plaintext: bytes) -> None:
        """Send any octets as application data; what comes back is taken as usual."""
        self._raise_if_closed()
        self._client.send(plaintext)
        self._transmit()

    async def move(self, local_address: tuple[str, int] | None = None) -> None:
        """Go on from another address; None: from another port of the host as it is.

        The association goes on, and so do requests under way. The old socket is closed: what is
        still sent there is lost. If the new one cannot be opened the device stays where it is.

        Raises OSError, or as `request` if there is no association or the device sleeps.
        """
        self._raise_if_closed()
        place = await self._radio.look_up()
        self._raise_if_closed()
        self._radio.turn_to(place, local_address)
        self._transmit()

    def sleep(self) -> None:
        """Turn the radio off: nothing is sent, heard or repeated until `resume`.

        Requests under way end with NoAnswer. The association stays, at both ends: a device that is
        left asleep says no goodbye.
        """
        self._turn_off()
        self._client.cool()
        for token in self._answers:
            self._exchanges.forget(token)
        self._fail_all(NoAnswer("the device went to sleep"))

    async def resume(self, local_address: tuple[str, int] | None = None) -> None:
        """Wake up with the association as it was; addresses and errors are those of `move`."""
        place = await self._radio.look_up()
        if not self._client.is_established:
            raise self._failure()
        self._radio.turn_to(place, local_address)
        self._transmit()

    def _turn_off(self) -> None:
        self._radio.turn_off()
        self._cancel_timer()

    def _close(self) -> None:
        self._turn_off()
        self._fail_all(NoAnswer("the device closed its association"))

    def _raise_if_closed(self) -> None:
        if not self._client.is_established:
            raise self._failure()
        if not self._radio.is_on:
            raise NoAnswer("the device is asleep")

    def _failure(self) -> DeviceRefused | NoAnswer:
        """Why there is no association (any more)."""
        alert = self._client.alert
        if alert is not None:
            return DeviceRefused(alert)
        return NoAnswer(self._client.failure or "the device closed its association")

    # --- tell the cores, then transmit

    def _receive(self) -> None:
        now = self._loop.time()
        for datagram in self._radio.receive():
            for plaintext in self._client.receive_datagram(datagram, now):
                self._exchanges.receive(plaintext, now)
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
        self._radio.send(self._client.outgoing)
        self._tell()
        self._cancel_timer()
        timers = (self._client.next_timer(), self._exchanges.next_timer())
        due = min((at for at in timers if at is not None), default=None)
        if due is not None:
            self._timer = self._loop.call_at(due, self._handle_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self) -> None:
        """Let those who wait know what came of it."""
        # What came before the end first: an answer may share its datagrams with the goodbye.
        for event in self._exchanges.events:
            if isinstance(event, Notified):
                self._states[event.token].put_nowait(event.response)
                continue
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
        if self._client.state is State.CLOSED:
            for heard in self._states.values():
                heard.put_nowait(None)
