"""The token bucket of each device."""

from __future__ import annotations

import pytest

from coapgate.coap.rates import DeviceRates
from tests.coap.gate import identity


def test_a_burst_passes_and_then_the_rate() -> None:
    rates = DeviceRates(rate=20.0, burst=50)
    allowance = rates.join(identity())
    now = 123456.789

    assert [rates.take(allowance, now) for _ in range(50)] == [0.0] * 50
    assert rates.take(allowance, now) == pytest.approx(0.05, abs=1e-5)
    assert rates.take(allowance, now + 0.05) == 0.0
    assert rates.take(allowance, now + 0.05) > 0.0


def test_a_refused_request_costs_nothing() -> None:
    rates = DeviceRates(rate=1.0, burst=1)
    allowance = rates.join(identity())
    rates.take(allowance, 10.0)

    for _ in range(100):
        assert rates.take(allowance, 10.5) == pytest.approx(0.5, abs=1e-5)
    assert rates.take(allowance, 11.0) == 0.0


def test_rest_never_saves_up_more_than_the_burst() -> None:
    rates = DeviceRates(rate=10.0, burst=2)
    allowance = rates.join(identity())
    rates.take(allowance, 0.0)

    assert [rates.take(allowance, 1000.0) > 0.0 for _ in range(3)] == [False, False, True]


def test_associations_of_one_device_share_and_devices_do_not() -> None:
    rates = DeviceRates(rate=1.0, burst=1)

    assert rates.join(identity("a")) is rates.join(identity("a"))
    assert rates.join(identity("a")) is not rates.join(identity("b"))
    assert rates.join(identity("a")) is not rates.join(identity("a", "other"))


def test_coming_back_renews_nothing() -> None:
    rates = DeviceRates(rate=1.0, burst=1)
    allowance = rates.join(identity())
    rates.take(allowance, 5.0)
    rates.leave(identity(), allowance)

    assert rates.take(rates.join(identity()), 5.5) > 0.0


def test_devices_that_left_are_bounded() -> None:
    rates = DeviceRates(rate=1.0, burst=1, max_absent=10)
    for number in range(100):
        device = identity(f"sensor-{number}")
        rates.leave(device, rates.join(device))

    assert len(rates) == 10


def test_a_device_is_remembered_while_one_of_its_associations_is_there() -> None:
    rates = DeviceRates(rate=1.0, burst=1, max_absent=0)
    first = rates.join(identity())
    second = rates.join(identity())
    rates.leave(identity(), first)
    assert len(rates) == 1

    rates.leave(identity(), second)
    assert len(rates) == 0
