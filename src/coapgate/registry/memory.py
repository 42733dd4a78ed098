"""A registry in memory, for tests and for trying things out: nothing outlives it."""

from __future__ import annotations

import hmac
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    Device,
    DeviceId,
    PskCredential,
    Tenant,
    TrustAnchor,
)
from coapgate.registry import psk, refusals
from coapgate.registry.base import BadLine, CertificateEntry, DeviceEntry, NewDevice, PskEntry

_Name = tuple[Tenant, DeviceId]


@dataclass(slots=True)
class _Record:
    device: Device
    added_at: float
    psks: list[tuple[PskCredential, float]] = field(default_factory=list)


class MemoryRegistry:
    """Mutable: the books below, changed only by the administration and by `provision`."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._records: dict[_Name, _Record] = {}
        self._identities: dict[bytes, _Name] = {}
        self._anchors: dict[str, TrustAnchor] = {}
        self._pairs: dict[tuple[bytes, str], _Name] = {}
        self._numbers = itertools.count(1)

    # What a gateway asks.

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        name = self._identities.get(identity)
        if name is None:
            return ()
        record = self._records[name]
        return tuple(
            replace(credential, device_enabled=record.device.enabled)
            for credential, _ in record.psks
            if credential.identity == identity
        )

    async def find_psk_number(self, number: int) -> PskCredential | None:
        for record in self._records.values():
            for credential, _ in record.psks:
                if credential.number == number:
                    enabled = record.device.enabled
                    return replace(credential, secret=b"", device_enabled=enabled)
        return None

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        record = self._records.get((tenant, device))
        return record.device if record else None

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        name = self._pairs.get((key_id, value))
        return self._records[name].device if name else None

    async def find_anchored_device(
        self, key_id: bytes, tenant: Tenant, device: DeviceId
    ) -> Device | None:
        for (below, _), name in self._pairs.items():
            if below == key_id and name == (tenant, device):
                return self._records[name].device
        return None

    async def provision(self, anchor: TrustAnchor, device: DeviceId, value: str) -> Device:
        found = await self.find_certificate_device(anchor.key_id, value)
        if found is not None:
            return found
        created = Device(anchor.tenant, device)
        self.add_device(created)
        self._pairs[anchor.key_id, value] = (anchor.tenant, device)
        return created

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        return tuple(anchor for anchor in self.anchors_all() if anchor.state == "active")

    def max_keys_per_identity(self) -> int:
        counts: dict[bytes, int] = {}
        for record in self._records.values():
            for credential, _ in record.psks:
                counts[credential.identity] = counts.get(credential.identity, 0) + 1
        return max(counts.values(), default=1)

    # What the command line does.

    def add_device(self, device: Device) -> None:
        refusals.check_device(device)
        name = (device.tenant, device.device)
        if name in self._records:
            raise refusals.device_exists(*name)
        self._records[name] = _Record(device, self._wall())

    def remove_device(self, tenant: Tenant, device: DeviceId) -> None:
        self._get(tenant, device)
        name = (tenant, device)
        del self._records[name]
        self._identities = {k: v for k, v in self._identities.items() if v != name}
        self._pairs = {k: v for k, v in self._pairs.items() if v != name}

    def enable_device(self, tenant: Tenant, device: DeviceId, *, enabled: bool) -> None:
        record = self._get(tenant, device)
        record.device = replace(record.device, enabled=enabled)

    def get_device(self, tenant: Tenant, device: DeviceId) -> DeviceEntry:
        record = self._get(tenant, device)
        certificates = sum(name == (tenant, device) for name in self._pairs.values())
        return DeviceEntry(record.device, record.added_at, len(record.psks), certificates)

    def devices(self, tenant: Tenant | None = None) -> Iterator[DeviceEntry]:
        for name in sorted(self._records):
            if tenant is None or tenant == name[0]:
                yield self.get_device(*name)

    def add_psk(
        self,
        tenant: Tenant,
        device: DeviceId,
        identity: bytes,
        secret: bytes,
        *,
        create_device: bool = False,
    ) -> PskEntry:
        refusals.check_device(Device(tenant, device))
        psk.check_identity(identity)
        psk.check_key(secret)
        name = (tenant, device)
        owner = self._identities.get(identity)
        if owner not in (None, name):
            raise refusals.identity_taken(identity, *owner)
        self._require(tenant, device, or_create=create_device)
        held = self._records[name].psks if name in self._records else []
        held = [entry for entry in held if entry[0].identity == identity]
        for credential, _ in held:
            if hmac.compare_digest(credential.secret, secret):
                raise refusals.key_exists(identity, credential.number)
        if len(held) >= MAX_KEYS_PER_IDENTITY:
            raise refusals.too_many_keys(identity, device)
        if name not in self._records:
            self.add_device(Device(tenant, device))
        credential = PskCredential(next(self._numbers), tenant, device, identity, secret)
        added_at = self._wall()
        self._records[name].psks.append((credential, added_at))
        self._identities[identity] = name
        return _entry(credential, added_at)

    def psks(
        self, tenant: Tenant | None = None, device: DeviceId | None = None
    ) -> Iterator[PskEntry]:
        entries = [
            _entry(*held)
            for name, record in self._records.items()
            for held in record.psks
            if tenant in (None, name[0]) and device in (None, name[1])
        ]
        return iter(sorted(entries, key=lambda entry: entry.number))

    def add_anchor(self, anchor: TrustAnchor) -> None:
        refusals.check_anchor(anchor)
        for other in self._anchors.values():
            if other.key_id == anchor.key_id:
                raise refusals.anchor_key_taken(other.name)
        if anchor.name in self._anchors:
            raise refusals.anchor_name_taken(anchor.name)
        self._anchors[anchor.name] = anchor

    def remove_anchor(self, name: str) -> TrustAnchor:
        if name not in self._anchors:
            raise refusals.anchor_not_found(name)
        return self._anchors.pop(name)

    def anchors_all(self) -> tuple[TrustAnchor, ...]:
        return tuple(self._anchors[name] for name in sorted(self._anchors))

    def trust(
        self,
        tenant: Tenant,
        device: DeviceId,
        anchor: str,
        value: str,
        *,
        create_device: bool = False,
    ) -> bool:
        refusals.check_device(Device(tenant, device))
        refusals.check_name(value, "certificate value")
        found = self._anchors.get(anchor)
        if found is None:
            raise refusals.anchor_not_found(anchor)
        if found.tenant != tenant:
            raise refusals.anchor_serves_another(found, tenant)
        owner = self._pairs.get((found.key_id, value))
        if owner is not None and owner != (tenant, device):
            raise refusals.value_taken(anchor, value, *owner)
        self._require(tenant, device, or_create=create_device)
        if (tenant, device) not in self._records:
            self.add_device(Device(tenant, device))
        self._pairs[found.key_id, value] = (tenant, device)
        return owner is None

    def certificates(self, tenant: Tenant, device: DeviceId) -> tuple[CertificateEntry, ...]:
        names = {anchor.key_id: anchor.name for anchor in self._anchors.values()}
        return tuple(
            CertificateEntry(key_id, names.get(key_id), value)
            for (key_id, value), name in sorted(self._pairs.items())
            if name == (tenant, device)
        )

    def import_devices(
        self,
        lines: Iterable[NewDevice | BadLine],
        progress: Callable[[int], None] | None = None,
    ) -> int:
        problems: list[BadLine] = []
        good: list[NewDevice] = []
        names: dict[_Name, int] = {}
        identities: dict[bytes, int] = {}
        for line in lines:
            if isinstance(line, BadLine):
                problems.append(line)
                continue
            good.append(line)
            name = (line.tenant, line.device)
            if name in self._records:
                problems.append(refusals.device_exists_on(line.line, *name))
            elif (first := names.setdefault(name, line.line)) != line.line:
                problems.append(refusals.device_on_earlier_line(line.line, *name, first))
            if line.identity in self._identities:
                owner = self._identities[line.identity]
                problems.append(refusals.identity_taken_on(line.line, line.identity, *owner))
            elif (first := identities.setdefault(line.identity, line.line)) != line.line:
                problems.append(refusals.identity_on_earlier_line(line.line, line.identity, first))
        if problems:
            raise refusals.import_refused(problems)
        for line in good:
            self.add_device(Device(line.tenant, line.device))
            self.add_psk(line.tenant, line.device, line.identity, line.secret)
        if progress is not None:
            progress(len(good))
        return len(good)

    def _require(self, tenant: Tenant, device: DeviceId, *, or_create: bool) -> None:
        """Raises NotFound unless the device is there, or may be created."""
        elsewhere = self._tenants_of(device)
        if (tenant, device) not in self._records and (elsewhere or not or_create):
            raise refusals.device_not_found(tenant, device, elsewhere)

    def _get(self, tenant: Tenant, device: DeviceId) -> _Record:
        record = self._records.get((tenant, device))
        if record is None:
            raise refusals.device_not_found(tenant, device, self._tenants_of(device))
        return record

    def _tenants_of(self, device: DeviceId) -> list[str]:
        return sorted(tenant for tenant, name in self._records if name == device)


def _entry(credential: PskCredential, added_at: float) -> PskEntry:
    return PskEntry(
        credential.number,
        credential.tenant,
        credential.device,
        credential.identity,
        credential.state,
        added_at,
        credential.not_before,
        credential.not_after,
    )
