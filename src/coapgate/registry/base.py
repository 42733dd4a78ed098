"""What a registry can do, whatever it is kept in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from coapgate.model import Device, DeviceId, PskCredential, Tenant, TrustAnchor


@dataclass(frozen=True, slots=True)
class PskEntry:
    """A PSK credential as an operator may see it: without its secret. Times in Unix seconds."""

    number: int
    tenant: Tenant
    device: DeviceId
    identity: bytes
    state: str
    added_at: float
    not_before: float | None = None
    not_after: float | None = None


@dataclass(frozen=True, slots=True)
class CertificateEntry:
    """A certificate value that speaks for a device, below the anchor with this key.

    `anchor` is that anchor's name; None: it was removed, and the pair proves nothing until
    an anchor with the same public key is added again.
    """

    key_id: bytes
    anchor: str | None
    value: str


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
        judged once the peer has proven one, so that a stranger learns nothing.
        """

    async def find_psk_number(self, number: int) -> PskCredential | None:
        """The key `psk-N`, without its secret, as it is now; None: it was removed.

        One that its identity may be proven with no longer is among them, as `revoked`.
        """

    async def find_device(self, tenant: Tenant, device: DeviceId) -> Device | None:
        """The device of that name."""

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        """The device that `value` in a certificate below the anchor `key_id` speaks for."""

    async def find_anchored_device(
        self, key_id: bytes, tenant: Tenant, device: DeviceId
    ) -> Device | None:
        """The device of that name, if any certificate below the anchor `key_id` speaks for it."""

    async def provision(self, anchor: TrustAnchor, device: DeviceId, value: str) -> Device:
        """Create a device of the anchor's tenant that certificates with `value` speak for.

        If that very pair is there already (parallel first contacts), the answer is its device.

        Raises AlreadyExists if the device exists without it: provisioning only ever creates.
        """

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        """The trust anchors that may be believed now, in order of name."""

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
        """Remove a device with all its credentials. Raises NotFound."""

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
    ) -> PskEntry:
        """Add a key to an identity: its first, or one more that the device may switch to.

        `create_device` creates the device if no tenant has one of that name; if another tenant
        has, that is more likely a slip than a wish, and NotFound.

        Raises NotFound without the device, AlreadyExists if the identity belongs to another
        device or has this very key, RegistryError if it has as many keys as it may have,
        KeyFileError if the key cannot be encrypted.
        """

    def psks(
        self, tenant: Tenant | None = None, device: DeviceId | None = None
    ) -> Iterator[PskEntry]:
        """PSK credentials in order of number: all, a tenant's, or a device's."""

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
