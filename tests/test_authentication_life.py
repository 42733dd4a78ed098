"""Keys that follow one another and keys that are derived, as authentication judges them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from coapgate.authentication import Authentication
from coapgate.errors import Reason, Refused, RegistryError, RegistryUnavailable
from coapgate.model import (
    DEFAULT_TENANT,
    Batch,
    Device,
    DeviceId,
    Identity,
    PskCredential,
    PskState,
)
from coapgate.registry.memory import MemoryRegistry
from coapgate.registry.sqlite import SqliteRegistry
from tests.waiting import until

WALL = 1_800_000_000.0
GRACE = 3600.0
SENSOR_7 = DeviceId("sensor-7")
OLD_KEY = bytes(range(16))
NEW_KEY = bytes(range(16, 32))
BATCH = Batch(0, "line-1", DEFAULT_TENANT, "acme-", "", max_devices=2)

Books = MemoryRegistry | SqliteRegistry


class Told:
    """A witness that remembers."""

    def __init__(self) -> None:
        self.of_promotions: list[str] = []
        self.of_devices: list[tuple[str, str]] = []
        self.of_failures: list[str] = []

    def promoted(self, identity: Identity) -> None:
        self.of_promotions.append(identity.credential)

    def provisioned_by(self, identity: Identity, by: str) -> None:
        self.of_devices.append((identity.device, by))

    def not_promoted(self, identity: Identity, error: RegistryError) -> None:
        self.of_failures.append(str(error))


class ReadOnly(MemoryRegistry):
    """A registry that cannot be written by a gateway: its disk is full, say."""

    async def promote(self, number: int, grace_time: float) -> bool:
        raise RegistryUnavailable("the disk is full")

    async def register_derived(self, credential: PskCredential) -> tuple[PskCredential, bool]:
        raise RegistryUnavailable("the disk is full")


@pytest.fixture(params=["memory", "sqlite"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Books]:
    if request.param == "memory":
        yield MemoryRegistry(wall=lambda: WALL)
    else:
        with SqliteRegistry.open(
            "sqlite:///r.db", tmp_path / "r.key", tmp_path, wall=lambda: WALL
        ) as opened:
            yield opened


def judging(registry: Books) -> tuple[Authentication, Told]:
    authentication = Authentication(registry, clock_skew=60.0, grace_time=GRACE)
    told = authentication.witness = Told()
    return authentication, told


def rotating(registry: Books) -> None:
    """A device with an old key, and a new one under the same identity."""
    registry.add_psk(DEFAULT_TENANT, SENSOR_7, b"sensor-7", OLD_KEY, create_device=True)
    registry.add_psk(DEFAULT_TENANT, SENSOR_7, b"sensor-7", NEW_KEY, state=PskState.BACKUP)


async def candidate(
    authentication: Authentication, secret: bytes, identity: bytes = b"sensor-7"
) -> PskCredential:
    """The key of an identity that a device has proven to hold."""
    found = await authentication.find_keys(identity)
    return next(key.without_secret() for key in found if key.secret == secret)


async def let_in(
    authentication: Authentication, credential: PskCredential, wall: float = WALL
) -> Identity:
    """As a handshake does it."""
    identity = await authentication.judge_psk(credential, wall)
    await authentication.promote(credential, identity)
    return identity


async def refusal(
    authentication: Authentication, credential: PskCredential, wall: float = WALL
) -> Refused:
    with pytest.raises(Refused) as caught:
        await authentication.judge_psk(credential, wall)
    return caught.value


# --- rotation


async def test_the_first_use_of_a_backup_promotes_it_once(registry: Books) -> None:
    rotating(registry)
    authentication, told = judging(registry)
    backup = await candidate(authentication, NEW_KEY)

    identities = await asyncio.gather(*(let_in(authentication, backup) for _ in range(50)))

    assert len(set(identities)) == 1
    assert told.of_promotions == ["psk-2"]
    states = {key.number: key.state for key in await authentication.find_keys(b"sensor-7")}
    assert states == {1: "retiring", 2: "active"}


async def test_what_is_written_after_its_decision_was_given_up_is_told_all_the_same(
    tmp_path: Path,
) -> None:
    with SqliteRegistry.open("sqlite:///registry.db", tmp_path / "key", tmp_path) as registry:
        rotating(registry)
        registry.add_batch(BATCH, NEW_KEY)
        authentication, told = judging(registry)
        _, new = await authentication.find_keys(b"sensor-7")
        identity = await authentication.judge_psk(new, WALL)
        (derived,) = await authentication.find_keys(b"acme-1")
        for late in (
            authentication.promote(new, identity),
            authentication.judge_psk(derived, WALL),
        ):
            with closing(sqlite3.connect(registry.path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                decision = asyncio.ensure_future(late)
                await until(registry._lock.locked, "it is being written")
                decision.cancel()  # by its deadline
            await decision

    assert told.of_promotions == [f"psk-{new.number}"]
    assert told.of_devices == [("1", "batch")]


async def test_a_device_that_never_switches_changes_nothing(registry: Books) -> None:
    rotating(registry)
    authentication, told = judging(registry)

    for _ in range(3):
        await let_in(authentication, await candidate(authentication, OLD_KEY))

    assert told.of_promotions == []
    states = [key.state for key in await authentication.find_keys(b"sensor-7")]
    assert states == ["active", "backup"]
    assert registry.newest_change() == 0


async def test_a_claimed_identity_never_promotes(registry: Books) -> None:
    rotating(registry)
    authentication, told = judging(registry)

    # A ClientKeyExchange leads to a look-up alone; only who proved a key is judged.
    for _ in range(10):
        await authentication.find_keys(b"sensor-7")

    assert told.of_promotions == []
    assert registry.newest_change() == 0


async def test_a_retiring_key_is_good_until_its_grace_is_over(registry: Books) -> None:
    rotating(registry)
    authentication, _ = judging(registry)
    old = await let_in(authentication, await candidate(authentication, OLD_KEY))
    await let_in(authentication, await candidate(authentication, NEW_KEY))
    retiring = await candidate(authentication, OLD_KEY)

    # Its end was set by a gateway: what clocks may differ by does not put it off.
    within = await let_in(authentication, retiring, WALL + GRACE)
    refused = await refusal(authentication, retiring, WALL + GRACE + 1)

    assert within.not_after == WALL + GRACE - 60
    assert refused.reason is Reason.EXPIRED
    assert refused.proven == (DEFAULT_TENANT, SENSOR_7, "psk-1")
    reviewed = await authentication.review(old, WALL + GRACE)
    assert reviewed.not_after == WALL + GRACE - 60
    with pytest.raises(Refused, match="expired"):
        await authentication.review(old, WALL + GRACE + 1)


async def test_using_the_retiring_key_does_not_turn_back_the_rotation(registry: Books) -> None:
    rotating(registry)
    authentication, told = judging(registry)
    await let_in(authentication, await candidate(authentication, NEW_KEY))

    await let_in(authentication, await candidate(authentication, OLD_KEY))

    assert told.of_promotions == ["psk-2"]
    states = [key.state for key in await authentication.find_keys(b"sensor-7")]
    assert states == ["retiring", "active"]


async def test_a_revoked_key_is_refused_and_its_session_would_be(registry: Books) -> None:
    rotating(registry)
    authentication, _ = judging(registry)
    identity = await let_in(authentication, await candidate(authentication, OLD_KEY))

    registry.revoke_psks(number=1)

    refused = await refusal(authentication, await candidate(authentication, OLD_KEY))
    assert refused.reason is Reason.REVOKED
    with pytest.raises(Refused, match="revoked"):
        await authentication.review(identity, WALL)


async def test_a_promotion_that_cannot_be_written_keeps_no_device_out() -> None:
    registry = ReadOnly(wall=lambda: WALL)
    rotating(registry)
    authentication, told = judging(registry)

    identity = await let_in(authentication, await candidate(authentication, NEW_KEY))

    assert identity.credential == "psk-2"
    assert (told.of_promotions, told.of_failures) == ([], ["the disk is full"])


# --- derived keys


async def derived(authentication: Authentication, identity: bytes) -> PskCredential:
    (found,) = await authentication.find_keys(identity)
    return found.without_secret()


async def test_first_contact_by_a_derived_key_creates_the_device_once(registry: Books) -> None:
    registry.add_batch(BATCH, OLD_KEY)
    authentication, told = judging(registry)
    credential = await derived(authentication, b"acme-sensor-7")

    identities = await asyncio.gather(*(let_in(authentication, credential) for _ in range(50)))

    assert {identity.credential for identity in identities} == {"psk-1"}
    assert [entry.device.device for entry in registry.devices()] == ["sensor-7"]
    assert told.of_devices == [("sensor-7", "batch")]
    await authentication.review(identities[0], WALL)


async def test_a_full_batch_refuses_the_next_device(registry: Books) -> None:
    registry.add_batch(BATCH, OLD_KEY)
    authentication, _ = judging(registry)
    for name in (b"acme-1", b"acme-2"):
        await let_in(authentication, await derived(authentication, name))

    refused = await refusal(authentication, await derived(authentication, b"acme-3"))

    assert refused.reason is Reason.LIMIT
    assert "'line-1' has 2 devices" in refused.detail
    assert (refused.proven, refused.claimed) == (None, b"acme-3")
    await let_in(authentication, await derived(authentication, b"acme-1"))


async def test_a_derived_key_takes_over_no_device_that_exists(registry: Books) -> None:
    registry.add_batch(BATCH, OLD_KEY)
    registry.add_device(Device(DEFAULT_TENANT, SENSOR_7))
    authentication, told = judging(registry)

    refused = await refusal(authentication, await derived(authentication, b"acme-sensor-7"))

    assert refused.reason is Reason.CREDENTIAL_MISMATCH
    assert refused.proven is None  # nothing is published for the device that exists
    assert told.of_devices == []


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (replace(BATCH, not_before=WALL + 61), Reason.NOT_YET_VALID),
        (replace(BATCH, not_after=WALL - 61), Reason.EXPIRED),
    ],
)
async def test_outside_the_validity_of_a_batch_no_device_comes_into_being(
    registry: Books, batch: Batch, reason: Reason
) -> None:
    registry.add_batch(batch, OLD_KEY)
    authentication, _ = judging(registry)

    refused = await refusal(authentication, await derived(authentication, b"acme-sensor-7"))

    assert (refused.reason, refused.proven) == (reason, None)
    assert list(registry.devices()) == []


async def test_a_batch_that_was_revoked_during_the_handshake_creates_nothing(
    registry: Books,
) -> None:
    registry.add_batch(BATCH, OLD_KEY)
    authentication, _ = judging(registry)
    credential = await derived(authentication, b"acme-sensor-7")

    registry.revoke_batch("line-1")

    assert (await refusal(authentication, credential)).reason is Reason.REVOKED
    assert list(registry.devices()) == []


async def test_a_registry_that_cannot_be_written_lets_no_new_device_in() -> None:
    registry = ReadOnly()
    registry.add_batch(BATCH, OLD_KEY)
    authentication, _ = judging(registry)

    refused = await refusal(authentication, await derived(authentication, b"acme-sensor-7"))

    assert refused.reason is Reason.UNAVAILABLE


async def test_after_first_contact_a_device_has_so_long_to_move_to_its_own_key(
    registry: Books,
) -> None:
    registry.add_batch(replace(BATCH, move_time=600.0), OLD_KEY)
    authentication, told = judging(registry)
    first = await let_in(authentication, await derived(authentication, b"acme-sensor-7"))
    assert first.not_after == WALL + 600

    registry.add_psk(DEFAULT_TENANT, SENSOR_7, b"acme-sensor-7", NEW_KEY, state=PskState.BACKUP)
    own = await let_in(authentication, await candidate(authentication, NEW_KEY, b"acme-sensor-7"))

    assert (own.not_after, told.of_promotions) == (None, ["psk-2"])
    late = (await authentication.find_keys(b"acme-sensor-7"))[0]
    assert (await refusal(authentication, late, WALL + 661)).reason is Reason.EXPIRED
