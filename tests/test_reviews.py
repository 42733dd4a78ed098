"""Which live associations a change concerns, when credentials end, and in what pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import pytest

from coapgate import reviews as module
from coapgate.dtls.association import Association
from coapgate.dtls.protection import Protection
from coapgate.dtls.suites import SUITES
from coapgate.errors import Reason, Refused
from coapgate.model import DEFAULT_TENANT, DeviceId, Identity, Method, Tenant
from coapgate.registry.base import Change
from coapgate.reviews import COUNT_INTERVAL, REVIEW_COST, SWEEP_INTERVAL, Reviews

WALL = 1_800_000_000.0
WINDOW = 95.0
ANCHOR, OTHER_ANCHOR = bytes(32), bytes([1]) * 32
SUITE = next(iter(SUITES.values()))


class House:
    """Associations, and a registry that says of each device whether it may stay."""

    def __init__(self) -> None:
        self.associations: list[Association] = []
        self.refused: dict[str, Reason] = {}
        self.ends: dict[str, float] = {}
        self.asked: list[str] = []
        self.ended: list[tuple[str, Reason]] = []
        self.now = 1000.0
        self.wall = WALL
        self.revoked: set[str] = set()
        self.is_away = False
        self.reviews = Reviews(
            self,
            self.review,
            self.end,
            see_revoked=self.see_revoked,
            clock_skew=60.0,
            window=WINDOW,
        )

    def of_device(self, tenant: Tenant, device: DeviceId) -> Iterable[Association]:
        return [
            each
            for each in self.associations
            if (each.identity.tenant, each.identity.device) == (tenant, device)
        ]

    def all(self) -> list[Association]:
        return list(self.associations)

    async def review(self, identity: Identity, wall: float) -> Identity:
        self.asked.append(identity.device)
        reason = self.refused.get(identity.device)
        if reason is not None:
            raise Refused(reason, "so the test says")
        if identity.device in self.ends:
            return replace(identity, not_after=self.ends[identity.device])
        return identity

    async def see_revoked(self) -> Callable[[Identity], bool]:
        if self.is_away:
            raise Refused(Reason.UNAVAILABLE, "so the test says")
        return lambda identity: identity.device in self.revoked

    def end(self, association: Association, reason: Reason) -> None:
        association.is_open = False
        self.associations.remove(association)
        self.ended.append((association.identity.device, reason))

    def open(
        self,
        device: str,
        *,
        tenant: Tenant = DEFAULT_TENANT,
        anchor: bytes | None = None,
        not_after: float | None = None,
    ) -> Association:
        method = Method.PSK if anchor is None else Method.X509
        identity = Identity(tenant, DeviceId(device), method, "one", anchor, not_after)
        key_block = bytes(SUITE.key_block_length)
        protection = Protection(SUITE, key_block, is_client=False, received_cid=b"", sent_cid=b"")
        association = Association(
            bytes(8), identity, (0, ("192.0.2.1", 1)), protection, 1000, self.now
        )
        self.associations.append(association)
        self.reviews.opened(association)
        return association

    async def settle(self) -> None:
        """One look, and all that follows from it."""
        self.reviews.look(self.now, self.wall)
        while self.reviews.is_more:
            await self.reviews.turn(self.wall)

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds
        await self.settle()


@pytest.fixture
async def house() -> House:
    """With the walk behind it that counts what there is."""
    one = House()
    await one.settle()
    return one


def of_device(device: str, tenant: Tenant = DEFAULT_TENANT) -> Change:
    return Change(1, "device", tenant, DeviceId(device), None)


def of_anchor(key_id: bytes, kind: str = "anchor") -> Change:
    return Change(1, kind, None, None, key_id)


# --- whom a change concerns


async def test_a_change_of_a_device_concerns_all_its_associations_and_no_others(
    house: House,
) -> None:
    for device in ("sensor-1", "sensor-2", "sensor-1"):
        house.open(device)
    house.refused = {"sensor-1": Reason.REVOKED, "sensor-2": Reason.REVOKED}

    house.reviews.note([of_device("sensor-1")], house.now)
    await house.settle()

    assert house.ended == [("sensor-1", Reason.REVOKED)] * 2
    assert house.asked == ["sensor-1"] * 2


async def test_a_change_never_reaches_a_device_of_another_tenant(house: House) -> None:
    house.open("sensor-1", tenant=Tenant("plant-4"))
    house.refused = {"sensor-1": Reason.DISABLED}

    house.reviews.note([of_device("sensor-1")], house.now)
    house.reviews.note([Change(2, "batch", DEFAULT_TENANT, None, None)], house.now)
    await house.settle()

    assert house.ended == []
    assert house.asked == []


async def test_a_change_of_an_anchor_concerns_those_below_it(house: House) -> None:
    house.open("below", anchor=ANCHOR)
    house.open("below-another", anchor=OTHER_ANCHOR)
    house.open("with-a-key")
    house.refused = dict.fromkeys(("below", "below-another", "with-a-key"), Reason.UNTRUSTED)

    house.reviews.note([of_anchor(ANCHOR)], house.now)
    await house.settle()

    assert house.ended == [("below", Reason.UNTRUSTED)]


async def test_a_change_of_a_batch_concerns_the_keys_of_its_tenant(house: House) -> None:
    house.open("by-key", tenant=Tenant("plant-4"))
    house.open("by-certificate", tenant=Tenant("plant-4"), anchor=ANCHOR)
    house.refused = dict.fromkeys(("by-key", "by-certificate"), Reason.REVOKED)

    house.reviews.note([Change(1, "batch", Tenant("plant-4"), None, None)], house.now)
    await house.settle()

    assert house.ended == [("by-key", Reason.REVOKED)]


async def test_when_the_log_of_changes_is_lost_everybody_is_judged_again(house: House) -> None:
    house.open("sensor-1")
    house.open("sensor-2", anchor=ANCHOR)
    house.refused = {"sensor-2": Reason.DISABLED}

    house.reviews.note(None, house.now)
    await house.settle()

    assert house.asked == ["sensor-1", "sensor-2"]
    assert house.ended == [("sensor-2", Reason.DISABLED)]


# --- handshakes that began before a change


def by_key(device: str) -> Identity:
    return Identity(DEFAULT_TENANT, DeviceId(device), Method.PSK, "one")


def by_certificate(device: str, anchor: bytes) -> Identity:
    return Identity(DEFAULT_TENANT, DeviceId(device), Method.X509, "one", anchor)


async def test_whom_a_change_concerns_is_judged_once_more_before_it_is_let_in(
    house: House,
) -> None:
    reviews = house.reviews
    assert not reviews.may_have_changed(by_key("sensor-1"))

    reviews.note([of_device("sensor-1"), of_anchor(ANCHOR)], house.now)
    await house.settle()

    assert reviews.may_have_changed(by_key("sensor-1"))
    assert reviews.may_have_changed(by_certificate("sensor-2", ANCHOR))
    assert not reviews.may_have_changed(by_key("sensor-2"))
    # It may be one that is below the first by way of the other.
    assert reviews.may_have_changed(by_certificate("sensor-2", OTHER_ANCHOR))
    namesake = replace(by_key("sensor-1"), tenant=Tenant("plant-4"))
    assert not reviews.may_have_changed(namesake)


async def test_who_began_after_a_change_is_not_judged_twice(house: House) -> None:
    house.reviews.note([of_device("sensor-1"), of_anchor(ANCHOR)], house.now)
    await house.wait(WINDOW)

    assert not house.reviews.may_have_changed(by_key("sensor-1"))
    assert not house.reviews.may_have_changed(by_certificate("sensor-2", ANCHOR))


async def test_changes_beyond_the_number_remembered_concern_whoever_is_let_in(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_RECENT", 3)
    house.reviews.note([of_device(f"sensor-{number}") for number in range(4)], house.now)
    await house.settle()

    assert house.reviews.may_have_changed(by_key("sensor-0"))
    assert house.reviews.may_have_changed(by_certificate("another", OTHER_ANCHOR))


# --- what ends by time


async def test_a_certificate_ends_its_association_when_it_expires(house: House) -> None:
    house.open("sensor-1", anchor=ANCHOR, not_after=WALL + 10)
    house.open("sensor-2", anchor=ANCHOR, not_after=WALL + 20)
    house.refused = dict.fromkeys(("sensor-1", "sensor-2"), Reason.EXPIRED)

    await house.wait(10)
    assert house.ended == []
    await house.wait(0.5)
    assert house.ended == [("sensor-1", Reason.EXPIRED)]
    await house.wait(9.5)
    assert len(house.ended) == 1
    await house.wait(SWEEP_INTERVAL)
    assert house.ended == [("sensor-1", Reason.EXPIRED), ("sensor-2", Reason.EXPIRED)]


async def test_a_key_is_good_for_the_clock_skew_longer(house: House) -> None:
    house.open("sensor-1", not_after=WALL)
    house.refused = {"sensor-1": Reason.EXPIRED}

    await house.wait(59)
    assert house.ended == []
    await house.wait(1.5)
    assert house.ended == [("sensor-1", Reason.EXPIRED)]


async def test_nobody_is_looked_at_before_something_ends(house: House) -> None:
    house.open("sensor-1", not_after=WALL + 1000, anchor=ANCHOR)
    await house.wait(0.5)
    assert not house.reviews.is_more

    house.now += COUNT_INTERVAL - 1
    house.reviews.look(house.now, house.wall)

    assert not house.reviews.is_more


async def test_a_change_tells_the_new_end_of_a_key(house: House) -> None:
    association = house.open("sensor-1")
    house.ends = {"sensor-1": WALL + 100}
    house.reviews.note([of_device("sensor-1")], house.now)
    await house.settle()
    assert association.identity.not_after == WALL + 100

    house.refused = {"sensor-1": Reason.EXPIRED}
    await house.wait(160.5)

    assert house.ended == [("sensor-1", Reason.EXPIRED)]


async def test_who_is_let_in_during_a_walk_ends_on_time_too(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 1)
    for number in range(3):
        house.open(f"sensor-{number}")
    house.reviews.note([of_anchor(ANCHOR)], house.now)
    house.reviews.look(house.now, house.wall)
    await house.reviews.turn(house.wall)
    house.open("late", not_after=WALL + 10, anchor=ANCHOR)
    await house.settle()
    house.refused = {"late": Reason.EXPIRED}

    await house.wait(10.5)

    assert ("late", Reason.EXPIRED) in house.ended


async def test_what_ends_soon_is_counted(house: House) -> None:
    day = 86_400.0
    for days in (0.5, 3, 20, 100):
        house.open(f"in-{days}", anchor=ANCHOR, not_after=WALL + days * day)
    house.open("never")

    await house.wait(COUNT_INTERVAL)

    assert house.reviews.expiring == {"1d": 1, "7d": 2, "30d": 3}


# --- in pieces, and when nobody can say


async def test_a_turn_judges_no_more_than_a_bounded_number(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 10 * REVIEW_COST)
    for number in range(35):
        house.open(f"sensor-{number}", anchor=ANCHOR)
    house.reviews.note([of_anchor(ANCHOR)], house.now)
    house.reviews.look(house.now, house.wall)

    turns = []
    while house.reviews.is_more:
        before = len(house.asked)
        await house.reviews.turn(house.wall)
        turns.append(len(house.asked) - before)

    assert sum(turns) == 35
    assert max(turns) <= 10


async def test_a_single_device_does_not_wait_for_a_walk(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TURN", 2 * REVIEW_COST)
    for number in range(10):
        house.open(f"sensor-{number}", anchor=ANCHOR)
    house.reviews.note([of_anchor(ANCHOR)], house.now)
    house.reviews.look(house.now, house.wall)
    await house.reviews.turn(house.wall)

    house.reviews.note([of_device("sensor-9")], house.now)
    await house.reviews.turn(house.wall)

    assert house.asked[2] == "sensor-9"


async def test_a_registry_that_cannot_say_ends_nobody_and_is_asked_again(house: House) -> None:
    house.open("sensor-1")
    house.open("sensor-2", anchor=ANCHOR)
    house.refused = dict.fromkeys(("sensor-1", "sensor-2"), Reason.UNAVAILABLE)
    house.reviews.note([of_device("sensor-1"), of_anchor(ANCHOR)], house.now)
    await house.settle()
    assert house.reviews.unavailable is not None
    assert house.ended == []
    asked = len(house.asked)

    house.refused = dict.fromkeys(("sensor-1", "sensor-2"), Reason.DISABLED)
    await house.wait(0.5)

    assert len(house.asked) == asked + 2
    assert sorted(house.ended) == [
        ("sensor-1", Reason.DISABLED),
        ("sensor-2", Reason.DISABLED),
    ]


async def test_what_has_expired_ends_although_the_registry_cannot_say(house: House) -> None:
    house.open("sensor-1", anchor=ANCHOR, not_after=WALL + 10)
    house.open("sensor-2", anchor=ANCHOR, not_after=WALL + 10)
    house.refused = dict.fromkeys(("sensor-1", "sensor-2"), Reason.UNAVAILABLE)

    await house.wait(11)
    await house.wait(0.5)

    assert house.ended == [("sensor-1", Reason.EXPIRED), ("sensor-2", Reason.EXPIRED)]


async def test_who_leaves_while_the_registry_is_asked_is_not_sent_away(house: House) -> None:
    association = house.open("sensor-1")
    house.open("sensor-2")

    async def leave(identity: Identity, wall: float) -> Identity:
        association.is_open = False
        raise Refused(Reason.DISABLED)

    reviews = Reviews(
        house, leave, house.end, see_revoked=house.see_revoked, clock_skew=0.0, window=WINDOW
    )
    reviews.note([of_device("sensor-1"), of_device("sensor-1")], house.now)
    reviews.look(house.now, house.wall)
    while reviews.is_more:
        await reviews.turn(house.wall)

    assert house.ended == []
    assert reviews.reviewed == 1


@pytest.mark.parametrize("by", ["command", "list"])
async def test_of_what_is_revoked_only_whom_it_names_is_judged_again(house: House, by: str) -> None:
    house.open("stolen", anchor=ANCHOR)
    house.open("below", anchor=ANCHOR)
    house.open("by-key")
    house.revoked = {"stolen", "by-key"}
    house.refused = {"stolen": Reason.REVOKED}

    if by == "command":
        house.reviews.note([of_anchor(OTHER_ANCHOR, "certificate")], house.now)
    else:
        house.reviews.concern_revoked(house.now)
    await house.settle()

    assert house.asked == ["stolen"]
    assert house.ended == [("stolen", Reason.REVOKED)]


async def test_while_nobody_can_say_who_is_revoked_it_is_asked_again(house: House) -> None:
    house.open("stolen", anchor=ANCHOR)
    house.revoked = {"stolen"}
    house.refused = {"stolen": Reason.REVOKED}
    house.is_away = True
    house.reviews.concern_revoked(house.now)
    await house.settle()
    assert house.reviews.unavailable is not None
    assert house.ended == []

    house.is_away = False
    await house.wait(0.5)
    assert house.ended == [("stolen", Reason.REVOKED)]
