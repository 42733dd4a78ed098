"""What a registry can do, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from coapgate.model import (
    AnchorState,
    Batch,
    Device,
    DeviceId,
    PskCredential,
    PskState,
    Tenant,
    TrustAnchor,
)

MAX_CHANGES = 10_000
"""Changes that are kept for those who ask what has changed; older ones are forgotten."""

MAX_REVOKED_CERTIFICATES = 100_000
"""Certificates that are revoked one by one: a running gateway holds them in memory."""

USE_INTERVAL = 86_400.0
"""Seconds: when a certificate was used last is known to within a day."""

MAX_USES = 65_536
"""Uses of certificates that wait to be written; what comes while they are so many is not noted."""


class Change(NamedTuple):
    """What may end associations, or may not.

    `kind` is `device` (of `tenant` and `device`: it, its keys or what its certificates name),
    `batch` (of `tenant`: all devices with keys derived from it), `anchor` (`key_id`) or
    `certificate` (one below the anchor `key_id` was revoked). `number` counts changes.
    """

    number: int
    kind: str
    tenant: Tenant | None = None
    device: DeviceId | None = None
    key_id: bytes | None = None


@dataclass(frozen=True, slots=True)
class RevokedCertificate:
    """A certificate below the anchor `key_id` that is believed no longer.

    Either `serial` (big-endian, at most 20 octets), from the issuer whose SubjectPublicKeyInfo has
    a SHA-256 that begins with `issuer` (8 octets; empty: whoever issued it), or `fingerprint`: the
    first 8 or 16 octets of its own SHA-256.
    """

    key_id: bytes
    serial: bytes = b""
    issuer: bytes = b""
    fingerprint: bytes = b""
    added_at: float = 0.0


@dataclass(frozen=True, slots=True)
class PskEntry:
    """A PSK credential as an operator may see it: without its secret. Times in Unix seconds.

    `batch` is the name of the batch that it is derived from; None: it is a key of its own.
    `follows` is the identity whose keys it replaced, or will if it is a backup.
    """

    number: int
    tenant: Tenant
    device: DeviceId
    identity: bytes
    state: str
    added_at: float
    not_before: float | None = None
    not_after: float | None = None
    retiring_until: float | None = None
    batch: str | None = None
    follows: bytes | None = None


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """A certificate value that speaks for a device, below the anchor with this key.

    `anchor` is that anchor's name; None: it was removed, and the pair proves nothing until
    an anchor with the same public key is added again. `used_at` is when one last let its device in
    (Unix seconds), to within a day; None: not since the anchor was added.
    """

    key_id: bytes
    anchor: str | None
    value: str
    used_at: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceEntry:
    """A device, and how many credentials may speak for it."""

    device: Device
    added_at: float
    psk_count: int
    certificate_count: int


@dataclass(frozen=True, slots=True)
class NewDevice:
    """One good line of an import: a device that is to exist, and the key that proves it."""

    line: int
    tenant: Tenant
    device: DeviceId
    identity: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line of an import that cannot be used: what is wrong, and what to do."""

    line: int
    message: str
    hint: str


class HeldRequest(NamedTuple):
    """A request that waits for its device; `expires_at` in Unix seconds.

    `response_topic` None: its outcome is an event. `method` is as its backend wrote it. `outcome`
    is what became of it, as text of the caller's: it need only be told.
    """

    number: int
    tenant: Tenant
    device: DeviceId
    method: str
    path: str
    query: str
    content_format: int | None
    payload: bytes
    response_topic: str | None
    correlation: bytes | None
    expires_at: float
    outcome: str | None = None


class HeldRequests(Protocol):
    """What outlives a gateway of its requests for devices. Raises RegistryUnavailable."""

    def held_requests(self, node: int) -> list[HeldRequest]:
        """Those of one gateway, in order of number."""

    async def change_held_requests(
        self,
        node: int,
        added: Iterable[HeldRequest],
        concluded: Iterable[tuple[int, str]],
        removed: Iterable[int],
    ) -> None:
        """Add some, note outcomes, and remove some by number, together; on disk when this
        returns.
        """


class Registry(Protocol):
    """What a running gateway asks. Each method raises RegistryUnavailable if it cannot answer."""

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        """Every key an identity may be proven with (at most 4), in an order that stays.

        Keys of disabled devices, outside their validity or revoked are among them: that is
        judged once the peer has proven one, so that a stranger learns nothing. An identity that
        has no key and fits the pattern of a batch has the one derived from it, with number 0,
        unless its device was removed.
        """

    async def find_psk_number(self, number: int) -> PskCredential | None:
        """The key `psk-N`, without its secret, as it is now; None: it was removed.

        One that its identity may be proven with no longer is among them, as `revoked`.
        """

    async def promote(self, number: int, grace_time: float) -> bool:
        """Make the backup `psk-N` active, since its device has used it.

        The active keys of the identity that it follows, and earlier backups that follow it too,
        are retiring, for `grace_time` seconds. False: it is no backup any more; True is answered
        once, whoever asks.
        """

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]:
        """The device of a derived key that was proven (number 0) is there from now on.

        The answer is the key as it is registered now, without its secret, and whether this call
        has done that: of parallel first contacts one has.

        Raises AlreadyExists if the device exists without it or the identity has a key of its own,
        NotFound if the batch is not active any more or the device was removed, BatchFull if it has
        as many devices as it may.
        """

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        """The device of that name."""

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        """The device that `value` in a certificate below the anchor `key_id` speaks for."""

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        """Create a device that certificates with `value` speak for, with the anchor's labels.

        It is of `tenant`, if that is given, else of the anchor's. If that very pair is there
        already (parallel first contacts), the answer is its device.

        Raises AlreadyExists if the device exists without it: provisioning only ever creates.
        """

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        """The trust anchors that may be believed now, in order of name.

        The same tuple as before while nothing has changed.
        """

    async def disabled_anchors(self) -> frozenset[bytes]:
        """The key ids of trust anchors that are disabled, as new as the last answer of `anchors`.

        The same set as before while nothing has changed.
        """

    async def revoked_certificates(self) -> tuple[RevokedCertificate, ...]:
        """Those revoked one by one, at least as new as the last answer of `anchors`.

        In order of revocation. The same tuple as before while nothing has changed; in another one
        those that were in it are the same objects, and new ones are behind them.
        """

    def note_use(self, key_id: bytes, value: str) -> None:
        """A certificate with `value` below the anchor `key_id` has let its device in just now.

        That is kept in memory until `write_uses`, and of at most MAX_USES.
        """

    async def write_uses(self) -> int:
        """Write the uses that were noted, each at most once a day; the answer is how many."""

    def newest_change(self) -> int:
        """The number of the newest change; 0: there was none."""

    def changes(self, after: int) -> tuple[Change, ...] | None:
        """The changes after number `after`, oldest first.

        None: some of them are forgotten, and anything may have changed.
        """

    def max_keys_per_identity(self) -> int:
        """At least the number of keys of the identity that has most, 1 to 4."""


class Administration(Protocol):
    """What the command line does; each call is one short transaction.

    All raise RegistryUnavailable if the registry cannot answer; names, identities, keys or
    labels that cannot be are Misused.
    """

    def add_device(self, device: Device) -> None:
        """Raises AlreadyExists."""

    def remove_device(self, tenant: Tenant, device: DeviceId) -> None:
        """Remove a device with all its credentials. Raises NotFound.

        No batch derives a key for its identities any more, until `restore_identity`.
        """

    def enable_device(self, tenant: Tenant, device: DeviceId, *, enabled: bool) -> None:
        """Let a device in, or keep it out. Raises NotFound."""

    def get_device(self, tenant: Tenant, device: DeviceId) -> DeviceEntry:
        """Raises NotFound."""

    def devices(self, tenant: Tenant | None = None) -> Iterator[DeviceEntry]:
        """All devices, or those of one tenant, in order of tenant and name."""

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
        """Add a key to an identity: its first, or one more that the device may use too.

        A `state` of `backup` makes it the next key of its device (`Registry.promote`), in place of
        those of the identity that it `follows`: if none is named, its own if that has an active
        key, else the only one of the device that has. `create_device` creates the device if no
        tenant has one of that name; if another tenant has, that is more likely a slip than a wish,
        and NotFound. Where all places of an identity are taken, keys that were revoked or have
        ended make room. `allow_weak` accepts keys of fewer than 16 octets.

        Raises NotFound without the device, AlreadyExists if the identity belongs to another
        device or has this very key, RegistryError if it has as many keys as it may have,
        KeyFileError if the key cannot be encrypted.
        """

    def psks(
        self, tenant: Tenant | None = None, device: DeviceId | None = None
    ) -> Iterator[PskEntry]:
        """PSK credentials in order of number: all, a tenant's, or a device's."""

    def revoke_psks(
        self, *, number: int | None = None, identity: bytes | None = None
    ) -> tuple[PskEntry, ...]:
        """Revoke the key `psk-N`, or every key of an identity; the answer is those keys now.

        The identity stays its device's, so that nobody else is ever known by it. One that fits an
        active batch and has no key yet is registered as revoked, with its device if there is none:
        a device that was stolen before its first contact.

        Raises NotFound.
        """

    def add_batch(self, batch: Batch, secret: bytes, *, allow_weak: bool = False) -> Batch:
        """Keep a batch and its master key; `number`, `device_count` and `added_at` are given to it.

        Raises AlreadyExists if its name is taken, or if an active batch's pattern and its own could
        fit one identity; RegistryError if MAX_ACTIVE_BATCHES are active; KeyFileError if the key
        cannot be encrypted.
        """

    def batches(self) -> tuple[Batch, ...]:
        """Every batch, in order of name."""

    def get_batch(self, name: str) -> Batch:
        """Raises NotFound."""

    def get_batch_secret(self, name: str) -> bytes:
        """Its master key. Raises NotFound, KeyFileError."""

    def batch_psks(self, name: str) -> Iterator[PskEntry]:
        """The derived keys that were registered, in order of number. Raises NotFound."""

    def revoke_batch(self, name: str) -> Batch:
        """Believe keys derived from it no longer. Raises NotFound."""

    def removed_identities(self, name: str) -> Iterator[bytes]:
        """Those of its removed devices, in order: none is derived again. Raises NotFound.

        Each counts as a device of the batch.
        """

    def find_removed(self, identity: bytes) -> str | None:
        """The name of the batch that an identity of a removed device is of."""

    def restore_identity(self, identity: bytes) -> str:
        """Let an identity of a removed device be derived again; the answer is its batch's name.

        Raises NotFound.
        """

    def add_anchor(self, anchor: TrustAnchor) -> None:
        """Raises AlreadyExists if its name or its public key is taken: one key is one anchor."""

    def remove_anchor(self, name: str) -> TrustAnchor:
        """Believe this anchor no longer. Raises NotFound.

        Devices stay, and so does the knowledge which certificate value speaks for which device:
        it proves nothing without the anchor, and an anchor that is removed and added again
        (say, to change an option) finds its fleet as it was.
        """

    def anchors_all(self) -> tuple[TrustAnchor, ...]:
        """Every trust anchor whatever its state, in order of name."""

    def get_anchor(self, name: str) -> TrustAnchor:
        """Raises NotFound."""

    def set_anchor_state(
        self, name: str, state: AnchorState, *, was: TrustAnchor | None = None
    ) -> TrustAnchor:
        """Only if it has the key and the state that it `was` read with, if that is given.

        Raises NotFound, RegistryError if it is another by now.
        """

    def change_anchor(self, anchor: TrustAnchor) -> None:
        """Let an anchor's provisioning, labels, limits, lists and certificate be these.

        Its name and public key tell which it is; what names devices and tenants stays.

        Raises NotFound.
        """

    def anchor_devices(self, key_id: bytes, used_since: float | None = None) -> int:
        """How many devices certificates below an anchor speak for.

        With `used_since` (Unix seconds), only those that one has let in since then.
        """

    def revoke_certificate(self, revoked: RevokedCertificate) -> bool:
        """Believe a certificate no longer. False: it was revoked already.

        Raises RegistryError if there are MAX_REVOKED_CERTIFICATES.
        """

    def revoked_certificates_all(self) -> tuple[RevokedCertificate, ...]:
        """As `Registry.revoked_certificates`, below whatever anchor, in order of revocation."""

    def restore_certificate(self, revoked: RevokedCertificate) -> bool:
        """Take back that very revocation. False: there is none."""

    def trust(
        self,
        tenant: Tenant,
        device: DeviceId,
        anchor: str,
        value: str,
        *,
        create_device: bool = False,
    ) -> bool:
        """Let certificates with `value` below an anchor speak for a device.

        `create_device` is that of `add_psk`. False: they did already.

        Raises NotFound without the device or the anchor, AlreadyExists if they speak for another
        device, RegistryError if the anchor serves another tenant.
        """

    def distrust(self, tenant: Tenant, device: DeviceId, anchor: str, value: str) -> None:
        """Take back `trust`. Raises NotFound if certificates with `value` do not speak for it."""

    def certificates(self, tenant: Tenant, device: DeviceId) -> tuple[CertificateEntry, ...]:
        """The certificate values that speak for a device."""

    def import_devices(
        self,
        lines: Iterable[NewDevice | BadLine],
        progress: Callable[[int], None] | None = None,
    ) -> int:
        """Create devices with a key each, all or none; the answer is how many.

        `progress` is called now and then with the number of lines read.

        Raises ImportRefused with every bad line: those that were bad already, an existing
        device or identity, and one that an earlier line has.
        """
