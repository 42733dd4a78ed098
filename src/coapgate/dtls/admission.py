"""Who may have a handshake pending: bounds per address, in all, and on the cost of ECDHE."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Iterator

from coapgate.dtls.handshake import ServerHandshake
from coapgate.model import Path

MAX_ADDRESSES = 4096
"""Addresses whose ECDHE budget is remembered; the one not heard from for longest is forgotten."""

_IPV4_MAPPED = "::ffff:"
"""How an IPv6 socket shows IPv4 peers, with dots behind it."""


def address_of(path: Path) -> str:
    """What counts as one address: an IPv4 /32, or an IPv6 /64."""
    host = str(path[1][0])
    if ":" not in host:
        return host
    if host.startswith(_IPV4_MAPPED) and "." in host:
        return host[len(_IPV4_MAPPED) :]
    network = int(ipaddress.IPv6Address(host.partition("%")[0])) >> 64
    return f"{network:016x}"


class PendingHandshakes:
    """Handshakes by path, by number and by Connection ID, oldest first.

    At most `limit`, and `limit_per_address` from one address.
    """

    def __init__(self, limit: int, limit_per_address: int) -> None:
        self._limit = limit
        self._limit_per_address = limit_per_address
        self._by_path: dict[Path, ServerHandshake] = {}
        self._by_number: dict[int, ServerHandshake] = {}
        self._by_address: dict[str, dict[Path, ServerHandshake]] = {}
        self._by_cid: dict[bytes, ServerHandshake] = {}

    def __len__(self) -> int:
        return len(self._by_path)

    def __iter__(self) -> Iterator[ServerHandshake]:
        return iter(self._by_path.values())

    def at(self, path: Path) -> ServerHandshake | None:
        return self._by_path.get(path)

    def numbered(self, number: int) -> ServerHandshake | None:
        return self._by_number.get(number)

    def named(self, connection_id: bytes) -> ServerHandshake | None:
        """The handshake whose ServerHello said this Connection ID."""
        return self._by_cid.get(connection_id)

    def name(self, handshake: ServerHandshake) -> None:
        """Its ServerHello says a Connection ID, by which its Finished will come."""
        self._by_cid[handshake.connection_id] = handshake

    def add(self, handshake: ServerHandshake) -> None:
        """Let others yield first: `must_yield`."""
        self._by_path[handshake.path] = handshake
        self._by_number[handshake.number] = handshake
        self._by_address.setdefault(address_of(handshake.path), {})[handshake.path] = handshake

    def remove(self, handshake: ServerHandshake) -> None:
        del self._by_path[handshake.path]
        del self._by_number[handshake.number]
        self._by_cid.pop(handshake.connection_id, None)
        address = address_of(handshake.path)
        siblings = self._by_address[address]
        del siblings[handshake.path]
        if not siblings:
            del self._by_address[address]

    def must_yield(self, path: Path) -> tuple[ServerHandshake | None, bool]:
        """Which handshake yields so that `path` may begin one, and whether it may.

        The oldest that has not proven a key, first one of the same address: an address never
        keeps others out. Whoever waits for the decision on a proven key does not yield.
        """
        siblings = self._by_address.get(address_of(path), {})
        if len(siblings) >= self._limit_per_address:
            victim = _oldest_unproven(siblings)
            return victim, victim is not None
        if len(self._by_path) >= self._limit:
            victim = _oldest_unproven(siblings) or _oldest_unproven(self._by_path)
            return victim, victim is not None
        return None, True


def _oldest_unproven(handshakes: dict[Path, ServerHandshake]) -> ServerHandshake | None:
    return next((h for h in handshakes.values() if not h.has_proven), None)


class EcdheBudget:
    """A token bucket per address: an ECDHE hello costs 100 us, a PSK one next to nothing."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, path: Path, now: float) -> bool:
        """Spend a token of this path's address, if it has one."""
        address = address_of(path)
        tokens, at = self._buckets.pop(address, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        admitted = tokens >= 1
        self._buckets[address] = (tokens - 1 if admitted else tokens, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return admitted
