"""The message layer: RFC 7252 section 4, without I/O, for all associations of a worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Generic, Protocol

from coapgate.coap.counts import Counts
from coapgate.coap.endpoint import A, Association, Endpoint
from coapgate.coap.exchanges import Exchanges
from coapgate.coap.fitting import is_suppressed
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
from coapgate.coap.options import MAX_AGE, Request, encode_options, encode_uint, parse_request
from coapgate.coap.proofs import PathProofs
from coapgate.coap.rates import DeviceRates
from coapgate.coap.responses import Responses
from coapgate.coap.transmissions import Reliability, Transmissions
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code, Identity
from coapgate.uplink import RETRY_AFTER, Source

_CHANGED = int(Code.CHANGED)  # a member of an enum costs a look-up each time


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


class MessageLayer(Generic[A]):
    """Octets of devices in, requests out; answers in, octets out.

    `transmit` is called with an association, octets and `now`; it drops what the association's
    path may not be sent yet. A ticket stands for one exchange; `acknowledged` or `respond` ends
    it, at once or later. `prove_path` is called when an unproven path has proven itself,
    `answered` before a response leaves: see Responses. Every `now` is monotonic seconds.
    """

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        requests: Requests,
        rates: DeviceRates,
        settings: Settings | None = None,
        rng: random.Random | None = None,
        *,
        prove_path: Callable[[A], None] | None = None,
        answered: Callable[[A, int, bytes, float], None] | None = None,
    ) -> None:
        settings = settings or Settings()
        reliability = settings.reliability
        self.counts = Counts()
        self._transmit = transmit
        self._requests = requests
        self._take_allowance = rates.take
        self._rng = rng or random.Random()
        self._opened = 0
        self._exchanges: Exchanges[A] = Exchanges(
            requests.source,
            rates,
            capacity=settings.dedup_exchanges,
            ack_delay=settings.ack_delay,
            lifetime=reliability.exchange_lifetime,
            non_lifetime=reliability.non_lifetime,
        )
        self._transmissions = Transmissions(transmit, reliability, self._rng)
        self._proofs = PathProofs(self._transmissions, self.counts, prove_path or _ignore_proof)
        self._responses = Responses(
            transmit,
            self._exchanges,
            self._transmissions,
            self._proofs,
            answered or _ignore_answer,
            self.counts,
        )

    def open(self, association: A, identity: Identity, association_id: bytes) -> Endpoint[A]:
        """Begin with a new association."""
        self._opened += 1
        return Endpoint(
            self._opened, association, identity, association_id, self._rng.getrandbits(16)
        )

    def restore(
        self, endpoint: Endpoint[A], answers: Iterable[tuple[int, float, bytes]], now: float
    ) -> None:
        """Remember what an earlier process `answered`, right after `open`.

        Each is a message ID, when it expires, and the octets; those that have expired are ignored.
        """
        self._exchanges.restore(endpoint, answers, now)

    def close(self, endpoint: Endpoint[A]) -> None:
        """Forget an endpoint; it must not be used again. Its uplinks go on, unanswered."""
        self._transmissions.cancel(endpoint)
        self._exchanges.close(endpoint)

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
            if entry is not None and self._responses.repeat(endpoint, message_id, entry, now):
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
            else:
                self._refuse(endpoint, kind, message_id, token, refusal, now)
            return
        if request.echo:
            self._proofs.echoed(endpoint.association, request.echo)
        no_response = request.no_response
        ticket = self._exchanges.admit(endpoint, kind, message_id, token, no_response, now)
        if not ticket:
            self._overload(endpoint, kind, message_id, token, no_response, now)
            return
        source, allowance = endpoint.source, endpoint.allowance
        assert source is not None
        assert allowance is not None
        try:
            wait = self._take_allowance(allowance, now)
            if wait:
                raise self._limit(wait)
            answer = self._requests.handle(source, ticket, request)
        except RequestRefused as refusal:
            self._responses.refuse(ticket, refusal, now)
            return
        if answer is not None:
            self._responses.respond(ticket, answer, b"", b"", now)

    def acknowledged(self, ticket: int, outcome: int, now: float) -> None:
        """A publication ended: a PUBACK reason code or an Outcome."""
        refusal = self._requests.conclude(outcome)
        if refusal is None:
            self._responses.respond(ticket, _CHANGED, b"", b"", now)
        else:
            self._responses.refuse(ticket, refusal, now)

    def respond(self, ticket: int, code: int, options: bytes, payload: bytes, now: float) -> None:
        """Answer an exchange; `options` are encoded. EMPTY: finish it without a response.

        Nothing happens if the exchange is forgotten or its association closed. A payload that does
        not fit is cut or replaced: see `fit`.
        """
        self._responses.respond(ticket, code, options, payload, now)

    @property
    def retransmissions(self) -> int:
        """Repetitions of separate responses."""
        return self._transmissions.repeats

    @property
    def active_endpoints(self) -> int:
        """Endpoints of which something is remembered."""
        return self._exchanges.active_endpoints

    @property
    def unfinished_exchanges(self) -> int:
        """Requests whose response is still to be decided."""
        return len(self._exchanges.unacknowledged) + len(self._exchanges.awaited)

    def next_timer(self) -> float | None:
        """When to call `handle_timer`, at the earliest; None: never as things are."""
        due = min(self._exchanges.ack_at, self._exchanges.next_purge())
        repeat_at = self._transmissions.next_timer()
        if repeat_at is not None and repeat_at < due:
            due = repeat_at
        return None if due == inf else due

    def handle_timer(self, now: float) -> None:
        """Send the empty ACKs and repetitions that are due, forget what is old."""
        if now >= self._exchanges.ack_at:
            self._responses.acknowledge_late_ones(now)
        given_up, withheld = self._transmissions.handle_timer(now)
        for endpoint, transmission in given_up:
            self.counts.given_up += 1
            self._responses.finish_separate(endpoint, transmission)
        for endpoint in withheld:
            self._proofs.ask(endpoint, now)
        self._exchanges.purge(now)

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
                self._proofs.missed(endpoint.association)
                return
            self._proofs.answered(endpoint.association, transmission, kind)
            if kind == RST and transmission.exchange is not None:
                self.counts.resets += 1
            self._responses.finish_separate(endpoint, transmission)
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

    def _refuse(
        self,
        endpoint: Endpoint[A],
        kind: int,
        message_id: int,
        token: bytes,
        refusal: RequestRefused,
        now: float,
    ) -> None:
        """Answer a request that could be read but not understood; it counts like any other."""
        ticket = self._exchanges.admit(endpoint, kind, message_id, token, 0, now)
        if not ticket:
            self._overload(endpoint, kind, message_id, token, 0, now)
            return
        assert endpoint.allowance is not None
        wait = self._take_allowance(endpoint.allowance, now)
        self._responses.refuse(ticket, self._limit(wait) if wait else refusal, now)

    def _limit(self, wait: float) -> RequestRefused:
        """Why a device may not ask for `wait` seconds."""
        self.counts.rate_limited += 1
        return RequestRefused(Code.TOO_MANY_REQUESTS, "too many requests", max_age=ceil(wait))

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
        if is_suppressed(code, no_response):
            octets = empty_ack(message_id)
        else:
            self.counts.responses[code] = self.counts.responses.get(code, 0) + 1
            octets = HEADER.pack(VERSION | ACK | len(token), code, message_id) + token
            octets += encode_options([(MAX_AGE, encode_uint(self._rng.randint(*RETRY_AFTER)))])
        self._transmit(endpoint.association, octets, now)


def _ignore_proof(association: Association) -> None:
    """Paths are none of the caller's business."""


def _ignore_answer(association: Association, message_id: int, octets: bytes, left: float) -> None:
    """Nothing outlives the caller."""
