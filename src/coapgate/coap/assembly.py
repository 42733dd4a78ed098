"""Bodies that devices send block by block, put together: RFC 7959 section 2.5.

Blocks come in order, each begins where the last one ended. A gap is 4.08, as is a block of a body
that nobody has begun or that was given up; the device begins anew. What is kept grows with what has
come, never with what was announced.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf
from typing import Generic

from coapgate.coap.blocks import Block
from coapgate.coap.endpoint import A, Endpoint
from coapgate.coap.options import Request
from coapgate.errors import RequestRefused
from coapgate.model import Code, DeviceId, Tenant

RETRY_AFTER = 30
"""Seconds after which a device may begin a body when too many are under way."""

_Key = tuple[int, int, tuple[bytes, ...], tuple[bytes, ...], int | None, tuple[bytes, ...]]
_Device = tuple[Tenant, DeviceId]


class _Transfer:
    """A body under way; `last_at` is where its last block began."""

    __slots__ = ("body", "device", "last_at", "touched_at")

    def __init__(self, device: _Device, now: float) -> None:
        self.body = bytearray()
        self.device = device
        self.last_at = 0
        self.touched_at = now


class Assembly(Generic[A]):
    """The bodies under way: at most `transfers` of `max_body` octets, `per_device` of one device.

    A device that begins one more gives up its own oldest. One without a block for `timeout` seconds
    is given up too.
    """

    def __init__(self, *, max_body: int, transfers: int, per_device: int, timeout: float) -> None:
        self._max_body = max_body
        self._most = transfers
        self._per_device = per_device
        self._timeout = timeout
        self._transfers: OrderedDict[_Key, _Transfer] = OrderedDict()  # the longest untouched first
        self._devices: dict[_Device, tuple[_Key, ...]] = {}
        self.due_at = inf
        """When `handle_timer` may have something to do."""
        self.octets = 0
        """Octets kept."""
        self.completed = 0
        self.abandoned = 0
        """Bodies that were given up, for whatever reason."""

    def __len__(self) -> int:
        """Bodies under way."""
        return len(self._transfers)

    def continues(self, endpoint: Endpoint[A], request: Request, block: Block) -> bool:
        """Whether this block is the next of a body under way."""
        transfer = self._transfers.get(_key(endpoint, request))
        return transfer is not None and 0 < block.offset == len(transfer.body)

    def take(
        self, endpoint: Endpoint[A], request: Request, block: Block, now: float
    ) -> bytes | None:
        """The whole body with its last block, None before.

        Raises RequestRefused: 4.00 for a block of a wrong length, 4.08 for a gap, 4.13 for a body
        above `max_body`, 5.03 for one too many.
        """
        payload = request.payload
        key = _key(endpoint, request)
        transfer = self._transfers.get(key)
        if len(payload) > block.size or (block.more and len(payload) < block.size):
            self._give_up(key)
            raise RequestRefused(Code.BAD_REQUEST, "block of a wrong length")
        if block.number == 0:
            self._give_up(key)
            if not block.more:
                return payload
            transfer = self._begin(endpoint, request, key, now)
        elif transfer is None:
            raise RequestRefused(Code.REQUEST_ENTITY_INCOMPLETE, "begin with block 0")
        end = len(transfer.body)
        if block.offset == transfer.last_at and transfer.body[block.offset :] == payload and end:
            pass  # sent again: its answer was lost
        elif block.offset != end:
            self._give_up(key)
            raise RequestRefused(Code.REQUEST_ENTITY_INCOMPLETE, "a block is missing")
        elif end + len(payload) > self._max_body:
            self._give_up(key)
            raise self._too_large()
        else:
            transfer.body += payload
            transfer.last_at = end
            self.octets += len(payload)
        if block.more:
            transfer.touched_at = now
            self._transfers.move_to_end(key)
            return None
        self._drop(key)
        self.completed += 1
        return bytes(transfer.body)

    def close(self, endpoint: Endpoint[A]) -> None:
        """Give up the bodies of an endpoint that is no more."""
        device = endpoint.identity.tenant, endpoint.identity.device
        for key in self._devices.get(device, ()):
            if key[0] == endpoint.number:
                self._give_up(key)

    def handle_timer(self, now: float) -> None:
        """Give up what nobody goes on with."""
        self.due_at = inf
        while self._transfers:
            key, transfer = next(iter(self._transfers.items()))
            if transfer.touched_at + self._timeout > now:
                self.due_at = transfer.touched_at + self._timeout
                break
            self._give_up(key)

    def _begin(self, endpoint: Endpoint[A], request: Request, key: _Key, now: float) -> _Transfer:
        extensions = request.extensions
        announced = None if extensions is None else extensions.size1
        if announced is not None and announced > self._max_body:
            raise self._too_large()
        device = endpoint.identity.tenant, endpoint.identity.device
        own = self._devices.get(device, ())
        if len(own) >= self._per_device:
            self._give_up(own[0])
        elif len(self._transfers) >= self._most:
            diagnostic = "too many bodies are under way"
            raise RequestRefused(Code.SERVICE_UNAVAILABLE, diagnostic, max_age=RETRY_AFTER)
        if not self._transfers:
            self.due_at = now + self._timeout
        transfer = self._transfers[key] = _Transfer(device, now)
        self._devices[device] = (*self._devices.get(device, ()), key)
        return transfer

    def _too_large(self) -> RequestRefused:
        return RequestRefused(Code.REQUEST_ENTITY_TOO_LARGE, "body too large", size1=self._max_body)

    def _give_up(self, key: _Key) -> None:
        if key in self._transfers:
            self._drop(key)
            self.abandoned += 1

    def _drop(self, key: _Key) -> None:
        transfer = self._transfers.pop(key)
        self.octets -= len(transfer.body)
        left = tuple(other for other in self._devices[transfer.device] if other != key)
        if left:
            self._devices[transfer.device] = left
        else:
            del self._devices[transfer.device]


def _key(endpoint: Endpoint[A], request: Request) -> _Key:
    """Blocks with the same key are of one body (RFC 7959 section 2.5, RFC 9175 section 3)."""
    tags = () if request.extensions is None else request.extensions.tags
    return (
        endpoint.number,
        request.method,
        request.path,
        request.query,
        request.content_format,
        tags,
    )
