"""What a peer proved, judged by what the registry says."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from coapgate.authentication import BUILT_AT, Authentication
from coapgate.errors import Reason, Refused, RegistryUnavailable
from coapgate.model import (
    DEFAULT_TENANT,
    Device,
    DeviceId,
    DeviceIdSource,
    Identity,
    Method,
    PskCredential,
    Tenant,
    TrustAnchor,
)
from coapgate.pki.anchors import parse_anchor
from coapgate.pki.chains import verify_chain
from coapgate.pki.factory import DEVICE, FactoryCa
from coapgate.registry.memory import MemoryRegistry
from coapgate.registry.sqlite import SqliteRegistry

WALL = 1_800_000_000.0

SENSOR_7 = DeviceId("sensor-7")
CREDENTIAL = PskCredential(3, DEFAULT_TENANT, SENSOR_7, b"id", secrets.token_bytes(16))

Books = MemoryRegistry | SqliteRegistry


@pytest.fixture(params=["memory", "sqlite"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    if request.param == "memory":
        yield MemoryRegistry()
    else:
        with SqliteRegistry.open("sqlite:///r.db", tmp_path / "r.key", tmp_path) as opened:
            yield opened


@pytest.fixture
def root() -> FactoryCa:
    return FactoryCa.create("Acme Root", wall=WALL)


def anchor_of(
    ca: FactoryCa,
    name: str = "factory",
    *,
    tenant: str = DEFAULT_TENANT,
    auto_provision: bool = False,
) -> TrustAnchor:
    return parse_anchor(
        ca.certificate_pem,
        name=name,
        tenant=Tenant(tenant),
        device_id_source=DeviceIdSource.CN,
        auto_provision=auto_provision,
        wall=WALL,
    )


async def refusal_of_chain(
    authentication: Authentication, chain: tuple[bytes, ...], wall: float = WALL
) -> Reason:
    with pytest.raises(Refused) as caught:
        await authentication.judge_chain(chain, wall)
    return caught.value.reason


async def refusal_of_review(
    authentication: Authentication, identity: Identity, wall: float = WALL
) -> Reason:
    with pytest.raises(Refused) as caught:
        await authentication.review(identity, wall)
    proven = (identity.tenant, identity.device, identity.credential)
    assert caught.value.proven == (None if caught.value.reason is Reason.UNAVAILABLE else proven)
    return caught.value.reason


async def refusal_of_psk(authentication: Authentication, credential: PskCredential) -> Reason:
    with pytest.raises(Refused) as caught:
        await authentication.judge_psk(credential, WALL)
    return caught.value.reason


# --- pre-shared keys


async def test_a_key_proves_its_device() -> None:
    authentication = Authentication(MemoryRegistry())
    bounded = replace(CREDENTIAL, not_after=WALL + 60)

    assert await authentication.judge_psk(CREDENTIAL, WALL) == Identity(
        DEFAULT_TENANT, SENSOR_7, Method.PSK, "psk-3"
    )
    assert await authentication.judge_psk(bounded, WALL) == Identity(
        DEFAULT_TENANT, SENSOR_7, Method.PSK, "psk-3", not_after=WALL + 60
    )


async def test_keys_of_an_identity_come_in_order_of_their_number(registry: Books) -> None:
    identity = bytes(range(1, 129))
    for _ in range(3):
        registry.add_psk(
            DEFAULT_TENANT, SENSOR_7, identity, secrets.token_bytes(16), create_device=True
        )
    authentication = Authentication(registry)

    found = await authentication.find_keys(identity)

    assert len(found) == 3
    assert [each.number for each in found] == sorted(each.number for each in found)
    assert await authentication.find_keys(identity[:-1]) == ()
    assert authentication.max_candidates() == 3


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        (replace(CREDENTIAL, device_enabled=False), Reason.DISABLED),
        (replace(CREDENTIAL, state="revoked"), Reason.REVOKED),
        (replace(CREDENTIAL, state="a state of a later version"), Reason.REVOKED),
        (replace(CREDENTIAL, not_before=WALL + 0.5), Reason.NOT_YET_VALID),
        (replace(CREDENTIAL, not_after=WALL - 0.5), Reason.EXPIRED),
    ],
)
async def test_a_key_that_is_not_good_now_is_refused(
    credential: PskCredential, reason: Reason
) -> None:
    assert await refusal_of_psk(Authentication(MemoryRegistry()), credential) is reason


async def test_both_edges_of_a_validity_hold_with_the_clock_skew() -> None:
    exact, skewed = (Authentication(MemoryRegistry(), clock_skew=skew) for skew in (0.0, 60.0))

    await exact.judge_psk(replace(CREDENTIAL, not_before=WALL, not_after=WALL), WALL)
    await skewed.judge_psk(replace(CREDENTIAL, not_before=WALL + 60), WALL)
    await skewed.judge_psk(replace(CREDENTIAL, not_after=WALL - 60), WALL)
    early, late = (
        replace(CREDENTIAL, not_before=WALL + 61),
        replace(CREDENTIAL, not_after=WALL - 61),
    )
    assert await refusal_of_psk(skewed, early) is Reason.NOT_YET_VALID
    assert await refusal_of_psk(skewed, late) is Reason.EXPIRED


# --- certificates


async def test_a_trusted_certificate_proves_its_device(registry: Books, root: FactoryCa) -> None:
    registry.add_device(Device(DEFAULT_TENANT, DeviceId("pump")))
    registry.add_anchor(anchor_of(root))
    registry.trust(DEFAULT_TENANT, DeviceId("pump"), "factory", "sensor-7")
    profile = replace(DEVICE, not_after=WALL + 3600)
    chain = root.intermediate("Factory 1").issue_device("sensor-7", profile=profile).chain

    identity = await Authentication(registry).judge_chain(chain, WALL)

    fingerprint = x509.load_der_x509_certificate(chain[0]).fingerprint(hashes.SHA256())
    assert identity == Identity(
        DEFAULT_TENANT,
        DeviceId("pump"),
        Method.X509,
        f"sha256:{fingerprint.hex()[:16]}",
        anchor_of(root).key_id,
        WALL + 3600,
        "sensor-7",
        verify_chain(chain, (anchor_of(root),), WALL).path,
    )


async def test_first_contact_creates_the_device_if_the_anchor_says_so(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, tenant="north", auto_provision=True))
    authentication = Authentication(registry)

    for _ in range(2):
        identity = await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)
        assert (identity.tenant, identity.device) == ("north", "sensor-7")

    assert [each.device for each in registry.devices()] == [Device(Tenant("north"), SENSOR_7)]


async def test_fifty_first_contacts_at_once_create_one_device(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    chains = [root.issue_device("sensor-7").chain for _ in range(50)]

    async with asyncio.TaskGroup() as tasks:
        judged = [tasks.create_task(authentication.judge_chain(each, WALL)) for each in chains]

    assert {each.result().device for each in judged} == {SENSOR_7}
    assert len(list(registry.devices())) == 1


async def test_without_provisioning_a_device_nobody_knows_is_refused(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root))

    reason = await refusal_of_chain(Authentication(registry), root.issue_device("sensor-7").chain)

    assert reason is Reason.CREDENTIAL_MISMATCH
    assert not list(registry.devices())


@pytest.mark.parametrize("auto_provision", [True, False])
async def test_a_certificate_never_takes_over_a_device_that_exists(
    registry: Books, root: FactoryCa, *, auto_provision: bool
) -> None:
    registry.add_device(Device(DEFAULT_TENANT, SENSOR_7))
    registry.add_anchor(anchor_of(root, auto_provision=auto_provision))
    authentication = Authentication(registry)
    chain = root.issue_device("sensor-7").chain

    assert await refusal_of_chain(authentication, chain) is Reason.CREDENTIAL_MISMATCH

    registry.trust(DEFAULT_TENANT, SENSOR_7, "factory", "sensor-7")
    assert (await authentication.judge_chain(chain, WALL)).device == SENSOR_7


async def test_one_anchor_does_not_speak_for_the_devices_of_another(
    registry: Books, root: FactoryCa
) -> None:
    other = FactoryCa.create("Other Root", wall=WALL)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    registry.add_anchor(anchor_of(other, "other", auto_provision=True))
    authentication = Authentication(registry)
    await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)

    reason = await refusal_of_chain(authentication, other.issue_device("sensor-7").chain)

    assert reason is Reason.CREDENTIAL_MISMATCH


async def test_the_same_name_in_two_tenants_is_two_devices(
    registry: Books, root: FactoryCa
) -> None:
    other = FactoryCa.create("Acme Root", wall=WALL)
    registry.add_anchor(anchor_of(root, tenant="north", auto_provision=True))
    registry.add_anchor(anchor_of(other, "other", tenant="south", auto_provision=True))
    authentication = Authentication(registry)

    north = await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)
    south = await authentication.judge_chain(other.issue_device("sensor-7").chain, WALL)

    assert (north.tenant, south.tenant) == ("north", "south")
    assert len(list(registry.devices())) == 2


async def test_an_anchor_that_comes_back_in_another_tenant_takes_no_devices_along(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, tenant="north", auto_provision=True))
    authentication = Authentication(registry)
    chain = root.issue_device("sensor-7").chain
    await authentication.judge_chain(chain, WALL)
    registry.remove_anchor("factory")
    registry.add_anchor(anchor_of(root, tenant="south", auto_provision=True))

    assert await refusal_of_chain(authentication, chain) is Reason.TENANT_MISMATCH


async def test_a_disabled_device_is_refused_until_it_is_enabled(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    chain = root.issue_device("sensor-7").chain
    await authentication.judge_chain(chain, WALL)

    registry.enable_device(DEFAULT_TENANT, SENSOR_7, enabled=False)
    assert await refusal_of_chain(authentication, chain) is Reason.DISABLED

    registry.enable_device(DEFAULT_TENANT, SENSOR_7, enabled=True)
    assert (await authentication.judge_chain(chain, WALL)).device == SENSOR_7


async def test_anchors_are_believed_from_when_they_are_added_until_they_are_removed(
    registry: Books, root: FactoryCa
) -> None:
    authentication = Authentication(registry)
    second = FactoryCa.create("Second Root", wall=WALL)
    first_chain, second_chain = (
        ca.issue_device(ca_name).chain for ca, ca_name in ((root, "a"), (second, "b"))
    )
    assert await refusal_of_chain(authentication, first_chain) is Reason.UNTRUSTED

    registry.add_anchor(anchor_of(root, "first", auto_provision=True))
    await authentication.judge_chain(first_chain, WALL)
    assert await refusal_of_chain(authentication, second_chain) is Reason.UNTRUSTED

    registry.add_anchor(anchor_of(second, "second", auto_provision=True))
    await authentication.judge_chain(first_chain, WALL)
    await authentication.judge_chain(second_chain, WALL)

    registry.remove_anchor("first")
    assert await refusal_of_chain(authentication, first_chain) is Reason.UNTRUSTED
    await authentication.judge_chain(second_chain, WALL)


async def test_a_chain_that_does_not_verify_creates_nothing(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, auto_provision=True))
    impostor = FactoryCa.create("Acme Root", wall=WALL)

    reason = await refusal_of_chain(
        Authentication(registry), impostor.issue_device("sensor-7").chain
    )

    assert reason is Reason.UNTRUSTED
    assert not list(registry.devices())


async def test_a_clock_before_the_build_date_judges_no_certificate(root: FactoryCa) -> None:
    registry = MemoryRegistry()
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    chain = root.issue_device("sensor-7").chain

    assert await refusal_of_chain(authentication, chain, BUILT_AT - 1) is Reason.UNAVAILABLE
    assert await refusal_of_chain(authentication, chain, 0.0) is Reason.UNAVAILABLE
    # Pre-shared keys do not need a calendar.
    await authentication.judge_psk(CREDENTIAL, 0.0)


# --- what let a device in, asked again


def add_psk(registry: Books, device: DeviceId = SENSOR_7, identity: bytes = b"id") -> int:
    """The number of a new key of a device, which is created if need be."""
    secret = secrets.token_bytes(16)
    entry = registry.add_psk(DEFAULT_TENANT, device, identity, secret, create_device=True)
    return entry.number


async def let_in_by_psk(authentication: Authentication) -> Identity:
    """What SENSOR_7 proved by its only key."""
    (credential,) = await authentication.find_keys(b"id")
    return await authentication.judge_psk(credential, WALL)


async def test_what_let_a_device_in_holds_while_nothing_changed(
    registry: Books, root: FactoryCa
) -> None:
    add_psk(registry)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    by_psk = await let_in_by_psk(authentication)
    by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)

    for identity in (by_psk, by_chain):
        await Authentication(registry).review(identity, WALL)


async def test_a_device_that_was_disabled_is_found_by_review(
    registry: Books, root: FactoryCa
) -> None:
    add_psk(registry)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    by_psk = await let_in_by_psk(authentication)
    by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)

    for identity in (by_psk, by_chain):
        registry.enable_device(identity.tenant, identity.device, enabled=False)
        assert await refusal_of_review(authentication, identity) is Reason.DISABLED
        registry.enable_device(identity.tenant, identity.device, enabled=True)
        await authentication.review(identity, WALL)


async def test_a_device_that_was_removed_does_not_come_back_by_its_name_alone(
    registry: Books, root: FactoryCa
) -> None:
    add_psk(registry)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    by_psk = await let_in_by_psk(authentication)
    by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)

    for identity in (by_psk, by_chain):
        registry.remove_device(identity.tenant, identity.device)
        reason = await refusal_of_review(authentication, identity)
        assert reason is Reason.CREDENTIAL_MISMATCH
        # The same name and identity again, proven by another key: another number.
        add_psk(registry, identity.device, identity.device.encode())
        reason = await refusal_of_review(authentication, identity)
        assert reason is Reason.CREDENTIAL_MISMATCH

    # Until its anchor speaks for the new device too.
    registry.trust(DEFAULT_TENANT, by_chain.device, "factory", "sensor-8")
    await authentication.review(by_chain, WALL)


async def test_another_key_of_the_device_does_not_stand_in_for_the_one_that_was_proven(
    registry: Books,
) -> None:
    add_psk(registry)
    other = add_psk(registry, DeviceId("sensor-8"), b"other")
    authentication = Authentication(registry)
    identity = await let_in_by_psk(authentication)

    for credential in (
        f"psk-{other}",
        "psk-999",
        "psk-",
        "psk-0",
        "psk-01",
        f" {identity.credential}",
        f"{identity.credential}\n",
        "psk-\u0661",
        f"psk-{'9' * 30}",
        "sha256:0011223344556677",
    ):
        reason = await refusal_of_review(authentication, replace(identity, credential=credential))
        assert reason is Reason.CREDENTIAL_MISMATCH
    for moved in (
        replace(identity, tenant=Tenant("north")),
        replace(identity, device=DeviceId("sensor-8")),
    ):
        reason = await refusal_of_review(authentication, moved)
        assert reason is Reason.CREDENTIAL_MISMATCH


class OneKey(MemoryRegistry):
    """A registry whose only key is `credential`."""

    def __init__(self, credential: PskCredential) -> None:
        super().__init__()
        self.credential = credential

    async def find_psk_number(self, number: int) -> PskCredential | None:
        return self.credential if number == self.credential.number else None


@pytest.mark.parametrize(
    ("credential", "reason"),
    [
        (replace(CREDENTIAL, state="revoked"), Reason.REVOKED),
        (replace(CREDENTIAL, not_before=WALL + 0.5), Reason.NOT_YET_VALID),
        (replace(CREDENTIAL, not_after=WALL - 0.5), Reason.EXPIRED),
        (replace(CREDENTIAL, device_enabled=False, state="revoked"), Reason.DISABLED),
    ],
)
async def test_a_key_is_reviewed_as_it_is_now(credential: PskCredential, reason: Reason) -> None:
    registry = OneKey(CREDENTIAL)
    authentication = Authentication(registry)
    identity = await authentication.judge_psk(CREDENTIAL, WALL)
    await authentication.review(identity, WALL)

    registry.credential = credential

    assert await refusal_of_review(authentication, identity) is reason


async def test_a_key_whose_end_was_put_off_holds_for_longer_than_it_did() -> None:
    registry = OneKey(replace(CREDENTIAL, not_after=WALL))
    authentication = Authentication(registry, clock_skew=60.0)
    identity = await authentication.judge_psk(registry.credential, WALL)

    await authentication.review(identity, WALL + 60)
    assert await refusal_of_review(authentication, identity, WALL + 61) is Reason.EXPIRED
    registry.credential = replace(CREDENTIAL, not_after=WALL + 3600)
    await authentication.review(identity, WALL + 3600)


async def test_a_chain_holds_until_its_first_certificate_has_ended(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry, clock_skew=60.0)
    chain = root.issue_device("sensor-7", profile=replace(DEVICE, not_after=WALL + 10)).chain
    identity = await authentication.judge_chain(chain, WALL)

    await authentication.review(identity, WALL + 10)
    assert await refusal_of_review(authentication, identity, WALL + 10.5) is Reason.EXPIRED


async def test_an_anchor_that_was_removed_holds_again_under_any_name(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    identity = await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)

    registry.remove_anchor("factory")
    assert await refusal_of_review(authentication, identity) is Reason.UNTRUSTED
    registry.add_anchor(replace(anchor_of(root, "renamed"), state="disabled"))
    assert await refusal_of_review(authentication, identity) is Reason.UNTRUSTED

    registry.remove_anchor("renamed")
    registry.add_anchor(anchor_of(root, "renamed"))
    await authentication.review(identity, WALL)


async def test_an_anchor_that_moved_to_another_tenant_holds_for_none_of_its_devices(
    registry: Books, root: FactoryCa
) -> None:
    registry.add_anchor(anchor_of(root, tenant="north", auto_provision=True))
    authentication = Authentication(registry)
    identity = await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)
    registry.remove_anchor("factory")
    registry.add_anchor(anchor_of(root, tenant="south", auto_provision=True))
    registry.add_device(Device(Tenant("south"), SENSOR_7))

    assert await refusal_of_review(authentication, identity) is Reason.TENANT_MISMATCH


async def test_of_two_anchors_with_one_subject_only_the_one_that_signed_counts(
    registry: Books, root: FactoryCa
) -> None:
    twin = FactoryCa.create("Acme Root", wall=WALL)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    registry.add_anchor(anchor_of(twin, "twin", auto_provision=True))
    authentication = Authentication(registry)
    identity = await authentication.judge_chain(root.issue_device("sensor-7").chain, WALL)
    of_twin = await authentication.judge_chain(twin.issue_device("sensor-8").chain, WALL)
    assert (identity.anchor, of_twin.anchor) == (anchor_of(root).key_id, anchor_of(twin).key_id)

    registry.remove_anchor("factory")
    # The twin may speak for a device of that name, yet it did not.
    registry.trust(DEFAULT_TENANT, SENSOR_7, "twin", "sensor-7")

    assert await refusal_of_review(authentication, identity) is Reason.UNTRUSTED
    await authentication.review(of_twin, WALL)
    reason = await refusal_of_review(authentication, replace(identity, anchor=None))
    assert reason is Reason.UNTRUSTED


async def test_a_clock_before_the_build_date_lets_no_certificate_go_on(
    registry: Books, root: FactoryCa
) -> None:
    add_psk(registry)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)

    reason = await refusal_of_review(authentication, by_chain, BUILT_AT - 1)

    assert reason is Reason.NOT_YET_VALID
    await authentication.review(await let_in_by_psk(authentication), 0.0)


async def test_a_review_needs_no_secret_and_few_statements(tmp_path: Path, root: FactoryCa) -> None:
    """A restart reviews 100,000; about 12 us of CPU each, the bound is for busy machines."""
    with SqliteRegistry.open("sqlite:///r.db", tmp_path / "r.key", tmp_path) as registry:
        add_psk(registry)
        registry.add_anchor(anchor_of(root, auto_provision=True))
        authentication = Authentication(registry)
        by_psk = await let_in_by_psk(authentication)
        by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)
    os.unlink(tmp_path / "r.key")

    with SqliteRegistry.open(
        "sqlite:///r.db", tmp_path / "r.key", tmp_path, verify_key_file=False
    ) as registry:
        authentication = Authentication(registry)
        statements: list[str] = []
        for identity, count in ((by_psk, 1), (by_chain, 2)):
            await authentication.review(identity, WALL)  # the first one reads the anchors
            registry._reader.set_trace_callback(statements.append)
            await authentication.review(identity, WALL)
            registry._reader.set_trace_callback(None)
            assert len(statements) == count
            statements.clear()
            started_at = time.process_time()
            for _ in range(1000):
                await authentication.review(identity, WALL)
            assert (time.process_time() - started_at) / 1000 < 150e-6


# --- a registry that cannot answer


class AwayRegistry(MemoryRegistry):
    """A registry that answers until it is `away`."""

    away = False

    def _check(self) -> None:
        if self.away:
            raise RegistryUnavailable("the registry is locked")

    async def find_psk(self, identity: bytes) -> tuple[PskCredential, ...]:
        self._check()
        return await super().find_psk(identity)

    async def find_psk_number(self, number: int) -> PskCredential | None:
        self._check()
        return await super().find_psk_number(number)

    async def find_certificate_device(self, key_id: bytes, value: str) -> Device | None:
        self._check()
        return await super().find_certificate_device(key_id, value)

    async def provision(
        self, anchor: TrustAnchor, device: DeviceId, value: str, tenant: Tenant | None = None
    ) -> Device:
        self._check()
        return await super().provision(anchor, device, value, tenant)

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        self._check()
        return await super().anchors()

    def max_keys_per_identity(self) -> int:
        self._check()
        return super().max_keys_per_identity()


async def test_a_registry_that_cannot_answer_is_unavailable(root: FactoryCa) -> None:
    registry = AwayRegistry()
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    registry.away = True

    chain = root.issue_device("sensor-7").chain
    assert await refusal_of_chain(authentication, chain) is Reason.UNAVAILABLE
    with pytest.raises(Refused, match="the registry is locked") as caught:
        await authentication.find_keys(b"id")
    assert caught.value.reason is Reason.UNAVAILABLE

    registry.away = False
    await authentication.judge_chain(chain, WALL)


async def test_a_registry_that_cannot_answer_decides_nothing_about_who_was_let_in(
    root: FactoryCa,
) -> None:
    registry = AwayRegistry()
    add_psk(registry)
    registry.add_anchor(anchor_of(root, auto_provision=True))
    authentication = Authentication(registry)
    by_psk = await let_in_by_psk(authentication)
    by_chain = await authentication.judge_chain(root.issue_device("sensor-8").chain, WALL)
    registry.away = True

    for identity in (by_psk, by_chain):
        assert await refusal_of_review(authentication, identity) is Reason.UNAVAILABLE

    registry.away = False
    for identity in (by_psk, by_chain):
        await authentication.review(identity, WALL)


async def test_a_registry_that_is_away_does_not_show_in_the_number_of_candidates() -> None:
    registry = AwayRegistry()
    for _ in range(2):
        registry.add_psk(
            DEFAULT_TENANT, SENSOR_7, b"id", secrets.token_bytes(16), create_device=True
        )
    authentication = Authentication(registry)
    assert authentication.max_candidates() == 2

    registry.away = True

    assert authentication.max_candidates() == 2


class BrokenAnchors(MemoryRegistry):
    """A registry whose anchor has rotted."""

    async def anchors(self) -> tuple[TrustAnchor, ...]:
        return tuple(replace(each, certificate=b"\x30\x00") for each in self.anchors_all())


async def test_an_anchor_that_cannot_be_read_is_named(root: FactoryCa) -> None:
    registry = BrokenAnchors()
    registry.add_anchor(anchor_of(root))

    with pytest.raises(Refused, match="'factory' cannot be read") as caught:
        await Authentication(registry).judge_chain(root.issue_device("a").chain, WALL)

    assert caught.value.reason is Reason.UNAVAILABLE


def test_no_key_octet_shows_in_a_refusal() -> None:
    assert CREDENTIAL.secret.hex() not in repr(CREDENTIAL)
    assert repr(CREDENTIAL.secret)[2:-1] not in repr(CREDENTIAL)


# --- who it was that is refused


async def test_a_refusal_says_which_device_was_proven_and_by_what() -> None:
    with pytest.raises(Refused) as caught:
        await Authentication(MemoryRegistry()).judge_psk(
            replace(CREDENTIAL, device_enabled=False), WALL
        )

    assert caught.value.proven == ("default", "sensor-7", "psk-3")


async def test_only_a_chain_that_speaks_for_a_device_proves_it(root: FactoryCa) -> None:
    registry = MemoryRegistry()
    authentication = Authentication(registry)
    chain = root.issue_device("sensor-7").chain
    proven = []
    # Nobody vouches for the name; then it is another's; then it is this device, and disabled.
    for step in range(3):
        if step == 1:
            registry.add_device(Device(DEFAULT_TENANT, SENSOR_7))
            registry.add_anchor(anchor_of(root, auto_provision=True))
        if step == 2:
            registry.trust(DEFAULT_TENANT, SENSOR_7, "factory", "sensor-7")
            registry.enable_device(DEFAULT_TENANT, SENSOR_7, enabled=False)
        with pytest.raises(Refused) as caught:
            await authentication.judge_chain(chain, WALL)
        proven.append(caught.value.proven)

    assert proven[:2] == [None, None]
    assert proven[2] is not None
    tenant, device, credential = proven[2]
    assert (tenant, device) == ("default", "sensor-7")
    assert credential.startswith("sha256:")
