"""Large states while devices read them block by block: RFC 7959 section 2.4.

What a device began to read it reads to its end, whatever becomes of the state meanwhile; the ETag
tells. Nobody is asked for the state again for each of its blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from math import inf

from coapgate.errors import RequestRefused
from coapgate.model import Code, Content, DeviceId, Tenant

RETRY_AFTER = 30
"""Seconds after which a device may read a large state when too many are being read."""
IDLE_TIME = 10.0
"""Seconds without a request after which a reader yields to another."""

Key = tuple[Tenant, DeviceId, str]


class _Download:
    """`next_at` is the octet that follows those that were read last."""

    __slots__ = ("content", "next_at", "touched_at")

    def __init__(self, content: Content, next_at: int, now: float) -> None:
        self.content = content
        self.next_at = next_at
        self.touched_at = now


class Downloads:
    """States by device and path, of `memory` octets at most; the same `bytes` counts once.

    A device has `per_device` at most: one more drops its own oldest. One that is read to its end is
    dropped, as is one that nobody has read from for `timeout` seconds, earlier if there is need.
    """

    def __init__(self, *, memory: int, per_device: int, timeout: float) -> None:
        self._memory = memory
        self._per_device = per_device
        self._timeout = timeout
        self._downloads: OrderedDict[Key, _Download] = OrderedDict()  # the longest untouched first
        self._devices: dict[tuple[Tenant, DeviceId], tuple[Key, ...]] = {}
        self._holders: dict[int, int] = {}
        self.due_at = inf
        """When `handle_timer` may have something to do."""
        self.octets = 0
        """Octets kept."""

    def __len__(self) -> int:
        """States that are being read."""
        return len(self._downloads)

    def keep(self, key: Key, content: Content, next_at: int, now: float) -> None:
        """A state is read up to `next_at`, and the rest will follow.

        Raises RequestRefused (5.03) if there is no room.
        """
        self.drop(key)
        device = key[:2]
        own = self._devices.get(device, ())
        if len(own) >= self._per_device:
            self.drop(own[0])
        body = content.payload
        need = 0 if id(body) in self._holders else len(body)
        while self._downloads and self.octets + need > self._memory:
            oldest, download = next(iter(self._downloads.items()))
            if download.touched_at + IDLE_TIME > now:
                break
            self.drop(oldest)
            need = 0 if id(body) in self._holders else len(body)
        if self.octets + need > self._memory:
            diagnostic = "too many large states are being read"
            raise RequestRefused(Code.SERVICE_UNAVAILABLE, diagnostic, max_age=RETRY_AFTER)
        self._holders[id(body)] = self._holders.get(id(body), 0) + 1
        self.octets += need
        if not self._downloads:
            self.due_at = now + self._timeout
        self._downloads[key] = _Download(content, next_at, now)
        self._devices[device] = (*self._devices.get(device, ()), key)

    def find(self, key: Key) -> Content | None:
        """What a device is reading."""
        download = self._downloads.get(key)
        return None if download is None else download.content

    def continues(self, key: Key, offset: int) -> bool:
        """Whether the device goes on where it was."""
        download = self._downloads.get(key)
        return download is not None and download.next_at == offset

    def advance(self, key: Key, next_at: int, now: float) -> None:
        """The device has read up to `next_at`."""
        download = self._downloads[key]
        download.next_at = next_at
        download.touched_at = now
        self._downloads.move_to_end(key)

    def handle_timer(self, now: float) -> None:
        """Drop what nobody reads any more."""
        self.due_at = inf
        while self._downloads:
            key, download = next(iter(self._downloads.items()))
            if download.touched_at + self._timeout > now:
                self.due_at = download.touched_at + self._timeout
                break
            self.drop(key)

    def drop(self, key: Key) -> None:
        """Nobody reads that state any more."""
        download = self._downloads.pop(key, None)
        if download is None:
            return
        left = tuple(other for other in self._devices[key[:2]] if other != key)
        if left:
            self._devices[key[:2]] = left
        else:
            del self._devices[key[:2]]
        body = download.content.payload
        self._holders[id(body)] -= 1
        if not self._holders[id(body)]:
            del self._holders[id(body)]
            self.octets -= len(body)
