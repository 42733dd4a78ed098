"""Few associations hold AEAD objects, and not for long."""

from __future__ import annotations

from coapgate.dtls.association import Association
from coapgate.dtls.protection import Protection
from coapgate.dtls.suites import SUITES
from coapgate.dtls.warmth import MAX_WARM, WARM_TIME, Warmth
from coapgate.model import DeviceId, Identity, Method, Tenant

SUITE = SUITES[0xC0A8]
IDENTITY = Identity(Tenant("default"), DeviceId("sensor-1"), Method.PSK, "psk-1")


def association() -> Association:
    protection = Protection(SUITE, bytes(SUITE.key_block_length), is_client=False)
    return Association(bytes(8), IDENTITY, (0, ("192.0.2.1", 1)), protection, 1200, 0.0)


def test_an_association_cools_down_after_a_while() -> None:
    warmth, first, second = Warmth(), association(), association()

    warmth.warm_up(first, 1.0)
    warmth.warm_up(second, 2.0)
    assert warmth.due_at == 1.0 + WARM_TIME
    warmth.cool_down(1.0 + WARM_TIME)

    assert first.protection.opener is None
    assert second.protection.opener is not None
    assert warmth.due_at == 2.0 + WARM_TIME


def test_with_none_warm_there_is_nothing_to_do() -> None:
    warmth = Warmth()

    warmth.cool_down(1e9)

    assert warmth.due_at is None


def test_at_most_so_many_are_warm_at_once() -> None:
    warmth = Warmth()
    associations = [association() for _ in range(MAX_WARM + 3)]

    for one in associations:
        warmth.warm_up(one, 0.0)

    assert [one.protection.opener is not None for one in associations] == [False] * 3 + [
        True
    ] * MAX_WARM
    warmth.cool_down(WARM_TIME)
    assert not any(one.protection.opener for one in associations)
