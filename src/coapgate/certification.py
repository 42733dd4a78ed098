"""What a chain of certificates proved: which device it is, or why it is not let in.

Asked about a peer whose Finished verified, and about those that were let in before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Protocol

from coapgate.errors import AlreadyExists, CertificateError, Reason, Refused, RegistryError
from coapgate.model import (
    MARK_LENGTH,
    MARK_PART_LENGTH,
    Device,
    DeviceId,
    Identity,
    Method,
    Tenant,
    TrustAnchor,
)
from coapgate.pki.chains import ChainVerifier, VerifiedChain, claimed_subject
from coapgate.pki.revocation import RevocationList, Revocations
from coapgate.pki.revoked import Singly, issuer_mark
from coapgate.registry.base import RevokedCertificate

BUILT_AT = 1_788_220_800.0
"""Unix seconds, 2026-09-01: shortly before this release. A clock that is behind it is wrong, and no
certificate can be judged by it."""

MAX_RECENT = 4096
"""Devices remembered as just created, so that parallel first contacts are told of once."""

_Pair = tuple[bytes, str]
"""An anchor's key id, and a certificate value below it as the registry keeps it."""


class Registry(Protocol):
    """What is asked of a registry about certificates (`registry.base`).

    Each method raises RegistryError if it cannot answer, `provision` AlreadyExists besides.
    """

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None: ...

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device: ...

    async def anchors(self) -> tuple[TrustAnchor, ...]: ...

    async def disabled_anchors(self) -> frozenset[bytes]: ...

    async def revoked_certificates(self) -> tuple[RevokedCertificate, ...]: ...

    def note_use(self, key_id: bytes, value: str) -> None: ...


class Judged(NamedTuple):
    """Who a chain proved to be, and whether that brought the device into being."""

    identity: Identity
    is_new: bool


class Certification:
    """Judges chains by the trust anchors and what is revoked below them.

    Mutable: the verifier for the anchors as they were last seen, the revocation lists in force,
    what is revoked below each anchor that was asked about, and which devices were just created.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._anchors: tuple[TrustAnchor, ...] = ()
        self._verifier = ChainVerifier(())
        self._lists: dict[bytes, Mapping[str, tuple[RevocationList, ...]]] = {}
        self._revoked: tuple[RevokedCertificate, ...] = ()
        self._singly = Singly()
        self._disabled: frozenset[bytes] = frozenset()
        self._disabled_marks: frozenset[bytes] = frozenset()
        self._revocations: dict[bytes, Revocations] = {}
        self._recent: set[_Pair] = set()

    def use_lists(self, key_id: bytes, lists: Mapping[str, tuple[RevocationList, ...]]) -> None:
        """Below this anchor these revocation lists are in force from now on, by their files.

        While one of the anchor's `crl_files` is not among them, no handshake is let in below it.
        """
        self._lists[key_id] = lists
        if not lists:
            del self._lists[key_id]
        self._revocations.pop(key_id, None)

    async def judge(self, chain: tuple[bytes, ...], wall: float) -> Judged:
        """Which device a chain proves (DER, leaf first) whose leaf's key signed the handshake.

        A chain that verifies and speaks for no device is refused as `credential_mismatch`, whether
        the device exists without it or not at all: `coapgate device trust` mends both. If its
        anchor provisions, a device that does not exist is created, by a certificate that is not
        revoked.

        Raises Refused with any reason of `pki.chains`, and credential_mismatch, tenant_mismatch,
        unavailable; disabled and revoked, which say the device too where there is one: that it is
        this one is proven. Where none is proven it says what the leaf claims.
        """
        try:
            try:
                return await self._judge(chain, wall)
            except RegistryError as error:
                raise unavailable(error) from error
        except Refused as refused:
            if chain and refused.proven is None:
                refused.claimed = claimed_subject(chain[0])
            raise

    async def _judge(self, chain: tuple[bytes, ...], wall: float) -> Judged:
        if wall < BUILT_AT:
            raise Refused(Reason.UNAVAILABLE, "the clock is before the day this was built")
        verified = (await self._current_verifier()).verify(chain, wall)
        anchor = verified.anchor
        pair = (anchor.key_id, anchor.pair_value(verified.tenant, verified.value))
        device = await self._registry.find_certificate_device(*pair)
        credential = f"sha256:{verified.fingerprint.hex()[:16]}"
        await self._see_revoked()
        if self._disabled_marks and self._is_below_disabled(verified.path):
            raise Refused(Reason.UNTRUSTED, "an issuer of it is an anchor that is disabled")
        revocations = self._revocations_below(anchor)
        if revocations:
            try:
                revocations.judge(verified.path, wall)
            except Refused as refused:
                if device is not None:
                    refused.proven = (device.tenant, device.device, credential)
                raise
        is_new = False
        if device is None:
            device = await self._provision(verified, pair)
            # Parallel first contacts find it there: only one of them is told that it is new.
            is_new = pair not in self._recent
            self._remember(pair)
        elif self._recent:
            self._recent.discard(pair)
        if device.tenant != verified.tenant:
            raise Refused(
                Reason.TENANT_MISMATCH, f"below the anchor {anchor.name} it is {verified.tenant}'s"
            )
        if not device.enabled:
            raise Refused(Reason.DISABLED, proven=(device.tenant, device.device, credential))
        self._registry.note_use(*pair)
        # One text where both are the same: this is kept for as long as the association.
        value = device.device if device.device == verified.value else verified.value
        identity = Identity(
            device.tenant,
            device.device,
            Method.X509,
            credential,
            anchor.key_id,
            verified.not_after,
            value,
            verified.path,
        )
        return Judged(identity, is_new)

    async def review(self, identity: Identity, wall: float) -> Reason | None:
        """Why what let a device in would do so no longer; None: it would.

        Of the chain nothing is left but what `Identity` says: its anchor must be believed, serve
        the tenant and speak for the device still, and no certificate of its path may have ended or
        be revoked. That a revocation list is stale ends nothing that was good before.

        Raises RegistryError.
        """
        if wall < BUILT_AT:
            return Reason.NOT_YET_VALID
        anchors = await self._registry.anchors()
        anchor = next((each for each in anchors if each.key_id == identity.anchor), None)
        if anchor is None:
            return Reason.UNTRUSTED
        if not anchor.serves(identity.tenant):
            return Reason.TENANT_MISMATCH
        if identity.not_after is not None and wall > identity.not_after:
            return Reason.EXPIRED
        value = anchor.pair_value(identity.tenant, identity.value)
        device = await self._registry.find_certificate_device(anchor.key_id, value)
        if device is None or (device.tenant, device.device) != (identity.tenant, identity.device):
            return Reason.CREDENTIAL_MISMATCH
        if not device.enabled:
            return Reason.DISABLED
        await self._see_revoked()
        if self._is_below_disabled(identity.path):
            return Reason.UNTRUSTED
        revocations = self._revocations_below(anchor)
        return Reason.REVOKED if revocations.covers(identity.path) else None

    async def see_revoked(self) -> Callable[[Identity], bool]:
        """Take notice of what is revoked now, and tell quickly, without the registry, whom
        `review` would not let stay for it. Raises RegistryError.
        """
        anchors = {anchor.key_id: anchor for anchor in await self._registry.anchors()}
        await self._see_revoked()

        def is_revoked(identity: Identity) -> bool:
            anchor = anchors.get(identity.anchor or b"")
            return anchor is not None and (
                self._revocations_below(anchor).covers(identity.path)
                or self._is_below_disabled(identity.path)
            )

        return is_revoked

    async def note_uses(self, identities: Iterable[Identity]) -> None:
        """Sessions that were opened by these certificates go on. Raises RegistryError."""
        anchors = {anchor.key_id: anchor for anchor in await self._registry.anchors()}
        for each in identities:
            anchor = anchors.get(each.anchor or b"")
            if anchor is not None:
                value = anchor.pair_value(each.tenant, each.value)
                self._registry.note_use(anchor.key_id, value)

    async def _current_verifier(self) -> ChainVerifier:
        """The verifier for the anchors of this moment; built anew only if they changed."""
        anchors = await self._registry.anchors()
        if anchors is not self._anchors and anchors != self._anchors:
            try:
                verifier = ChainVerifier(anchors)
            except CertificateError as error:
                raise unavailable(error) from error
            self._verifier = verifier
            self._revocations.clear()
        self._anchors = anchors
        return self._verifier

    async def _see_revoked(self) -> None:
        """What commands have revoked and disabled by now: what is new is added to what is known."""
        disabled = await self._registry.disabled_anchors()
        if disabled is not self._disabled:
            self._disabled = disabled
            self._disabled_marks = frozenset(map(issuer_mark, disabled))
        revoked, known = await self._registry.revoked_certificates(), self._revoked
        if revoked is known:
            return
        count = len(known)
        # They are in order: where the last one known has its place still, none before it has gone.
        if count and not (len(revoked) >= count and revoked[count - 1] is known[-1]):
            present = set(map(id, revoked))
            gone = [each for each in known if id(each) not in present]
            for each in gone:
                self._singly.remove(*_words(each))
            count -= len(gone)
        for each in revoked[count:]:
            self._singly.add(*_words(each))
        self._revoked = revoked

    def _is_below_disabled(self, path: bytes) -> bool:
        """Whether an issuer of a path, which leads to another anchor, is one that is disabled."""
        marks = self._disabled_marks
        return any(
            path[at : at + MARK_PART_LENGTH] in marks for at in range(0, len(path), MARK_LENGTH)
        )

    def _revocations_below(self, anchor: TrustAnchor) -> Revocations:
        """What is revoked below an anchor; put together only if it changed."""
        found = self._revocations.get(anchor.key_id)
        if found is None:
            lists = self._lists.get(anchor.key_id, {})
            found = self._revocations[anchor.key_id] = Revocations.gather(
                (each for file in lists.values() for each in file),
                self._singly,
                is_hard=anchor.crl_mode == "hard",
                is_complete=lists.keys() >= set(anchor.crl_files),
            )
        return found

    async def _provision(self, verified: VerifiedChain, pair: _Pair) -> Device:
        """Create the device that a verified chain speaks for. Raises Refused."""
        anchor, value = verified.anchor, verified.value
        if not anchor.auto_provision:
            raise Refused(
                Reason.CREDENTIAL_MISMATCH,
                f"no device trusts {value} of the anchor {anchor.name}, which provisions none",
            )
        try:
            return await self._registry.provision(anchor, DeviceId(value), pair[1], verified.tenant)
        except AlreadyExists as error:
            raise Refused(
                Reason.CREDENTIAL_MISMATCH,
                f"the device {value} exists and does not trust the anchor {anchor.name}",
            ) from error

    def _remember(self, pair: _Pair) -> None:
        if len(self._recent) >= MAX_RECENT:
            self._recent.clear()
        self._recent.add(pair)


def unavailable(error: Exception) -> Refused:
    return Refused(Reason.UNAVAILABLE, str(error))


def _words(revoked: RevokedCertificate) -> tuple[bytes, bytes, bytes, bytes]:
    """What `Singly` is told of one."""
    return revoked.key_id, revoked.serial, revoked.issuer, revoked.fingerprint
