"""A registry in memory, for tests and for trying things out: nothing outlives it."""

from __future__ import annotations

import hmac
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from coapgate.errors import AlreadyExists
from coapgate.model import (
    MAX_KEYS_PER_IDENTITY,
    AnchorState,
    Batch,
    Device,
    DeviceId,
    PskCredential,
    PskState,
    Tenant,
    TrustAnchor,
)
from coapgate.registry import psk, refusals
from coapgate.registry.base import (
    MAX_CHANGES,
    MAX_REVOKED_CERTIFICATES,
    MAX_USES,
    USE_INTERVAL,
    BadLine,
    CertificateEntry,
    Change,
    DeviceEntry,
    NewDevice,
    PskEntry,
    RevokedCertificate,
)
from coapgate.registry.batches import MAX_ACTIVE_BATCHES, BatchBook, derive_key, may_overlap

_Name = tuple[Tenant, DeviceId]


@dataclass(slots=True)
class _Key:
    credential: PskCredential
    added_at: float
    is_tried: bool = True
    """Else it is kept for the record, and no handshake tries it."""
    follows: bytes | None = None


@dataclass(slots=True)
class _Record:
    device: Device
    added_at: float
    psks: list[_Key] = field(default_factory=list)


class MemoryRegistry:
    """Mutable: the books below, changed only by the administration and by `provision`."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._records: dict[_Name, _Record] = {}
        self._identities: dict[bytes, _Name] = {}
        self._anchors: dict[str, TrustAnchor] = {}
        self._pairs: dict[tuple[bytes, str], _Name] = {}
        self._numbers = itertools.count(1)
        self._batches: dict[str, tuple[Batch, bytes]] = {}
        self._removed: dict[bytes, str] = {}  # identities, and the names of their batches
        self._believed: tuple[TrustAnchor, ...] = ()
        self._disabled: frozenset[bytes] = frozenset()
        self._revoked: tuple[RevokedCertificate, ...] = ()
        self._uses: dict[tuple[bytes, str], float] = {}
        self._used_at: dict[tuple[bytes, str], float] = {}
        self._changes: deque[Change] = deque(maxlen=MAX_CHANGES)
        self._change_numbers = itertools.count(1)

    # What a gateway asks.

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        name = self._identities.get(identity)
        if name is None:
            return () if identity in self._removed else self._derived(identity)
        record = self._records[name]
        return tuple(
            self._as_it_is(key.credential, record)
            for key in record.psks
            if key.credential.identity == identity and key.is_tried
        )

    async def find_psk_number(self, number: int) -> PskCredential | None:
        for record, key in self._keys():
            if key.credential.number == number:
                found = self._as_it_is(key.credential, record).without_secret()
                return found if key.is_tried else replace(found, state=PskState.REVOKED)
        return None

    async def promote(self, number: int, grace_time: float) -> bool:
        for record, key in self._keys():
            credential = key.credential
            if credential.number == number and key.is_tried:
                if credential.state != PskState.BACKUP:
                    return False
                key.credential = replace(credential, state=PskState.ACTIVE)
                followed = key.follows or credential.identity
                self._retire(record, followed, number, self._wall() + grace_time)
                self._changed(record.device)
                return True
        return False

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]:
        assert credential.batch is not None, "only a key of a batch is derived"
        held = [
            (record, key)
            for record, key in self._keys()
            if key.credential.identity == credential.identity
        ]
        for record, key in held:
            if key.credential.batch == credential.batch:
                return self._as_it_is(key.credential, record).without_secret(), False
        if held:
            raise AlreadyExists("the identity has a key of its own by now")
        if credential.identity in self._removed:
            raise refusals.identity_removed(credential.identity)
        batch = next(batch for batch in self.batches() if batch.number == credential.batch)
        if batch.state != "active":
            raise refusals.batch_revoked(batch.name)
        if batch.device_count >= batch.max_devices:
            raise refusals.batch_full(batch.name, batch.max_devices)
        self.add_device(Device(credential.tenant, credential.device))
        record, key = self._add_derived(credential, batch)
        return self._as_it_is(key.credential, record).without_secret(), True

    def _add_derived(self, credential: PskCredential, batch: Batch) -> tuple[_Record, _Key]:
        now = self._wall()
        kept = replace(
            credential,
            number=next(self._numbers),
            secret=b"",
            not_before=None,
            not_after=None if batch.move_time is None else now + batch.move_time,
        )
        name = (credential.tenant, credential.device)
        key = _Key(kept, now)
        self._records[name].psks.append(key)
        self._identities[credential.identity] = name
        return self._records[name], key

    def _register_to_revoke(self, identity: bytes) -> list[tuple[_Record, _Key]]:
        derived = self._derived(identity)
        if not derived or identity in self._removed:
            return []
        (credential,) = derived
        if (credential.tenant, credential.device) not in self._records:
            self.add_device(Device(credential.tenant, credential.device))
        batch = next(batch for batch in self.batches() if batch.number == credential.batch)
        return [self._add_derived(credential, batch)]

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        record = self._records.get((tenant, device))
        return record.device if record else None

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        name = self._pairs.get((key_id, value))
        return self._records[name].device if name else None

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        found = await self.find_certificate_device(anchor.key_id, value)
        if found is not None:
            return found
        created = Device(anchor.tenant if tenant is None else tenant, device, labels=anchor.labels)
        self.add_device(created)
        self._pairs[anchor.key_id, value] = (created.tenant, device)
        return created

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        believed = tuple(a for a in self.anchors_all() if a.state == AnchorState.ACTIVE)
        if believed != self._believed:
            self._believed = believed
        return self._believed

    def max_keys_per_identity(self) -> int:
        counts: dict[bytes, int] = {}
        for _, key in self._keys():
            if key.is_tried:
                identity = key.credential.identity
                counts[identity] = counts.get(identity, 0) + 1
        return max(counts.values(), default=1)

    async def disabled_anchors(self) -> frozenset[bytes]:
        disabled = frozenset(
            a.key_id for a in self.anchors_all() if a.state == AnchorState.DISABLED
        )
        if disabled != self._disabled:
            self._disabled = disabled
        return self._disabled

    async def revoked_certificates(self) -> tuple[RevokedCertificate, ...]:
        return self._revoked

    def note_use(self, key_id: bytes, value: str) -> None:
        if len(self._uses) < MAX_USES:
            self._uses[key_id, value] = self._wall()

    async def write_uses(self) -> int:
        uses, self._uses = self._uses, {}
        written = {
            pair: at
            for pair, at in uses.items()
            if pair in self._pairs
            and (pair not in self._used_at or self._used_at[pair] <= at - USE_INTERVAL)
        }
        self._used_at |= written
        return len(written)

    def newest_change(self) -> int:
        return self._changes[-1].number if self._changes else 0

    def changes(self, after: int) -> tuple[Change, ...] | None:
        newest = self.newest_change()
        if after > newest or after < newest - len(self._changes):
            return None
        return tuple(change for change in self._changes if change.number > after)

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
        removed = self._records.pop(name)
        numbers = {batch.number: batch.name for batch, _ in self._batches.values()}
        for key in removed.psks:
            derived = self._derived(key.credential.identity)
            number = derived[0].batch if derived else key.credential.batch
            if number is not None:
                self._removed.setdefault(key.credential.identity, numbers[number])
        self._changed(removed.device)
        self._identities = {k: v for k, v in self._identities.items() if v != name}
        self._pairs = {k: v for k, v in self._pairs.items() if v != name}
        self._used_at = {k: v for k, v in self._used_at.items() if k in self._pairs}

    def enable_device(self, tenant: Tenant, device: DeviceId, *, enabled: bool) -> None:
        record = self._get(tenant, device)
        if record.device.enabled != enabled:
            record.device = replace(record.device, enabled=enabled)
            self._changed(record.device)

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
        state: PskState = PskState.ACTIVE,
        follows: bytes | None = None,
        not_before: float | None = None,
        not_after: float | None = None,
        allow_weak: bool = False,
    ) -> PskEntry:
        refusals.check_device(Device(tenant, device))
        refusals.check_validity(not_before, not_after)
        psk.check_identity(identity)
        psk.check_key(secret, allow_weak=allow_weak)
        name = (tenant, device)
        owner = self._identities.get(identity)
        if owner not in (None, name):
            raise refusals.identity_taken(identity, *owner)
        self._require(tenant, device, or_create=create_device)
        keys = self._records[name].psks if name in self._records else []
        added_at = self._wall()
        if state == PskState.BACKUP:
            active = [
                key.credential.identity for key in keys if key.credential.state == PskState.ACTIVE
            ]
            entry = PskEntry(0, tenant, device, identity, state, added_at, follows=follows)
            follows = refusals.check_follows(active, entry)
        held = [key for key in keys if key.credential.identity == identity and key.is_tried]
        self._make_room(held, secret, added_at)
        if name not in self._records:
            self.add_device(Device(tenant, device))
        credential = PskCredential(
            next(self._numbers), tenant, device, identity, secret, state, not_before, not_after
        )
        added = _Key(credential, added_at, follows=follows if state == PskState.BACKUP else None)
        self._records[name].psks.append(added)
        self._identities[identity] = name
        return self._entry(added)

    def _make_room(self, held: list[_Key], secret: bytes, now: float) -> None:
        for key in held:
            if hmac.compare_digest(key.credential.secret, secret):
                raise refusals.key_exists(key.credential.identity, key.credential.number)
        if len(held) < MAX_KEYS_PER_IDENTITY:
            return
        for key in held:
            credential = key.credential
            if psk.has_ended(
                credential.state, credential.not_after, credential.retiring_until, now
            ):
                key.is_tried = False
                self._changed(Device(credential.tenant, credential.device))
                return
        raise refusals.too_many_keys(held[0].credential.identity, held[0].credential.device)

    def revoke_psks(
        self, *, number: int | None = None, identity: bytes | None = None
    ) -> tuple[PskEntry, ...]:
        found = [
            (record, key)
            for record, key in self._keys()
            if (
                key.credential.number == number
                if identity is None
                else key.credential.identity == identity
            )
        ]
        if not found and identity is not None:
            found = self._register_to_revoke(identity)
        if not found:
            raise refusals.psk_not_found(number, identity)
        for record, key in found:
            if key.credential.state != PskState.REVOKED:
                key.credential = replace(key.credential, state=PskState.REVOKED)
                self._changed(record.device)
        return tuple(sorted((self._entry(key) for _, key in found), key=lambda entry: entry.number))

    def add_batch(self, batch: Batch, secret: bytes, *, allow_weak: bool = False) -> Batch:
        refusals.check_batch(batch)
        psk.check_key(secret, allow_weak=allow_weak)
        if batch.name in self._batches:
            raise refusals.batch_name_taken(batch.name)
        for other, _ in self._batches.values():
            if other.state == "active" and may_overlap(batch, other):
                raise refusals.batches_overlap(batch, other)
        if sum(held.state == "active" for held, _ in self._batches.values()) >= MAX_ACTIVE_BATCHES:
            raise refusals.too_many_batches()
        number = len(self._batches) + 1
        added = replace(batch, number=number, device_count=0, state="active", added_at=self._wall())
        self._batches[batch.name] = (added, secret)
        return added

    def batches(self) -> tuple[Batch, ...]:
        return tuple(self.get_batch(name) for name in sorted(self._batches))

    def get_batch(self, name: str) -> Batch:
        batch, _ = self._get_batch(name)
        count = sum(key.credential.batch == batch.number for _, key in self._keys())
        count += len(list(self.removed_identities(name)))
        return replace(batch, device_count=count)

    def get_batch_secret(self, name: str) -> bytes:
        return self._get_batch(name)[1]

    def batch_psks(self, name: str) -> Iterator[PskEntry]:
        self._get_batch(name)
        return (entry for entry in self.psks() if entry.batch == name)

    def revoke_batch(self, name: str) -> Batch:
        batch, secret = self._get_batch(name)
        if batch.state != "revoked":
            self._batches[name] = (replace(batch, state="revoked"), secret)
            self._log("batch", tenant=batch.tenant)
        return self.get_batch(name)

    def removed_identities(self, name: str) -> Iterator[bytes]:
        self._get_batch(name)
        return iter(sorted(key for key, batch in self._removed.items() if batch == name))

    def find_removed(self, identity: bytes) -> str | None:
        return self._removed.get(identity)

    def restore_identity(self, identity: bytes) -> str:
        if identity not in self._removed:
            raise refusals.identity_not_removed(identity)
        return self._removed.pop(identity)

    def psks(
        self, tenant: Tenant | None = None, device: DeviceId | None = None
    ) -> Iterator[PskEntry]:
        entries = [
            self._entry(key)
            for name, record in self._records.items()
            for key in record.psks
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
        removed = self._anchors.pop(name)
        self._log("anchor", key_id=removed.key_id)
        return removed

    def get_anchor(self, name: str) -> TrustAnchor:
        anchor = self._anchors.get(name)
        if anchor is None:
            raise refusals.anchor_not_found(name)
        return anchor

    def set_anchor_state(
        self, name: str, state: AnchorState, *, was: TrustAnchor | None = None
    ) -> TrustAnchor:
        anchor = self.get_anchor(name)
        refusals.check_anchor_is(anchor, was)
        if anchor.state != state:
            self._anchors[name] = replace(anchor, state=state)
            self._log("anchor", key_id=anchor.key_id)
        return self._anchors[name]

    def change_anchor(self, anchor: TrustAnchor) -> None:
        refusals.check_anchor(anchor)
        held = self.get_anchor(anchor.name)
        if held.key_id != anchor.key_id:
            raise refusals.anchor_not_found(anchor.name)
        self._anchors[anchor.name] = replace(
            held,
            certificate=anchor.certificate,
            auto_provision=anchor.auto_provision,
            labels=anchor.labels,
            max_validity=anchor.max_validity,
            crl_files=anchor.crl_files,
            crl_mode=anchor.crl_mode,
        )
        self._log("anchor", key_id=anchor.key_id)

    def anchor_devices(self, key_id: bytes, used_since: float | None = None) -> int:
        return len(
            {
                device
                for pair, device in self._pairs.items()
                if pair[0] == key_id
                and (used_since is None or self._used_at.get(pair, -math.inf) >= used_since)
            }
        )

    def revoked_certificates_all(self) -> tuple[RevokedCertificate, ...]:
        return self._revoked

    def restore_certificate(self, revoked: RevokedCertificate) -> bool:
        left = tuple(
            held
            for held in self._revoked
            if replace(held, added_at=0.0) != replace(revoked, added_at=0.0)
        )
        is_restored = len(left) < len(self._revoked)
        if is_restored:
            self._revoked = left
        return is_restored

    def revoke_certificate(self, revoked: RevokedCertificate) -> bool:
        if any(replace(held, added_at=revoked.added_at) == revoked for held in self._revoked):
            return False
        if len(self._revoked) >= MAX_REVOKED_CERTIFICATES:
            raise refusals.too_many_revoked()
        self._revoked = (*self._revoked, replace(revoked, added_at=self._wall()))
        self._log("certificate", key_id=revoked.key_id)
        return True

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
        if not found.serves(tenant):
            raise refusals.anchor_serves_another(found, tenant)
        value = found.pair_value(tenant, value)
        owner = self._pairs.get((found.key_id, value))
        if owner is not None and owner != (tenant, device):
            raise refusals.value_taken(anchor, value, *owner)
        self._require(tenant, device, or_create=create_device)
        if (tenant, device) not in self._records:
            self.add_device(Device(tenant, device))
        self._pairs[found.key_id, value] = (tenant, device)
        return owner is None

    def distrust(self, tenant: Tenant, device: DeviceId, anchor: str, value: str) -> None:
        found = self.get_anchor(anchor)
        pair = (found.key_id, found.pair_value(tenant, value))
        if self._pairs.get(pair) != (tenant, device):
            raise refusals.value_not_trusted(anchor, value, device)
        del self._pairs[pair]
        self._used_at.pop(pair, None)
        self._changed(self._get(tenant, device).device)

    def certificates(self, tenant: Tenant, device: DeviceId) -> tuple[CertificateEntry, ...]:
        names = {anchor.key_id: anchor.name for anchor in self._anchors.values()}
        return tuple(
            CertificateEntry(key_id, names.get(key_id), value, self._used_at.get((key_id, value)))
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
            self.add_psk(line.tenant, line.device, line.identity, line.secret, allow_weak=True)
        if progress is not None:
            progress(len(good))
        return len(good)

    def _keys(self) -> Iterator[tuple[_Record, _Key]]:
        return ((record, key) for record in self._records.values() for key in record.psks)

    def _as_it_is(self, credential: PskCredential, record: _Record) -> PskCredential:
        """A key with what its device and its batch say."""
        credential = replace(credential, device_enabled=record.device.enabled)
        if credential.batch is None:
            return credential
        batch, master_key = next(
            held for held in self._batches.values() if held[0].number == credential.batch
        )
        starts = [at for at in (credential.not_before, batch.not_before) if at is not None]
        ends = [at for at in (credential.not_after, batch.not_after) if at is not None]
        return replace(
            credential,
            secret=derive_key(master_key, credential.identity),
            state=PskState.REVOKED if batch.state == "revoked" else credential.state,
            not_before=max(starts, default=None),
            not_after=min(ends, default=None),
        )

    def _entry(self, key: _Key) -> PskEntry:
        credential = key.credential
        batches = {batch.number: batch for batch, _ in self._batches.values()}
        batch = None if credential.batch is None else batches[credential.batch]
        return PskEntry(
            credential.number,
            credential.tenant,
            credential.device,
            credential.identity,
            batch.state if batch is not None and batch.state == "revoked" else credential.state,
            key.added_at,
            credential.not_before,
            credential.not_after,
            credential.retiring_until,
            None if batch is None else batch.name,
            key.follows,
        )

    def _derived(self, identity: bytes) -> tuple[PskCredential, ...]:
        book = BatchBook(held for held in self._batches.values() if held[0].state == "active")
        found = book.find(identity)
        return () if found is None else (found.credential(identity),)

    def _retire(self, record: _Record, followed: bytes, before: int, retiring_until: float) -> None:
        for key in record.psks:
            if (
                key.credential.number < before
                and followed in (key.credential.identity, key.follows)
                and key.credential.state in (PskState.ACTIVE, PskState.BACKUP)
            ):
                key.credential = replace(
                    key.credential, state=PskState.RETIRING, retiring_until=retiring_until
                )

    def _get_batch(self, name: str) -> tuple[Batch, bytes]:
        if name not in self._batches:
            raise refusals.batch_not_found(name)
        return self._batches[name]

    def _changed(self, device: Device) -> None:
        self._log("device", tenant=device.tenant, device=device.device)

    def _log(
        self,
        kind: str,
        *,
        tenant: Tenant | None = None,
        device: DeviceId | None = None,
        key_id: bytes | None = None,
    ) -> None:
        self._changes.append(Change(next(self._change_numbers), kind, tenant, device, key_id))

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
