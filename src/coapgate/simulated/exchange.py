"""A device's message layer: requests repeated until answered, answers told apart (sans-IO).

The device's half of RFC 7252 section 4: it asks, and listens to what comes back. Requests from
the gateway are rejected (RST).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from random import Random

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
    """A request without a response yet; `due_at` None: acknowledged, or never repeated."""

    __slots__ = ("due_at", "message", "repeats", "timeout")

    def __init__(self, message: Message, timeout: float, due_at: float | None) -> None:
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
        token = self._token.to_bytes(TOKEN_LENGTH, "big")
        self._token = (self._token + 1) % (1 << 8 * TOKEN_LENGTH)
        kind = Kind.CON if confirmable else Kind.NON
        message = Message(kind, code, self._message_id, token, options, payload)
        self._message_id = self._message_id + 1 & 0xFFFF
        timeout = self._reliability.ack_timeout * self._rng.uniform(
            1.0, self._reliability.ack_random_factor
        )
        due_at = now + timeout if confirmable else None
        self._requests[token] = _Request(message, timeout, due_at)
        self.outgoing.append(message.encode())
        return token

    def forget(self, token: bytes) -> None:
        """Wait no longer for the answer to a request."""
        self._requests.pop(token, None)

    def receive(self, plaintext: bytes) -> None:
        """Take one message of the gateway; what is no CoAP message is ignored."""
        try:
            message = Message.parse(plaintext)
        except MessageFormatError:
            return
        if message.kind in (Kind.ACK, Kind.RST):
            self._receive_reply(message)
        elif message.code >> 5 in (2, 4, 5):
            self._receive_separate(message)
        elif message.kind == Kind.CON:
            self._reply(Kind.RST, message.message_id)

    def next_timer(self) -> float | None:
        """When to call `handle_timer`; None: never as things are."""
        due = [request.due_at for request in self._requests.values() if request.due_at is not None]
        return min(due, default=None)

    def handle_timer(self, now: float) -> None:
        """Repeat what nobody acknowledged; give up in the end (RFC 7252 section 4.2)."""
        for token, request in tuple(self._requests.items()):
            if request.due_at is None or request.due_at > now:
                continue
            if request.repeats == self._reliability.max_retransmit:
                self._end(token, GivenUp(token))
                continue
            request.repeats += 1
            request.timeout *= 2
            request.due_at = now + request.timeout
            self.repeats += 1
            self.outgoing.append(request.message.encode())

    def _receive_reply(self, message: Message) -> None:
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
        token = request.message.token
        if message.kind == Kind.RST:
            self._end(token, Rejected(token))
        elif message.code == Code.EMPTY:
            request.due_at = None  # the response comes by itself
        elif message.token == token:
            response = Response(message.code, message.options, message.payload)
            self._end(token, Answered(token, response))

    def _receive_separate(self, message: Message) -> None:
        """A response in a message of its own (RFC 7252 section 5.2.2)."""
        is_known = message.message_id in self._heard or message.token in self._requests
        if message.kind == Kind.CON:
            self._reply(Kind.ACK if is_known else Kind.RST, message.message_id)
        if not is_known or message.message_id in self._heard:
            return
        self._heard.append(message.message_id)
        response = Response(message.code, message.options, message.payload, is_separate=True)
        self._end(message.token, Answered(message.token, response))

    def _reply(self, kind: Kind, message_id: int) -> None:
        self.outgoing.append(Message(kind, Code.EMPTY, message_id).encode())

    def _end(self, token: bytes, event: Event) -> None:
        del self._requests[token]
        self.events.append(event)
