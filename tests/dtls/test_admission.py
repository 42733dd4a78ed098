"""Who may have a handshake pending."""

from __future__ import annotations

import pytest

from coapgate.dtls.admission import (
    MAX_ADDRESSES,
    EcdheBudget,
    PendingHandshakes,
    address_of,
)
from coapgate.dtls.handshake import AcceptedHello, HandshakeSettings, ServerHandshake, State
from coapgate.model import Path

HELLO = AcceptedHello(bytes(32), 1, 1)


def path(host: str, port: int = 1) -> Path:
    return (0, (host, port))


def handshake(number: int, host: str = "192.0.2.1") -> ServerHandshake:
    return ServerHandshake(
        number,
        path(host, number),
        HandshakeSettings(),
        bytes,
        lambda now: True,
        lambda: b"",
        HELLO,
        0.0,
    )


def pending(limit: int, per_address: int, *hosts: str) -> tuple[PendingHandshakes, list[int]]:
    """Handshakes of these hosts, oldest first, numbered from 1."""
    table = PendingHandshakes(limit, per_address)
    for number, host in enumerate(hosts, 1):
        table.add(handshake(number, host))
    return table, list(range(1, len(hosts) + 1))


def prove(table: PendingHandshakes, number: int) -> None:
    one = table.numbered(number)
    assert one is not None
    one.state = State.AWAIT_DECISION


def victim(table: PendingHandshakes, host: str) -> tuple[int | None, bool]:
    one, admitted = table.must_yield(path(host, 999))
    return (None if one is None else one.number), admitted


# --- addresses


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("::1", "::ffff:0.0.0.1", False),
    ],
)
def test_an_address_is_an_ipv4_32_or_an_ipv6_64(one: str, other: str, same: bool) -> None:
    assert (address_of(path(one)) == address_of(path(other))) is same


# --- the table


def test_handshakes_are_found_by_path_and_by_number() -> None:
    table, _ = pending(10, 10, "192.0.2.1", "192.0.2.2")

    first = table.at(path("192.0.2.1", 1))
    assert first is not None
    assert first is table.numbered(1)
    assert [one.number for one in table] == [1, 2]
    table.remove(first)
    assert len(table) == 1
    assert table.at(first.path) is table.numbered(1) is None

    again, _ = pending(10, 10, "192.0.2.1", "192.0.2.1")
    oldest = again.numbered(1)
    assert oldest is not None
    again.remove(oldest)
    assert [one.number for one in again] == [2]


def test_nobody_yields_while_there_is_room() -> None:
    table, _ = pending(3, 2, "192.0.2.1", "192.0.2.2")

    assert victim(table, "192.0.2.1") == (None, True)


def test_at_max_handshakes_the_oldest_yields() -> None:
    table, _ = pending(3, 2, "192.0.2.1", "192.0.2.2", "192.0.2.3")

    assert victim(table, "192.0.2.9") == (1, True)


def test_at_max_handshakes_one_of_the_same_address_yields_first() -> None:
    table, _ = pending(3, 3, "192.0.2.1", "192.0.2.2", "192.0.2.2")

    assert victim(table, "192.0.2.2") == (2, True)


def test_an_address_at_its_limit_yields_its_own_oldest() -> None:
    table, _ = pending(10, 2, "192.0.2.1", "192.0.2.2", "192.0.2.1")

    assert victim(table, "192.0.2.1") == (1, True)


def test_one_that_has_proven_a_key_does_not_yield() -> None:
    table, _ = pending(3, 2, "192.0.2.1", "192.0.2.1", "192.0.2.3")
    prove(table, 1)

    assert victim(table, "192.0.2.1") == (2, True)
    assert victim(table, "192.0.2.9") == (2, True)

    prove(table, 2)
    assert victim(table, "192.0.2.1") == (None, False)
    prove(table, 3)
    assert victim(table, "192.0.2.9") == (None, False)


def test_one_that_was_refused_yields_for_anybody_can_get_so_far() -> None:
    table, _ = pending(1, 1, "192.0.2.1")
    one = table.numbered(1)
    assert one is not None
    one.state = State.REFUSED

    assert victim(table, "192.0.2.9") == (1, True)


# --- what ECDHE may cost


def test_the_budget_is_a_burst_and_then_a_rate_for_each_address() -> None:
    budget = EcdheBudget(2.0, 3)
    one, other = path("192.0.2.1"), path("192.0.2.2")

    assert [budget.take(one, 0.0) for _ in range(4)] == [True] * 3 + [False]
    assert budget.take(other, 0.0)
    assert [budget.take(one, 0.6) for _ in range(2)] == [True, False]
    assert [budget.take(one, 1.6) for _ in range(3)] == [True, True, False]
    assert [budget.take(one, 100.0) for _ in range(4)] == [True] * 3 + [False]


def test_another_port_has_the_same_budget() -> None:
    budget = EcdheBudget(1.0, 1)

    assert budget.take(path("192.0.2.1", 1), 0.0)
    assert not budget.take(path("192.0.2.1", 2), 0.0)


def test_addresses_that_are_remembered_are_bounded() -> None:
    budget = EcdheBudget(1.0, 1)
    first = path("10.0.0.0")
    assert budget.take(first, 0.0)

    for number in range(MAX_ADDRESSES):
        budget.take(path(f"10.1.{number >> 8}.{number & 255}"), 0.0)

    assert budget.take(first, 0.0)
