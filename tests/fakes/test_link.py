"""The fake wire does what its scripts say."""

from __future__ import annotations

from collections import Counter

import pytest

from coapgate.dtls.client import Client, PskKey
from coapgate.dtls.events import KeyProven, KeysRequested
from coapgate.errors import Reason
from tests.fakes.link import (
    IDENTITY,
    KEY,
    LATENCY,
    Direction,
    Link,
    by_chance,
    delivered,
    losing,
)


def client() -> Client:
    return Client(PskKey(IDENTITY, KEY))


def test_a_good_wire_carries_a_handshake_and_data_both_ways() -> None:
    link = Link()
    device = link.connect(client())

    device.client.send(b"up")
    link.run(1.0)
    link.server.traffic.send(link.association, b"down", link.now)
    link.run(1.0)

    assert [plaintext for _, plaintext in link.delivered] == [b"up"]
    assert device.plaintexts == [b"down"]
    assert len(link.of_kind(KeysRequested)) == len(link.of_kind(KeyProven)) == 1
    assert link.failures == []


def test_time_passes_only_when_told_and_datagrams_take_their_latency() -> None:
    link = Link()
    device = link.join(client())
    device.client.connect(link.now)

    link.run(LATENCY / 2)
    assert (link.now, link.datagrams(Direction.TO_CLIENT)) == (LATENCY / 2, [])
    link.run(LATENCY)
    assert len(link.datagrams(Direction.TO_CLIENT)) == 1


def test_a_script_loses_the_datagrams_it_names_and_timers_repeat_them() -> None:
    link = Link(fate=losing({(Direction.TO_SERVER, 0)}))
    link.connect(client())

    assert link.server.association_count == 0
    link.run(1.0)
    assert link.server.association_count == 1
    assert [at for at, way, _ in link.sent if way is Direction.TO_SERVER][:2] == [0.0, 1.0]


def test_chance_loses_duplicates_and_delays_the_share_it_is_told_to() -> None:
    fate = by_chance(1, loss=0.3, duplication=0.2, reordering=0.1)
    fates = [fate(Direction.TO_SERVER, number, b"") for number in range(10_000)]
    copies = Counter(len(one) for one in fates)

    assert copies[0] == pytest.approx(3000, abs=150)
    assert copies[2] == pytest.approx(1400, abs=150)
    delays = [delay for one in fates for delay in one]
    assert sum(delay > LATENCY for delay in delays) / len(delays) == pytest.approx(0.1, abs=0.02)


def test_the_same_seed_is_the_same_wire() -> None:
    def fates(seed: int) -> list[tuple[float, ...]]:
        fate = by_chance(seed, loss=0.3, duplication=0.3, reordering=0.3)
        return [fate(Direction.TO_CLIENT, number, b"") for number in range(100)]

    assert fates(7) == fates(7) != fates(8)


def test_an_unknown_identity_gets_no_keys_and_a_judge_may_refuse_or_wait() -> None:
    stranger = Link(keys={})
    stranger.connect(client(), seconds=100.0)
    assert [reason for reason, _ in stranger.failures] == [Reason.UNKNOWN_IDENTITY]

    refusing = Link(judge=lambda _: Reason.DISABLED)
    device = refusing.connect(client())
    assert device.client.failure == "server sent alert 44"

    waiting = Link(judge=lambda _: None)
    device = waiting.connect(client())
    assert not device.client.is_established
    assert len(waiting.of_kind(KeyProven)) == 1


def test_several_clients_have_addresses_of_their_own() -> None:
    link = Link()
    first, second = link.connect(client()), link.connect(client())

    assert first.path != second.path
    assert link.server.association_count == 2


def test_what_is_sent_to_nobody_is_lost() -> None:
    link = Link()
    device = link.join(client())
    device.client.connect(link.now)
    (hello,) = device.client.outgoing

    link.inject(hello, (0, ("198.51.100.1", 1)))
    link.run(0.5)

    assert device.client.is_established


def test_a_link_that_never_rests_is_an_error() -> None:
    link = Link()
    device = link.join(client())
    device.client.connect(link.now)

    with pytest.raises(AssertionError, match="rest"):
        link.run(10.0, max_steps=2)


def test_the_random_source_can_be_chosen() -> None:
    link = Link(random=bytes)
    link.connect(client())

    assert link.association.id == bytes(8)
    assert delivered(Direction.TO_SERVER, 0, b"") == (LATENCY,)
