"""What outlives the process of an exchange: what is told of it, and what is made of that."""

from __future__ import annotations

import pytest
from aiocoap import Message

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.model import Code, Outcome
from tests.coap.gate import (
    ACK,
    CON,
    NO_RESPONSE,
    NON,
    FakeAssociation,
    Gate,
    empty,
    get,
    message,
    uplink,
)

START = 100.0
EXCHANGE_LIFETIME = 247.0
CHANGED = bytes.fromhex("61 44 0001 0a")
"""The answer to `uplink()`."""


# What is told


def test_an_answer_is_told_before_it_leaves() -> None:
    gate = Gate()
    told: list[tuple[int, bytes]] = []
    gate.on_transmit = lambda association, octets: told.extend(gate.answers)
    gate.layer.receive(gate.open(), uplink(), START)
    gate.conclude(START)

    assert told == [(1, CHANGED)]


def test_a_separate_response_is_told_as_if_it_were_piggybacked_and_before_it_leaves() -> None:
    gate = Gate()
    told: list[list[tuple[int, bytes]]] = []
    gate.on_transmit = lambda association, octets: told.append(gate.answers[:])
    gate.layer.receive(gate.open(), uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.conclude(START + 1)

    assert told == [[], [(1, CHANGED)]]
    assert gate.layer.counts.separate_responses == 1


def test_of_a_non_request_no_more_is_told_than_that_it_was_carried_out() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), uplink(kind=NON), START)
    gate.conclude(START)

    assert gate.answers == [(1, b"")]


@pytest.mark.parametrize("is_late", [False, True])
def test_of_a_con_whose_response_nobody_wants_the_empty_ack_is_told(is_late: bool) -> None:
    gate = Gate()
    octets = message(CON, Code.POST, 1, "a", options=((NO_RESPONSE, b"\x02"),))
    gate.layer.receive(gate.open(), octets, START)
    if is_late:
        gate.layer.handle_timer(START + 0.5)
    gate.conclude(START + 0.5)

    assert gate.answers == [(1, empty(ACK, 1))]


def test_of_a_non_whose_response_nobody_wants_nothing_answers_a_repetition() -> None:
    gate = Gate()
    octets = message(NON, Code.POST, 1, "a", options=((NO_RESPONSE, b"\x02"),))
    gate.layer.receive(gate.open(), octets, START)

    assert gate.answers == [(1, b"")]


@pytest.mark.parametrize("kind", [CON, NON])
@pytest.mark.parametrize("received", [None, 0])
def test_content_is_not_told_nor_what_stands_for_it_on_an_unproven_path(
    kind: int, received: int | None
) -> None:
    gate = Gate()
    endpoint = gate.open()
    if received is not None:
        endpoint.association.move(received)
    gate.receive(endpoint, get(kind=kind), START)
    gate.answer_content(START)

    assert gate.take()[0][1] == (Code.CONTENT if received is None else Code.UNAUTHORIZED)
    assert gate.answers == []


def test_content_too_long_for_the_association_is_not_told() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.max_plaintext = 20
    gate.layer.receive(endpoint, get(), START)
    gate.answer_content(START)

    assert gate.take_one().code == Code.INTERNAL_SERVER_ERROR
    assert gate.answers == []


@pytest.mark.parametrize(("length", "is_whole"), [(15, True), (16, False)])
def test_a_diagnostic_is_told_as_far_as_21_octets_hold_it(length: int, is_whole: bool) -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), get(), START)
    gate.layer.respond(gate.silent_site.asked[0][0], Code.NOT_FOUND, b"", b"x" * length, START)

    (whole,) = gate.take()
    assert gate.answers == [(1, whole if is_whole else whole[:5])]


def test_the_options_of_a_refusal_are_told_without_its_long_diagnostic() -> None:
    gate = Gate(max_packet_size=5000)
    gate.layer.receive(gate.open(), uplink(), START)
    gate.conclude(START, Outcome.TOO_LARGE)

    whole = gate.take_one()
    ((message_id, octets),) = gate.answers
    told = Message.decode(octets)
    assert (message_id, told.mtype, told.mid, told.token) == (1, ACK, 1, b"\x0a")
    assert (told.code, told.opt.size1) == (whole.code, whole.opt.size1)
    assert (told.payload, whole.payload) == (b"", b"too large for the broker")


def test_a_refusal_at_once_is_told_too() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), message(CON, Code.POST, 7, "a/.."), START)

    assert [message_id for message_id, _ in gate.answers] == [7]


def test_neither_a_repetition_nor_what_is_unfinished_is_told() -> None:
    gate = Gate()
    endpoint = gate.open()
    for octets in (uplink(1), uplink(2)):
        gate.layer.receive(endpoint, octets, START)
    gate.conclude(START)
    for octets in (uplink(1), uplink(2)):
        gate.layer.receive(endpoint, octets, START)
    gate.layer.handle_timer(START + 0.5)

    assert [message_id for message_id, _ in gate.answers] == [2]


def test_an_overload_which_is_not_remembered_is_not_told() -> None:
    gate = Gate(Settings(dedup_exchanges=1))
    endpoint = gate.open()
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(message_id), START)

    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE
    assert gate.answers == []


# What is made of it


def restored(
    *answers: tuple[int, float, bytes], capacity: int = 64
) -> tuple[Gate, Endpoint[FakeAssociation]]:
    """An endpoint of which an earlier process told this; expiry after START."""
    gate = Gate(Settings(dedup_exchanges=capacity))
    endpoint = gate.open()
    gate.layer.restore(endpoint, [(mid, START + at, told) for mid, at, told in answers], START)
    return gate, endpoint


def test_after_a_restart_a_repetition_gets_the_same_answer_and_nothing_is_published() -> None:
    gate, endpoint = restored((1, 200.0, CHANGED), (2, 200.0, b""))
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(message_id), START + 1)

    assert gate.take() == [CHANGED]
    assert gate.publisher.published == []
    assert gate.layer.counts.duplicates == 2
    assert gate.answers == []


def test_after_a_restart_a_new_request_is_carried_out() -> None:
    gate, endpoint = restored((1, 200.0, CHANGED))
    gate.layer.receive(endpoint, uplink(2), START + 1)
    gate.conclude(START + 1)

    assert gate.take_one().mid == 2
    assert gate.answers == [(2, bytes.fromhex("61 44 0002 0a"))]


@pytest.mark.parametrize("after", [200.0, 247.0])
def test_a_restored_message_id_means_a_new_request_after_its_lifetime(after: float) -> None:
    gate, endpoint = restored((1, 200.0, CHANGED), (3, 240.0, CHANGED))
    gate.layer.receive(endpoint, uplink(), START + 199.9)
    assert gate.publisher.published == []

    gate.layer.receive(endpoint, uplink(), START + after)

    assert len(gate.publisher.published) == 1
    gate.conclude(START + after)
    assert gate.take() == [CHANGED, CHANGED]


def test_a_restored_exchange_lasts_no_longer_than_a_new_one_whatever_the_clock_did() -> None:
    gate, endpoint = restored((1, 1e9, CHANGED))
    gate.layer.receive(endpoint, uplink(), START + EXCHANGE_LIFETIME - 0.001)
    assert gate.publisher.published == []

    gate.layer.receive(endpoint, uplink(), START + EXCHANGE_LIFETIME)

    assert len(gate.publisher.published) == 1


def test_what_has_expired_is_not_restored_and_costs_nothing() -> None:
    gate, endpoint = restored((1, 0.0, CHANGED), (2, -1e9, CHANGED))

    assert endpoint.exchanges is None
    assert gate.layer.active_endpoints == 0
    assert gate.layer.next_timer() is None


def test_of_two_answers_with_one_message_id_the_newer_is_restored() -> None:
    newer = bytes.fromhex("61 84 0001 0b")
    gate, endpoint = restored((1, 200.0, newer), (1, 100.0, CHANGED))
    gate.layer.receive(endpoint, uplink(), START + 150)

    assert gate.take() == [newer]


def test_no_more_is_restored_than_an_association_remembers() -> None:
    answers = [(message_id, 200.0 - message_id, CHANGED) for message_id in range(10)]
    gate, endpoint = restored(*answers, capacity=3)
    assert endpoint.exchanges is not None
    assert list(endpoint.exchanges) == [2, 1, 0]

    gate.layer.receive(endpoint, uplink(11), START)

    assert list(endpoint.exchanges) == [1, 0, 11]


def test_a_restored_endpoint_becomes_idle_and_closes_like_any_other() -> None:
    gate, endpoint = restored((1, 200.0, CHANGED))
    assert gate.layer.active_endpoints == 1
    gate.run_timers(START + EXCHANGE_LIFETIME)
    assert gate.layer.active_endpoints == 0

    gate, endpoint = restored((1, 200.0, CHANGED))
    gate.layer.close(endpoint, 10.0)
    assert gate.layer.active_endpoints == 0
    assert gate.layer.next_timer() is None


def test_a_restored_answer_is_subject_to_the_limit_of_an_unproven_path() -> None:
    gate, endpoint = restored((1, 200.0, CHANGED))
    endpoint.association.move(received=0)

    gate.layer.receive(endpoint, uplink(), START)
    assert gate.withheld == [CHANGED]
    gate.receive(endpoint, uplink(), START)
    assert gate.take() == [CHANGED]


@pytest.mark.parametrize("path", ["a", "a/..", "time"])
@pytest.mark.parametrize("outcome", [0, 0x87, 0x99, Outcome.UNAVAILABLE, Outcome.TOO_LARGE])
@pytest.mark.parametrize("no_response", [None, b"\x02", b"\x1a"])
@pytest.mark.parametrize("delay", [0.1, 1.0])
def test_what_was_told_answers_a_repetition_in_the_next_process_as_in_this_one(
    path: str, outcome: int, no_response: bytes | None, delay: float
) -> None:
    options = () if no_response is None else ((NO_RESPONSE, no_response),)
    octets = message(CON, Code.POST, 1, path, options=options, payload=b"x")
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, octets, START)
    gate.run_timers(START + delay)
    if gate.publisher.published:
        gate.conclude(START + delay, outcome)
    answers = [Message.decode(each) for each in gate.take()]
    response = next((each for each in answers if each.code), None)
    ((message_id, told),) = gate.answers

    after, endpoint = restored((message_id, 200.0, told))
    after.layer.receive(endpoint, octets, START + 20)

    again = after.take_one()
    assert (again.mtype, again.mid) == (ACK, 1)
    assert after.publisher.published == []
    if response is None:
        assert again.code == Code.EMPTY
    else:
        assert (again.code, again.token) == (response.code, response.token)
        assert (again.opt.max_age, again.opt.size1) == (response.opt.max_age, response.opt.size1)
