"""One response to each request, however often the request comes (RFC 7252 sections 4.5, 5.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from coapgate.coap.counts import Counts
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.exchanges import (
    ACKNOWLEDGED,
    EXCHANGE,
    FINISHED,
    UNANSWERED,
    UNFINISHED,
    UNRELIABLE,
    Exchanges,
    finished,
)
from coapgate.coap.fitting import fit, fit_again, is_suppressed
from coapgate.coap.header import ACK, CON, HEADER, NON, VERSION, empty_ack
from coapgate.coap.options import MAX_AGE, SIZE1, encode_options, encode_uint, parse_options
from coapgate.coap.proofs import PathProofs
from coapgate.coap.transmissions import Transmission, Transmissions
from coapgate.errors import RequestRefused
from coapgate.model import Code, Identity

MAX_REMEMBERED_LENGTH = 21
"""Octets of an answer that outlive the process; a diagnostic is left out where it would be more."""

MAX_KEPT_LENGTH = 256
"""Octets of content that are kept for a repetition of its request; longer ones are read again."""

_EMPTY = int(Code.EMPTY)  # a member of an enum costs a look-up each time
_BAD_REQUEST = int(Code.BAD_REQUEST)


class Responses(Generic[A]):
    """Piggybacked on the ACK if in time, else separate; a repetition gets the same again.

    `answered` is told what would answer a repetition after a restart, before the response leaves:
    an association, the request's message ID, an ACK, or nothing for a NON, and for how many seconds
    more that message ID means this request. It is not told of content: a GET may be carried out
    again, and is, if the answer was long. `spoke` is called after the response to an endpoint that
    is awaited.
    """

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        exchanges: Exchanges[A],
        transmissions: Transmissions[A],
        proofs: PathProofs[A],
        answered: Callable[[A, int, bytes, float], None],
        spoke: Callable[[Identity, bytes, float], None],
        counts: Counts,
    ) -> None:
        self._transmit = transmit
        self._exchanges = exchanges
        self._unacknowledged = exchanges.unacknowledged
        self._awaited = exchanges.awaited
        self._additions = exchanges.additions
        self._transmissions = transmissions
        self._proofs = proofs
        self._answered = answered
        self._spoke = spoke
        self._counts = counts

    def respond(self, ticket: int, code: int, options: bytes, payload: bytes, now: float) -> None:
        """Answer an exchange; see MessageLayer.respond."""
        endpoint = self._unacknowledged.pop(ticket, None)
        if endpoint is None:
            endpoint = self._awaited.pop(ticket, None)
            if endpoint is None:
                return
        exchanges = endpoint.exchanges
        assert exchanges is not None
        if self._additions:
            options = self._add(ticket, options)
        message_id = ticket & 0xFFFF
        entry = exchanges[message_id]
        state, expires_at, _, no_response = UNFINISHED.unpack_from(entry)
        association = endpoint.association
        if now >= expires_at:
            del exchanges[message_id]  # the device may have begun to use the token anew
            return
        if code == _EMPTY or (no_response and is_suppressed(code, no_response)):
            self._keep_silent(endpoint, message_id, entry, now)
            return
        token = entry[UNFINISHED.size :]
        body = token + options
        is_content = is_cut = False
        if payload or association.unproven is not None:
            is_content = bool(payload) and code < _BAD_REQUEST
            code, body, is_cut = fit(association, code, token, options, payload)
            if no_response and is_suppressed(code, no_response):
                self._keep_silent(endpoint, message_id, entry, now)
                if is_cut:
                    self._proofs.ask(endpoint, now)
                return
        responses = self._counts.responses
        responses[code] = responses.get(code, 0) + 1
        head = VERSION | len(token)
        octets = HEADER.pack(head | ACK, code, message_id) + body
        if not is_content:
            kept = octets if state != UNRELIABLE else b""
            if payload and len(kept) > MAX_REMEMBERED_LENGTH:
                kept = kept[: HEADER.size + len(token) + len(options)]
            self._answered(association, message_id, kept, expires_at - now)
        if state == UNANSWERED:
            if is_content and len(octets) > MAX_KEPT_LENGTH:
                del exchanges[message_id]
            else:
                exchanges[message_id] = finished(expires_at, octets)
            self._transmit(association, octets, now)
        elif state == UNRELIABLE:
            exchanges[message_id] = finished(expires_at, b"")
            octets = HEADER.pack(head | NON, code, endpoint.take_message_id()) + body
            self._transmit(association, octets, now)
        else:
            self._counts.separate_responses += 1
            octets = HEADER.pack(head | CON, code, endpoint.take_message_id()) + body
            self._transmissions.send(endpoint, octets, message_id, entry, now)
        if is_cut:
            self._proofs.ask(endpoint, now)
        if endpoint.is_awaited:
            self._spoke(endpoint.identity, endpoint.association_id, now)

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        """Answer an exchange with a code, what the refusal tells besides, and a diagnostic."""
        options = []
        if refusal.max_age is not None:
            options.append((MAX_AGE, encode_uint(refusal.max_age)))
        if refusal.size1 is not None:
            options.append((SIZE1, encode_uint(refusal.size1)))
        self.respond(ticket, refusal.code, encode_options(options), str(refusal).encode(), now)

    def repeat(self, endpoint: Endpoint[A], message_id: int, entry: bytes, now: float) -> bool:
        """Answer a repetition; False: the message ID means that exchange no more."""
        state, expires_at = EXCHANGE.unpack_from(entry)
        if now >= expires_at:
            self._exchanges.forget(endpoint, message_id, entry)
            return False
        self._counts.duplicates += 1
        association = endpoint.association
        if state == FINISHED and len(entry) > EXCHANGE.size:
            octets = entry[EXCHANGE.size :]
            if association.unproven is None or association.can_send(len(octets)):
                self._transmit(association, octets, now)
            else:
                self._transmit(association, fit_again(association, octets), now)
                self._proofs.ask(endpoint, now)
        elif state == ACKNOWLEDGED:
            self._transmit(association, empty_ack(message_id), now)
        return True

    def acknowledge_late_ones(self, now: float) -> None:
        """What takes longer than `ack_delay` gets an empty ACK (section 5.2.2)."""
        for endpoint, message_id in self._exchanges.take_late(now):
            if endpoint.exchanges is not None:  # else closed while another ACK was sent
                self._transmit(endpoint.association, empty_ack(message_id), now)

    def finish_separate(self, endpoint: Endpoint[A], transmission: Transmission[A]) -> None:
        """A separate response is over, however it ended: a late repetition gets the empty ACK."""
        exchanges, message_id = endpoint.exchanges, transmission.request_id
        exchange = transmission.exchange
        if exchange is None or exchanges is None:
            return  # a ping, or nothing is remembered any more
        if exchanges.get(message_id) is exchange:
            _, expires_at = EXCHANGE.unpack_from(exchange)
            exchanges[message_id] = finished(expires_at, empty_ack(message_id))

    def _add(self, ticket: int, options: bytes) -> bytes:
        additions = self._additions.pop(ticket, None)
        if additions is None or not additions.options:
            return options
        return encode_options(sorted([*parse_options(options), *additions.options]))

    def _keep_silent(
        self, endpoint: Endpoint[A], message_id: int, entry: bytes, now: float
    ) -> None:
        """Finish an exchange without a response."""
        exchanges = endpoint.exchanges
        assert exchanges is not None
        state, expires_at = EXCHANGE.unpack_from(entry)
        self._counts.silences += 1
        kept = b"" if state == UNRELIABLE else empty_ack(message_id)
        exchanges[message_id] = finished(expires_at, kept)
        self._answered(endpoint.association, message_id, kept, expires_at - now)
        if state == UNANSWERED:
            # No-Response is about responses; a CON is acknowledged all the same (RFC 7967 2).
            self._transmit(endpoint.association, kept, now)
        if endpoint.is_awaited:
            self._spoke(endpoint.identity, endpoint.association_id, now)
