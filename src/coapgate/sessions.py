"""Which devices are attached now, and through which associations."""

from __future__ import annotations

from collections.abc import Callable

from coapgate.model import DeviceId, Identity, Tenant


class Sessions:
    """Association ids by device, oldest first, at most `associations_per_device` each."""

    def __init__(self, associations_per_device: int) -> None:
        self.limit = associations_per_device
        self._attached: dict[tuple[Tenant, DeviceId], tuple[bytes, ...]] = {}

    def __len__(self) -> int:
        """Devices attached."""
        return len(self._attached)

    def open(
        self, identity: Identity, association_id: bytes, is_open: Callable[[bytes], bool]
    ) -> tuple[bytes, ...]:
        """Attach a device through one more association; returns those that must close: the newest
        win. Call `close` for each of them.

        `is_open` tells of an association whether it is there still: one that has just ended must
        not count, even if `close` was not called yet.
        """
        key = (identity.tenant, identity.device)
        attached = (*filter(is_open, self._attached.get(key, ())), association_id)
        self._attached[key] = attached
        return attached[: -self.limit]

    def close(self, identity: Identity, association_id: bytes) -> bool:
        """An association of a device is gone; whether the device was attached and no longer is."""
        key = (identity.tenant, identity.device)
        attached = self._attached.get(key, ())
        left = tuple(other for other in attached if other != association_id)
        if left:
            self._attached[key] = left
        else:
            self._attached.pop(key, None)
        return bool(attached) and not left

    def find(self, tenant: Tenant, device: DeviceId) -> tuple[bytes, ...]:
        """The associations of a device, oldest first; empty if it is not attached."""
        return self._attached.get((tenant, device), ())
