"""Responses on an unproven path: what is said where there is too little credit for all of it."""

from __future__ import annotations

import pytest
from aiocoap import Message

from coapgate.model import Code
from tests.coap.gate import (
    ACK,
    CON,
    CONTENT,
    ECHO,
    NO_RESPONSE,
    NON,
    OVERHEAD,
    RST,
    Gate,
    empty,
    get,
    message,
    uplink,
)

START = 100.0
THIS = b"\x0e" * 8
"""An Echo value."""


def test_content_beyond_the_credit_becomes_4_01_with_echo_and_the_next_request_gets_it() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0, echo=THIS)
    gate.receive(endpoint, get(1), START)
    gate.answer_content(START)

    refusal, ping = (Message.decode(octets) for octets in gate.take())
    assert (refusal.mtype, refusal.mid, refusal.code) == (ACK, 1, Code.UNAUTHORIZED)
    assert (refusal.token, refusal.opt.echo, refusal.payload) == (b"\x0a", THIS, b"")
    assert (ping.mtype, ping.code) == (CON, Code.EMPTY)
    assert gate.layer.counts.responses == {Code.UNAUTHORIZED: 1}

    gate.receive(endpoint, get(2, (ECHO, refusal.opt.echo)), START)
    gate.answer_content(START)
    answer = gate.take_one()
    assert (answer.mid, answer.code, answer.payload) == (2, Code.CONTENT, CONTENT)
    assert gate.withheld == []


def test_a_device_that_knows_no_echo_gets_content_after_its_reset_of_our_ping() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(1), START)
    gate.answer_content(START)
    _, ping = gate.take()

    gate.receive(endpoint, empty(RST, Message.decode(ping).mid), START)
    gate.receive(endpoint, get(2), START)
    gate.answer_content(START)

    assert gate.take_one().code == Code.CONTENT
    assert gate.layer.counts.path_proofs == {"reset": 1}


def test_content_for_a_non_request_becomes_4_01_too() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(1, kind=NON), START)
    gate.answer_content(START)

    refusal = Message.decode(gate.take()[0])
    assert (refusal.mtype, refusal.code, refusal.token) == (NON, Code.UNAUTHORIZED, b"\x0a")


def test_the_ack_of_a_separate_4_01_proves_the_path_so_no_ping_is_sent() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(), START)
    gate.layer.handle_timer(START + 0.5)
    gate.take()
    gate.answer_content(START + 1)

    refusal = gate.take_one()
    assert (refusal.mtype, refusal.code) == (CON, Code.UNAUTHORIZED)
    gate.receive(endpoint, empty(ACK, refusal.mid), START + 1)
    assert endpoint.association.unproven is None
    assert gate.layer.counts.path_pings == 0


def test_content_that_the_credit_allows_is_sent_at_once() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=(4 + 1 + 2 + len(CONTENT) + OVERHEAD) // 3 + 1)
    gate.layer.receive(endpoint, get(), START)
    gate.answer_content(START)

    assert gate.take_one().payload == CONTENT
    assert endpoint.association.unproven is not None
    assert gate.layer.counts.path_pings == 0


def test_what_was_published_is_never_answered_by_4_01() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.layer.receive(endpoint, uplink(), START)
    gate.conclude(START)

    assert gate.take() == []
    assert [octets[1] for octets in gate.withheld] == [Code.CHANGED]
    gate.receive(endpoint, uplink(), START + 2)  # its repetition brings credit
    assert gate.take()[0][1] == Code.CHANGED
    assert len(gate.publisher.published) == 1


def test_diagnostics_go_before_anything_else_is_withheld() -> None:
    gate = Gate(rate=1.0, burst=1)
    endpoint = gate.open()
    gate.layer.receive(endpoint, uplink(1), START)
    unproven = endpoint.association.move()
    unproven.credit = OVERHEAD + 4 + 1 + 3  # header, token, Max-Age

    gate.layer.receive(endpoint, uplink(2), START)

    answer = gate.take_one()
    assert (answer.code, answer.opt.max_age) == (Code.TOO_MANY_REQUESTS, 1)
    assert answer.payload == b""
    assert gate.withheld == []


def test_the_answer_to_a_repetition_is_subject_to_the_same_limit() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, get(), START)
    gate.answer_content(START)
    (content,) = gate.take()
    endpoint.association.move(received=0, echo=THIS)

    gate.receive(endpoint, get(), START + 2)
    refusal, ping = (Message.decode(octets) for octets in gate.take())
    assert (refusal.mid, refusal.code, refusal.opt.echo) == (1, Code.UNAUTHORIZED, THIS)
    gate.receive(endpoint, empty(RST, ping.mid), START + 2)

    gate.receive(endpoint, get(), START + 4)
    assert gate.take() == [content]
    assert len(gate.silent_site.asked) == 1


def test_a_repeated_refusal_loses_its_diagnostic_where_there_is_too_little_credit() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(endpoint, message(CON, Code.POST, 1, "a/.."), START)
    (whole,) = gate.take()
    endpoint.association.move().credit = OVERHEAD + 5

    gate.layer.receive(endpoint, message(CON, Code.POST, 1, "a/.."), START)
    assert gate.take() == [whole[:5]]

    endpoint.association.unproven = None
    gate.layer.receive(endpoint, message(CON, Code.POST, 1, "a/.."), START)
    assert gate.take() == [whole]


def test_a_repeated_empty_ack_that_may_not_leave_is_withheld() -> None:
    gate = Gate()
    endpoint = gate.open()
    gate.layer.receive(
        endpoint, message(CON, Code.POST, 1, "a", options=((NO_RESPONSE, b"\2"),)), 1
    )
    gate.conclude(START)
    gate.take()
    endpoint.association.move(received=0)

    gate.layer.receive(endpoint, uplink(), START)

    assert gate.withheld == [empty(ACK, 1)]
    assert gate.layer.counts.path_pings == 0


@pytest.mark.parametrize("token", [b"", b"12345678"])
@pytest.mark.parametrize("is_late", [False, True])
def test_every_request_brings_credit_for_its_piggybacked_answer_or_empty_ack(
    token: bytes, is_late: bool
) -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    for message_id in range(50):
        now = START + message_id
        gate.receive(endpoint, message(CON, Code.POST, message_id, "a", token=token), now)
        if is_late:
            gate.layer.handle_timer(now + 0.6)
        else:
            gate.conclude(now)
    gate.receive(endpoint, empty(CON, 100), START + 100)

    assert len(gate.take()) == 51
    assert gate.withheld == []
    assert gate.layer.counts.path_pings == 0


# No-Response (RFC 7967)


def test_content_nobody_wants_asks_for_no_proof() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(1, (NO_RESPONSE, b"\x02")), START)
    gate.answer_content(START)

    assert gate.take() == [empty(ACK, 1)]
    assert gate.layer.counts.path_pings == 0


def test_who_suppresses_4_xx_hears_no_4_01_but_is_pinged() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.move(received=0)
    gate.receive(endpoint, get(1, (NO_RESPONSE, b"\x08")), START)
    gate.answer_content(START)

    ack, ping = gate.take()
    assert ack == empty(ACK, 1)
    gate.receive(endpoint, empty(RST, Message.decode(ping).mid), START)
    assert endpoint.association.unproven is None
    assert gate.layer.counts.silences == 1
    assert gate.layer.counts.responses == {}


def test_content_of_which_no_block_fits_a_record_is_5_00_unless_that_is_suppressed() -> None:
    gate = Gate()
    endpoint = gate.open()
    endpoint.association.max_plaintext = 20
    for message_id, no_response in enumerate((b"\x08", b"\x10")):
        gate.layer.receive(endpoint, get(message_id, (NO_RESPONSE, no_response)), START)
        gate.answer_content(START)

    assert [octets[1] for octets in gate.take()] == [Code.INTERNAL_SERVER_ERROR, Code.EMPTY]
