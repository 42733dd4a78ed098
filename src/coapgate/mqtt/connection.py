"""The connection to the broker: sockets, TLS, files and the clock around `client`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import ssl
import time
from collections.abc import Callable

from coapgate.errors import StartError
from coapgate.logs import Seldom
from coapgate.mqtt.client import STOPPED, Client, Ending, Hello, State
from coapgate.mqtt.publications import Publications
from coapgate.mqtt.settings import ConnectionSettings, load_password, load_tls, tls_reason
from coapgate.mqtt.subscriptions import Complete, Heard, Refusal

log = logging.getLogger(__name__)

MIN_BACKOFF = 0.1
MAX_BACKOFF = 15.0
STABLE_TIME = 10.0
"""Seconds a connection has to live until the next loss is met without back-off."""
GOODBYE_TIMEOUT = 1.0
"""Seconds the broker may take to close after our DISCONNECT."""
WRITE_BUFFER_SIZE = 256 * 1024
"""Octets that may wait for a broker which reads slowly; then publications are held."""

HEARD_AT_ONCE = 32
"""Publications to us that are looked at in one tick of the loop: devices wait no longer."""
HEARD_SIZE = 256 * 1024
"""Octets of them, after which the tick ends too."""

_ORDINARY = frozenset({"closed", "network", "disconnect-0x8b"})
"""Endings in which a broker merely goes: nobody has to look. 0x8b: server shutting down."""


class Connection:
    """One worker's connection to the broker, made again whenever it is lost.

    `ended(ticket, outcome)` is called once for every publication that has a ticket, from the event
    loop but never from inside of `publish`; it may publish. `noticed` is called instead for tickets
    below 0, those of what the gateway itself has to say. `heard` is given what `subscribe` brings,
    and has to `acknowledge` every publication: see `listen`. Build it in the running loop, `run` it
    in a task, `drain` it at the end. Everything handed over before there is a broker is held.
    """

    def __init__(self, settings: ConnectionSettings, ended: Callable[[int, int], None]) -> None:
        self.publications = Publications(
            hold_time=settings.hold_time,
            hold_messages=settings.hold_messages,
            max_in_flight=settings.max_in_flight,
        )
        self.connects = 0
        self.disconnects = 0
        """Connections that were lost after the broker had taken them."""
        self.failures = 0
        """Attempts that did not become a connection."""
        self.failure: Ending | None = None
        """Why the last attempt failed; None if it did not."""
        self._settings = settings
        self._ended = ended
        self._noticed = ended
        self._heard: Callable[[Heard | Complete | Refusal], None] = _ignore
        self._changed: Callable[[], None] = _unnoticed
        self._loop = asyncio.get_running_loop()
        hello = Hello(
            settings.client_id,
            settings.username,
            settings.keep_alive,
            settings.status_topic,
            settings.session_expiry,
            settings.max_received_packet,
        )
        self._client = Client(
            hello, self.publications, min(settings.keep_alive, settings.hold_time)
        )
        self.subscriptions = self._client.subscriptions
        self._transport: asyncio.Transport | None = None
        self._attempted = asyncio.Event()
        self._came = asyncio.Event()
        self._came_at = 0.0
        self._gone = asyncio.Event()
        self._idle = asyncio.Event()
        self._closing = asyncio.Event()
        self._draining = False
        self._timer: asyncio.TimerHandle | None = None
        self._flush_is_due = False
        self._is_asking = False
        self._is_hearing = False
        self._backoff = MIN_BACKOFF
        self._complaints: set[tuple[str, str]] = set()
        self._seldom = Seldom()

    def __repr__(self) -> str:
        state = self._client.state.name.lower()
        return f"<Connection {self._settings.url} {state}>"

    @property
    def connected(self) -> bool:
        """Whether the broker has taken us, so publications leave at once."""
        return self._client.state is State.CONNECTED

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        content_type: str | None,
        user_properties: list[tuple[str, str]],
        ticket: int | None,
        retain: bool = False,
        correlation_data: bytes | None = None,
    ) -> None:
        """Hand over one publication; `ended` follows if it has a ticket.

        `topic` and the properties must be what `topics` lets through. `user_properties` is not
        kept. All packets of one loop tick are written at once.
        """
        self.publications.publish(
            topic,
            payload,
            qos,
            retain,
            content_type,
            user_properties,
            ticket,
            self._loop.time(),
            correlation_data,
        )
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def listen(
        self,
        heard: Callable[[Heard | Complete | Refusal], None],
        noticed: Callable[[int, int], None],
        changed: Callable[[], None],
    ) -> None:
        """Who is told what is heard, what became of what the gateway itself has to say, and when
        `connected` is another.
        """
        self._heard = heard
        self._noticed = noticed
        self._changed = changed

    def subscribe(
        self,
        topic_filter: str,
        *,
        is_state: bool = False,
        only_news: bool = False,
        at_most_once: bool = False,
    ) -> None:
        """Hear a topic filter, on this connection and on those that follow it.

        What the words mean is in `Subscriptions`.
        """
        self.subscriptions.subscribe(
            topic_filter, is_state=is_state, only_news=only_news, at_most_once=at_most_once
        )
        self._ask_soon()

    def unsubscribe(self, topic_filter: str) -> None:
        """Hear it no longer."""
        self.subscriptions.unsubscribe(topic_filter)
        self._ask_soon()

    def unsubscribe_stale(self, topic: str) -> None:
        """Hear no longer what an earlier process wanted to."""
        self.subscriptions.unsubscribe_stale(topic)
        self._ask_soon()

    def acknowledge(self, heard: Heard) -> None:
        """A publication to us is taken care of: the broker may forget it, and send another."""
        self.subscriptions.acknowledge(heard.receipt)
        self._ask_soon()

    async def run(self) -> None:
        """Keep connected until cancelled, or until `drain` is done."""
        try:
            while not self._closing.is_set():
                await self._connect()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._next_delay()):
                        await self._closing.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def wait_connected(self) -> None:
        """Return as soon as the broker has taken us."""
        await self._came.wait()

    async def wait_attempted(self) -> Ending | None:
        """Return when the first attempt is over: None if the broker took us, else why not."""
        await self._attempted.wait()
        return self.failure

    async def drain(self, timeout: float) -> None:  # noqa: ASYNC109  part of SIGTERM's budget
        """Take nothing new, give the rest `timeout` seconds to end, answer it, and say goodbye.

        What is left after that ends as unavailable. `run` returns.
        """
        self._draining = True
        self.publications.stop_accepting()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.publications.held or self.publications.in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        self._closing.set()
        self._client.say_goodbye(time.time())
        self.publications.abandon()
        self._flush()
        if self._client.state is State.OVER:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_TIMEOUT):
                    await self._gone.wait()
        await self._cut()

    async def _connect(self) -> None:
        """One connection from beginning to end; returns when it is over."""
        settings = self._settings
        self._gone.clear()
        try:
            password = await asyncio.to_thread(load_password, settings)
            tls = await asyncio.to_thread(load_tls, settings)
            async with asyncio.timeout(settings.connect_timeout):
                await self._loop.create_connection(
                    lambda: _Wire(self, password),
                    settings.host,
                    settings.port,
                    ssl=tls,
                    server_hostname=settings.host if tls is not None else None,
                    # An address that swallows packets must not hide one that answers.
                    happy_eyeballs_delay=0.25,
                )
            await self._gone.wait()
        except StartError as error:
            self._fail(Ending("file", str(error), error.hint))
        except (OSError, UnicodeError) as error:
            self._fail(_explain(error, tls=settings.tls))
        finally:
            await self._cut()

    async def _cut(self) -> None:
        """Leave no transport behind."""
        if self._transport is not None:
            self._client.give_up()
            self._transport.abort()
            await self._gone.wait()

    def _next_delay(self) -> float:
        """Seconds until the next attempt, with jitter: gateways that lost one broker spread."""
        self._backoff = min(2 * self._backoff, MAX_BACKOFF)
        return random.uniform(MIN_BACKOFF, self._backoff)

    def made(self, transport: asyncio.Transport, password: bytes | None) -> None:
        """Called by the wire: TCP, and TLS if it is used, are there."""
        transport.set_write_buffer_limits(high=WRITE_BUFFER_SIZE)
        self._transport = transport
        if self._closing.is_set():
            transport.abort()
            return
        self._client.connect(password, self._loop.time(), time.time())
        self._flush()
        self._arm()

    def received(self, data: bytes) -> None:
        """Called by the wire."""
        self._client.receive(data, self._loop.time())
        if self.connected and not self._came.is_set():
            self.connects += 1
            self.failure = None
            self._complaints.clear()
            self._came_at = self._loop.time()
            self._came.set()
            self._attempted.set()
            self._arm()
            log.info(
                "broker connected",
                extra={
                    "broker": self._settings.url,
                    "receive_maximum": self._client.receive_maximum,
                },
            )
            self._changed()
        self._flush()
        if self.subscriptions.has_news:
            self.subscriptions.has_news = False
            self._hear_soon()

    def set_writable(self, writable: bool) -> None:
        """Called by the wire; from inside of `write` if false."""
        self.publications.set_writable(writable, self._loop.time())
        if writable:
            self._flush()

    def gone(self, error: Exception | None) -> None:
        """Called by the wire, last."""
        # A peer that closes or resets means it; a network that fails accuses nobody.
        cut = error is None or isinstance(error, ConnectionResetError | BrokenPipeError)
        self._client.lost(self._loop.time(), cut=cut)
        self._transport = None
        ending = self._client.ending
        if self._came.is_set():
            self._came.clear()
            assert ending is not None
            self._went(ending)
        elif ending is not None and ending.kind != STOPPED:
            self._fail(_explain(error, tls=True) if isinstance(error, ssl.SSLError) else ending)
        self._gone.set()
        self._changed()
        self._flush()
        self._arm()

    def _went(self, ending: Ending) -> None:
        """Count and log the end of a connection that the broker had taken."""
        if ending.kind == STOPPED:
            log.info("left the broker", extra={"broker": self._settings.url})
            return
        self.disconnects += 1
        lived = self._loop.time() - self._came_at
        if lived >= STABLE_TIME or self.publications.suspects:
            # Finding the publication that the broker dislikes takes a few connections: what
            # others sent must not wait for that.
            self._backoff = MIN_BACKOFF
        level = logging.INFO if ending.kind in _ORDINARY else logging.WARNING
        log.log(level, "broker lost", extra=self._facts(ending))

    def _fail(self, ending: Ending) -> None:
        """Count an attempt that failed; log each kind once until one succeeds."""
        self.failures += 1
        self.failure = ending
        self._attempted.set()
        known = (ending.kind, ending.message) in self._complaints
        self._complaints.add((ending.kind, ending.message))
        log.log(
            logging.DEBUG if known else logging.WARNING,
            ending.message,
            extra=self._facts(ending),
        )

    def _facts(self, ending: Ending) -> dict[str, str]:
        facts = {"broker": self._settings.url, "reason": ending.kind}
        if ending.detail:
            facts["detail"] = ending.detail
        if ending.hint:
            facts["hint"] = ending.hint
        return facts

    def _flush(self) -> None:
        """Write what is to be written, close what is over, hand on what has ended."""
        self._flush_is_due = False
        client = self._client
        transport = self._transport
        if transport is not None:
            data = client.take_outgoing()
            if data:
                transport.write(data)
            if client.state is State.OVER:
                ending = client.ending
                if ending is not None and ending.kind == STOPPED:
                    transport.close()
                else:
                    transport.abort()
        publications = self.publications
        if publications.ended:
            self._report()
        if self._timer is None or publications.held:
            self._arm()
        if self._draining and not (publications.held or publications.in_flight):
            self._idle.set()

    def _ask_soon(self) -> None:
        """Write what is to be written, subscriptions too, at the end of this tick."""
        if not self._is_asking:
            self._is_asking = True
            self._loop.call_soon(self._ask)

    def _ask(self) -> None:
        self._is_asking = False
        self.subscriptions.flush(self._loop.time())
        self._flush()

    def _hear_soon(self) -> None:
        if not self._is_hearing:
            self._is_hearing = True
            self._loop.call_soon(self._hear)

    def _hear(self) -> None:
        """Hand on what was heard, a little at a time: devices come in between."""
        self._is_hearing = False
        size = 0
        for _ in range(HEARD_AT_ONCE):
            heard = self.subscriptions.next_heard()
            if heard is None:
                return
            try:
                self._heard(heard)
            except Exception:
                if count := self._seldom.count("not taken", self._loop.time()):
                    log.exception("publication to us not taken", extra={"count": count})
            if isinstance(heard, Heard):
                size += len(heard.payload)
                if size >= HEARD_SIZE:
                    break
        self._hear_soon()

    def _report(self) -> None:
        ended = self.publications.ended.copy()
        self.publications.ended.clear()
        for ticket, outcome in ended:
            try:
                if ticket < 0:
                    self._noticed(ticket, outcome)
                else:
                    self._ended(ticket, outcome)
            except Exception:
                # One answer that fails must not take the others with it, nor the connection.
                log.exception("outcome of a publication was not taken")

    def _arm(self) -> None:
        """Make sure the timer is not late; one that is early finds nothing to do."""
        due = self._client.next_timer()
        if due is None or (self._timer is not None and self._timer.when() <= due):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._handle_timer)

    def _handle_timer(self) -> None:
        self._timer = None
        self._client.handle_timer(self._loop.time())
        self._flush()


def _ignore(heard: Heard | Complete | Refusal) -> None:
    """Whoever subscribes to nothing hears nothing."""


def _unnoticed() -> None:
    """Nobody is told."""


class _Wire(asyncio.Protocol):
    """One transport's events, handed to the connection."""

    def __init__(self, connection: Connection, password: bytes | None) -> None:
        self._connection = connection
        self._password = password

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection.made(transport, self._password)
        self._password = None

    def data_received(self, data: bytes) -> None:
        self._connection.received(data)

    def pause_writing(self) -> None:
        self._connection.set_writable(False)

    def resume_writing(self) -> None:
        self._connection.set_writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.gone(exc)


def _explain(error: OSError | UnicodeError, *, tls: bool) -> Ending:
    """Why no connection came about, in the words of an operator."""
    detail = tls_reason(error)
    match error:
        case ssl.SSLCertVerificationError():
            return Ending(
                "certificate",
                "broker's certificate is not trusted",
                "mqtt.ca must hold the certificate that signed it, and mqtt.url a name it is for",
                error.verify_message,
                lasting=True,
            )
        case ssl.SSLError() | ConnectionResetError() if tls:
            hint = "is the port one for TLS? does the broker want mqtt.certificate, or another?"
            return Ending("tls", "TLS with the broker failed", hint, detail)
        case socket.gaierror() | UnicodeError():
            return Ending("name", "broker's name does not resolve", "check mqtt.url", detail)
        case ConnectionRefusedError():
            hint = "is it running? check mqtt.url"
            return Ending("refused", "nothing listens where the broker should be", hint)
        case TimeoutError():
            hint = "check mqtt.url, and what filters packets on the way"
            return Ending("timeout", "broker does not answer", hint)
        case _:
            return Ending("network", "broker cannot be reached", "check mqtt.url", detail)
