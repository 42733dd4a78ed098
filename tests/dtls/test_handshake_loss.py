"""Handshakes on a bad wire: every flight lost once, and a third of everything lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coapgate.dtls.client import Client, State
from coapgate.dtls.handshake import HandshakeSettings
from coapgate.dtls.server import ServerSettings
from coapgate.errors import Reason
from tests.dtls.factory import psk_client, x509_client, x509_settings
from tests.fakes.link import Direction, Fate, Joined, Link, by_chance, losing

TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT
LATENCY_SUM = 0.06
"""Seconds the six flights of a handshake take."""
SERVER_TIME = 9.0
MAKE: dict[str, Callable[[], Client]] = {"psk": psk_client, "x509": x509_client}


def attempt(make: Callable[[], Client], fate: Fate, seconds: float = 0.1) -> tuple[Link, Joined]:
    link = Link(x509_settings(), fate=fate)
    return link, link.connect(make(), seconds=seconds)


def is_alive(link: Link, device: Joined) -> bool:
    """Whether application data goes both ways."""
    already = len(link.delivered), len(device.plaintexts)
    device.client.send(b"up")
    link.run(0.5)
    if len(link.delivered) == already[0]:
        return False
    link.server.traffic.send(link.delivered[-1][0], b"down", link.now)
    link.run(0.5)
    return len(device.plaintexts) > already[1]


def sent_at(link: Link, direction: Direction) -> list[float]:
    return [round(at, 2) for at, way, _ in link.sent if way is direction]


# --- one test per lost flight: 1, 3 and 5 are the client's, 2, 4 and 6 the server's


@pytest.mark.parametrize("kind", MAKE)
def test_nothing_lost_completes_in_six_flights(kind: str) -> None:
    link, device = attempt(MAKE[kind], losing(()))

    assert device.client.is_established
    assert len(set(sent_at(link, TO_SERVER) + sent_at(link, TO_CLIENT))) == 6
    assert is_alive(link, device)


@pytest.mark.parametrize("kind", MAKE)
def test_flight_1_lost_is_repeated_by_the_client(kind: str) -> None:
    link, device = attempt(MAKE[kind], losing({(TO_SERVER, 0)}), 1.0 + LATENCY_SUM)

    assert device.client.is_established
    assert sent_at(link, TO_SERVER)[:2] == [0.0, 1.0]


@pytest.mark.parametrize("kind", MAKE)
def test_flight_2_lost_is_asked_for_again_and_leaves_no_state(kind: str) -> None:
    link, device = attempt(MAKE[kind], losing({(TO_CLIENT, 0)}), 0.5)
    assert link.server.handshake_count == 0

    link.run(0.5 + LATENCY_SUM)

    assert device.client.is_established
    assert link.server.counters.cookies_sent == 2


@pytest.mark.parametrize("kind", MAKE)
def test_flight_3_lost_is_repeated_by_the_client(kind: str) -> None:
    link, device = attempt(MAKE[kind], losing({(TO_SERVER, 1)}), 1.1)

    assert device.client.is_established
    assert sent_at(link, TO_SERVER)[:3] == [0.0, 0.02, 1.02]
    assert link.server.counters.handshakes_started == 1


@pytest.mark.parametrize("kind", MAKE)
def test_flight_4_lost_is_sent_again_when_the_client_repeats_its_hello(kind: str) -> None:
    link = Link(x509_settings(), fate=losing({(TO_CLIENT, 1), (TO_CLIENT, 2)}))
    device = link.connect(MAKE[kind](), seconds=0.5)
    flight = len(link.datagrams(TO_CLIENT)) - 1
    assert flight in (1, 2)
    link.run(4.0)

    assert device.client.is_established
    assert link.server.counters.handshakes_started == 1
    # On demand, long before the server's own 9 s are over.
    assert link.now < SERVER_TIME


@pytest.mark.parametrize("kind", MAKE)
def test_flight_4_lost_is_sent_again_by_the_server_s_own_timer(kind: str) -> None:
    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        # The client's repeated hellos get lost, and so does all that answers the first.
        if direction is TO_SERVER and 2 <= number < 5:
            return ()
        if direction is TO_CLIENT and number > 0 and link.now < SERVER_TIME:
            return ()
        return (0.01,)

    link = Link(x509_settings(), fate=fate)
    device = link.connect(MAKE[kind](), seconds=8.5)
    assert sent_at(link, TO_CLIENT)[-1] < 1.0
    link.run(1.5)

    assert device.client.is_established
    assert SERVER_TIME in [round(at - 0.03, 2) for at in sent_at(link, TO_CLIENT)]


@pytest.mark.parametrize("kind", MAKE)
def test_flight_5_lost_is_repeated_by_the_client_under_new_numbers(kind: str) -> None:
    link, device = attempt(MAKE[kind], losing({(TO_SERVER, 2)}), 1.2)

    assert device.client.is_established
    assert link.server.counters.handshakes_completed == 1
    fifth = [datagram for datagram in link.datagrams(TO_SERVER)[2:] if datagram[0] == 22]
    assert fifth[0][13:25] == fifth[-1][13:25]
    assert fifth[0][5:11] != fifth[-1][5:11]


@pytest.mark.parametrize("kind", MAKE)
def test_flight_6_lost_is_sent_again_when_the_client_repeats_its_finished(kind: str) -> None:
    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        if direction is TO_CLIENT and datagram[0] == 20:
            finals.append(datagram)
            return () if len(finals) == 1 else (0.01,)
        return (0.01,)

    finals: list[bytes] = []
    link, device = attempt(MAKE[kind], fate, 1.2)

    assert device.client.is_established
    assert len(finals) == 2
    assert finals[0] != finals[1]
    assert link.server.association_count == 1
    assert is_alive(link, device)


@pytest.mark.parametrize("kind", MAKE)
def test_flight_6_lost_again_and_again_is_a_failure_on_the_device_s_side(kind: str) -> None:
    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        cut = direction is TO_CLIENT and datagram[0] == 20 and link.now < 60.0
        return () if cut else (0.01,)

    link = Link(x509_settings(), fate=fate)
    device = link.connect(MAKE[kind](), seconds=61.0)
    assert device.client.state is State.CLOSED
    assert link.server.association_count == 1

    device.client.connect(link.now)
    link.run(1.0)

    assert is_alive(link, device)
    assert link.server.association_count == 1


@pytest.mark.parametrize("kind", MAKE)
def test_a_refusal_lost_is_told_again_when_the_client_repeats_its_flight(kind: str) -> None:
    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        if direction is TO_CLIENT and datagram[0] == 21:
            alerts.append(datagram)
            return () if len(alerts) < 3 else (0.01,)
        return (0.01,)

    alerts: list[bytes] = []
    link = Link(x509_settings(), fate=fate, judge=lambda _: Reason.REVOKED)
    device = link.connect(MAKE[kind](), seconds=10.0)

    assert device.client.failure == "server sent alert 44"
    assert len(alerts) == 3


@pytest.mark.parametrize("kind", MAKE)
def test_a_second_hello_verify_request_does_no_harm(kind: str) -> None:
    def fate(direction: Direction, number: int, datagram: bytes) -> tuple[float, ...]:
        # The second copy of the first hello arrives at every moment of the handshake.
        return (0.01, late) if (direction, number) == (TO_SERVER, 0) else (0.01,)

    for hundredth in range(1, 9):
        late = hundredth / 100
        link, device = attempt(MAKE[kind], fate, 0.5)
        assert device.client.is_established
        assert link.server.counters.cookies_sent == 2
        assert is_alive(link, device)


# --- a bad wire

SMALL = 300


def outcomes(
    kind: str, seeds: range, *, loss: float, duplication: float = 0.0, reordering: float = 0.0
) -> list[int]:
    """How often each device had to ask until it was in, one for each seed."""
    counts = []
    for seed in seeds:
        fate = by_chance(seed, loss=loss, duplication=duplication, reordering=reordering)
        handshake = HandshakeSettings(
            x509_settings().handshake.certificate,
            x509_settings().handshake.public_key,
            max_datagram=SMALL,
        )
        link = Link(ServerSettings(handshake), fate=fate)
        client = (
            psk_client(max_datagram=SMALL) if kind == "psk" else x509_client(max_datagram=SMALL)
        )
        device = link.connect(client, seconds=61.0)
        tries = 1
        while not device.client.is_established:
            # It failed where the device notices: it asks again.
            assert device.client.state is State.CLOSED
            assert tries < 10, seed
            tries += 1
            device.client.connect(link.now)
            link.run(61.0)
        link.fate = losing(())
        assert is_alive(link, device), seed
        assert link.server.association_count == 1
        link.run(200.0)
        assert link.server.handshake_count == 0
        counts.append(tries)
    return counts


@pytest.mark.parametrize("kind", MAKE)
def test_handshakes_complete_at_15_percent_loss_each_way(kind: str) -> None:
    tries = outcomes(kind, range(100), loss=0.15)

    assert max(tries) == 1


@pytest.mark.parametrize("kind", MAKE)
def test_at_30_percent_loss_duplication_and_reordering_they_complete_or_are_asked_for_again(
    kind: str,
) -> None:
    tries = outcomes(kind, range(1000, 1100), loss=0.3, duplication=0.3, reordering=0.3)

    print(f"{kind}: {tries.count(1)} of {len(tries)} at the first try, at most {max(tries)}")
    assert tries.count(1) >= 80
    assert max(tries) <= 4


@pytest.mark.parametrize("kind", MAKE)
def test_duplication_and_reordering_alone_cost_nothing(kind: str) -> None:
    tries = outcomes(kind, range(50), loss=0.0, duplication=0.5, reordering=0.5)

    assert max(tries) == 1


@pytest.mark.parametrize("kind", MAKE)
def test_a_bad_wire_never_uses_a_number_twice_under_one_key(kind: str) -> None:
    for seed in range(20):
        fate = by_chance(seed, loss=0.3, duplication=0.3, reordering=0.3)
        link = Link(x509_settings(), fate=fate)
        link.connect(MAKE[kind](), seconds=61.0)
        for direction in Direction:
            sealed = [
                d[i : i + 8]
                for d in link.datagrams(direction)
                for i in record_starts(d)
                if d[i : i + 2] == b"\0\1"
            ]
            assert len(set(sealed)) == len(sealed)


def record_starts(datagram: bytes) -> list[int]:
    """Where the epoch of each record begins."""
    starts, position = [], 0
    while position < len(datagram):
        starts.append(position + 3)
        position += 13 + int.from_bytes(datagram[position + 11 : position + 13], "big")
    return starts
