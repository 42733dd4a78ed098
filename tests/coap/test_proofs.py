"""Paths that have to prove themselves (RFC 9146 section 6): what does, what does not, and what a
device hears meanwhile."""

from __future__ import annotations

from itertools import pairwise

import pytest
from aiocoap import Message

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.proofs import MAX_MISSES, PathProofs
from coapgate.coap.transmissions import Reliability
from coapgate.model import Code
from tests.coap.gate import (
    ACK,
    CON,
    CONTENT,
    ECHO,
    NON,
    OVERHEAD,
    RST,
    FakeAssociation,
    Gate,
    empty,
    get,
    message,
    uplink,
)

START = 100.0
PING_SIZE = 4 + OVERHEAD
THIS, OTHER = b"\x0e" * 8, b"\x0f" * 8
"""Echo values."""


def begin_separate(
    gate: Gate, endpoint: Endpoint[FakeAssociation], message_id: int = 1, at: float = START
) -> None:
    """A request whose separate response is ready one second later."""
    gate.layer.receive(endpoint, uplink(message_id), at)
    gate.layer.handle_timer(at + 0.5)
    gate.take()
    gate.conclude(at + 1)


def next_due(gate: Gate) -> float:
    due = gate.layer.next_timer()
    assert due is not None
    return due


# What proves a path


@pytest.mark.parametrize(("kind", "name"), [(ACK, "ack"), (RST, "reset")])
def test_the_answer_to_a_message_that_went_to_the_new_path_alone_proves_it(
    kind: int, name: str
) -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move()
    begin_separate(gate, endpoint)
    response = gate.take_one()

    gate.layer.receive(endpoint, empty(kind, response.mid), START + 1.1)

    assert endpoint.association.unproven is None
    assert gate.layer.counts.path_proofs == {name: 1}
    assert gate.layer.counts.path_pings == 0


def test_the_echo_value_of_the_path_proves_it_before_the_request_is_handled() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(echo=THIS)
    seen: list[object] = []
    gate.publisher.on_publish = lambda publication: seen.append(endpoint.association.unproven)

    octets = message(CON, Code.POST, 1, "a", options=((ECHO, THIS),))
    gate.layer.receive(endpoint, octets, START)

    assert seen == [None]
    assert gate.layer.counts.path_proofs == {"echo": 1}


def test_a_request_beyond_the_rate_proves_the_path_all_the_same() -> None:
    gate = Gate(rate=1.0, burst=1)
    endpoint = gate.open()
    gate.layer.receive(endpoint, get(1), START)
    endpoint.association.move(echo=THIS)

    gate.layer.receive(endpoint, get(2, (ECHO, THIS)), START)

    assert gate.take_one().code == Code.TOO_MANY_REQUESTS
    assert endpoint.association.unproven is None


def test_a_path_that_has_proven_itself_does_not_do_so_again() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(echo=THIS)
    begin_separate(gate, endpoint)
    response = gate.take_one()
    gate.layer.receive(endpoint, get(2, (ECHO, THIS)), START + 1)

    gate.layer.receive(endpoint, get(3, (ECHO, THIS)), START + 1)
    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 1)

    assert gate.layer.counts.path_proofs == {"echo": 1}


# What does not


@pytest.mark.parametrize("kind", [ACK, RST])
def test_the_answer_to_a_message_first_sent_before_the_move_proves_nothing(kind: int) -> None:
    gate = Gate()
    endpoint = gate.open()
    begin_separate(gate, endpoint)
    (response,) = gate.take()
    unproven = endpoint.association.move()

    gate.run_timers(START + 5)
    assert gate.take() == [response]  # repeated to the new path: who reads it there read it before
    gate.layer.receive(endpoint, empty(kind, Message.decode(response).mid), START + 5)

    assert endpoint.association.unproven is unproven
    assert gate.layer.counts.path_proofs == {}
    gate.run_timers(START + 240)
    assert gate.take() == []  # acknowledged it is nevertheless


def test_a_replayed_old_ack_after_a_move_proves_nothing() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move()
    begin_separate(gate, endpoint)
    old = gate.take_one().mid
    gate.layer.receive(endpoint, empty(ACK, old), START + 1)
    unproven = endpoint.association.move()

    gate.layer.receive(endpoint, empty(ACK, old), START + 2)
    begin_separate(gate, endpoint, message_id=2, at=START + 3)
    new = gate.take_one().mid
    if new != old:
        gate.layer.receive(endpoint, empty(ACK, old), START + 4)

    assert endpoint.association.unproven is unproven
    assert gate.layer.counts.path_proofs == {"ack": 1}


def test_after_two_moves_in_a_row_only_what_was_sent_to_the_last_path_proves_it() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move()
    begin_separate(gate, endpoint, message_id=1)
    first = gate.take_one()
    endpoint.association.move()
    begin_separate(gate, endpoint, message_id=2, at=START + 1)
    second = gate.take_one()

    gate.layer.receive(endpoint, empty(ACK, first.mid), START + 2)
    assert gate.layer.counts.path_proofs == {}
    gate.layer.receive(endpoint, empty(ACK, second.mid), START + 2)
    assert endpoint.association.unproven is None
    assert gate.layer.counts.path_proofs == {"ack": 1}


def test_what_was_sent_to_a_path_before_leaving_it_does_not_prove_it_on_the_return() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move()
    begin_separate(gate, endpoint)
    response = gate.take_one()
    endpoint.association.move()
    returned = endpoint.association.move()

    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 2)

    assert endpoint.association.unproven is returned


def test_a_message_withheld_from_the_first_new_path_proves_the_second() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    begin_separate(gate, endpoint)
    assert gate.take() == []
    endpoint.association.move()

    gate.run_timers(START + 5)
    response = gate.take_one()
    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 5)

    assert endpoint.association.unproven is None


@pytest.mark.parametrize(
    "value", [OTHER, THIS[:-1], THIS + b"\x0e", b"\x0e", b"\0" * 8], ids=bytes.hex
)
def test_an_echo_value_of_another_association_or_path_proves_nothing(value: bytes) -> None:
    gate = Gate()
    endpoint, other = gate.open(), gate.open("sensor-2", b"22222222")
    other.association.move(echo=OTHER)
    endpoint.association.move(echo=value)
    unproven = endpoint.association.move(echo=THIS)

    gate.layer.receive(endpoint, get(1, (ECHO, value)), START)

    assert endpoint.association.unproven is unproven
    assert other.association.unproven is not None
    assert gate.layer.counts.path_proofs == {}
    assert len(gate.silent_site.asked) == 1


def test_only_the_first_echo_option_of_a_request_counts() -> None:
    gate = Gate()
    endpoint = gate.open()
    unproven = endpoint.association.move(echo=THIS)

    gate.layer.receive(endpoint, get(1, (ECHO, OTHER), (ECHO, THIS)), START)

    assert endpoint.association.unproven is unproven


def test_echo_values_are_compared_in_constant_time() -> None:
    assert "compare_digest" in PathProofs.echoed.__code__.co_names


def test_an_echo_option_on_a_proven_path_means_nothing() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), get(1, (ECHO, THIS)), START)

    assert len(gate.silent_site.asked) == 1
    assert gate.layer.counts.path_proofs == {}


# Message IDs


def take_ids(gate: Gate, endpoint: Endpoint[FakeAssociation], first: int, count: int) -> list[int]:
    """The message IDs of so many responses to NON requests."""
    for message_id in range(first, first + count):
        gate.layer.receive(endpoint, uplink(message_id, NON), START)
        gate.conclude(START)
    return [Message.decode(octets).mid for octets in gate.take()]


def test_message_ids_are_random_on_an_unproven_path_and_counted_on_a_proven_one() -> None:
    gate = Gate()
    endpoint = gate.open()
    before = take_ids(gate, endpoint, 0, 3)
    endpoint.association.move(10_000)

    unproven = take_ids(gate, endpoint, 100, 40)
    endpoint.association.unproven = None
    after = take_ids(gate, endpoint, 200, 2)

    steps = {second - first & 0xFFFF for first, second in pairwise(unproven)}
    assert len(set(unproven)) > 30
    assert len(steps) > 30
    assert [*before, *after] == [before[0] + n & 0xFFFF for n in range(5)]


def test_a_random_message_id_is_none_that_is_under_way() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(10_000)
    begin_separate(gate, endpoint)
    assert endpoint.outgoing is not None
    (transmission,) = endpoint.outgoing.values()
    free = 0xABCD
    endpoint.outgoing = dict.fromkeys(set(range(1 << 16)) - {free}, transmission)

    assert endpoint.take_message_id() == free


# Pings, and what waits for the proof


def withheld_response(gate: Gate, credit: int = 0) -> Endpoint[FakeAssociation]:
    """An endpoint that has moved, and whose separate response is withheld at START + 1."""
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.take()
    endpoint.association.move(received=0).credit = credit
    gate.conclude(START + 1)
    return endpoint


def test_a_withheld_separate_response_is_repeated_on_schedule_and_leaves_once_proven() -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE)
    ping = gate.take_one()
    assert (ping.mtype, ping.code) == (CON, Code.EMPTY)
    assert len(gate.withheld) == 1

    first = next_due(gate)
    assert 2.0 <= first - START - 1 <= 3.0
    while len(gate.withheld) < 3:  # the ping may come first, and there is no credit for it either
        gate.layer.handle_timer(next_due(gate))
    assert gate.take() == []
    gate.layer.receive(endpoint, empty(RST, ping.mid), START + 5)
    assert endpoint.association.unproven is None

    gate.run_timers(START + 12)
    response = gate.take_one()
    assert (response.mtype, response.code) == (CON, Code.CHANGED)
    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 12)
    gate.run_timers(START + 240)
    assert gate.take() == []
    assert gate.layer.counts.given_up == 0
    assert gate.layer.counts.resets == 0  # a reset of a ping rejects no response
    assert gate.layer.retransmissions == 1


def test_what_stays_withheld_is_given_up_like_anything_else() -> None:
    gate = Gate()
    endpoint = withheld_response(gate)

    gate.run_timers(START + 1 + 3.0 * 31)

    assert gate.take() == []
    assert len(gate.withheld) == 1 + Reliability().max_retransmit
    assert gate.layer.counts.given_up == 1
    assert gate.layer.counts.path_pings == 0
    assert gate.layer.retransmissions == 0
    assert endpoint.outgoing is None


def test_a_ping_that_there_is_no_credit_for_waits_for_the_next_repetition() -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE - 1)
    assert gate.layer.counts.path_pings == 0
    assert endpoint.association.unproven is not None

    endpoint.association.unproven.credit = PING_SIZE
    gate.run_timers(START + 4)

    assert gate.take_one().code == Code.EMPTY
    assert gate.layer.counts.path_pings == 1


def test_one_ping_is_under_way_for_a_path_however_much_is_withheld() -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE)
    (ping,) = gate.take()
    for message_id in range(10, 20):
        gate.layer.receive(endpoint, uplink(message_id), START + 1)
        gate.conclude(START + 1)
    assert endpoint.association.unproven is not None
    assert gate.take() == []

    endpoint.association.unproven.credit = 4 * PING_SIZE
    gate.layer.receive(endpoint, get(20), START + 1)
    gate.layer.respond(gate.silent_site.asked[-1][0], Code.CONTENT, b"", CONTENT, START + 1)
    (refusal,) = gate.take()

    assert refusal[1] == Code.UNAUTHORIZED
    assert gate.layer.counts.path_pings == 1
    gate.layer.receive(endpoint, empty(RST, Message.decode(ping).mid), START + 2)
    assert endpoint.association.unproven is None


def test_a_lost_ping_is_repeated_then_given_up_and_another_may_follow() -> None:
    gate = Gate()
    endpoint = gate.open()
    unproven = endpoint.association.move(received=0)
    gate.receive(endpoint, get(1), START)
    gate.answer_content(START)
    _, ping = gate.take()
    unproven.credit = 10_000

    gate.run_timers(START + 3.0 * 31)
    assert gate.take() == [ping] * Reliability().max_retransmit
    assert endpoint.outgoing is None
    assert (gate.layer.counts.given_up, gate.layer.retransmissions) == (0, 0)

    unproven.credit = PING_SIZE
    gate.layer.receive(endpoint, uplink(2), START + 100)
    gate.conclude(START + 100)
    assert gate.take_one().code == Code.EMPTY
    assert gate.layer.counts.path_pings == 2


def test_a_ping_for_a_path_that_was_left_proves_nothing_and_is_not_repeated() -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE)
    old = gate.take_one()
    endpoint.association.move(received=0)
    gate.run_timers(START + 20)
    assert gate.take() == []
    assert endpoint.outgoing is not None
    assert [each.exchange is None for each in endpoint.outgoing.values()] == [False]

    unproven = endpoint.association.move(received=0)
    unproven.credit = PING_SIZE
    gate.run_timers(START + 40)
    new = gate.take_one()
    gate.layer.receive(endpoint, empty(RST, old.mid), START + 41)
    assert endpoint.association.unproven is unproven or new.mid == old.mid
    gate.layer.receive(endpoint, empty(RST, new.mid), START + 41)
    assert endpoint.association.unproven is None


def test_pings_for_paths_that_were_left_do_not_pile_up() -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE)
    for number in range(100):
        endpoint.association.move(received=0).credit = PING_SIZE
        gate.layer.receive(endpoint, uplink(100 + number), START + 1)
        gate.conclude(START + 1)

    assert gate.layer.counts.path_pings == 101
    assert endpoint.outgoing is not None
    assert len(endpoint.outgoing) == 2


@pytest.mark.parametrize("is_left", [False, True])
def test_a_ping_is_not_repeated_once_its_path_is_proven_otherwise_or_left(is_left: bool) -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0, echo=THIS)
    gate.receive(endpoint, get(1), START)
    gate.answer_content(START)
    _, ping = gate.take()

    if is_left:
        endpoint.association.move(10_000)
    else:
        gate.receive(endpoint, message(CON, Code.POST, 2, options=((ECHO, THIS),)), START + 1)
        gate.take()
    gate.run_timers(START + 240)
    assert gate.take() == []
    assert endpoint.outgoing is None

    gate.layer.receive(endpoint, empty(RST, Message.decode(ping).mid), START + 240)
    assert gate.layer.counts.path_proofs == ({} if is_left else {"echo": 1})


def test_an_endpoint_that_closes_while_something_is_withheld_is_not_pinged() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(1), START)
    gate.on_transmit = lambda association, octets: gate.layer.close(endpoint, 10.0)

    gate.answer_content(START)

    assert endpoint.outgoing is None
    assert gate.layer.counts.path_pings == 0
    assert gate.layer.next_timer() in (None, START + 0.5)


@pytest.mark.parametrize("kind", [ACK, RST])
def test_whoever_guesses_proves_nothing_by_ack_or_reset_any_more(kind: int) -> None:
    gate = Gate()
    endpoint = withheld_response(gate, credit=PING_SIZE)
    unproven = endpoint.association.unproven
    asked = gate.take_one().mid

    for guess in range(1, 1 + MAX_MISSES):
        gate.layer.receive(endpoint, bytes((0x40 | kind, 0)) + (asked ^ guess).to_bytes(2), START)
    gate.layer.receive(endpoint, bytes((0x40 | kind, 0)) + asked.to_bytes(2), START)

    assert unproven is not None
    assert endpoint.association.unproven is unproven
    assert gate.proven == []
