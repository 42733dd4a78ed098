"""A device's message layer: requests repeated until answered, answers told apart (sans-IO).

The device's half of RFC 7252 section 4: it asks, and listens to what comes back; what it observes
(RFC 7641) comes back more than once. Requests from the gateway are answered by `serve`, or rejected
(RST) if there is none; so are its pings: by that it sees who speaks from a new address. So it does
when a request comes once more with the Echo value that it asked for (RFC 9175 section 2.3).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from coapgate.coap.observe import ORDERS
from coapgate.coap.options import ECHO, OBSERVE
from coapgate.coap.transmissions import Reliability
from coapgate.errors import MessageFormatError
from coapgate.model import Code
from coapgate.simulated.message import Kind, Message, Response

TOKEN_LENGTH = 4
MAX_REMEMBERED = 64
"""Message IDs of the gateway by which its repetitions are recognized."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A request got its response."""

    token: bytes
    response: Response


@dataclass(frozen=True, slots=True)
class Rejected:
    """A request was answered by RST."""

    token: bytes


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A request was repeated as often as it may, and nobody acknowledged it."""

    token: bytes


@dataclass(frozen=True, slots=True)
class Notified:
    """What the device observes has changed; `token` is that of the registration."""

    token: bytes
    response: Response


Event = Answered | Rejected | GivenUp | Notified

Serve = Callable[[Message], Response]
"""What a device answers a request of the gateway's."""


class _Request:
    """A request without a response yet; `due_at` None: acknowledged, or never repeated.

    `name` is the token that the owner knows it by, which is its message's unless it had to be sent
    once more with an Echo value.
    """

    __slots__ = ("due_at", "message", "name", "repeats", "timeout")

    def __init__(self, name: bytes, message: Message, timeout: float, due_at: float | None) -> None:
        self.name = name
        self.message = message
        self.timeout = timeout
        self.due_at = due_at
        self.repeats = 0


class _Observed:
    """A path that the device observes: the name of its registration, the newest order number."""

    __slots__ = ("name", "order")

    def __init__(self, name: bytes, order: int) -> None:
        self.name = name
        self.order = order


class Exchanges:
    """All exchanges of one device over one association; times are monotonic seconds.

    After each call send what is in `outgoing` (plaintexts) and act on what is in `events`.
    """

    def __init__(
        self,
        reliability: Reliability | None = None,
        rng: Random | None = None,
        serve: Serve | None = None,
    ) -> None:
        self._serve = serve
        self._served: OrderedDict[int, bytes] = OrderedDict()
        self._registering: set[bytes] = set()
        self._observed: dict[bytes, _Observed] = {}
        self.outgoing: list[bytes] = []
        self.events: list[Event] = []
        self.repeats = 0
        """Requests sent again because nobody acknowledged them."""
        self.echoes = 0
        """Requests sent once more because the gateway asked for an Echo value."""
        self._reliability = reliability or Reliability()
        self._rng = rng or Random()
        self._message_id = self._rng.getrandbits(16)
        self._token = self._rng.getrandbits(8 * TOKEN_LENGTH)
        self._requests: dict[bytes, _Request] = {}
        self._heard: deque[int] = deque(maxlen=MAX_REMEMBERED)

    def request(
        self,
        code: int,
        options: tuple[tuple[int, bytes], ...],
        payload: bytes,
        now: float,
        *,
        confirmable: bool = True,
    ) -> bytes:
        """Send a request; the token by which its end will be told."""
        kind = Kind.CON if confirmable else Kind.NON
        return self._send(None, kind, code, options, payload, now)

    def observe(self, options: tuple[tuple[int, bytes], ...], now: float) -> bytes:
        """Register for a path: `Answered` with an Observe option, then `Notified` by that token."""
        token = self._send(None, Kind.CON, Code.GET, ((OBSERVE, b""), *options), b"", now)
        self._registering.add(token)
        return token

    def cancel(self, token: bytes) -> None:
        """Observe no more: the next notification is rejected, which ends it (RFC 7641 3.6)."""
        self._registering.discard(token)
        for sent, observed in tuple(self._observed.items()):
            if observed.name == token:
                del self._observed[sent]
        self.forget(token)

    def forget(self, token: bytes) -> None:
        """Wait no longer for the answer to a request."""
        for sent, request in tuple(self._requests.items()):
            if request.name == token:
                del self._requests[sent]

    def receive(self, plaintext: bytes, now: float) -> None:
        """Take one message of the gateway; what is no CoAP message is ignored."""
        try:
            message = Message.parse(plaintext)
        except MessageFormatError:
            return
        if message.kind in (Kind.ACK, Kind.RST):
            self._receive_reply(message, now)
        elif message.code >> 5 in (2, 4, 5):
            self._receive_separate(message, now)
        elif 0 < message.code < 0x20 and self._serve is not None:
            self._answer(message, self._serve)
        elif message.kind == Kind.CON:
            self._reply(Kind.RST, message.message_id)

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None: never as things are."""
        due = [request.due_at for request in self._requests.values() if request.due_at is not None]
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        """Repeat what nobody acknowledged; give up in the end (RFC 7252 section 4.2)."""
        for request in tuple(self._requests.values()):
            if request.due_at is None or request.due_at > now:
                continue
            if request.repeats == self._reliability.max_retransmit:
                self._end(request, GivenUp(request.name))
                continue
            request.repeats += 1
            request.timeout *= 2
            request.due_at = now + request.timeout
            self.repeats += 1
            self.outgoing.append(request.message.encode())

    def _send(
        self,
        name: bytes | None,
        kind: int,
        code: int,
        options: tuple[tuple[int, bytes], ...],
        payload: bytes,
        now: float,
    ) -> bytes:
        """Send a request as a message of its own; the name it has, or is given: its token."""
        token = self._token.to_bytes(TOKEN_LENGTH, "big")
        self._token = (self._token + 1) % (1 << 8 * TOKEN_LENGTH)
        message = Message(kind, code, self._message_id, token, options, payload)
        self._message_id = self._message_id + 1 & 0xFFFF
        timeout = self._reliability.ack_timeout * self._rng.uniform(
            1.0, self._reliability.ack_random_factor
        )
        due_at = now + timeout if kind == Kind.CON else None
        request = self._requests[token] = _Request(name or token, message, timeout, due_at)
        self.outgoing.append(message.encode())
        return request.name

    def _receive_reply(self, message: Message, now: float) -> None:
        """An ACK or RST names the message it answers by its message ID."""
        request = next(
            (
                each
                for each in self._requests.values()
                if each.message.message_id == message.message_id
            ),
            None,
        )
        if request is None:
            return
        if message.kind == Kind.RST:
            self._end(request, Rejected(request.name))
        elif message.code == Code.EMPTY:
            request.due_at = None  # the response comes by itself
        elif message.token == request.message.token:
            response = Response(message.code, message.options, message.payload)
            self._receive_response(request, response, now)

    def _receive_separate(self, message: Message, now: float) -> None:
        """A response in a message of its own (RFC 7252 section 5.2.2)."""
        request = self._requests.get(message.token)
        is_observed = request is None and message.token in self._observed
        is_known = request is not None or is_observed or message.message_id in self._heard
        if message.kind == Kind.CON or not is_known:
            self._reply(Kind.ACK if is_known else Kind.RST, message.message_id)
        if is_observed:
            self._receive_notification(message)
        # The token decides: a gateway that has restarted may use a message ID once more.
        if request is None:
            return
        self._heard.append(message.message_id)
        response = Response(message.code, message.options, message.payload, is_separate=True)
        self._receive_response(request, response, now)

    def _receive_notification(self, message: Message) -> None:
        """Take the newest only: what was overtaken on its way is left out (RFC 7641 3.4)."""
        if message.message_id in self._heard:
            return
        self._heard.append(message.message_id)
        response = Response(message.code, message.options, message.payload, is_separate=True)
        observed, order = self._observed[message.token], response.option(OBSERVE)
        if order is None:
            del self._observed[message.token]  # an error, or a last word
        elif 0 < (order - observed.order) % ORDERS < ORDERS >> 1:
            observed.order = order
        else:
            return
        self.events.append(Notified(observed.name, response))

    def _answer(self, message: Message, serve: Serve) -> None:
        """Answer a request of the gateway's, once however often it comes."""
        served = self._served.get(message.message_id)
        if served is None:
            answer = serve(message)
            kind, message_id = Kind.ACK, message.message_id
            if message.kind == Kind.NON:
                kind, message_id = Kind.NON, self._message_id
                self._message_id = self._message_id + 1 & 0xFFFF
            served = Message(
                kind, answer.code, message_id, message.token, answer.options, answer.payload
            ).encode()
            self._served[message.message_id] = served
            if len(self._served) > MAX_REMEMBERED:
                self._served.popitem(last=False)
        elif message.kind == Kind.NON:
            return
        self.outgoing.append(served)

    def _receive_response(self, request: _Request, response: Response, now: float) -> None:
        """Take it for the answer, or send the request once more with what it asks for."""
        asked = request.message
        # Once: a gateway that is not content with its own value would never be.
        may_echo = all(number != ECHO for number, _ in asked.options)
        if response.code == Code.UNAUTHORIZED and response.echo is not None and may_echo:
            del self._requests[asked.token]
            self.echoes += 1
            options = (*asked.options, (ECHO, response.echo))
            self._send(request.name, asked.kind, asked.code, options, asked.payload, now)
        else:
            self._end(request, Answered(request.name, response))

    def _reply(self, kind: Kind, message_id: int) -> None:
        self.outgoing.append(Message(kind, Code.EMPTY, message_id).encode())

    def _end(self, request: _Request, event: Event) -> None:
        del self._requests[request.message.token]
        if request.name in self._registering:
            self._follow_registration(request, event)
        self.events.append(event)

    def _follow_registration(self, request: _Request, event: Event) -> None:
        """An answer without an Observe option says that nothing will follow (RFC 7641 3.1)."""
        self._registering.discard(request.name)
        if isinstance(event, Answered):
            order = event.response.option(OBSERVE)
            if order is not None:
                # Notifications have the token of the message, which an Echo value may have changed.
                self._observed[request.message.token] = _Observed(request.name, order)
