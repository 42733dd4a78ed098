"""A device's message layer: requests repeated until answered, answers told apart (sans-IO).

The device's half of RFC 7252 section 4: it asks, and listens to what comes back. Requests from
the gateway are rejected (RST), its pings too: by that it sees who speaks from a new address. So it
does when a request comes once more with the Echo value that it asked for (RFC 9175 section 2.3).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

from coapgate.coap.options import ECHO
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


Event = Answered | Rejected | GivenUp


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


class Exchanges:
    """All exchanges of one device over one association; times are monotonic seconds.

    After each call send what is in `outgoing` (plaintexts) and act on what is in `events`.
    """

    def __init__(self, reliability: Reliability | None = None, rng: Random | None = None) -> None:
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
        if message.kind == Kind.CON:
            is_known = request is not None or message.message_id in self._heard
            self._reply(Kind.ACK if is_known else Kind.RST, message.message_id)
        # The token decides: a gateway that has restarted may use a message ID once more.
        if request is None:
            return
        self._heard.append(message.message_id)
        response = Response(message.code, message.options, message.payload, is_separate=True)
        self._receive_response(request, response, now)

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
        self.events.append(event)
