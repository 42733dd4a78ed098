"""What every registry does with credentials that change, whatever it is kept in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from coapgate.errors import AlreadyExists, BatchFull, Misused, NotFound, RegistryError
from coapgate.model import (
    AnchorState,
    Batch,
    Device,
    DeviceIdSource,
    PskState,
    Tenant,
    TrustAnchor,
)
from coapgate.registry.base import MAX_USES, Change, PskEntry, RevokedCertificate
from coapgate.registry.batches import derive_key
from tests.registry.conftest import AnyRegistry
from tests.registry.values import (
    ACME,
    ACME_CA,
    DEFAULT,
    FACTORY,
    KEY_1,
    KEY_2,
    NOW,
    SENSOR_1,
    SENSOR_2,
)

GRACE = 7 * 86400.0
MASTER_KEY = bytes(range(100, 132))
LINE_1 = Batch(0, "line-1", ACME, "acme-", "", max_devices=2)


def key(number: int) -> bytes:
    return bytes([number]) * 16


def add_key(
    registry: AnyRegistry,
    secret: bytes,
    *,
    identity: bytes = b"sensor-1",
    state: PskState = PskState.ACTIVE,
) -> int:
    return registry.add_psk(
        DEFAULT, SENSOR_1, identity, secret, create_device=True, state=state
    ).number


async def states(registry: AnyRegistry, identity: bytes = b"sensor-1") -> dict[bytes, str]:
    return {found.secret: found.state for found in await registry.find_psk(identity)}


def kinds(registry: AnyRegistry, after: int) -> set[tuple[object, ...]]:
    found = registry.changes(after)
    assert found is not None
    assert [change.number for change in found] == list(
        range(after + 1, registry.newest_change() + 1)
    )
    return {tuple(change[1:]) for change in found}


# Keys that follow one another.


async def test_a_backup_is_promoted_once_and_what_was_before_it_retires(
    registry: AnyRegistry,
) -> None:
    old = add_key(registry, KEY_1)
    new = add_key(registry, KEY_2, identity=b"sensor-1b", state=PskState.BACKUP)

    answers = await asyncio.gather(*(registry.promote(new, GRACE) for _ in range(50)))

    assert sorted(answers) == [False] * 49 + [True]
    assert await states(registry) == {KEY_1: "retiring"}
    assert await states(registry, b"sensor-1b") == {KEY_2: "active"}
    (retiring,) = await registry.find_psk(b"sensor-1")
    assert (retiring.number, retiring.retiring_until) == (old, NOW + GRACE)
    assert [entry.retiring_until for entry in registry.psks()] == [NOW + GRACE, None]


async def test_a_key_that_is_no_backup_is_not_promoted(registry: AnyRegistry) -> None:
    number = add_key(registry, KEY_1)

    assert not await registry.promote(number, GRACE)
    assert not await registry.promote(number + 1, GRACE)
    assert await states(registry) == {KEY_1: "active"}
    assert registry.newest_change() == 0


async def test_a_promotion_leaves_keys_that_came_after_it_alone(registry: AnyRegistry) -> None:
    add_key(registry, key(1))
    add_key(registry, key(2), state=PskState.BACKUP)
    backup = add_key(registry, key(3), state=PskState.BACKUP)
    add_key(registry, key(4))

    assert await registry.promote(backup, GRACE)

    assert await states(registry) == {
        key(1): "retiring",
        key(2): "retiring",
        key(3): "active",
        key(4): "active",
    }


def test_a_backup_needs_a_key_that_it_follows(registry: AnyRegistry) -> None:
    registry.add_device(Device(DEFAULT, SENSOR_1))

    with pytest.raises(RegistryError, match="no active key that another could follow"):
        add_key(registry, KEY_1, state=PskState.BACKUP)

    assert list(registry.psks()) == []


async def test_a_revoked_key_is_known_still_as_revoked(registry: AnyRegistry) -> None:
    number = add_key(registry, KEY_1)
    add_key(registry, KEY_2)

    (revoked,) = registry.revoke_psks(number=number)

    assert (revoked.number, revoked.state) == (number, "revoked")
    assert await states(registry) == {KEY_1: "revoked", KEY_2: "active"}
    found = await registry.find_psk_number(number)
    assert found is not None
    assert found.state == "revoked"


async def test_all_keys_of_an_identity_are_revoked_and_nobody_else_gets_it(
    registry: AnyRegistry,
) -> None:
    add_key(registry, KEY_1)
    add_key(registry, KEY_2)

    assert len(registry.revoke_psks(identity=b"sensor-1")) == 2

    assert set((await states(registry)).values()) == {"revoked"}
    with pytest.raises(AlreadyExists, match="belongs to device 'sensor-1'"):
        registry.add_psk(DEFAULT, SENSOR_2, b"sensor-1", KEY_1, create_device=True)


def test_a_key_that_is_not_there_is_not_revoked(registry: AnyRegistry) -> None:
    with pytest.raises(NotFound, match="psk-7"):
        registry.revoke_psks(number=7)
    with pytest.raises(NotFound, match="identity 'nobody'"):
        registry.revoke_psks(identity=b"nobody")


async def test_keys_that_have_ended_make_room_for_new_ones(registry: AnyRegistry) -> None:
    numbers = [add_key(registry, key(number)) for number in range(1, 5)]
    with pytest.raises(RegistryError, match="4 keys"):
        add_key(registry, key(5))
    registry.revoke_psks(number=numbers[1])

    add_key(registry, key(5))

    assert set(await states(registry)) == {key(1), key(3), key(4), key(5)}
    assert len(list(registry.psks())) == 5
    assert registry.max_keys_per_identity() == 4
    kept = await registry.find_psk_number(numbers[1])
    assert kept is not None
    assert kept.state == "revoked"


async def test_a_key_whose_grace_is_over_makes_room(registry: AnyRegistry) -> None:
    for number in range(1, 4):
        add_key(registry, key(number))
    backup = add_key(registry, key(4), state=PskState.BACKUP)
    await registry.promote(backup, -1.0)

    add_key(registry, key(5))

    assert set(await states(registry)) == {key(2), key(3), key(4), key(5)}


async def test_a_key_has_a_validity(registry: AnyRegistry) -> None:
    registry.add_psk(
        DEFAULT, SENSOR_1, b"a", KEY_1, create_device=True, not_before=NOW, not_after=NOW + 60
    )

    (found,) = await registry.find_psk(b"a")
    assert (found.not_before, found.not_after) == (NOW, NOW + 60)
    with pytest.raises(Misused, match="ends before it begins"):
        registry.add_psk(DEFAULT, SENSOR_1, b"b", KEY_2, not_before=NOW, not_after=NOW - 1)


async def test_a_short_key_is_taken_only_by_those_who_insist(registry: AnyRegistry) -> None:
    with pytest.raises(Misused, match="15 octets") as refused:
        registry.add_psk(DEFAULT, SENSOR_1, b"a", KEY_1[:15], create_device=True)
    assert "--allow-weak" in refused.value.hint

    registry.add_psk(DEFAULT, SENSOR_1, b"a", KEY_1[:15], create_device=True, allow_weak=True)

    assert [found.secret for found in await registry.find_psk(b"a")] == [KEY_1[:15]]
    for secret in (b"", bytes(65)):
        with pytest.raises(Misused):
            registry.add_psk(DEFAULT, SENSOR_1, b"a", secret, allow_weak=True)


# Keys that are derived.


async def test_an_identity_of_a_batch_has_the_key_derived_from_it(registry: AnyRegistry) -> None:
    batch = registry.add_batch(LINE_1, MASTER_KEY)

    (derived,) = await registry.find_psk(b"acme-sensor-1")

    assert derived.secret == derive_key(MASTER_KEY, b"acme-sensor-1")
    assert (derived.number, derived.batch, derived.state) == (0, batch.number, "active")
    assert (derived.tenant, derived.device) == (ACME, SENSOR_1)
    assert list(registry.devices()) == []  # nothing is proven yet
    for identity in (b"acme-", b"acme", b"other", b"acme-a/b", b"acme-\xff", b"acme-" + b"x" * 65):
        assert await registry.find_psk(identity) == ()


async def test_first_contact_registers_the_device_without_a_key(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")

    registered, is_new = await registry.register_derived(derived)

    assert is_new
    assert registered == replace(derived, number=registered.number, secret=b"")
    assert registered.number > 0
    assert await registry.find_psk(b"acme-sensor-1") == (
        replace(derived, number=registered.number),
    )
    assert await registry.find_psk_number(registered.number) == registered
    assert registry.get_batch("line-1").device_count == 1
    (entry,) = registry.batch_psks("line-1")
    assert (entry.device, entry.batch, entry.state) == (SENSOR_1, "line-1", "active")


async def test_fifty_first_contacts_at_once_register_a_device_once(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")

    answers = await asyncio.gather(*(registry.register_derived(derived) for _ in range(50)))

    assert len({key for key, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    assert len(list(registry.devices())) == 1
    assert registry.get_batch("line-1").device_count == 1


async def test_a_batch_brings_no_more_devices_into_being_than_it_may(
    registry: AnyRegistry,
) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    found = [await registry.find_psk(f"acme-{number}".encode()) for number in range(5)]

    answers = await asyncio.gather(
        *(registry.register_derived(derived) for (derived,) in found), return_exceptions=True
    )

    assert sum(isinstance(answer, BatchFull) for answer in answers) == 3
    assert len(list(registry.devices())) == 2
    assert len(list(registry.psks())) == 2

    # What it has brought into being counts for good: else removing would make room for a thief's.
    registry.remove_device(ACME, next(registry.devices()).device.device)
    assert registry.get_batch("line-1").device_count == 2
    late = next(
        key for (key,), answer in zip(found, answers, strict=True) if isinstance(answer, BatchFull)
    )
    with pytest.raises(BatchFull):
        await registry.register_derived(late)


async def test_a_removed_device_of_a_batch_does_not_come_back(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    await registry.register_derived(derived)
    registry.revoke_psks(identity=b"acme-sensor-1")

    registry.remove_device(ACME, SENSOR_1)

    assert await registry.find_psk(b"acme-sensor-1") == ()
    assert list(registry.removed_identities("line-1")) == [b"acme-sensor-1"]
    assert registry.find_removed(b"acme-sensor-1") == "line-1"
    with pytest.raises(NotFound, match="removed device"):  # its first contact was under way
        await registry.register_derived(derived)
    with pytest.raises(NotFound):
        registry.revoke_psks(identity=b"acme-sensor-1")
    assert list(registry.devices()) == []

    assert registry.restore_identity(b"acme-sensor-1") == "line-1"
    assert await registry.find_psk(b"acme-sensor-1") == (derived,)
    assert list(registry.removed_identities("line-1")) == []
    assert registry.get_batch("line-1").device_count == 0
    with pytest.raises(NotFound, match="no removed device"):
        registry.restore_identity(b"acme-sensor-1")


async def test_a_removed_device_with_a_key_of_its_own_does_not_come_back_by_a_factory_key(
    registry: AnyRegistry,
) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    registry.add_psk(ACME, SENSOR_1, b"acme-sensor-1", KEY_1, create_device=True)
    registry.add_psk(ACME, SENSOR_1, b"other", KEY_1)

    registry.remove_device(ACME, SENSOR_1)

    assert await registry.find_psk(b"acme-sensor-1") == ()
    assert list(registry.removed_identities("line-1")) == [b"acme-sensor-1"]

    # It may have one of its own again, and be removed again.
    registry.add_psk(ACME, SENSOR_1, b"acme-sensor-1", KEY_2, create_device=True)
    assert await states(registry, b"acme-sensor-1") == {KEY_2: "active"}
    registry.remove_device(ACME, SENSOR_1)
    assert registry.get_batch("line-1").device_count == 1


async def test_a_removed_device_of_a_revoked_batch_is_remembered_too(
    registry: AnyRegistry,
) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    await registry.register_derived(derived)
    registry.revoke_batch("line-1")
    registry.remove_device(ACME, SENSOR_1)
    registry.add_batch(replace(LINE_1, name="line-2"), MASTER_KEY)

    assert await registry.find_psk(b"acme-sensor-1") == ()


async def test_a_promotion_leaves_keys_of_the_other_identities_alone(
    registry: AnyRegistry,
) -> None:
    add_key(registry, key(1), identity=b"modem")
    add_key(registry, key(2), identity=b"sensor")
    backup = add_key(registry, key(3), identity=b"modem", state=PskState.BACKUP)

    assert await registry.promote(backup, GRACE)

    assert await states(registry, b"modem") == {key(1): "retiring", key(3): "active"}
    assert await states(registry, b"sensor") == {key(2): "active"}


async def test_a_backup_of_a_new_identity_says_which_one_it_follows(
    registry: AnyRegistry,
) -> None:
    def add_backup(secret: bytes, identity: bytes, follows: bytes | None) -> PskEntry:
        return registry.add_psk(
            DEFAULT, SENSOR_1, identity, secret, state=PskState.BACKUP, follows=follows
        )

    add_key(registry, key(1), identity=b"modem")
    add_key(registry, key(2), identity=b"sensor")
    with pytest.raises(RegistryError, match="several identities: modem, sensor"):
        add_backup(key(3), b"modem-2", None)
    with pytest.raises(RegistryError, match="no active key of identity 'radio'"):
        add_backup(key(3), b"modem-2", b"radio")
    first = add_backup(key(3), b"modem-2", b"modem")
    second = add_backup(key(4), b"modem-3", b"modem")
    assert (first.follows, second.follows) == (b"modem", b"modem")
    assert [entry.follows for entry in registry.psks()] == [None, None, b"modem", b"modem"]

    assert await registry.promote(second.number, GRACE)

    assert await states(registry, b"modem") == {key(1): "retiring"}
    assert await states(registry, b"modem-2") == {key(3): "retiring"}
    assert await states(registry, b"modem-3") == {key(4): "active"}
    assert await states(registry, b"sensor") == {key(2): "active"}


async def test_of_two_backups_the_second_retires_the_first_that_was_used_before(
    registry: AnyRegistry,
) -> None:
    add_key(registry, key(1), identity=b"modem")
    add_key(registry, key(2), identity=b"modem-2", state=PskState.BACKUP)
    second = add_key(registry, key(3), identity=b"modem-3", state=PskState.BACKUP)
    assert await registry.promote(second - 1, GRACE)

    assert await registry.promote(second, GRACE)

    assert await states(registry, b"modem-2") == {key(2): "retiring"}
    assert await states(registry, b"modem-3") == {key(3): "active"}


async def test_first_contact_takes_over_no_device_that_exists(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    registry.add_device(Device(ACME, SENSOR_1))
    (derived,) = await registry.find_psk(b"acme-sensor-1")

    with pytest.raises(AlreadyExists):
        await registry.register_derived(derived)

    assert list(registry.psks()) == []


async def test_an_identity_with_a_key_of_its_own_is_never_derived(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    own = registry.add_psk(DEFAULT, SENSOR_2, b"acme-sensor-1", KEY_1, create_device=True)
    registry.revoke_psks(number=own.number)

    assert await states(registry, b"acme-sensor-1") == {KEY_1: "revoked"}
    with pytest.raises(AlreadyExists, match="a key of its own"):
        await registry.register_derived(derived)


async def test_one_device_of_a_batch_is_revoked_for_good(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    await registry.register_derived(derived)

    registry.revoke_psks(identity=b"acme-sensor-1")

    assert set((await states(registry, b"acme-sensor-1")).values()) == {"revoked"}
    again, _ = await registry.register_derived(derived)
    assert again.state == "revoked"
    assert (await states(registry, b"acme-sensor-2")) == {
        derive_key(MASTER_KEY, b"acme-sensor-2"): "active"
    }


@pytest.mark.parametrize("is_known", [False, True])
async def test_a_device_of_a_batch_is_revoked_before_its_first_contact(
    registry: AnyRegistry, is_known: bool
) -> None:
    registry.add_batch(replace(LINE_1, max_devices=1), MASTER_KEY)
    (other,) = await registry.find_psk(b"acme-sensor-2")
    await registry.register_derived(other)  # the batch is full, which is no hindrance
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    if is_known:
        registry.add_device(Device(ACME, SENSOR_1))

    (revoked,) = registry.revoke_psks(identity=b"acme-sensor-1")

    assert (revoked.device, revoked.state, revoked.batch) == (SENSOR_1, "revoked", "line-1")
    assert await states(registry, b"acme-sensor-1") == {derived.secret: "revoked"}
    again, is_new = await registry.register_derived(derived)
    assert (again.state, is_new) == ("revoked", False)
    with pytest.raises(NotFound, match="no key of identity 'other'"):
        registry.revoke_psks(identity=b"other")


async def test_a_revoked_batch_takes_its_devices_along_and_derives_no_more(
    registry: AnyRegistry,
) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (first,) = await registry.find_psk(b"acme-sensor-1")
    (second,) = await registry.find_psk(b"acme-sensor-2")
    registered, _ = await registry.register_derived(first)
    own = registry.add_psk(ACME, SENSOR_1, b"own", KEY_1)
    before = registry.newest_change()

    assert registry.revoke_batch("line-1").state == "revoked"

    assert kinds(registry, before) == {("batch", ACME, None, None)}
    before = registry.newest_change()
    assert registry.revoke_batch("line-1").state == "revoked"
    assert registry.changes(before) == ()
    assert set((await states(registry, b"acme-sensor-1")).values()) == {"revoked"}
    reviewed = await registry.find_psk_number(registered.number)
    assert reviewed is not None
    assert reviewed.state == "revoked"
    assert [entry.state for entry in registry.psks(ACME)] == ["revoked", "active"]
    assert await registry.find_psk(b"acme-sensor-2") == ()
    with pytest.raises(NotFound, match="was revoked"):
        await registry.register_derived(second)
    kept = await registry.find_psk_number(own.number)
    assert kept is not None
    assert kept.state == "active"


async def test_a_derived_key_can_be_followed_by_one_of_its_own(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = await registry.find_psk(b"acme-sensor-1")
    await registry.register_derived(derived)

    own = registry.add_psk(ACME, SENSOR_1, b"acme-sensor-1", KEY_1, state=PskState.BACKUP)
    assert await registry.promote(own.number, GRACE)

    assert await states(registry, b"acme-sensor-1") == {derived.secret: "retiring", KEY_1: "active"}
    registry.revoke_batch("line-1")
    assert await states(registry, b"acme-sensor-1") == {derived.secret: "revoked", KEY_1: "active"}


async def test_a_derived_key_is_good_as_long_as_its_batch_and_its_own_time(
    registry: AnyRegistry,
) -> None:
    registry.add_batch(
        replace(LINE_1, not_before=NOW - 9, not_after=NOW + 99, move_time=50.0), MASTER_KEY
    )

    (derived,) = await registry.find_psk(b"acme-sensor-1")
    assert (derived.not_before, derived.not_after) == (NOW - 9, NOW + 99)
    registered, _ = await registry.register_derived(derived)
    assert (registered.not_before, registered.not_after) == (NOW - 9, NOW + 50)


@pytest.mark.parametrize(
    ("prefix", "suffix"),
    [("acme-", ""), ("acme-x", ""), ("", ""), ("acme-", ".sensors"), ("ac", "-9")],
)
def test_no_identity_could_belong_to_two_batches(
    registry: AnyRegistry, prefix: str, suffix: str
) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)

    with pytest.raises(AlreadyExists, match="an identity could fit"):
        registry.add_batch(replace(LINE_1, name="b", prefix=prefix, suffix=suffix), MASTER_KEY)

    assert len(registry.batches()) == 1


async def test_batches_that_cannot_overlap_live_side_by_side(registry: AnyRegistry) -> None:
    registry.add_batch(replace(LINE_1, suffix=".a"), MASTER_KEY)
    registry.add_batch(replace(LINE_1, name="b", suffix=".b", tenant=DEFAULT), KEY_2)
    registry.add_batch(replace(LINE_1, name="c", prefix="bcme-"), KEY_1)

    (a,) = await registry.find_psk(b"acme-sensor-1.a")
    (b,) = await registry.find_psk(b"acme-sensor-1.b")
    (c,) = await registry.find_psk(b"bcme-sensor-1")

    assert (a.tenant, b.tenant, c.tenant) == (ACME, DEFAULT, ACME)
    assert a.secret == derive_key(MASTER_KEY, b"acme-sensor-1.a")
    assert b.secret == derive_key(KEY_2, b"acme-sensor-1.b")
    assert [batch.pattern for batch in registry.batches()] == [
        "acme-{device}.b",
        "bcme-{device}",
        "acme-{device}.a",
    ]
    assert registry.get_batch_secret("c") == KEY_1


def test_a_batch_that_cannot_be_is_refused(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    with pytest.raises(AlreadyExists, match="a batch 'line-1' already"):
        registry.add_batch(replace(LINE_1, prefix="other-"), MASTER_KEY)
    for bad in (
        replace(LINE_1, name="a/b"),
        replace(LINE_1, tenant=Tenant("")),
        replace(LINE_1, max_devices=0),
        replace(LINE_1, max_devices=10_000_001),
        replace(LINE_1, prefix="x" * 128),
        replace(LINE_1, prefix="a\0"),
        replace(LINE_1, prefix="a\udcff"),
        replace(LINE_1, suffix="{b}"),
        replace(LINE_1, not_before=NOW, not_after=NOW - 1),
    ):
        with pytest.raises(Misused):
            registry.add_batch(bad, MASTER_KEY)
    with pytest.raises(Misused, match="15 octets"):
        registry.add_batch(replace(LINE_1, name="b", prefix="b-"), KEY_1[:15])
    for missing in (registry.get_batch, registry.revoke_batch, registry.get_batch_secret):
        with pytest.raises(NotFound, match="no batch 'b'"):
            missing("b")
    assert [batch.name for batch in registry.batches()] == ["line-1"]


# Trust anchors.


async def test_what_an_anchor_accepts_comes_back_as_it_was(registry: AnyRegistry) -> None:
    anchor = TrustAnchor(
        "shared",
        DEFAULT,
        key_id=b"\x03" * 32,
        certificate=b"DER",
        device_id_source=DeviceIdSource.CN,
        auto_provision=True,
        device_id_template="{o}-{cn}",
        tenant_template="{ou}",
        tenants=(ACME, DEFAULT),
        labels=(("line", "7"), ("ort", "Köln")),
        max_validity=86400.0,
        crl_files=("/var/lib/crl.pem",),
        crl_mode="hard",
    )
    registry.add_anchor(anchor)

    assert await registry.anchors() == (anchor,)
    assert registry.get_anchor("shared") == anchor
    with pytest.raises(NotFound, match="no anchor 'nobody'"):
        registry.get_anchor("nobody")


async def test_only_active_anchors_are_believed(registry: AnyRegistry) -> None:
    staged = replace(FACTORY, state=AnchorState.STAGED, proof_code="abc")
    registry.add_anchor(staged)
    assert await registry.anchors() == ()
    before = registry.newest_change()

    active = registry.set_anchor_state("factory", AnchorState.ACTIVE)
    assert await registry.anchors() == (active,)
    assert kinds(registry, before) == {("anchor", None, None, FACTORY.key_id)}

    registry.set_anchor_state("factory", AnchorState.DISABLED)
    assert await registry.anchors() == ()
    assert [anchor.state for anchor in registry.anchors_all()] == ["disabled"]
    with pytest.raises(NotFound):
        registry.set_anchor_state("nobody", AnchorState.ACTIVE)


async def test_an_anchor_is_only_believed_as_it_was_when_that_was_decided(
    registry: AnyRegistry,
) -> None:
    staged = replace(FACTORY, state=AnchorState.STAGED, proof_code="abc")
    registry.add_anchor(staged)
    registry.remove_anchor("factory")  # meanwhile, and another takes its name
    registry.add_anchor(replace(staged, key_id=bytes(32)))

    with pytest.raises(RegistryError, match="was changed just now"):
        registry.set_anchor_state("factory", AnchorState.ACTIVE, was=staged)
    assert await registry.anchors() == ()

    now = registry.get_anchor("factory")
    registry.set_anchor_state("factory", AnchorState.DISABLED, was=now)
    with pytest.raises(RegistryError, match="was changed just now"):
        registry.set_anchor_state("factory", AnchorState.ACTIVE, was=now)


@pytest.mark.parametrize("shared", [False, True])
async def test_a_certificate_value_is_taken_away_from_a_device(
    registry: AnyRegistry, shared: bool
) -> None:
    anchor = replace(FACTORY, tenant_template="{o}", tenants=(DEFAULT,)) if shared else FACTORY
    registry.add_anchor(anchor)
    registry.trust(DEFAULT, SENSOR_1, "factory", "00-11", create_device=True)
    registry.trust(DEFAULT, SENSOR_1, "factory", "22-33")
    registry.add_device(Device(DEFAULT, SENSOR_2))
    before = registry.newest_change()

    for device, value in ((SENSOR_2, "00-11"), (SENSOR_1, "44-55")):
        with pytest.raises(NotFound, match="do not speak for device"):
            registry.distrust(DEFAULT, device, "factory", value)
    with pytest.raises(NotFound, match="no anchor"):
        registry.distrust(DEFAULT, SENSOR_1, "nobody", "00-11")
    registry.distrust(DEFAULT, SENSOR_1, "factory", "00-11")

    (left,) = registry.certificates(DEFAULT, SENSOR_1)
    assert left.value == anchor.pair_value(DEFAULT, "22-33")
    taken = anchor.pair_value(DEFAULT, "00-11")
    assert await registry.find_certificate_device(FACTORY.key_id, taken) is None
    assert kinds(registry, before) == {("device", DEFAULT, SENSOR_1, None)}


async def test_an_anchor_is_changed_without_being_removed(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    changed = replace(
        FACTORY,
        certificate=b"renewed DER",
        auto_provision=False,
        labels=(("line", "8"),),
        max_validity=60.0,
        crl_files=("/a.crl",),
        crl_mode="hard",
    )

    registry.change_anchor(replace(changed, tenant=ACME, device_id_template="{o}"))

    assert await registry.anchors() == (changed,)
    assert kinds(registry, 0) == {("anchor", None, None, FACTORY.key_id)}
    for other in (replace(changed, name="other"), replace(changed, key_id=ACME_CA.key_id)):
        with pytest.raises(NotFound):
            registry.change_anchor(other)


async def test_an_anchor_of_several_tenants_speaks_for_devices_of_each(
    registry: AnyRegistry,
) -> None:
    shared = replace(FACTORY, tenant_template="{o}", tenants=(ACME, DEFAULT))
    registry.add_anchor(shared)
    registry.trust(ACME, SENSOR_1, "factory", "one", create_device=True)
    registry.trust(DEFAULT, SENSOR_2, "factory", "one", create_device=True)

    for tenant, device in ((ACME, SENSOR_1), (DEFAULT, SENSOR_2)):
        value = shared.pair_value(tenant, "one")
        found = await registry.find_certificate_device(shared.key_id, value)
        assert found == Device(tenant, device)
    with pytest.raises(RegistryError, match="serves tenant 'acme' or 'default', not 'other'"):
        registry.trust(Tenant("other"), SENSOR_1, "factory", "one", create_device=True)


async def test_a_provisioned_device_has_the_labels_of_its_anchor_and_the_tenant_it_names(
    registry: AnyRegistry,
) -> None:
    anchor = replace(FACTORY, labels=(("line", "7"),), tenant_template="{o}", tenants=(ACME,))
    registry.add_anchor(anchor)

    made = await registry.provision(anchor, SENSOR_1, "acme/sensor-1", ACME)

    assert made == Device(ACME, SENSOR_1, labels=(("line", "7"),))
    assert registry.get_device(ACME, SENSOR_1).device == made


async def test_the_last_use_of_certificates_is_written_once_a_day(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    for device in (SENSOR_1, SENSOR_2):
        registry.trust(DEFAULT, device, "factory", device, create_device=True)
    before = registry.newest_change()

    for _ in range(3):
        registry.note_use(FACTORY.key_id, "sensor-1")
    registry.note_use(FACTORY.key_id, "nobody")

    assert await registry.write_uses() == 1
    registry.note_use(FACTORY.key_id, "sensor-1")
    assert await registry.write_uses() == 0
    assert await registry.write_uses() == 0
    (pair,) = registry.certificates(DEFAULT, SENSOR_1)
    assert pair.used_at == NOW
    assert registry.anchor_devices(FACTORY.key_id, NOW - 30 * 86400) == 1
    assert registry.anchor_devices(FACTORY.key_id, NOW + 1) == 0
    assert registry.anchor_devices(FACTORY.key_id) == 2
    assert registry.anchor_devices(ACME_CA.key_id) == 0
    assert registry.newest_change() == before  # nobody need review anything


async def test_no_more_uses_wait_than_a_bound(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1", create_device=True)

    for number in range(MAX_USES):
        registry.note_use(FACTORY.key_id, f"nobody-{number}")
    registry.note_use(FACTORY.key_id, "sensor-1")

    assert await registry.write_uses() == 0
    registry.note_use(FACTORY.key_id, "sensor-1")
    assert await registry.write_uses() == 1


def test_first_contacts_make_nobody_review_anything(registry: AnyRegistry) -> None:
    registry.add_batch(LINE_1, MASTER_KEY)
    (derived,) = asyncio.run(registry.find_psk(b"acme-sensor-1"))

    asyncio.run(registry.register_derived(derived))

    assert registry.newest_change() == 0


# Certificates revoked one by one.


async def test_a_certificate_is_revoked_once(registry: AnyRegistry) -> None:
    by_serial = RevokedCertificate(FACTORY.key_id, serial=b"\x12\x34", issuer=b"i" * 8)
    by_fingerprint = RevokedCertificate(FACTORY.key_id, fingerprint=b"f" * 16)
    assert await registry.revoked_certificates() == ()

    assert registry.revoke_certificate(by_serial)
    assert not registry.revoke_certificate(by_serial)
    assert registry.revoke_certificate(by_fingerprint)

    await registry.anchors()  # which looks whether anything has changed
    found = await registry.revoked_certificates()
    assert found == (replace(by_serial, added_at=NOW), replace(by_fingerprint, added_at=NOW))
    assert await registry.revoked_certificates() is found
    assert kinds(registry, 0) == {("certificate", None, None, FACTORY.key_id)}

    assert registry.restore_certificate(by_fingerprint)
    assert not registry.restore_certificate(by_fingerprint)
    await registry.anchors()
    assert await registry.revoked_certificates() == found[:1]
    assert registry.revoked_certificates_all() == found[:1]


# What has changed.


async def test_whatever_may_end_an_association_is_a_change(registry: AnyRegistry) -> None:
    registry.add_anchor(FACTORY)
    add_key(registry, KEY_1)
    backup = add_key(registry, KEY_2, state=PskState.BACKUP)
    registry.trust(DEFAULT, SENSOR_1, "factory", "sensor-1")
    registry.add_device(Device(ACME, SENSOR_1))
    assert registry.newest_change() == 0
    assert registry.changes(0) == ()
    device = ("device", DEFAULT, SENSOR_1, None)

    before = registry.newest_change()
    registry.enable_device(DEFAULT, SENSOR_1, enabled=True)
    assert registry.changes(before) == ()
    registry.enable_device(DEFAULT, SENSOR_1, enabled=False)
    assert registry.changes(before) == (Change(1, *device),)

    for act in (
        lambda: registry.promote(backup, GRACE),
        lambda: registry.revoke_psks(number=backup),
        lambda: registry.remove_device(DEFAULT, SENSOR_1),
    ):
        before = registry.newest_change()
        if (waiting := act()) is not None and not isinstance(waiting, tuple):
            await waiting
        assert kinds(registry, before) == {device}

    before = registry.newest_change()
    registry.remove_anchor("factory")
    assert kinds(registry, before) == {("anchor", None, None, FACTORY.key_id)}


def test_who_is_too_slow_for_the_change_log_is_told_so(registry: AnyRegistry) -> None:
    registry.add_device(Device(DEFAULT, SENSOR_1))
    for number in range(5):
        registry.enable_device(DEFAULT, SENSOR_1, enabled=number % 2 == 1)

    assert registry.changes(99) is None  # another log's number
    assert registry.changes(-1) is None
    found = registry.changes(3)
    assert found is not None
    assert [change.number for change in found] == [4, 5]
    assert registry.changes(5) == ()
