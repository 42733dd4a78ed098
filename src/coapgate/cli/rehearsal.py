"""What the gateway would decide about a device now, by the very code that decides, without effect.

Whatever would be written is only noted: a device that would come into being, a key that would be
promoted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from coapgate.authentication import Authentication
from coapgate.config import Settings
from coapgate.errors import AlreadyExists, BatchFull, CertificateError, Refused
from coapgate.model import Device, DeviceId, Identity, PskCredential, Tenant, TrustAnchor
from coapgate.pki.revocation import RevocationList, load_lists
from coapgate.registry.base import RevokedCertificate
from coapgate.registry.sqlite import SqliteRegistry


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who would be let in, or `refused`; whether `creates` the device, `promotes` the key."""

    identity: Identity | None
    refused: Refused | None = None
    creates: bool = False
    promotes: bool = False


class Rehearsal:
    """Judges as a gateway of these settings does. Mutable: what would have been written."""

    def __init__(self, registry: SqliteRegistry, settings: Settings) -> None:
        self._dry = _DryRegistry(registry)
        self._registry = registry
        self._settings = settings
        self._authentication = Authentication(self._dry, clock_skew=settings.dtls.clock_skew)

    async def use_lists(self, wall: float) -> list[str]:
        """Load the revocation lists of all anchors; what is wrong with any of them."""
        faults = []
        for anchor in await self._registry.anchors():
            lists: dict[str, tuple[RevocationList, ...]] = {}
            for file in anchor.crl_files:
                try:
                    lists[file] = load_lists(self._settings.base / file, anchor, wall)
                except CertificateError as error:
                    faults.append(f"of anchor {anchor.name!r}: {error}")
            self._authentication.use_lists(anchor.key_id, lists)
        return faults

    async def find_keys(self, identity: bytes) -> tuple[PskCredential, ...]:
        """Raises Refused (unavailable)."""
        return await self._authentication.find_keys(identity)

    async def judge_psk(self, credential: PskCredential, wall: float) -> Verdict:
        self._dry.start()
        try:
            identity = await self._authentication.judge_psk(credential, wall)
            await self._authentication.promote(credential, identity)
        except Refused as refused:
            return Verdict(None, refused)
        return Verdict(identity, None, self._dry.creates, self._dry.promotes)

    async def judge_chain(self, chain: tuple[bytes, ...], wall: float) -> Verdict:
        self._dry.start()
        try:
            identity = await self._authentication.judge_chain(chain, wall)
        except Refused as refused:
            return Verdict(None, refused)
        return Verdict(identity, None, self._dry.creates)


class _DryRegistry:
    """A registry that is only read; see `authentication.Registry`."""

    def __init__(self, registry: SqliteRegistry) -> None:
        self._registry = registry
        self.creates = False
        self.promotes = False

    def start(self) -> None:
        self.creates = self.promotes = False

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        return await self._registry.find_psk(identity)

    async def find_psk_number(self, number: int) -> PskCredential | None:
        return await self._registry.find_psk_number(number)

    def max_keys_per_identity(self) -> int:
        return self._registry.max_keys_per_identity()

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        return await self._registry.find_certificate_device(key_id, value)

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        return await self._registry.anchors()

    async def disabled_anchors(self) -> frozenset[bytes]:
        return await self._registry.disabled_anchors()

    async def revoked_certificates(self) -> tuple[RevokedCertificate, ...]:
        return await self._registry.revoked_certificates()

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        tenant = anchor.tenant if tenant is None else tenant
        await self._require_new(tenant, device)
        return Device(tenant, device, labels=anchor.labels)

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]:
        for batch in self._registry.batches():
            if batch.number == credential.batch and batch.device_count >= batch.max_devices:
                raise BatchFull(f"batch {batch.name!r} has as many devices as it may have")
        await self._require_new(credential.tenant, credential.device)
        return replace(credential, secret=b""), True

    async def promote(self, number: int, grace_time: float) -> bool:
        self.promotes = True
        return True

    def note_use(self, key_id: bytes, value: str) -> None:
        """Nothing was used."""

    async def _require_new(self, tenant: Tenant, device: DeviceId) -> None:
        """Raises AlreadyExists, as the registry itself would."""
        if await self._registry.find_device(tenant, device) is not None:
            raise AlreadyExists(f"device {device!r} of tenant {tenant!r} exists already")
        self.creates = True
