"""How many requests a second each device may make, however many associations it has."""

from __future__ import annotations

from collections import OrderedDict

from coapgate.model import DeviceId, Identity, Tenant

_Key = tuple[Tenant, DeviceId]

MAX_ABSENT = 4096
"""Devices without an active endpoint whose allowance is kept, so that coming back renews none."""
_ROUNDING = 1e-6
"""Seconds by which sums of intervals may be off."""


class Allowance:
    """Two token buckets: `full_at`, `blocks_full_at` are when, in seconds of `now`, nothing will be
    missing from that of requests, and that of blocks."""

    __slots__ = ("blocks_full_at", "full_at", "holders")

    def __init__(self) -> None:
        self.full_at = self.blocks_full_at = 0.0
        self.holders = 0


class DeviceRates:
    """One allowance a device: `burst` requests at once, then `rate` a second; and beside them so
    many blocks that go on with a body.

    Whoever joins must leave.
    """

    def __init__(
        self,
        rate: float,
        burst: int,
        max_absent: int = MAX_ABSENT,
        *,
        block_rate: float = 1000.0,
        block_burst: int = 10_000,
    ) -> None:
        self._block_interval = 1.0 / block_rate
        self._block_reach = block_burst * self._block_interval + _ROUNDING
        self._interval = 1.0 / rate
        self._reach = burst * self._interval + _ROUNDING
        self._max_absent = max_absent
        self._present: dict[_Key, Allowance] = {}
        self._absent: OrderedDict[_Key, Allowance] = OrderedDict()

    def __len__(self) -> int:
        """Devices remembered."""
        return len(self._present) + len(self._absent)

    def join(self, identity: Identity) -> Allowance:
        """The device's allowance, for one more endpoint of it."""
        key = (identity.tenant, identity.device)
        allowance = self._present.get(key)
        if allowance is None:
            allowance = self._absent.pop(key, None) or Allowance()
            self._present[key] = allowance
        allowance.holders += 1
        return allowance

    def leave(self, identity: Identity, allowance: Allowance) -> None:
        """One endpoint of the device is gone or idle."""
        allowance.holders -= 1
        if allowance.holders:
            return
        key = (identity.tenant, identity.device)
        del self._present[key]
        self._absent[key] = allowance
        if len(self._absent) > self._max_absent:
            self._absent.popitem(last=False)

    def take(self, allowance: Allowance, now: float) -> float:
        """Use one request of the allowance: 0.0, or the seconds until there is one to use."""
        full_at = allowance.full_at
        if full_at < now:
            full_at = now
        full_at += self._interval
        wait = full_at - now - self._reach
        if wait > 0.0:
            return wait
        allowance.full_at = full_at
        return 0.0

    def take_block(self, allowance: Allowance, now: float) -> bool:
        """Use one block of the allowance; False: there is none to use now."""
        full_at = max(allowance.blocks_full_at, now) + self._block_interval
        if full_at - now > self._block_reach:
            return False
        allowance.blocks_full_at = full_at
        return True
