"""The message layer: RFC 7252 section 4, with a scripted clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from aiocoap import Message

from coapgate.coap.endpoint import Endpoint
from coapgate.coap.messages import Settings
from coapgate.coap.transmissions import Reliability
from coapgate.model import Code, Outcome
from tests.coap.gate import ACK, CON, NO_RESPONSE, NON, RST, FakeAssociation, Gate, empty, message

START = 100.0
EXCHANGE_LIFETIME = 247.0
NON_LIFETIME = 145.0


def uplink(kind: int = CON, message_id: int = 1, token: bytes = b"\x0a") -> bytes:
    return message(kind, Code.POST, message_id, "a", token=token, payload=b"21.5")


def suppressing(kind: int, no_response: int, message_id: int = 1, path: str = "a") -> bytes:
    options = ((NO_RESPONSE, bytes((no_response,))),)
    return message(kind, Code.POST, message_id, path, options=options)


# What arrives


def test_a_ping_is_answered_by_a_reset_at_once() -> None:
    gate = Gate()

    gate.layer.receive(gate.open(), bytes.fromhex("40001234"), START)

    assert gate.take() == [bytes.fromhex("70001234")]
    assert gate.layer.counts.pings == 1


@pytest.mark.parametrize(
    "octets",
    [
        "49020001" + "00" * 9,  # token lengths 9 to 15 are reserved
        "4f020001" + "00" * 15,
        "4802000100",  # token cut short
        "40020001ff",  # payload marker without payload
        "40020001f0",  # reserved option delta
        "4002000111",  # option cut short
        "4000000100",  # an empty message with something in it
        "410000010a",
        "40200001",  # code classes 1, 3, 6 and 7
        "40610001",
        "40c10001",
        "40e10001",
    ],
)
def test_a_format_error_in_a_con_is_reset_and_in_a_non_met_with_silence(octets: str) -> None:
    gate = Gate()
    endpoint = gate.open()
    confirmable = bytes.fromhex(octets)

    gate.layer.receive(endpoint, confirmable, START)
    assert gate.take() == [bytes.fromhex("70000001")]

    gate.layer.receive(endpoint, bytes((confirmable[0] | 0x10,)) + confirmable[1:], START)
    assert gate.take() == []
    assert gate.layer.counts.format_errors == 2
    assert gate.layer.next_timer() is None


@pytest.mark.parametrize("octets", ["", "40", "400200", "00020001", "80020001", "c0020001"])
def test_what_is_too_short_or_of_an_unknown_version_is_ignored(octets: str) -> None:
    gate = Gate()

    gate.layer.receive(gate.open(), bytes.fromhex(octets), START)

    assert gate.take() == []
    assert gate.layer.counts.ignored == 1


def test_an_empty_non_is_ignored() -> None:
    gate = Gate()

    gate.layer.receive(gate.open(), empty(NON, 1), START)

    assert gate.take() == []


@pytest.mark.parametrize("code", [0x45, 0x84, 0xA0])
def test_a_response_nobody_asked_for_is_reset_if_confirmable(code: int) -> None:
    gate = Gate()
    endpoint = gate.open()

    gate.layer.receive(endpoint, message(CON, code, 7), START)
    assert gate.take() == [bytes.fromhex("70000007")]
    gate.layer.receive(endpoint, message(NON, code, 8), START)
    assert gate.take() == []
    assert gate.layer.counts.unexpected_responses == 2


@pytest.mark.parametrize("kind", [ACK, RST])
@pytest.mark.parametrize("code", [0x00, 0x01, 0x02, 0x45])
def test_acks_and_resets_of_nothing_are_ignored(kind: int, code: int) -> None:
    gate = Gate()

    gate.layer.receive(gate.open(), message(kind, code, 9, token=b""), START)

    assert gate.take() == []
    assert gate.layer.counts.ignored == 1
    assert not gate.publisher.published


# Responses


def test_puback_comes_before_2_04() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), uplink(message_id=0xABCD, token=b"\1\2\3"), START)
    assert gate.take() == []

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 0.01)

    assert gate.take() == [bytes.fromhex("63 44 abcd 010203")]
    assert gate.layer.counts.responses == {Code.CHANGED: 1}


def test_an_outcome_may_come_while_the_publication_is_handed_over() -> None:
    gate = Gate()
    gate.publisher.on_publish = lambda publication: gate.layer.acknowledged(
        publication.ticket_number, Outcome.UNAVAILABLE, START
    )

    gate.layer.receive(gate.open(), uplink(), START)

    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE
    assert gate.layer.unfinished_exchanges == 0


def test_a_non_request_is_answered_by_a_non_with_our_message_id() -> None:
    gate = Gate()
    endpoint = gate.open()
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(NON, message_id), START)
        gate.layer.acknowledged(gate.publisher.published[-1].ticket_number, 0, START)

    first, second = (Message.decode(octets) for octets in gate.take())
    assert (first.mtype, first.code, first.token) == (NON, Code.CHANGED, b"\x0a")
    assert second.mid == first.mid + 1 & 0xFFFF


def test_a_refused_publication_is_answered_with_its_code_and_max_age() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), uplink(), START)

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, Outcome.UNAVAILABLE, START)

    answer = gate.take_one()
    assert (answer.mtype, answer.code, answer.opt.max_age) == (ACK, Code.SERVICE_UNAVAILABLE, 2)


def test_a_publication_too_large_for_the_broker_is_4_13_with_size1() -> None:
    gate = Gate(max_packet_size=5000)
    gate.layer.receive(gate.open(), uplink(), START)

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, Outcome.TOO_LARGE, START)

    answer = gate.take_one()
    assert (answer.code, answer.opt.size1) == (Code.REQUEST_ENTITY_TOO_LARGE, 5000 - 1024)


def test_a_bad_option_is_answered_for_a_con_and_drops_a_non() -> None:
    gate = Gate()
    endpoint = gate.open()
    critical = ((9, b""),)

    gate.layer.receive(endpoint, message(CON, Code.POST, 1, "a", options=critical), START)
    assert gate.take_one().code == Code.BAD_OPTION
    gate.layer.receive(endpoint, message(NON, Code.POST, 2, "a", options=critical), START)
    assert gate.take() == []
    assert gate.layer.counts.bad_option_drops == 1
    assert not gate.publisher.published


def test_a_proxy_request_is_5_05_for_con_and_non() -> None:
    gate = Gate()
    endpoint = gate.open()
    for message_id, kind in enumerate((CON, NON)):
        proxy = ((35, b"coap://elsewhere/"),)
        gate.layer.receive(endpoint, message(kind, Code.POST, message_id, options=proxy), START)

        assert gate.take_one().code == Code.PROXYING_NOT_SUPPORTED


def test_a_diagnostic_is_cut_to_what_fits_the_association() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.max_plaintext = 20
    ticket = _ask_site(gate, endpoint)

    gate.layer.respond(ticket, Code.BAD_REQUEST, b"", "ü".encode() * 100, START)

    (octets,) = gate.take()
    assert octets[4 + 1 :] == b"\xff" + "ü".encode() * 7


def test_a_diagnostic_without_any_room_is_left_out() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.max_plaintext = 6
    ticket = _ask_site(gate, endpoint)

    gate.layer.respond(ticket, Code.BAD_REQUEST, b"", b"why", START)

    assert gate.take() == [bytes.fromhex("61 80 0001 0a")]


def test_content_of_which_no_block_fits_the_association_is_5_00() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.max_plaintext = 20
    ticket = _ask_site(gate, endpoint)

    gate.layer.respond(ticket, Code.CONTENT, b"", b"x" * 100, START)

    assert gate.take_one().code == Code.INTERNAL_SERVER_ERROR
    assert gate.layer.counts.responses == {Code.INTERNAL_SERVER_ERROR: 1}


def _ask_site(gate: Gate, endpoint: Endpoint[FakeAssociation]) -> int:
    gate.layer.receive(endpoint, message(CON, Code.GET, 1, "time"), START)
    return gate.silent_site.asked[-1][0]


# Repetitions


def test_a_repeated_message_id_gets_the_same_answer_and_one_publication() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.receive(endpoint, uplink(), START + 0.1)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 0.2)
    gate.layer.receive(endpoint, uplink(), START + 2)

    answers = gate.take()
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert len(gate.publisher.published) == 1
    assert gate.layer.counts.duplicates == 2


def test_a_refusal_is_repeated_word_for_word() -> None:
    gate = Gate()
    endpoint = gate.open()
    for _ in range(2):
        gate.layer.receive(endpoint, message(CON, Code.POST, 1, "a/../b"), START)

    first, second = gate.take()
    assert first == second


def test_a_repeated_non_is_carried_out_once_and_answered_once() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(NON), START)
    gate.layer.receive(endpoint, uplink(NON), START)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START)
    gate.layer.receive(endpoint, uplink(NON), START)

    assert len(gate.take()) == 1
    assert len(gate.publisher.published) == 1


@pytest.mark.parametrize(("kind", "lifetime"), [(CON, EXCHANGE_LIFETIME), (NON, NON_LIFETIME)])
@pytest.mark.parametrize("answered", [True, False])
def test_a_message_id_is_new_again_after_exactly_its_lifetime(
    kind: int, lifetime: float, answered: bool
) -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(kind), START)
    if answered:
        gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START)

    gate.layer.receive(endpoint, uplink(kind), START + lifetime - 0.001)
    assert len(gate.publisher.published) == 1
    gate.layer.receive(endpoint, uplink(kind), START + lifetime)
    assert len(gate.publisher.published) == 2


def test_message_ids_in_any_order_expire_alike() -> None:
    gate = Gate()
    endpoint = gate.open()
    order = [41, 7, 65535, 0, 300, 8]
    for seconds, message_id in enumerate(order):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START + seconds)
        gate.layer.acknowledged(gate.publisher.published[-1].ticket_number, 0, START + seconds)
    later = START + EXCHANGE_LIFETIME + 2.5

    for message_id in order:
        gate.layer.receive(endpoint, uplink(message_id=message_id), later)

    assert len(gate.publisher.published) == len(order) + 3


def test_the_outcome_of_a_forgotten_exchange_answers_nothing() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(token=b"\1"), START)
    gate.layer.receive(endpoint, uplink(token=b"\2"), START + EXCHANGE_LIFETIME)
    gate.take()
    old, new = (publication.ticket_number for publication in gate.publisher.published)

    gate.layer.acknowledged(old, 0, START + EXCHANGE_LIFETIME)
    assert gate.take() == []
    gate.layer.acknowledged(new, 0, START + EXCHANGE_LIFETIME)
    assert gate.take_one().token == b"\2"
    assert gate.uplinks.outcomes == {0: 2}


def test_an_answer_after_the_lifetime_is_not_sent() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), uplink(NON), START)

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + NON_LIFETIME)

    assert gate.take() == []


def test_two_endpoints_never_share_message_ids() -> None:
    gate = Gate()
    gate.layer.receive(gate.open("a", b"a" * 8), uplink(), START)
    gate.layer.receive(gate.open("b", b"b" * 8), uplink(), START)

    assert len(gate.publisher.published) == 2
    assert gate.layer.counts.duplicates == 0


# Bounds


def test_the_oldest_finished_exchange_makes_room() -> None:
    gate = Gate(Settings(dedup_exchanges=3))
    endpoint = gate.open()
    for message_id in (1, 2, 3, 4):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START)
        if message_id != 1:
            gate.layer.acknowledged(gate.publisher.published[-1].ticket_number, 0, START)
    assert endpoint.exchanges is not None
    assert list(endpoint.exchanges) == [1, 3, 4]

    gate.layer.receive(endpoint, uplink(message_id=2), START)

    assert list(endpoint.exchanges) == [1, 4, 2]


def test_when_all_exchanges_are_unfinished_a_con_gets_5_03_and_a_non_is_dropped() -> None:
    gate = Gate(Settings(dedup_exchanges=2))
    endpoint = gate.open()
    other = gate.open("sensor-2", b"22222222")
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START)

    gate.layer.receive(endpoint, uplink(message_id=3), START)
    refused = gate.take_one()
    gate.layer.receive(endpoint, uplink(NON, 4), START)
    gate.layer.receive(endpoint, suppressing(CON, 16, message_id=5), START)

    assert (refused.mtype, refused.code) == (ACK, Code.SERVICE_UNAVAILABLE)
    assert 2 <= refused.opt.max_age <= 60
    assert gate.take() == [empty(ACK, 5)]
    assert len(gate.publisher.published) == 2
    assert gate.layer.counts.overloads == 3
    gate.layer.receive(other, uplink(message_id=3), START)
    assert len(gate.publisher.published) == 3


def test_a_request_that_would_be_refused_anyway_needs_room_as_well() -> None:
    gate = Gate(Settings(dedup_exchanges=1))
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(message_id=1), START)

    gate.layer.receive(endpoint, message(CON, Code.POST, 2, "a", options=((9, b""),)), START)

    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE
    assert gate.layer.counts.overloads == 1


def test_a_separate_response_under_way_keeps_its_exchange() -> None:
    gate = Gate(Settings(dedup_exchanges=1))
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.run_timers(START + 1)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)
    _, response = gate.take()

    gate.layer.receive(endpoint, uplink(message_id=2), START + 1)
    assert gate.take_one().code == Code.SERVICE_UNAVAILABLE

    gate.layer.receive(endpoint, empty(ACK, Message.decode(response).mid), START + 1)
    gate.layer.receive(endpoint, uplink(message_id=3), START + 1)
    assert len(gate.publisher.published) == 2


# The rate of a device


def test_above_the_rate_a_device_gets_4_29_with_max_age_and_others_are_unaffected() -> None:
    gate = Gate(rate=0.5, burst=2)
    endpoint = gate.open()
    other = gate.open("sensor-2", b"22222222")
    for message_id in (1, 2, 3):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START)

    answer = gate.take_one()
    assert (answer.mtype, answer.code, answer.opt.max_age) == (ACK, Code.TOO_MANY_REQUESTS, 2)
    assert len(gate.publisher.published) == 2
    assert gate.layer.counts.rate_limited == 1
    gate.layer.receive(other, uplink(message_id=3), START)
    assert len(gate.publisher.published) == 3
    gate.layer.receive(endpoint, uplink(message_id=4), START + 2)
    assert len(gate.publisher.published) == 4


def test_all_associations_of_a_device_share_its_rate() -> None:
    gate = Gate(rate=1.0, burst=1)
    gate.layer.receive(gate.open("a", b"11111111"), uplink(), START)

    gate.layer.receive(gate.open("a", b"22222222"), uplink(), START)

    assert gate.take_one().code == Code.TOO_MANY_REQUESTS


def test_reconnecting_renews_no_allowance() -> None:
    gate = Gate(rate=1.0, burst=1)
    endpoint = gate.open("a", b"11111111")
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.close(endpoint, 10.0)

    gate.layer.receive(gate.open("a", b"22222222"), uplink(), START)

    assert gate.take_one().code == Code.TOO_MANY_REQUESTS


def test_bad_requests_use_up_the_allowance_too() -> None:
    gate = Gate(rate=1.0, burst=1)
    endpoint = gate.open()
    for message_id in (1, 2):
        octets = message(CON, Code.POST, message_id, "a", options=((9, b""),))
        gate.layer.receive(endpoint, octets, START)

    assert [octets[1] for octets in gate.take()] == [Code.BAD_OPTION, Code.TOO_MANY_REQUESTS]


def test_repetitions_use_up_no_allowance() -> None:
    gate = Gate(rate=1.0, burst=2)
    endpoint = gate.open()
    for _ in range(10):
        gate.layer.receive(endpoint, uplink(), START)
    gate.layer.receive(endpoint, uplink(message_id=2), START)

    assert len(gate.publisher.published) == 2
    assert gate.take() == []


def test_a_non_above_the_rate_is_answered_by_a_non() -> None:
    gate = Gate(rate=1.0, burst=1)
    endpoint = gate.open()
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(NON, message_id), START)

    answer = gate.take_one()
    assert (answer.mtype, answer.code) == (NON, Code.TOO_MANY_REQUESTS)


# Separate responses


def test_a_broker_that_takes_2_s_empty_ack_at_half_a_second_then_a_separate_response() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(message_id=5), START)

    assert gate.layer.next_timer() == START + 0.5
    gate.layer.handle_timer(START + 0.5)
    assert gate.take() == [empty(ACK, 5)]
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 2)

    response = gate.take_one()
    assert (response.mtype, response.code, response.token) == (CON, Code.CHANGED, b"\x0a")
    assert gate.layer.counts.separate_responses == 1
    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 2.1)
    gate.run_timers(START + 200)
    assert gate.take() == []


def test_a_repetition_after_the_empty_ack_gets_the_empty_ack_again() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.take()

    gate.layer.receive(endpoint, uplink(), START + 1)
    assert gate.take() == [empty(ACK, 1)]
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 2)
    response = gate.take_one()
    gate.layer.receive(endpoint, uplink(), START + 2.1)
    assert gate.take() == [empty(ACK, 1)]
    gate.layer.receive(endpoint, empty(ACK, response.mid), START + 2.2)
    gate.layer.receive(endpoint, uplink(), START + 2.3)
    assert gate.take() == [empty(ACK, 1)]


def test_a_separate_response_is_repeated_with_doubled_delays_and_then_given_up() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)
    _, response = gate.take()
    sent_at = [START + 1]

    while (due := gate.layer.next_timer()) is not None and due < START + EXCHANGE_LIFETIME:
        gate.layer.handle_timer(due)
        if octets := gate.take():
            assert octets == [response]
            sent_at.append(due)

    delays = [after - before for before, after in pairwise(sent_at)]
    assert len(delays) == 4
    assert 2.0 <= delays[0] <= 3.0
    assert delays == pytest.approx([delays[0] * factor for factor in (1, 2, 4, 8)])
    assert gate.layer.retransmissions == 4
    assert gate.layer.counts.given_up == 1
    gate.layer.receive(endpoint, uplink(), START + 200)
    assert gate.take() == [empty(ACK, 1)]


def test_first_delays_differ() -> None:
    gate = Gate()
    delays = set()
    for number in range(20):
        gate.layer.receive(gate.open(f"sensor-{number}"), uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    for publication in gate.publisher.published:
        gate.layer.acknowledged(publication.ticket_number, 0, START + 1)
    gate.take()
    while (due := gate.layer.next_timer()) is not None and due <= START + 4:
        gate.layer.handle_timer(due)
        delays.add(due - START - 1)

    assert len(delays) == 20
    assert all(2.0 <= delay <= 3.0 for delay in delays)


def test_a_separate_response_may_outlive_its_exchange() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 246)
    response = Message.decode(gate.take()[-1])
    gate.layer.receive(endpoint, uplink(token=b"\x0b"), START + EXCHANGE_LIFETIME)

    gate.layer.receive(endpoint, empty(ACK, response.mid), START + EXCHANGE_LIFETIME)

    gate.take()
    gate.layer.acknowledged(gate.publisher.published[1].ticket_number, 0, START + 247.1)
    assert gate.take_one().token == b"\x0b"


def test_a_slow_radio_gets_slower_repetitions_and_longer_memory() -> None:
    slow = Reliability(ack_timeout=10.0, max_retransmit=2)
    gate = Gate(Settings(reliability=slow))
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)

    due = gate.layer.next_timer()

    assert due is not None
    assert 10.0 <= due - START - 1 <= 15.0
    assert slow.exchange_lifetime == 10.0 * 3 * 1.5 + 200 + 10
    assert Reliability().exchange_lifetime == EXCHANGE_LIFETIME
    assert Reliability().non_lifetime == NON_LIFETIME


def test_a_reset_stops_a_separate_response() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)
    response = Message.decode(gate.take()[-1])

    gate.layer.receive(endpoint, empty(RST, response.mid), START + 1.1)

    gate.run_timers(START + 200)
    assert gate.take() == []
    assert gate.layer.counts.resets == 1


@pytest.mark.parametrize("code", [0x02, 0x45])
def test_an_ack_with_something_in_it_acknowledges_nothing(code: int) -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)
    response = Message.decode(gate.take()[-1])

    gate.layer.receive(endpoint, message(ACK, code, response.mid, token=b""), START + 1.1)
    gate.layer.receive(endpoint, empty(ACK, response.mid) + b"x", START + 1.1)

    gate.run_timers(START + 5)
    assert len(gate.take()) == 1


def test_a_message_id_of_ours_under_way_is_not_used_again() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)
    response = Message.decode(gate.take()[-1])

    endpoint.next_message_id = response.mid

    assert endpoint.take_message_id() == response.mid + 1 & 0xFFFF


def test_each_empty_ack_has_its_own_time() -> None:
    gate = Gate()
    endpoint = gate.open()
    for message_id, at in ((1, 0.0), (2, 0.2), (3, 0.3)):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START + at)
    gate.layer.acknowledged(gate.publisher.published[1].ticket_number, 0, START + 0.3)
    gate.take()

    gate.layer.handle_timer(START + 0.5)
    assert gate.take() == [empty(ACK, 1)]
    assert gate.layer.next_timer() == pytest.approx(START + 0.8)
    gate.run_timers(START + 0.9)
    assert gate.take() == [empty(ACK, 3)]


def test_a_non_gets_no_empty_ack() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), uplink(NON), START)
    gate.run_timers(START + 10)
    assert gate.take() == []

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 10)
    assert gate.take_one().mtype == NON


# No-Response (RFC 7967)


def test_a_con_that_suppresses_success_still_gets_an_empty_ack() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, suppressing(CON, 2), START)

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START)

    assert gate.take() == [empty(ACK, 1)]
    gate.layer.receive(endpoint, suppressing(CON, 2), START)
    assert gate.take() == [empty(ACK, 1)]
    assert gate.layer.counts.silences == 1


def test_after_the_empty_ack_a_suppressed_success_sends_nothing_more() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), suppressing(CON, 2), START)
    gate.layer.handle_timer(START + 0.5)
    assert gate.take() == [empty(ACK, 1)]

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 1)

    assert gate.take() == []


@pytest.mark.parametrize(("no_response", "is_answered"), [(2, True), (8, False), (26, False)])
@pytest.mark.parametrize("kind", [CON, NON])
def test_errors_are_answered_unless_they_are_suppressed_too(
    kind: int, no_response: int, is_answered: bool
) -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), suppressing(kind, no_response, path="a/.."), START)

    answers = [octets for octets in gate.take() if octets[1]]
    assert [octets[1] for octets in answers] == [Code.BAD_REQUEST] * is_answered


def test_a_con_that_suppresses_success_hears_of_failure() -> None:
    gate = Gate()
    gate.layer.receive(gate.open(), suppressing(CON, 2), START)

    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0x87, START)

    assert gate.take_one().code == Code.FORBIDDEN


def test_a_non_that_suppresses_success_is_carried_out_once() -> None:
    gate = Gate()
    endpoint = gate.open()
    for _ in range(3):
        gate.layer.receive(endpoint, suppressing(NON, 2), START)

    assert [p.qos for p in gate.publisher.published] == [0]
    assert gate.take() == []


# The end


def test_a_closed_endpoint_leaves_nothing_behind() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(message_id=1), START)
    gate.layer.handle_timer(START + 0.5)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START + 0.6)
    gate.layer.receive(endpoint, uplink(message_id=2), START + 0.6)
    gate.take()

    gate.layer.receive(endpoint, uplink(NON, 3), START + 0.6)

    gate.layer.close(endpoint, 10.0)

    assert gate.layer.unfinished_exchanges == 0
    gate.layer.acknowledged(gate.publisher.published[1].ticket_number, 0, START + 1)
    gate.run_timers(START + 500)
    assert gate.take() == []
    assert gate.layer.next_timer() is None
    assert gate.layer.active_endpoints == 0
    assert gate.uplinks.outcomes == {0: 2}


def test_an_association_may_close_while_it_is_being_sent_to() -> None:
    gate = Gate()
    endpoint = gate.open()
    for message_id in (1, 2):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START)
    closed: list[bytes] = []

    def close(association: FakeAssociation, octets: bytes) -> None:
        closed.append(octets)
        gate.layer.close(endpoint, 10.0)

    gate.on_transmit = close
    gate.layer.handle_timer(START + 0.5)

    assert closed == [empty(ACK, 1)]
    assert gate.layer.active_endpoints == 0


def test_an_endpoint_that_never_asked_closes_as_well() -> None:
    gate = Gate()

    gate.layer.close(gate.open(), 10.0)

    assert gate.layer.next_timer() is None


def test_an_idle_endpoint_forgets_everything() -> None:
    gate = Gate(max_absent=0)
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(), START)
    gate.layer.acknowledged(gate.publisher.published[0].ticket_number, 0, START)

    gate.run_timers(START + EXCHANGE_LIFETIME)

    assert endpoint.exchanges is None
    assert endpoint.source is None
    assert endpoint.allowance is None
    assert len(gate.rates) == 0
    assert gate.layer.next_timer() is None
    gate.layer.receive(endpoint, uplink(), START + 300)
    assert len(gate.publisher.published) == 2


def test_an_endpoint_with_a_younger_exchange_is_looked_at_again() -> None:
    gate = Gate()
    endpoint = gate.open()
    for message_id, at in ((1, 0.0), (2, 100.0)):
        gate.layer.receive(endpoint, uplink(message_id=message_id), START + at)
        gate.layer.acknowledged(gate.publisher.published[-1].ticket_number, 0, START + at)

    gate.run_timers(START + EXCHANGE_LIFETIME)
    assert endpoint.exchanges is not None
    assert list(endpoint.exchanges) == [2]
    gate.run_timers(START + 2 * EXCHANGE_LIFETIME)
    assert endpoint.exchanges is None


def test_many_idle_endpoints_are_tidied_up_in_portions() -> None:
    gate = Gate()
    for number in range(1000):
        gate.layer.receive(gate.open(f"sensor-{number}"), uplink(NON), START)
    due = START + EXCHANGE_LIFETIME

    gate.layer.handle_timer(due)

    assert 0 < gate.layer.active_endpoints < 1000
    assert gate.layer.next_timer() == due
    gate.run_timers(due)
    assert gate.layer.active_endpoints == 0
