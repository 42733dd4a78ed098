"""What a peer proved: which device it is, or why it is not let in.

Everything here is asked about a peer whose Finished verified, but for `find_keys`, which needs
none: what a stranger claims leads to no answer that differs.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from coapgate import certification
from coapgate.certification import BUILT_AT, Certification, unavailable
from coapgate.errors import (
    AlreadyExists,
    BatchFull,
    NotFound,
    Reason,
    Refused,
    RegistryError,
)
from coapgate.model import Identity, Method, PskCredential, PskState
from coapgate.pki.revocation import RevocationList

__all__ = ["BUILT_AT", "Authentication", "Registry", "Witness"]

GRACE_TIME = 604_800.0
"""Seconds, 7 days: how long a key is good after the device has used the one that follows it."""

_GOOD_STATES = (PskState.ACTIVE, PskState.BACKUP, PskState.RETIRING)

_FIRST_CONTACTS: dict[type[RegistryError], Reason] = {
    AlreadyExists: Reason.CREDENTIAL_MISMATCH,
    NotFound: Reason.REVOKED,
    BatchFull: Reason.LIMIT,
    RegistryError: Reason.UNAVAILABLE,
}
"""What a peer is told for whom no device came into being; the first that fits."""

_PSK = re.compile(r"psk-([1-9][0-9]{0,17})")  # what SQLite can count to


class Registry(certification.Registry, Protocol):
    """What authentication asks of a registry (`registry.base`).

    Each method raises RegistryError if it cannot answer. Up to its first wait it runs outside of
    any task (`decisions`).
    """

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]: ...

    async def find_psk_number(self, number: int) -> PskCredential | None: ...

    async def promote(self, number: int, grace_time: float) -> bool: ...

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]: ...

    def max_keys_per_identity(self) -> int: ...


class Witness(Protocol):
    """Is told what authentication has done to the registry, besides its answer."""

    def promoted(self, identity: Identity) -> None:
        """The device used its backup key, which is active from now on."""

    def provisioned_by(self, identity: Identity, by: str) -> None:
        """The device came into being, `by` an `anchor` or a `batch`."""

    def not_promoted(self, identity: Identity, error: RegistryError) -> None:
        """As `promoted`, but it could not be written: the device is let in all the same."""


class Authentication:
    """Judges what peers proved by what the registry says.

    `clock_skew` is how many seconds a key is good before its `not_before` and after its
    `not_after`, both inclusive; certificates are judged to the second. Mutable: the verifier for
    the anchors as they were last seen, and the last answer of `max_keys_per_identity`.
    """

    def __init__(
        self, registry: Registry, *, clock_skew: float = 0.0, grace_time: float = GRACE_TIME
    ) -> None:
        self._registry = registry
        self._clock_skew = clock_skew
        self._grace_time = grace_time
        self._certification = Certification(registry)
        self._max_candidates = 1
        self.witness: Witness | None = None
        """Who is told of what is not in an answer."""

    @property
    def clock_skew(self) -> float:
        """Seconds that a key is good before and after its validity."""
        return self._clock_skew

    def use_lists(self, key_id: bytes, lists: Mapping[str, tuple[RevocationList, ...]]) -> None:
        """As `Certification.use_lists`."""
        self._certification.use_lists(key_id, lists)

    async def find_keys(self, identity: bytes) -> tuple[PskCredential, ...]:
        """The keys an identity may be proven with, in an order that does not change.

        Those of disabled devices or outside their validity are among them: `judge_psk` decides.

        Raises Refused (unavailable).
        """
        try:
            credentials = await self._registry.find_psk(identity)
        except RegistryError as error:
            raise unavailable(error) from error
        return tuple(sorted(credentials, key=lambda credential: credential.number))

    def max_candidates(self) -> int:
        """How many keys every handshake tries, so that the work tells nothing (1 to 4)."""
        # A registry that is away must not show in the work: then the last answer serves.
        with contextlib.suppress(RegistryError):
            self._max_candidates = self._registry.max_keys_per_identity()
        return self._max_candidates

    async def judge_psk(self, credential: PskCredential, wall: float) -> Identity:
        """Which device a key proves that its Finished was verified with; `wall` is Unix seconds.

        The device of a derived key is there from its first contact on. Once it is let in, `promote`
        is due.

        Raises Refused (disabled, revoked, not_yet_valid, expired), which says that device too. For
        a first contact it says none, since there is none yet: credential_mismatch (a device of that
        name is there, or its identity has a key of its own), limit (its batch is full),
        unavailable, or one of the above.
        """
        reason, end = self._fault(credential, wall)
        is_new = False
        if credential.number == 0 and reason is None:
            credential, is_new = await self._register(credential)
            # Parallel first contacts: it may be an old one by now.
            reason, end = self._fault(credential, wall)
        name = f"psk-{credential.number}"
        if reason is not None:
            proven = (credential.tenant, credential.device, name) if credential.number else None
            refused = Refused(reason, proven=proven)
            refused.claimed = credential.identity
            raise refused
        identity = Identity(
            credential.tenant,
            credential.device,
            Method.PSK,
            name,
            not_after=end,
        )
        if is_new and self.witness is not None:
            self.witness.provisioned_by(identity, "batch")
        return identity

    async def promote(self, credential: PskCredential, identity: Identity) -> None:
        """What the use of a key that was judged good means for the device's other keys.

        If it was its backup, that is its active key from now on, and those before it are good for
        `grace_time` seconds more. What cannot be written keeps no device out: the next handshake
        tries again.
        """
        if credential.state != PskState.BACKUP:
            return
        try:
            is_first = await self._registry.promote(credential.number, self._grace_time)
        except RegistryError as error:
            if self.witness is not None:
                self.witness.not_promoted(identity, error)
            return
        if is_first and self.witness is not None:
            self.witness.promoted(identity)

    async def _register(self, derived: PskCredential) -> tuple[PskCredential, bool]:
        """The device of a derived key comes into being, if it may. Raises Refused."""
        try:
            return await self._registry.register_derived(derived)
        except RegistryError as error:
            kinds = (kind for kind in _FIRST_CONTACTS if isinstance(error, kind))
            reason = _FIRST_CONTACTS[next(kinds, RegistryError)]
            refused = Refused(reason, str(error))
            refused.claimed = derived.identity
            raise refused from error

    def _fault(self, credential: PskCredential, wall: float) -> tuple[Reason | None, float | None]:
        """Why a key is not good, and until when it is but for the clock skew (as in Identity)."""
        end = credential.not_after
        if credential.state == PskState.RETIRING and credential.retiring_until is not None:
            # Nobody's clock but that of a gateway has set this: skew does not put it off.
            grace_end = credential.retiring_until - self._clock_skew
            end = grace_end if end is None else min(end, grace_end)
        if not credential.device_enabled:
            return Reason.DISABLED, end
        if credential.state not in _GOOD_STATES:
            return Reason.REVOKED, end
        if credential.not_before is not None and wall < credential.not_before - self._clock_skew:
            return Reason.NOT_YET_VALID, end
        if end is not None and wall > end + self._clock_skew:
            return Reason.EXPIRED, end
        return None, end

    async def judge_chain(self, chain: tuple[bytes, ...], wall: float) -> Identity:
        """As `Certification.judge`, and whoever wants to know is told of a new device."""
        identity, is_new = await self._certification.judge(chain, wall)
        if is_new and self.witness is not None:
            self.witness.provisioned_by(identity, "anchor")
        return identity

    async def note_uses(self, identities: Iterable[Identity]) -> None:
        """Sessions that were opened by these certificates go on. Raises RegistryError."""
        await self._certification.note_uses(identities)

    async def review(self, identity: Identity, wall: float) -> Identity:
        """Whether what let a device in would still do so; `wall` is Unix seconds.

        The answer is that identity, with the end that its key has now. For associations that
        outlive a change or the process: a key is judged as it is now. Of a certificate
        nothing is left but what it led to: its anchor must be believed, serve the tenant and speak
        for the device still, and no certificate of its path may have ended. By a clock that is
        behind BUILT_AT none can be judged, and none goes on: keys do.

        Raises Refused: revoked, not_yet_valid, expired, disabled, untrusted, tenant_mismatch,
        credential_mismatch (the device or its credential was removed), all of which say the
        device; and unavailable, by which nothing is decided.
        """
        try:
            if identity.method is Method.PSK:
                identity, reason = await self._review_psk(identity, wall)
            else:
                reason = await self._certification.review(identity, wall)
        except RegistryError as error:
            raise unavailable(error) from error
        if reason is not None:
            raise Refused(reason, proven=(identity.tenant, identity.device, identity.credential))
        return identity

    async def see_revoked(self) -> Callable[[Identity], bool]:
        """As `Certification.see_revoked`. Raises Refused (unavailable)."""
        try:
            return await self._certification.see_revoked()
        except RegistryError as error:
            raise unavailable(error) from error

    async def _review_psk(self, identity: Identity, wall: float) -> tuple[Identity, Reason | None]:
        match = _PSK.fullmatch(identity.credential)
        found = await self._registry.find_psk_number(int(match[1])) if match else None
        if found is None or (found.tenant, found.device) != (identity.tenant, identity.device):
            return identity, Reason.CREDENTIAL_MISMATCH
        reason, end = self._fault(found, wall)
        if end != identity.not_after:
            identity = replace(identity, not_after=end)
        return identity, reason
