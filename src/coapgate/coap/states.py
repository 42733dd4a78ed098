"""The state of paths as devices read and observe it: RFC 7252 section 5.8.1, RFC 7641, RFC 7959."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, NamedTuple, Protocol

from coapgate.coap.blocks import Block, cut
from coapgate.coap.counts import Counts
from coapgate.coap.downloads import Downloads
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.exchanges import Exchanges
from coapgate.coap.header import CON, HEADER, NON, VERSION
from coapgate.coap.observe import DEREGISTER, REGISTER, Journal, Observation, Observations
from coapgate.coap.options import (
    BLOCK2,
    CONTENT_FORMAT,
    ETAG,
    OBSERVE,
    SIZE2,
    Extensions,
    Request,
    encode_options,
    encode_uint,
    parse_options,
)
from coapgate.coap.responses import Responses
from coapgate.coap.transmissions import Transmissions
from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, Identity, KeptObservation, Tenant
from coapgate.mqtt import topics

ROOM_FOR_OPTIONS = 36
"""Octets that ETag, Observe, Content-Format, Block2, Size2 and Time take, and the marker."""

_LONGER = len("down/") - len("up/")
"""Octets by which the topic of a state is longer than that of an uplink with the same path."""
_NO_EXTENSIONS = Extensions()


class Contents(Protocol):
    """Where the state of paths comes from.

    A path is decoded, its segments joined by `/`, and of the kind `topics.uplink_path` lets pass.
    """

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        """Look up what a device may read at one of its paths.

        `MessageLayer.respond_content(ticket, ...)` or `MessageLayer.refuse(ticket, ...)` follows
        exactly once, perhaps at once. Raises RequestRefused to refuse at once (4.03, 5.03).
        """

    def check_observable(self, identity: Identity, path: str) -> None:
        """Raise RequestRefused (4.03) if the device may not observe that path; `find` follows."""

    def observed(self, identity: Identity, path: str) -> None:
        """A path of this device has its first observer: `MessageLayer.notify` from now on.

        Called before `find` of the registration itself. Raises RequestRefused (5.03) if that cannot
        be; `unobserved` follows.
        """

    def unobserved(self, identity: Identity, path: str) -> None:
        """The last observer of a path of this device is gone."""


class NoContents:
    """A gateway without states: every path is 4.04."""

    def find(self, identity: Identity, path: str, ticket: int, now: float) -> None:
        raise RequestRefused(Code.NOT_FOUND, "no such resource")

    def check_observable(self, identity: Identity, path: str) -> None:
        raise RequestRefused(Code.NOT_FOUND, "no such resource")

    def observed(self, identity: Identity, path: str) -> None:
        """Nothing is, ever."""

    def unobserved(self, identity: Identity, path: str) -> None:
        """Nothing was."""


class _Read(NamedTuple):
    """A GET that waits for what is at its path."""

    path: str
    accept: int | None
    extensions: Extensions


class States(Generic[A]):
    """Answers GET with the state of a path, registers observations, and notifies.

    Blocks have `block_size` octets at most, fewer where a record has no room for them.
    """

    def __init__(
        self,
        transmit: Callable[[A, bytes, float], None],
        contents: Contents,
        exchanges: Exchanges[A],
        responses: Responses[A],
        transmissions: Transmissions[A],
        downloads: Downloads,
        counts: Counts,
        *,
        block_size: int,
        observations_per_device: int,
        confirm_every: int,
        epoch: float,
        journal: Journal,
    ) -> None:
        self._transmit = transmit
        self._contents = contents
        self._exchanges = exchanges
        self._responses = responses
        self._downloads = downloads
        self._counts = counts
        self._block_size = block_size
        self._reads: dict[int, tuple[_Read, Observation[A] | None]] = {}
        self.observations = Observations(
            transmissions,
            encode=self._encode_confirmable,
            send_unconfirmed=self._send_unconfirmed,
            unobserved=contents.unobserved,
            per_device=observations_per_device,
            confirm_every=confirm_every,
            epoch=epoch,
            journal=journal,
        )
        self.notify = self.observations.notify

    def __len__(self) -> int:
        """GETs that wait for what is at their path."""
        return len(self._reads)

    def continues(self, endpoint: Endpoint[A], request: Request, block: Block) -> bool:
        """Whether a device reads on in a large state where it was."""
        if block.number == 0 or not len(self._downloads):
            return False
        path = b"/".join(request.path).decode(errors="replace")
        return self._downloads.continues(_key(endpoint, path), block.offset)

    def read(self, endpoint: Endpoint[A], ticket: int, request: Request, now: float) -> None:
        """Answer a GET, now or when the state is known.

        Raises RequestRefused: 4.00 for a path that no topic may carry, and what `Contents` raises.
        """
        assert endpoint.source is not None
        path = topics.uplink_path(request.path, endpoint.source.room - _LONGER)
        extensions = request.extensions or _NO_EXTENSIONS
        read = _Read(path, request.accept, extensions)
        block = extensions.block2
        observation = None
        if block is not None and block.number:
            content = self._downloads.find(_key(endpoint, path))
            if content is not None:
                self._answer(endpoint, ticket, read, None, content, now)
                return
        elif extensions.observe == REGISTER:
            observation = self._register(endpoint, request, path, block, now)
        elif extensions.observe == DEREGISTER:
            self._cancel(endpoint, request.token)
        self._reads[ticket] = read, observation
        try:
            self._contents.find(endpoint.identity, path, ticket, now)
        except RequestRefused:
            self._forget(ticket)
            raise

    def respond(self, ticket: int, content: Content | None, now: float) -> None:
        """Answer a GET that waits; None: there is no state at its path (4.04)."""
        found = self._reads.pop(ticket, None)
        if found is None:
            return
        read, observation = found
        endpoint = self._exchanges.find(ticket)
        if endpoint is None:
            self._end(observation)
            return
        if observation is not None and not self.observations.holds(observation):
            observation = None  # ended, or registered anew, before this answer was known
        if observation is not None and observation.waiting is not None:
            content, observation.waiting = observation.waiting.content, None
        try:
            self._answer(endpoint, ticket, read, observation, content, now)
        except RequestRefused as refusal:
            self._end(observation)
            self._responses.refuse(ticket, refusal, now)

    def refuse(self, ticket: int, refusal: RequestRefused, now: float) -> None:
        """There is no answer to a GET that waits but an error."""
        self._forget(ticket)
        self._responses.refuse(ticket, refusal, now)

    def respond_with(self, ticket: int, options: bytes, payload: bytes, now: float) -> None:
        """Answer a GET with content that is no state, in blocks if asked or where it is too large.

        What is made anew for each block has to be the same each time; the ETag tells.
        """
        endpoint = self._exchanges.find(ticket)
        if endpoint is None:
            return
        additions = self._exchanges.additions.get(ticket)
        wanted = None if additions is None else additions.wanted
        try:
            part, block = cut(payload, wanted, room_for_block(endpoint, self._block_size))
        except RequestRefused as refusal:
            self._responses.refuse(ticket, refusal, now)
            return
        if block is not None:
            added = [(ETAG, Content.of(payload, None).etag), (BLOCK2, block.encode())]
            options = encode_options(sorted([*parse_options(options), *added]))
        self._responses.respond(ticket, Code.CONTENT, options, part, now)

    def restore(self, endpoint: Endpoint[A], kept: Iterable[KeptObservation], now: float) -> None:
        """Go on with what the endpoint observed in an earlier process, as far as it still may."""
        identity = endpoint.identity
        for each in kept:
            try:
                self._contents.check_observable(identity, each.path)
                observation, is_first = self.observations.restore(endpoint, each, now)
                if observation is not None and is_first:
                    self._observe(observation)
            except RequestRefused:
                continue

    def forget(self, endpoint: Endpoint[A]) -> None:
        """End what an endpoint that is no more observes."""
        self.observations.close(endpoint)

    def _register(
        self, endpoint: Endpoint[A], request: Request, path: str, block: Block | None, now: float
    ) -> Observation[A] | None:
        """None: as many as it may; the device is answered as if it had not asked (RFC 7641 4.1)."""
        self._contents.check_observable(endpoint.identity, path)
        observation, is_first = self.observations.register(
            endpoint, request.token, path, block, request.accept, now
        )
        if observation is None:
            self._counts.unobserved += 1
        elif is_first:
            self._observe(observation)
        return observation

    def _observe(self, observation: Observation[A]) -> None:
        """Tell of the first observer of a path; what cannot be had is not observed."""
        try:
            self._contents.observed(observation.endpoint.identity, observation.path)
        except RequestRefused:
            self.observations.remove(observation)
            raise

    def _cancel(self, endpoint: Endpoint[A], token: bytes) -> None:
        observation = self.observations.find(endpoint, token)
        if observation is not None:
            self.observations.remove(observation)

    def _forget(self, ticket: int) -> None:
        found = self._reads.pop(ticket, None)
        if found is not None:
            self._end(found[1])

    def _end(self, observation: Observation[A] | None) -> None:
        if observation is not None:
            self.observations.remove(observation)

    def _answer(
        self,
        endpoint: Endpoint[A],
        ticket: int,
        read: _Read,
        observation: Observation[A] | None,
        content: Content | None,
        now: float,
    ) -> None:
        """Raises RequestRefused: 4.04, 4.06, 4.00 for a block that there is not, 5.03."""
        if content is None:
            raise RequestRefused(Code.NOT_FOUND, "no state")
        if read.accept is not None and read.accept != content.content_format:
            raise RequestRefused(Code.NOT_ACCEPTABLE, "not in this format")
        order = None
        if observation is not None:
            self.observations.establish(observation, content.etag)
            order = self.observations.next_order(observation, now)
        block = read.extensions.block2
        if content.etag in read.extensions.etags and not (block is not None and block.number):
            options = _options(content, order, None, is_valid=True)
            self._responses.respond(ticket, Code.VALID, options, b"", now)
            return
        options, payload = self._cut(endpoint, read.path, content, block, order, now)
        self._responses.respond(ticket, Code.CONTENT, options, payload, now)

    def _cut(
        self,
        endpoint: Endpoint[A],
        path: str,
        content: Content,
        wanted: Block | None,
        order: int | None,
        now: float,
    ) -> tuple[bytes, bytes]:
        """Options and payload of the block that was asked for; what follows it is kept."""
        payload, block = cut(content.payload, wanted, room_for_block(endpoint, self._block_size))
        if block is not None and (block.more or block.number):
            key = _key(endpoint, path)
            next_at = block.offset + len(payload)
            is_kept = self._downloads.find(key) is content
            if not block.more:
                if is_kept:
                    self._downloads.drop(key)  # read to its end
            elif is_kept:
                self._downloads.advance(key, next_at, now)
            else:
                self._downloads.keep(key, content, next_at, now)
        return _options(content, order, block), payload

    def _encode_confirmable(
        self, observation: Observation[A], content: Content | None, now: float
    ) -> bytes:
        return self._encode(observation, content, CON, now)

    def _send_unconfirmed(
        self, observation: Observation[A], content: Content | None, now: float
    ) -> int:
        octets = self._encode(observation, content, NON, now)
        self._transmit(observation.endpoint.association, octets, now)
        return int.from_bytes(octets[2:4], "big")

    def _encode(
        self, observation: Observation[A], content: Content | None, kind: int, now: float
    ) -> bytes:
        """A notification, or the error that ends the observation (RFC 7641 section 4.2)."""
        endpoint, token = observation.endpoint, observation.token
        code, body = Code.CONTENT, b""
        if content is None:
            code = Code.NOT_FOUND
        elif observation.is_ended_by(content):
            code = Code.NOT_ACCEPTABLE
        else:
            order = self.observations.next_order(observation, now)
            try:
                options, payload = self._cut(
                    endpoint, observation.path, content, observation.wanted, order, now
                )
            except RequestRefused:
                # No room to keep the rest: the device asks for it, and is told so or served.
                payload, block = cut(
                    content.payload,
                    observation.wanted,
                    room_for_block(endpoint, self._block_size),
                )
                options = _options(content, order, block)
            body = options + b"\xff" + payload if payload else options
        head = HEADER.pack(VERSION | kind | len(token), code, endpoint.take_message_id())
        return head + token + body


def room_for_block(endpoint: Endpoint[A], block_size: int) -> int:
    """Octets of a block that fit one record with all options beside it."""
    room = endpoint.association.max_plaintext - HEADER.size - 8 - ROOM_FOR_OPTIONS
    return min(block_size, room)


def _options(
    content: Content, order: int | None, block: Block | None, *, is_valid: bool = False
) -> bytes:
    options = [(ETAG, content.etag)]
    if order is not None:
        options.append((OBSERVE, encode_uint(order)))
    if content.content_format is not None and not is_valid:
        options.append((CONTENT_FORMAT, encode_uint(content.content_format)))
    if block is not None:
        options.append((BLOCK2, block.encode()))
        if block.number == 0:
            options.append((SIZE2, encode_uint(len(content.payload))))
    return encode_options(options)


def _key(endpoint: Endpoint[A], path: str) -> tuple[Tenant, DeviceId, str]:
    identity = endpoint.identity
    return identity.tenant, identity.device, path
