"""Requests to devices, each a CON with a token of ours, each with one end: RFC 7252 section 5.

A body above one block goes by Block1, a response above one block is fetched by Block2 (RFC 7959):
then one request is several messages, one after the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from math import inf
from random import Random
from typing import Generic, Protocol
from urllib.parse import unquote_to_bytes

from coapgate.coap.blocks import (
    BLOCK_OPTION_LENGTH,
    MIN_BLOCK_SIZE,
    Block,
    exponent_for,
    parse_block,
)
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.header import CON, HEADER, VERSION, empty_ack, reset
from coapgate.coap.options import (
    BLOCK1,
    BLOCK2,
    CONTENT_FORMAT,
    ETAG,
    SIZE1,
    URI_PATH,
    URI_QUERY,
    encode_options,
    encode_uint,
    parse_options,
    split_options,
)
from coapgate.coap.transmissions import Transmission, Transmissions
from coapgate.errors import MessageFormatError, RequestRefused
from coapgate.model import Code, Identity

TOKEN_LENGTH = 4
TOKENS = 1 << 8 * TOKEN_LENGTH
_RESPONSES = frozenset((2, 4, 5))
"""Classes of response codes (RFC 7252 section 12.1.2)."""
REMEMBERED = 8
"""Responses of one device whose repetitions are acknowledged again."""

_KNOWN: dict[int, tuple[int, int]] = {
    ETAG: (1, 8),
    CONTENT_FORMAT: (0, 2),
    BLOCK2: (0, BLOCK_OPTION_LENGTH),
    BLOCK1: (0, BLOCK_OPTION_LENGTH),
}
"""Options of a response that mean something here: shortest and longest value in octets. Any other
is ignored, or makes the response unacceptable if it is critical (RFC 7252 section 5.4)."""
_MAX_OPTION_LENGTH = 255
"""Octets of a path's segment and of a query's argument (RFC 7252 table 4)."""


class Failure(StrEnum):
    """Why a request to a device has no response."""

    TIMEOUT = "timeout"
    """Never acknowledged."""
    SILENT = "silent"
    """Acknowledged, and not answered within `response_timeout`."""
    RESET = "reset"
    CLOSED = "closed"
    """The association ended."""
    TOO_LARGE = "too_large"
    """The request, or what the device answers, exceeds `max_body`."""
    UNACCEPTABLE = "unacceptable"
    """The response has a critical option that we do not know, or does not belong to the request."""
    BUSY = "busy"
    """`requests_per_device` are under way already: try again when one of them has ended."""


class Downlinks(Protocol):
    """Who asks for requests to devices, and hears of their end: once for each ticket."""

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        """The device answered; `payload` is the whole body."""

    def failed(self, ticket: int, failure: Failure, now: float) -> None:
        """There is no response and there will be none."""

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        """A device with `Endpoint.is_awaited` set has just been answered: it listens now."""


class NoDownlinks:
    """Nobody asks devices for anything."""

    def answered(
        self, ticket: int, code: int, content_format: int | None, payload: bytes, now: float
    ) -> None:
        """There was no request."""

    def failed(self, ticket: int, failure: Failure, now: float) -> None:
        """There was no request."""

    def spoke(self, identity: Identity, association_id: bytes, now: float) -> None:
        """Nothing waits for any device."""


class _Request(Generic[A]):
    """One request under way; the owner of its message.

    `sent` is the block of the body that is under way, or None once all of it is there; `response`
    what has come of the answer, `etag` that of its first block.
    """

    __slots__ = (
        "body",
        "code",
        "content_format",
        "endpoint",
        "etag",
        "path",
        "query",
        "response",
        "sent",
        "table",
        "ticket",
        "token",
        "under_way",
    )

    def __init__(
        self,
        table: DeviceRequests[A],
        endpoint: Endpoint[A],
        code: int,
        path: str,
        query: str,
        content_format: int | None,
        body: bytes,
        ticket: int,
    ) -> None:
        self.table = table
        self.endpoint = endpoint
        self.code = code
        self.path = path
        self.query = query
        self.content_format = content_format
        self.body = body
        self.ticket = ticket
        self.token = b""
        self.sent: Block | None = None
        self.response = bytearray()
        self.etag: bytes | None = None
        self.under_way: Transmission[A] | None = None

    def acknowledged(self, now: float) -> None:
        """The device has the request, and will answer later (RFC 7252 section 5.2.2)."""
        self.under_way = None
        self.table.await_response(self, now)

    def reset(self, now: float) -> None:
        """The device cannot make anything of it."""
        self.under_way = None
        self.table.fail(self, Failure.RESET, now)

    def given_up(self, now: float) -> None:
        """The device is not there."""
        self.under_way = None
        self.table.fail(self, Failure.TIMEOUT, now)

    def renew(self, now: float) -> bytes | None:
        """A request is repeated as it is."""
        return None


class RequestsUnderWay(Generic[A]):
    """What one endpoint was asked and has not answered, by token, and the message IDs of the last
    separate responses that it gave."""

    __slots__ = ("answered", "by_token")

    def __init__(self) -> None:
        self.by_token: dict[bytes, _Request[A]] = {}
        self.answered: tuple[int, ...] = ()


class DeviceRequests(Generic[A]):
    """Asks devices, at most `per_device` requests of one endpoint at once (NSTART).

    A separate response may take `response_timeout` seconds after the ACK.
    """

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        transmissions: Transmissions[A],
        downlinks: Downlinks,
        rng: Random,
        *,
        max_body: int,
        block_size: int,
        per_device: int,
        response_timeout: float,
    ) -> None:
        self._transmit = transmit
        self._transmissions = transmissions
        self._downlinks = downlinks
        self._tokens = rng.randrange(TOKENS)
        self._max_body = max_body
        self._block_size = block_size
        self._per_device = per_device
        self._response_timeout = response_timeout
        self._awaited: OrderedDict[_Request[A], float] = OrderedDict()  # the first due first
        self._count = 0
        self.due_at = inf
        """When `handle_timer` may have something to do."""
        self.answered = 0
        self.failures: dict[str, int] = {}
        """Requests that ended without a response, by Failure."""

    def __len__(self) -> int:
        """Requests under way."""
        return self._count

    def send(
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
        """Ask a device; see MessageLayer.request."""
        request = _Request(self, endpoint, code, path, query, content_format, payload, ticket)
        requests = endpoint.requests
        if requests is None:
            requests = endpoint.requests = RequestsUnderWay()
        if len(requests.by_token) >= self._per_device:
            self._report(request, Failure.BUSY, now)
            return
        most = self._room(request)
        longest = max((len(value) for _, value in self._options(request)), default=0)
        if len(payload) > self._max_body or most < MIN_BLOCK_SIZE or longest > _MAX_OPTION_LENGTH:
            self._report(request, Failure.TOO_LARGE, now)
            return
        self._count += 1
        if len(payload) > most:
            request.sent = Block(0, True, exponent_for(most))
        self._send_block(request, now)

    def find(self, endpoint: Endpoint[A], message_id: int) -> Transmission[A] | None:
        """The request under way that has this message ID."""
        transmission = (endpoint.outgoing or {}).get(message_id)
        if transmission is None or not isinstance(transmission.owner, _Request):
            return None
        return transmission

    def take_response(
        self,
        endpoint: Endpoint[A],
        octets: bytes,
        start: int,
        code: int,
        token: bytes,
        now: float,
        *,
        acknowledged: Transmission[A] | None = None,
        acknowledge: int | None = None,
    ) -> bool:
        """Take a response: piggybacked on the ACK of `acknowledged`, or separate; `acknowledge` is
        the message ID of a CON. False: nobody asked, and nothing was sent.

        The endpoint was asked something before.
        """
        requests = endpoint.requests
        assert requests is not None
        request = requests.by_token.get(token)
        if acknowledged is not None:
            owner = acknowledged.owner
            if owner is not request and isinstance(owner, _Request):
                owner.under_way = None
                self.fail(owner, Failure.UNACCEPTABLE, now)  # of another token: section 5.3.2
                return True
        if request is None:
            if acknowledge is None or acknowledge not in requests.answered:
                return False
            self._transmit(endpoint.association, empty_ack(acknowledge), now)
            return True
        if request.under_way is not None:
            self._transmissions.drop(request.under_way)  # its ACK was lost
            request.under_way = None
        try:
            if code >> 5 not in _RESPONSES:
                raise MessageFormatError("not a response")
            encoded, payload = split_options(octets, start)
            blocks = _understood(parse_options(encoded))
            block1 = parse_block(_number(blocks.get(BLOCK1)))
            block2 = parse_block(_number(blocks.get(BLOCK2)))
        except (MessageFormatError, RequestRefused):
            if acknowledge is not None:
                self._transmit(endpoint.association, reset(acknowledge), now)
            self.fail(request, Failure.UNACCEPTABLE, now)
            return True
        if acknowledge is not None:
            requests.answered = (*requests.answered, acknowledge)[-REMEMBERED:]
            self._transmit(endpoint.association, empty_ack(acknowledge), now)
        self._forget(request)
        self._go_on(request, code, blocks, block1, block2, payload, now)
        return True

    def await_response(self, request: _Request[A], now: float) -> None:
        """The request is there; its response comes separately."""
        due = self._awaited[request] = now + self._response_timeout
        self.due_at = min(self.due_at, due)

    def fail(self, request: _Request[A], failure: Failure, now: float) -> None:
        """End a request without a response."""
        if request.under_way is not None:
            self._transmissions.drop(request.under_way)
            request.under_way = None
        self._forget(request)
        self._count -= 1
        self._report(request, failure, now)

    def close(self, endpoint: Endpoint[A], now: float) -> None:
        """The endpoint is no more: all that it was asked fails."""
        if endpoint.requests is not None:
            for request in tuple(endpoint.requests.by_token.values()):
                self.fail(request, Failure.CLOSED, now)

    def handle_timer(self, now: float) -> None:
        """Fail what was acknowledged and never answered."""
        self.due_at = inf
        while self._awaited:
            request, due = next(iter(self._awaited.items()))
            if due > now:
                self.due_at = due
                break
            self.fail(request, Failure.SILENT, now)

    def _go_on(
        self,
        request: _Request[A],
        code: int,
        blocks: dict[int, bytes],
        block1: Block | None,
        block2: Block | None,
        payload: bytes,
        now: float,
    ) -> None:
        """Send the next block, fetch the next one, or be done."""
        sent = request.sent
        if sent is not None and (
            code == Code.CONTINUE or self._must_be_smaller(sent, code, block1)
        ):
            assert block1 is not None or code == Code.CONTINUE
            exponent = sent.exponent if block1 is None else min(sent.exponent, block1.exponent)
            offset = 0 if code != Code.CONTINUE else sent.offset + sent.size
            size = MIN_BLOCK_SIZE << exponent
            if offset >= len(request.body):
                self._end(request, Failure.UNACCEPTABLE, now)  # 2.31 to the last block
                return
            more = offset + size < len(request.body)
            request.sent = Block(offset // size, more, exponent)
            self._send_block(request, now)
            return
        request.sent = None
        request.body = b""
        if block2 is None:
            if request.response:
                self._end(request, Failure.UNACCEPTABLE, now)
            else:
                self._answer(request, code, blocks, payload, now)
            return
        etag = blocks.get(ETAG)
        if block2.number and etag != request.etag:
            self._end(request, Failure.UNACCEPTABLE, now)  # of another state of the resource
            return
        if block2.offset != len(request.response) or (block2.more and len(payload) != block2.size):
            self._end(request, Failure.UNACCEPTABLE, now)
            return
        request.etag = etag
        request.response += payload
        if len(request.response) > self._max_body:
            self._end(request, Failure.TOO_LARGE, now)
        elif block2.more:
            self._send(request, Block(block2.number + 1, False, block2.exponent), now)
        else:
            self._answer(request, code, blocks, bytes(request.response), now)

    @staticmethod
    def _must_be_smaller(sent: Block, code: int, block1: Block | None) -> bool:
        """Whether the device takes the body in smaller blocks only (RFC 7959 section 2.9.3)."""
        return (
            code == Code.REQUEST_ENTITY_TOO_LARGE
            and block1 is not None
            and sent.number == 0
            and block1.exponent < sent.exponent
        )

    def _send_block(self, request: _Request[A], now: float) -> None:
        self._send(request, None, now)

    def _send(self, request: _Request[A], wanted: Block | None, now: float) -> None:
        """Send the block of the body that is due, or ask for the one `wanted` of the response."""
        endpoint, sent = request.endpoint, request.sent
        requests = endpoint.requests
        assert requests is not None
        self._tokens += 1
        token = request.token = (self._tokens % TOKENS).to_bytes(TOKEN_LENGTH, "big")
        requests.by_token[token] = request
        options = self._options(request)
        payload = b"" if wanted is not None else request.body
        if wanted is not None:
            options.append((BLOCK2, wanted.encode()))
        if sent is not None:
            payload = request.body[sent.offset : sent.offset + sent.size]
            options.append((BLOCK1, sent.encode()))
            if sent.number == 0:
                options.append((SIZE1, encode_uint(len(request.body))))
        octets = HEADER.pack(VERSION | CON | len(token), request.code, endpoint.take_message_id())
        octets += token + encode_options(options)
        if payload:
            octets += b"\xff" + payload
        request.under_way = self._transmissions.send(endpoint, octets, 0, None, now, request)

    @staticmethod
    def _options(request: _Request[A]) -> list[tuple[int, bytes]]:
        options = [(URI_PATH, segment.encode()) for segment in request.path.split("/") if segment]
        if request.content_format is not None:
            options.append((CONTENT_FORMAT, encode_uint(request.content_format)))
        arguments = [unquote_to_bytes(part) for part in request.query.split("&") if part]
        return [*options, *((URI_QUERY, argument) for argument in arguments)]

    def _room(self, request: _Request[A]) -> int:
        """Octets of the body that fit one message."""
        options = [*self._options(request), (BLOCK1, b"xxx"), (SIZE1, b"xxxx")]
        used = HEADER.size + TOKEN_LENGTH + len(encode_options(options)) + 1
        return min(self._block_size, request.endpoint.association.max_plaintext - used)

    def _answer(
        self, request: _Request[A], code: int, options: dict[int, bytes], body: bytes, now: float
    ) -> None:
        self._count -= 1
        self.answered += 1
        content_format = _number(options.get(CONTENT_FORMAT))
        self._downlinks.answered(request.ticket, code, content_format, body, now)

    def _end(self, request: _Request[A], failure: Failure, now: float) -> None:
        """End a request of which nothing is under way."""
        self._count -= 1
        self._report(request, failure, now)

    def _report(self, request: _Request[A], failure: Failure, now: float) -> None:
        self.failures[failure] = self.failures.get(failure, 0) + 1
        self._downlinks.failed(request.ticket, failure, now)

    def _forget(self, request: _Request[A]) -> None:
        self._awaited.pop(request, None)
        assert request.endpoint.requests is not None
        request.endpoint.requests.by_token.pop(request.token, None)


def _understood(options: list[tuple[int, bytes]]) -> dict[int, bytes]:
    """The options that mean something; raises MessageFormatError for one that had to."""
    understood: dict[int, bytes] = {}
    for number, value in options:
        shortest, longest = _KNOWN.get(number, (1, 0))
        if shortest <= len(value) <= longest and number not in understood:
            understood[number] = value
        elif number & 1:
            raise MessageFormatError("critical option that is not understood")
    return understood


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value, "big")
