"""The message layer: RFC 7252 section 4, without I/O, for all associations of a worker."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Generic, Protocol

from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.exchanges import (
    ACKNOWLEDGED,
    EXCHANGE,
    FINISHED,
    UNANSWERED,
    UNFINISHED,
    UNRELIABLE,
    acknowledged,
    finished,
    make_room,
)
from coapgate.coap.header import (
    ACK,
    CON,
    HEADER,
    MAX_TOKEN_LENGTH,
    NON,
    RST,
    TOKEN_LENGTH,
    TYPE,
    VERSION,
    empty_ack,
    reset,
)
from coapgate.coap.options import (
    MAX_AGE,
    SIZE1,
    Request,
    encode_options,
    encode_uint,
    parse_request,
)
from coapgate.coap.rates import DeviceRates
from coapgate.coap.transmissions import Reliability, Transmission, Transmissions
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code, Identity
from coapgate.uplink import RETRY_AFTER, Source

_EMPTY = int(Code.EMPTY)  # a member of an enum costs a look-up each time
_CHANGED = int(Code.CHANGED)

_PURGES_AT_ONCE = 64
"""Idle endpoints tidied up in one call, so that many of them never hold up the loop."""
_ROUNDING = 1e-3
"""Seconds by which an empty ACK may be early."""


class Requests(Protocol):
    """Where requests go."""

    def source(self, identity: Identity, association_id: bytes) -> Source:
        """What is kept for an endpoint while it is active."""

    def handle(self, source: Source, ticket: int, request: Request) -> int | None:
        """Carry out a new request: its response code, EMPTY for no answer at all, or None: later.

        Raises RequestRefused.
        """

    def conclude(self, outcome: int) -> RequestRefused | None:
        """What the device is told when its publication ended; None is 2.04."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`ack_delay` in seconds, `dedup_exchanges` per association."""

    ack_delay: float = 0.5
    dedup_exchanges: int = 64
    reliability: Reliability = field(default_factory=Reliability)


@dataclass(slots=True)
class Counts:
    """What happened, for whoever reads it out; `responses` by response code octet."""

    responses: dict[int, int] = field(default_factory=dict)
    duplicates: int = 0
    pings: int = 0
    ignored: int = 0
    """Too short, of another version, or an ACK or RST that nothing waits for."""
    format_errors: int = 0
    unexpected_responses: int = 0
    bad_option_drops: int = 0
    """NON requests with a critical option that is not supported."""
    rate_limited: int = 0
    overloads: int = 0
    """Requests of endpoints with `dedup_exchanges` requests under way."""
    silences: int = 0
    """Requests that neither expected nor got a response."""
    separate_responses: int = 0
    given_up: int = 0
    """Separate responses that nobody acknowledged."""
    resets: int = 0
    """Separate responses that the device rejected."""


class MessageLayer(Generic[A]):
    """Octets of devices in, requests out; answers in, octets out.

    `transmit` is called with an association, octets and `now`. A ticket stands for one exchange;
    `acknowledged` or `respond` ends it, at once or later. Every `now` is monotonic seconds.
    """

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        requests: Requests,
        rates: DeviceRates,
        settings: Settings | None = None,
        rng: random.Random | None = None,
    ) -> None:
        settings = settings or Settings()
        self._transmit = transmit
        self._requests = requests
        self._rates = rates
        self._rng = rng or random.Random()
        self._transmissions = Transmissions(transmit, settings.reliability, self._rng)
        self._ack_delay = settings.ack_delay
        self._dedup_exchanges = settings.dedup_exchanges
        self._exchange_lifetime = settings.reliability.exchange_lifetime
        self._non_lifetime = settings.reliability.non_lifetime
        self._opened = 0
        self._sequence = 0
        self._unacknowledged: dict[int, Endpoint[A]] = {}  # UNANSWERED, by ticket, oldest first
        self._awaited: dict[int, Endpoint[A]] = {}  # others without a response, by ticket
        self._active: OrderedDict[int, Endpoint[A]] = OrderedDict()  # by number, next purge first
        self._ack_at = inf
        self.counts = Counts()

    def open(self, association: A, identity: Identity, association_id: bytes) -> Endpoint[A]:
        """Begin with a new association."""
        self._opened += 1
        return Endpoint(
            self._opened, association, identity, association_id, self._rng.getrandbits(16)
        )

    def close(self, endpoint: Endpoint[A]) -> None:
        """Forget an endpoint; it must not be used again. Its uplinks go on, unanswered."""
        self._transmissions.cancel(endpoint)
        for message_id, entry in tuple((endpoint.exchanges or {}).items()):
            self._forget(endpoint, message_id, entry)
        if endpoint.exchanges is not None:
            del self._active[endpoint.number]
            self._rest(endpoint)

    def receive(self, endpoint: Endpoint[A], octets: bytes, now: float) -> None:
        """Take one message from a device, whatever its octets are."""
        size = len(octets)
        if size < HEADER.size or octets[0] >> 6 != 1:
            self.counts.ignored += 1  # unanswerable, or of an unknown version: section 3
            return
        head, code, message_id = HEADER.unpack_from(octets)
        kind = head & TYPE
        start = HEADER.size + (head & TOKEN_LENGTH)
        if kind > NON or not 0 < code < 0x20:
            self._receive_other(endpoint, octets, kind, code, message_id, now)
            return
        if start > size or head & TOKEN_LENGTH > MAX_TOKEN_LENGTH:
            self._reject(endpoint, kind, message_id, now)
            return
        if endpoint.exchanges is not None:
            entry = endpoint.exchanges.get(message_id)
            if entry is not None and self._is_repetition(endpoint, message_id, entry, now):
                return
        token = octets[HEADER.size : start]
        try:
            request = parse_request(octets, start, code, message_id, token, kind == CON)
        except MessageFormatError:
            self._reject(endpoint, kind, message_id, now)
            return
        except RequestRefused as refusal:
            if kind == NON and refusal.code == Code.BAD_OPTION:
                self.counts.bad_option_drops += 1  # section 5.4.1
            elif ticket := self._admit(endpoint, kind, message_id, token, 0, now):
                self._refuse(ticket, refusal, now)
            return
        ticket = self._admit(endpoint, kind, message_id, token, request.no_response, now)
        if not ticket:
            return
        assert endpoint.source is not None
        try:
            answer = self._requests.handle(endpoint.source, ticket, request)
        except RequestRefused as refusal:
            self._refuse(ticket, refusal, now)
            return
        if answer is not None:
            self.respond(ticket, answer, b"", b"", now)

    def acknowledged(self, ticket: int, outcome: int, now: float) -> None:
        """A publication ended: a PUBACK reason code or an Outcome."""
        refusal = self._requests.conclude(outcome)
        if refusal is None:
            self.respond(ticket, _CHANGED, b"", b"", now)
        else:
            self._refuse(ticket, refusal, now)

    def respond(self, ticket: int, code: int, options: bytes, payload: bytes, now: float) -> None:
        """Answer an exchange; `options` are encoded. EMPTY: finish it without a response.

        Nothing happens if the exchange is forgotten or its association closed. A diagnostic
        payload is cut to what fits the association.
        """
        endpoint = self._unacknowledged.pop(ticket, None)
        if endpoint is None:
            endpoint = self._awaited.pop(ticket, None)
            if endpoint is None:
                return
        exchanges = endpoint.exchanges
        assert exchanges is not None
        message_id = ticket & 0xFFFF
        entry = exchanges[message_id]
        state, expires_at, _, no_response = UNFINISHED.unpack_from(entry)
        token = entry[UNFINISHED.size :]
        association = endpoint.association
        if now >= expires_at:
            del exchanges[message_id]  # the device may have begun to use the token anew
            return
        if code == _EMPTY or (no_response and _is_suppressed(code, no_response)):
            self.counts.silences += 1
            kept = b"" if state == UNRELIABLE else empty_ack(message_id)
            exchanges[message_id] = finished(expires_at, kept)
            if state == UNANSWERED:
                # No-Response is about responses; a CON is acknowledged all the same (RFC 7967 2).
                self._transmit(association, kept, now)
            return
        body = token + options
        if payload:
            code, body = _with_payload(code, token, options, payload, association.max_plaintext)
        responses = self.counts.responses
        responses[code] = responses.get(code, 0) + 1
        head = VERSION | len(token)
        if state == UNANSWERED:
            octets = HEADER.pack(head | ACK, code, message_id) + body
            exchanges[message_id] = finished(expires_at, octets)
            self._transmit(association, octets, now)
        elif state == UNRELIABLE:
            exchanges[message_id] = finished(expires_at, b"")
            octets = HEADER.pack(head | NON, code, endpoint.take_message_id()) + body
            self._transmit(association, octets, now)
        else:
            self.counts.separate_responses += 1
            octets = HEADER.pack(head | CON, code, endpoint.take_message_id()) + body
            self._transmissions.send(endpoint, octets, message_id, entry, now)

    @property
    def retransmissions(self) -> int:
        """Repetitions of separate responses."""
        return self._transmissions.repeats

    @property
    def active_endpoints(self) -> int:
        """Endpoints of which something is remembered."""
        return len(self._active)

    @property
    def unfinished_exchanges(self) -> int:
        """Requests whose response is still to be decided."""
        return len(self._unacknowledged) + len(self._awaited)

    def next_timer(self) -> float | None:
        """When to call `handle_timer`, at the earliest; None: never as things are."""
        due = self._ack_at
        repeat_at = self._transmissions.next_timer()
        if repeat_at is not None and repeat_at < due:
            due = repeat_at
        if self._active:
            purge_at = next(iter(self._active.values())).purge_at
            due = min(due, purge_at)
        return None if due == inf else due

    def handle_timer(self, now: float) -> None:
        """Send the empty ACKs and repetitions that are due, forget what is old."""
        if now >= self._ack_at:
            self._acknowledge_late_ones(now)
        for endpoint, transmission in self._transmissions.handle_timer(now):
            self.counts.given_up += 1
            self._finish_separate(endpoint, transmission)
        for _ in range(min(_PURGES_AT_ONCE, len(self._active))):
            oldest = next(iter(self._active.values()))
            if oldest.purge_at > now:
                break
            self._purge(oldest, now)

    def _receive_other(
        self,
        endpoint: Endpoint[A],
        octets: bytes,
        kind: int,
        code: int,
        message_id: int,
        now: float,
    ) -> None:
        """Take what is not a request: section 4.2 for ACK and RST, 4.3 for the rest."""
        if kind > NON:
            is_empty = len(octets) == HEADER.size and not octets[0] & TOKEN_LENGTH
            transmission = None
            if is_empty and code == Code.EMPTY:
                transmission = self._transmissions.take(endpoint, message_id)
            if transmission is None:
                self.counts.ignored += 1
                return
            if kind == RST:
                self.counts.resets += 1
            self._finish_separate(endpoint, transmission)
        elif code == Code.EMPTY and kind == CON and len(octets) == HEADER.size:
            self.counts.pings += 1
            self._transmit(endpoint.association, reset(message_id), now)
        elif code >> 5 in (2, 4, 5):
            self.counts.unexpected_responses += 1
            if kind == CON:
                self._transmit(endpoint.association, reset(message_id), now)
        else:
            self._reject(endpoint, kind, message_id, now)

    def _reject(self, endpoint: Endpoint[A], kind: int, message_id: int, now: float) -> None:
        """A message format error: RST for a CON, silence for a NON (sections 4.2, 4.3)."""
        self.counts.format_errors += 1
        if kind == CON:
            self._transmit(endpoint.association, reset(message_id), now)

    def _is_repetition(
        self, endpoint: Endpoint[A], message_id: int, entry: bytes, now: float
    ) -> bool:
        """Whether the message ID still means the exchange we know; then answer it again."""
        state, expires_at = EXCHANGE.unpack_from(entry)
        if now >= expires_at:
            self._forget(endpoint, message_id, entry)
            return False
        self.counts.duplicates += 1
        if state == FINISHED and len(entry) > EXCHANGE.size:
            self._transmit(endpoint.association, entry[EXCHANGE.size :], now)
        elif state == ACKNOWLEDGED:
            self._transmit(endpoint.association, empty_ack(message_id), now)
        return True

    def _admit(
        self,
        endpoint: Endpoint[A],
        kind: int,
        message_id: int,
        token: bytes,
        no_response: int,
        now: float,
    ) -> int:
        """Enter a new exchange and return its ticket, or answer why not and return 0."""
        exchanges = endpoint.exchanges
        if exchanges is None:
            exchanges = self._wake(endpoint, now)
        elif len(exchanges) >= self._dedup_exchanges and not make_room(exchanges):
            self._overload(endpoint, kind, message_id, token, no_response, now)
            return 0
        allowance = endpoint.allowance
        assert allowance is not None
        self._sequence += 1
        ticket = self._sequence << 16 | message_id
        if kind == CON:
            state, expires_at = UNANSWERED, now + self._exchange_lifetime
            if not self._unacknowledged:
                self._ack_at = now + self._ack_delay
            self._unacknowledged[ticket] = endpoint
        else:
            state, expires_at = UNRELIABLE, now + self._non_lifetime
            self._awaited[ticket] = endpoint
        exchanges[message_id] = UNFINISHED.pack(state, expires_at, ticket, no_response) + token
        wait = self._rates.take(allowance, now)
        if wait:
            self.counts.rate_limited += 1
            self._refuse(
                ticket,
                RequestRefused(Code.TOO_MANY_REQUESTS, "too many requests", max_age=ceil(wait)),
                now,
            )
            return 0
        return ticket

    def _overload(
        self,
        endpoint: Endpoint[A],
        kind: int,
        message_id: int,
        token: bytes,
        no_response: int,
        now: float,
    ) -> None:
        """No room for one more exchange: 5.03 without remembering it; a NON is dropped."""
        self.counts.overloads += 1
        if kind == NON:
            return
        code = Code.SERVICE_UNAVAILABLE
        if _is_suppressed(code, no_response):
            octets = empty_ack(message_id)
        else:
            self.counts.responses[code] = self.counts.responses.get(code, 0) + 1
            octets = HEADER.pack(VERSION | ACK | len(token), code, message_id) + token
            octets += encode_options([(MAX_AGE, encode_uint(self._rng.randint(*RETRY_AFTER)))])
        self._transmit(endpoint.association, octets, now)

    def _refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        options = []
        if refusal.max_age is not None:
            options.append((MAX_AGE, encode_uint(refusal.max_age)))
        if refusal.size1 is not None:
            options.append((SIZE1, encode_uint(refusal.size1)))
        self.respond(ticket, refusal.code, encode_options(options), str(refusal).encode(), now)

    def _acknowledge_late_ones(self, now: float) -> None:
        """What takes longer than `ack_delay` gets an empty ACK (section 5.2.2)."""
        self._ack_at = inf
        received_before = now - self._ack_delay + _ROUNDING
        late: list[int] = []
        for ticket, endpoint in self._unacknowledged.items():
            assert endpoint.exchanges is not None
            entry = endpoint.exchanges[ticket & 0xFFFF]
            received_at = EXCHANGE.unpack_from(entry)[1] - self._exchange_lifetime
            if received_at > received_before:
                self._ack_at = received_at + self._ack_delay
                break
            late.append(ticket)
        for ticket in late:
            waiting = self._unacknowledged.pop(ticket, None)
            if waiting is None:
                continue  # closed while another acknowledgement was sent
            assert waiting.exchanges is not None
            self._awaited[ticket] = waiting
            message_id = ticket & 0xFFFF
            waiting.exchanges[message_id] = acknowledged(waiting.exchanges[message_id])
            self._transmit(waiting.association, empty_ack(message_id), now)

    def _finish_separate(self, endpoint: Endpoint[A], transmission: Transmission[A]) -> None:
        """A separate response is over, however it ended: a late repetition gets the empty ACK."""
        exchanges, message_id = endpoint.exchanges, transmission.request_id
        if exchanges is not None and exchanges.get(message_id) is transmission.exchange:
            _, expires_at = EXCHANGE.unpack_from(transmission.exchange)
            kept = empty_ack(message_id)
            exchanges[message_id] = finished(expires_at, kept)

    def _wake(self, endpoint: Endpoint[A], now: float) -> dict[int, bytes]:
        """Give an idle endpoint what an active one has."""
        endpoint.exchanges = {}
        endpoint.source = self._requests.source(endpoint.identity, endpoint.association_id)
        endpoint.allowance = self._rates.join(endpoint.identity)
        endpoint.purge_at = now + self._exchange_lifetime
        self._active[endpoint.number] = endpoint
        return endpoint.exchanges

    def _rest(self, endpoint: Endpoint[A]) -> None:
        assert endpoint.allowance is not None
        self._rates.leave(endpoint.identity, endpoint.allowance)
        endpoint.exchanges = endpoint.source = endpoint.allowance = None

    def _purge(self, endpoint: Endpoint[A], now: float) -> None:
        """Forget an endpoint's old exchanges; without any left it is idle."""
        exchanges = endpoint.exchanges
        assert exchanges is not None
        for message_id, entry in tuple(exchanges.items()):
            if EXCHANGE.unpack_from(entry)[1] <= now:
                self._forget(endpoint, message_id, entry)
        del self._active[endpoint.number]
        if exchanges:
            endpoint.purge_at = now + self._exchange_lifetime
            self._active[endpoint.number] = endpoint
        else:
            self._rest(endpoint)

    def _forget(self, endpoint: Endpoint[A], message_id: int, entry: bytes) -> None:
        """Drop an exchange; an answer that still comes goes nowhere."""
        assert endpoint.exchanges is not None
        del endpoint.exchanges[message_id]
        if entry[0] != FINISHED:
            ticket = UNFINISHED.unpack_from(entry)[2]
            self._unacknowledged.pop(ticket, None)
            self._awaited.pop(ticket, None)


def _is_suppressed(code: int, no_response: int) -> bool:
    """Whether No-Response says so of the code's class (RFC 7967 section 2.1)."""
    return bool(no_response >> (code >> 5) - 1 & 1)


def _with_payload(
    code: int, token: bytes, options: bytes, payload: bytes, max_plaintext: int
) -> tuple[int, bytes]:
    """What follows the header; a diagnostic is cut to fit, content that does not fit is 5.00."""
    room = max_plaintext - HEADER.size - len(token) - len(options) - 1
    if len(payload) > room:
        if code < Code.BAD_REQUEST:
            return Code.INTERNAL_SERVER_ERROR, token
        payload = payload[: max(0, room)].decode(errors="ignore").encode()
    return code, token + options + b"\xff" + payload if payload else token + options
