"""One device of a fleet: its association, its one request at a time, and what it observes
(sans-IO)."""

from __future__ import annotations

import enum
import struct
from random import Random

from coapgate.coap.options import ECHO, OBSERVE
from coapgate.coap.transmissions import MAX_LATENCY, Reliability
from coapgate.dtls.client import Client, ClientSettings, Credential
from coapgate.errors import MessageFormatError
from coapgate.model import Code
from coapgate.simulated.fleet.timers import NEVER, NOWHERE
from coapgate.simulated.message import Kind, Message, Response, request_options

_HEADER = struct.Struct("!BBHI")
"""Version, type and token length; code; message ID; token (RFC 7252 section 3)."""
_REQUEST = 0x44  # a CON with a token of four octets
_ACK = 0x64  # an ACK with one
_HEADER_LENGTH = 8
_SUCCESS = 2


class Outcome(enum.Enum):
    """How a request ended."""

    ANSWERED = enum.auto()
    """By a response, of whatever code."""
    REJECTED = enum.auto()
    GIVEN_UP = enum.auto()
    """Nobody acknowledged it, or what was acknowledged was never answered."""


def encode_request_tail(path: tuple[bytes, ...], payload: bytes, content_format: int) -> bytes:
    """What follows the token in every request of a fleet."""
    options = request_options(path, content_format=content_format)
    return Message(Kind.CON, Code.POST, 0, b"", options, payload).encode()[4:]


def encode_registration_tail(path: tuple[bytes, ...]) -> bytes:
    """What follows the token of a request to observe a path (RFC 7641)."""
    options = ((OBSERVE, b""), *request_options(path))
    return Message(Kind.CON, Code.GET, 0, b"", options).encode()[4:]


class FleetDevice:
    """After each call send what is in `client.outgoing`, and watch `due_at` (monotonic seconds).

    `receive` and `handle_timer` say how the request under way has ended, None: it has not, or there
    is none. Of a response `code` is kept. `notifications` of what it observes are counted until
    somebody sets that to 0.
    """

    __slots__ = (
        "client",
        "code",
        "due_at",
        "echoes",
        "is_asking",
        "is_connecting",
        "is_observing",
        "is_ready",
        "is_refused",
        "is_registering",
        "message_id",
        "notifications",
        "observed",
        "repeats",
        "request",
        "requests",
        "sent_at",
        "slot",
        "timeout",
        "token",
    )

    def __init__(self, credential: Credential, settings: ClientSettings, random: Random) -> None:
        self.client = Client(credential, settings)
        self.request = b""
        """The last request, whether it is under way or not."""
        self.requests = 0
        self.repeats = 0
        self.echoes = 0
        self.code = 0
        self.is_asking = False
        self.is_connecting = False
        """Whether its handshake is yet to be counted."""
        self.is_ready = False
        """Whether the fleet has it among those that may be asked to send."""
        self.is_refused = False
        """Whether nobody listens where its datagrams go, as the network said."""
        self.is_registering = False
        """Whether the request under way is to observe a path."""
        self.is_observing = False
        self.observed = b""
        """The token of notifications."""
        self.notifications = 0
        self.sent_at = 0.0
        self.timeout = 0.0
        self.due_at = NEVER
        self.slot = NOWHERE
        self.message_id = random.getrandbits(16)
        self.token = random.getrandbits(32)

    # --- its association

    def connect(self, now: float) -> None:
        """Begin a handshake; a request under way is forgotten."""
        self.is_asking = self.is_refused = self.is_registering = self.is_observing = False
        self.is_connecting = True
        self.sent_at = now
        self.client.connect(now)
        self._follow_handshake()

    def receive(self, datagram: bytes, now: float) -> Outcome | None:
        """Take one datagram."""
        client = self.client
        outcome = None
        if client.is_established:
            for plaintext in client.receive_datagram(datagram, now):
                outcome = self._take(plaintext, now) or outcome
        else:
            client.receive_datagram(datagram, now)
            self._follow_handshake()
        return outcome

    def handle_timer(self, now: float, reliability: Reliability) -> Outcome | None:
        """Repeat what nobody acknowledged, and give up in the end (RFC 7252 section 4.2)."""
        self.due_at = NEVER
        if not self.client.is_established:
            self.client.handle_timer(now)
            self._follow_handshake()
            return None
        if not self.is_asking:
            return None
        if self.repeats == reliability.max_retransmit or self.timeout == NEVER:
            self.is_asking = False
            return Outcome.GIVEN_UP
        self.repeats += 1
        self.timeout *= 2
        self.due_at = now + self.timeout
        self.client.send(self.request)
        return None

    def _follow_handshake(self) -> None:
        due_at = self.client.next_timer()
        self.due_at = NEVER if due_at is None else due_at

    # --- its request

    def ask(self, tail: bytes, timeout: float, now: float) -> None:
        """Send a request: `tail` follows its token, `timeout` (seconds) is its first one."""
        self.is_registering = False
        self.requests += 1
        self._begin(Code.POST, tail, timeout, now)

    def observe(self, tail: bytes, timeout: float, now: float) -> None:
        """Send a request to observe a path; otherwise as `ask`."""
        self.is_registering = True
        self._begin(Code.GET, tail, timeout, now)

    def _begin(self, code: int, tail: bytes, timeout: float, now: float) -> None:
        self._next_message(code, tail)
        self.repeats = 0
        self.sent_at = now
        self.timeout = timeout
        self.due_at = now + timeout
        self.is_asking = True

    def _next_message(self, code: int, tail: bytes) -> None:
        self.message_id = self.message_id + 1 & 0xFFFF
        self.token = self.token + 1 & 0xFFFFFFFF
        head = _HEADER.pack(_REQUEST, code, self.message_id, self.token)
        self.request = head + tail
        self.client.send(self.request)

    def _take(self, plaintext: bytes, now: float) -> Outcome | None:
        """Take one message: the usual one is told by its first eight octets."""
        request = self.request
        if self.is_asking and plaintext[2:8] == request[2:8] and plaintext[0] == _ACK:
            code = plaintext[1]
            if code >> 5 == _SUCCESS and not self.is_registering:
                return self._answered(code)
        return self._take_unusual(plaintext, now)

    def _take_unusual(self, plaintext: bytes, now: float) -> Outcome | None:
        try:
            message = Message.parse(plaintext)
        except MessageFormatError:
            return None
        if message.kind in (Kind.ACK, Kind.RST):
            return self._take_reply(message, now)
        if message.code >> 5 in (2, 4, 5):
            return self._take_separate(message)
        if message.kind == Kind.CON:
            self._reply(Kind.RST, message.message_id)  # a ping, or what a device does not serve
        return None

    def _take_reply(self, message: Message, now: float) -> Outcome | None:
        """An ACK or RST names what it answers by its message ID."""
        if not self.is_asking or message.message_id != self.message_id:
            return None
        if message.kind == Kind.RST:
            self.is_asking, self.due_at = False, NEVER
            return Outcome.REJECTED
        if message.code == Code.EMPTY:
            # The response comes by itself, or not at all. It is not asked for again.
            self.due_at = now + MAX_LATENCY
            self.timeout = NEVER
            return None
        return self._take_response(message) if self._is_ours(message.token) else None

    def _take_separate(self, message: Message) -> Outcome | None:
        """A response in a message of its own (RFC 7252 section 5.2.2)."""
        is_ours = self._is_ours(message.token)
        if self.is_observing and message.token == self.observed:
            self.notifications += 1
            self.is_observing = any(number == OBSERVE for number, _ in message.options)
            if message.kind == Kind.CON:
                self._reply(Kind.ACK, message.message_id)
            return None
        if message.kind == Kind.CON:
            # Acknowledged once more if our ACK was lost, and rejected if it is nobody's.
            self._reply(Kind.ACK if is_ours else Kind.RST, message.message_id)
        return self._take_response(message) if is_ours and self.is_asking else None

    def _take_response(self, message: Message) -> Outcome | None:
        response = Response(message.code, message.options, message.payload)
        asked = Message.parse(self.request)
        may_echo = all(number != ECHO for number, _ in asked.options)
        if response.code == Code.UNAUTHORIZED and response.echo is not None and may_echo:
            # The same once more, with what shows that it is here (RFC 9175 section 2.3).
            self.echoes += 1
            options = (*asked.options, (ECHO, response.echo))
            tail = Message(Kind.CON, asked.code, 0, b"", options, asked.payload).encode()[4:]
            self._next_message(asked.code, tail)
            return None
        if self.is_registering:
            self.observed = message.token
            self.is_observing = any(number == OBSERVE for number, _ in message.options)
        return self._answered(message.code)

    def _answered(self, code: int) -> Outcome:
        self.code = code
        self.is_asking, self.due_at = False, NEVER
        return Outcome.ANSWERED

    def _is_ours(self, token: bytes) -> bool:
        return token == self.request[4:_HEADER_LENGTH]

    def _reply(self, kind: Kind, message_id: int) -> None:
        self.client.send(Message(kind, Code.EMPTY, message_id).encode())
