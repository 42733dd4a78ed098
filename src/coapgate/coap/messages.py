"""The message layer: RFC 7252 section 4, without I/O, for all associations of a worker."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import ceil, inf
from typing import Generic, Protocol

from coapgate.coap.assembly import Assembly
from coapgate.coap.counts import Counts
from coapgate.coap.downloads import Downloads
from coapgate.coap.endpoint import A, Association, Endpoint
from coapgate.coap.exchanges import Additions, Exchanges
from coapgate.coap.fitting import is_suppressed
from coapgate.coap.header import (
    ACK,
    CON,
    HEADER,
    MAX_TOKEN_LENGTH,
    NON,
    TOKEN_LENGTH,
    TYPE,
    VERSION,
    empty_ack,
    reset,
)
from coapgate.coap.hotpath import STATE
from coapgate.coap.observe import Journal, NoJournal
from coapgate.coap.options import (
    BLOCK1,
    MAX_AGE,
    TIME,
    Request,
    encode_options,
    encode_uint,
    parse_request,
)
from coapgate.coap.proofs import PathProofs
from coapgate.coap.rates import Allowance, DeviceRates
from coapgate.coap.replies import Replies
from coapgate.coap.requests import DeviceRequests, Downlinks, NoDownlinks
from coapgate.coap.responses import Responses
from coapgate.coap.states import Contents, NoContents, States
from coapgate.coap.transmissions import Reliability, Transmissions
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code, Content, DeviceId, Identity, KeptObservation, Tenant
from coapgate.uplink import RETRY_AFTER, Source

_CHANGED = int(Code.CHANGED)  # a member of an enum costs a look-up each time


class Requests(Protocol):
    """Where requests go."""

    def source(self, identity: Identity, association_id: bytes) -> Source:
        """What is kept for an endpoint while it is active."""

    def handle(self, source: Source, ticket: int, request: Request) -> int | None:
        """Carry out a new request: its response code, EMPTY for no answer at all, STATE for the
        state of its path, or None: later.

        Raises RequestRefused.
        """

    def check(self, source: Source, request: Request) -> None:
        """Raise RequestRefused for a request whose body need not come."""

    @property
    def wall(self) -> float:
        """When this tick began, in Unix seconds."""

    def conclude(self, outcome: int) -> RequestRefused | None:
        """What the device is told when its publication ended; None is 2.04."""


@dataclass(frozen=True, slots=True)
class Settings:
    """`ack_delay` and everything that ends in `timeout` in seconds, `dedup_exchanges` and
    `requests_per_device` per association, sizes in octets.

    `transfers` is how many bodies are put together at once, `transfers_per_device` how many of one
    device, and how many large states it reads; those take `download_memory` octets for all devices.
    Every `confirm_every`th notification is confirmable. `epoch` is Unix time when `now` was 0.
    """

    ack_delay: float = 0.5
    dedup_exchanges: int = 64
    reliability: Reliability = field(default_factory=Reliability)
    max_body: int = 262144
    block_size: int = 1024
    transfers: int = 256
    transfers_per_device: int = 2
    transfer_timeout: float = 120.0
    download_memory: int = 67108864
    observations_per_device: int = 16
    confirm_every: int = 1
    requests_per_device: int = 1
    response_timeout: float = 60.0
    epoch: float = 0.0


class MessageLayer(Generic[A]):
    """Octets of devices in, requests out; answers in, octets out.

    `transmit` is called with an association, octets and `now`; it drops what the association's
    path may not be sent yet. A ticket stands for one exchange; `acknowledged` or `respond` ends
    it, at once or later. `prove_path` is called when an unproven path has proven itself,
    `answered` before a response leaves: see Responses. The state of paths comes from `contents`,
    and `downlinks` hears of requests to devices. What `journal` keeps outlives the process. Every
    `now` is monotonic seconds.
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
        contents: Contents | None = None,
        downlinks: Downlinks | None = None,
        journal: Journal | None = None,
    ) -> None:
        downlinks = downlinks or NoDownlinks()
        settings = settings or Settings()
        reliability = settings.reliability
        self.counts = Counts()
        self._transmit = transmit
        self._requests = requests
        self._take_allowance = rates.take
        self._take_block = rates.take_block
        self._rng = rng or random.Random()
        self._opened = 0
        self._spoke = downlinks.spoke
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
            downlinks.spoke,
            self.counts,
        )
        self.downloads = Downloads(
            memory=settings.download_memory,
            per_device=settings.transfers_per_device,
            timeout=settings.transfer_timeout,
        )
        self.assembly: Assembly[A] = Assembly(
            max_body=settings.max_body,
            transfers=settings.transfers,
            per_device=settings.transfers_per_device,
            timeout=settings.transfer_timeout,
        )
        self.states = States(
            transmit,
            contents or NoContents(),
            self._exchanges,
            self._responses,
            self._transmissions,
            self.downloads,
            self.counts,
            block_size=settings.block_size,
            observations_per_device=settings.observations_per_device,
            confirm_every=settings.confirm_every,
            epoch=settings.epoch,
            journal=journal or NoJournal(),
        )
        self.observations = self.states.observations
        self.device_requests = DeviceRequests(
            transmit,
            self._transmissions,
            downlinks,
            self._rng,
            max_body=settings.max_body,
            block_size=settings.block_size,
            per_device=settings.requests_per_device,
            response_timeout=settings.response_timeout,
        )
        self._replies = Replies(
            self._transmissions,
            self._proofs,
            self._responses,
            self.observations,
            self.device_requests,
            self.counts,
        )
        self._timed = (self.assembly, self.downloads, self.device_requests)

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

    def restore_observations(
        self, endpoint: Endpoint[A], kept: Iterable[KeptObservation], now: float
    ) -> None:
        """Go on with what an endpoint observed in an earlier process: see `Journal`.

        What it may not observe any more is left out. Nothing is sent until there is other content
        than the device was told last.
        """
        self.states.restore(endpoint, kept, now)

    def close(self, endpoint: Endpoint[A], now: float) -> None:
        """Forget an endpoint; it must not be used again. Its uplinks go on, unanswered; what it
        observes ends, and what it was asked fails.
        """
        self._transmissions.cancel(endpoint)
        self._exchanges.close(endpoint)
        self.assembly.close(endpoint)
        self.states.forget(endpoint)
        self.device_requests.close(endpoint, now)

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
            if request.extensions is None:
                wait = self._take_allowance(allowance, now)
                if wait:
                    raise self._limit(wait)
            else:
                extended = self._extend(endpoint, source, allowance, ticket, request, now)
                if extended is None:
                    return
                request = extended
            answer = self._requests.handle(source, ticket, request)
            if answer is None:
                return
            if answer == STATE:
                self.states.read(endpoint, ticket, request, now)
                return
        except RequestRefused as refusal:
            self._responses.refuse(ticket, refusal, now)
            return
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

        Nothing happens if the exchange is forgotten or its association closed. Content that does
        not fit goes in blocks; other payloads are cut or replaced: see `fit`.
        """
        if code == Code.CONTENT:
            self.states.respond_with(ticket, options, payload, now)
        else:
            self._responses.respond(ticket, code, options, payload, now)

    def respond_content(self, ticket: int, content: Content | None, now: float) -> None:
        """Answer a GET with the state that `Contents.find` was asked for; None: there is none."""
        self.states.respond(ticket, content, now)

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        """Answer a GET that `Contents.find` was asked about with an error."""
        self.states.refuse(ticket, refusal, now)

    def notify(
        self, tenant: Tenant, device: DeviceId, path: str, content: Content | None, now: float
    ) -> int:
        """Tell who observes a path of a device what is there now; how many they are.

        While a notification is under way only the newest content waits behind it. None: the state
        is gone, which is 4.04 and ends the observation.
        """
        return self.states.notify(tenant, device, path, content, now)

    def request(
        self,
        endpoint: Endpoint[A],
        code: int,
        path: str,
        query: str,
        content_format: int | None,
        payload: bytes,
        ticket: int,
        now: float,
    ) -> None:
        """Ask a device: a CON with method `code`. Path segments are joined by `/`, arguments of the
        query by `&`, percent-encoded as `topics.query_text` writes them. `Downlinks.answered` or
        `failed` follows once, perhaps at once.
        """
        self.device_requests.send(endpoint, code, path, query, content_format, payload, ticket, now)

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
        for timed in self._timed:
            if timed.due_at < due:
                due = timed.due_at
        return None if due == inf else due

    def handle_timer(self, now: float) -> None:
        """Send the empty ACKs and repetitions that are due, forget what is old."""
        if now >= self._exchanges.ack_at:
            self._responses.acknowledge_late_ones(now)
        given_up, withheld = self._transmissions.handle_timer(now)
        for endpoint, transmission in given_up:
            if transmission.owner is not None:
                transmission.owner.given_up(now)
            else:
                self.counts.given_up += 1
                self._responses.finish_separate(endpoint, transmission)
        for endpoint in withheld:
            self._proofs.ask(endpoint, now)
        self._exchanges.purge(now)
        for timed in self._timed:
            if now >= timed.due_at:
                timed.handle_timer(now)

    def _extend(
        self,
        endpoint: Endpoint[A],
        source: Source,
        allowance: Allowance,
        ticket: int,
        request: Request,
        now: float,
    ) -> Request | None:
        """Look after what few requests have; the request with its whole body, or None: answered.

        A block that goes on where the last one ended costs nothing of the device's requests, as the
        whole body is one: there are blocks beside them in its allowance.
        """
        extensions = request.extensions
        assert extensions is not None
        block1, block2 = extensions.block1, extensions.block2
        goes_on = (block1 is not None and self.assembly.continues(endpoint, request, block1)) or (
            block2 is not None and self.states.continues(endpoint, request, block2)
        )
        if not goes_on or not self._take_block(allowance, now):
            wait = self._take_allowance(allowance, now)
            if wait:
                raise self._limit(wait)
        options: list[tuple[int, bytes]] = []
        if extensions.time is not None:
            options.append((TIME, encode_uint(int(self._requests.wall * 1000.0))))
        if block1 is not None:
            if block1.number == 0:
                self._requests.check(source, request)
            body = self.assembly.take(endpoint, request, block1, now)
            if body is None:
                encoded = encode_options([(BLOCK1, block1.encode()), *options])
                self._responses.respond(ticket, Code.CONTINUE, encoded, b"", now)
                return None
            request = request._replace(payload=body)
            options.insert(0, (BLOCK1, block1.encode()))
        if options or block2 is not None:
            self._exchanges.additions[ticket] = Additions(tuple(options), block2)
        return request

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
            self._replies.take(endpoint, octets, kind, code, message_id, now)
        elif code == Code.EMPTY and kind == CON and len(octets) == HEADER.size:
            self.counts.pings += 1
            self._transmit(endpoint.association, reset(message_id), now)
            if endpoint.is_awaited:
                self._spoke(endpoint.identity, endpoint.association_id, now)
        elif code >> 5 in (2, 4, 5):
            if not self._replies.take_response(endpoint, octets, kind, code, message_id, now):
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
