"""The parts of a fleet by themselves: pace, timers, times, targets."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator

import pytest

from coapgate.errors import Failed, Misused
from coapgate.simulated.fleet.pace import Pace
from coapgate.simulated.fleet.sockets import raise_file_limit
from coapgate.simulated.fleet.tally import MAX_REASONS, Tally, Times
from coapgate.simulated.fleet.target import Target, look_up, parse_target, render_address
from coapgate.simulated.fleet.timers import GRANULARITY, NEVER, NOWHERE, Timers


def test_a_pace_is_even_and_ends() -> None:
    pace = Pace(10.0, 100.0, 1.0)

    assert pace.due(100.0) == 0
    assert pace.next_at() == pytest.approx(100.1)
    assert [pace.due(100.0 + tenth / 10) for tenth in range(1, 15)] == [1] * 10 + [0] * 4
    assert pace.is_over(101.0)
    assert not pace.is_over(100.9)
    assert pace.skipped == 0


def test_a_pace_does_not_make_up_for_a_long_delay() -> None:
    pace = Pace(1000.0, 0.0)

    assert pace.due(1.0) == 100
    assert pace.skipped == 900
    assert pace.due(1.002) == 2


def test_a_slow_pace_makes_up_for_a_few() -> None:
    pace = Pace(10.0, 0.0)

    assert pace.due(0.8) == 8
    assert pace.due(3.0) == 10
    assert pace.skipped == 12


def test_a_pace_of_nothing_waits_for_its_end() -> None:
    assert Pace(0.0, 5.0, 2.0).next_at() == 7.0
    assert Pace(0.0, 5.0).next_at() is None


class Device:
    def __init__(self, due_at: float) -> None:
        self.due_at = due_at
        self.slot = NOWHERE


def test_a_device_is_due_once_at_its_time_or_soon_after() -> None:
    timers: Timers[Device] = Timers(100.0)
    device = Device(102.0)
    timers.watch(device)

    assert timers.take_due(101.9) == []
    assert timers.take_due(102.0 + 2 * GRANULARITY) == [device]
    assert timers.take_due(200.0) == []


def test_a_timer_may_be_put_off_forgotten_or_brought_forward() -> None:
    timers: Timers[Device] = Timers(0.0)
    later, never, sooner = Device(2.0), Device(2.0), Device(9.0)
    for device in (later, never, sooner):
        timers.watch(device)
    later.due_at, never.due_at, sooner.due_at = 5.0, NEVER, 1.0
    for device in (later, never, sooner):
        timers.watch(device)

    assert timers.take_due(1.5) == [sooner]
    assert timers.take_due(4.9) == []
    assert timers.take_due(5.5) == [later]
    assert timers.take_due(20.0) == []


def test_a_timer_of_the_past_is_due_at_the_next_look() -> None:
    timers: Timers[Device] = Timers(50.0)
    timers.take_due(60.0)
    device = Device(10.0)
    timers.watch(device)

    assert timers.take_due(60.0 + 2 * GRANULARITY) == [device]


def test_percentiles_are_right_to_a_per_cent() -> None:
    times = Times()
    for milliseconds in range(1, 1001):
        times.add(milliseconds / 1000)

    assert times.count == 1000
    assert times.longest == 1.0
    for share in (0.5, 0.9, 0.99):
        assert times.percentile(share) == pytest.approx(share, rel=0.012)
    assert times.percentile(1.0) == 1.0


def test_no_times_have_no_percentiles() -> None:
    times = Times()
    assert times.percentile(0.5) == 0.0
    times.add(0.0)
    assert times.percentile(0.5) == 0.0


def test_reasons_are_bounded() -> None:
    tally = Tally()
    for number in range(100):
        tally.fail(f"reason {number}")

    assert len(tally.failed) == MAX_REASONS + 1
    assert tally.failed["other"] == 100 - MAX_REASONS


@pytest.mark.parametrize(
    ("text", "target", "shown"),
    [
        ("127.0.0.1", Target("127.0.0.1", 5684, (b"load",)), "coaps://127.0.0.1:5684"),
        ("gw.example:5685", Target("gw.example", 5685, (b"load",)), "coaps://gw.example:5685"),
        ("coaps://[::1]:7/a/b%2Fc/", Target("::1", 7, (b"a", b"b/c")), "coaps://[::1]:7"),
    ],
)
def test_targets(text: str, target: Target, shown: str) -> None:
    assert parse_target(text) == target
    assert str(parse_target(text)) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "coap://gateway.example",
        "https://gateway.example",
        "coaps://",
        "coaps://gateway.example:0",
        "coaps://gateway.example:99999",
        "coaps://user@gateway.example",
        "coaps://gateway.example/a?b",
        "coaps://gate way",
        "coaps://[::1",
        "gateway.example/" + "a" * 256,
    ],
)
def test_no_targets(text: str) -> None:
    with pytest.raises(Misused):
        parse_target(text)


async def test_a_target_is_looked_up() -> None:
    place = await look_up(parse_target("127.0.0.1:5"))

    assert place == (socket.AF_INET, ("127.0.0.1", 5))
    assert render_address(place) == "127.0.0.1:5"


@pytest.mark.parametrize("address", ["224.0.1.187", "0.0.0.0", "255.255.255.255", "[ff02::fd]"])
async def test_a_target_is_one_machine(address: str) -> None:
    with pytest.raises(Misused, match="not the address of one machine"):
        await look_up(parse_target(address))


async def test_a_name_that_nobody_has_is_told() -> None:
    with pytest.raises(Failed, match=r"'gateway\.invalid' has no address"):
        await look_up(parse_target("gateway.invalid"))


@pytest.fixture
def file_limit() -> Iterator[tuple[int, int]]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield limits
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_the_limit_of_open_files_is_raised_as_far_as_needed(file_limit: tuple[int, int]) -> None:
    hard = file_limit[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))

    raise_file_limit(100, is_needed=True)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (256, hard)
    raise_file_limit(300, is_needed=True)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (364, hard)
    if hard != resource.RLIM_INFINITY:
        with pytest.raises(Failed, match=f"need {hard + 1064} open files, and the limit is {hard}"):
            raise_file_limit(hard + 1000, is_needed=True)
        raise_file_limit(hard + 1000, is_needed=False)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard
