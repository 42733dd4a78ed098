"""What a peer proved: which device it is, or why it is not let in.

Everything here is asked about a peer whose Finished verified, but for `find_keys`, which needs
none: what a stranger claims leads to no answer that differs.
"""

from __future__ import annotations

import contextlib
import re
from typing import Protocol

from coapgate.errors import AlreadyExists, CertificateError, Reason, Refused, RegistryError
from coapgate.model import (
    Device,
    DeviceId,
    Identity,
    Method,
    PskCredential,
    Tenant,
    TrustAnchor,
)
from coapgate.pki.chains import ChainVerifier, VerifiedChain, claimed_subject

BUILT_AT = 1_788_220_800.0
"""Unix seconds, 2026-09-01: shortly before this release. A clock that is behind it is wrong, and no
certificate can be judged by it."""

_PSK = re.compile(r"psk-([1-9][0-9]{0,17})")  # what SQLite can count to


class Registry(Protocol):
    """What authentication asks of a registry (`registry.base`).

    Each method raises RegistryError if it cannot answer, `provision` AlreadyExists besides. Up to
    its first wait it runs outside of any task (`decisions`).
    """

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]: ...

    async def find_psk_number(self, number: int) -> PskCredential | None: ...

    async def find_anchored_device(
        self, key_id: bytes, tenant: Tenant, device: DeviceId
    ) -> Device | None: ...

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None: ...

    async def provision(self, anchor: TrustAnchor, device: DeviceId, value: str) -> Device: ...

    async def anchors(self) -> tuple[TrustAnchor, ...]: ...

    def max_keys_per_identity(self) -> int: ...


class Authentication:
    """Judges what peers proved by what the registry says.

    `clock_skew` is how many seconds a key is good before its `not_before` and after its
    `not_after`, both inclusive; certificates are judged to the second. Mutable: the verifier for
    the anchors as they were last seen, and the last answer of `max_keys_per_identity`.
    """

    def __init__(self, registry: Registry, *, clock_skew: float = 0.0) -> None:
        self._registry = registry
        self._clock_skew = clock_skew
        self._anchors: tuple[TrustAnchor, ...] = ()
        self._verifier = ChainVerifier(())
        self._max_candidates = 1

    async def find_keys(self, identity: bytes) -> tuple[PskCredential, ...]:
        """The keys an identity may be proven with, in an order that does not change.

        Those of disabled devices or outside their validity are among them: `judge_psk` decides.

        Raises Refused (unavailable).
        """
        try:
            credentials = await self._registry.find_psk(identity)
        except RegistryError as error:
            raise _unavailable(error) from error
        return tuple(sorted(credentials, key=lambda credential: credential.number))

    def max_candidates(self) -> int:
        """How many keys every handshake tries, so that the work tells nothing (1 to 4)."""
        # A registry that is away must not show in the work: then the last answer serves.
        with contextlib.suppress(RegistryError):
            self._max_candidates = self._registry.max_keys_per_identity()
        return self._max_candidates

    async def judge_psk(self, credential: PskCredential, wall: float) -> Identity:
        """Which device a key proves that its Finished was verified with; `wall` is Unix seconds.

        Raises Refused (disabled, revoked, not_yet_valid, expired), which says that device too.
        """
        name = f"psk-{credential.number}"
        reason = self._fault(credential, wall)
        if reason is not None:
            raise Refused(reason, proven=(credential.tenant, credential.device, name))
        return Identity(
            credential.tenant,
            credential.device,
            Method.PSK,
            name,
            not_after=credential.not_after,
        )

    def _fault(self, credential: PskCredential, wall: float) -> Reason | None:
        if not credential.device_enabled:
            return Reason.DISABLED
        if credential.state != "active":
            return Reason.REVOKED
        if credential.not_before is not None and wall < credential.not_before - self._clock_skew:
            return Reason.NOT_YET_VALID
        if credential.not_after is not None and wall > credential.not_after + self._clock_skew:
            return Reason.EXPIRED
        return None

    async def judge_chain(self, chain: tuple[bytes, ...], wall: float) -> Identity:
        """Which device a chain proves (DER, leaf first) whose leaf's key signed the handshake.

        A chain that verifies and speaks for no device is refused as `credential_mismatch`, whether
        the device exists without it or not at all: `coapgate device trust` mends both. If its
        anchor provisions, a device that does not exist is created.

        Raises Refused with any reason of `pki.chains`, and credential_mismatch, tenant_mismatch,
        unavailable; and disabled, which says the device too: that it is this one is proven. Where
        none is proven it says what the leaf claims.
        """
        try:
            return await self._judge_chain(chain, wall)
        except Refused as refused:
            if chain and refused.proven is None:
                refused.claimed = claimed_subject(chain[0])
            raise

    async def _judge_chain(self, chain: tuple[bytes, ...], wall: float) -> Identity:
        if wall < BUILT_AT:
            raise Refused(Reason.UNAVAILABLE, "the clock is before the day this was built")
        try:
            verified = (await self._current_verifier()).verify(chain, wall)
            device = await self._find_device(verified)
        except RegistryError as error:
            raise _unavailable(error) from error
        if device.tenant != verified.anchor.tenant:
            raise Refused(Reason.TENANT_MISMATCH, f"the anchor serves {verified.anchor.tenant}")
        credential = f"sha256:{verified.fingerprint.hex()[:16]}"
        if not device.enabled:
            raise Refused(Reason.DISABLED, proven=(device.tenant, device.device, credential))
        return Identity(
            device.tenant,
            device.device,
            Method.X509,
            credential,
            verified.anchor.key_id,
            verified.not_after,
        )

    async def review(self, identity: Identity, wall: float) -> None:
        """Whether what let a device in would still do so; `wall` is Unix seconds.

        For associations that outlive the process: a key is judged as it is now. Of a certificate
        nothing is left but what it led to: its anchor must be believed, serve the tenant and speak
        for the device still, and no certificate of its path may have ended. By a clock that is
        behind BUILT_AT none can be judged, and none goes on: keys do.

        Raises Refused: revoked, not_yet_valid, expired, disabled, untrusted, tenant_mismatch,
        credential_mismatch (the device or its credential was removed), all of which say the
        device; and unavailable, by which nothing is decided.
        """
        try:
            if identity.method is Method.PSK:
                reason = await self._review_psk(identity, wall)
            else:
                reason = await self._review_certificate(identity, wall)
        except RegistryError as error:
            raise _unavailable(error) from error
        if reason is not None:
            raise Refused(reason, proven=(identity.tenant, identity.device, identity.credential))

    async def _review_psk(self, identity: Identity, wall: float) -> Reason | None:
        match = _PSK.fullmatch(identity.credential)
        found = await self._registry.find_psk_number(int(match[1])) if match else None
        if found is None or (found.tenant, found.device) != (identity.tenant, identity.device):
            return Reason.CREDENTIAL_MISMATCH
        return self._fault(found, wall)

    async def _review_certificate(self, identity: Identity, wall: float) -> Reason | None:
        if wall < BUILT_AT:
            return Reason.NOT_YET_VALID
        for anchor in await self._registry.anchors():
            if anchor.key_id == identity.anchor:
                break
        else:
            return Reason.UNTRUSTED
        if anchor.tenant != identity.tenant:
            return Reason.TENANT_MISMATCH
        if identity.not_after is not None and wall > identity.not_after:
            return Reason.EXPIRED
        device = await self._registry.find_anchored_device(
            anchor.key_id, identity.tenant, identity.device
        )
        if device is None:
            return Reason.CREDENTIAL_MISMATCH
        return None if device.enabled else Reason.DISABLED

    async def _current_verifier(self) -> ChainVerifier:
        """The verifier for the anchors of this moment; built anew only if they changed."""
        anchors = await self._registry.anchors()
        if anchors is not self._anchors and anchors != self._anchors:
            try:
                verifier = ChainVerifier(anchors)
            except CertificateError as error:
                raise _unavailable(error) from error
            self._verifier = verifier
        self._anchors = anchors
        return self._verifier

    async def _find_device(self, verified: VerifiedChain) -> Device:
        """The device that a verified chain speaks for, created if need be. Raises Refused."""
        anchor, value = verified.anchor, verified.value
        found = await self._registry.find_certificate_device(anchor.key_id, value)
        if found is not None:
            return found
        if not anchor.auto_provision:
            raise Refused(
                Reason.CREDENTIAL_MISMATCH,
                f"no device trusts {value} of the anchor {anchor.name}, which provisions none",
            )
        try:
            return await self._registry.provision(anchor, DeviceId(value), value)
        except AlreadyExists as error:
            raise Refused(
                Reason.CREDENTIAL_MISMATCH,
                f"the device {value} exists and does not trust the anchor {anchor.name}",
            ) from error


def _unavailable(error: Exception) -> Refused:
    return Refused(Reason.UNAVAILABLE, str(error))
